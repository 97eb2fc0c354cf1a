"""GLNN against its formula."""

from dataclasses import replace

import pytest
import torch
from cases import blocks, fitted, outputs_of, same_bits, steps, student, weights
from torch.nn import functional as F


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize(("lam", "tau"), [(0.0, 1.0), (0.3, 1.0), (0.5, 2.0), (1.0, 0.5)])
def test_loss_equals_its_formula(lam, tau, unseen):
    """λ mean CE over training nodes + (1 − λ) mean KL(p ‖ q) over observed ones."""
    graph = blocks(unseen=unseen)
    observed, outputs = graph.observed(), outputs_of(graph)
    model, method, (batch,) = steps("glnn", graph, batch_size=1000, lam=lam, tau=tau)
    parts = method(model(*batch.inputs), batch)
    logits, train = model(observed.x).logits.double(), observed.part("train")
    p, q = (z.exp() / z.exp().sum(1, keepdim=True) for z in (outputs.logits.double() / tau, logits / tau))
    soft = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(parts["soft"].double(), (1 - lam) * soft, rtol=1e-4, atol=1e-6)
    label = lam * F.cross_entropy(logits[train], observed.y[train])
    torch.testing.assert_close(parts["label"].double(), label, rtol=1e-4, atol=1e-6)
    assert parts.keys() == {"label", "soft"}


def test_the_released_default_learns_from_the_teacher_alone():
    graph = blocks()
    y = graph.y.clone()
    y[graph.part("train")] = (y[graph.part("train")] + 1) % 3
    assert same_bits(weights(fitted("glnn", graph)), weights(fitted("glnn", replace(graph, y=y))))
    assert not same_bits(weights(fitted("glnn", graph, lam=0.5)), weights(fitted("glnn", replace(graph, y=y), lam=0.5)))


def test_labels_alone_learn_nothing_from_the_teacher():
    graph = blocks()
    first, second = (student("glnn", lam=1.0).fit(graph, outputs_of(graph, seed)) for seed in (0, 1))
    for a, b in zip(weights(first).values(), weights(second).values(), strict=True):
        torch.testing.assert_close(a, b)


def test_student_comes_to_its_teacher():
    graph = blocks()
    outputs = outputs_of(graph)
    trained = student("glnn", hidden_channels=64, max_epochs=300, patience=300, weight_decay=0.0).fit(graph, outputs)
    losses = [record["soft"] for record in trained.history_.epochs]
    assert losses[-1] < 0.01 * losses[0]
