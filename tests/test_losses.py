"""Losses against their formulas, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from g2m.losses import soft_label_loss

quick = settings(max_examples=40, deadline=None)
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def logits(rows: int, classes: int, seed: int, scale: float = 2.0):
    return scale * torch.randn(rows, classes, generator=Generator().manual_seed(seed), dtype=torch.float64)


@quick
@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 999), st.floats(0.2, 8))
def test_soft_label_loss_equals_its_formula(rows, classes, seed, tau):
    s, t = logits(rows, classes, seed), logits(rows, classes, seed + 1000)
    p, q = (torch.exp(z / tau) / torch.exp(z / tau).sum(1, keepdim=True) for z in (t, s))
    expected = sum(float(p[i, c] * torch.log(p[i, c] / q[i, c])) for i in range(rows) for c in range(classes)) / rows
    loss = soft_label_loss(s, torch.log(p), tau)
    torch.testing.assert_close(float(loss), expected, **EXACT)
    assert loss >= 0


@quick
@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 999), st.floats(0.2, 8))
def test_gradient_is_student_minus_teacher(rows, classes, seed, tau):
    s, t = logits(rows, classes, seed).requires_grad_(), logits(rows, classes, seed + 1000)
    (gradient,) = torch.autograd.grad(soft_label_loss(s, (t / tau).log_softmax(-1), tau), s)
    expected = ((s / tau).softmax(-1) - (t / tau).softmax(-1)) / (tau * rows)
    torch.testing.assert_close(gradient, expected.detach(), **EXACT)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_zero_if_and_only_if_equal(tau):
    t = logits(4, 3, 0)
    target = (t / tau).log_softmax(-1)
    assert abs(soft_label_loss(t + 7.0, target, tau)) < 1e-12  # softmax does not see a shift
    for row in range(4):
        other = t.clone()
        other[row, 0] += 0.1
        assert soft_label_loss(other, target, tau) > 1e-6


def test_finite_where_a_probability_underflows():
    t = torch.tensor([[200.0, 0.0, -200.0]])
    loss = soft_label_loss(-t, t.log_softmax(-1))
    assert torch.isfinite(loss)
    torch.testing.assert_close(loss, torch.tensor(400.0))
