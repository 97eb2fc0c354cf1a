"""Nothing that training must not see reaches a weight, an epoch or an output; and node ids mean nothing."""

from dataclasses import replace

import pytest
import torch
from cases import blocks, fitted, outputs_of, permuted, same_bits, shuffled, student, weights
from torch import Generator, Tensor

from g2m.estimators import Teacher
from g2m.graph import Graph
from g2m.methods import REGISTRY
from g2m.models import BACKBONES
from g2m.tokenizer import PLACES

# A backbone, alone or with a tokenizer in its place.
CODED = [*(f"{backbone} inside" for backbone in sorted(BACKBONES)), "sage beside", "gcn reference"]
# A backbone trained on parts of the graph, on samples of it.
CUT = {"sage by parts": {"partitions": 3}, "gcn by samples": {"fan_out": [2, 2], "batch_size": 4}}
backbones = pytest.mark.parametrize("backbone", [*sorted(BACKBONES), *CODED, *CUT])
methods = pytest.mark.parametrize("name", sorted(REGISTRY))


def teacher(backbone: str, graph: Graph, **options) -> Teacher:
    options = CUT.get(backbone, {}) | options
    backbone, _, place = backbone.partition(" ")
    place = place if place in PLACES else ""
    common = {"hidden_channels": 8, "max_epochs": 5, "dropout": 0.3, "device": "cpu"}
    codes = {"tokenizer": place, "num_codes": 6} if place else {}
    return Teacher(backbone, **{**common, **codes, **options}).fit(graph)


def random_edges(some: Tensor, others: Tensor, count: int = 30) -> Tensor:
    generator = Generator().manual_seed(7)
    edges = torch.stack([ids[torch.randint(len(ids), (count,), generator=generator)] for ids in (some, others)])
    return torch.cat([edges, edges.flip(0)], 1)


def other_features(graph: Graph, ids: Tensor) -> Graph:
    x = graph.x.clone()
    x[ids] = 100 * torch.randn(len(ids), graph.num_features, generator=Generator().manual_seed(7))
    return replace(graph, x=x)


def other_labels(graph: Graph, ids: Tensor) -> Graph:
    y = graph.y.clone()
    y[ids] = torch.randint(graph.num_classes, ids.shape, generator=Generator().manual_seed(7))
    assert not torch.equal(y, graph.y)
    return replace(graph, y=y)


def other_edges(graph: Graph, ids: Tensor) -> Graph:
    """Every edge of the nodes goes, others come: among them, and between them and the rest."""
    kept = graph.edge_index[:, ~torch.isin(graph.edge_index, ids).any(0)]
    rest = torch.arange(graph.num_nodes)[~torch.isin(torch.arange(graph.num_nodes), ids)]
    return replace(graph, edge_index=torch.cat([kept, random_edges(ids, ids), random_edges(ids, rest)], 1))


def everything(graph: Graph, ids: Tensor) -> Graph:
    return other_edges(other_labels(other_features(graph, ids), ids), ids)


CHANGES = {f.__name__: f for f in (other_features, other_labels, other_edges, everything)}
changes = pytest.mark.parametrize("change", CHANGES)


# -- unseen nodes ----------------------------------------------------------------------------------------------------


@backbones
@changes
def test_unseen_nodes_do_not_reach_the_teacher(backbone, change):
    graph = blocks(unseen=True)
    other = CHANGES[change](graph, graph.part("unseen"))
    assert other.fingerprint() != graph.fingerprint()
    first, second = teacher(backbone, graph), teacher(backbone, other)
    assert same_bits(weights(first), weights(second))
    assert first.history_.epochs == second.history_.epochs
    assert first.history_.best_epoch == second.history_.best_epoch
    a, b = first.outputs(graph), second.outputs(other)
    assert a.fingerprint() == b.fingerprint()  # of every tensor
    assert torch.equal(a.logits, b.logits)
    assert (a.codebook is not None) == (backbone in CODED)
    assert a.meta | {"seconds": 0} == b.meta | {"seconds": 0}
    if change != "other_labels":  # they are there: in the answer on the whole graph
        assert not torch.equal(first.predict_logits(graph), second.predict_logits(other))


@methods
@changes
def test_unseen_nodes_do_not_reach_the_student(name, change):
    graph = blocks(unseen=True)
    other = CHANGES[change](graph, graph.part("unseen"))
    first, second = (fitted(name, g, batch_size=7, dropout=0.3) for g in (graph, other))
    assert same_bits(weights(first), weights(second))
    assert first.history_.epochs == second.history_.epochs


@methods
def test_unseen_nodes_do_not_reach_a_student_through_its_teacher(name):
    graph = blocks(unseen=True)
    other = everything(graph, graph.part("unseen"))
    for backbone in ("sage inside", "sage beside") if "codebook" in REGISTRY[name].needs else ("sage",):
        results = []
        for g in (graph, other):
            outputs = teacher(backbone, g).outputs(g)
            results.append(student(name).fit(g, outputs))
            outputs.check(graph)  # good for either: what training may see is the same
        assert same_bits(*map(weights, results))


def test_a_search_is_given_the_observed_graph_alone(monkeypatch):
    graph, given = blocks(unseen=True), []
    monkeypatch.setattr(REGISTRY["glnn"], "search", lambda self, model, graph, outputs: given.append(graph))
    fitted("glnn", graph)
    assert given
    assert all(each is graph.observed() for each in given)


