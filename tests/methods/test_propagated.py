"""Diffused soft labels against dense algebra, and the methods it comes down to."""

from dataclasses import replace

import pytest
import torch
from cases import blocks, fitted, intercept, outputs_of, same_bits, steps, student, thin, weights
from torch import Generator, Tensor
from torch.nn import functional as F

from g2m.errors import G2MError
from g2m.graph import Graph
from g2m.methods import make_method

EXACT = {"rtol": 1e-4, "atol": 1e-6}


def mean_over_neighbours(graph: Graph) -> Tensor:
    """D̃⁻¹Ã, dense: row i is the mean over i and the sources of its arcs."""
    dense = torch.eye(graph.num_nodes, dtype=torch.float64)
    dense[graph.edge_index[1], graph.edge_index[0]] = 1
    return dense / dense.sum(1, keepdim=True)


def uneven(graph: Graph, seed: int = 0) -> Tensor:
    logits = 2 * torch.randn(graph.num_nodes, graph.num_classes, generator=Generator().manual_seed(seed))
    return logits.softmax(1)


def diffused(graph: Graph, p: Tensor, **options) -> Tensor:
    return make_method("propagated", options).diffused(graph, p)


GRAPHS = {"blocks": blocks(), "thin": thin(), "directed": thin(directed=True), "edgeless": blocks(edges=False)}


def test_compatibility_says_what_the_source_of_an_arc_tells_of_its_target():
    """Every arc leads from class c to c + 1; nothing is known but the labels of train."""
    source, target = torch.randint(300, (2, 6000), generator=Generator().manual_seed(0))
    y, arcs = torch.arange(300) % 3, torch.stack([source, target])[:, target % 3 == (source + 1) % 3]
    graph = Graph(torch.zeros(300, 1), arcs, y, {"train": torch.arange(90), "val": torch.arange(90, 100)})
    answer = diffused(graph, torch.full((300, 3), 1 / 3), compatibility=True).argmax(1)
    assert (answer[90:] == y[90:]).float().mean() > 0.6


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("compatibility", [False, True])
@pytest.mark.parametrize(("alpha", "propagations"), [(0.1, 10), (0.3, 2), (0.0, 5), (1.0, 3), (0.5, 0)])
def test_diffusion_is_that_of_dense_matrices(alpha, propagations, compatibility, clamp, graph):
    p, train, mean = uneven(graph).double(), graph.part("train"), mean_over_neighbours(graph)
    own = p.clone()
    if clamp:
        own[train] = F.one_hot(graph.y[train], 3).double()
    loops = mean.diagonal().diag()  # what a node says to itself needs no translation
    arcs = (mean - loops) / mean.diagonal()[:, None]
    between = (arcs @ own).T @ own + 1e-6 if compatibility else torch.eye(3, dtype=torch.float64)
    between = between / between.sum(1, keepdim=True)
    r = own
    for _ in range(propagations):
        r = (1 - alpha) * ((mean - loops) @ r @ between + loops @ r) + alpha * own
        if clamp:
            r[train] = own[train]
    expected = r / r.sum(1, keepdim=True)
    options = {"alpha": alpha, "propagations": propagations, "clamp": clamp, "compatibility": compatibility}
    before = p.float()
    found = diffused(graph, before, **options)
    assert torch.equal(before, p.float()), "what was handed over is left as it was"
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.sum(1), torch.ones(graph.num_nodes))
    assert (found >= 0).all()
    if clamp:
        assert torch.equal(found[train], F.one_hot(graph.y[train], 3).float())


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_many_steps_are_personalised_pagerank(alpha):
    graph = thin()
    p, mean = uneven(graph), mean_over_neighbours(graph)
    inverse = torch.linalg.inv(torch.eye(graph.num_nodes) - (1 - alpha) * mean)
    found = diffused(graph, p, alpha=alpha, propagations=300, clamp=False)
    torch.testing.assert_close(found.double(), alpha * inverse @ p.double(), **EXACT)


def test_many_steps_that_put_nothing_back_carry_the_labels_over_their_component():
    """Zhou's and Zhu's harmonic solution: what is reached from labels alone is theirs."""
    graph = blocks()
    train, rest = graph.part("train"), torch.arange(9, 36)
    mean, labels = mean_over_neighbours(graph), F.one_hot(graph.y, 3).double()
    within = torch.eye(27) - mean[rest][:, rest]
    expected = torch.linalg.solve(within, mean[rest][:, train] @ labels[train])
    found = diffused(graph, uneven(graph), alpha=0.0, propagations=2000)
    torch.testing.assert_close(found[rest].double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{"alpha": 1.0}, {"propagations": 0}], ids=str)
