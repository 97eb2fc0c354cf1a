"""Frequencies against dense formulas: Â as a float64 matrix, its eigenvectors from numpy, answers by hand."""

import itertools
import math
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from cases import blocks, shuffled
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from g2m import frequency
from g2m.errors import G2MError
from g2m.frequency import Indicators, components, indicators, spectral_ends, spectral_energy
from g2m.graph import Graph

quick = settings(max_examples=40)


def graph_of(num_nodes: int, edges: list, *, directed: bool = False, keep_loops: bool = False) -> Graph:
    arcs = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
    arcs = arcs if directed else torch.cat([arcs, arcs.flip(0)], 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "graph .* has no edges")
        return Graph(torch.ones(num_nodes, 1), arcs, torch.arange(num_nodes) % 2, num_classes=2, keep_loops=keep_loops)


@st.composite
def graphs(draw) -> Graph:
    """Few or no edges, so that nodes are isolated, and eigenvalues repeated; some loops of their own."""
    num_nodes = draw(st.integers(2, 14))
    ends = st.tuples(st.integers(0, num_nodes - 1), st.integers(0, num_nodes - 1))
    return graph_of(num_nodes, draw(st.lists(ends, max_size=20)), keep_loops=draw(st.booleans()))


def laplacian(graph: Graph) -> Tensor:
    """I − D^-½ (A + I) D^-½, written out."""
    adjacency = torch.eye(graph.num_nodes, dtype=torch.float64)
    for source, target in graph.edge_index.T.tolist():
        adjacency[target, source] = 1
    scale = adjacency.sum(1).sqrt()
    return torch.eye(graph.num_nodes).double() - adjacency / scale[:, None] / scale


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def dense_spectrum(signal: Tensor, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    value, vector = np.linalg.eigh(laplacian(graph).numpy())
    return value, ((vector.T @ signal.reshape(len(signal), -1).numpy()) ** 2).sum(1)


def pieces(copies: int, size: int) -> Graph:
    """Copies of one random tree: every eigenvalue is repeated as often."""
    generator = np.random.default_rng(0)
    tree = [(child, int(generator.integers(child))) for child in range(1, size)]
    return graph_of(copies * size, [(size * i + a, size * i + b) for i in range(copies) for a, b in tree])


# The corners of a cube: with loops every degree is 4, and a character of weight j has λ = j / 2.
CORNERS = list(itertools.product((0, 1), repeat=3))
CUBE = graph_of(8, [(i, i ^ bit) for i in range(8) for bit in (1, 2, 4)])


def character(weight: int) -> Tensor:
    return torch.tensor([(-1.0) ** sum(corner[:weight]) for corner in CORNERS], dtype=torch.float64)


# -- components --------------------------------------------------------------------------------------------------


@quick
@given(graphs(), st.sampled_from([(), (1,), (3,)]))
def test_components_equal_dense_and_add_up(graph, columns):
    signal, dense = noise(graph.num_nodes, *columns), laplacian(graph)
    low, high = components(signal, graph)
    assert low.shape == high.shape == signal.shape
    torch.testing.assert_close(low, signal - dense @ signal / 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(high, dense @ signal / 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(low + high, signal, rtol=1e-15, atol=1e-15)


@quick
@given(graphs())
def test_components_scale_eigenvectors(graph):
    value, vector = torch.linalg.eigh(laplacian(graph))
    low, high = components(vector, graph)
    torch.testing.assert_close(low, vector * (1 - value / 2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(high, vector * (value / 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight", range(4))
def test_components_by_hand(weight):
    signal = character(weight)
    low, high = components(signal, CUBE)
    torch.testing.assert_close(low, signal * (1 - weight / 4))
    torch.testing.assert_close(high, signal * (weight / 4))


def test_components_of_a_directed_graph_take_in_the_arcs_that_arrive():
    signal = torch.tensor([3.0, 1.0, 5.0])
    low, high = components(signal, graph_of(3, [(0, 1), (2, 1)], directed=True))
    mixed = (1 / 3) * 1 + (3 + 5) / math.sqrt(3)
    torch.testing.assert_close(low, torch.tensor([3.0, (1 + mixed) / 2, 5.0]))
    torch.testing.assert_close(high, torch.tensor([0.0, (1 - mixed) / 2, 0.0]))


def test_components_in_float32_are_those_of_float64_rounded():
    graph = blocks()
    for part, rounded in zip(components(graph.x.double(), graph), components(graph.x, graph), strict=True):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded.double(), part, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("graph", [CUBE, graph_of(4, [(0, 1)]), graph_of(3, [(0, 1), (2, 1)], directed=True)])
def test_components_are_differentiable(graph):
    signal = noise(graph.num_nodes, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda signal: components(signal, graph), signal)
    assert torch.autograd.gradcheck(lambda signal: components(signal, graph), signal[:, 0])


# -- both ends of the spectrum -----------------------------------------------------------------------------------


def assert_ends(signal: Tensor, graph: Graph, k: int) -> None:
    """Eigenvalues one by one; energies over every eigenspace that ``k`` does not cut."""
    value, energy = spectral_ends(signal, graph, k)
    dense, of_dense = dense_spectrum(signal, graph)
    size = min(2 * k, graph.num_nodes)
    kept = np.r_[: size - size // 2, graph.num_nodes - size // 2 : graph.num_nodes]
    assert value.dtype == energy.dtype == torch.float64
    np.testing.assert_allclose(value.numpy(), dense[kept], rtol=1e-8, atol=1e-10)
    for one in dense[kept]:
        there, here = np.abs(dense - one) < 1e-7, np.abs(value.numpy() - one) < 1e-7
        if there.sum() == here.sum():
            np.testing.assert_allclose(energy[here].sum(), of_dense[there].sum(), rtol=1e-6, atol=1e-8)


@quick
@given(graphs(), st.integers(1, 14), st.sampled_from([(), (2,)]))
def test_ends_equal_dense(graph, k, columns):
    assert_ends(noise(graph.num_nodes, *columns), graph, k)


@pytest.mark.parametrize("k", [1, 5, 29, 30, 100])
def test_ends_equal_dense_on_a_graph_without_repeats(k):
    graph = blocks(60)
    assert np.diff(dense_spectrum(graph.x.double(), graph)[0]).min() > 1e-6
    assert_ends(graph.x.double(), graph, k)


@pytest.mark.parametrize(("copies", "size", "k"), [(20, 20, 16), (20, 20, 20), (20, 20, 41), (8, 30, 16), (50, 3, 10)])
def test_ends_find_every_copy_of_a_repeated_eigenvalue(copies, size, k):
    graph = pieces(copies, size)
    assert_ends(noise(graph.num_nodes), graph, k)


@pytest.mark.parametrize("k", [4, 6, 10])
@pytest.mark.parametrize(
    "graph",
    [
        graph_of(
            40,
            [(4 * b + i, 4 * b + j) for b in range(10) for i in range(4) for j in range(i)]
            + [(4 * b, 4 * b + 4) for b in range(9)],
        ),
        graph_of(34, [(2 * i, 2 * i + 1) for i in range(5)] + [(10, 11), (11, 12), (12, 13)]),
    ],
    ids=["chain of cliques", "pairs, a path and isolated nodes"],
)
def test_ends_find_eigenvalues_of_one(graph, k):
    """Of Â they are 0, which ARPACK takes for nothing found."""
    assert (np.abs(dense_spectrum(noise(graph.num_nodes), graph)[0] - 1) < 1e-9).sum() >= 5
    assert_ends(noise(graph.num_nodes), graph, k)


@pytest.mark.parametrize("graph", [graph_of(20, list(itertools.combinations(range(20), 2))), graph_of(20, []), CUBE])
def test_ends_do_not_share_a_direction_and_come_out_the_same_again(graph):
    # All eigenvalues of a complete graph but one are equal, and so are all of isolated nodes.
    signal = noise(graph.num_nodes)
    value, energy = spectral_ends(signal, graph, k=3)
    np.testing.assert_allclose(value, dense_spectrum(signal, graph)[0][[0, 1, 2, -3, -2, -1]], atol=1e-10)
    identity = spectral_ends(torch.eye(graph.num_nodes), graph, k=3)
    torch.testing.assert_close(identity.energy, torch.ones(6, dtype=torch.float64))
    assert energy.sum() <= signal.square().sum()
    again = spectral_ends(signal, graph, k=3)
    assert torch.equal(value, again.eigenvalue)
    assert torch.equal(energy, again.energy)


def test_ends_keep_their_directions_apart():
    # A path of ten nodes and thirty without edges: λ = 0 fills the low end, and half of the high end. Orthonormal
    # directions catch no more than there is.
    graph = graph_of(40, [(i, i + 1) for i in range(9)])
    for seed in range(20):
        signal = noise(40, seed=seed)
        assert_ends(signal, graph, 19)
        assert spectral_ends(signal, graph, 19).energy.sum() <= signal.square().sum() * (1 + 1e-9)


def test_ends_that_cannot_be_told_apart_are_given_up(monkeypatch):
    """A long path has its eigenvalues close by; time is bounded, and the error says what else there is."""
    graph = graph_of(600, [(i, i + 1) for i in range(599)])
    monkeypatch.setattr(frequency, "RESTARTS", 5)
    with pytest.raises(G2MError, match=r"graph: expected eigenvalues .* 5 restarts .*k=2.*method='chebyshev'"):
        spectral_ends(noise(600), graph, 2)
    monkeypatch.undo()
    assert spectral_ends(noise(600), graph, 2).eigenvalue.numpy() == pytest.approx(
        dense_spectrum(noise(600), graph)[0][[0, 1, -2, -1]], abs=1e-9
    )


# -- the histogram -----------------------------------------------------------------------------------------------


@quick
@given(graphs(), st.sampled_from([1, 3, 7, 11]), st.sampled_from([(), (2,)]))
def test_exact_histogram_equals_dense(graph, bins, columns):
    signal = noise(graph.num_nodes, *columns)
    result = spectral_energy(signal, graph, bins=bins, method="exact")
    value, energy = dense_spectrum(signal, graph)
    expected = np.zeros(bins)
    for one, amount in zip(value, energy, strict=True):
        expected[int((max(one, 0) + 1e-10) * bins / 2)] += amount
    np.testing.assert_allclose(result.eigenvalue, [2 / bins * (i + 0.5) for i in range(bins)], rtol=1e-12)
    np.testing.assert_allclose(result.energy, expected, rtol=1e-9, atol=1e-12)
    assert result.eigenvalue.dtype == result.energy.dtype == torch.float64


@pytest.mark.parametrize("weight", range(4))
def test_a_bin_takes_in_its_lower_edge(weight):
    for seed in range(10):  # of the order of nodes, and so of rounding
        graph, order = shuffled(CUBE, seed)
        energy = spectral_energy(character(weight)[order], graph, bins=4, method="exact").energy
        torch.testing.assert_close(energy, 8 * torch.eye(4, dtype=torch.float64)[weight])


def test_a_bin_takes_in_a_lower_edge_that_is_no_decimal_fraction():
    # A square with loops: degrees are 3, and the alternating signal has λ = 1 + 1/3.
    square = graph_of(4, [(0, 1), (1, 2), (2, 3), (3, 0)])
    for seed in range(10):
        graph, order = shuffled(square, seed)
        signal = torch.tensor([1.0, -1.0, 1.0, -1.0])[order]
        energy = spectral_energy(signal, graph, bins=3, method="exact").energy
        torch.testing.assert_close(energy, torch.tensor([0.0, 0.0, 4.0]).double())


@quick
@given(graphs(), st.integers(1, 41), st.sampled_from([(), (3,)]))
def test_moments_equal_dense(graph, count, columns):
    signal, dense = noise(graph.num_nodes, *columns).reshape(graph.num_nodes, -1), laplacian(graph)
    shifted = dense - torch.eye(graph.num_nodes)
    series = [torch.eye(graph.num_nodes, dtype=torch.float64), shifted]
    while len(series) < count:
        series.append(2 * shifted @ series[-1] - series[-2])
    expected = [float((signal * (term @ signal)).sum()) for term in series[:count]]
    moments = frequency._moments(frequency._adjacency(graph), signal, count)
    np.testing.assert_allclose(moments, expected, rtol=1e-10, atol=1e-10 * expected[0])


def test_moments_take_one_product_for_two():
    calls = []

    class Counting:
        def __matmul__(self, dense):
            calls.append(1)
            return dense / 2

    frequency._moments(Counting(), noise(3, 1), 40)
    assert len(calls) == 20


@pytest.mark.parametrize("count", [1, 2, 9, 60])
def test_the_damped_series_is_integrated(count):
    # of moments of two points, against a sum over midpoints in θ
    points = np.array([0.3, -0.82])
    k = np.arange(count)
    moments = (np.array([2.0, 1.0]) * np.cos(k[:, None] * np.arccos(points))).sum(1)
    damped = frequency._jackson(count) * moments
    theta = (np.arange(140000) + 0.5) * np.pi / 140000
    density = (2 * np.polynomial.chebyshev.chebval(np.cos(theta), damped) - damped[0]) / 140000
    assert density.min() > -1e-12
    expected, edges = np.histogram(1 + np.cos(theta), 7, (0, 2), weights=density)
    np.testing.assert_allclose(frequency._integrate(moments, edges), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("terms", [1, 50, 10_000])
def test_the_series_is_integrated_in_parts_of_any_size(terms, monkeypatch):
    moments, edges = np.cos(np.arange(40)), np.linspace(0, 2, 12)
    whole = frequency._integrate(moments, edges)
    monkeypatch.setattr(frequency, "TERMS", terms)
    np.testing.assert_allclose(frequency._integrate(moments, edges), whole, rtol=1e-12, atol=1e-12)


def test_integrating_takes_memory_linear_in_bins_at_most():
    moments = np.cos(np.arange(8 * 2000))
    tracemalloc.start()
    frequency._integrate(moments, np.linspace(0, 2, 2001))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6  # a matrix of bins and moments has 256 MB


@quick
@given(graphs(), st.integers(1, 40), st.sampled_from([None, 1, 2, 31]), st.sampled_from([(), (3,)]))
def test_chebyshev_keeps_the_energy_and_its_sign(graph, bins, num_moments, columns):
    signal = noise(graph.num_nodes, *columns)
    value, energy = spectral_energy(signal, graph, bins=bins, method="chebyshev", num_moments=num_moments)
    assert value.shape == energy.shape == (bins,)
    assert (energy >= 0).all()
    np.testing.assert_allclose(energy.sum(), signal.square().sum(), rtol=1e-9)


def test_chebyshev_does_not_round_below_zero():
    # Bins so narrow, and so far from λ = 0, where the signal is, that all they would hold is rounding.
    energy = spectral_energy(character(0), CUBE, bins=100_000, method="chebyshev", num_moments=80).energy
    assert energy.min() == 0


def test_chebyshev_comes_near_exact_as_moments_grow():
    # The largest gap of the cumulative energies, as a share of all of it. No eigenvalue is on an edge of seven bins.
    graph = blocks(200)
    signal = noise(200, 3)
    exact = spectral_energy(signal, graph, bins=7, method="exact").energy.cumsum(0)
    gaps = []
    for num_moments in (50, 500, 5000):
        near = spectral_energy(signal, graph, bins=7, method="chebyshev", num_moments=num_moments).energy.cumsum(0)
        gaps.append(float((near - exact).abs().max() / exact[-1]))
    assert gaps[0] < 0.1
    assert gaps[1] < 0.01
    assert gaps[2] < 0.002
    assert gaps[2] < gaps[1] < gaps[0]


@pytest.mark.parametrize(("weight", "place"), [(0, 0), (1, 2), (2, 5), (3, 7)])
@pytest.mark.parametrize("method", ["exact", "chebyshev"])
def test_energy_of_an_eigenvector_is_at_its_eigenvalue(weight, place, method):
    # λ = 0, ½, 1, 1½, in bins a fifth wide; λ = 1 is on an edge, which the exact histogram gives to the bin above.
    value, energy = spectral_energy(character(weight), CUBE, bins=10, method=method, num_moments=400)
    assert abs(value[place] - weight / 2) < 0.11
    around = energy[place - 1 : place + 1] if weight == 2 else energy[place]
    assert around.sum() > 8 * 0.999


def test_more_moments_than_by_default_are_sharper():
    def at_its_place(**options) -> float:
        return float(spectral_energy(character(3), CUBE, bins=10, method="chebyshev", **options).energy[7])

    assert at_its_place(num_moments=20) < at_its_place() < at_its_place(num_moments=400)
    assert at_its_place() == at_its_place(num_moments=80)


@pytest.mark.parametrize("method", ["exact", "chebyshev"])
def test_energy_does_not_depend_on_the_order_of_nodes(method):
    graph = blocks()
    other, order = shuffled(graph)
    energy = spectral_energy(graph.x, graph, method=method).energy
    torch.testing.assert_close(spectral_energy(graph.x[order], other, method=method).energy, energy)
    torch.testing.assert_close(spectral_ends(graph.x[order], other), spectral_ends(graph.x, graph))


@pytest.mark.parametrize("method", ["exact", "chebyshev"])
@pytest.mark.parametrize("columns", [1, 3, 64])
def test_energies_of_columns_add_up(method, columns, monkeypatch):
    monkeypatch.setattr(frequency, "COLUMNS", columns)
    graph = blocks()
    whole = spectral_energy(graph.x, graph, method=method).energy
    apart = sum(spectral_energy(column, graph, method=method).energy for column in graph.x.T)
    torch.testing.assert_close(whole, apart, rtol=1e-9, atol=1e-9)


def test_auto_is_exact_on_small_graphs_and_chebyshev_on_large(monkeypatch):
    graph = blocks()
    exact, chebyshev = (spectral_energy(graph.x, graph, method=method).energy for method in ("exact", "chebyshev"))
    assert not torch.allclose(exact, chebyshev, rtol=1e-2)
    monkeypatch.setattr(frequency, "EXACT_NODES", graph.num_nodes)
    assert torch.equal(spectral_energy(graph.x, graph).energy, exact)
    monkeypatch.setattr(frequency, "EXACT_NODES", graph.num_nodes - 1)
    assert torch.equal(spectral_energy(graph.x, graph).energy, chebyshev)


def test_signals_that_need_gradients_are_measured_without():
    signal = character(3).requires_grad_()
    for result in (spectral_ends(signal, CUBE, 2), spectral_energy(signal, CUBE, method="chebyshev")):
        assert not result.energy.requires_grad


# -- indicators --------------------------------------------------------------------------------------------------

# Probabilities of a path of four nodes; their logarithms are logits.
STUDENT = torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.8, 0.2], [0.2, 0.8]]).double().log()
TEACHER = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.9, 0.1]]).double().log()
ARCS = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])


def test_indicators_by_hand():
    similarity = (0.5 / math.sqrt(0.5 * 0.68) + 1 + 0.32 / 0.68) / 3
    result = indicators(STUDENT, TEACHER, ARCS)
    assert result == pytest.approx((similarity, math.sqrt(2) * (0.3 + 0 + 0.6) / 3, math.sqrt(2) * (0.3 + 0.2) / 3))
    assert all(type(value) is float for value in result)


def test_indicators_of_the_teacher_itself_have_no_gap():
    similarity = (1 + 1 + 0.5 / math.sqrt(0.5 * 0.82)) / 3
    assert indicators(TEACHER, TEACHER, ARCS) == pytest.approx((similarity, math.sqrt(2) * 0.4 / 3, 0))


def test_indicators_weigh_every_arc_once():
    assert indicators(STUDENT, TEACHER, ARCS[:, [4, 4, 2]]) == pytest.approx(
        ((2 * 0.32 / 0.68 + 1) / 3, 2 * math.sqrt(2) * 0.6 / 3, 2 * math.sqrt(2) * 0.2 / 3)
    )


def test_indicators_leave_out_loops():
    loops = torch.tensor([[0, 3], [0, 3]])
    assert indicators(STUDENT, TEACHER, torch.cat([ARCS, loops], 1)) == indicators(STUDENT, TEACHER, ARCS)
    assert indicators(STUDENT, TEACHER, loops) == Indicators(1.0, 0.0, 0.0)


@pytest.mark.parametrize("chunk", [1, 4, 6])
def test_indicators_in_chunks_are_the_same(chunk, monkeypatch):
    whole = tuple(indicators(STUDENT, TEACHER, ARCS))
    monkeypatch.setattr(frequency, "ARCS", chunk)
    assert indicators(STUDENT, TEACHER, ARCS) == pytest.approx(whole, rel=1e-12)


@quick
@given(graphs(), st.integers(0, 100))
def test_indicators_do_not_see_a_constant_on_a_node(graph, seed):
    student, teacher = noise(graph.num_nodes, 4, seed=seed), noise(graph.num_nodes, 4, seed=seed + 1)
    result = indicators(student, teacher, graph.edge_index)
    expected = tuple(result)  # approx cannot show a NamedTuple
    offset = 100 * noise(graph.num_nodes, 1, seed=seed + 2)
    assert indicators(student + offset, teacher - offset, graph.edge_index) == pytest.approx(expected, abs=1e-9)
    assert indicators(student.float(), teacher.float(), graph.edge_index) == pytest.approx(expected, abs=1e-5)
    assert 0 < result.similarity <= 1 + 1e-12
    assert 0 <= result.distance <= math.sqrt(2)
    assert 0 <= result.distance_gap <= math.sqrt(2)


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [components, spectral_ends, spectral_energy])
@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (torch.ones(7), r"signal: expected one row per node of graph 'graph', shape \[8\].*got \(7,\)"),
        (torch.ones(8, 2, 2), r"signal: .*got \(8, 2, 2\)"),
        (torch.ones(8, 0), r"signal: .*got \(8, 0\)"),
        (torch.tensor(1.0), r"signal: .*got \(\)"),
        (torch.ones(8).long(), r"signal: expected a tensor of float32 or float64 \(got torch.int64\)"),
        (np.ones(8), r"signal: .*got ndarray"),
    ],
)
def test_signal_is_checked(measure, signal, message):
    with pytest.raises(G2MError, match=message):
        measure(signal, CUBE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 0}, r"bins: expected a whole number from 1 \(got 0\)"),
        ({"bins": 2.5}, "bins"),
        ({"num_moments": 0}, r"num_moments: expected a whole number from 1 \(got 0\)"),
        ({"method": "chebychev"}, r"method: .*Did you mean 'chebyshev'"),
    ],
)
def test_options_of_the_histogram_are_checked(options, message):
    with pytest.raises(G2MError, match=message):
        spectral_energy(torch.ones(8), CUBE, **options)


