"""Scored trees: the model is a sum over nodes, and a label is what it says of a graph of one tree, many times over."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from graph_cases import random_graphs, sets_of_graphs
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.special import expit, softmax
from test_mirage import EXACT, LEAST, PART, check_weights, trees_of_bags, trees_of_graphs

from g2m import G2MError, Graphs
from g2m.condense import CountModel, TreeTable, scored
from g2m.condense.scored import STRENGTHS

quick = settings(max_examples=12)
ALL = 10**6  # bytes


def some(seed: int = 0, num_classes: int = 2, size: int = 14, **options) -> Graphs:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 6, (size,), generator=generator).tolist()
    graphs = random_graphs(sizes, seed, **{"edges": "none", **options})
    if graphs.y.dim() == 2:
        return graphs
    y = torch.randint(num_classes, (size,), generator=generator)
    y[:num_classes] = torch.arange(num_classes)
    return replace(graphs, y=y, num_classes=num_classes)


def levels(table: TreeTable) -> list[csr_array]:
    return [table.at(depth) for depth in range(table.num_hops + 1)]


def asked(model: CountModel, table: TreeTable, times: int) -> np.ndarray:
    """The model's probabilities of a graph of so many equal trees, for each class of trees."""
    classes = np.arange(table.counts.shape[1])
    rows = []
    for depth, level in enumerate(levels(table)):
        below = table.dag.below(classes, depth)
        rows.append(csr_array((np.full(len(classes), times), (classes, below)), shape=(len(classes), level.shape[1])))
    logits = model.logits(rows)
    return softmax(logits, 1) if logits.ndim == 2 else np.column_stack([expit(-logits), expit(logits)])


def commonest(table: TreeTable, size: int) -> np.ndarray:
    """So many classes of trees that most nodes have; of equals the first."""
    order = np.argsort(-np.asarray(table.counts.sum(0)).ravel(), kind="stable")
    return np.sort(order[:size])


def mean_size(graphs: Graphs) -> int:
    return round(graphs.num_nodes / len(graphs))


# -- the model ---------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 99), st.integers(2, 4), st.integers(1, 3))
def test_logits_are_the_sum_of_what_the_nodes_trees_add(seed, num_classes, num_hops):
    graphs = some(seed, num_classes)
    table = TreeTable(graphs, num_hops)
    counts = levels(table)
    model = CountModel(counts, graphs.y.numpy(), 0)
    scores, start = model.scores([level.shape[1] for level in counts])
    assert [score.shape for score in scores] == [(level.shape[1], len(start)) for level in counts]
    logits = start + sum(level @ score for level, score in zip(counts, scores, strict=True))
    assert len(start) == (num_classes if num_classes > 2 else 1)
    np.testing.assert_allclose(model.logits(counts).reshape(logits.shape), logits, rtol=1e-9, atol=1e-9)
    nodes = start + sum(
        np.add.reduceat(score[table.classes.levels[depth]], graphs.ptr[:-1]) for depth, score in enumerate(scores)
    )
    np.testing.assert_allclose(nodes, logits, rtol=1e-9, atol=1e-9)


