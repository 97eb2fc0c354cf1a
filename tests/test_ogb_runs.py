"""Runs on small data sets in OGB's own layout, scored by its own Evaluator."""

import dataclasses
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ogb_cases import OGB_EDGES, OGB_SIZES, contents, lay_out, lay_out_graphs, refuse

from g2m import G2MError, ogb_runs
from g2m.bench import Cell, read_results
from g2m.condense.bench import CondenseCell
from g2m.data import cards, find_card, load, ogb
from g2m.estimators import Student, Teacher
from g2m.graph_classifier import GraphClassifier
from g2m.ogb_runs import GRAPH_METHODS, _summed, hardware, run_ogb

QUICK = ["hidden_channels=8", "max_epochs=4", "teacher.hidden_channels=8", "teacher.max_epochs=4"]
QUICK_GRAPHS = ["hidden_channels=8", "max_epochs=4"]
COPIES = 5  # of the eight molecules


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("G2M_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("builtins.input", refuse)
    return tmp_path


def nodes(root):
    """Write a graph of 60 papers of three classes for ogbn-arxiv, and return its card."""
    generator = np.random.default_rng(0)
    y = generator.permutation(np.arange(60) % 3)
    x = np.eye(3)[y] + generator.normal(scale=0.7, size=(60, 3))
    pairs = generator.integers(60, size=(400, 2))
    edges = np.unique(np.sort(pairs[(y[pairs[:, 0]] == y[pairs[:, 1]]) & (pairs[:, 0] != pairs[:, 1])]), axis=0)
    parts = np.split(generator.permutation(60), [20, 40])
    card = find_card("ogbn-arxiv")
    counts = {**card.counts, "nodes": 60, "edges": len(edges), "features": 3, "classes": 3}
    lay_out(card, root, edges=edges, x=x, y=y, split=dict(zip(("train", "valid", "test"), parts, strict=True)))
    return dataclasses.replace(card, counts=counts)


def molecules(name, root):
    """Write 40 molecules for a set of OGB, of several tasks with labels missing, and return its card."""
    card, size = find_card(name), 8 * COPIES
    tasks = card.counts["tasks"]
    y = np.random.default_rng(0).integers(2, size=(size, tasks)).astype(float)
    y[:, 0] = np.arange(size) % 2
    if tasks > 1:
        y[::5] = y[3::7, 2] = np.nan
        y[:, 4] = 0  # of one class only: no area
    counts = {"graphs": size, "nodes": 14 * COPIES, "edges": 7 * COPIES, "features": 9, "classes": 2, "tasks": tasks}
    split = {"train": range(24), "valid": range(24, 32), "test": range(32, 40)}
    lay_out_graphs(card, root, sizes=OGB_SIZES * COPIES, edges=OGB_EDGES * COPIES, y=y, split=split)
    return dataclasses.replace(card, counts=counts)


@pytest.fixture
def small(place, monkeypatch):
    """Put a small data set in the place of one of OGB's; return the data root."""

    def put(name):
        root = place / "data"
        card = nodes(root) if name == "ogbn-arxiv" else molecules(name, root)
        known = {**cards(), name: card}
        monkeypatch.setattr(sys.modules["g2m.data.cards"], "_cards", lambda: known)
        return root

    return put


def evaluator(task, name):
    """OGB's Evaluator, by hand; after a run, which imports ogb without its update check."""
    assert "ogb" in sys.modules
    return import_module(f"ogb.{task}").Evaluator(name)


def raw(root, data, pattern):
    (path,) = (root / find_card(data).loader["folder"]).glob(pattern)
    return pd.read_csv(path, header=None).to_numpy()


def timeless(record):
    if isinstance(record, dict):
        return {
            k: timeless(v) for k, v in record.items() if k not in ("seconds", "ms", "threads") and "seconds_" not in k
        }
    return record


# -- nodes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
def test_nodes_are_scored_by_ogbs_evaluator_on_ogbs_parts(small, place, setting):
    root = small("ogbn-arxiv")
    found = run_ogb("ogbn-arxiv", runs=2, setting=setting, overrides=QUICK, root=root)
    judge, y = evaluator("nodeproppred", "ogbn-arxiv"), raw(root, "ogbn-arxiv", "raw/node-label.csv.gz")
    parts = {part: raw(root, "ogbn-arxiv", f"split/*/{name}.csv.gz")[:, 0] for part, name in ogb.PARTS.items()}
    by_hand = {"val": [], "test": []}
    for record in found.records:
        kept = found.folder / f"seed{record['seed']}-{record['key']}"
        graph = load("ogbn-arxiv", seed=record["seed"], setting=setting, root=root)
        student, teacher = Student.load(kept / "student.safetensors"), Teacher.load(kept / "teacher.safetensors")
        assert record["evaluator"] == {"teacher": record["teacher_scores"], "student": record["scores"]}
        assert teacher.evaluate(graph) == record["teacher_scores"]
        predicted = student.predict(raw(root, "ogbn-arxiv", "raw/node-feat.csv.gz"))[:, None]
        for part, scores in by_hand.items():
            scores.append(judge.eval({"y_true": y[parts[part]], "y_pred": predicted[parts[part]]})["acc"])
    assert [record["seed"] for record in found.records] == [0, 1]
    for part, scores in by_hand.items():
        assert found.figures["student"][part] == pytest.approx((np.mean(scores), np.std(scores, ddof=1)))
    more = ["seen", "unseen", "cold"] if setting == "inductive" else []
    assert [*found.figures["teacher"]] == [*found.figures["student"]] == ["val", "test", *more]
    assert found.parameters == {"teacher": teacher.num_parameters(), "student": student.num_parameters()}
    assert read_results(found.folder / "results.jsonl") == found.records
    assert found.folder == Path("submissions") / f"ogbn-arxiv-sage-glnn-{setting}"


def test_the_text_has_what_the_form_asks_for(small):
    root = small("ogbn-arxiv")
    found = run_ogb("ogbn-arxiv", method="vqgraph", runs=2, overrides=[*QUICK, "teacher.num_codes=4"], root=root)
    assert (found.folder / "submission.md").read_text(encoding="utf-8") == found.text
    fields = dict(line[2:].split(": ", 1) for line in found.text.splitlines() if line.startswith("- "))
    shown = {part: "{:.4f} ± {:.4f}".format(*found.figures["student"][part]) for part in ("val", "test")}
    teacher, student = found.parameters["teacher"], found.parameters["student"]
    kept = Teacher.load(next(found.folder.glob("seed0-*")) / "teacher.safetensors")
    assert teacher == kept.num_parameters() + kept.num_entries() > kept.num_parameters(), "codes count as well"
    assert fields == {
        "OGB version": "1.3.6",
        "Method": "vqgraph ← SAGE + codes inside",
        "External data": "no",
        "Dataset": "ogbn-arxiv",
        "Test performance": shown["test"],
        "Validation performance": shown["val"],
        "Contact": "________",
        "Code": "________",
        "Paper": "________",
        "#Params": f"{teacher + student:,} (teacher {teacher:,} + student {student:,})",
        "Hardware": hardware(),
    }
    assert f"| SAGE + codes inside | {teacher:,} | {found.figures['teacher']['val'][0]:.4f} ± " in found.text
    assert "accuracy by OGB's Evaluator, 2 runs, seeds 0 to 1: mean ± sample standard deviation" in found.text
    assert "OGB asks for 10 runs." in found.text
    command = "g2m ogb ogbn-arxiv --method vqgraph --teacher sage --runs 2 --setting transductive -o hidden_channels=8"
    assert f"    {command} " in found.text


def test_a_single_run_has_no_deviation_and_a_method_without_teacher_one_model(small):
    found = run_ogb("ogbn-arxiv", method="mlp", runs=1, overrides=QUICK, root=small("ogbn-arxiv"))
    assert "±" not in found.text.partition("Made with")[0]
    assert [*found.figures] == [*found.parameters] == ["student"]
    assert f"- #Params: {found.parameters['student']:,}\n" in found.text
    assert "- Method: mlp\n" in found.text


# -- graphs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method"), [("ogbg-molbace", "full"), ("ogbg-molhiv", "scored"), ("ogbg-moltox21", "random")]
)
def test_graphs_are_scored_by_ogbs_evaluator_on_ogbs_parts(small, name, method):
    root = small(name)
    given = {} if method == "full" else {"method": method, "budget": "50%"}
    found = run_ogb(name, runs=2, overrides=QUICK_GRAPHS, root=root, **given)
    judge, y = evaluator("graphproppred", name), raw(root, name, "raw/graph-label.csv.gz").astype(float)
    graphs, by_hand = load(name, root=root), {"val": [], "test": []}
    for record in found.records:
        kept = found.folder / f"seed{record['seed']}-{record['key']}"
        network = GraphClassifier.load(kept / "classifier.safetensors")
        assert (kept / "condensed.safetensors").exists() == (method != "full")
        logits = network.predict_logits(graphs)
        score = (logits[:, 1] - logits[:, 0])[:, None] if graphs.num_tasks == 1 else logits
        for part, scores in by_hand.items():
            ids = raw(root, name, f"split/*/{ogb.PARTS[part]}.csv.gz")[:, 0]
            scores.append(judge.eval({"y_true": y[ids], "y_pred": score.numpy()[ids]})["rocauc"])
    assert {record["row"] for record in found.records} == {method}
    for part, scores in by_hand.items():
        assert found.figures["network"][part] == pytest.approx((np.mean(scores), np.std(scores, ddof=1)))
    assert found.parameters == {"network": network.num_parameters()}
    assert "rebuilt from SMILES" in found.text
    assert ("of the training graphs'" in found.text) == (method != "full")
    called = "GIN on all graphs" if method == "full" else f"GIN on a condensed set ({method})"
    assert f"- Method: {called}\n" in found.text


