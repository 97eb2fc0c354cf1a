import io
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
from unittest.mock import ANY

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
import typer
from cases import outputs_of
from typer.testing import CliRunner

import g2m
from g2m import bench, cli, experiments, tables
from g2m.bench import append_result, read_results
from g2m.data import cards, load
from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.experiments import find, open_experiment
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
SWEEP = """
data = "sbm"
method = "mlp"
data_options = {num_nodes = 300}
student_options = {hidden_channels = 8, max_epochs = 3}

[space]
lr = {low = 0.001, high = 0.3, log = true}
norm = ["none", "batch"]
"""
COMMANDS = [
    "demo",
    "data",
    "train",
    "bench",
    "sweep",
    "condense",
    "bench-condense",
    "ogb",
    "report",
    "predict",
    "export",
    "latency",
]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Every command runs in a folder of its own, with teachers and data kept there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("G2M_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("G2M_DATA_ROOT", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def tuned(place, monkeypatch):
    """An empty folder for the experiments whose options a sweep found."""
    monkeypatch.setattr(experiments, "TUNED", place / "tuned")
    experiments.tuned.cache_clear()
    yield place / "tuned"
    experiments.tuned.cache_clear()


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


def without_estimates(error):
    """What is said beside the memory that a teacher takes."""
    return re.sub(r"^teacher: about .*\n", "", error, flags=re.M)


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in ("seconds", "ms", "threads")}
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
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: object() if name == "onnxruntime" else None)
    code, out, _ = call("--version")
    assert code == 0
    assert f"g2m: {g2m.__version__}" in out
    assert f"torch: {torch.__version__}" in out
    assert "onnxruntime: found" in out
    extras = {"torch_scatter": "scatter", "pyarrow": "export", "optuna_dashboard": "dashboard", "grpc": "distributed"}
    for name, extra in extras.items():
        assert f"{name}: not found (pip install 'g2m[{extra}]')" in out
    code, out, _ = call("--version", "--json")
    found = json.loads(out)
    assert (code, found["g2m"], found["onnxruntime"], found["pyarrow"]) == (0, g2m.__version__, True, False)


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
        (["train", "sbm", "--method", "mlp", "--teacher", "gcn"], "--teacher: method 'mlp' has none"),
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
        (["bench", "sbm", *QUICK, "--out", "file/r.jsonl"], r"out: .* cannot be written"),
        (["bench", "sbm", "--out", "."], r"--out: expected a results file \(got the folder '\.'\)"),
        (["bench-condense", "atlas", "--plot", "p.gif"], r"--plot: expected a name that ends in \.png, \.svg, \.pdf"),
        (["bench-condense", "atlas", "--rows", "lossless", "--plot", "p.png"], "--plot: expected rows that are drawn"),
        (["train", "sbm", "--out", "file"], r"--out: expected a folder \(got the file 'file'\)"),
        (["ogb", "ogbn-arxiv", "--out", "file"], r"--out: expected a folder \(got the file 'file'\)"),
        (["--json"], "--json: expected after a command, or beside --version"),
        (["--json", "data", "get", "digits"], "--json: expected after a command"),
        (["bench", "sbm", "--out", "binary.jsonl"], "line 1 of 'binary.jsonl' is not JSON"),
        (["sweep", "missing.toml"], "FILE: no experiment file 'missing.toml'"),
        (["sweep", "glnn/cora-cpf-sag"], r"FILE: .*Did you mean 'glnn/cora-cpf-sage'\?"),
        (["sweep", "wrong.toml"], r"wrong.toml: unknown key 'methd'\. Did you mean 'method'\?"),
        (["sweep", "x.toml", "--also", "bites"], r"also: .*Did you mean 'bytes'\?"),
        (["sweep", "x.toml", "--setting", "inductiv"], r"Did you mean 'inductive'\?"),
        (["sweep", "x.toml", "-o", "dropot=0.5"], "unknown key 'dropot'"),
        (["sweep", "x.toml", "-o", "lr=0.1", "-o", "norm=none"], "-o: expected at least one option left to search"),
        (["sweep", "x.toml", "--timeout", "nan"], r"--timeout: expected a number in \[0, inf\] \(got nan\)"),
        (["sweep", "x.toml", "--timeout", "-5"], r"--timeout: expected a number in \[0, inf\] \(got -5\.0\)"),
        (["sweep", "x.toml", "--replicate", "-1"], "--replicate: expected a whole number from 0"),
        (["sweep", "x.toml", "--trials", "0"], "--trials: expected a whole number from 1"),
        (["train", "sbm", "--tuned"], r"--tuned: no tuned options for sbm-glnn-sage; there are none\. .*best\.toml"),
        (["bench", "sbm", "--tuned"], "--tuned: no tuned options for a method on sbm-sage; there are none"),
        (["bench", "--all", "--tuned"], "--all, --tuned: expected one of them"),
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
        (["predict", "missing.onnx", "x.npy"], "no file 'missing.onnx'"),
        (["predict", "broken.onnx", "x.npy"], r"'broken.onnx' is truncated, changed or not \.onnx"),
        (["predict", "broken.pt2", "x.npy"], r"'broken.pt2' is truncated, changed or not \.pt2"),
        (["predict", "file", "x.npy", "--threads", "0"], "--threads: expected a whole number from 1"),
        (["export", "missing.safetensors", "--out", "s.onnx"], "no file 'missing.safetensors'"),
        (["latency", "missing.safetensors", "x", "--data", "sbm"], "no file 'missing.safetensors'"),
        (["latency", "x", "x", "--data", "sbm", "--sizes", "1,ten"], "--sizes: expected whole numbers by comma"),
        (["latency", "x", "x", "--data", "sbm", "--fanout", "1.5"], "--fanout: expected whole numbers by comma"),
        (["latency", "x", "x", "--data", "sbm", "--seconds", "-1"], "--seconds: expected a number"),
        (["latency", "x", "x", "--data", "sbm", "--plot", "p"], r"--plot: expected a name that ends in .* \(got 'p'\)"),
        (["data", "get", "crra"], "name: expected one of"),
        (["train", "mutag"], r"data: expected one graph \(got 'mutag', a set of graphs\)"),
        (["sweep", "x.toml", "--out", "file"], "--out: expected a folder"),
        (["demo", "--out", "file"], "out: expected a folder"),
        (["demo", "--seeds", "0"], "seeds: expected a whole number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_2(call, place, tuned, words, message):
    (place / "x.toml").write_text(SWEEP)
    (place / "wrong.toml").write_text('data = "sbm"\nmethd = "mlp"\n')
    (place / "file").write_text("x")
    (place / "empty.jsonl").write_text("")
    (place / "cut.jsonl").write_text('{"table": ')
    (place / "binary.jsonl").write_bytes(b"\xff\xfe\x00\n")
    (place / "foreign.jsonl").write_text('{"a": 1}\n')
    (place / "table.jsonl").write_text('{"table": "t", "a": 1}\n')
    for name in ("broken.onnx", "broken.pt2"):
        (place / name).write_text("x")
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
        (lambda x: x, ["--out", "x.npy"], "--out: expected another file than those read"),
        (lambda x: x, ["--out", "x.npy/p.csv"], "--out: .* cannot be written"),
    ],
)
def test_predict_refuses(call, place, student, features, extra, message):
    np.save("x.npy", features(student[1]))
    before = set(place.iterdir())
    code, out, error = call("predict", "student.safetensors", "x.npy", *extra)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: .*{message}.*\n", error)
    assert set(place.iterdir()) == before


