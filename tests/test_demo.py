import json
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import sklearn.datasets
import torch

from g2m import bench, cli, demo
from g2m.bench import read_results
from g2m.data import load
from g2m.demo import run_demo
from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.latency import SIZES
from g2m.outputs import TeacherOutputs

MODELS = {"SAGE", "GLNN", "MLP"}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Measure latencies for a moment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("teacher_latency", "student_latency"):
            patch.setattr(demo, name, partial(getattr(demo, name), seconds=0.02))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The demo's folder, its rows, and what it was told on the way."""
    folder, seen, threads = tmp_path_factory.mktemp("demo") / "new", [], torch.get_num_threads()

    def on_cell(record):
        assert torch.get_num_threads() == 1  # scores do not depend on the machine's cores
        seen.append(record)

    torch.set_num_threads(2)
    try:
        rows = run_demo(folder, seeds=1, on_cell=on_cell)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    return folder, rows, seen


@pytest.fixture
def copied(made, tmp_path):
    """The same, in a folder of the test's own."""
    folder, rows, _ = made
    return shutil.copytree(folder, tmp_path / "demo"), rows


def test_everything_is_there(made):
    folder, rows, seen = made
    names = {file.name for file in folder.iterdir()}
    assert names == {
        *(f"{name}.safetensors" for name in ("teacher", "outputs", "student")),
        *("demo.jsonl", "runs.jsonl", "demo.png", "cache", "mlp"),
    }
    assert read_results(folder / "demo.jsonl") == rows
    assert read_results(folder / "runs.jsonl") == seen
    assert len(seen) == 4
    assert (folder / "mlp" / "student.safetensors").is_file()
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_rows_are_the_scores_of_the_runs(made):
    _, rows, seen = made
    assert {row["model"] for row in rows} == MODELS
    scores = {(r["method"].upper(), r["setting"]): r["scores"] for r in seen}
    scores |= {("SAGE", r["setting"]): r["teacher_scores"] for r in seen if r["teacher"]}
    for row in rows:
        assert row["transductive"] == round(100 * scores[row["model"], "transductive"]["test"], 2)
        assert row["inductive"] == round(100 * scores[row["model"], "inductive"]["unseen"], 2)
        assert row["seeds"] == 1
        assert all(row[f"ms_{size}"] > 0 for size in SIZES)
    assert {row["model"]: row["speedup_1"] for row in rows}["SAGE"] == 1


def test_the_student_learned_from_its_teacher(made):
    _, rows, _ = made
    accuracy = {row["model"]: row["transductive"] for row in rows}
    assert accuracy["GLNN"] > accuracy["MLP"] + 2
    assert accuracy["SAGE"] > 90


def test_the_artifacts_are_those_of_the_table(made):
    folder, rows, _ = made
    graph = load("digits", seed=0)
    student, teacher = Student.load(folder / "student.safetensors"), Teacher.load(folder / "teacher.safetensors")
    row = {row["model"]: row for row in rows}
    assert round(100 * student.score(graph), 2) == row["GLNN"]["transductive"]
    assert round(100 * teacher.score(graph), 2) == row["SAGE"]["transductive"]
    assert student.num_parameters() == row["GLNN"]["parameters"]
    outputs = TeacherOutputs.load(folder / "outputs.safetensors")
    assert outputs.logits.equal(teacher.outputs(graph).logits)


def test_a_second_run_trains_nothing(copied, monkeypatch):
    folder, rows = copied

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(bench, "run_cell", refuse)
    again = run_demo(folder, seeds=1)
    timeless = [{k: v for k, v in row.items() if not k.startswith(("ms_", "speedup_"))} for row in rows]
    assert [{k: v for k, v in row.items() if k in timeless[0]} for row in again] == timeless
    assert read_results(folder / "demo.jsonl") == again


def test_the_command_prints_json_or_a_table_and_code_that_runs(copied, monkeypatch, capsys):
    folder, _ = copied
    monkeypatch.setattr(bench, "run_cell", None)
    monkeypatch.setattr(sys, "argv", ["g2m", "demo", "--out", str(folder), "--seeds", "1", "--json"])
    with pytest.raises(SystemExit, match="0"):
        cli.app()
    assert {row["model"] for row in json.loads(capsys.readouterr().out)} == MODELS
    monkeypatch.setattr(sys, "argv", ["g2m", "demo", "--out", str(folder), "--seeds", "1"])
    with pytest.raises(SystemExit, match="0"):
        cli.app()
    printed = capsys.readouterr().out
    assert all(model in printed for model in MODELS)
    code = printed[printed.index("import g2m") :]
    exec(code, {})
    classes = np.array(capsys.readouterr().out.strip(" []\n").split(), dtype=int)
    truth = sklearn.datasets.load_digits().target[:10]
    assert (classes == truth).mean() >= 0.7


def test_what_was_taken_away_is_made_again(copied):
    folder, rows = copied
    (folder / "mlp" / "student.safetensors").unlink()
    again = run_demo(folder, seeds=1)
    assert [row["transductive"] for row in again] == [row["transductive"] for row in rows]
    assert (folder / "mlp" / "student.safetensors").is_file()


def test_a_finished_demo_is_known_without_its_cache(copied):
    folder, rows = copied
    shutil.rmtree(folder / "cache")
    assert run_demo(folder, seeds=1)[0]["transductive"] == rows[0]["transductive"]


@pytest.mark.parametrize("name", ["student.safetensors", "mlp", "demo.png"])
def test_files_of_another_run_are_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(G2MError, match=rf"out: '.*{name}' is of another run\. Name another folder\."):
        run_demo(tmp_path, seeds=1)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "demo").write_text("")
    with pytest.raises(G2MError, match="out: expected a folder"):
        run_demo(tmp_path / "demo", seeds=1)
