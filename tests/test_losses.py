"""Losses against their formulas, in float64."""

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Generator
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from g2m.codebook import CODE_METRICS, Codebook
from g2m.losses import (
    centred,
    code_assignment_loss,
    high_frequency_loss,
    low_frequency_loss,
    min_max_edge_loss,
    sampled_edge_loss,
    scaled_cosine_error,
    similarity_loss,
    soft_label_loss,
)
from g2m.sparse import CSR

quick = settings(max_examples=40)
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


def test_no_gradient_goes_to_the_teacher():
    s, t, offset = (logits(4, 3, seed).requires_grad_() for seed in range(3))
    (soft_label_loss(s, t) + low_frequency_loss(s, t, offset)).backward()
    assert s.grad.any()
    assert t.grad is offset.grad is None


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


def test_high_frequency_loss_takes_one_more_matrix_of_the_size_of_the_logits_and_five_buffers():
    s, t = logits(5000, 4, 0).requires_grad_(), logits(5000, 4, 1)
    edge_index = torch.randint(5000, (2, 300), generator=Generator().manual_seed(0))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        loss = high_frequency_loss(s, t, edge_index, 1.5, chunk=100)
    assert loss > 0
    changes = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = list(itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda e: e.start_ns())))
    assert s.nbytes + 5 * 8 * 400 <= max(held) < 1.3 * s.nbytes  # parts of a chunk come and go
    assert held[-1] < 1.05 * s.nbytes


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


# -- NOSMOG: against Gram matrices -------------------------------------------------------------------------------------


def gram(rows, normalise):
    rows = rows / rows.norm(dim=1, keepdim=True) if normalise else rows
    return rows @ rows.T


@quick
@given(st.integers(2, 9), st.integers(1, 6), st.integers(1, 6), st.integers(0, 999), st.booleans())
def test_similarity_loss_is_the_dense_one(rows, width, teachers, seed, normalise):
    s, t = logits(rows, width, seed).requires_grad_(), logits(rows, teachers, seed + 1000)
    off = (gram(s, normalise) - gram(t, normalise)).square()
    pairs = ~torch.eye(rows, dtype=torch.bool) if normalise else torch.ones(rows, rows, dtype=torch.bool)
    loss, expected = similarity_loss(s, t, normalise=normalise), off[pairs].mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    first, second = (torch.autograd.grad(value, s)[0] for value in (loss, expected))
    torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("normalise", [False, True])
def test_similarity_loss_is_zero_if_and_only_if_the_gram_matrices_agree(normalise):
    t = logits(7, 4, 0)
    wide, _ = torch.linalg.qr(logits(6, 4, 1))  # orthonormal columns: another basis, of more dimensions
    s = t @ wide.T
    length = torch.arange(1.0, 8, dtype=t.dtype)[:, None]
    assert abs(similarity_loss(s, t, normalise=normalise)) < 1e-10
    assert (abs(similarity_loss(length * s, t, normalise=normalise)) < 1e-10) == normalise  # cosines know no length
    for row in range(7):
        other = s.clone()
        other[row, 0] += 0.5
        assert similarity_loss(other, t, normalise=normalise) > 1e-4
    assert similarity_loss(s.roll(1, 0), t, normalise=normalise) > 0.1


def test_similarity_loss_takes_no_gradient_from_the_teacher():
    s, t = logits(5, 3, 0).requires_grad_(), logits(5, 3, 1).requires_grad_()
    similarity_loss(s, t).backward()
    assert s.grad.any()
    assert t.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalise", [False, True])
def test_similarity_loss_survives_rows_of_zeros(normalise, dtype):
    """A ReLU may close on all of a node: it is then like no one, itself included."""
    s, t = logits(6, 4, 0).to(dtype), logits(6, 4, 1).to(dtype)
    s[:2], t[1:3] = 0, 0
    first, second = (torch.nan_to_num(gram(rows, normalise)) for rows in (s, t))
    pre = s.clone().requires_grad_()
    loss = similarity_loss(pre.relu() + s - s.relu(), t, normalise=normalise)
    expected = (first - second).square().sum() / (30 if normalise else 36)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    loss.backward()
    assert torch.isfinite(pre.grad).all()
    assert not pre.grad[:2].any()
    zero = torch.zeros(6, 4, dtype=dtype)
    assert similarity_loss(zero, zero, normalise=normalise) == 0