@pytest.mark.parametrize("name", ["student.onnx", "student.pt2"])
def test_predict_by_an_exported_student(call, place, student, name):
    if name == "student.onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    model, x = student
    model.export(place / name)
    before = torch.get_num_threads()
    try:
        assert call("predict", name, "x.npy", "--out", "p.npy", "--threads", 1) == (0, "written: p.npy (9 rows)\n", "")
        assert torch.get_num_threads() == 1
        assert call("predict", name, "x.npy", "--out", "p.npy", "--threads", 100_000)[0] == 0
        assert torch.get_num_threads() == os.cpu_count()
    finally:
        torch.set_num_threads(before)
    table = np.load("p.npy")
    np.testing.assert_array_equal(table[:, 0], model.predict(x))
    np.testing.assert_allclose(table[:, 1:], model.predict_proba(x), atol=1e-5)
    np.save("x.npy", x[:, :5])
    code, out, error = call("predict", name, "x.npy")
    assert (code, out) == (2, "")
    assert "shape [N, 32]" in error


def test_predict_by_the_names_of_classes_and_columns(call, place, student):
    model, x = student
    classes, columns = (
        ["red", "green", "blue", "grey"][: model.meta_["num_classes"]],
        [f"c{i}" for i in range(x.shape[1])],
    )
    model.export(place / "named.pt2", class_names=classes, feature_names=columns)
    pd.DataFrame(x, columns=columns).iloc[:, ::-1].to_csv("x.csv", index=False)
    expected = [classes[c] for c in model.predict(x)]
    assert call("predict", "named.pt2", "x.csv", "--out", "p.csv")[0] == 0
    assert pd.read_csv("p.csv")["class"].tolist() == expected
    assert json.loads(call("predict", "named.pt2", "x.csv", "--json")[1])["class"] == expected
    assert call("predict", "named.pt2", "x.csv", "--out", "p.npy")[0] == 0
    np.testing.assert_array_equal(np.load("p.npy")[:, 0], model.predict(x))
    pd.DataFrame(x, columns=[*columns[:-1], "other"]).to_csv("x.csv", index=False)
    code, out, error = call("predict", "named.pt2", "x.csv")
    assert (code, out) == (2, "")
    assert "features: expected the columns c0" in error


@pytest.mark.parametrize("option", [("--seed", 1), ("--setting", "inductive"), ("-o", "data.x=1"), ("--root", "there")])
def test_export_without_data_takes_no_option_of_it(call, place, student, option):
    code, out, error = call("export", "student.safetensors", "--out", "s.pt2", *option)
    assert (code, out) == (2, "")
    assert f"{option[0]}: is of --data (got none)" in error
    assert not (place / "s.pt2").exists()


