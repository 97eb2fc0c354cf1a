import importlib.util
import sys
from pathlib import Path

import pytest

from g2m.bench import append_result
from g2m.errors import G2MError

SCRIPT = Path(__file__).parents[2] / "sweeps" / "tune.py"
ROW = {"table": "Tuned on validation, scored on fresh seeds", "data": "cora-cpf", "method": "glnn"}
ROW |= {"trials": 64, "seeds a trial": 2, "fresh seeds": 10}


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """What a call begins to tune, given the rows of its results file."""
    spec = importlib.util.spec_from_file_location("tune", SCRIPT)
    tune = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tune)

    def call(rows, *words):
        class Begun(tune.Sweep):
            def run(self, *_, **__):
                raise InterruptedError(self.experiment.teacher, self.seeds)

        monkeypatch.setattr(tune, "Sweep", Begun)
        out = tmp_path / "tuned.jsonl"
        for row in rows:
            append_result(out, row)
        monkeypatch.setattr(sys, "argv", ["tune.py", "cora-cpf", "--methods", "glnn", "--out", str(out), *words])
        monkeypatch.chdir(tmp_path)
        try:
            tune.main()
        except InterruptedError as error:
            return error.args
        return None

    return call


def test_what_was_tuned_before_is_known_by_all_that_was_asked(begun):
    other = {"table": "speed", "ms": 1}
    assert begun([other]) == ("sage", 2), "a row of another table"
    assert begun([ROW]) is None, "an older row names no teacher"
    assert begun([], "--teacher", "gcn") == ("gcn", 2)
    for words in (["--trials", "65"], ["--fresh", "9"]):
        assert begun([], *words) == ("sage", 2)
    assert begun([], "--seeds", "3") == ("sage", 3)
    assert begun([ROW | {"teacher": "gcn"}], "--teacher", "gcn") is None


def test_wrong_names_are_refused_before_the_first_sweep(begun):
    with pytest.raises(G2MError, match="Did you mean 'vqgraph'"):
        begun([], "--methods", "glnn,vqgrpah")
