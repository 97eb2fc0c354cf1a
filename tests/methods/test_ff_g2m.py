"""FF-G2M against its formula, its ablations, and the ways it can be fed."""

import itertools
from dataclasses import replace

import pytest
import torch
from cases import blocks, fitted, intercept, outputs_of, same_bits, steps, student, weights
from torch import Generator
from torch.nn import functional as F

from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.graph import Graph
from g2m.losses import centred
from g2m.methods import make_method


def plain(graph, outputs, logits, *, lam, tau1, tau2, low=1.0, high=1.0, soft=0.0, hfd_space="centred"):
    """The parts of the loss as sums over edges, in float64."""
    source, target = graph.edge_index
    loops = torch.arange(graph.num_nodes)
    j, i = torch.cat([source, loops]), torch.cat([target, loops])
    t = outputs.logits.double()
    log_p, log_q = (t / tau1).log_softmax(1), (logits / tau1).log_softmax(1)
    kl_low = (log_p[j].exp() * (log_p[j] - log_q[i])).sum(1).mean()
    space = {"centred": centred, "raw": lambda z: z, "logprob": lambda z: z.log_softmax(1)}[hfd_space]
    log_u, log_v = ((space(z)[source] - space(z)[target]).abs().div(tau2).log_softmax(1) for z in (t, logits))
    kl_high = (log_u.exp() * (log_u - log_v)).sum(1).mean()
    train = graph.part("train")
    parts = {"label": lam * F.cross_entropy(logits[train], graph.y[train])}
    parts |= {"low": (1 - lam) * low * kl_low} if low else {}
    parts |= {"high": (1 - lam) * high * kl_high} if high else {}
    parts |= {"soft": (1 - lam) * soft * (log_p.exp() * (log_p - log_q)).sum(1).mean()} if soft else {}
    return parts


OPTIONS = [
    {"lam": 0.1, "tau1": 1.0, "tau2": 1.5},
    {"lam": 0.4, "tau1": 2.0, "tau2": 0.7},
    {"lam": 0.0, "tau1": 1.0, "tau2": 1.0, "hfd_space": "raw"},
    {"lam": 0.0, "tau1": 1.0, "tau2": 1.2, "hfd_space": "logprob"},
    {"lam": 0.3, "tau1": 1.0, "tau2": 1.2, "high": 0.0},
    {"lam": 0.3, "tau1": 1.0, "tau2": 1.2, "low": 0.0},
    {"lam": 0.3, "tau1": 1.5, "tau2": 1.2, "low": 0.5, "high": 2.0, "soft": 0.25},
]


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("batch_size", [1000, "all"])
@pytest.mark.parametrize("options", OPTIONS)
def test_loss_equals_its_formula(options, batch_size, unseen):
    graph = blocks(unseen=unseen)
    observed, outputs = graph.observed(), outputs_of(graph)
    model, method, (batch,) = steps("ff_g2m", graph, batch_size=batch_size, **options)
    parts = method(model(*batch.inputs), batch)
    expected = plain(observed, outputs, model(observed.x).logits.double(), **options)
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(parts[name].double(), value, rtol=1e-4, atol=1e-6)


def test_glnn_is_the_case_of_soft_labels_alone():
    graph = blocks()
    options = {"lam": 0.3, "batch_size": 7, "dropout": 0.3}
    first = fitted("ff_g2m", graph, low=0, high=0, soft=1, tau1=2.0, **options)
    second = fitted("glnn", graph, tau=2.0, **options)
    assert same_bits(weights(first), weights(second))


@pytest.mark.parametrize("edge_batch_size", [None, 25])
def test_minibatches_estimate_every_part_without_bias(edge_batch_size):
    graph, options = blocks(), {"lam": 0.3, "edge_batch_size": edge_batch_size}
    model, method, (whole,) = steps("ff_g2m", graph, batch_size="all", lam=0.3)
    expected = method(model(*whole.inputs), whole)
    epochs = range(1 if edge_batch_size is None else 300)
    found = {name: [] for name in expected}
    _, _, source = intercept(student("ff_g2m", batch_size=6, **options), graph, outputs_of(graph))
    generator = Generator().manual_seed(0)
    for _ in epochs:
        for batch in source.epoch(generator):
            for name, value in method(model(*batch.inputs), batch).items():
                found[name].append(value.detach())
    for name, values in found.items():
        values = torch.stack(values)
        if edge_batch_size is None or name != "high":
            torch.testing.assert_close(values.mean(), expected[name].detach(), rtol=1e-4, atol=1e-6)
        else:
            assert (values.mean() - expected[name]).abs() < 5 * values.std() / len(values) ** 0.5