# -- killed ------------------------------------------------------------------------------------------------------------


def test_killed_the_same_goes_on(small, monkeypatch):
    root, fit = small("ogbn-arxiv"), Student.fit
    given = {"runs": 3, "overrides": QUICK, "root": root}
    fitted = []

    def dies(self, *args, **options):
        if self.seed == 1:
            raise KeyboardInterrupt
        fitted.append(self.seed)
        return fit(self, *args, **options)

    monkeypatch.setattr(Student, "fit", dies)
    with pytest.raises(KeyboardInterrupt):
        run_ogb("ogbn-arxiv", folder="killed", **given)
    first = Path("killed/results.jsonl").read_bytes()
    assert len(read_results("killed/results.jsonl")) == 1
    assert not Path("killed/submission.md").exists()
    monkeypatch.setattr(Student, "fit", lambda self, *a, **k: fitted.append(self.seed) or fit(self, *a, **k))
    found = run_ogb("ogbn-arxiv", folder="killed", **given)
    assert fitted == [0, 1, 2]
    assert Path("killed/results.jsonl").read_bytes().startswith(first)
    whole = run_ogb("ogbn-arxiv", folder="whole", **{**given, "cache": "other"})
    assert [timeless(record) for record in found.records] == [timeless(record) for record in whole.records]
    assert found.text == whole.text


