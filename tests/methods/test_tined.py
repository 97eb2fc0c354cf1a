"""TINED-like: a student that starts where its teacher is without its graph."""

from dataclasses import replace

import pytest
import torch
from cases import blocks, fitted, intercept, outputs_of, student
from torch import Generator, nn
from torch.nn import functional as F

from g2m.errors import G2MError
from g2m.estimators import Teacher
from g2m.methods.tined import TINED
from g2m.outputs import TeacherOutputs

GRAPH = blocks(unseen=True)


def teacher(backbone: str, num_layers: int = 2, **options) -> Teacher:
    """A trained teacher without biases: they are no part of a linear map, and are not copied."""
    common = {"hidden_channels": 8, "max_epochs": 3, "device": "cpu"}
    trained = Teacher(backbone, num_layers=num_layers, **common, **options).fit(GRAPH)
    for name, parameter in trained.model_.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
    return trained


def start(outputs: TeacherOutputs, **options) -> torch.nn.Module:
    """The student before training."""
    return intercept(student("tined", **options), GRAPH, outputs)[0].eval()


@pytest.mark.parametrize("backbone", ["gcn", "sage", "gat", "appnp"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("between", [True, False], ids=["a layer for each propagation", "none"])
def test_a_student_starts_as_its_teacher_without_the_graph(between, num_layers, backbone):
    trained = teacher(backbone, num_layers)
    outputs = trained.outputs(GRAPH)
    assert len(outputs.transforms) == num_layers
    model = start(outputs, num_layers=2 * num_layers - 1 if between else num_layers)
    expected = trained.predict_logits(GRAPH.without_edges())
    with torch.no_grad():
        torch.testing.assert_close(model(GRAPH.x).logits, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, trained.predict_logits(GRAPH), atol=1e-2)


@pytest.mark.parametrize("width", [5, 8, 12])
def test_of_another_width_the_block_in_common_is_copied(width):
    outputs, same = teacher("gcn", 3).outputs(GRAPH), min(width, 8)
    model = start(outputs, num_layers=5, hidden_channels=width)
    plain = start(outputs, num_layers=3, hidden_channels=width)
    sizes = [(same, 10), (same, same), (3, same)]
    for layers in (model.layers[::2], plain.layers):
        for layer, weight, (rows, columns) in zip(layers, outputs.transforms, sizes, strict=True):
            assert torch.equal(layer.weight[:rows, :columns], weight[:rows, :columns])
            rest = torch.ones_like(layer.weight, dtype=torch.bool)
            rest[:rows, :columns] = False
            assert layer.weight[rest].ne(0).all(), "the rest is as it is drawn"
    for layer in model.layers[1::2]:
        assert torch.equal(layer.weight, torch.eye(width))
    assert not any(layer.bias.any() for layers in (model.layers, plain.layers) for layer in layers)


def test_a_teachers_tensors_are_copied_and_not_shared():
    outputs = teacher("gcn").outputs(GRAPH)
    before = [weight.clone() for weight in outputs.transforms]
    student("tined", num_layers=3).fit(GRAPH, outputs)
    assert all(torch.equal(a, b) for a, b in zip(before, outputs.transforms, strict=True))


@pytest.mark.parametrize(("teachers", "students"), [(2, 1), (2, 4), (3, 2), (3, 4), (3, 6)])
def test_another_depth_is_refused(teachers, students):
    outputs = teacher("gcn", teachers).outputs(GRAPH)
    message = rf"^num_layers: .*teacher of {teachers}, expected {2 * teachers - 1}, or {teachers} .*got {students}\)"
    with pytest.raises(G2MError, match=message):
        student("tined", num_layers=students).fit(GRAPH, outputs)


def test_a_teacher_whose_layers_are_no_linear_maps_is_refused():
    for trained in (teacher("gin"), Teacher(Flat(), max_epochs=1, device="cpu").fit(GRAPH)):
        outputs = trained.outputs(GRAPH)
        assert outputs.transforms is None
        with pytest.raises(G2MError, match="'tined' needs transforms, which this teacher does not emit"):
            student("tined", num_layers=3).fit(GRAPH, outputs)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 3)

    def forward(self, x, edge_index):
        return self.linear(x)


@pytest.mark.parametrize("options", [{}, {"lam": 0.3, "tau": 2.0}], ids=str)
def test_loss_equals_its_formula(options):
    outputs, lam, tau = outputs_of(GRAPH), options.get("lam", 0.0), options.get("tau", 1.0)
    model, method, batches = intercept(student("tined", batch_size="all", **options), GRAPH, outputs)
    (batch,) = batches.epoch(Generator())
    output, train = model(*batch.inputs), GRAPH.observed().part("train")
    parts = method(output, batch)
    log_p, log_q = ((z / tau).log_softmax(1) for z in (outputs.logits, output.logits))
    torch.testing.assert_close(parts["soft"], (1 - lam) * (log_p.exp() * (log_p - log_q)).sum(1).mean())
    torch.testing.assert_close(parts["label"], lam * F.cross_entropy(output.logits[train], batch.y[train]))
    assert parts.keys() == {"label", "soft"}


def test_it_starts_ahead_of_glnn():
    graph = blocks(120)
    outputs = Teacher("gcn", hidden_channels=16, max_epochs=60, device="cpu").fit(graph).outputs(graph)
    options = {"hidden_channels": 16, "num_layers": 3, "max_epochs": 2, "lr": 1e-4}
    first, second = (student(name, **options).fit(graph, outputs).history_.epochs[0] for name in ("tined", "glnn"))
    assert first["val"] > second["val"]
    assert fitted("tined", graph).method == TINED.name


def test_whatever_the_norm_it_trains():
    for norm in ("none", "batch", "layer"):
        student("tined", num_layers=3, norm=norm).fit(GRAPH, teacher("sage", norm=norm).outputs(GRAPH))


def test_files_keep_the_maps(tmp_path):
    outputs = teacher("gcn").outputs(GRAPH)
    loaded = TeacherOutputs.load(outputs.save(tmp_path / "o"))
    first, second = (start(o, num_layers=3, hidden_channels=12) for o in (outputs, loaded))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(G2MError, match="needs transforms"):
        student("tined", num_layers=3).fit(GRAPH, replace(outputs, transforms=None))