@pytest.mark.parametrize("normalise", [False, True])
def test_similarity_loss_of_one_row_is_finite(normalise):
    s, t = logits(1, 4, 0).requires_grad_(), logits(1, 3, 1)
    loss = similarity_loss(s, t, normalise=normalise)
    loss.backward()
    assert torch.isfinite(s.grad).all()
    expected = 0.0 if normalise else (s.detach().square().sum() - t.square().sum()).square().item()
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-10)


# -- VQGraph: against dense formulas -----------------------------------------------------------------------------------


def assignments(x, codes, tau, metric, first):
    """Probabilities over codes, pair by pair, in the unit of the first level's."""
    x, codes = x[:, None], codes[None]
    if metric == "cosine":
        score = (x * codes).sum(-1) / (x.norm(dim=-1) * codes.norm(dim=-1))
    else:
        score = -(x - codes).square().sum(-1) / (2 * first.square().sum(-1).mean())
    return (score / tau).exp() / (score / tau).exp().sum(-1, keepdim=True)


def divergence(p, q):
    return (p * (p / q).log()).sum(-1).mean()


@quick
@given(
    st.sampled_from(CODE_METRICS),
    st.integers(1, 7),
    st.integers(2, 6),
    st.integers(1, 3),
    st.integers(0, 999),
    st.floats(0.2, 2),
    st.integers(1, 90),
)
def test_code_assignment_loss_is_the_dense_one_in_chunks_of_any_size(metric, rows, codes, levels, seed, tau, chunk):
    """At every level both sides lose the code that the teacher took."""
    s, t = logits(rows, 4, seed, 1).requires_grad_(), logits(rows, 4, seed + 1000, 1).requires_grad_()
    codebook = logits(levels * codes, 4, seed + 2000, 1).view(levels, codes, 4)
    path = torch.randint(codes, (rows, levels), generator=Generator().manual_seed(seed))
    ours = code_assignment_loss(s, t, codebook, tau, metric, path if levels > 1 else None, chunk=chunk)
    left, rest, plain = s, t.detach(), 0
    for level in range(levels):
        sides = (assignments(x, codebook[level], tau, metric, codebook[0]) for x in (rest, left))
        plain = plain + divergence(*sides) / levels
        left, rest = (x - codebook[level][path[:, level]] for x in (left, rest))
    torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-12)
    of_teacher, of_student = torch.autograd.grad(3 * ours, (t, s), allow_unused=True)
    assert of_teacher is None
    torch.testing.assert_close(of_student, torch.autograd.grad(3 * plain, s)[0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("num_codes", [5, 20, 60])  # of 40 vectors: with 60 the first level leaves nothing
def test_code_assignment_loss_of_a_level_counts_by_what_was_left_for_it(num_codes):
    torch.manual_seed(0)
    s, t = logits(40, 4, 0).float().requires_grad_(), logits(40, 4, 1).float()
    book = Codebook(num_codes, 4, num_levels=3, dead_threshold=0)
    book(t)
    book.eval()
    parts = [code_assignment_loss(s, t, book.codes[:n], 0.1, "euclidean", book(t).index[:, :n]) * n for n in (1, 2, 3)]
    first, two, three = parts
    (gradient,) = torch.autograd.grad(three, s)
    assert gradient.isfinite().all()
    assert 0 <= three - two < two - first + 1e-6 < first


@pytest.mark.parametrize("metric", CODE_METRICS)
def test_code_assignment_loss_is_zero_if_and_only_if_the_assignments_agree(metric):
    t, codebook = logits(6, 3, 0), logits(5, 3, 1)[None]
    assert abs(code_assignment_loss(t.clone(), t, codebook, 0.5, metric)) < 1e-12
    for row in range(6):
        other = t.clone()
        other[row] += 0.1 * logits(1, 3, 2)[0]
        assert code_assignment_loss(other, t, codebook, 0.5, metric) > 1e-6
    assert code_assignment_loss(t.roll(1, 0), t, codebook, 0.5, metric) > 0.1  # rows of other nodes


def test_code_assignment_loss_does_not_see_the_length_of_either_side_under_cosine():
    s, t, codebook = logits(6, 3, 0), logits(6, 3, 2), logits(5, 3, 1)[None]
    lengths = torch.arange(1.0, 7, dtype=s.dtype)[:, None]
    expected = code_assignment_loss(s, t, codebook, 0.3)
    for student, teacher in ((s * lengths, t), (s, t * lengths), (7 * s, 0.1 * t)):
        torch.testing.assert_close(code_assignment_loss(student, teacher, codebook, 0.3), expected, **EXACT)
    assert abs(code_assignment_loss(2 * s, t, codebook, 0.3, "euclidean") - expected) > 1e-3


def test_code_assignment_loss_keeps_no_score_where_rows_go_in_parts():
    """What autograd holds between forward and backward does not grow with the number of codes."""
    s, t, codebook = logits(50, 3, 0).requires_grad_(), logits(50, 3, 1), logits(400, 3, 2)[None]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        code_assignment_loss(s, t, codebook, 0.3, chunk=4000)
    assert max(kept, default=0) < 4000


# -- reconstruction ----------------------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 7), st.integers(2, 9), st.integers(1, 4), st.integers(0, 999), st.floats(1, 4), st.booleans())
def test_scaled_cosine_error_is_that_of_the_reconstruction(rows, features, width, seed, gamma, sparse):
    x = logits(rows, features, seed) * (torch.rand(rows, features, generator=Generator().manual_seed(seed)) < 0.4)
    x[seed % rows] = 0  # a row of zeros has cosine 0
    code, weight = logits(rows, width, seed + 1).requires_grad_(), logits(features, width, seed + 2).requires_grad_()
    bias = logits(1, features, seed + 3)[0].requires_grad_()
    v, length = code @ weight.T + bias, x.norm(dim=1)
    cosine = (x * v).sum(1) / (length.where(length > 0, 1) * v.norm(dim=1))
    plain = (1 - cosine).pow(gamma).mean()
    ours = scaled_cosine_error(CSR.from_dense(x) if sparse else x, code, weight, bias, gamma)
    torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-12)
    gradients = (torch.autograd.grad(3 * loss, (code, weight, bias)) for loss in (ours, plain))
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-10)