@pytest.mark.parametrize(("name", "cell"), [("ogbn-arxiv", Cell), ("ogbg-molbace", CondenseCell)])
def test_finished_runs_are_read_and_more_are_added(small, monkeypatch, name, cell):
    root, run = small(name), cell.run
    given = {"overrides": QUICK if cell is Cell else QUICK_GRAPHS, "root": root, "folder": "kept"}
    two = run_ogb(name, runs=2, **given)
    ran = []
    monkeypatch.setattr(cell, "run", lambda self, **options: ran.append(self.seed) or run(self, **options))
    assert run_ogb(name, runs=2, **given) == two
    assert run_ogb(name, runs=3, **given).records[:2] == two.records
    assert ran == [2]


def test_hardware_is_that_of_the_run_not_of_the_report(small, monkeypatch):
    root = small("ogbn-arxiv")
    given = {"method": "mlp", "overrides": QUICK, "root": root, "folder": "kept"}
    run_ogb("ogbn-arxiv", runs=1, **given)
    here = hardware()
    monkeypatch.setattr(ogb_runs, "hardware", lambda: "a faster machine")
    assert "- Hardware: " + here + "\n" in run_ogb("ogbn-arxiv", runs=1, **given).text
    assert f"- Hardware: {here}; a faster machine\n" in run_ogb("ogbn-arxiv", runs=2, **given).text


# -- defects -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "refused"), [(5e-7, False), (2e-6, True), (float("nan"), True)])
def test_an_evaluator_that_says_other_than_our_metric_is_a_defect(small, monkeypatch, shift, refused):
    root, make = small("ogbn-arxiv"), ogb.evaluator

    def shifted(card):
        score = make(card)
        return lambda logits, y: score(logits, y) + shift

    monkeypatch.setattr(ogb, "evaluator", shifted)
    given = {"method": "mlp", "runs": 1, "overrides": QUICK, "root": root, "folder": "kept"}
    if not refused:
        run_ogb("ogbn-arxiv", **given)
        return
    with pytest.raises(
        G2MError, match=r"evaluator: student, (val|test): expected .* as our metric has it \(got .*defect"
    ):
        run_ogb("ogbn-arxiv", **given)
    assert not Path("kept/results.jsonl").exists()


