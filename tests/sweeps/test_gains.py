import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from result_cases import record

from g2m.bench import append_result, read_results
from g2m.errors import G2MError
from g2m.report import grouped

SCRIPT = Path(__file__).parents[2] / "sweeps" / "gains.py"
script = runpy.run_path(str(SCRIPT))
gains, over_teachers = script["gains"], script["over_teachers"]
TEST = ("transductive", "test")


def run(place, records, *words):
    for each in records:
        append_result(place / "r.jsonl", each)
    words = [sys.executable, str(SCRIPT), *words, "r.jsonl", "--out", "gains.jsonl"]
    return subprocess.run(words, cwd=place, capture_output=True, text=True)


def test_a_student_is_compared_with_its_own_teacher_and_one_without_with_the_plain_one():
    codes = ["teacher.tokenizer=inside"]
    records = [record(score=0.5, teacher_score=0.4), record(score=0.5, teacher_score=0.3, options=codes)]
    records += [record(method="mlp", score=0.2)]
    for given in (records, records[::-1]):
        rows = {row["student"]: row["cora-cpf"] for row in over_teachers(grouped(given), *TEST)}
        assert rows == {"glnn ← SAGE": "+10.00", "glnn + codes inside ← SAGE": "+20.00", "mlp ← SAGE": "-20.00"}


def test_seeds_are_the_fewest_and_the_most_of_a_graph():
    records = [record(seed=seed) for seed in range(3)] + [record("citeseer-cpf")]
    assert [row["seeds"] for row in over_teachers(grouped(records), *TEST)] == ["1–3"]
    assert [row["seeds"] for row in over_teachers(grouped(records[:3]), *TEST)] == ["3"]


def test_of_some_options_all_that_they_can_be_compared_with():
    weighed = [record(method="ff_g2m", score=0.5, teacher_score=0.4, options=[f"high={high}"]) for high in (0, 2)]
    records = [*weighed, record(score=0.3), record(method="mlp", score=0.2)]
    (row, _) = gains(grouped(records), "ff_g2m", *TEST, "high=0")
    assert row.items() >= {"over teacher": "+10.00", "over GLNN": "+20.00", "over MLP": "+30.00"}.items()
    with pytest.raises(G2MError, match="-o: expected options where there are several"):
        gains(grouped(records), "ff_g2m", *TEST, None)
    other = record("sbm", "mlp", options=["data.num_nodes=300"])
    assert len(gains(grouped([*records, other, record("sbm", "mlp")]), "ff_g2m", *TEST, "high=0")) == 2


def test_a_student_is_compared_with_its_own_of_one_part():
    of_loss = ["teacher.select=loss"]
    records = [record(method="ff_g2m", score=0.5, options=of_loss)]
    records += [record(method="ff_g2m", score=0.3, options=[*of_loss, "high=0"])]
    records += [record(method="ff_g2m", score=0.4, options=["low=0"])]  # from another teacher
    row, _ = gains(grouped(records), "ff_g2m", *TEST, "teacher.select=loss")
    assert row["over its low part alone"] == "+20.00"
    assert "over its high part alone" not in row


def test_seeds_that_only_one_side_has_do_not_count():
    records = [record(seed=0, score=0.5, teacher_score=0.4), record(method="mlp", seed=1)]
    assert [row["student"] for row in over_teachers(grouped(records), *TEST)] == ["glnn ← SAGE"]
    assert over_teachers(grouped(records), "inductive", "unseen") == []
    with pytest.raises(G2MError, match="expected a graph that all have, transductive"):
        over_teachers(grouped([record(), record("citeseer-cpf", "krd")]), *TEST)


def test_the_file_is_written_when_all_is_known(tmp_path):
    wrong = run(tmp_path, [record(method="mlp")], "all")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: results: expected students of 'all' (got none in 'r.jsonl').\n"
    assert not (tmp_path / "gains.jsonl").exists()
    assert run(tmp_path, [record()], "all").returncode == 0, "of one setting alone"
    before = read_results(tmp_path / "gains.jsonl")
    assert [row["student"] for row in before] == ["glnn ← SAGE", "mlp ← SAGE"]
    assert run(tmp_path, [], "kdr").returncode == 2
    assert read_results(tmp_path / "gains.jsonl") == before
