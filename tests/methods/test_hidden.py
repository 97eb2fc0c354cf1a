"""The hidden state as a target, against its formula."""

import pytest
import torch
from cases import blocks, fitted, intercept, outputs_of, same_bits, steps, student, weights
from torch import Generator, nn
from torch.nn import functional as F

from g2m import storage
from g2m.errors import G2MError
from g2m.estimators import Teacher
from g2m.models import Output


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("options", [{}, {"lam": 0.3, "tau": 2.0, "hidden_weight": 0.5}, {"lam": 1.0}])
def test_loss_equals_its_formula(unseen, options):
    """λ mean CE + (1 − λ) mean KL(p ‖ q) + w mean (1 − cos); in batches, each node against its own hidden state."""
    graph = blocks(unseen=unseen)
    observed, outputs = graph.observed(), outputs_of(graph)
    model, method, batches = intercept(student("hidden", batch_size=7, **options), graph, outputs)
    lam, tau = options.get("lam", 0.0), options.get("tau", 1.0)
    output = model(observed.x)
    mapped, target = method.projection(output.hidden).double(), outputs.hidden.double()
    cosine = (mapped * target).sum(1) / (mapped.norm(dim=1) * target.norm(dim=1))
    hidden = options.get("hidden_weight", 1.0) * (1 - cosine)
    log_p, log_q = ((z.double() / tau).log_softmax(1) for z in (outputs.logits, output.logits))
    soft = (1 - lam) * (log_p.exp() * (log_p - log_q)).sum(1)
    label, train = [], observed.part("train")
    for batch in batches.epoch(Generator().manual_seed(0)):
        parts = method(model(*batch.inputs), batch)
        assert parts.keys() == {"label", "soft", "hidden"}
        torch.testing.assert_close(parts["hidden"].double(), hidden[batch.row].mean(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(parts["soft"].double(), soft[batch.row].mean(), rtol=1e-4, atol=1e-6)
        label.append(parts["label"] * len(batch.row) / observed.num_nodes)
    expected = lam * F.cross_entropy(output.logits[train], observed.y[train])
    torch.testing.assert_close(sum(label), expected, rtol=1e-4, atol=1e-6)


def test_nothing_is_lost_in_the_direction_of_the_teacher_at_any_length():
    graph = blocks()
    outputs = outputs_of(graph)
    _, method, batches = intercept(student("hidden", hidden_channels=6, batch_size=1000), graph, outputs)
    nn.init.eye_(method.projection.weight)
    nn.init.zeros_(method.projection.bias)
    (batch,) = batches.epoch(Generator().manual_seed(0))
    at = Output(outputs.logits[batch.row], torch.arange(1.0, 37)[:, None] * outputs.hidden[batch.row])
    assert abs(method(at, batch)["hidden"]) < 1e-5
    assert abs(method(at._replace(hidden=-at.hidden), batch)["hidden"] - 2) < 1e-5
    assert method(at._replace(hidden=at.hidden.roll(1, 0)), batch)["hidden"] > 0.1


def test_student_comes_to_its_teacher():
    graph = blocks()
    options = {"hidden_channels": 64, "max_epochs": 100, "patience": 100, "weight_decay": 0.0}
    losses = [r["hidden"] for r in student("hidden", **options).fit(graph, outputs_of(graph)).history_.epochs]
    assert losses[-1] < 0.1 * losses[0]


def test_without_the_hidden_state_it_is_soft_labels_alone():
    graph, options = blocks(), {"lam": 0.3, "tau": 2.0, "batch_size": 7, "dropout": 0.3}
    first, other = (fitted("hidden", graph, hidden_weight=w, **options) for w in (0, 1))
    second = fitted("glnn", graph, **options)
    assert same_bits(weights(first), weights(second))
    assert not same_bits(weights(other), weights(second))


def test_the_projection_is_trained_and_stays_behind(tmp_path):
    graph = blocks()
    model, method, (batch,) = steps("hidden", graph, batch_size=1000)
    assert dict(method.named_parameters()).keys() == {"projection.weight", "projection.bias"}
    part = method(model(*batch.inputs), batch)["hidden"]
    assert torch.autograd.grad(part, method.projection.weight)[0].any()
    tensors, _ = storage.read(fitted("hidden", graph).save(tmp_path / "s"), "student")
    assert tensors.keys() == model.state_dict().keys()


def test_hidden_states_of_zero_do_no_harm():
    """A ReLU may be closed for all of a teacher's channels, or of the student's."""
    graph = blocks()
    outputs = outputs_of(graph)
    outputs.hidden[::2] = 0
    trained = student("hidden").fit(graph, outputs)
    assert all(value == value for record in trained.history_.epochs for value in record.values())
    assert all(torch.isfinite(value).all() for value in weights(trained).values())


def test_layers_are_needed_on_both_sides():
    graph = blocks()
    with pytest.raises(G2MError, match="num_layers: method 'hidden' reads a hidden state"):
        student("hidden", num_layers=1).fit(graph, outputs_of(graph))
    flat = Teacher("gcn", num_layers=1, max_epochs=2, device="cpu").fit(graph).outputs(graph)
    with pytest.raises(G2MError, match="'hidden' needs hidden"):
        student("hidden").fit(graph, flat)
    assert student("hidden", num_layers=3).fit(graph, outputs_of(graph)).predict(graph.x).shape == (36,)
