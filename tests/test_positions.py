"""Positions against what they are made of: walks by their arcs, pairs by counting, gradients by autograd, means by
dense sums; and against what they are for: nodes of a block lie together."""

import math
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import blocks, shuffled, thin
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.linear_model import LogisticRegression
from torch import Generator, Tensor
from torch.nn import functional as F

import g2m
from g2m import positions
from g2m.errors import G2MError
from g2m.graph import Graph
from g2m.positions import arcs_to, deepwalk, neighbour_arcs, of_arcs

quick = settings(max_examples=40)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def random_walks(
    edge_index: Tensor, num_nodes: int, *, walk_length: int = 50, num_walks: int = 1, generator: Generator
) -> Tensor:
    """Walks from every node, so many times: row ``r * N + i`` starts at node i."""
    start = torch.arange(num_nodes).repeat(num_walks)
    return positions._walk(positions._arcs(edge_index, num_nodes), start, walk_length, generator)


def of_neighbours(position: Tensor, known: Tensor, graph: Graph, *, own: bool = True) -> Tensor:
    return of_arcs(position, known, neighbour_arcs(graph, known, own=own), graph.num_nodes)


def graph_of(num_nodes: int, edges: list, *, directed: bool = False) -> Graph:
    arcs = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
    arcs = arcs if directed else torch.cat([arcs, arcs.flip(0)], 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "graph .* has no edges")
        return Graph(torch.ones(num_nodes, 1), arcs, torch.arange(num_nodes) % 2, num_classes=2)


@st.composite
def arcs(draw) -> tuple[int, Tensor]:
    """Few or none, both ways or one, with loops and repeats: nodes without neighbours, nodes without a way out."""
    num_nodes = draw(st.integers(1, 9))
    ends = st.tuples(st.integers(0, num_nodes - 1), st.integers(0, num_nodes - 1))
    edges = torch.tensor(draw(st.lists(ends, max_size=20)), dtype=torch.long).reshape(-1, 2).T
    return num_nodes, edges if draw(st.booleans()) else torch.cat([edges, edges.flip(0)], 1)


def transitions(num_nodes: int, edge_index: Tensor) -> Tensor:
    """The chances of a step, a row per node; the row of a node without a way out is zero."""
    there = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
    there[edge_index[0], edge_index[1]] = 1
    there.fill_diagonal_(0)
    return there / there.sum(1, keepdim=True).clamp(min=1)


def accuracy(position: Tensor, graph: Graph) -> float:
    train, test = graph.part("train"), graph.part("test")
    model = LogisticRegression(C=0.1, max_iter=1000).fit(position[train], graph.y[train])
    return model.score(position[test], graph.y[test])


# -- walks -------------------------------------------------------------------------------------------------------


@quick
@given(arcs(), st.integers(1, 8), st.integers(1, 3))
def test_walks_follow_arcs_and_stay_where_there_are_none(arcs, walk_length, num_walks):
    num_nodes, edge_index = arcs
    walks = random_walks(edge_index, num_nodes, walk_length=walk_length, num_walks=num_walks, generator=seeded())
    assert walks.shape == (num_walks * num_nodes, walk_length)
    assert torch.equal(walks[:, 0], torch.arange(num_nodes).repeat(num_walks))
    chance = transitions(num_nodes, edge_index)
    here, there = walks[:, :-1].flatten(), walks[:, 1:].flatten()
    stuck = chance[here].sum(1) == 0
    assert torch.equal(here[stuck], there[stuck])
    assert (chance[here, there][~stuck] > 0).all()


@pytest.mark.parametrize("graph", [blocks(), thin(), thin(directed=True)])
def test_next_steps_are_uniform_over_neighbours(graph):
    walks = random_walks(graph.edge_index, graph.num_nodes, walk_length=11, num_walks=300, generator=seeded())
    steps = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    steps.index_put_((walks[:, :-1].flatten(), walks[:, 1:].flatten()), torch.ones(()).double(), accumulate=True)
    chance = transitions(graph.num_nodes, graph.edge_index)
    statistic, freedom = 0.0, 0
    for found, expected in zip(steps, chance, strict=True):
        if (expected > 0).sum() > 1:
            one = chisquare(found[expected > 0].numpy(), (expected * found.sum())[expected > 0].numpy())
            assert one.pvalue > 1e-5
            statistic, freedom = statistic + one.statistic, freedom + int((expected > 0).sum()) - 1
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_visits_of_long_walks_are_proportional_to_degree():
    graph = blocks()
    walks = random_walks(graph.edge_index, graph.num_nodes, walk_length=2000, num_walks=5, generator=seeded())
    degree = torch.bincount(graph.edge_index[0], minlength=graph.num_nodes)
    share = torch.bincount(walks[:, 20:].flatten(), minlength=graph.num_nodes) / walks[:, 20:].numel()
    np.testing.assert_allclose(share, degree / degree.sum(), rtol=0.05)