@pytest.mark.parametrize("target", ["p.csv", "p.npy", "p.parquet", "-", "json"])
@pytest.mark.parametrize("source", ["x.npy", "x.csv", "x.parquet"])
def test_predict_takes_a_table_in_chunks(call, place, student, monkeypatch, source, target):
    """Three rows are held at a time, and the answers are those of the whole."""
    if "parquet" in source + target:
        pytest.importorskip("pyarrow")
    model, x = student
    if source != "x.npy":
        frame = pd.DataFrame(x, columns=[f"f{i}" for i in range(x.shape[1])])
        frame.to_csv(source, index=False) if source == "x.csv" else frame.to_parquet(source)
    monkeypatch.setattr(tables, "VALUES", 3 * x.shape[1])
    asked, answer = [], Student.predict_proba
    monkeypatch.setattr(Student, "predict_proba", lambda self, x, _: asked.append(len(x)) or answer(self, x))
    words = ["--json"] if target == "json" else [] if target == "-" else ["--out", target]
    code, out, _ = call("predict", "student.safetensors", source, *words)
    assert (code, asked) == (0, [3, 3, 3])
    if target == "json":
        found = json.loads(out)
        table = np.column_stack([found["class"], found["probability"]])
    elif target == "p.npy":
        table = np.load(target)
    elif target == "p.parquet":
        table = pd.read_parquet(target).to_numpy()
    else:
        table = pd.read_csv(io.StringIO(out) if target == "-" else target).to_numpy()
    np.testing.assert_array_equal(table[:, 0], model.predict(x))
    np.testing.assert_allclose(table[:, 1:], answer(model, x), atol=1e-5)


@pytest.mark.parametrize("words", [[], ["--json"], ["--out", "p.csv"]])
def test_what_is_wrong_further_down_is_named_by_its_row_and_nothing_is_written(
    call, place, student, monkeypatch, words
):
    x = student[1].copy()
    x[7, 2] = np.inf
    np.save("x.npy", x)
    monkeypatch.setattr(tables, "VALUES", 3 * x.shape[1])
    before = set(place.iterdir())
    code, out, error = call("predict", "student.safetensors", "x.npy", *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .*finite features .*row 7\)\.\n", error)
    assert set(place.iterdir()) == before


def test_predict_shows_how_far_it_is(call, place, student, monkeypatch):
    bars, make = [], cli.bar
    monkeypatch.setattr(cli, "bar", lambda: bars.append(make()) or bars[-1])
    assert call("predict", "student.safetensors", "x.npy", "--out", "p.csv")[0] == 0
    assert [(task.completed, task.total) for task in bars[0].tasks] == [(9, 9)]
    assert bars[0].console is cli.err


@pytest.mark.parametrize("name", ["onehop.safetensors", "onehop.onnx", "onehop.pt2"])
@pytest.mark.parametrize("source", ["x.npy", "x.csv"])
def test_predict_with_neighbours(call, place, monkeypatch, name, source):
    """Of three rows at a time each takes its own arcs."""
    if name == "onehop.onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    graph = load("sbm", num_nodes=300)
    student = Student("onehop", lam=1.0, hidden_channels=8, max_epochs=2).fit(graph, outputs_of(graph))
    student.save(place / "onehop.safetensors")
    if name != "onehop.safetensors":
        assert call("export", "onehop.safetensors", "--out", name)[0] == 0
    x, arcs = graph.x[:8], graph.edge_index[:, graph.edge_index[1] < 8]
    np.save("x.npy", x)
    pd.DataFrame(x.numpy()).to_csv("x.csv", index=False, header=False)
    pd.DataFrame(arcs.T.numpy(), columns=["id", "row"]).sample(frac=1, random_state=0).to_csv("e.csv", index=False)
    monkeypatch.setattr(tables, "VALUES", 3 * x.shape[1])
    assert call("predict", name, source, "--edges", "e.csv", "--out", "p.npy")[0] == 0
    found = torch.from_numpy(np.load("p.npy")[:, 1:]).float()
    torch.testing.assert_close(found, student.predict_proba(x, arcs), atol=1e-5, rtol=0)
    assert not torch.allclose(found, student.predict_proba(x), atol=1e-3)
    np.save("e.npy", np.array([[4], [8]]))
    code, out, error = call("predict", name, source, "--edges", "e.npy", "--out", "q.npy")
    assert (code, out) == (2, "")
    assert "from 0 to 7 (got 8)" in error
    assert not Path("q.npy").exists()


def test_predict_with_edges_by_a_student_of_features(call, place, student):
    np.save("e.npy", np.zeros((2, 1), dtype=np.int64))
    student[0].export(place / "student.pt2")
    for name, said in {"student.safetensors": "a student of method 'mlp'", "student.pt2": "this file"}.items():
        code, out, error = call("predict", name, "x.npy", "--edges", "e.npy")
        assert (code, out, error) == (2, "", f"error: edge_index: {said} reads features alone. Leave it out.\n")


