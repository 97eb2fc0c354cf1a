"""Losses against their formulas, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from g2m.losses import centred, high_frequency_loss, low_frequency_loss, soft_label_loss

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


# -- FF-G2M: against sums over edges, written as in the paper ----------------------------------------------------------


def symmetric_edges(num_nodes: int, seed: int, *, density: float = 0.3):
    """An undirected graph, both arcs an edge; its last node is isolated."""
    generator = Generator().manual_seed(seed)
    upper = (torch.rand(num_nodes, num_nodes, generator=generator) < density).triu(1)
    upper[:, -1] = False
    return (upper | upper.T).nonzero().T


def low_by_edges(s, t, edge_index, tau):
    """Mean of KL(p_j ‖ q_i) over arcs and loops."""
    loops = torch.arange(len(s)).repeat(2, 1)
    i, j = torch.cat([edge_index, loops], 1)
    log_p, log_q = (t / tau).log_softmax(1), (s / tau).log_softmax(1)
    return (log_p[j].exp() * (log_p[j] - log_q[i])).sum(1).mean()


def low_targets(t, edge_index, tau):
    """What :func:`low_frequency_loss` takes, by a dense matrix."""
    dense = torch.eye(len(t), dtype=t.dtype)
    dense[edge_index[0], edge_index[1]] = 1
    p = (t / tau).softmax(1)
    scale = len(t) / (edge_index.size(1) + len(t))
    return scale * dense @ p, scale * dense @ (p * p.log()).sum(1)


@quick
@given(st.integers(2, 9), st.integers(2, 5), st.integers(0, 999), st.floats(0.3, 4))
def test_low_frequency_loss_is_the_sum_over_edges(num_nodes, classes, seed, tau):
    edge_index = symmetric_edges(num_nodes, seed)
    s, t = logits(num_nodes, classes, seed).requires_grad_(), logits(num_nodes, classes, seed + 1000)
    ours = low_frequency_loss(s, *low_targets(t, edge_index, tau), tau)
    plain = low_by_edges(s, t, edge_index, tau)
    torch.testing.assert_close(ours, plain, **EXACT)
    torch.testing.assert_close(*(torch.autograd.grad(loss, s)[0] for loss in (ours, plain)), **EXACT)


def high_by_edges(s, t, edge_index, tau):
    """Mean of KL(softmax(|t_i − t_j| / τ) ‖ softmax(|s_i − s_j| / τ)) over arcs."""
    i, j = edge_index
    log_u, log_v = (((z[i] - z[j]).abs() / tau).log_softmax(1) for z in (t, s))
    return (log_u.exp() * (log_u - log_v)).sum(1).mean()


@quick
@given(st.integers(3, 9), st.integers(2, 5), st.integers(0, 999), st.floats(0.3, 4), st.integers(1, 60))
def test_high_frequency_loss_is_the_dense_one_in_chunks_of_any_size(num_nodes, classes, seed, tau, chunk):
    edge_index = torch.randint(num_nodes, (2, 40), generator=Generator().manual_seed(seed))  # loops, repeats, directed
    s, t = logits(num_nodes, classes, seed).requires_grad_(), logits(num_nodes, classes, seed + 1000)
    ours = high_frequency_loss(s, t, edge_index, tau, chunk=chunk)
    plain = high_by_edges(s, t, edge_index, tau)
    torch.testing.assert_close(ours, plain, **EXACT)
    torch.testing.assert_close(*(torch.autograd.grad(3 * loss, s)[0] for loss in (ours, plain)), **EXACT)


def test_high_frequency_loss_gradient_by_differences():
    s, t = logits(5, 3, 0).requires_grad_(), logits(5, 3, 1)
    edge_index = symmetric_edges(5, 0, density=0.8)
    assert torch.autograd.gradcheck(lambda z: high_frequency_loss(z, t, edge_index, 1.3, chunk=3), s)


def test_high_frequency_loss_of_one_arc_an_edge_is_that_of_both():
    edge_index = symmetric_edges(9, 0)
    s, t = logits(9, 4, 0).requires_grad_(), logits(9, 4, 1)
    one_way = edge_index[:, edge_index[0] < edge_index[1]]
    both, half = (high_frequency_loss(s, t, edges, 1.5) for edges in (edge_index, one_way))
    torch.testing.assert_close(half, both, **EXACT)
    torch.testing.assert_close(*(torch.autograd.grad(loss, s)[0] for loss in (half, both)), **EXACT)


def test_high_frequency_loss_is_zero_for_the_teacher_and_takes_no_gradient_from_it():
    edge_index, t = symmetric_edges(9, 0), logits(9, 4, 1).requires_grad_()
    s = t.detach().clone().requires_grad_()
    loss = high_frequency_loss(s, t, edge_index)
    assert abs(loss) < 1e-12
    loss.backward()
    assert s.grad.abs().max() < 1e-12
    assert t.grad is None
    assert high_frequency_loss(2 * s, t, edge_index) > 1e-3


def test_high_frequency_loss_without_edges_is_zero_and_reaches_the_student():
    s = logits(4, 3, 0).requires_grad_()
    loss = high_frequency_loss(s, logits(4, 3, 1), torch.empty(2, 0, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert torch.equal(s.grad, torch.zeros_like(s))


def test_high_frequency_loss_keeps_one_gradient_of_the_size_of_the_logits():
    """What autograd holds between forward and backward does not grow with the number of edges."""
    s, t = logits(50, 4, 0).requires_grad_(), logits(50, 4, 1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        high_frequency_loss(s, t, torch.randint(50, (2, 5000), generator=Generator().manual_seed(0)), chunk=64)
    assert kept == [200]


def test_high_frequency_loss_moves_only_the_ends_of_its_edges():
    s, t = logits(6, 3, 0).requires_grad_(), logits(6, 3, 1)
    high_frequency_loss(s, t, torch.tensor([[0], [2]])).backward()
    assert s.grad.abs().sum(1).gt(0).tolist() == [True, False, True, False, False, False]
    torch.testing.assert_close(s.grad[0], -s.grad[2])


def test_centred_takes_out_what_softmax_does_not_see():
    z = logits(5, 3, 0)
    shift = torch.arange(5.0, dtype=z.dtype)[:, None]
    torch.testing.assert_close(centred(z + shift), centred(z))
    torch.testing.assert_close(centred(z).softmax(1), z.softmax(1))
    assert centred(z).sum(1).abs().max() < 1e-12
