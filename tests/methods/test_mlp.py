"""The plain MLP: labels and nothing else."""

import torch
from cases import blocks, fitted, outputs_of, same_bits, steps, student, weights
from torch.nn import functional as F


def test_the_loss_is_cross_entropy_on_training_nodes():
    graph = blocks()
    model, method, (batch,) = steps("mlp", graph, batch_size=1000)
    train = graph.part("train")
    assert batch.row.sort().values.tolist() == train.tolist()
    expected = F.cross_entropy(model(graph.x[train]).logits, graph.y[train])
    loss = method(model(*batch.inputs), batch)
    assert loss.keys() == {"label"}
    torch.testing.assert_close(loss["label"], expected)


def test_a_teacher_makes_no_difference():
    graph = blocks()
    alone = fitted("mlp", graph)
    beside = student("mlp").fit(graph, outputs_of(graph))
    assert same_bits(weights(alone), weights(beside))


def test_edges_make_no_difference():
    assert same_bits(weights(fitted("mlp", blocks())), weights(fitted("mlp", blocks(edges=False))))


def test_the_reference_schedule_makes_no_difference():
    graph = blocks()
    assert same_bits(weights(fitted("mlp", graph)), weights(fitted("mlp", graph, reference_schedule=True)))


def test_it_fits_its_training_nodes():
    graph = blocks()
    train = graph.part("train")
    trained = fitted("mlp", graph, max_epochs=100, patience=100)
    assert torch.equal(trained.predict(graph.x[train]), graph.y[train])
