import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

import g2m
from g2m import bench, cli
from g2m.bench import append_result, read_results
from g2m.data import cards, load
from g2m.estimators import Student, Teacher
from g2m.methods import REGISTRY
from g2m.outputs import TeacherOutputs
from g2m.report_page import report_files

SCRIPT = Path(sysconfig.get_path("scripts"), "g2m")
QUICK = [
    word
    for option in ("data.num_nodes=300", "max_epochs=3", "teacher.max_epochs=3", "hidden_channels=8")
    for word in ("-o", option)
]
ENDLESS = ["-o", "glnn.max_epochs=1000000000", "-o", "glnn.patience=1000000000"]
COMMANDS = ["demo", "data", "train", "bench", "condense", "bench-condense", "report", "predict"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Every command runs in a folder of its own, with teachers and data kept there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("G2M_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("G2M_DATA_ROOT", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process, as its script does; return exit code, standard output and error."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["g2m", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.app()
        return stop.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def start(place):
    """Start a command in a process group of its own, as a terminal does; whatever is left of it is ended."""
    started = []

    def run(*words):
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        started.append(
            subprocess.Popen(
                [SCRIPT, *map(str, words)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background has it ignored
            )
        )
        return started[-1]

    yield run
    for process in started:
        if members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def members(group):
    """The living processes of a group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = entry.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(pgrp) == group and state not in "ZX":
            found.append(int(entry.parent.name))
    return found


def wait_for(condition, process=None, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.002)


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in ("seconds", "ms")}
    return value


def by_key(records):
    found = {record["key"]: timeless(record) for record in records}
    assert len(found) == len(records), "no duplicates"
    return found


# -- help, version ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS), ["data", "get"]], ids=" ".join)
def test_help(words):
    result = CliRunner().invoke(cli.cli, [*words, "--help"], prog_name="g2m", env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"Usage: {' '.join(['g2m', *words])} " in result.output
    command = typer.main.get_command(cli.cli)
    for name in words:
        command = command.commands[name]
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())
    assert " ".join(command.help.split()) in shown
    assert [name for name in getattr(command, "commands", ()) if f" {name} " not in shown] == []
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} has no word of help"
        assert parameter.help in shown


def test_version_lists_the_optional_parts(call, monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: object() if name == "rdkit" else None)
    code, out, _ = call("--version")
    assert code == 0
    assert f"g2m: {g2m.__version__}" in out
    assert f"torch: {torch.__version__}" in out
    assert "rdkit: found" in out
    for name, extra in {"torch_scatter": "scatter", "pyarrow": "export", "optuna_dashboard": "dashboard"}.items():
        assert f"{name}: not found (pip install 'g2m[{extra}]')" in out
    code, out, _ = call("--version", "--json")
    found = json.loads(out)
    assert (code, found["g2m"], found["rdkit"], found["pyarrow"]) == (0, g2m.__version__, True, False)


# -- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "digitz"], r"name: .*Did you mean 'digits'\?"),
        (["train", "sbm", "--method", "gln"], r"Did you mean 'glnn'\?"),
        (["train", "sbm", "--teacher", "sagee"], r"Did you mean 'sage'\?"),
        (["train", "sbm", "--setting", "inductiv"], r"Did you mean 'inductive'\?"),
        (["train", "sbm", "--seeds", "0"], "seeds: expected a whole number"),
        (["train", "sbm", "-o", "dropot=0.5"], r"unknown key 'dropot'"),
        (["train", "sbm", "-o", "dropout"], "-o: expected key=value"),
        (["train", "sbm", "-o", "seed=1"], "'seed' cannot be set here"),
        (["train", "sbm", "-o", "lr=abc", "--method", "mlp"], "lr: expected a number"),
        (["train", "sbm", "-o", "data.homophily=2"], "homophily: expected a number"),
        (["train", "cora"], r"data set 'cora' is not in .*data .*g2m data get cora"),
        (["bench", "sbm", "--methods", ","], "methods: expected at least one name"),
        (["bench", "sbm", "--methods", "mlp,nosmock"], "method: expected one of"),
        (["bench", "sbm", "--workers", "0"], "workers: expected a whole number"),
        (["bench"], r"DATA: expected at least one card name \(got none\)\. .* g2m data, or give --all"),
        (["bench", "--methods", "mlp"], "DATA: expected at least one card name"),
        (["bench", "sbm", "--all", "--methods", "mlp"], r"--all, --methods: expected one of them \(got both\)"),
        (["bench", "--all", "-o", "vqgraph.code=1"], "unknown key 'code'"),
        (["bench", "sbm", *QUICK, "--out", "file/r.jsonl"], "Not a directory|File exists"),
        (["bench", "sbm", "--out", "binary.jsonl"], "line 1 of 'binary.jsonl' is not JSON"),
        (["report", "missing.jsonl"], "no results file 'missing.jsonl'"),
        (["report", "."], "no results file"),
        (["report", "empty.jsonl"], "expected at least one record"),
        (["report", "cut.jsonl"], "expected at least one record"),
        (["report", "binary.jsonl"], "line 1 of 'binary.jsonl' is not JSON"),
        (["report", "foreign.jsonl"], "line 1 of 'foreign.jsonl' is not a result"),
        (["report", "table.jsonl", "--into", "missing.md"], "no page 'missing.md'"),
        (["report", "table.jsonl", "--out", "file"], r"--out: expected a folder, or a page that ends in \.md"),
        (["report", "table.jsonl", "--out", "x", "--against", "mlp"], "--against: expected results of students"),
        (["report", "table.jsonl", "--against", "mlp"], "--against: .* Name a folder by --out"),
        (["report", "table.jsonl", "--out", "x", "--into", "file"], "--out, --into: expected one of them"),
        (
            ["report", "table.jsonl", "--into", "file"],
            "the page lacks the lines '<!-- g2m report table.jsonl --into file",
        ),
        (["predict", "missing.safetensors", "x.npy"], "no file 'missing.safetensors'"),
        (["predict", "file", "x.npy"], "'file' is truncated or not a safetensors file"),
        (["data", "get", "crra"], "name: expected one of"),
        (["demo", "--out", "file"], "out: expected a folder"),
        (["demo", "--seeds", "0"], "seeds: expected a whole number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_2(call, place, words, message):
    (place / "file").write_text("x")
    (place / "empty.jsonl").write_text("")
    (place / "cut.jsonl").write_text('{"table": ')
    (place / "binary.jsonl").write_bytes(b"\xff\xfe\x00\n")
    (place / "foreign.jsonl").write_text('{"a": 1}\n')
    (place / "table.jsonl").write_text('{"table": "t", "a": 1}\n')
    before = set(place.rglob("*"))
    code, out, error = call(*words)
    assert code == 2
    assert out == ""
    assert re.fullmatch(rf"error: .*({message}).*\n", error), error
    assert {path for path in place.rglob("*") if not path.is_relative_to(place / "cache")} == before


@pytest.mark.parametrize(
    "words", [["trian"], ["train"], ["train", "sbm", "--seeds", "x"], ["bench", "sbm", "--outt", "x"], []], ids=" ".join
)
def test_wrong_usage_is_exit_2(call, words):
    code, _, error = call(*words)
    assert code == 2
    assert "Traceback" not in error


def test_the_script_itself(start):
    process = start("report", "missing.jsonl")
    out, error = process.communicate(timeout=240)
    assert (process.returncode, out) == (2, "")
    assert error == "error: path: no results file 'missing.jsonl'.\n"


def test_a_bug_is_not_hidden(call, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(bench, "cells", broken)
    monkeypatch.setattr(sys, "argv", ["g2m", "bench", "sbm"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.app()


# -- data ------------------------------------------------------------------------------------------------------


def test_data_lists_every_card(call, place):
    code, out, _ = call("data", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows.keys() == cards().keys()
    assert rows["digits"]["status"] == "built in"
    assert rows["cora"]["status"] == "needs download"
    assert (rows["cora"]["nodes"], rows["cora"]["licence"]) == (
        cards()["cora"].counts["nodes"],
        cards()["cora"].licence,
    )
    code, out, _ = call("data")
    assert code == 0
    assert all(re.search(rf"\b{name}\b", out) for name in rows)
    assert str(place / "data") in out.replace("\n", "")


def test_data_get_of_what_is_built_in(call):
    assert call("data", "get", "digits") == (0, "digits: built in\n", "")
    assert json.loads(call("data", "get", "digits", "--json")[1]) == {"name": "digits", "status": "built in"}


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["data", "get", "cora"], "data"),
        (["data", "get", "cora", "--root", "there"], "there"),
        (["data", "--root", "there", "get", "cora"], "there"),
        (["data", "get", "cora-cpf", "--root", "there"], "there"),
    ],
)
def test_data_get_without_network_names_the_folder(call, place, monkeypatch, words, folder):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    code, out, error = call(*words)
    assert (code, out) == (2, "")
    assert re.search(rf"error: download: .*could not be fetched into \S*{folder} ", error)
    assert "Traceback" not in error
    assert [path for path in (place / folder).rglob("*") if path.is_file()] == []


# -- predict ---------------------------------------------------------------------------------------------------


@pytest.fixture
def student(place):
    graph = load("sbm", num_nodes=300)
    student = Student("mlp", hidden_channels=8, max_epochs=2).fit(graph)
    student.save(place / "student.safetensors")
    np.save(place / "x.npy", graph.x[:9].numpy())
    return student, graph.x[:9].numpy()


@pytest.mark.parametrize("target", ["p.csv", "p.npy", "p.parquet", "-", "json"])
@pytest.mark.parametrize("source", ["x.npy", "x.csv", "x.parquet"])
def test_predict(call, place, student, source, target):
    student, x = student
    if "parquet" in source + target:
        pytest.importorskip("pyarrow")
    if source == "x.csv":
        pd.DataFrame(x).to_csv(source, index=False, header=False)
    elif source == "x.parquet":
        pd.DataFrame(x, columns=[f"f{i}" for i in range(x.shape[1])]).to_parquet(source)
    if target == "json":
        code, out, _ = call("predict", "student.safetensors", source, "--json")
        found = json.loads(out)
        table = np.column_stack([found["class"], found["probability"]])
    elif target == "-":
        code, out, _ = call("predict", "student.safetensors", source)
        Path("out.csv").write_text(out)
        table = pd.read_csv("out.csv").to_numpy()
    else:
        code, out, _ = call("predict", "student.safetensors", source, "--out", target)
        assert out == f"written: {target} (9 rows)\n"
        table = {".csv": pd.read_csv, ".npy": lambda p: pd.DataFrame(np.load(p)), ".parquet": pd.read_parquet}[
            Path(target).suffix
        ](target).to_numpy()
    assert code == 0
    np.testing.assert_array_equal(table[:, 0], student.predict(x))
    np.testing.assert_allclose(table[:, 1:], student.predict_proba(x), atol=1e-5)


@pytest.mark.parametrize(
    ("features", "extra", "message"),
    [
        (lambda x: x[:, :5], [], r"shape \[N, 32\]"),
        (lambda x: np.where(x == x[3, 3], np.nan, x), [], "finite features .*row 3"),
        (lambda x: x, ["--out", "p.txt"], "--out: expected a"),
    ],
)
def test_predict_refuses(call, place, student, features, extra, message):
    np.save("x.npy", features(student[1]))
    before = set(place.iterdir())
    code, out, error = call("predict", "student.safetensors", "x.npy", *extra)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: .*{message}.*\n", error)
    assert set(place.iterdir()) == before


def test_predict_with_a_teachers_file(call, place, student):
    Teacher("gcn", hidden_channels=8, max_epochs=1).fit(load("sbm", num_nodes=300)).save("teacher.safetensors")
    code, _, error = call("predict", "teacher.safetensors", "x.npy")
    assert code == 2
    assert "expected a student file (got a teacher file" in error


# -- train, bench, report --------------------------------------------------------------------------------------


def test_train_keeps_what_it_made(call, place):
    words = ["train", "sbm", *QUICK, "--setting", "inductive", "--seeds", "2"]
    code, out, _ = call(*words, "--json")
    records = json.loads(out)
    assert code == 0
    assert [r["seed"] for r in records] == [0, 1]
    folder = place / "runs" / "sbm-sage-glnn-inductive"
    assert read_results(folder / "results.jsonl") == records
    for record in records:
        kept = folder / f"seed{record['seed']}-{record['key']}"
        graph = load("sbm", num_nodes=300, seed=record["seed"], setting="inductive")
        assert Student.load(kept / "student.safetensors").evaluate(graph) == record["scores"]
        assert Teacher.load(kept / "teacher.safetensors").evaluate(graph) == record["teacher_scores"]
        TeacherOutputs.load(kept / "outputs.safetensors").check(graph)
    code, out, _ = call(*words)
    assert code == 0
    mean = 100 * np.mean([r["scores"]["unseen"] for r in records])
    assert f"{mean:.2f} ± " in out
    assert len(read_results(folder / "results.jsonl")) == 2


def test_bench_prints_a_table_per_setting_and_json(call):
    words = ["bench", "sbm", *QUICK, "--seeds", "1", "--teachers", "sage, gcn"]
    code, out, _ = call(*words)
    assert code == 0
    assert re.search(r"transductive\s.*inductive\s.*results: results\.jsonl", out, re.S)
    assert all(model in out for model in ("SAGE", "GCN", "glnn ← SAGE", "glnn ← GCN", "mlp"))
    code, out, _ = call(*words, "--json")
    assert sorted(map(str, json.loads(out))) == sorted(map(str, read_results("results.jsonl")))
    assert len(json.loads(out)) == 6


def test_report_prints_writes_and_renews(call, place):
    call("bench", "sbm", *QUICK, "--seeds", "1", "--out", "r.jsonl")
    append_result("other.jsonl", {"table": "speed", "ms": 1})
    code, printed, _ = call("report", "r.jsonl", "other.jsonl")
    assert code == 0
    assert re.findall(r"^#.*", printed, re.M) == ["# Results", "## Transductive", "## Inductive", "## speed"]
    assert "Made by `g2m report r.jsonl other.jsonl`" in printed

    assert call("report", "r.jsonl", "other.jsonl", "--out", "new/page.md") == (0, "written: new/page.md\n", "")
    page = (place / "new" / "page.md").read_text()
    assert page.startswith(printed.removesuffix("\n")), "what is printed, and how models compare"
    assert "## Mean ranks" in page

    (place / "page.md").write_text("a\n<!-- g2m report other.jsonl --into page.md -->\nold\n<!-- end -->\nb\n")
    assert call("report", "other.jsonl", "--into", "page.md")[0] == 0
    page = (place / "page.md").read_text()
    assert "old" not in page
    assert "### speed" in page
    assert page.startswith("a\n")
    assert page.endswith("b\n")
    assert call("report", "other.jsonl", "--into", "page.md")[0] == 0
    assert (place / "page.md").read_text() == page

    rows = json.loads(call("report", "r.jsonl", "other.jsonl", "--json")[1])
    assert [row.get("method", row.get("table")) for row in rows] == ["teacher", "glnn", "mlp"] * 2 + ["speed"]


def test_report_writes_a_folder_of_its_records(call, place):
    call("bench", "sbm", *QUICK, "--seeds", "3", "--settings", "inductive", "--out", "r.jsonl")
    words = ["report", "r.jsonl", "--out", "report", "--against", "mlp"]
    assert call(*words) == (0, "written: report/index.html\n", "")
    expected = report_files(read_results("r.jsonl"), command="g2m report r.jsonl --against mlp", against="mlp")
    assert {path.name for path in (place / "report").iterdir()} == expected.keys()
    for name in ("report.md", "index.html", "scores.csv", "differences.csv"):
        assert (place / "report" / name).read_text(encoding="utf-8") == expected[name]
    assert "| over mlp |" in expected["report.md"]
    assert "latency.png" in expected, "latency is measured"
    code, out, error = call(*words[:-1], "ml")
    assert (code, out) == (2, "")
    assert "Did you mean 'mlp'?" in error


@pytest.fixture
def asked(monkeypatch):
    """The cells that a benchmark would run."""
    found = []
    monkeypatch.setattr(bench, "run", lambda grid, **_: found.extend(grid) or (record for record in ()))
    return found


def shape(grid):
    names = ("data", "method", "teacher")
    return [{getattr(cell.experiment, name) for cell in grid} for name in names]


def test_bench_all_is_every_method_on_ten_graphs(call, asked):
    assert call("bench", "--all", "--seeds", "2")[0] == 0
    assert shape(asked) == [set(bench.ALL_DATA), set(REGISTRY), {"sage", "gcn", None}]
    alone = sum(not method.needs for method in REGISTRY.values())
    assert len(asked) == 10 * 2 * 2 * (2 * len(REGISTRY) - alone)


def test_bench_all_is_narrowed(call, asked):
    assert call("bench", "sbm", "--all", "--teachers", "gat", "--settings", "inductive", "--seeds", "1")[0] == 0
    assert shape(asked) == [{"sbm"}, set(REGISTRY), {"gat", None}]
    assert len(asked) == len(REGISTRY)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_fails_in_bench_is_listed_and_the_rest_is_done(call, place, workers):
    """Cora is not there; everything of sbm is run."""
    words = ["bench", "cora", "sbm", "--seeds", "2", "--settings", "transductive", "--workers", workers]
    words += ["-o", "max_epochs=3", "-o", "teacher.max_epochs=3"]
    code, out, error = call(*words)
    assert code == 1
    assert "glnn ← SAGE" in out
    assert re.fullmatch(
        r"failed: cora (mlp|glnn sage) transductive, seed [01]; .* and 1 more: .*g2m data get cora.*\n", error
    )
    done = read_results("results.jsonl")
    assert sorted((r["data"], r["method"], r["seed"]) for r in done) == [
        ("sbm", method, seed) for method in ("glnn", "mlp") for seed in (0, 1)
    ]
    code, out, _ = call(*words, "--json")
    assert (code, by_key(json.loads(out))) == (1, by_key(done))


def test_the_bar_counts_what_was_finished_before_as_done(call, monkeypatch):
    bars = []
    make = cli.bar
    monkeypatch.setattr(cli, "bar", lambda: bars.append(make()) or bars[-1])
    words = ["bench", "sbm", *QUICK, "--settings", "transductive", "--methods", "mlp", "--seeds"]
    added = []
    add = cli.Progress.add_task
    monkeypatch.setattr(cli.Progress, "add_task", lambda *a, **k: added.append(k) or add(*a, **k))
    assert call(*words, 1)[0] == call(*words, 3)[0] == 0
    assert added == [{"total": 1, "completed": 0}, {"total": 3, "completed": 1}]
    assert [(task.completed, task.total) for bar in bars for task in bar.tasks] == [(1, 1), (3, 3)]
    assert any(isinstance(column, cli.TimeRemainingColumn) for column in bars[0].columns)


# -- killed, stopped -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--seeds", 4], ["--all", "--teachers", "sage", "--seeds", 1, "--workers", 2]])
def test_a_killed_bench_goes_on(call, start, place, options):
    words = ["bench", "sbm", *QUICK, "-o", "glnn.max_epochs=100", *options, "--out"]
    process = start(*words, "killed.jsonl")
    wait_for(lambda: lines(place / "killed.jsonl") >= 2, process)
    process.kill()
    process.wait()
    wait_for(lambda: not Path("/proc").is_dir() or members(process.pid) == [])
    finished = read_results("killed.jsonl")
    before = b"".join((place / "killed.jsonl").read_bytes().splitlines(keepends=True)[: len(finished)])
    with (place / "killed.jsonl").open("a") as file:
        file.write('{"key": "ab')  # as a kill in the middle of a write leaves it
    code, out, _ = call(*words, "killed.jsonl", "--json")
    assert code == 0
    call(*words, "whole.jsonl", "--cache", "other", "--workers", 1)
    expected = by_key(read_results("whole.jsonl"))
    assert len(expected) == (2 * len(REGISTRY) if "--all" in options else 16)
    assert 2 <= len(finished) < len(expected), "it was killed on the way"
    assert by_key(read_results("killed.jsonl")) == by_key(json.loads(out)) == expected, "each once, all of them"
    assert (place / "killed.jsonl").read_bytes().startswith(before), "what was finished is as it was"


def test_a_killed_train_goes_on(call, start, place):
    words = ["train", "digits", "-o", "max_epochs=40", "-o", "teacher.max_epochs=20", "--seeds", "4", "--json"]
    process = start(*words, "--out", "killed")
    wait_for(lambda: lines(place / "killed" / "results.jsonl") >= 1, process)
    process.kill()
    process.wait()
    assert 1 <= lines(place / "killed" / "results.jsonl") < 4, "it was killed on the way"
    code, out, _ = call(*words, "--out", "killed")
    assert code == 0
    records = json.loads(out)
    whole = json.loads(call(*words, "--out", "whole", "--cache", "other")[1])
    assert by_key(records) == by_key(whole)
    for record in records:
        name = f"seed{record['seed']}-{record['key']}"
        graph = load("digits", seed=record["seed"])
        kept, other = (Student.load(place / run / name / "student.safetensors") for run in ("killed", "whole"))
        assert kept.predict_logits(graph.x).equal(other.predict_logits(graph.x))
        TeacherOutputs.load(place / "killed" / name / "outputs.safetensors").check(graph)
        assert Teacher.load(place / "killed" / name / "teacher.safetensors").evaluate(graph) == record["teacher_scores"]


def test_ctrl_c_says_how_to_go_on(start, place):
    process = start("bench", "sbm", *QUICK, *ENDLESS, "--seeds", "1", "--settings", "transductive")
    wait_for(lambda: lines(place / "results.jsonl") >= 1 and list(place.glob("cache/teachers/*.safetensors")), process)
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=240)
    assert process.returncode == 130
    assert (out, error) == ("", "stopped; the same command goes on from here\n")
    assert [r["method"] for r in read_results("results.jsonl")] == ["mlp"]


def test_ctrl_c_in_this_process_is_130_as_well(call, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run_cell", stop)
    for words in (["bench", "sbm", *QUICK], ["train", "sbm", *QUICK], ["demo"]):
        assert call(*words) == (130, "", "stopped; the same command goes on from here\n")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="lists processes by /proc")
@pytest.mark.parametrize("kind", ["ctrl-c", "interrupt", "kill"])
def test_workers_end_with_their_parent(start, place, kind):
    words = ["bench", "sbm", *QUICK, *ENDLESS, "--seeds", "2", "--settings", "transductive", "--workers", "2"]
    process = start(*words, "--methods", "glnn")
    wait_for(lambda: len(list(place.glob("cache/teachers/*.safetensors"))) == 2, process)
    assert len(members(process.pid)) >= 3
    if kind == "ctrl-c":  # reaches the whole group
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT if kind == "interrupt" else signal.SIGKILL)
    out, error = process.communicate(timeout=240)
    if kind == "kill":
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert (out, error) == ("", "stopped; the same command goes on from here\n")
    wait_for(lambda: members(process.pid) == [])
    assert not (place / "results.jsonl").exists() or read_results("results.jsonl") == []


# -- condensation ----------------------------------------------------------------------------------------------


def test_condense_says_how_trees_repeat_and_writes_the_set(call, place):
    code, out, err = call("condense", "atlas", "--hops", 2, "--budget", "400", "--plots", "plots")
    assert (code, err) == (0, "")
    assert "Trees repeat with 2 hops" in out
    assert g2m.condense.CondensedSet.load("atlas-scored.safetensors").nbytes().raw <= 400
    assert {path.name for path in (place / "plots").iterdir()} == {"atlas-skew.png", "atlas-trees.png"}


def test_condense_in_json_and_with_options(call):
    code, out, _ = call(
        "condense", "atlas", "--method", "mirage", "-o", "min_support=5", "--out", "small.safetensors", "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert found["file"] == "small.safetensors"
    assert found["options"]["min_support"] == 5
    assert 0 < found["bytes"] < found["bytes_full"]
    assert found["compressed"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["condense", "digits"], "expected g2m.Graphs"),
        (["condense", "atlas", "--method", "scord"], "Did you mean 'scored'"),
        (["condense", "atlas", "--budget", "1%%"], "budget: expected bytes"),
        (["condense", "atlas", "--budget", "1"], "budget"),
        (["condense", "atlas", "--method", "mirage", "-o", "min_suport=3"], "Did you mean 'min_support'"),
        (["bench-condense", "atlas", "--rows", "full,scord"], "--rows: expected names of"),
        (["bench-condense", "atlas", "--backbones", "gni"], "Did you mean 'gin'"),
    ],
)
def test_mistakes_in_condensation_exit_2_and_write_nothing(call, place, words, message):
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert not list(place.glob("*.safetensors"))


def test_bench_condense_prints_a_table_and_goes_on(call, place):
    words = ["bench-condense", "atlas", "--rows", "random,mirage, faithful,wl, equal bytes,size", "--backbones", "gin"]
    words += ["--seeds", 1, "--budget", "20%", "-o", "max_epochs=2", "--plot", "bytes.png"]
    code, out, _ = call(*words)
    assert code == 0
    assert all(row in out for row in ("random", "mirage, faithful", "wl, equal bytes", "size"))
    assert (place / "bytes.png").exists()
    records = read_results("condense.jsonl")
    code, out, _ = call(*words, "--json")
    assert json.loads(out) == records == read_results("condense.jsonl")
    code, out, _ = call("report", "condense.jsonl")
    assert code == 0
    assert "| mirage, faithful |" in out