def test_export_without_neighbours(call, place):
    graph = load("sbm", num_nodes=300)
    Student("nosmog", hidden_channels=8, max_epochs=1).fit(graph, outputs_of(graph)).save("n.safetensors")
    for words, count in {(): 300, ("--no-neighbours",): 0}.items():
        code, out, _ = call("export", "n.safetensors", "--out", "n.pt2", *words, "--json")
        assert code == 0
        assert (json.loads(out)["positions"], json.loads(out)["neighbours"]) == (True, count)


def test_predict_with_a_teachers_file(call, place, student):
    Teacher("gcn", hidden_channels=8, max_epochs=1).fit(load("sbm", num_nodes=300)).save("teacher.safetensors")
    code, _, error = call("predict", "teacher.safetensors", "x.npy")
    assert code == 2
    assert "expected a student file (got a teacher file" in error


# -- export, latency -------------------------------------------------------------------------------------------


@pytest.fixture
def pair(place):
    """A teacher, and its student in both forms that a command may be asked for."""
    graph = load("sbm", num_nodes=300, setting="inductive")
    teacher = Teacher("gcn", hidden_channels=8, max_epochs=2).fit(graph)
    student = Student("glnn", hidden_channels=8, max_epochs=2).fit(graph, teacher.outputs(graph))
    teacher.save("teacher.safetensors")
    student.save("student.safetensors")
    return teacher, student, graph


OF_DATA = ["--data", "sbm", "--setting", "inductive", "-o", "data.num_nodes=300"]


def test_export_prints_scores_and_writes_file_and_card(call, place, pair):
    scores = pair[1].evaluate(pair[2])
    code, out, error = call("export", "student.safetensors", "--out", "new/student.pt2", *OF_DATA)
    assert (code, error) == (0, "")
    assert re.search(rf"unseen\W+{scores['unseen']:.4f}\W+{scores['unseen']:.4f}", out)
    assert re.search(r"written: new/student\.pt2 \([\d,]+ bytes\), new/student\.md", out)
    assert {path.name for path in (place / "new").iterdir()} == {"student.pt2", "student.md"}
    code, out, _ = call("export", "student.safetensors", "--out", "s.pt2", "--precision", "bfloat16", "--json")
    found = json.loads(out)
    assert (found["file"], found["card"], found["precision"]) == ("s.pt2", "s.md", "bfloat16")
    assert found["bytes"] == Path("s.pt2").stat().st_size


def test_export_to_int8(call, pair):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    code, out, error = call("export", "student.safetensors", "--out", "s.onnx", "--precision", "int8", *OF_DATA)
    assert (code, error) == (0, "")
    assert "real features: same class for" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "s.onx"], r"Did you mean '\.onnx'\?"),
        (["--out", "s.pt2", "--precision", "int8"], r"Name it s\.onnx"),
        (["--out", "s.pt2", "--precision", "int9"], r"Did you mean 'int8'\?"),
        (["--out", "s.pt2", *OF_DATA, "--seed", "1"], "graph: expected 'sbm' with the seed"),
        (["--out", "s.pt2", "--data", "sbmm"], r"Did you mean 'sbm'\?"),
        (["--out", "s.pt2", *OF_DATA, "-o", "data.name=cora"], "-o: 'name' cannot be set here"),
        (["--out", "s.pt2", *OF_DATA, "-o", "seed=1"], "-o: 'seed' cannot be set here"),
        (["--out", "s.pt2", *OF_DATA, "-o", "data.num_node=3"], r"Did you mean 'num_nodes'\?"),
    ],
)
def test_export_refuses(call, place, pair, words, message):
    before = set(place.iterdir())
    code, out, error = call("export", "student.safetensors", *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: .*{message}.*\n", error)
    assert set(place.iterdir()) == before


def test_latency_prints_a_table_and_draws_it(call, place, pair):
    words = ["latency", "teacher.safetensors", "student.safetensors", *OF_DATA, "--sizes", "1,20", "--seconds", 0]
    code, out, error = call(*words, "--fanout", "2,3", "--plot", "plots/latency.svg")
    assert (code, error) == (0, "")
    assert re.search(r"teacher, all neighbours\W+cpu\W+20\W", out)
    assert re.search(r"teacher, 2,3 sampled\W+cpu\W+1\W", out)
    assert "<svg" in (place / "plots" / "latency.svg").read_text()
    code, out, _ = call(*words, "--json")
    rows = json.loads(out)
    assert {(row["model"], row["nodes"]) for row in rows if row["model"] == "student"} == {
        ("student", 1),
        ("student", 20),
    }
    assert all(row["p50"] <= row["p99"] for row in rows)
    code, out, error = call(*words, "--fanout", "5,10,15")
    assert (code, out) == (2, "")
    assert "fan_out: expected 2 numbers, one for each layer" in error


# -- train, bench, report --------------------------------------------------------------------------------------


def test_train_keeps_what_it_made(call, place):
    words = ["train", "sbm", *QUICK, "--setting", "inductive", "--seeds", "2"]
    code, out, err = call(*words, "--json")
    records = json.loads(out)
    assert code == 0
    assert len(re.findall(r"^teacher: about .* MB \(graph .*\); .* GB free$", err, re.M)) == 1, "for both seeds"
    assert [r["seed"] for r in records] == [0, 1]
    folder = place / "runs" / "sbm-sage-glnn-inductive"
    assert read_results(folder / "results.jsonl") == records
    for record in records:
        kept = folder / f"seed{record['seed']}-{record['key']}"
        graph = load("sbm", num_nodes=300, seed=record["seed"], setting="inductive")
        assert Student.load(kept / "student.safetensors").evaluate(graph) == record["scores"]
        assert Teacher.load(kept / "teacher.safetensors").evaluate(graph) == record["teacher_scores"]
        TeacherOutputs.load(kept / "outputs.safetensors").check(graph)
    code, out, err = call(*words)
    assert code == 0
    assert "about" not in err, "nothing is trained"
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
    written = (place / "new" / "page.md").read_text()
    (place / "new" / "page.md").unlink()
    code, printed, _ = call("report", "r.jsonl", "other.jsonl", "--out", "new/page.md", "--json")
    assert (code, json.loads(printed)) == (0, rows)
    assert (place / "new" / "page.md").read_text() == written


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
        r"failed: cora (mlp|glnn sage) transductive, seed [01]; .* and 1 more: .*g2m data get cora.*\n",
        without_estimates(error),
    )
    done = read_results("results.jsonl")
    assert sorted((r["data"], r["method"], r["seed"]) for r in done) == [
        ("sbm", method, seed) for method in ("glnn", "mlp") for seed in (0, 1)
    ]
    code, out, _ = call(*words, "--json")
    assert (code, by_key(json.loads(out))) == (1, by_key(done))


