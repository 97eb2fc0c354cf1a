"""A sweep keeps its budget, comes back from every kind of death, and sees no test label."""

import json
import multiprocessing
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from optuna.storages.journal import JournalFileSymlinkLock
from optuna.trial import TrialState
from test_leakage import everything, other_labels

from g2m import bench, sweep, trials
from g2m.bench import read_results
from g2m.data import load
from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.experiments import Experiment, open_experiment
from g2m.models import MLP as MLPModel
from g2m.report import mean_std
from g2m.spaces import suggest
from g2m.sweep import GRACE_SECONDS, Sweep
from g2m.sweep_report import best_rows, draw

optuna.logging.set_verbosity(optuna.logging.WARNING)

pytestmark = pytest.mark.usefixtures("cache")

QUICK = {"hidden_channels": 8, "max_epochs": 4}
SPACE = {"lr": {"low": 1e-3, "high": 0.3, "log": True}, "dropout": {"low": 0.0, "high": 0.8, "step": 0.1}}
MLP = Experiment("sbm", "mlp", None, {"num_nodes": 300}, {}, QUICK, space=SPACE)
GLNN = Experiment("sbm", "glnn", "sage", {"num_nodes": 300}, QUICK, QUICK, space=SPACE)
COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING


def height(lr, dropout, seed=0):
    """What an imaginary student scores: the best is lr 0.02, dropout 0.3."""
    return 1 / (1 + abs(lr - 0.02) + (dropout - 0.3) ** 2 + seed / 10)


class Imaginary:
    """Trains nothing: a student's score is :func:`height`, met after ``epochs`` epochs."""

    also = ("parameters", "bytes")
    epochs = 1

    def __init__(self, setting, *, root=None, cache=None, alive=None):
        self.trained = 0

    def prepare(self, experiment, seeds):
        pass

    def train(self, experiments, seed, report):
        return [self.one(i, experiment.student_options, seed, report) for i, experiment in enumerate(experiments)]

    def one(self, i, options, seed, report):
        self.trained += 1
        score = height(options["lr"], options["dropout"], seed)
        for epoch in range(self.epochs):
            if report(i, {"epoch": epoch, "val": score * (epoch + 1) / self.epochs}):
                return None
        return SimpleNamespace(history_=SimpleNamespace(best_score=score), cost=1 + 10 * options["dropout"])

    def cost(self, student, also):
        return student.cost


@pytest.fixture
def imaginary(monkeypatch):
    """Use :class:`Imaginary`, or a class made of it, for every trial."""

    def use(**methods):
        cls = type("Changed", (Imaginary,), methods)
        monkeypatch.setattr(Experiment, "trials", lambda self, setting, **options: cls(setting, **options))

    use()
    return use


def journal(study):
    """Params, values and state of every trial, in order."""
    return [(trial.params, trial.values, trial.state) for trial in study.get_trials()]


def states(study):
    return [trial.state for trial in study.get_trials()]


def options_of(search, trial):
    return suggest(optuna.trial.FixedTrial(trial.params), search.experiment.space)


def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


# -- the budget --------------------------------------------------------------------------------------------------------


def test_a_study_has_as_many_trials_as_asked_for(imaginary, tmp_path):
    search, told = Sweep(MLP), []
    run = partial(search.run, tmp_path / "new" / "j.log", on_change=lambda study: told.append(len(study.trials)))
    study = run(trials=5)
    assert states(study) == [COMPLETE] * 5
    assert told == [1, 2, 3, 4, 5]
    before = journal(study)
    assert journal(run(trials=5)) == journal(run(trials=3)) == before, "asked again it does nothing"
    assert told == [1, 2, 3, 4, 5]
    assert journal(run(trials=8))[:5] == before
    assert states(run(trials=8)) == [COMPLETE] * 8


def test_what_is_drawn_is_what_is_trained(imaginary, tmp_path):
    search = Sweep(MLP)
    for trial in search.run(tmp_path / "j.log", trials=15).trials:
        options = options_of(search, trial)
        assert trial.value == pytest.approx(height(**options))
        assert 1e-3 <= options["lr"] <= 0.3
        assert round(10 * options["dropout"]) / 10 == options["dropout"]


def test_the_search_finds_the_top(imaginary, tmp_path):
    search = Sweep(MLP)
    values = [trial.value for trial in search.run(tmp_path / "j.log", trials=35).trials]
    assert statistics.fmean(values[20:]) > statistics.fmean(values[:10]), "better than at random"
    assert max(values) > 0.97


def test_the_same_seed_gives_the_same_trials(imaginary, tmp_path):
    search = Sweep(MLP)
    whole = journal(search.run(tmp_path / "a.log", trials=14))
    assert journal(search.run(tmp_path / "b.log", trials=14)) == whole
    for count in (3, 11, 14):
        resumed = search.run(tmp_path / "c.log", trials=count)
    assert journal(resumed) == whole, "stopped between trials and gone on"
    params = [trial.params for trial in resumed.trials]
    assert len({json.dumps(each) for each in params}) == 14
    other = replace(search, seed=1).run(tmp_path / "d.log", trials=14)
    assert not [trial.params for trial in other.trials if trial.params in params]


def test_a_real_sweep_is_reproducible(tmp_path):
    whole = Sweep(GLNN).run(tmp_path / "a.log", trials=6)
    Sweep(GLNN).run(tmp_path / "b.log", trials=3)
    assert journal(Sweep(GLNN).run(tmp_path / "b.log", trials=6)) == journal(whole)
    assert len({trial.value for trial in whole.trials}) > 1


def test_a_time_limit_begins_no_more_trials(imaginary, tmp_path):
    study = Sweep(MLP).run(tmp_path / "j.log", trials=5, timeout=0)
    assert journal(study) == []
    assert states(Sweep(MLP).run(tmp_path / "j.log", trials=5, timeout=1000)) == [COMPLETE] * 5
    with pytest.raises(G2MError, match=r"timeout: expected a number in \[0, inf\] \(got nan\)"):
        Sweep(MLP).run(tmp_path / "j.log", trials=5, timeout=float("nan"))