@pytest.mark.parametrize("compatibility", [False, True])
def test_where_nothing_is_passed_on_it_is_glnn(compatibility, options):
    graph, common = blocks(), {"lam": 0.3, "tau": 2.0, "batch_size": 7, "dropout": 0.3}
    first = fitted("propagated", graph, clamp=False, compatibility=compatibility, **options, **common)
    second = fitted("glnn", graph, **common)
    for a, b in zip(weights(first).values(), weights(second).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    clamped = fitted("propagated", graph, clamp=True, **options, **common)
    assert not torch.allclose(clamped.predict_logits(graph.x), second.predict_logits(graph.x), atol=1e-2)


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("options", [{}, {"lam": 0.3, "tau": 2.0, "alpha": 0.4, "clamp": False}], ids=str)
def test_loss_equals_its_formula_and_sees_no_edge(options, unseen):
    graph = blocks(unseen=unseen)
    observed, outputs = graph.observed(), outputs_of(graph)
    model, method, batches = intercept(student("propagated", batch_size=7, **options), graph, outputs)
    lam, tau = options.get("lam", 0.0), options.get("tau", 1.0)
    r = method.diffused(observed, (outputs.logits / tau).softmax(1)).double()
    for batch in batches.epoch(Generator().manual_seed(0)):
        assert batch.edge_index is None
        assert len(batch.row) == batch.batch_size
        output = model(*batch.inputs)
        parts = method(output, batch)
        assert parts.keys() == {"label", "soft"}
        p, log_q = r[batch.row], (output.logits.double() / tau).log_softmax(1)
        soft = (torch.special.xlogy(p, p) - p * log_q).sum(1).mean()  # 0 · log 0 = 0: a label is all of its row
        torch.testing.assert_close(parts["soft"].double(), (1 - lam) * soft, rtol=1e-4, atol=1e-6)


def alternating(num_nodes: int, degree: int) -> Graph:
    """A ring in which a node's neighbours, ``degree`` of them, are all of the other class."""
    ids = torch.arange(num_nodes)
    steps = [k for d in range(1, degree, 2) for k in (d, -d)]
    edges = torch.cat([torch.stack([ids, (ids + k) % num_nodes]) for k in steps], 1)
    split = {"train": ids[:2], "val": ids[2:4], "test": ids[4:]}
    return Graph(torch.ones(num_nodes, 1), edges, ids % 2, split, name="alternating")


@pytest.mark.parametrize("degree", [2, 4, 6])
def test_where_neighbours_differ_compatibility_gives_a_node_the_other_class(degree):
    graph = alternating(24, degree)
    assert (graph.y[graph.edge_index[0]] != graph.y[graph.edge_index[1]]).all()
    p = F.one_hot(graph.y, 2) * 0.98 + 0.01
    p[10] = 0.5  # the teacher has no idea
    found = {on: diffused(graph, p, propagations=1, compatibility=on) for on in (False, True)}
    other = 1 - graph.y[10]
    assert found[False][10, other] > 0.6  # as its neighbours
    assert found[True][10, other] < 0.45
    assert torch.equal(found[True].argmax(1), graph.y)
    assert not torch.equal(found[False].argmax(1), graph.y)


@pytest.mark.parametrize("compatibility", [False, True])
def test_an_isolated_node_keeps_its_own(compatibility):
    ring = alternating(24, 4)
    keep = (ring.edge_index != 10).all(0)
    graph = replace(ring, edge_index=ring.edge_index[:, keep])
    p = F.one_hot(graph.y, 2) * 0.9 + 0.05
    found = diffused(graph, p, compatibility=compatibility)
    torch.testing.assert_close(found[10], p[10])


def test_where_a_class_is_everywhere_nothing_can_be_passed_on_but_it():
    graph = blocks()
    p = torch.eye(3)[torch.zeros(36, dtype=torch.long)]
    for compatibility in (False, True):
        torch.testing.assert_close(diffused(graph, p, clamp=False, compatibility=compatibility), p)


def test_diffusion_smooths():
    graph, p = blocks(), uneven(blocks())
    source, target = graph.edge_index

    def roughness(r):
        return float((r[source] - r[target]).square().sum())

    found = [roughness(diffused(graph, p, propagations=k, clamp=False)) for k in (0, 1, 3, 10)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.3 * found[0]


def test_targets_are_finite_where_the_teacher_is_sure():
    graph = blocks()
    outputs = outputs_of(graph)
    sure = replace(outputs, logits=500 * F.one_hot(graph.y, 3).float())
    for options in ({}, {"alpha": 1.0}, {"propagations": 0}, {"compatibility": True}):
        _, _, batches = intercept(student("propagated", batch_size=1000, **options), graph, sure)
        assert torch.isfinite(batches.targets["log_soft_labels"]).all()
        student("propagated", **options).fit(graph, sure)


def test_a_graph_without_edges_is_refused_where_outputs_had_some():
    _, _, (batch,) = steps("propagated", blocks(edges=False), batch_size=1000, clamp=False, tau=1.5)
    torch.testing.assert_close(
        batch.targets["log_soft_labels"], outputs_of(blocks()).log_soft_labels(1.5)[batch.row], rtol=1e-4, atol=1e-5
    )
    graph = blocks()
    meta = outputs_of(graph).meta | {"fingerprint_without_edges": graph.fingerprint(edges=False)}
    with pytest.raises(G2MError, match="takes edges"):
        student("propagated").fit(graph.without_edges(), replace(outputs_of(graph), meta=meta))


def test_every_option_makes_a_difference():
    graph = blocks()
    plain = weights(fitted("propagated", graph))
    for other in ({"lam": 0.5}, {"tau": 2.0}, {"alpha": 0.5}, {"propagations": 1}, {"clamp": False}):
        assert not same_bits(plain, weights(fitted("propagated", graph, **other)))
    assert not same_bits(plain, weights(fitted("propagated", graph, compatibility=True)))