def test_where_there_is_no_terminal_a_line_now_and_then_says_how_far_it_is(call, monkeypatch):
    words = ["bench", "sbm", *QUICK, "--settings", "transductive", "--methods", "glnn", "--seeds", 2, "--json"]
    monkeypatch.setattr(cli, "_LINE_EVERY", 0)
    code, out, error = call(*words)
    assert code == 0
    assert len(json.loads(out)) == 2
    assert "sbm glnn sage transductive, seed 0: 1 of 2\nsbm glnn sage transductive, seed 1: 2 of 2\n" in error
    monkeypatch.setattr(cli, "_LINE_EVERY", 60)
    assert " of 2" not in call(*words)[2], "not so soon"


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
    code, out, _ = call(*words, "killed.jsonl", "--json", "--resume")  # a word for what it does anyway
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
    assert (out, without_estimates(error)) == ("", "stopped; the same command goes on from here\n")
    assert [r["method"] for r in read_results("results.jsonl")] == ["mlp"]


def test_ctrl_c_in_this_process_is_130_as_well(call, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run_cell", stop)
    monkeypatch.setattr("g2m.condense.condense", stop)
    assert call("condense", "atlas", "--json") == (130, "", "stopped\n"), "it would begin anew"
    monkeypatch.setattr("g2m.sweep.Sweep.run", stop)
    Path("x.toml").write_text(SWEEP)
    for words in (["bench", "sbm", *QUICK], ["train", "sbm", *QUICK], ["demo"], ["sweep", "x.toml"]):
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
        assert (out, without_estimates(error)) == ("", "stopped; the same command goes on from here\n")
    wait_for(lambda: members(process.pid) == [])
    assert not (place / "results.jsonl").exists() or read_results("results.jsonl") == []


# -- condensation ----------------------------------------------------------------------------------------------


def test_condense_says_how_trees_repeat_and_writes_the_set(call, place):
    code, out, err = call("condense", "atlas", "--hops", 2, "--budget", "400", "--plots", "plots")
    assert (code, err) == (0, "")
    assert "Trees repeat with 2 hops" in out
    assert g2m.condense.CondensedSet.load("atlas-scored.safetensors").nbytes().raw <= 400
    assert {path.stem for path in (place / "plots").iterdir()} == {"atlas-skew", "atlas-trees", "atlas-scored"}


def test_a_path_is_printed_as_it_is(call):
    path = Path("a[", "b]" + 200 * "c", "[bold]d.safetensors")
    code, out, err = call("condense", "atlas", "--hops", 2, "--budget", "400", "--out", path)
    assert (code, err, path.is_file()) == (0, "", True)
    assert out.endswith(f"written: {path}\n")


@pytest.mark.parametrize(("options", "degrees"), [((), False), (("-o", "degrees=true"), True)])
def test_condense_says_how_trees_repeat_first_and_of_those_it_takes(call, options, degrees):
    train = (graphs := g2m.load("atlas", seed=0)).subset(graphs.part("train"))
    expected = str(g2m.condense.inspect(g2m.condense.TreeTable(train, 2, degrees).classes, train.batch))
    for budget, code in ((400, 0), (1, 2)):
        found, out, err = call("condense", "atlas", "--hops", 2, "--budget", budget, *options)
        assert (found, out.startswith(expected), bool(err)) == (code, True, code == 2)


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
        (["condense", "atlas", "--budget", "1%%", "--json"], "budget: expected bytes"),
        (["condense", "atlas", "--budget", "1", "--json"], "budget"),
        (
            ["condense", "atlas", "--method", "mirage", "--budget", "1%", "-o", "min_support=3", "--json"],
            "budget: expected none with min_support",
        ),
        (["condense", "atlas", "--out", ".", "--json"], "--out: '.' cannot be written"),
        (["condense", "atlas", "-o", "seed=1"], "unknown key 'seed'"),
        (["condense", "atlas", "-o", "graphs=1"], "unknown key 'graphs'"),
        (["condense", "atlas", "-o", "method=mirage"], "unknown key 'method'"),
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
    assert json.loads(call("report", "condense.jsonl", "--json")[1]) == records


# -- sweeps ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(call, place):
    """Call ``g2m sweep`` on a small experiment."""
    (place / "x.toml").write_text(SWEEP)
    return lambda *words: call("sweep", "x.toml", *words)


def study(folder="sweep/sbm-mlp-transductive"):
    """The study of a folder, as it is now."""
    journal = optuna.storages.journal.JournalFileBackend(str(Path(folder, "journal.log").absolute()))
    return optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(journal))