@pytest.mark.parametrize("argument", ["trials", "workers", "stack"])
def test_counts_are_whole_numbers(imaginary, tmp_path, argument):
    with pytest.raises(G2MError, match=f"{argument}: expected a whole number from 1"):
        Sweep(MLP).run(tmp_path / "j.log", **{argument: 0})


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"setting": "inductiv"}, r"setting: .*Did you mean 'inductive'\?"),
        ({}, {"seeds": 0}, "seeds: expected a whole number from 1"),
        ({}, {"seed": -1}, "seed: expected a whole number from 0"),
        ({}, {"also": "bites"}, r"also: .*Did you mean 'bytes'\?"),
        ({"space": {"lrr": [0.1]}}, {}, r"unknown key 'lrr'\. Did you mean 'lr'\?"),
        ({"space": {"techer.lr": [0.1]}}, {}, r"Did you mean 'teacher'\?"),
        ({"space": {"teacher.norm": ["bach"]}}, {}, r"norm: .*Did you mean 'batch'\?"),
        ({"space": {"norm": ["none", "bach"]}}, {}, r"norm: .*Did you mean 'batch'\?"),
        ({"space": {"lr": [0.1], "dropout": {"low": 0.0, "high": 1.5}}}, {}, r"dropout: expected a number in \[0, 1\]"),
        ({"space": {"data.num_nodez": [300]}}, {}, r"Did you mean 'num_nodes'\?"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_is_trained(changes, options, message):
    with pytest.raises(G2MError, match=message):
        Sweep(replace(GLNN, **changes), **options)


# -- what a trial is scored by -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
def test_a_trial_scores_the_mean_of_its_seeds_on_validation(tmp_path, setting):
    """The oracle trains by hand, on the whole graph: nothing that a trial does not see matters."""
    search = Sweep(GLNN, setting=setting, seeds=2)
    study = search.run(tmp_path / "j.log", trials=3)
    for trial in study.trials:
        scores = []
        for seed in range(2):
            graph = load("sbm", num_nodes=300, seed=seed, setting=setting)
            outputs = Teacher("sage", seed=seed, **QUICK).fit(graph).outputs(graph)
            student = Student("glnn", seed=seed, **QUICK, **options_of(search, trial)).fit(graph, outputs)
            scores.append(student.score(graph, "val"))
        assert trial.user_attrs["val"] == scores
        assert trial.value == statistics.fmean(scores)
    assert len({value for trial in study.trials for value in trial.user_attrs["val"]}) > 1


def test_teachers_are_searched_too_and_kept_apart(tmp_path, cache):
    search = Sweep(replace(GLNN, space={"teacher.hidden_channels": [4, 16], "lr": [0.01]}))
    study = search.run(tmp_path / "j.log", trials=6)
    widths = {options_of(search, trial)["teacher.hidden_channels"]: trial.value for trial in study.trials}
    assert len(list(cache.glob("teachers/*.safetensors"))) == len(widths) == 2
    graph = load("sbm", num_nodes=300)
    for width, value in widths.items():
        outputs = Teacher("sage", **{**QUICK, "hidden_channels": width}).fit(graph).outputs(graph)
        assert Student("glnn", lr=0.01, **QUICK).fit(graph, outputs).score(graph, "val") == value


def perturbed(change):
    """``load`` of a graph with nodes changed of which no trial may know."""

    def changed(*given, **options):
        graph = load(*given, **options)
        if change == "unseen":
            graph = everything(graph, graph.part("unseen"))
        return other_labels(graph, graph.part("val" if change == "val" else "test"))

    return changed


@pytest.mark.parametrize(
    ("setting", "change"), [("transductive", "test"), ("inductive", "test"), ("inductive", "unseen")]
)
@pytest.mark.parametrize("experiment", [MLP, GLNN], ids=["mlp", "glnn"])
def test_what_is_tested_on_reaches_no_trial(tmp_path, monkeypatch, experiment, setting, change):
    search = Sweep(experiment, setting=setting, seeds=2)
    plain = search.run(tmp_path / "a.log", trials=4, cache=tmp_path / "a")
    monkeypatch.setattr(trials, "load", perturbed(change))
    other = search.run(tmp_path / "b.log", trials=4, cache=tmp_path / "b")
    assert journal(other) == journal(plain)
    assert [trial.user_attrs["val"] for trial in other.trials] == [trial.user_attrs["val"] for trial in plain.trials]
    monkeypatch.setattr(trials, "load", perturbed("val"))  # so that the test could fail
    assert journal(search.run(tmp_path / "c.log", trials=4, cache=tmp_path / "c")) != journal(plain)


# -- killed, stopped ---------------------------------------------------------------------------------------------------


def begun(search, study, worker, **attrs):
    """A trial that is being run by somebody."""
    trial = study.ask()
    trial.set_user_attr("worker", worker)
    suggest(trial, search.experiment.space)
    for name, value in attrs.items():
        trial.set_user_attr(name, value)
    return trial


def here():
    return sweep._me()


@pytest.mark.parametrize(
    ("directions", "trials"), [(["maximize"], 1), (["minimize"], 0), (["maximize", "minimize"], 0)]
)
def test_a_study_that_is_not_ours_is_left_as_it_is(tmp_path, directions, trials):
    url = f"sqlite:///{tmp_path / 'theirs.db'}"
    theirs = optuna.create_study(storage=url, study_name="mine", directions=directions)
    for _ in range(trials):
        theirs.tell(theirs.ask(), [1.0])
    with pytest.raises(G2MError, match=r"^storage: the study 'mine' there is not one of g2m's"):
        Sweep(MLP).study(url, "mine")
    assert not theirs.user_attrs


def test_a_dead_process_trial_is_tried_again_first_of_all(imaginary, tmp_path):
    search = Sweep(MLP)
    study = search.run(tmp_path / "j.log", trials=2)
    lost = [begun(search, study, [socket.gethostname(), dead_pid(), "1"]) for _ in range(2)]
    study = search.run(tmp_path / "j.log", trials=6)
    assert states(study) == [COMPLETE] * 2 + [FAIL] * 2 + [COMPLETE] * 4
    assert [trial.params for trial in study.trials[4:6]] == [trial.params for trial in lost]
    assert [trial.user_attrs.get("again") for trial in study.trials] == [None] * 4 + [2, 3, None, None]
    for trial in study.trials[4:]:
        assert trial.value == pytest.approx(height(**options_of(search, trial)))


def test_options_lost_three_times_are_not_tried_again(imaginary, tmp_path):
    """A size that does not fit would else be the first of every command, for ever."""
    search = Sweep(MLP)
    study = search.study(tmp_path / "j.log")
    lost = begun(search, study, [socket.gethostname(), dead_pid(), "1"])
    for times in (1, 2):
        search.release(study)
        again = study.ask()
        assert (again.user_attrs["lost"], again.user_attrs["again"]) == (times, lost.number)
        again.set_user_attr("worker", [socket.gethostname(), dead_pid(), "1"])
        suggest(again, search.experiment.space)
        assert again.params == lost.params
        lost = again
    search.release(study)
    assert states(study) == [FAIL] * 3, "and none that waits"
    assert states(search.run(tmp_path / "j.log", trials=2)) == [FAIL] * 3 + [COMPLETE] * 2


def test_an_answer_waits_for_the_trials_that_others_run(imaginary, tmp_path):
    search = Sweep(MLP)
    study = search.study(tmp_path / "j.log")
    others = begun(search, study, here())
    end = threading.Timer(1.0, lambda: study.tell(others.number, 0.999))
    end.start()
    study = search.run(tmp_path / "j.log", trials=3)
    end.join()
    assert states(study) == [COMPLETE] * 3
    assert search.best(study).tuned["val"] == 0.999


def test_a_time_limit_ends_the_wait_for_others(imaginary, tmp_path):
    search = Sweep(MLP)
    begun(search, search.study(tmp_path / "j.log"), here())
    assert states(search.run(tmp_path / "j.log", trials=1, timeout=0.2)) == [RUNNING]


def test_what_does_not_fit_into_a_gpu_fails_and_the_sweep_goes_on(tmp_path, monkeypatch):
    """Alone, and a whole stack of it."""
    forward = MLPModel.forward

    def full(self, *given, **options):
        if self.layers[0].out_features == 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB.")
        return forward(self, *given, **options)

    monkeypatch.setattr(MLPModel, "forward", full)
    search = Sweep(replace(MLP, space={"hidden_channels": [8, 64]}).override(["max_epochs=2"]))
    for stack in (1, 3):
        study = search.study(tmp_path / f"{stack}.log")
        for width in (8, 64, 64, 8):
            study.enqueue_trial({"hidden_channels": width})
        study = search.run(tmp_path / f"{stack}.log", trials=4, stack=stack)
        assert states(study) == [COMPLETE, FAIL, FAIL, COMPLETE]
        assert study.trials[1].user_attrs["error"].startswith("device: the GPU's memory does not hold this (CUDA out")
        assert "again" not in study.trials[3].user_attrs


def test_who_is_dead(imaginary, tmp_path, monkeypatch):
    search = Sweep(MLP)
    zombie = subprocess.Popen(["sleep", "1000"])  # ended, and nobody has come for it
    its_begin = sweep._begun(zombie.pid)
    zombie.kill()
    while sweep._begun(zombie.pid) is not None:
        time.sleep(0.01)
    study = search.study(tmp_path / "j.log")
    old = time.time() - GRACE_SECONDS - 5
    alive = [
        *(begun(search, study, here()), begun(search, study, here(), beat=old)),
        *(begun(search, study, ["elsewhere", 1, "1"]), begun(search, study, ["elsewhere", 1, "1"], beat=old + 500)),
        study.ask(),  # a moment before it says whose it is
    ]
    host, pid, _ = here()
    dead = [
        *(begun(search, study, [host, dead_pid(), "1"]), begun(search, study, [host, dead_pid(), None])),
        begun(search, study, [host, pid, "1"]),  # the number is another process's now
        begun(search, study, [host, zombie.pid, its_begin]),
        begun(search, study, ["elsewhere", 1, "1"], beat=old),
    ]
    search.release(study)
    zombie.wait()
    found = study.get_trials()
    assert [found[trial.number].state for trial in alive] == [RUNNING] * len(alive)
    assert [found[trial.number].state for trial in dead] == [FAIL] * len(dead)
    waiting = [trial.system_attrs["fixed_params"] for trial in found if trial.state == WAITING]
    assert waiting == [trial.params for trial in dead]
    search.release(study)
    assert len(study.get_trials()) == len(found), "once"
    assert search.left(study, 12) == 12 - len(alive)
    # After a while, what never said whose it is was killed in that moment: it had no options yet.
    now = time.time()
    monkeypatch.setattr(sweep.time, "time", lambda: now + 100)
    search.release(study)
    found = study.get_trials()
    assert [found[trial.number].state for trial in alive] == [RUNNING] * 4 + [FAIL]
    assert sum(state == WAITING for state in states(study)) == len(dead)


def test_of_many_that_find_a_dead_trial_at_once_one_has_it_tried_again(imaginary, tmp_path, monkeypatch):
    search = Sweep(MLP)
    study = search.study(tmp_path / "j.log")
    begun(search, study, [socket.gethostname(), dead_pid(), "1"])
    barrier, is_dead = threading.Barrier(6), sweep._is_dead
    # All have found it before one ends it.
    monkeypatch.setattr(sweep, "_is_dead", lambda trial: is_dead(trial) and barrier.wait(60) >= 0)
    with ThreadPoolExecutor(6) as threads:
        studies = [search.study(tmp_path / "j.log") for _ in range(6)]
        assert list(threads.map(search.release, studies)) == [None] * 6
    assert states(study) == [FAIL, WAITING]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("stack", [1, 3])
def test_a_stop_in_a_training_leaves_no_trial_running(imaginary, tmp_path, error, stack):
    def stopped(self, i, options, seed, report):
        if self.trained == 4:
            raise error
        return Imaginary.one(self, i, options, seed, report)

    search = Sweep(MLP)
    imaginary(one=stopped)
    with pytest.raises(error):
        search.run(tmp_path / "j.log", trials=8, stack=stack)
    study = search.study(tmp_path / "j.log")
    stopped = [trial for trial in study.trials if trial.state == FAIL]
    assert states(study).count(RUNNING) == 0
    assert states(study).count(COMPLETE) == (4 if stack == 1 else 3)
    assert len(stopped) == stack
    number = len(study.trials) - stack
    imaginary()
    study = search.run(tmp_path / "j.log", trials=8, stack=stack)
    assert [study.trials[number + i].params for i in range(stack)] == [trial.params for trial in stopped]
    assert states(study).count(COMPLETE) == 8
    assert set(states(study)) == {COMPLETE, FAIL}


def test_a_trial_that_was_to_be_tried_again_and_is_killed_at_once_is_not_lost(imaginary, tmp_path):
    search = Sweep(MLP)
    study = search.study(tmp_path / "j.log")
    lost = begun(search, study, [socket.gethostname(), dead_pid(), "1"])
    search.release(study)
    study.ask().set_user_attr("worker", [socket.gethostname(), dead_pid(), "1"])  # killed before it drew anything
    study = search.run(tmp_path / "j.log", trials=1)
    assert states(study) == [FAIL, FAIL, COMPLETE]
    assert study.trials[2].params == lost.params


@pytest.mark.parametrize("stack", [1, 2])
def test_a_trial_taken_for_dead_while_it_runs_does_not_end_the_sweep(imaginary, tmp_path, stack):
    """As of a machine that was suspended: others try its options again, and it goes on with the next."""
    search, other = Sweep(MLP), {}

    def suspended(self, i, options, seed, report):
        study = other.setdefault("study", search.study(tmp_path / "j.log"))
        if self.trained < 2:
            for trial in study.get_trials(states=(RUNNING,)):
                sweep._give_back(study, trial)
        return Imaginary.one(self, i, options, seed, report)

    imaginary(one=suspended)
    study = search.run(tmp_path / "j.log", trials=5, stack=stack)
    assert states(study).count(COMPLETE) == 5
    assert states(study).count(FAIL) == 2
    assert set(states(study)) == {COMPLETE, FAIL}


def test_a_running_trial_says_now_and_then_that_it_lives(imaginary, tmp_path, monkeypatch):
    noted, note = [], sweep._note
    monkeypatch.setattr(sweep, "_BEAT_SECONDS", 0.0)
    monkeypatch.setattr(sweep, "_note", lambda trial, *of: noted.append((trial.number, of[0])) or note(trial, *of))
    study = Sweep(MLP).run(tmp_path / "j.log", trials=2, stack=2)
    assert {(0, "beat"), (1, "beat")} <= {*noted}, "not as it was begun alone"
    for trial in study.trials:
        assert trial.datetime_start.timestamp() <= trial.user_attrs["beat"] <= time.time()


def test_a_lock_left_by_a_killed_process_is_waited_for_and_no_longer(imaginary, tmp_path, monkeypatch):
    """In a folder of this folder, as of the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(JournalFileSymlinkLock.__init__, "__defaults__", (3,))
    search = Sweep(MLP)
    search.run("folder/j.log", trials=1)
    study = search.study("folder/j.log")
    with monkeypatch.context() as patch:
        patch.setattr(JournalFileSymlinkLock, "release", lambda self: None)
        study.set_user_attr("x", 1)
    assert [path.name for path in Path("folder").iterdir() if path.is_symlink()] == ["j.log.lock"]
    thread = threading.Thread(target=search.run, args=("folder/j.log",), kwargs={"trials": 2}, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for ever"
    assert states(search.study("folder/j.log")) == [COMPLETE] * 2


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_mistake_fails_its_trial_alone_and_counts(imaginary, tmp_path):
    def strict(self, experiments, seed, report):
        found = Imaginary.train(self, experiments, seed, report)
        wrong = [experiment.student_options["dropout"] > 0.5 for experiment in experiments]
        return [G2MError("dropout: too much") if w else one for w, one in zip(wrong, found, strict=True)]

    imaginary(train=strict)
    search = Sweep(MLP, seeds=2)
    for stack in (1, 4):
        study = search.run(tmp_path / f"{stack}.log", trials=12, stack=stack)
        assert len(study.trials) == 12
        for trial in study.trials:
            wrong = trial.params["dropout"] > 0.5
            assert trial.state == (FAIL if wrong else COMPLETE)
            assert trial.user_attrs.get("error") == ("dropout: too much" if wrong else None)
        assert {COMPLETE, FAIL} == set(states(study))
        assert states(search.run(tmp_path / f"{stack}.log", trials=12)) == states(study), "it is not tried again"


def test_a_real_mistake_fails_its_trial_alone(tmp_path):
    search = Sweep(replace(MLP, space={"lr": [0.01, 1e30], "dropout": [0.0, 0.1, 0.2]}))
    for stack in (1, 4):
        study = search.run(tmp_path / f"{stack}.log", trials=8, stack=stack)
        assert len(study.trials) == 8
        assert {COMPLETE, FAIL} == set(states(study))
        for trial in study.trials:
            assert (trial.state == FAIL) == (trial.params["lr"] == 1e30) == ("error" in trial.user_attrs)
        assert search.best(study).student_options["lr"] == 0.01


def test_where_every_trial_fails_the_sweep_ends_and_says_why(tmp_path):
    search = Sweep(replace(MLP, space={"lr": [1e30], "dropout": [0.0, 0.1]}))
    with pytest.raises(G2MError, match=r"space: the first 5 trials failed, the last one by: .*loss") as caught:
        search.run(tmp_path / "j.log", trials=50)
    study = search.study(tmp_path / "j.log")
    assert states(study) == [FAIL] * 5
    assert study.trials[-1].user_attrs["error"] in str(caught.value)
    study = search.run(tmp_path / "few.log", trials=2)
    with pytest.raises(G2MError, match=r"at least one that was finished \(got none, the last one failed by: .*loss"):
        search.best(study)
    with pytest.raises(G2MError, match=r"at least one that was finished \(got none\)\. Run more"):
        search.best(search.study(tmp_path / "none.log"))


@pytest.mark.parametrize("experiment", [MLP, GLNN], ids=["mlp", "glnn"])
def test_data_that_is_not_there_is_no_trials_mistake(tmp_path, experiment):
    search = Sweep(replace(experiment, data="cora", data_options={}))
    with pytest.raises(G2MError, match=r"data set 'cora' is not in .*g2m data get cora"):
        search.run(tmp_path / "j.log", trials=50, root=tmp_path)
    assert journal(search.study(tmp_path / "j.log")) == []


# -- storage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (lambda: Sweep(MLP, seeds=2), "seeds"),
        (lambda: Sweep(MLP, also="bytes"), "also"),
        (lambda: Sweep(MLP.override(["norm=batch"])), "student_options"),
        (lambda: Sweep(MLP.override(["lr=0.1"]), seeds=2), "seeds, space, student_options"),
        (lambda: Sweep(replace(MLP, space={**SPACE, "lr": [0.1]})), "space"),
        (lambda: Sweep(MLP.override(["data.num_nodes=301"])), "data_options"),
    ],
)
def test_another_sweep_of_the_same_name_is_refused(imaginary, tmp_path, other, differs):
    study = Sweep(MLP).run(tmp_path / "j.log", trials=2)
    with pytest.raises(G2MError, match=rf"the study 'sbm-mlp-transductive' there is of another .* in: {differs}\. "):
        other().run(tmp_path / "j.log", trials=2)
    assert states(study) == [COMPLETE] * 2
    named = other().run(tmp_path / "j.log", trials=1, name="another")
    assert (named.study_name, states(named)) == ("another", [COMPLETE])
    # What decides no score may differ.
    assert states(Sweep(MLP, prune=False, seed=3).run(tmp_path / "j.log", trials=3)) == [COMPLETE] * 3


def test_a_study_begun_by_other_versions_is_gone_on_with_and_it_is_said(imaginary, tmp_path, monkeypatch, caplog):
    run = partial(Sweep(MLP).run, tmp_path / "j.log")
    run(trials=1)
    run(trials=2)
    assert not caplog.records
    monkeypatch.setattr(sweep, "versions", lambda: {"g2m": "99.0"})
    assert len(run(trials=3).trials) == 3
    (said,) = caplog.messages
    assert re.match(rf"storage: the study '{MLP.study_name('transductive')}' was begun by .*torch.* are .*99\.0", said)


def test_settings_are_studies_of_their_own(imaginary, tmp_path):
    names = {Sweep(e, setting=s).name for e in (MLP, GLNN) for s in ("transductive", "inductive")}
    assert len(names) == 4
    for setting in ("transductive", "inductive"):
        assert len(Sweep(MLP, setting=setting).run(tmp_path / "j.log", trials=2).trials) == 2


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:secret@localhost/x",
        "postgresql://me:secret@localhost:port/x",
        "sqlite://me:secret@localhost/x",
        "nosuch://me:secret@localhost/x",
        "postgresql+nosuch://me:secret@localhost/x",
        "://me:secret@",
        "grpc://me:secret@localhost:13000",
    ],
)
def test_a_wrong_storage_is_refused_without_showing_its_password(url):
    with pytest.raises(G2MError, match=r"storage: '\S*://…' cannot be opened \(\w+: ") as caught:
        Sweep(MLP).study(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    for content in ('{"x": 1}\n{"y"\n{"z": 1}\n', "words\nand words\n", "words", "3"):
        (tmp_path / "j.log").write_text(content)
        with pytest.raises(G2MError, match=r"storage: .*j.log' cannot be opened"):
            Sweep(MLP).study(tmp_path / "j.log")
        assert (tmp_path / "j.log").read_text() == content
    (tmp_path / "file").write_text("x")
    with pytest.raises(G2MError, match=r"storage: .*cannot be opened"):
        Sweep(MLP).study(tmp_path / "file" / "j.log")


def test_sqlite_does_as_well(imaginary, tmp_path):
    url, search = f"sqlite:///{tmp_path}/study.db", Sweep(MLP)
    search.run(url, trials=3)
    begun(search, search.study(url), [socket.gethostname(), dead_pid(), "1"])
    study = search.run(url, trials=5)
    assert states(study) == [COMPLETE] * 3 + [FAIL] + [COMPLETE] * 2
    assert study.trials[4].params == study.trials[3].params
    whole = search.run(tmp_path / "j.log", trials=3)
    assert journal(study)[:3] == journal(whole)
    with pytest.raises(G2MError, match="it differs in: seeds"):
        Sweep(MLP, seeds=2).study(url)


# -- pruning -----------------------------------------------------------------------------------------------------------


def test_trials_below_the_median_are_pruned_and_count(imaginary, tmp_path):
    imaginary(epochs=40)
    study = Sweep(MLP).run(tmp_path / "j.log", trials=25)
    assert len(study.trials) == 25
    assert set(states(study)) == {COMPLETE, PRUNED}
    assert states(study)[:10] == [COMPLETE] * 10, "ten to compare with"
    median = statistics.median(trial.value for trial in study.trials[:10])
    for trial in study.trials:
        if trial.state == PRUNED:
            assert max(trial.intermediate_values) == 29, "no sooner than after 20 epochs"
            assert trial.intermediate_values[29] < median
    assert study.best_trial.state == COMPLETE


def test_a_trial_is_told_by_the_best_so_far(imaginary, tmp_path):
    def falls(self, i, options, seed, report):
        for epoch in range(40):
            report(i, {"epoch": epoch, "val": 0.9 - abs(epoch - 12) / 100})
        return SimpleNamespace(history_=SimpleNamespace(best_score=0.9))

    imaginary(one=falls)
    (trial,) = Sweep(MLP).run(tmp_path / "j.log", trials=1).trials
    assert trial.intermediate_values == {9: pytest.approx(0.87), 19: 0.9, 29: 0.9, 39: 0.9}


def test_without_pruning_none_is(imaginary, tmp_path):
    imaginary(epochs=40)
    study = Sweep(MLP, prune=False).run(tmp_path / "j.log", trials=14)
    assert states(study) == [COMPLETE] * 14


def test_real_trials_are_pruned(tmp_path):
    search = Sweep(replace(MLP, space={"lr": [1e-7, 0.05]}).override(["max_epochs=40"]))
    for stack in (1, 3):
        study = search.study(tmp_path / f"{stack}.log")
        for lr in [0.05] * 12 + [1e-7] * 3:
            study.enqueue_trial({"lr": lr})
        study = search.run(tmp_path / f"{stack}.log", trials=15, stack=stack)
        assert states(study) == [COMPLETE] * 12 + [PRUNED] * 3
        assert {trial.last_step for trial in study.trials[12:]} == {29}


def test_of_several_seeds_the_first_that_is_too_low_ends_a_trial(imaginary, tmp_path):
    imaginary(epochs=40)
    study = Sweep(MLP, seeds=3).run(tmp_path / "j.log", trials=20)
    assert {COMPLETE, PRUNED} == set(states(study))
    for trial in study.trials:
        if trial.state == COMPLETE:
            assert trial.value == pytest.approx(statistics.fmean(trial.user_attrs["val"]))
            assert len(trial.user_attrs["val"]) == 3
        else:
            assert trial.last_step % sweep._SPAN == 29


@pytest.mark.parametrize(("first", "second"), [(0.84, 0.80), (0.80, 0.84)])
def test_a_seed_is_compared_with_the_same_seed_of_others(first, second):
    """However much easier the split of one seed is."""
    pruner = sweep._MedianOfSeed(startup_trials=10, warmup_epochs=20)
    study = optuna.create_study(direction="maximize", pruner=pruner)

    def told(*scores: float) -> list[int]:
        """The steps at which a trial of these scores would be ended."""
        trial, ended = study.ask(), []
        for seed, score in enumerate(scores):
            for epoch in range(9, 40, 10):
                trial.report(score, step=seed * sweep._SPAN + epoch)
                ended += [seed * sweep._SPAN + epoch] if trial.should_prune() else []
        study.tell(trial, scores[-1])
        return ended

    assert [told(first, second - 0.01 * i) for i in range(10)] == [[]] * 10, "ten to compare with"
    assert told(first, second) == [], "as good as any"
    later = [sweep._SPAN + 29, sweep._SPAN + 39]
    assert told(first, 0.2) == later
    assert told(0.2, second) == [29, 39]
    assert told(first, second - 0.2) == later


# -- two objectives ----------------------------------------------------------------------------------------------------


def test_two_objectives_give_a_front(imaginary, tmp_path):
    imaginary(epochs=40)
    search = Sweep(MLP, also="bytes")
    study = search.run(tmp_path / "j.log", trials=16)
    assert states(study) == [COMPLETE] * 16, "there is no pruning"
    for trial in study.trials:
        options = options_of(search, trial)
        assert trial.values == pytest.approx([height(**options), 1 + 10 * options["dropout"]])
    best = search.best(study)
    assert best.tuned["val"] == round(max(trial.values[0] for trial in study.trials), 5)

    header, rows = best_rows(study)
    assert header[:3] == ["trial", "val", "bytes"]
    assert set(header[3:]) == SPACE.keys()
    points = {trial.number: trial.values for trial in study.trials}
    front = {
        n
        for n, (val, cost) in points.items()
        if not any((v >= val and c <= cost) and (v, c) != (val, cost) for v, c in points.values())
    }
    assert {int(row[0]) for row in rows} == front
    assert len(front) > 1
    values = [float(row[1]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert options_of(search, study.trials[int(rows[0][0])]) == {k: best.student_options[k] for k in SPACE}


@pytest.mark.parametrize("also", ["parameters", "bytes", "latency"])
def test_what_a_real_student_costs(tmp_path, also, monkeypatch):
    def latency(student, graph, *, sizes):
        assert (graph.num_nodes, sizes) == (300, (1,))
        return {1: {"p50": student.hidden_channels / 10, "p99": 1e9}}

    monkeypatch.setattr(trials, "student_latency", latency)
    search = Sweep(replace(MLP, space={"hidden_channels": [2, 4, 64]}), also=also)
    study = search.run(tmp_path / "j.log", trials=8)
    assert states(study) == [COMPLETE] * 8
    graph = load("sbm", num_nodes=300)
    costs = {trial.params["hidden_channels"]: trial.values[1] for trial in study.trials}
    assert len(costs) > 1
    for width, cost in costs.items():
        count = width * (graph.num_features + 1) + (width + 1) * graph.num_classes
        assert cost == {"parameters": count, "bytes": 4 * count, "latency": width / 10}[also]


def test_sizes_are_searched_where_they_count():
    plain = replace(MLP, space={})
    assert Sweep(plain, also="bytes").experiment.space.keys() - Sweep(plain).experiment.space.keys() == {
        "hidden_channels",
        "num_layers",
    }


# -- stacked -----------------------------------------------------------------------------------------------------------


def test_stacked_trials_score_what_they_would_alone(tmp_path):
    experiment = replace(GLNN, space={**SPACE, "hidden_channels": [8, 16], "norm": ["none", "batch"]})
    search = Sweep(experiment.override(["max_epochs=8", "teacher.max_epochs=20"]), seeds=2)
    alone = search.run(tmp_path / "a.log", trials=6)
    together = search.study(tmp_path / "b.log")
    for trial in alone.trials:
        together.enqueue_trial(trial.params)
    together = search.run(tmp_path / "b.log", trials=6, stack=4)
    assert [trial.params for trial in together.trials] == [trial.params for trial in alone.trials]
    assert len({trial.params["hidden_channels"] for trial in alone.trials}) == 2
    for a, b in zip(alone.trials, together.trials, strict=True):
        assert b.user_attrs["val"] == pytest.approx(a.user_attrs["val"], abs=0.02)
    assert len({trial.value for trial in alone.trials}) > 2


@pytest.mark.parametrize("stack", [2, 3, 4, 10])
def test_stacks_fill_the_budget_exactly(imaginary, tmp_path, stack):
    search, asked = Sweep(MLP, seeds=2), []

    def counting(self, experiments, seed, report):
        asked.append(len(experiments))
        return Imaginary.train(self, experiments, seed, report)

    imaginary(train=counting)
    assert states(search.run(tmp_path / "j.log", trials=7, stack=stack)) == [COMPLETE] * 7
    sizes = [min(stack, 7 - done) for done in range(0, 7, stack)]
    assert asked == [size for size in sizes for _ in range(2)]


def test_a_stack_leaves_to_others_what_they_ask_for_meanwhile(imaginary, tmp_path, monkeypatch):
    search = Sweep(MLP)
    study, other = (search.study(tmp_path / "j.log") for _ in range(2))
    ask = study.ask

    def both_ask():
        other.ask().set_user_attr("worker", sweep._me())
        return ask()

    monkeypatch.setattr(study, "ask", both_ask)
    search.work(study, trials=8, stack=8)
    assert sorted(map(str, states(study))) == sorted(map(str, 4 * [COMPLETE] + 4 * [TrialState.RUNNING]))


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, "0 1 2 0"), ("", "0 1 2 0"), ("5,3, 7", "5 3 7 5"), ("GPU-a,GPU-b,MIG-c", "")]
)
def test_workers_take_turns_on_the_gpus_that_are_visible(visible, expected):
    found = [sweep._device_of(place, 3, visible) for place in range(4)]
    assert found == (expected.split() or ["GPU-a", "GPU-b", "MIG-c", "GPU-a"])


def test_a_method_that_searches_is_trained_alone(tmp_path, monkeypatch):
    def refuse(*given, **options):
        raise AssertionError("stacked")

    monkeypatch.setattr(trials, "fit_stacked", refuse)
    search = Sweep(replace(GLNN, method="auto", student_options={**QUICK, "max_epochs": 2}))
    study = search.run(tmp_path / "j.log", trials=3, stack=3)
    assert states(study) == [COMPLETE] * 3
    alone = search.study(tmp_path / "a.log")
    for trial in study.trials:
        alone.enqueue_trial(trial.params)
    assert journal(search.run(tmp_path / "a.log", trials=3)) == journal(study)


def test_what_cannot_be_stacked_goes_one_by_one(tmp_path):
    """Of graphs of different sizes."""
    search = Sweep(replace(MLP, space={"data.num_features": [16, 32], "lr": SPACE["lr"]}))
    study = search.run(tmp_path / "j.log", trials=6, stack=6)
    assert states(study) == [COMPLETE] * 6
    assert len({trial.params["data.num_features"] for trial in study.trials}) == 2


# -- the answer --------------------------------------------------------------------------------------------------------


def test_the_best_is_an_experiment_that_says_how_it_was_found(imaginary, tmp_path):
    search = Sweep(replace(MLP, paper={"source": "x"}), seeds=2)
    study = search.run(tmp_path / "j.log", trials=30)
    best = search.best(study)
    options = options_of(search, study.best_trial)
    assert best.student_options == {**QUICK, **options}
    assert (best.space, best.paper) == ({}, {})
    done = sum(state in (COMPLETE, PRUNED) for state in states(study))
    assert best.tuned == {
        **{"setting": "transductive", "trials": done, "seeds": 2},
        "val": round(study.best_value, 5),
    }
    assert open_experiment(best.write(tmp_path / "best.toml")) == best
    header, rows = best_rows(study, 3)
    assert header == ["trial", "val", *study.best_trial.params]
    assert rows[0][:2] == [str(study.best_trial.number), f"{study.best_value:.5g}"]
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)
    assert len(rows) == 3


def test_the_best_is_replicated_on_fresh_seeds_and_test_is_read_there_alone(tmp_path, monkeypatch):
    trained = []

    def counted(name, *, seed, **options):
        trained.append(seed)
        return load(name, seed=seed, **options)

    monkeypatch.setattr(trials, "load", counted)
    search = Sweep(GLNN, setting="inductive", seeds=2)
    with monkeypatch.context() as patch:
        patch.setattr(Student, "evaluate", lambda *_: pytest.fail("a trial is scored on test"))
        study = search.run(tmp_path / "j.log", trials=2)
    assert set(trained) == {0, 1}
    best = search.best(study)
    again, records = search.replicate(best, 3, out=tmp_path / "r.jsonl")
    assert [record["seed"] for record in records] == [2, 3, 4]
    assert records[0]["config"]["student_options"] == best.student_options
    assert replace(again, tuned=best.tuned) == best
    assert again.tuned["fresh_seeds"] == 3
    assert again.tuned["scores"].keys() == records[0]["scores"].keys() == {"val", "test", "seen", "unseen", "cold"}
    for part, (mean, std) in again.tuned["scores"].items():
        expected = mean_std([record["scores"][part] for record in records])
        assert (mean, std) == pytest.approx(expected, abs=1e-5)
    graph = load("sbm", num_nodes=300, seed=3, setting="inductive")
    outputs = Teacher("sage", seed=3, **QUICK).fit(graph).outputs(graph)
    assert Student("glnn", seed=3, **best.student_options).fit(graph, outputs).evaluate(graph) == records[1]["scores"]

    # Killed after two, it goes on from the file.
    kept = read_results(tmp_path / "r.jsonl")[:2]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    ran = []
    run_cell = bench.run_cell
    monkeypatch.setattr(bench, "run_cell", lambda cell, **options: ran.append(cell.seed) or run_cell(cell, **options))
    assert search.replicate(best, 3, out=tmp_path / "r.jsonl")[0] == again
    assert ran == [4]
    assert open_experiment(again.write(tmp_path / "best.toml")) == again
    with pytest.raises(G2MError, match="replicate: expected a whole number from 1"):
        search.replicate(best, 0)


@pytest.mark.parametrize(
    ("count", "also", "expected"),
    [
        (1, None, {"history"}),
        (12, None, {"history", "importances", "parallel"}),
        (12, "bytes", {"history", "importances", "parallel", "pareto"}),
    ],
)
def test_plots_are_drawn_of_what_there_is(imaginary, tmp_path, count, also, expected):
    study = Sweep(MLP, also=also).run(tmp_path / "j.log", trials=count)
    written = draw(study, tmp_path)
    assert {path.stem for path in written} == expected
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


# -- several processes -------------------------------------------------------------------------------------------------


def test_a_signal_to_end_waits_until_the_trial_has_an_owner(imaginary, tmp_path, monkeypatch):
    search = Sweep(MLP)
    study = search.study(tmp_path / "j.log")
    ask = study.ask

    def ask_and_be_told_to_end():
        trial = ask()
        os.kill(os.getpid(), signal.SIGTERM)
        return trial

    monkeypatch.setattr(study, "ask", ask_and_be_told_to_end)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with pytest.raises(SystemExit):
            search.work(study, trials=3)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert RUNNING not in states(study)


def _work_and_be_ended_at_exit(storage, sender):
    idle = SimpleNamespace(work=lambda study, **common: None, study=lambda storage, name: None)
    sweep._worker(idle, storage, None, 0, 1, {}, sender)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def test_a_worker_that_has_done_its_work_ends_at_once_when_told_to(tmp_path):
    context = multiprocessing.get_context("spawn")
    _, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work_and_be_ended_at_exit, args=(str(tmp_path / "journal"), sender))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM  # not by an exception, which whoever runs at exit would print


def test_two_workers_share_the_work_and_end_with_a_stop(tmp_path, cache):
    search, told = Sweep(GLNN, seeds=2), []

    def stop(study):
        if COMPLETE in states(study):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.run(tmp_path / "j.log", trials=1000, workers=2, on_change=stop)
    assert multiprocessing.active_children() == []
    stopped = search.study(tmp_path / "j.log")
    assert set(states(stopped)) <= {COMPLETE, FAIL, WAITING}
    budget = states(stopped).count(COMPLETE) + 6
    study = search.run(
        tmp_path / "j.log", trials=budget, workers=2, on_change=lambda study: told.append(states(study).count(COMPLETE))
    )
    assert set(states(study)) <= {COMPLETE, FAIL}
    done = [trial for trial in study.trials if trial.state == COMPLETE]
    assert budget <= len(done) <= budget + 2
    assert told[-1] == len(done)
    assert all(trial.user_attrs["worker"][1] != os.getpid() for trial in done)
    assert len({json.dumps(trial.params) for trial in done}) == len(done)
    assert len(list(cache.glob("teachers/*.safetensors"))) == 2, "one a seed"
    again = search.study(tmp_path / "a.log")
    again.enqueue_trial(study.best_params)
    assert search.run(tmp_path / "a.log", trials=1).best_value == pytest.approx(study.best_value, abs=0.02)


PROCESS = """
import sys, time
from pathlib import Path
import optuna
from g2m.experiments import open_experiment
from g2m.sweep import Sweep

optuna.logging.set_verbosity(optuna.logging.WARNING)
folder, place = Path(sys.argv[1]), sys.argv[2]
search = Sweep(open_experiment(folder / "x.toml"))
(folder / f"ready{place}").touch()
while len(list(folder.glob("ready*"))) < 2:
    time.sleep(0.01)
search.run(folder / "j.log", trials=20)
"""


def test_two_processes_on_one_journal_share_the_work(tmp_path):
    MLP.override(["max_epochs=30"]).write(tmp_path / "x.toml")
    words = [sys.executable, "-c", PROCESS, str(tmp_path)]
    processes = [subprocess.Popen([*words, str(place)], stderr=subprocess.PIPE, text=True) for place in range(2)]
    for process in processes:
        assert process.communicate(timeout=240)[1] == ""
        assert process.returncode == 0
    study = Sweep(open_experiment(tmp_path / "x.toml")).study(tmp_path / "j.log")
    assert 20 <= len(study.trials) <= 21
    assert set(states(study)) <= {COMPLETE, PRUNED}
    assert {trial.user_attrs["worker"][1] for trial in study.trials} == {process.pid for process in processes}
    assert len({json.dumps(trial.params) for trial in study.trials}) == len(study.trials)
