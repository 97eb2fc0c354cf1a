import math

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g2m.errors import G2MError
from g2m.methods import REGISTRY
from g2m.spaces import Recorder, check_space, corners, suggest

optuna.logging.set_verbosity(optuna.logging.WARNING)


def draws(space, count=5, seed=0):
    """Options drawn one trial after another, and the parameters that the study keeps."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(count):
        trial = study.ask()
        yield suggest(trial, space), trial.params


# -- drawing -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.integers(-5, 5), st.booleans(), st.sampled_from(["none", "batch"])), min_size=1))
@settings(max_examples=20)
def test_of_a_list_one_is_drawn(choices):
    check_space({"x": choices})
    for found, kept in draws({"x": choices}):
        assert any(found["x"] is value or found["x"] == value for value in choices)
        assert kept == found


@given(st.integers(-50, 50), st.integers(0, 100), st.integers(1, 7))
@settings(max_examples=20)
def test_whole_ends_give_whole_numbers_in_steps(low, width, step):
    space = {"x": {"low": low, "high": low + step * width, "step": step}}
    check_space(space)
    for found, kept in draws(space):
        assert type(found["x"]) is int
        assert low <= found["x"] <= low + step * width
        assert (found["x"] - low) % step == 0
        assert kept == found


@given(st.floats(-1e3, 1e3), st.floats(0, 1e3))
@settings(max_examples=40)
def test_numbers_lie_in_their_range_and_are_short(low, width):
    space = {"x": {"low": low, "high": low + width}}
    check_space(space)
    for found, kept in draws(space):
        assert type(found["x"]) is float
        assert low <= found["x"] <= low + width
        assert found["x"] in (float(f"{found['x']:.4g}"), low, low + width)
        assert found["x"] == pytest.approx(kept["x"], rel=1e-3, abs=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "step"), [(0.0, 0.8, 0.1), (0, 1, 0.25), (1.5, 9.5, 2), (-1, 0.5, 0.3), (12345.5, 12347.5, 0.5)]
)
def test_steps_of_numbers_are_met(low, high, step):
    found = {options["x"] for options, _ in draws({"x": {"low": low, "high": high, "step": step}}, 60)}
    expected = [low + i * step for i in range(round((high - low) / step) + 1)]
    assert sorted(found) == pytest.approx(expected, rel=1e-12), "all of them are drawn, and no other"
    assert all(type(value) is float for value in found)
    assert all(len(repr(value)) < 9 for value in found), "0.30000000000000004 is no option of a file"


def test_log_draws_as_many_of_every_size():
    space = {"x": {"low": 1e-5, "high": 1e-1, "log": True}, "n": {"low": 1, "high": 1024, "log": True}}
    found = [options for options, _ in draws(space, 400)]
    assert all(1e-5 <= options["x"] <= 1e-1 for options in found)
    assert all(type(options["n"]) is int and 1 <= options["n"] <= 1024 for options in found)
    for name, middle in (("x", 1e-3), ("n", 32)):
        below = sum(options[name] < middle for options in found)
        assert abs(below - 200) < 4 * math.sqrt(100)


def test_what_is_drawn_is_drawn_again_from_the_parameters():
    space = {"lr": {"low": 1e-3, "high": 0.1, "log": True}, "norm": ["none", "batch"], "n": {"low": 1, "high": 9}}
    for found, kept in draws(space, 20):
        assert suggest(optuna.trial.FixedTrial(kept), space) == found


# -- what is no space --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lr": {"low": 0.1, "high": 0.01}}, r"space: lr: expected low ≤ high \(got 0\.1 and 0\.01\)"),
        ({"lr": {"low": 0, "high": 0.1, "log": True}}, "space: lr: expected low above 0 and no step with log"),
        ({"lr": {"low": -1.0, "high": 0.1, "log": True}}, "space: lr: expected low above 0"),
        ({"lr": {"low": 0.1, "high": 1.0, "log": True, "step": 0.1}}, "space: lr: .* no step with log"),
        ({"lr": {"low": 0.1, "high": 1.0, "log": 1}}, r"space: lr\.log: expected true or false"),
        ({"lr": {"low": 0.1, "high": 1.0, "step": 0}}, r"space: lr\.step: expected a number in \(0"),
        ({"lr": {"low": 0.1, "hihg": 1.0}}, r"space: lr: unknown key 'hihg'\. Did you mean 'high'\?"),
        ({"lr": {"low": 0.1}}, r"space: lr\.high: expected a number"),
        ({"lr": {"low": "0.1", "high": 1.0}}, r"space: lr\.low: expected a number"),
        ({"lr": {"low": math.nan, "high": 1.0}}, r"space: lr\.low: expected a number"),
        ({"lr": {"low": 0.1, "high": math.inf}}, r"space: lr\.high: expected a number"),
        ({"norm": []}, "space: norm: expected a list of plain values"),
        ({"norm": [["none"]]}, "space: norm: expected a list of plain values"),
        ({"norm": [{"low": 1, "high": 2}]}, "space: norm: expected a list of plain values"),
        ({"lr": 0.1}, r"space: lr: expected a list or .*got 0\.1.* A fixed value is an option"),
        ({"ok": [1], "norm": "batch"}, "space: norm: expected a list or"),
        (["lr"], r"space: expected a table of option = range"),
    ],
)
def test_what_is_no_space_is_refused_by_the_options_name(space, message):
    with pytest.raises(G2MError, match=message):
        check_space(space)


# -- both ends ---------------------------------------------------------------------------------------------------------

RANGES = st.tuples(st.integers(-9, 9), st.integers(0, 9)).map(lambda pair: {"low": pair[0], "high": sum(pair)})
SPACES = st.dictionaries(
    st.sampled_from(list("abcd")), RANGES | st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1
)


@given(SPACES)
def test_corners_have_both_ends_and_every_choice(space):
    found = corners(space)
    for options in found:
        assert options.keys() == space.keys()
    for name, spec in space.items():
        values = {options[name] for options in found}
        assert values == (set(spec) if isinstance(spec, list) else {spec["low"], spec["high"]})
    assert len(found) <= max(5, 2), "no product of them"


# -- what a method draws -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_the_recorder_has_what_a_method_draws(name):
    recorder = Recorder()
    first = REGISTRY[name].space(recorder)
    check_space(recorder.space)
    assert first.keys() == recorder.space.keys(), "under the names of the options"
    cls = REGISTRY[name]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        trial = study.ask()
        drawn = cls.space(trial)
        assert drawn == trial.params
    # The very distributions: a study would refuse others under the same names.
    again = study.ask()
    found = suggest(again, recorder.space)
    assert again.distributions == trial.distributions
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in drawn.items()}
    cls(**found)
    for options in corners(recorder.space) if recorder.space else ():
        cls(**options)


def test_the_recorder_keeps_numbers_apart_from_whole_numbers():
    recorder = Recorder()
    assert recorder.suggest_float("x", 0, 1) == 0
    assert recorder.suggest_int("n", 0, 1) == 0
    assert recorder.suggest_float("y", 1, 9, log=True) == 1
    assert recorder.suggest_categorical("c", ("a", "b")) == "a"
    assert recorder.space == {
        **{"x": {"low": 0.0, "high": 1.0}, "n": {"low": 0, "high": 1}},
        **{"y": {"low": 1.0, "high": 9.0, "log": True}, "c": ["a", "b"]},
    }
    (found, _), *_ = draws(recorder.space)
    assert [type(found[name]) for name in "xny"] == [float, int, float]
