"""Scores against scikit-learn and OGB's Evaluator."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import Generator

from g2m.errors import G2MError
from g2m.metrics import accuracy, rocauc, score, standard_error


def draw(rows: int, classes: int, seed: int):
    generator = Generator().manual_seed(seed)
    # whole numbers, so that ties between nodes are common
    logits = torch.randint(-3, 4, (rows, classes), generator=generator).float()
    return logits, torch.randint(classes, (rows,), generator=generator)


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 999))
def test_accuracy(rows, classes, seed):
    logits, y = draw(rows, classes, seed)
    assert score("accuracy", logits, y) == pytest.approx(accuracy_score(y, logits.numpy().argmax(1)), abs=1e-12)


@settings(max_examples=30)
@given(st.integers(2, 30), st.integers(0, 999))
def test_rocauc(rows, seed):
    logits, y = draw(rows, 2, seed)
    y[:2] = torch.tensor([0, 1])
    value = score("rocauc", logits, y)
    assert value == pytest.approx(roc_auc_score(y, logits.softmax(1)[:, 1].double()), abs=1e-6)
    assert value == pytest.approx(1 - rocauc(logits.flip(1), y))
    assert value == rocauc(3 * logits + 5, y)


def evaluator(name: str):
    sys.modules.setdefault("outdated", None)  # else the first import of ogb looks for a newer one
    from ogb.graphproppred import Evaluator

    return Evaluator(name)


def draw_tasks(rows: int, tasks: int, seed: int, missing: float = 0.3):
    generator = Generator().manual_seed(seed)
    logits = torch.randint(-3, 4, (rows, tasks), generator=generator).float()
    y = torch.randint(2, (rows, tasks), generator=generator).float()
    y[torch.rand(rows, tasks, generator=generator) < missing] = torch.nan
    return logits, y


@settings(max_examples=30)
@given(st.integers(2, 40), st.integers(0, 999), st.sampled_from([0.0, 0.3, 0.9]))
def test_rocauc_of_several_tasks_is_that_of_ogb(rows, seed, missing):
    logits, y = draw_tasks(rows, 12, seed, missing)
    try:
        expected = evaluator("ogbg-moltox21").eval({"y_true": y, "y_pred": logits})["rocauc"]
    except RuntimeError:  # no task has both classes
        expected = math.nan
    assert score("rocauc", logits, y) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@settings(max_examples=20)
@given(st.integers(2, 30), st.integers(0, 999))
def test_rocauc_of_one_task_is_that_of_ogb_however_it_is_put(rows, seed):
    logits, y = draw(rows, 2, seed)
    y[:2] = torch.tensor([0, 1])
    margin = (logits[:, 1] - logits[:, 0])[:, None]
    expected = evaluator("ogbg-molhiv").eval({"y_true": y[:, None], "y_pred": margin})["rocauc"]
    assert rocauc(logits, y) == pytest.approx(expected, abs=1e-12)
    assert rocauc(margin, y[:, None].float()) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 999))
def test_accuracy_of_several_tasks_is_the_mean_of_theirs(rows, tasks, seed):
    logits, y = draw_tasks(rows, tasks, seed)
    known = [~column.isnan() for column in y.T]
    expected = [accuracy_score(y[k, t], logits[k, t] > 0) for t, k in enumerate(known) if k.any()]
    found = score("accuracy", logits, y)
    assert found == pytest.approx(sum(expected) / len(expected) if expected else math.nan, abs=1e-12, nan_ok=True)


def test_a_missing_label_does_not_count():
    logits, y = draw_tasks(20, 3, 0)
    other = torch.where(y.isnan(), 100 * torch.randn(20, 3), logits)
    assert score("rocauc", other, y) == score("rocauc", logits, y)
    assert score("accuracy", other, y) == score("accuracy", logits, y)


@pytest.mark.parametrize("metric", ["accuracy", "rocauc"])
def test_several_tasks_need_a_logit_each(metric):
    with pytest.raises(G2MError, match=r"logits: expected \[4, 3\].*\(got \[4, 2\]\)"):
        score(metric, torch.zeros(4, 2), torch.zeros(4, 3))


def test_rocauc_tells_doubles_apart_that_are_one_float():
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert rocauc(logits, torch.tensor([0, 1])) == 1.0


@pytest.mark.parametrize("label", [0, 1])
def test_rocauc_of_one_class_is_nan(label):
    assert math.isnan(rocauc(torch.randn(4, 2), torch.full((4,), label)))


def test_rocauc_tells_probabilities_apart_that_round_to_one():
    logits = torch.tensor([[0.0, 40.0], [0.0, 50.0]])
    assert rocauc(logits, torch.tensor([0, 1])) == 1.0


def test_accuracy_extremes():
    logits = torch.eye(3)
    assert accuracy(logits, torch.arange(3)) == 1.0
    assert accuracy(logits, (torch.arange(3) + 1) % 3) == 0.0


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_the_standard_error_of_an_area_is_that_of_hanley_and_mcneil(ones, zeros, area):
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (ones - 1) * (q1 - area**2) + (zeros - 1) * (q2 - area**2)
    y = torch.cat([torch.ones(ones), torch.zeros(zeros)]).long()
    found = standard_error("rocauc", area, y)
    assert found**2 == pytest.approx(variance / (ones * zeros), abs=1e-12)
    assert standard_error("accuracy", area, y) ** 2 == pytest.approx(area * (1 - area) / len(y), abs=1e-12)
    assert standard_error("rocauc", 1 - area, 1 - y) == pytest.approx(found, abs=1e-6)  # classes may change names


@pytest.mark.parametrize(("ones", "zeros"), [(4, 40), (40, 4), (15, 15)])
def test_the_standard_error_of_an_area_is_how_far_areas_of_exponential_scores_spread(ones, zeros):
    """Where it is exact: scores of class 1 are three times those of class 0, and the area is ¾."""
    scores = torch.empty(4000, ones + zeros).exponential_(generator=Generator().manual_seed(0))
    areas = (3 * scores[:, :ones, None] > scores[:, None, ones:]).double().mean((1, 2))
    assert areas.mean() == pytest.approx(0.75, abs=0.01)
    y = (torch.arange(ones + zeros) < ones).long()
    assert standard_error("rocauc", 0.75, y) == pytest.approx(float(areas.std()), rel=0.05)


def test_unknown_metric():
    with pytest.raises(G2MError, match="Did you mean 'accuracy'"):
        score("acuracy", torch.eye(2), torch.arange(2))
    with pytest.raises(G2MError, match="Did you mean 'accuracy'"):
        standard_error("acuracy", 0.5, torch.arange(2))


def test_an_area_of_three_classes_is_refused():
    with pytest.raises(G2MError, match=r"^metric: 'rocauc' needs two classes \(got 3\)"):
        score("rocauc", torch.zeros(4, 3), torch.tensor([0, 1, 2, 1]))