def states(study):
    return [trial.state.name for trial in study.trials]


def test_sweep_prints_the_best_and_writes_what_it_found(call, sweep, place):
    code, out, error = sweep("--trials", 6, "--replicate", 2)
    assert (code, error) == (0, "")
    folder = place / "sweep" / "sbm-mlp-transductive"
    best = open_experiment(folder / "best.toml")
    found = study()
    assert states(found) == ["COMPLETE"] * 6
    assert best.student_options["norm"] == found.best_params["norm"]
    assert best.tuned["val"] == round(found.best_value, 5)
    assert best.tuned["scores"].keys() == {"val", "test"}
    assert not best.space
    assert f"{found.best_value:.5g}" in out
    words = " ".join(out.split())
    assert all(word in words for word in ("sbm-mlp-transductive: best of 6", "lr", "norm", "2 fresh seeds", "±"))
    assert "optuna-dashboard" in out
    table = pd.read_csv(folder / "trials.csv")
    assert table["value"].tolist() == [trial.value for trial in found.trials]
    assert {"params_lr", "params_norm"} <= set(table.columns)
    drawn = {path.stem for path in folder.glob("*.png")}
    assert "history" in drawn
    assert all(name in out for name in drawn)
    assert [record["seed"] for record in read_results(folder / "results.jsonl")] == [1, 2]

    code, out, _ = sweep("--trials", 6, "--replicate", 2, "--json")
    shown = json.loads(out)
    assert code == 0
    assert states(study()) == ["COMPLETE"] * 6, "it does nothing again"
    assert shown["best"] == best.config()
    assert shown["tuned"] == best.tuned
    assert shown["file"] == str(Path("sweep", "sbm-mlp-transductive", "best.toml"))
    assert shown["study"] == "sbm-mlp-transductive"
    assert {Path(path).stem for path in shown["plots"]} == drawn
    assert shown["records"] == read_results(folder / "results.jsonl")

    (record,) = json.loads(call("train", folder / "best.toml", "--out", "kept", "--json")[1])
    assert record["config"].pop("versions")
    assert (record["config"], record["setting"]) == (best.config(), "transductive")
    assert len(list(place.glob("kept/seed0-*/student.safetensors"))) == 1
    for option in ("--method", "--teacher"):
        code, _, error = call("train", folder / "best.toml", option, "glnn")
        assert code == 2
        assert f"{option}: " in error

    assert sweep("--trials", 6)[0] == 0
    assert open_experiment(folder / "best.toml").tuned == best.tuned, "scores on fresh seeds stay"
    assert sweep("--trials", 7)[0] == 0
    assert open_experiment(folder / "best.toml").tuned["trials"] == 7


def test_a_sweep_whose_trials_all_fail_ends_with_exit_2(sweep, place):
    (place / "x.toml").write_text(SWEEP.replace("{low = 0.001, high = 0.3, log = true}", "[1e30, 2e30]"))
    code, out, error = sweep("--trials", 9, "-o", "norm=none")
    assert (code, out) == (2, "")
    assert re.match(r"error: space: the first 5 trials failed, the last one by: ", error)
    assert not list(place.rglob("best.toml"))


@pytest.mark.parametrize("other", [("--setting", "inductive"), ("--name", "other", "--seeds", 3)])
def test_scores_on_fresh_seeds_are_not_those_of_another_study(sweep, other):
    best = Path("kept/best.toml")
    words = ("--trials", 1, "--out", "kept")
    assert sweep(*words, "--replicate", 1)[0] == 0
    first = open_experiment(best)
    assert first.tuned["fresh_seeds"] == 1
    assert sweep(*words, *other)[0] == 0
    second = open_experiment(best)
    assert second.config() == first.config(), "the same draw"
    assert "fresh_seeds" not in second.tuned


def test_sweep_with_options(sweep, place):
    words = ["--trials", 4, "--out", "kept", "--name", "mine", "--seeds", 2, "--setting", "inductive", "--stack", 2]
    code, out, _ = sweep(*words, "-o", "lr=0.02", "--json")
    best = open_experiment("kept/best.toml")
    assert code == 0
    assert best.student_options["lr"] == 0.02
    assert (best.tuned["setting"], best.tuned["seeds"], best.tuned["trials"]) == ("inductive", 2, 4)
    assert all(trial.params.keys() == {"norm"} for trial in study("kept").trials)
    assert json.loads(out)["study"] == study("kept").study_name == "mine"
    assert json.loads(out)["records"] == []
    assert not (place / "sweep").exists()
    code, out, error = sweep(*words)
    assert (code, out) == (2, "")
    assert "it differs in: space, student_options" in error


