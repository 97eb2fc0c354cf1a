"""Baselines against brute force: histograms of trees kept as tuples, and greedy choices by their definitions."""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from graph_cases import random_graphs as some_graphs

import g2m
from g2m.condense import baselines
from g2m.condense.baselines import doscond, herding, kcenter, random_graphs
from g2m.condense.trees import RowKeys
from g2m.errors import G2MError
from g2m.graph_classifier import GraphClassifier
from g2m.graphs import Graphs

METHODS = [random_graphs, herding, kcenter, doscond]
PICKING = METHODS[:3]


@cache
def atlas() -> Graphs:
    graphs = g2m.load("atlas")
    return graphs.subset(graphs.part("train"))


@cache
def molecules(seed: int = 0) -> Graphs:
    """Classes of 90, 45 and 15 undirected graphs, with one-hot attributes that tell the classes apart in part."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor([0] * 90 + [1] * 45 + [2] * 15)[torch.randperm(150, generator=generator)]
    sizes = torch.randint(3, 12, (150,), generator=generator)
    graphs = some_graphs(sizes.tolist(), seed, x="none", edges="none", directed=False)
    colour = (torch.rand(graphs.num_nodes, generator=generator) * (3 + y[graphs.batch])).long()
    edge_index = graphs.edge_index.unique(dim=1)
    return replace(graphs, y=y, num_classes=3, x=torch.eye(5)[colour], edge_index=edge_index)


@pytest.fixture(autouse=True)
def _few_measurements(monkeypatch):
    monkeypatch.setattr(baselines, "_MEASURED", 2)


def made(method, graphs, budget, **options):
    short = {"steps": 2, "batch_size": 16} if method is doscond else {}
    return method(graphs, **({"num_hops": 2, "seed": 0, "budget": budget} | short | options))


def same(one, other) -> bool:
    return one.arrays.keys() == other.arrays.keys() and all(
        np.array_equal(one.arrays[name], other.arrays[name], equal_nan=True) for name in one.arrays
    )


# -- what a set is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [150, 1000, 3000])
@pytest.mark.parametrize("graphs", [atlas, molecules])
def test_the_budget_is_met_and_used(method, budget, graphs):
    found = made(method, graphs(), budget)
    assert 0.75 * budget <= found.nbytes().raw <= budget
    assert (found.weight == 1).all()
    assert found.y.tolist() == found.content.y.tolist()
    assert len(found.weight) == len(found.y) == len(found)
    assert found.content.split == {}


@pytest.mark.parametrize("method", PICKING)
def test_no_graph_more_would_fit(method):
    found = made(method, molecules(), 1500)
    size = found.nbytes().raw
    assert same(made(method, molecules(), size), found)
    fewer = made(method, molecules(), size - 1)
    assert fewer.content.graph_id.tolist() == found.content.graph_id.tolist()[: len(fewer)]
    assert len(fewer) < len(found)


@pytest.mark.parametrize("method", PICKING)
def test_all_graphs_are_taken_if_they_fit(method):
    found = made(method, molecules(), 10**6)
    assert sorted(found.content.graph_id.tolist()) == list(range(150))


@pytest.mark.parametrize("method", METHODS)
def test_classes_come_in_proportion_and_none_is_left_out(method):
    graphs = molecules()
    for budget in (150, 500, 2000):
        y = made(method, graphs, budget).y
        assert sorted(y[:3].tolist()) == [0, 1, 2]
        for end in range(3, len(y) + 1):
            share = torch.bincount(graphs.y) / len(graphs) * end
            counts = torch.bincount(y[:end], minlength=3)
            assert (counts >= 1).all()
            # Within one of its share, but for the graph that each class has from the start.
            assert ((counts - share).abs() < 1).all() or end < 10


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_set_and_leaves_the_callers_streams_alone(method):
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = made(method, molecules(), 1000, seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    torch.manual_seed(8)
    again = made(method, molecules(), 1000, seed=3)
    assert same(again, first)
    assert again.meta == first.meta
    assert same(made(method, molecules(), 1000, seed=4), first) == (method in (herding, kcenter))


def test_graphs_that_leave_no_room_for_one_of_each_class_are_passed_over():
    for budget in range(20, 60, 7):
        for method in PICKING:
            found = made(method, molecules(), budget)
            assert found.nbytes().raw <= budget
            assert found.y.unique().tolist() == [0, 1, 2]


def test_sets_train_a_classifier():
    graphs = g2m.load("atlas")
    for method in METHODS:
        found = replace(made(method, atlas(), 1500), meta={"fingerprint": graphs.fingerprint()})
        classifier = GraphClassifier(batch_size="all", hidden_channels=32, lr=1e-2, max_epochs=15, device="cpu").fit(
            graphs, found
        )
        assert classifier.evaluate(graphs, "rocauc")["val"] > 0.6, method.__name__


# -- labels and attributes that are missing ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_several_tasks_are_one_class_and_labels_may_be_missing(method):
    graphs = some_graphs([5, 6, 4, 7, 5, 3, 6, 5] * 4, tasks=3, directed=False)
    y = graphs.y.clone()
    y[::4] = torch.nan  # all of a graph's
    graphs = replace(graphs, y=y)
    found = made(method, graphs, 500)
    rows = {tuple(row) for row in y.nan_to_num(-1).tolist()}
    assert {tuple(row) for row in found.y.nan_to_num(-1).tolist()} <= rows
    assert (~found.y.isnan()).any(1).all()
    assert found.y.shape == found.weight.shape == (len(found), 3)
    assert found.content.y.isnan().equal(found.y.isnan())
    assert len(made(method, graphs, 10**6)) == (~y.isnan()).any(1).sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("x", ["keys", "values", "none"])
@pytest.mark.parametrize("edges", ["keys", "none"])
def test_graphs_of_any_kind_are_taken(method, x, edges):
    graphs = some_graphs([5, 0, 4, 1, 6, 3, 4, 7] * 3, x=x, edges=edges, loops=True)
    found = made(method, graphs, 400)
    assert found.content.num_features == graphs.num_features
    assert found.content.num_edge_features == graphs.num_edge_features
    for name in ("x", "edge_attr"):
        kept, known = getattr(found.content, name), getattr(graphs, name)
        if known is not None:
            assert kept.dtype == known.dtype
            assert {tuple(row) for row in kept.tolist()} <= {tuple(row) for row in known.tolist()}


@pytest.mark.parametrize("method", METHODS)
def test_graphs_without_edges(method):
    graphs = some_graphs([3, 4, 2, 5, 3, 4], directed=False)
    graphs = replace(graphs, edge_index=torch.empty(2, 0, dtype=torch.long), edge_attr=graphs.edge_attr[:0])
    found = made(method, graphs, 60)
    assert found.content.num_edges == 0
    assert len(found) >= 2


# -- orders against brute force ----------------------------------------------------------------------------------------


def colours(graph, num_hops) -> Counter:
    """How often each tree of 0 to ``num_hops`` hops occurs, a tree being a tuple."""
    key = [tuple(row) for row in graph.x.tolist()]
    arcs = [
        (*arc, tuple(attr)) for arc, attr in zip(graph.edge_index.T.tolist(), graph.edge_attr.tolist(), strict=True)
    ]
    trees, count = key, Counter((0, tree) for tree in key)
    for hop in range(1, num_hops + 1):
        trees = [
            (own, tuple(sorted((attr, trees[u]) for u, v, attr in arcs if v == node))) for node, own in enumerate(key)
        ]
        count.update((hop, tree) for tree in trees)
    return count


def histograms(graphs, num_hops) -> np.ndarray:
    counts = [colours(graph, num_hops) for graph in graphs]
    features = {feature: i for i, feature in enumerate(sorted(set().union(*counts), key=repr))}
    table = np.zeros((len(graphs), len(features)))
    for row, count in zip(table, counts, strict=True):
        for feature, times in count.items():
            row[features[feature]] = times
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-300)


@pytest.mark.parametrize("num_hops", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_herding_and_kcenter_take_what_brute_force_finds_best(num_hops, seed):
    sizes = np.random.default_rng(seed).integers(1, 7, 24).tolist()
    graphs = some_graphs(sizes, seed)
    vectors, y = histograms(graphs, num_hops), graphs.y.numpy()
    for method in (herding, kcenter):
        picks = made(method, graphs, 10**6, num_hops=num_hops).content.graph_id.numpy()
        for c in (0, 1):
            mean, taken, left = vectors[y == c].mean(0), [], set(np.flatnonzero(y == c).tolist())
            for pick in picks[y[picks] == c].tolist():
                if method is herding or not taken:
                    cost = {i: np.linalg.norm(mean - vectors[[*taken, i]].mean(0)) for i in left}
                else:
                    cost = {i: -np.linalg.norm(vectors[taken] - vectors[i], axis=1).min() for i in left}
                assert cost[pick] <= min(cost.values()) + 1e-6
                taken.append(pick)
                left.remove(pick)
            assert not left


def test_histograms_are_those_of_brute_force():
    graphs = some_graphs([5, 0, 4, 1, 6, 3, 4, 7])
    ours, theirs = baselines._histograms(graphs, 2).toarray(), histograms(graphs, 2)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-12)


# -- graphs that are learned -------------------------------------------------------------------------------------------


def test_learned_graphs_match_better_than_those_they_started_from(monkeypatch):
    monkeypatch.setattr(baselines, "_MEASURED", 8)
    found = made(doscond, molecules(), 120, steps=40, batch_size=64, lr_edges=0.5, lr_nodes=0.2)
    assert 0 <= found.meta["matching_loss_last"] < 0.8 * found.meta["matching_loss_first"] <= 2


@pytest.mark.parametrize("directed", [False, True])
def test_learned_graphs_are_valid(directed):
    graphs = some_graphs([5, 9, 4, 1, 6, 3, 4, 7] * 3, directed=directed, loops=True)
    found = made(doscond, graphs, 600, lr_edges=2.0, steps=10).content
    source, target = found.edge_index
    arcs = set(zip(source.tolist(), target.tolist(), strict=True))
    assert found.num_edges == len(arcs) > 0
    assert arcs == {(v, u) for u, v in arcs}
    assert (source != target).all()
    common = Counter(map(tuple, graphs.edge_attr.tolist())).most_common(1)[0][1]
    assert (found.edge_attr == found.edge_attr[0]).all()
    assert (graphs.edge_attr == found.edge_attr[0]).all(1).sum() == common
    assert found.edge_attr.shape == (found.num_edges, 2)


def test_learning_changes_edges_and_attributes_and_nothing_else():
    start = made(doscond, molecules(), 10**6, steps=1, lr_edges=1e-9, lr_nodes=1e-9)
    moved = made(doscond, molecules(), 10**6, steps=15, lr_edges=1.0, lr_nodes=1.0)
    picked = made(random_graphs, molecules(), 10**6).content
    assert torch.equal(start.content.x, picked.x)
    assert {*map(tuple, start.content.edge_index.T.tolist())} == {*map(tuple, picked.edge_index.T.tolist())}
    assert start.meta["matching_loss_first"] == start.meta["matching_loss_last"] == moved.meta["matching_loss_first"]
    assert torch.equal(moved.content.ptr, picked.ptr)
    assert torch.equal(moved.y, picked.y)
    assert not torch.equal(moved.content.x, picked.x)
    assert not torch.equal(moved.content.edge_index, start.content.edge_index)


def test_dense_drawn_graphs_are_the_sparse_ones_where_nothing_is_left_to_chance():
    graphs = molecules().subset(range(12))
    keys = RowKeys().fit(graphs.x)
    keyed, table = baselines._keyed(graphs, keys), baselines._table(keys)
    synthetic = baselines._Synthetic(keyed, keyed, table)
    synthetic.edges.data = torch.where(synthetic.edges > 0, 50.0, -50.0)
    ids = torch.tensor([7, 2, 11, 5])
    torch.manual_seed(0)
    network = baselines._Network(table.size(1), 3, 2)
    drawn, given = synthetic(ids), baselines._sparse(keyed.subset(ids), table)
    torch.testing.assert_close(network(*drawn), network(*given))
    ours, theirs = (network.gradients(some, graphs.y[ids]) for some in (drawn, given))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    for operator in drawn[:2]:
        assert operator.requires_grad


def test_large_graphs_are_no_start_and_attributes_are_few(monkeypatch):
    monkeypatch.setattr(baselines, "MAX_KEYS", 4)
    graphs = some_graphs([12, 4, 5, 11, 3, 4, 6, 12] * 3, x="none", directed=False)
    graphs = replace(graphs, x=torch.randn(graphs.num_nodes, 2, generator=torch.Generator().manual_seed(0)))
    found = made(doscond, graphs, 10**6, max_nodes=6).content
    assert found.ptr.diff().max() == 6
    assert len(found.x.unique(dim=0)) <= 4


# -- errors ------------------------------------------------------------------------------------------------------------


def unlabelled() -> Graphs:
    return replace(molecules(), y=torch.where(torch.arange(150) == 9, -1, molecules().y))


def no_label_at_all() -> Graphs:
    return Graphs(None, torch.empty(2, 0), torch.full((2, 2), torch.nan), [0, 1, 2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("graphs", "options", "message"),
    [
        (molecules, {"budget": 0}, r"budget: expected a whole number from 1 \(got 0\)"),
        (molecules, {"budget": 2.5}, r"budget: expected a whole number from 1 \(got 2.5\)"),
        (molecules, {"budget": 8}, r"budget: expected \d\d bytes or more, .* \(got 8\)\. Raise it"),
        (molecules, {"num_hops": -1}, r"num_hops: expected a whole number from 0 \(got -1\)"),
        (molecules, {"seed": -1}, r"seed: expected a whole number from 0 \(got -1\)"),
        (unlabelled, {}, r"graphs: expected .* \(got 1 without, the first is graph 9\)"),
        (no_label_at_all, {}, r"graphs: expected a label .* \(got none\)"),
    ],
)
def test_what_is_out_of_range_is_named(method, graphs, options, message):
    with pytest.raises(G2MError, match=f"^{message}"):
        made(method, graphs(), **({"budget": 1000} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected a whole number from 1"),
        ({"batch_size": 0}, "batch_size: expected a whole number from 1"),
        ({"lr_edges": 0}, "lr_edges: expected a number in"),
        ({"lr_nodes": -1}, "lr_nodes: expected a number in"),
        ({"sparsity": -1}, "sparsity: expected a number in"),
        ({"max_nodes": 1}, r"max_nodes: expected 4 or more, for a graph of each class \(got 1\)"),
    ],
)
def test_options_of_doscond_out_of_range_are_named(options, message):
    with pytest.raises(G2MError, match=f"^{message}"):
        made(doscond, molecules(), 1000, **options)