@backbones
@pytest.mark.parametrize("change", ["other_features", "other_labels", "other_edges"])
def test_the_same_changes_to_training_nodes_do_reach_the_teacher(backbone, change):
    """So that the tests above could fail."""
    graph = blocks(unseen=True)
    other = CHANGES[change](graph, graph.part("train"))
    assert not same_bits(weights(teacher(backbone, graph)), weights(teacher(backbone, other)))


@methods
def test_the_same_changes_to_training_nodes_do_reach_the_student(name):
    graph = blocks(unseen=True)
    other = everything(graph, graph.part("train"))
    assert not same_bits(weights(fitted(name, graph)), weights(fitted(name, other)))


@backbones
def test_observed_nodes_are_scored_without_unseen_ones(backbone):
    graph = blocks(60, unseen=True)
    first = teacher(backbone, graph, max_epochs=20)
    before = first.evaluate(graph)
    after = first.evaluate(other_edges(other_features(graph, graph.part("unseen")), graph.part("unseen")))
    assert {p: before[p] for p in ("val", "seen")} == {p: after[p] for p in ("val", "seen")}
    unseen, seen = (len(graph.part(p)) for p in ("unseen", "seen"))
    assert before["test"] == pytest.approx((unseen * before["unseen"] + seen * before["seen"]) / (unseen + seen))


# -- test labels -----------------------------------------------------------------------------------------------------


@backbones
@pytest.mark.parametrize("unseen", [False, True], ids=["transductive", "inductive"])
def test_test_labels_do_not_reach_the_teacher(backbone, unseen):
    graph = blocks(unseen=unseen)
    first, second = (teacher(backbone, g, max_epochs=12) for g in (graph, other_labels(graph, graph.part("test"))))
    assert same_bits(weights(first), weights(second))
    assert first.history_.best_epoch == second.history_.best_epoch
    assert first.history_.epochs == second.history_.epochs


@methods
@pytest.mark.parametrize("unseen", [False, True], ids=["transductive", "inductive"])
def test_test_labels_do_not_reach_the_student(name, unseen):
    graph = blocks(unseen=unseen)
    changed = other_labels(graph, graph.part("test"))
    first, second = (fitted(name, g, max_epochs=12, batch_size=7) for g in (graph, changed))
    assert same_bits(weights(first), weights(second))
    assert first.history_.best_epoch == second.history_.best_epoch
    assert first.history_.epochs == second.history_.epochs


@methods
def test_validation_labels_choose_the_epoch_and_nothing_else(name):
    graph = blocks()
    first, second = (fitted(name, g, max_epochs=12) for g in (graph, other_labels(graph, graph.part("val"))))
    a, b = ([{k: v for k, v in r.items() if k != "val"} for r in s.history_.epochs] for s in (first, second))
    assert a == b
    assert [r["val"] for r in first.history_.epochs] != [r["val"] for r in second.history_.epochs]


# -- node ids --------------------------------------------------------------------------------------------------------

CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def codes_by_node(trained: Teacher, graph: Graph) -> Tensor:
    outputs, codes = trained.outputs(graph), torch.full((graph.num_nodes,), -1)
    codes[outputs.node_id] = outputs.codes()
    assert len(outputs.codes().unique()) > 1
    return codes


@pytest.mark.parametrize("backbone", [*sorted(BACKBONES), *CODED])  # which parts and samples are drawn, ids decide
@pytest.mark.parametrize("unseen", [False, True], ids=["transductive", "inductive"])
def test_node_ids_mean_nothing_to_the_teacher(backbone, unseen):
    """k-means and the replacement of codes draw rows at random, which makes an order matter: here without the two."""
    graph = blocks(unseen=unseen)
    other, order = shuffled(graph)
    options = {"gat": {"attention_dropout": 0.0}, "appnp": {"edge_dropout": 0.0}}.get(backbone.split()[0], {})
    options = options | ({"kmeans_iterations": 0, "dead_threshold": 0} if backbone in CODED else {})
    first, second = (teacher(backbone, g, dropout=0.0, **options) for g in (graph, other))
    if backbone in CODED:
        assert torch.equal(codes_by_node(second, other), codes_by_node(first, graph)[order])
    torch.testing.assert_close(second.predict_logits(other), first.predict_logits(graph)[order], **CLOSE)
    assert second.evaluate(other) == first.evaluate(graph)


@methods
def test_node_ids_mean_nothing_to_the_student(name):
    """Positions, an adversary's starts and who is taught alone are drawn at random, node by node: here without."""
    graph = blocks()
    other, order = shuffled(graph)
    outputs = outputs_of(graph)
    fields = ("logits", "hidden", "low_target", "entropy_change", "code_input")
    rows = {field: getattr(outputs, field)[order] for field in fields}
    moved = replace(outputs, meta=outputs.meta | {"fingerprint": other.fingerprint()}, **rows)
    without = {"nosmog": {"position": "none", "eta": 0.0}, "onehop": {"alone": 0.0}}
    options = {"batch_size": 99, **without.get(name, {})}
    first, second = (student(name, **options).fit(g, o) for g, o in ((graph, outputs), (other, moved)))
    torch.testing.assert_close(second.predict_logits(other.x), first.predict_logits(graph.x)[order], **CLOSE)
    assert second.evaluate(other) == first.evaluate(graph)


def test_permuting_back_gives_the_same_graph():
    graph = blocks(unseen=True)
    other, order = shuffled(graph)
    assert other.fingerprint() != graph.fingerprint()
    assert permuted(other, torch.argsort(order)).fingerprint() == graph.fingerprint()