def test_sweep_of_two_objectives_shows_a_front(sweep, place):
    code, out, _ = sweep("--trials", 6, "--also", "bytes", "--storage", f"sqlite:///{place}/study.db")
    assert code == 0
    assert "bytes" in out
    assert (place / "sweep" / "sbm-mlp-transductive" / "pareto.png").exists()
    found = optuna.load_study(study_name="sbm-mlp-transductive", storage=f"sqlite:///{place}/study.db")
    assert len(found.trials) == 6
    assert not list(place.rglob("journal.log"))


def test_sweep_of_a_condensed_set(call, place):
    (place / "c.toml").write_text('data = "atlas"\ncondense = "scored"\nbudget = "20%"\n[space]\nlr = [0.01, 0.1]\n')
    words = ["sweep", "c.toml", "--trials", 3, "-o", "max_epochs=2", "-o", "hidden_channels=8", "--replicate", 1]
    code, out, _ = call(*words)
    assert code == 0
    assert "rocauc" in out
    assert open_experiment("sweep/atlas-scored-gin/best.toml").options["lr"] in (0.01, 0.1)


def test_ctrl_c_in_a_sweep_leaves_no_trial_running(sweep, monkeypatch):
    fit, fitted = Student.fit, []

    def stopped(self, *given, **options):
        fitted.append(self)
        if len(fitted) == 3:
            raise KeyboardInterrupt
        return fit(self, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Student, "fit", stopped)
        assert sweep("--trials", 5) == (130, "", "stopped; the same command goes on from here\n")
    before = study()
    assert states(before) == ["COMPLETE", "COMPLETE", "FAIL", "WAITING"]
    assert sweep("--trials", 5)[0] == 0
    assert states(study()) == ["COMPLETE"] * 2 + ["FAIL"] + ["COMPLETE"] * 3
    assert study().trials[3].params == before.trials[2].params


LONG = ["-o", "max_epochs=100", "-o", "patience=1000"]


def workers_of(study, state):
    return {trial.user_attrs["worker"][1] for trial in study.trials if trial.state.name == state and trial.params}


def to_be_of(trial):
    """A trial's options, those it has yet to draw again among them; of a lost one they may be some, not all."""
    return trial.system_attrs.get("fixed_params", {}) | trial.params


def wait_for_study(condition, process):
    """The study, when it is as asked for."""
    found = []

    def met():
        time.sleep(0.1)
        if lines(Path("sweep/sbm-mlp-transductive/journal.log")) > 20:
            found.append(study())
        return bool(found) and condition(found[-1])

    wait_for(met, process)
    return found[-1]


def kill(processes, when=lambda: True):
    """Kill processes, none of which is just writing to the journal: its lock would be waited for, half a minute.

    ``when`` is asked while they are stopped: what it tells of them holds as they are killed.
    """
    lock = Path("sweep/sbm-mlp-transductive/journal.log.lock")
    while True:
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.05)
        found = not lock.is_symlink() and when()
        for pid in processes:
            os.kill(pid, signal.SIGKILL if found else signal.SIGCONT)
        if found:
            return
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="lists processes by /proc")
def test_a_killed_worker_is_replaced_and_a_killed_sweep_goes_on(sweep, start, place):
    (place / "x.toml").write_text(SWEEP)
    process = start("sweep", "x.toml", "--trials", 10**6, "--workers", 2, *LONG)
    found = wait_for_study(lambda s: len(workers_of(s, "COMPLETE")) == 2 and workers_of(s, "RUNNING"), process)
    victim = min(workers_of(found, "RUNNING"))
    kill([victim], when=lambda: victim in workers_of(study(), "RUNNING"))
    found = wait_for_study(lambda s: len(workers_of(s, "COMPLETE")) == 3, process)
    again = [trial for trial in found.trials if "again" in trial.user_attrs]
    assert again
    assert all(found.trials[trial.user_attrs["again"]].params.items() <= to_be_of(trial).items() for trial in again)
    kill(members(process.pid), when=lambda: workers_of(study(), "RUNNING"))
    process.wait()
    wait_for(lambda: members(process.pid) == [])
    before = study().trials
    done = sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in before)
    code, _, error = sweep("--trials", done + 5, *LONG)
    assert (code, error) == (0, "")
    after = study()
    assert set(states(after)) <= {"COMPLETE", "PRUNED", "FAIL"}
    assert sum(state in ("COMPLETE", "PRUNED") for state in states(after)) == done + 5
    ended = [trial for trial in before if trial.state.is_finished()]
    assert [after.trials[trial.number] for trial in ended] == ended
    lost = {trial.number: to_be_of(trial) for trial in before if trial.state.name == "RUNNING" and to_be_of(trial)}
    again = {trial.user_attrs.get("again"): trial.params for trial in after.trials}
    assert all(params.items() <= again[number].items() for number, params in lost.items())