def test_scaled_cosine_error_is_finite_where_nothing_is_reconstructed():
    x, code = torch.eye(3), torch.zeros(3, 2, requires_grad=True)
    loss = scaled_cosine_error(x, code, torch.ones(3, 2), torch.zeros(3))
    loss.backward()
    assert loss == 1
    assert torch.isfinite(code.grad).all()


def linked(num_nodes: int, seed: int):
    """A random symmetric matrix of zeros and ones with every loop; its last node is linked to none but itself."""
    dense = torch.eye(num_nodes, dtype=torch.float64)
    edge_index = symmetric_edges(num_nodes, seed)
    dense[edge_index[0], edge_index[1]] = 1
    return dense


def scaled_gram(u):
    """The Gram matrix scaled to [0, 1], the extremes constant."""
    gram = u @ u.T
    low, high = gram.detach().min(), gram.detach().max()
    return (gram - low) / (high - low)


@quick
@given(st.integers(2, 9), st.integers(2, 5), st.integers(1, 4), st.integers(0, 999), st.booleans(), st.integers(1, 90))
def test_min_max_edge_loss_is_the_dense_one_in_chunks_of_any_size(num_nodes, codes, width, seed, known, chunk):
    """Nodes share codes; all are in use, or some."""
    book, dense = logits(codes, width, seed), linked(num_nodes, seed)
    index = torch.randint(codes, (num_nodes,), generator=Generator().manual_seed(seed))
    u = book[index].requires_grad_()
    gram = (u @ u.T).detach()
    assume(gram.max() - gram.min() > 1e-2 * gram.max())
    distinct = book[index.unique()] if known else None
    ours = min_max_edge_loss(u, CSR.from_dense(dense), distinct, chunk=chunk)
    plain = (dense - scaled_gram(u)).square().mean()
    torch.testing.assert_close(ours, plain, **EXACT)
    torch.testing.assert_close(*(torch.autograd.grad(3 * loss, u)[0] for loss in (ours, plain)), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("width", [1, 8, 64, 128])
def test_min_max_edge_loss_of_one_code_is_that_of_an_empty_graph(width, known, dtype):
    """All entries of the Gram matrix are equal, whatever rounding makes of them."""
    adjacency = CSR.from_dense(linked(20, 0).to(dtype))
    for seed in range(20):
        row = logits(1, width, seed).to(dtype)
        u = row.repeat(20, 1).requires_grad_()
        loss = min_max_edge_loss(u, adjacency, row if known else None)
        assert loss.item() == pytest.approx(adjacency.nnz / 400, rel=1e-6)
        assert not torch.autograd.grad(loss, u)[0].any()


def test_min_max_edge_loss_in_single_precision_is_that_in_double():
    """Among thousands of pairs large terms cancel."""
    dense, u = linked(600, 0), logits(600, 16, 0) + 3
    expected = (dense - scaled_gram(u)).square().mean()
    loss = min_max_edge_loss(u.float(), CSR.from_dense(dense.float()))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def keys(dense):
    row, col = dense.nonzero(as_tuple=True)
    return row * len(dense) + col


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("num_samples", [20, 2**18])
def test_sampled_edge_loss_estimates_the_dense_one_without_bias(num_samples, balanced):
    dense, u = linked(12, 0), logits(12, 3, 0, scale=0.7).requires_grad_()
    each = F.binary_cross_entropy_with_logits(u @ u.T, dense, reduction="none")
    expected = (each[dense == 1].mean() + each[dense == 0].mean()) / 2 if balanced else each.mean()
    torch.manual_seed(0)
    options = {"num_samples": num_samples, "balanced": balanced}
    draws = [sampled_edge_loss(u, keys(dense), **options) for _ in range(400)]
    losses = torch.stack(draws).detach()
    assert (losses.mean() - expected).abs() < 4 * losses.std() / 20
    gradients = torch.stack([torch.autograd.grad(loss, u)[0] for loss in draws])
    error = (gradients.mean(0) - torch.autograd.grad(expected, u)[0]).abs()
    assert (error < 5 * gradients.std(0) / 20).all()


@pytest.mark.parametrize("balanced", [False, True])
def test_sampled_edge_loss_takes_every_linked_pair_if_they_are_no_more_than_asked_for(balanced):
    """Two cliques in spaces of their own: whatever other pair is drawn, its score is 0."""
    clique = torch.arange(8) % 2
    dense = (clique[:, None] == clique).double()
    u = torch.zeros(8, 4, dtype=torch.float64)
    u[clique == 0, :2], u[clique == 1, 2:] = logits(4, 2, 0), logits(4, 2, 1)
    each = F.binary_cross_entropy_with_logits(u @ u.T, dense, reduction="none")
    expected = each.mean()  # half of all pairs are linked: both weights are the same
    for seed in range(3):
        torch.manual_seed(seed)
        loss = sampled_edge_loss(u, keys(dense), num_samples=32, balanced=balanced)
        torch.testing.assert_close(loss, expected, **EXACT)
    drawn = sampled_edge_loss(u, keys(dense), num_samples=31, balanced=balanced)
    assert abs(drawn - expected) > 1e-6


def test_sampled_edge_loss_where_all_pairs_are_linked_is_the_mean_over_them():
    u = logits(5, 3, 0)
    dense = torch.ones(5, 5, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(u @ u.T, dense)
    torch.testing.assert_close(sampled_edge_loss(u, keys(dense)), expected, **EXACT)