def test_loops_and_repeats_of_arcs_do_not_count():
    graph = thin()
    loops = torch.arange(graph.num_nodes).expand(2, -1)
    more = torch.cat([graph.edge_index.flip(1), loops, graph.edge_index[:, :9]], 1)
    first, other = (random_walks(edges, 60, generator=seeded()) for edges in (graph.edge_index, more.int()))
    assert torch.equal(first, other)


@quick
@given(arcs(), st.integers(1, 6))
def test_expected_visits_equal_dense(arcs, walk_length):
    num_nodes, edge_index = arcs
    chance = transitions(num_nodes, edge_index)
    mass = (chance.sum(1) > 0).double()
    expected = mass.clone()
    for _ in range(walk_length - 1):
        mass = mass @ chance
        expected += mass
    visits = positions._visits(positions._arcs(edge_index, num_nodes), walk_length)
    torch.testing.assert_close(visits, expected, rtol=1e-12, atol=0)


# -- pairs and steps ---------------------------------------------------------------------------------------------


@quick
@given(arcs(), st.integers(2, 23), st.integers(1, 25), st.sampled_from([1, 2, 5, 50]))
def test_pairs_are_those_within_the_window_before_a_walk_stays(arcs, walk_length, window, piece):
    num_nodes, edge_index = arcs
    walks = random_walks(edge_index, num_nodes, walk_length=walk_length, generator=seeded())
    expected = Counter()
    for walk in walks.tolist():
        walked = 1
        while walked < len(walk) and walk[walked] != walk[walked - 1]:
            walked += 1
        for i in range(walked):
            for j in range(max(0, i - window), min(walked, i + window + 1)):
                expected[walk[i], walk[j]] += i != j
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positions, "PIECE", piece)
        pieces, pairs = positions._pairs(walks, window)
    row, i, j = pairs.nonzero(as_tuple=True)
    found = Counter(zip(pieces[row, i].tolist(), pieces[row, j].tolist(), strict=True))
    assert found == +expected
    assert set(pairs.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("negatives", [1, 5])
def test_gradients_equal_autograd(negatives):
    rows, steps, channels, drawn = 3, 6, 4, 5
    centre, context = (noise(rows, steps, channels, seed=seed).requires_grad_() for seed in (0, 1))
    others = noise(steps, drawn, channels, seed=2).requires_grad_()
    pairs = (noise(rows, steps, steps, seed=3) > 0).double()
    score = torch.zeros(())
    for r, i, j in pairs.nonzero().tolist():
        score = score + F.logsigmoid(centre[r, i] @ context[r, j])
        score = score + negatives * F.logsigmoid(-(others[i] @ centre[r, i])).mean()
    expected = torch.autograd.grad(score, (centre, context, others))
    found = positions._gradients(centre.detach(), context.detach(), others.detach(), pairs, negatives)
    torch.testing.assert_close(found, expected)


def test_a_step_is_adagrad_with_one_rate_per_row():
    table, squares, gradient = noise(5, 3), noise(5).square(), noise(6, 3, seed=1)
    nodes = torch.tensor([4, 0, 4, 2, 0, 4])
    total = torch.zeros(5, 3, dtype=torch.float64).index_add(0, nodes, gradient)
    after = squares + total.square().mean(1)
    expected = table + 0.3 * total / after.sqrt()[:, None]
    positions._ascend(table, squares, nodes, gradient, 0.3)
    torch.testing.assert_close(table, expected)
    torch.testing.assert_close(squares, after)


def test_a_step_without_a_gradient_changes_nothing():
    table, squares = noise(3, 2), torch.zeros(3, dtype=torch.float64)
    before = table.clone()
    positions._ascend(table, squares, torch.tensor([0, 2]), torch.zeros(2, 2).double(), 0.1)
    assert torch.equal(table, before)
    assert squares.sum() == 0


def test_negatives_are_drawn_from_visits_to_the_power_of_three_quarters(monkeypatch):
    graph, drawn, table = thin(), [], F.embedding

    def spy(nodes, rows):
        if nodes.size(-1) == positions.NOISE:  # [T, K], where walks are [R, T]
            drawn.append(nodes.flatten())
        return table(nodes, rows)

    monkeypatch.setattr(positions.F, "embedding", spy)
    deepwalk(graph, channels=2, walk_length=9, num_walks=3)
    monkeypatch.undo()
    walks = random_walks(graph.edge_index, 60, walk_length=9, num_walks=3000, generator=seeded())
    chance = torch.bincount(walks[walks[:, 0] != walks[:, 1]].flatten(), minlength=60).double().pow(0.75)
    found = torch.bincount(torch.cat(drawn), minlength=60)
    assert not found[chance == 0].any()
    expected = chance * found.sum() / chance.sum()
    assert chisquare(found[chance > 0].numpy(), expected[chance > 0].numpy()).pvalue > 1e-4


def test_skip_gram_comes_to_shifted_mutual_information():
    """With as many channels as nodes, u·v is log(pairs / pairs expected of noise) (Levy and Goldberg, 2014)."""
    graph = blocks(12)
    walks = random_walks(graph.edge_index, 12, walk_length=20, num_walks=2000, generator=seeded())
    pieces, pairs = positions._pairs(walks, 2)
    row, i, j = pairs.nonzero(as_tuple=True)
    count = torch.bincount(12 * pieces[row, i] + pieces[row, j], minlength=144).reshape(12, 12).double()
    walked = positions._arcs(graph.edge_index, 12)
    chance = positions._visits(walked, 20).pow(0.75)
    expected = (count / count.sum(1, keepdim=True)).log() - (3 * chance / chance.sum()).log()
    centre, context = positions._skip_gram(walked, 12, 20, 60, 2, 3, 0.1, seeded())
    found = (centre @ context.T).double()
    assert (count > 100).sum() > 40
    assert np.corrcoef(found[count > 100], expected[count > 100])[0, 1] > 0.9
    assert (found - expected)[count > 100].abs().mean() < 0.15


# -- DeepWalk ----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_others():
    graph = blocks()
    first, again, other = (deepwalk(graph, channels=8, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (36, 8)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).all(0).any()


def test_the_random_state_of_the_caller_is_left_alone():
    torch.manual_seed(3)
    before, of_numpy = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    first = deepwalk(blocks(), channels=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], of_numpy)  # noqa: NPY002
    torch.manual_seed(4)
    assert torch.equal(deepwalk(blocks(), channels=4), first)


def test_features_labels_and_split_are_not_read():
    graph = blocks()
    other = replace(graph, x=-graph.x, y=(graph.y + 1) % 3, split={})
    assert torch.equal(deepwalk(graph, channels=4), deepwalk(other, channels=4))


@pytest.mark.parametrize("graph", [thin(), thin(directed=True)])
def test_columns_are_standardised_over_nodes_with_neighbours(graph):
    raw, position = (deepwalk(graph, channels=6, standardise=standardise) for standardise in (False, True))
    inside = torch.zeros(graph.num_nodes, dtype=torch.bool)
    inside[graph.edge_index.flatten()] = True
    for rows in (raw, position):
        assert torch.isfinite(rows).all()
        assert rows[inside].any(1).all()
        assert not rows[~inside].any()
    kept = raw[inside].double()
    expected = (kept - kept.mean(0)) / kept.std(0, correction=0)
    torch.testing.assert_close(position[inside].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("standardise", [True, False])
def test_a_graph_without_edges_has_no_positions(standardise):
    assert torch.equal(deepwalk(graph_of(5, []), channels=3, standardise=standardise), torch.zeros(5, 3))


@pytest.mark.parametrize("edges", [[(0, 1)], [(0, 1), (1, 2), (2, 0)], [(0, 1), (2, 1)]])
def test_small_directed_graphs_have_positions(edges):
    position = deepwalk(graph_of(4, edges, directed=True), channels=3, walk_length=2, window=9)
    assert torch.isfinite(position).all()
    assert not position[3].any()
    assert position[[0, 1]].any(1).all()


@pytest.mark.parametrize("options", [{}, {"walk_length": 130}, {"window": 2}, {"num_walks": 3}, {"epochs": 3}])
def test_blocks_are_told_apart_under_any_order_of_nodes(options):
    graph = blocks(240, num_classes=4)
    other, _ = shuffled(graph)
    for one in (graph, other):
        position = deepwalk(one, channels=16, **options)
        assert torch.isfinite(position).all()
        assert accuracy(position, one) > 0.85


def test_nodes_of_two_components_lie_apart():
    clique = [(i, j) for i in range(20) for j in range(i)]
    graph = graph_of(40, clique + [(20 + i, 20 + j) for i, j in clique])
    direction = F.normalize(deepwalk(graph, channels=16, num_walks=5))
    cosine = direction @ direction.T
    assert cosine[:20, :20].mean() > 0.5
    assert cosine[20:, 20:].mean() > 0.5
    assert cosine[:20, 20:].mean() < -0.5


def test_walks_are_held_a_chunk_at_a_time(monkeypatch):
    held, walk = [], positions._walk

    def spy(arcs, start, walk_length, generator):
        held.append(start)
        return walk(arcs, start, walk_length, generator)

    monkeypatch.setattr(positions, "_walk", spy)
    monkeypatch.setattr(positions, "CHUNK", 500)
    deepwalk(thin(num_nodes=120), channels=4, walk_length=20, num_walks=2, epochs=3)
    degree = torch.bincount(thin(num_nodes=120).edge_index[0], minlength=120)
    assert max(map(len, held)) * 20 <= 500
    assert torch.equal(torch.bincount(torch.cat(held), minlength=120), 6 * (degree > 0))


def test_positions_tell_classes_of_cora(data_root):
    graph = g2m.load("cora-cpf", root=data_root, seed=0)
    assert accuracy(deepwalk(graph), graph) > 0.65


# -- nodes that came later ---------------------------------------------------------------------------------------


def dense_means(position: Tensor, known: Tensor, graph: Graph, *, own: bool = True) -> Tensor:
    """Node by node, arc by arc."""
    row = {node: position[i] for i, node in enumerate(known.tolist())}
    ids, result = graph.node_id.tolist(), []
    for place, node in enumerate(ids):
        of = [row[ids[s]] for s, t in graph.edge_index.T.tolist() if s != t == place and ids[s] in row]
        result.append(row[node] if own and node in row else sum(of) / len(of) if of else torch.zeros(position.size(1)))
    return torch.stack(result).to(position.dtype)


@quick
@given(arcs(), st.integers(0, 2**32), st.sampled_from([torch.float32, torch.float64]), st.sampled_from([1, 3, 64]))
def test_means_equal_dense(arcs, seed, dtype, columns):
    """Ids of the nodes have gaps, and some of the known are not in the graph."""
    num_nodes, edge_index = arcs
    generator = seeded(seed)
    node_id = torch.randperm(2 * num_nodes, generator=generator)[:num_nodes].sort().values
    known = (torch.rand(2 * num_nodes, generator=generator) < 0.5).nonzero().squeeze(1)
    position = noise(len(known), columns, seed=seed).to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "graph .* has no edges")
        graph = replace(graph_of(num_nodes, [], directed=True), node_id=node_id, edge_index=edge_index, keep_loops=True)
    found = of_neighbours(position, known, graph)
    assert found.dtype == dtype
    torch.testing.assert_close(found, dense_means(position, known, graph))
    is_known = torch.isin(node_id, known)
    assert torch.equal(found[is_known], position[torch.searchsorted(known, node_id[is_known])])
    every = of_neighbours(position, known, graph, own=False)
    torch.testing.assert_close(every, dense_means(position, known, graph, own=False))
    assert torch.equal(every[~is_known], found[~is_known])


def test_means_are_linear_and_differentiable():
    graph = blocks(unseen=True)
    known = graph.observed().node_id
    position = noise(len(known), 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda position: of_neighbours(position, known, graph), position)


def test_only_what_unseen_nodes_share_with_known_ones_counts():
    graph = blocks(120, num_classes=4, unseen=True)
    observed, unseen = graph.observed(), graph.part("unseen")
    position = deepwalk(observed, channels=8)
    expected = of_neighbours(position, observed.node_id, graph)
    is_unseen = torch.zeros(120, dtype=torch.bool)
    is_unseen[unseen] = True
    inner = is_unseen[graph.edge_index].all(0)
    assert inner.any()
    every = torch.cartesian_prod(unseen, unseen).T
    x = graph.x.clone()
    x[unseen] = -7
    for edge_index in (graph.edge_index[:, ~inner], torch.cat([graph.edge_index, every], 1)):
        other = replace(graph, x=x, edge_index=edge_index, y=torch.where(is_unseen, 0, graph.y))
        assert torch.equal(deepwalk(other.observed(), channels=8), position)
        assert torch.equal(of_neighbours(position, observed.node_id, other), expected)
    assert torch.equal(expected[observed.node_id], position)
    assert accuracy(expected, replace(graph, split={"train": graph.part("seen"), "test": unseen})) > 0.9


def test_a_node_that_knows_nobody_is_at_zero():
    graph = graph_of(5, [(0, 1), (2, 3)])
    found = of_neighbours(torch.tensor([[2.0, 4.0]]), torch.tensor([0]), graph)
    assert found.tolist() == [[2, 4], [2, 4], [0, 0], [0, 0], [0, 0]]
    assert torch.equal(of_neighbours(torch.empty(0, 2), torch.empty(0, dtype=torch.long), graph), torch.zeros(5, 2))
    assert of_arcs(torch.ones(1, 2), torch.tensor([0]), torch.empty(2, 0, dtype=torch.long), 0).shape == (0, 2)


def test_a_node_takes_in_the_arcs_that_arrive():
    graph = graph_of(3, [(0, 1), (2, 0)], directed=True)
    found = of_neighbours(torch.tensor([[3.0]]), torch.tensor([0]), graph)
    assert found.tolist() == [[3], [3], [0]]


def test_arcs_say_whose_rows_a_node_reads():
    """Of 0 – 1 – 2 – 3, 0 and 2 are known: 0 keeps its row, or reads none where 1 has none."""
    graph = graph_of(4, [(0, 1), (1, 2), (2, 3)])
    known = torch.tensor([0, 2])

    def read(own):
        return {tuple(arc) for arc in neighbour_arcs(graph, known, own=own).T.tolist()}

    assert read(own=True) == {(0, 0), (2, 2), (0, 1), (2, 1), (2, 3)}
    assert read(own=False) == {(1, 0), (0, 1), (2, 1), (1, 2), (3, 2), (2, 3)}


@quick
@given(arcs(), st.lists(st.integers(1, 5), min_size=1, max_size=9), st.integers(0, 2**32))
def test_arcs_may_be_taken_some_rows_at_a_time(arcs, sizes, seed):
    _, edge_index = arcs
    num_rows = sum(sizes)
    edge_index = torch.stack([edge_index[0], edge_index[1] % num_rows])
    edge_index = edge_index[:, edge_index[1].argsort()]
    known = torch.arange(40)
    position = noise(40, 2, seed=seed)
    parts, start = [], 0
    for size in sizes:
        parts.append(of_arcs(position, known, arcs_to(edge_index, start, start + size), size))
        start += size
    torch.testing.assert_close(torch.cat(parts), of_arcs(position, known, edge_index, num_rows))


# -- checks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, r"channels: expected a whole number from 1 \(got 0\)"),
        ({"walk_length": 1}, r"walk_length: expected a whole number from 2 \(got 1\)"),
        ({"num_walks": 0}, "num_walks"),
        ({"window": 2.5}, "window"),
        ({"epochs": True}, "epochs"),
        ({"negatives": 0}, "negatives"),
        ({"lr": 0}, r"lr: expected a number in \(0, inf\] \(got 0\)"),
        ({"lr": float("nan")}, "lr"),
        ({"seed": -1}, r"seed: expected a whole number from 0 \(got -1\)"),
    ],
)
def test_options_of_deepwalk_are_checked(options, message):
    with pytest.raises(G2MError, match=message):
        deepwalk(graph_of(3, [(0, 1)]), **options)