PLACES = {"root": Path("r"), "cache": Path("c")}
GRID = {"methods": ["krd"], "teachers": ["gin"], "settings": ["inductive"], "seeds": 3}


@pytest.mark.parametrize(
    ("words", "callee", "expected"),
    [
        (
            "sweep x.toml --trials 7 --workers 2 --stack 3 --timeout 4.5 --name n --root r --cache c",
            "g2m.sweep.Sweep.run",
            {"trials": 7, "workers": 2, "stack": 3, "timeout": 4.5, "name": "n", **PLACES},
        ),
        (
            "sweep x.toml --seeds 2 --setting inductive --also bytes --no-prune --seed 5",
            "g2m.sweep.Sweep.run",
            {"seeds": 2, "setting": "inductive", "also": "bytes", "prune": False, "seed": 5},
        ),
        (
            "bench sbm --methods krd --teachers gin --settings inductive --seeds 3 -o lr=1",
            "g2m.bench.cells",
            {**GRID, "overrides": ["lr=1"], "tuned": False, "common": False},
        ),
        ("bench sbm --methods glnn --tuned", "g2m.bench.cells", {"tuned": True}),
        ("bench --all sbm", "g2m.bench.cells", {"common": True, "teachers": ["sage", "gcn"]}),
        (
            "bench sbm --workers 2 --stack 3 --out x.jsonl --root r --cache c",
            "g2m.bench.run",
            {"workers": 2, "stack": 3, "out": Path("x.jsonl"), **PLACES},
        ),
        (
            "train sbm --method krd --teacher gin --setting inductive --seeds 3 --tuned -o lr=1",
            "g2m.bench.cells",
            {**GRID, "overrides": ["lr=1"], "tuned": True},
        ),
        (
            "ogb ogbn-arxiv --method krd --teacher gin --runs 3 --setting inductive --budget 5% --hops 4 "
            "-o lr=1 --out f --workers 2 --root r --cache c",
            "g2m.ogb_runs.run_ogb",
            {"method": "krd", "teacher": "gin", "runs": 3, "setting": "inductive", "budget": "5%"}
            | {"hops": 4, "overrides": ["lr=1"], "folder": Path("f"), "workers": 2, **PLACES},
        ),
        (
            "condense atlas --method mirage --hops 3 --budget 700 --seed 4 -o min_size=2",
            "g2m.condense.condense",
            {"num_hops": 3, "budget": "700", "seed": 4, "min_size": 2},
        ),
        (
            "bench-condense atlas --rows scored --backbones gin --seeds 2 --budget 5% --hops 1 -o lr=1",
            "g2m.condense.bench.cells",
            {"rows": ["scored"], "backbones": ["gin"], "seeds": 2, "budget": "5%", "hops": 1, "overrides": ["lr=1"]},
        ),
        (
            "bench-condense atlas --workers 2 --out x.jsonl --root r --cache c",
            "g2m.bench.run",
            {"workers": 2, "out": Path("x.jsonl"), **PLACES},
        ),
    ],
)
def test_options_reach_what_they_are_of(call, place, monkeypatch, words, callee, expected):
    def told(*given, **options):
        found.update(options, **(vars(given[0]) if callee == "g2m.sweep.Sweep.run" else {}))
        raise G2MError("told")

    found = {}
    (place / "x.toml").write_text(SWEEP)
    monkeypatch.setattr(callee, told)
    assert call(*words.split()) == (2, ANY, "error: told\n")
    assert {name: found.get(name) for name in expected} == expected


def test_tuned_options_are_trained_with(call, tuned):
    tuned.mkdir()
    best = find("sbm", "glnn", "sage").override(word for word in QUICK if word != "-o").override(["lr=0.123"])
    best.write(tuned / "x.toml")
    for words in (["train", "sbm"], ["bench", "sbm", "--settings", "inductive"]):
        code, out, _ = call(*words, "--tuned", "--seeds", 1, "--json")
        (record,) = json.loads(out)
        assert code == 0
        assert record["config"].pop("versions")
        assert record["config"] == best.config()
    code, out, error = call("bench", "sbm", "--methods", "glnn", "--teachers", "gcn", "--tuned")
    assert (code, out) == (2, "")
    assert "no tuned options for sbm-glnn-gcn; there are sbm-glnn-sage" in error


def test_bench_trains_seeds_at_once(call, monkeypatch):
    stacks, fit_stacked = [], bench.fit_stacked
    monkeypatch.setattr(
        bench, "fit_stacked", lambda *given, **o: stacks.append(len(given[0])) or fit_stacked(*given, **o)
    )
    words = ["bench", "sbm", *QUICK, "--seeds", 3, "--settings", "inductive", "--json"]
    one_by_one, together = (call(*words, "--out", f"{n}.jsonl", "--stack", n)[1] for n in (1, 3))
    first, second = (by_key(json.loads(out)) for out in (one_by_one, together))
    assert first.keys() == second.keys()
    assert stacks == [3, 3], "of mlp and of glnn"
    for key, record in first.items():
        assert second[key]["scores"] == pytest.approx(record["scores"], abs=0.02)