def test_parameters_are_those_of_the_largest_with_what_is_looked_up():
    sizes = [{"parameters": 10, "entries": 7}, {"parameters": 16}, {"parameters": 3, "entries": 1}]
    records = [
        {"evaluator": {"teacher": {"test": i}, "student": {"test": i}}, "run": size, "teacher_run": {"parameters": i}}
        for i, size in enumerate(sizes)
    ]
    assert _summed(records)[1] == {"teacher": 2, "student": 17}
    networks = [{"evaluator": {"network": {"test": 0}}, **size} for size in sizes]
    assert _summed(networks)[1] == {"network": 17}


@pytest.mark.parametrize("name", ["ogbn-arxiv", "ogbg-molbace"])
def test_what_is_kept_must_answer_as_the_record_says(small, monkeypatch, name):
    """Another network than the one that was scored is found out."""
    root = small(name)
    model, given = (Student, {"method": "mlp"}) if name == "ogbn-arxiv" else (GraphClassifier, {})
    read = model.load.__func__

    def other(cls, path):
        found = read(cls, path)
        for parameter in found.model_.parameters():
            parameter.data.neg_()
        return found

    monkeypatch.setattr(model, "load", classmethod(other))
    quick = QUICK if name == "ogbn-arxiv" else QUICK_GRAPHS
    with pytest.raises(G2MError, match="as the record of the training has it"):
        run_ogb(name, runs=1, overrides=quick, root=root, folder="kept", **given)


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "given", "message"),
    [
        ("ogbn-arxv", {}, r"data: expected one of ogbn-arxiv, .*Did you mean 'ogbn-arxiv'\?"),
        ("cora", {}, r"data: expected one of ogbn-arxiv, .* \(got 'cora'\)"),
        ("ogbg-molhv", {}, r"Did you mean 'ogbg-molhiv'\?"),
        ("ogbn-papers100M", {}, r"111,059,956 × 128 × 4 bytes = 57 GB.* × 2 × 8 = 26 GB.*Take ogbn-products"),
        ("ogbn-papers100m", {}, "ogbn-papers100M is too large"),
        ("ogbn-products", {}, r"'ogbn-products' is not in .*data \(no ogb/.*`g2m data get ogbn-products`"),
        ("ogbg-molhiv", {"method": "scored"}, r"'ogbg-molhiv' is not in .*`g2m data get ogbg-molhiv`"),
        ("ogbn-arxiv", {"method": "gln"}, r"Did you mean 'glnn'\?"),
        ("ogbn-arxiv", {"teacher": "sagee"}, r"Did you mean 'sage'\?"),
        ("ogbn-arxiv", {"setting": "inductiv"}, r"Did you mean 'inductive'\?"),
        ("ogbn-arxiv", {"runs": 0}, "seeds: expected a whole number from 1"),
        ("ogbn-arxiv", {"overrides": ["dropot=1"]}, "unknown key 'dropot'"),
        ("ogbn-arxiv", {"overrides": ["data.split={train=[0]}"]}, r"data\.split: expected none, OGB's split is fixed"),
        ("ogbn-arxiv", {"budget": "1%"}, r"budget: expected none for 'ogbn-arxiv', one graph.*\(got '1%'\)"),
        ("ogbg-molbace", {"method": "scord"}, r"method: expected one of full, .*Did you mean 'scored'\?"),
        ("ogbg-molbace", {"method": "size"}, "method: expected one of full"),
        ("ogbg-molbace", {"budget": "5%"}, r"budget: expected none for 'full', which keeps all graphs \(got '5%'\)"),
        (
            "ogbg-molbace",
            {"method": "mirage, faithful", "teacher": "gin", "budget": "5%"},
            "budget: expected none for 'mirage, faithful' here, min_support decides",
        ),
        ("ogbg-molbace", {"method": "lossless", "budget": "5%"}, "budget: expected none for 'lossless'"),
        ("ogbg-molbace", {"teacher": "appnp"}, "backbones: expected one of"),
        ("ogbg-molbace", {"setting": "inductive"}, "setting: expected none for 'ogbg-molbace', a set of graphs"),
        ("ogbg-molbace", {"overrides": ["hiden_channels=8"]}, "hidden_channels"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(place, data, given, message):
    with pytest.raises(G2MError, match=message):
        run_ogb(data, root=place / "data", folder="kept", **given)
    assert [*place.iterdir()] == []


def test_a_folder_of_another_command_is_refused(small):
    from g2m.bench import cells, run

    root = small("ogbn-arxiv")
    grid = cells(["ogbn-arxiv"], methods=["mlp"], settings=["transductive"], seeds=1, overrides=QUICK)
    folders = {cell.key: Path("kept", f"seed{cell.seed}-{cell.key}") for cell in grid}  # as g2m train --out kept
    list(run(grid, out="kept/results.jsonl", folders=folders, root=root))
    with pytest.raises(G2MError, match=r"folder: 'kept/results\.jsonl' has runs that OGB's Evaluator has not scored"):
        run_ogb("ogbn-arxiv", method="mlp", runs=1, overrides=QUICK, root=root, folder="kept")


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_the_text_or_json(small, call):
    root = small("ogbg-molbace")
    words = ["ogb", "ogbg-molbace", "--runs", 2, "--root", root, "--hops", 2, "--out", "kept"]
    words += [word for option in QUICK_GRAPHS for word in ("-o", option)]
    code, out, error = call(*words)
    assert (code, error) == (0, "")
    assert out.startswith(Path("kept/submission.md").read_text(encoding="utf-8"))
    assert "kept in kept:" in out
    found = json.loads(call(*words, "--json")[1])
    assert found["records"] == read_results("kept/results.jsonl")
    assert found["figures"]["network"].keys() == {"val", "test"}
    assert found["text"] == Path("kept/submission.md").read_text(encoding="utf-8")


def test_mistakes_are_one_line_and_exit_2(call, place):
    for words in (["cora"], ["ogbn-papers100M"], ["ogbn-arxiv", "--root", place / "data"]):
        code, out, error = call("ogb", *words)
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert error.startswith("error: data: ")
    assert [*place.iterdir()] == []


# -- alone -------------------------------------------------------------------------------------------------------------

ALONE = """if True:
    import builtins, os, socket, sys, threading, types

    def refuse(*args, **kwargs):
        print("reached for the network, the keyboard, or a newer ogb", args, file=sys.stderr, flush=True)
        os._exit(9)  # no `except` swallows it

    socket.socket.connect = socket.getaddrinfo = socket.create_connection = builtins.input = refuse
    start = threading.Thread.start
    started = []
    threading.Thread.start = lambda self: (started.append(self), start(self))
    if sys.argv[1] == "there":
        sys.modules["outdated"] = types.ModuleType("outdated")
        sys.modules["outdated"].check_outdated = refuse
    elif sys.argv[1] == "not there":
        sys.modules["outdated"] = None
    before = sys.modules.get("outdated", "none")
    from g2m.data import find_card, ogb
    from g2m.ogb_runs import run_ogb
    import torch

    assert "ogb" not in sys.modules, "imported before it was asked for"
    score = ogb.evaluator(find_card("ogbn-arxiv"))
    assert score(torch.eye(3), torch.tensor([0, 1, 0])) == 2 / 3
    score = ogb.evaluator(find_card("ogbg-moltox21"))
    y = torch.tensor([[0.0], [1.0], [float("nan")]]).repeat(1, 12)
    assert score(torch.arange(3.0)[:, None].repeat(1, 12), y) == 1
    assert sys.modules.get("outdated", "none") is before, "left as it was"
    assert started == [] and threading.active_count() == 1, started
"""


@pytest.mark.parametrize("outdated", ["there", "not there", "as installed"])
def test_evaluators_start_no_thread_reach_for_nothing_and_ask_nobody(outdated, place):
    """In a process of its own: the first import of ogb is what starts its update check."""
    done = subprocess.run([sys.executable, "-c", ALONE, outdated], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [*place.iterdir()] == []


def test_the_data_is_only_read(small):
    root = small("ogbn-arxiv")
    before = contents(root)
    run_ogb("ogbn-arxiv", method="mlp", runs=1, overrides=QUICK, root=root)
    assert contents(root) == before


def test_a_gpu_is_named(monkeypatch):
    assert f"torch {torch.__version__}" in hardware()
    assert "cores" in hardware()
    gpu = type("Gpu", (), {"name": "Some GPU", "total_memory": 80_000_000_000})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    assert hardware().startswith("Some GPU (80 GB), ")


# -- real data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "method"), [("ogbg-molbace", "lossless"), ("ogbg-moltox21", "random")])
def test_real_molecules_over_two_processes(data_root, name, method):
    if find_card(name).status(data_root) == "needs download":
        pytest.skip(f"{name} is not in {data_root}")
    assert method in GRAPH_METHODS
    quick = ["hidden_channels=8", "max_epochs=2"]
    found = run_ogb(name, method=method, runs=2, workers=2, overrides=quick, root=data_root)
    graphs = load(name, root=data_root)
    for record in found.records:
        network = GraphClassifier.load(
            found.folder / f"seed{record['seed']}-{record['key']}" / "classifier.safetensors"
        )
        expected = network.evaluate(graphs, metric="rocauc")
        assert record["evaluator"]["network"] == pytest.approx(expected, abs=1e-4)  # fewer threads: other last digits
