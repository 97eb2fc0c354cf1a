"""SimMLP-like: the loss against its formula, the target against scikit-learn."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import blocks, fitted, intercept, outputs_of, same_bits, student, weights
from sklearn.decomposition import PCA
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from g2m import storage
from g2m.errors import G2MError
from g2m.estimators import Student
from g2m.graph import Graph
from g2m.models import Output


def smoothed(graph: Graph, hops: int) -> np.ndarray:
    """Â^hops X, dense."""
    a = torch.eye(graph.num_nodes, dtype=torch.float64)
    a[graph.edge_index[1], graph.edge_index[0]] = 1
    scale = a.sum(1).rsqrt()
    a = scale[:, None] * a * scale
    return (torch.linalg.matrix_power(a, hops) @ graph.x.double()).numpy()


def made(graph: Graph, batch_size: int = 1000, **options) -> tuple:
    return intercept(student("simmlp", batch_size=batch_size, **options), graph, None)


def same_up_to_signs(found: Tensor, expected: np.ndarray, **close) -> None:
    expected = torch.from_numpy(expected)
    torch.testing.assert_close(found.double() * (found * expected).sum(0).sign(), expected, **close)


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"lam": 0.5, "hops": 1}, {"lam": 1.0, "neighbourhood_weight": 0.3}, {"lam": 0.0, "channels": 3}],
    ids=str,
)
def test_loss_equals_its_formula(options, unseen):
    graph = blocks(unseen=unseen)
    observed, lam, weight = graph.observed(), options.get("lam", 0.1), options.get("neighbourhood_weight", 10)
    model, method, batches = made(graph, 7, **options)
    z = batches.targets["neighbourhood"].double()
    label = 0
    for batch in batches.epoch(Generator().manual_seed(0)):
        assert batch.edge_index is None
        output = model(*batch.inputs)
        parts = method(output, batch)
        assert parts.keys() == {"label", "neighbourhood"}
        mapped, target = method.projection(output.hidden).double(), z[batch.row]
        cosine = (mapped * target).sum(1) / (mapped.norm(dim=1) * target.norm(dim=1))
        expected = weight * (1 - cosine).mean()
        torch.testing.assert_close(parts["neighbourhood"].double(), expected, rtol=1e-4, atol=1e-6)
        label = label + parts["label"] * len(batch.row) / observed.num_nodes
    train = observed.part("train")
    expected = lam * F.cross_entropy(model(observed.x).logits[train], observed.y[train])
    torch.testing.assert_close(label, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 4, 10, 128])
def test_the_target_is_the_principal_components_of_smoothed_features(channels, hops, unseen):
    graph = blocks(60, unseen=unseen)
    _, _, batches = made(graph, channels=channels, hops=hops)
    found, width = batches.targets["neighbourhood"], min(channels, 10)
    assert found.shape == (graph.observed().num_nodes, width)
    expected = PCA(width, svd_solver="full").fit_transform(smoothed(graph.observed(), hops))
    same_up_to_signs(found, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("nodes", "features", "width"), [(36, 3, 3), (36, 1, 1), (12, 40, 12)])
def test_there_are_at_most_as_many_channels_as_features_or_nodes(nodes, features, width):
    graph = blocks(nodes, num_features=features)
    _, method, batches = made(graph, channels=50)
    assert batches.targets["neighbourhood"].shape == (nodes, width)
    assert method.projection.out_features == width
    assert fitted("simmlp", graph, channels=50).predict(graph.x).shape == (nodes,)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # no variance to have a share of
def test_features_that_are_all_the_same_do_no_harm():
    graph = replace(blocks(), x=torch.ones(36, 10)).without_edges()
    trained = fitted("simmlp", graph)
    assert all(value == value for record in trained.history_.epochs for value in record.values())
    assert all(torch.isfinite(value).all() for value in weights(trained).values())


def test_a_graph_without_edges_gives_a_warning():
    with pytest.warns(UserWarning, match="graph: 'blocks' has no edges, 'simmlp' has no neighbourhood.*'mlp'"):
        fitted("simmlp", blocks().without_edges())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted("simmlp", blocks())


def test_no_teacher_is_asked_for_and_none_is_listened_to():
    graph = blocks()
    first, second = student("simmlp").fit(graph), student("simmlp").fit(graph, outputs_of(graph))
    assert same_bits(weights(first), weights(second))
    assert first.meta_["teacher"] is None


def test_a_hidden_state_that_foretells_its_neighbourhood_has_no_loss():
    graph = blocks()
    _, method, batches = made(graph, hidden_channels=10)
    (batch,) = batches.epoch(Generator().manual_seed(0))
    nn.init.eye_(method.projection.weight)
    nn.init.zeros_(method.projection.bias)
    z = batch.targets["neighbourhood"]
    at = Output(torch.zeros(36, 3), torch.arange(1.0, 37)[:, None] * z)  # at any length
    assert abs(method(at, batch)["neighbourhood"]) < 1e-4
    assert method(at._replace(hidden=z.roll(1, 0)), batch)["neighbourhood"] > 0.1


def test_the_neighbourhood_is_learned_and_the_projection_stays_behind(tmp_path):
    graph, options = blocks(), {"hidden_channels": 64, "max_epochs": 100, "patience": 100, "weight_decay": 0.0}
    trained = fitted("simmlp", graph, **options)
    losses = [record["neighbourhood"] for record in trained.history_.epochs]
    assert losses[-1] < 0.3 * losses[0]
    tensors, _ = storage.read(trained.save(tmp_path / "s.safetensors"), "student")
    assert tensors.keys() == trained.model_.state_dict().keys()
    assert torch.equal(Student.load(tmp_path / "s.safetensors").predict(graph.x), trained.predict(graph.x))


def test_without_the_neighbourhood_it_is_an_mlp():
    """Over all nodes, where an MLP takes training nodes alone: the same where one step has them all."""
    graph, options = blocks(), {"batch_size": "all", "weight_decay": 0.0}
    first = fitted("simmlp", graph, lam=1.0, neighbourhood_weight=0.0, **options)
    second = fitted("mlp", graph, **options)
    torch.testing.assert_close(first.predict_logits(graph.x), second.predict_logits(graph.x), rtol=1e-4, atol=1e-5)


def test_a_hidden_state_is_needed():
    with pytest.raises(G2MError, match="num_layers: method 'simmlp' reads a hidden state"):
        student("simmlp", num_layers=1).fit(blocks())
