"""Scores against scikit-learn."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import Generator

from g2m.errors import G2MError
from g2m.metrics import accuracy, rocauc, score


def draw(rows: int, classes: int, seed: int):
    generator = Generator().manual_seed(seed)
    # whole numbers, so that ties between nodes are common
    logits = torch.randint(-3, 4, (rows, classes), generator=generator).float()
    return logits, torch.randint(classes, (rows,), generator=generator)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 999))
def test_accuracy(rows, classes, seed):
    logits, y = draw(rows, classes, seed)
    assert score("accuracy", logits, y) == pytest.approx(accuracy_score(y, logits.numpy().argmax(1)), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(0, 999))
def test_rocauc(rows, seed):
    logits, y = draw(rows, 2, seed)
    y[:2] = torch.tensor([0, 1])
    value = score("rocauc", logits, y)
    assert value == pytest.approx(roc_auc_score(y, logits.softmax(1)[:, 1].double()), abs=1e-6)
    assert value == pytest.approx(1 - rocauc(logits.flip(1), y))
    assert value == rocauc(3 * logits + 5, y)


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


def test_unknown_metric():
    with pytest.raises(G2MError, match="Did you mean 'accuracy'"):
        score("acuracy", torch.eye(2), torch.arange(2))