def test_a_directed_graph_has_every_arc_in_the_high_part_and_the_exact_gradient_in_the_low():
    graph = blocks()
    graph = replace(graph, edge_index=graph.edge_index[:, ::2])
    outputs = outputs_of(graph)
    model, method, (batch,) = steps("ff_g2m", graph, batch_size="all", lam=0.2)
    parts = method(model(*batch.inputs), batch)
    expected = plain(graph, outputs, model(graph.x).logits.double(), lam=0.2, tau1=1.0, tau2=1.5)
    torch.testing.assert_close(parts["high"].double(), expected["high"], rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(
        *(torch.autograd.grad(p["low"], list(model.parameters()), retain_graph=True) for p in (parts, expected)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


# -- raw and centred logits ----------------------------------------------------------------------------------------


def test_centred_spaces_do_not_see_the_constant_of_a_node_and_raw_does():
    graph = blocks()
    outputs = outputs_of(graph)
    shifted = replace(outputs, logits=outputs.logits + 3 * torch.randn(36, 1, generator=Generator().manual_seed(0)))
    results = {}
    for space, given in itertools.product(("centred", "logprob", "raw"), (outputs, shifted)):
        method = make_method("ff_g2m", {"hfd_space": space})
        results.setdefault(space, []).append(method.prepare(graph, given)["logits"])
    for space in ("centred", "logprob"):
        torch.testing.assert_close(*results[space], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*results["raw"], atol=0.1)


# -- with and without edges ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> tuple[Graph, object]:
    graph = blocks(60, unseen=True)
    return graph, Teacher("gcn", hidden_channels=8, max_epochs=30).fit(graph).outputs(graph)


def test_low_frequencies_are_learned_where_there_are_no_edges(world):
    graph, outputs = world
    options = {"high": 0, "max_epochs": 5, "hidden_channels": 8}
    first, second = (Student("ff_g2m", **options).fit(g, outputs) for g in (graph, graph.without_edges()))
    assert same_bits(weights(first), weights(second))


@pytest.mark.parametrize("options", [{}, {"high": 0, "tau1": 2.0}, {"low": 0}])
def test_where_edges_are_needed_a_graph_without_is_refused(options, world):
    graph, outputs = world
    with pytest.raises(G2MError, match="takes edges"):
        Student("ff_g2m", **options).fit(graph.without_edges(), outputs)


def test_the_low_part_reads_no_edge_at_tau_one(world):
    graph, outputs = world
    observed = graph.observed()
    method = make_method("ff_g2m", {"high": 0})
    with_edges, without = (method.prepare(g, outputs) for g in (observed, observed.without_edges()))
    assert same_bits(with_edges, without)
    # and what the teacher handed over is what the edges would give
    other = make_method("ff_g2m", {"high": 0, "tau1": 1.0 + 1e-7}).prepare(observed, outputs)
    torch.testing.assert_close(other, with_edges, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"low": 0}, {"tau1": 2.0}, {"low": 0, "high": 0, "soft": 1}])
def test_sums_of_the_teacher_are_asked_for_only_where_they_are_read(options):
    """They are not part of what such a student is then, either."""
    graph, outputs = blocks(), outputs_of(blocks())
    bare = replace(outputs, low_target=None)
    first, second = (student("ff_g2m", **options).fit(graph, given) for given in (outputs, bare))
    assert same_bits(weights(first), weights(second))
    assert first.meta_["outputs"] == second.meta_["outputs"] == bare.fingerprint({"logits"})


@pytest.mark.parametrize("options", [{}, {"high": 0}])
def test_where_the_teachers_sums_are_missing_the_error_says_who_makes_them(options):
    graph = blocks()
    with pytest.raises(G2MError, match=r"needs low_target.*teacher\.outputs\(graph\)"):
        student("ff_g2m", **options).fit(graph, replace(outputs_of(graph), low_target=None))


def test_weights_of_nothing_are_refused():
    with pytest.raises(G2MError, match="at least one above 0"):
        make_method("ff_g2m", {"low": 0, "high": 0})


def test_student_comes_to_its_teacher_in_the_high_frequencies_too():
    graph = blocks()
    options = {"hidden_channels": 64, "max_epochs": 300, "patience": 300, "weight_decay": 0.0, "lam": 0.0, "low": 0}
    trained = student("ff_g2m", batch_size="all", **options).fit(graph, outputs_of(graph))
    high = [record["high"] for record in trained.history_.epochs]
    assert high[-1] < 0.5 * high[0]