def test_trees_of_a_single_graph_have_no_score():
    graphs = some(size=20)
    table = TreeTable(graphs, 2)
    counts = levels(table)
    scores, _ = CountModel(counts, graphs.y.numpy(), 0).scores([level.shape[1] for level in counts])
    alone = [(level > 0).sum(0) < 2 for level in counts]
    assert any(mask.any() for mask in alone)
    assert not any(score[mask].any() for score, mask in zip(scores, alone, strict=True))
    assert all(score[~mask].any(1).all() for score, mask in zip(scores, alone, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_the_strength_is_the_likeliest_on_graphs_held_out(seed):
    graphs = some(seed, 3, 30)
    y, counts = graphs.y.numpy(), levels(TreeTable(graphs, 1))
    model = CountModel(counts, y, seed)
    order, features = np.random.default_rng(seed).permutation(30), model._features(counts)
    held, rest = order[:6], order[6:]

    def likelihood(strength: float) -> float:
        fitted = CountModel._fitted(features[rest], y[rest], strength)
        return sum(fitted.predict_log_proba(features[[i]])[0, list(fitted.classes_).index(y[i])] for i in held)

    assert model.strength == max(STRENGTHS, key=likelihood)


# -- records -----------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 99), st.integers(2, 4), st.integers(1, 2), st.booleans())
def test_labels_are_the_models_of_a_graph_of_one_tree(seed, num_classes, num_hops, degrees):
    graphs = some(seed, num_classes)
    table = TreeTable(graphs, num_hops, degrees)
    made = scored(graphs, num_hops=num_hops, budget=ALL, degrees=degrees, seed=seed)
    expected = asked(CountModel(levels(table), graphs.y.numpy(), seed), table, mean_size(graphs))
    assert made.y.shape == expected.shape
    assert np.abs(made.y.numpy() - expected).max() <= PART + EXACT
    assert float((made.y.sum(1) - 1).abs().max()) <= EXACT


@quick
@given(sets_of_graphs, st.integers(1, 2), st.integers(40, 200))
def test_records_are_the_commonest_trees_as_often_as_a_graph_has_nodes(graphs, num_hops, budget):
    assume(graphs.num_nodes > 0)
    nodes = sum(trees_of_graphs(graphs, num_hops), Counter())
    try:
        made = scored(graphs, num_hops=num_hops, budget=budget)
    except G2MError as error:
        assert "budget: expected at least" in str(error)  # noqa: PT017 (or none is raised)
        return
    bags = trees_of_bags(made.content)
    assert all(list(bag.values()) == [max(1, mean_size(graphs))] for bag in bags)
    found = [tree for bag in bags for tree in bag]
    assert len(set(found)) == len(found)
    rest = [times for tree, times in nodes.items() if tree not in found]
    assert min(nodes[tree] for tree in found) >= max(rest, default=0)
    check_weights(made.weight.tolist(), [nodes[tree] for tree in found])
    assert made.nbytes().raw <= budget


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_larger_budget_keeps_what_a_smaller_one_has(tasks):
    graphs, before = some(tasks=tasks), []
    every = trees_of_bags(scored(graphs, num_hops=2, budget=ALL).content)
    for budget in range(60, 300, 60):
        made = scored(graphs, num_hops=2, budget=budget)
        found = trees_of_bags(made.content)
        assert made.nbytes().raw <= budget
        assert [bag for bag in found if bag in before] == before
        assert [bag for bag in every if bag in found] == found
        before = found
    assert LEAST < len(before) <= len(every)


def test_a_class_that_no_graph_has_is_given_nothing():
    graphs = some(0)
    two = scored(graphs, num_hops=1, budget=ALL)
    graphs = replace(graphs, y=2 * graphs.y, num_classes=4)
    made = scored(graphs, num_hops=1, budget=ALL)
    torch.testing.assert_close(made.y[:, [0, 2]], two.y, rtol=0, atol=EXACT)
    assert not made.y[:, [1, 3]].any()


@pytest.mark.parametrize("label", [0, 1, 2])
def test_one_class_alone_is_the_label_of_all(label):
    graphs = replace(some(), y=torch.full((14,), label), num_classes=3)
    made = scored(graphs, num_hops=1, budget=ALL)
    assert torch.equal(made.y.argmax(1), torch.full((len(made),), label))
    assert made.y.sum() == len(made)


def test_tasks_are_models_of_the_graphs_whose_label_is_known():
    graphs = some(tasks=4)
    y = graphs.y.clone()
    y[:, 2] = torch.where(y[:, 2] == 0, torch.nan, y[:, 2])  # only 1 is known
    y[:, 3] = torch.nan
    graphs = replace(graphs, y=y)
    made, table = scored(graphs, num_hops=1, budget=ALL, seed=1), TreeTable(graphs, 1)
    for task in (0, 1):
        known = ~y[:, task].isnan().numpy()
        assert 0 < known.sum() < len(graphs)
        model = CountModel([level[known] for level in levels(table)], y[known, task].long().numpy(), 1)
        expected = asked(model, table, mean_size(graphs))[:, 1]
        assert np.abs(made.y[:, task].numpy() - expected).max() <= PART / 2 + EXACT
    assert torch.equal(made.y[:, 2], torch.ones(len(made)))
    assert made.y[:, 3].isnan().all()
    counts = np.asarray(table.counts.sum(0)).ravel()[commonest(table, len(made))]
    for weight in made.weight.T:
        check_weights(weight.tolist(), counts.tolist())


def test_graphs_with_nothing_in_common_and_graphs_of_no_nodes():
    apart = Graphs([[0], [1]], [], [0, 1], [0, 1, 2])
    made = scored(apart, num_hops=1, budget=ALL)
    assert made.y.argmax(1).tolist() == [0, 1]
    empty = Graphs([[0], [1]], [], [0, 1] * 4, [0, 1, 2, 2, 2, 2, 2, 2, 2])
    made = scored(empty, num_hops=1, budget=ALL)
    assert [list(bag.values()) for bag in trees_of_bags(made.content)] == [[1], [1]]


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_budget_too_small_for_a_tree_says_what_one_takes(tasks):
    graphs = some(tasks=tasks)
    with pytest.raises(G2MError, match=r"budget: expected at least \d+ bytes, what a tree takes \(got 3\)") as error:
        scored(graphs, num_hops=2, budget=3)
    least = int(str(error.value).split("at least ")[1].split()[0])
    assert len(scored(graphs, num_hops=2, budget=least)) >= 1


def test_graphs_without_nodes_have_no_trees():
    with pytest.raises(G2MError, match="graphs: expected nodes in the training graphs"):
        scored(random_graphs([0, 0]), num_hops=1, budget=ALL)