@pytest.mark.parametrize("k", [0, -1, 1.5, True])
def test_k_is_checked(k):
    with pytest.raises(G2MError, match="k: expected a whole number from 1"):
        spectral_ends(torch.ones(8), CUBE, k)


@pytest.mark.parametrize("measure", [spectral_ends, spectral_energy])
def test_directed_graphs_have_no_spectrum(measure):
    graph = graph_of(4, [(0, 1), (1, 0), (2, 1), (2, 3), (3, 2)], directed=True)
    with pytest.raises(G2MError, match=r"graph: expected every arc with its reverse.*got \[2, 1\] without it"):
        measure(torch.ones(4), graph)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((STUDENT[:, 0], TEACHER, ARCS), r"student_logits: .*got torch.float64 \(4,\)"),
        ((STUDENT, TEACHER.long(), ARCS), r"teacher_logits: .*got torch.int64"),
        ((STUDENT, TEACHER.numpy(), ARCS), r"teacher_logits: .*got ndarray"),
        ((STUDENT, TEACHER[:3], ARCS), r"teacher_logits: expected the shape of student_logits, \(4, 2\)"),
        ((STUDENT, TEACHER, ARCS.T), r"edge_index: expected shape \[2, E\] \(got \(6, 2\)\)"),
        ((STUDENT, TEACHER, ARCS.float()), r"edge_index: .*got torch.float32"),
        ((STUDENT, TEACHER, ARCS + 1), r"edge_index: expected node ids in \[0, 3\].*got \[3, 4\] in column 4"),
        ((STUDENT, TEACHER, ARCS - 1), r"edge_index: .*got \[-1, 0\] in column 0"),
    ],
)
def test_arguments_of_indicators_are_checked(arguments, message):
    with pytest.raises(G2MError, match=message):
        indicators(*arguments)
