"""Onehop: what it reads against dense algebra and scikit-learn, what it never reads, and which target it takes."""

from dataclasses import replace

import pytest
import torch
from cases import blocks, fitted, intercept, of_the_neighbour, outputs_of, same_bits, steps, student, thin, weights
from sklearn.decomposition import PCA
from torch import Generator, Tensor

from g2m.estimators import Student, Teacher
from g2m.graph import Graph
from g2m.methods import REGISTRY, make_method
from g2m.methods.onehop import TARGETS, Onehop

GRAPHS = {"blocks": blocks(), "thin": thin(), "directed": thin(directed=True), "unseen": blocks(unseen=True)}


def read(graph: Graph, **options) -> Tensor:
    """The columns that the student reads beside the features of the observed graph."""
    _, _, batches = intercept(student("onehop", lam=0.0, **options), graph, outputs_of(graph))
    return batches.x[:, graph.num_features :]


def mean_over_neighbours(graph: Graph) -> Tensor:
    """D⁻¹A, dense: row i is the mean over the sources of i's arcs, without i; zero where there are none."""
    dense = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    dense[graph.edge_index[1], graph.edge_index[0]] = 1
    return dense / dense.sum(1, keepdim=True).clamp(min=1)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("channels", [1, 4, 64])
def test_it_reads_the_mean_of_its_neighbours_rows(channels, graph):
    observed, p = graph.observed(), outputs_of(graph).soft_labels().double()
    width = min(channels, *observed.x.shape)
    mean = mean_over_neighbours(observed)
    components = torch.from_numpy(PCA(width, svd_solver="full").fit_transform(observed.x.double().numpy()))
    found = read(graph, channels=channels).double()
    assert found.shape == (observed.num_nodes, width + 3)
    expected = mean @ components
    signs = (found[:, :width] * expected).sum(0).sign()
    torch.testing.assert_close(found[:, :width] * signs, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[:, width:], mean @ (p - p.mean(0)), rtol=1e-4, atol=1e-6)


def test_a_nodes_own_row_is_not_among_what_it_reads():
    graph = blocks()
    outputs = outputs_of(graph)
    logits = outputs.logits.clone()
    logits[5] = torch.tensor([9.0, 0, -9])

    def columns(outputs) -> Tensor:
        return intercept(student("onehop", lam=0.0), graph, outputs)[2].x[:, -3:]

    moved = columns(replace(outputs, logits=logits)) - columns(outputs)
    neighbours = graph.edge_index[1, graph.edge_index[0] == 5]
    others = torch.ones(36, dtype=torch.bool)
    others[neighbours] = False
    assert (moved[neighbours] - moved[5]).abs().max() > 0.1
    # the mean over all has moved, and that in all rows alike
    torch.testing.assert_close(moved[others], moved[5].expand(int(others.sum()), -1), rtol=0, atol=1e-6)


def test_answers_on_a_graph_are_of_the_columns_trained_on():
    graph = blocks(unseen=True)
    outputs, observed = outputs_of(graph), graph.observed()
    trained = student("onehop", lam=0.5).fit(graph, outputs)
    model, (known, rows) = trained.model_, trained.position_
    mean = mean_over_neighbours(graph)[:, known]  # arcs from unseen nodes do not count
    isolated = mean.sum(1) == 0
    mean = mean / mean.sum(1, keepdim=True).masked_fill(isolated[:, None], 1)
    expected = model(torch.cat([graph.x, (mean @ rows.double()).float()], 1)).logits
    torch.testing.assert_close(trained.predict_logits(graph), expected, rtol=1e-4, atol=1e-5)
    x = torch.cat([observed.x, read(graph)], 1)
    torch.testing.assert_close(trained.predict_logits(graph)[known], model(x).logits, rtol=1e-4, atol=1e-5)
    alone = model(torch.cat([graph.x, torch.zeros(36, rows.size(1))], 1)).logits
    torch.testing.assert_close(trained.predict_logits(graph.x), alone)


def test_unseen_nodes_move_no_ones_answer_but_their_own():
    graph = blocks(60, unseen=True)
    trained = fitted("onehop", graph, lam=0.0)
    unseen = graph.part("unseen")
    pairs = torch.cartesian_prod(unseen, unseen).T
    x = graph.x.clone()
    x[unseen[0]] += 7
    other = replace(graph, x=x, edge_index=torch.cat([graph.edge_index, pairs[:, pairs[0] != pairs[1]]], 1))
    before, after = trained.predict_logits(graph), trained.predict_logits(other)
    rest = torch.arange(60) != unseen[0]
    assert torch.equal(before[rest], after[rest])
    assert not torch.equal(before[unseen[0]], after[unseen[0]])


def test_a_saved_one_answers_the_same_on_the_graph(tmp_path):
    graph = blocks(unseen=True)
    trained = fitted("onehop", graph, lam=0.0)
    loaded = Student.load(trained.save(tmp_path / "student.safetensors"))
    assert torch.equal(loaded.predict_logits(graph), trained.predict_logits(graph))
    assert loaded.evaluate(graph) == trained.evaluate(graph)


@pytest.mark.parametrize(
    "options", [{"lam": 0.3}, {"lam": 0.0, "propagations": 0}, {"lam": 1.0, "tau": 2.0, "alpha": 0.4}], ids=str
)
def test_its_loss_is_that_of_propagated(options):
    graph = blocks()
    model, method, batches = intercept(student("onehop", **options), graph, outputs_of(graph))
    other = make_method("propagated", options)
    torch.manual_seed(1)  # which quarter is asked alone: one with labels in it
    for batch in batches.epoch(Generator().manual_seed(0)):
        targets = {key: value[batch.row] for key, value in other.prepare(graph, outputs_of(graph)).items()}
        output = model(*batch.inputs)
        found, expected = dict(method(output, batch)), other(output, replace(batch, targets=targets))
        assert found.pop("alone") > 0
        assert found == expected


@pytest.mark.parametrize("options", [{"lam": 0.3}, {"lam": 1.0}], ids=str)
@pytest.mark.parametrize("graph", [blocks(), thin(sparse=True)], ids=["dense", "sparse"])
def test_alone_is_the_loss_of_nodes_as_if_nothing_were_linked_to_them(options, graph):
    """Of random quarters of the batch: on average, of all of it."""
    model, method, (batch,) = steps("onehop", graph, batch_size="all", alone=2.0, **options)
    x = batch.inputs[0] if isinstance(batch.inputs[0], Tensor) else batch.inputs[0].to_dense()
    cut = torch.cat([x[:, : graph.num_features], torch.zeros(len(x), x.size(1) - graph.num_features)], 1)
    other = make_method("propagated", options)
    targets = other.prepare(graph, outputs_of(graph))
    whole = sum(other(model(cut), replace(batch, targets=targets)).values())
    with torch.no_grad():
        found = torch.stack([method(model(*batch.inputs), batch)["alone"] for _ in range(600)])
    assert found.std() > 0
    torch.testing.assert_close(found.mean(), 2 * whole, rtol=0, atol=5 * float(found.std()) / 600**0.5)
    assert (batch.inputs[0] if isinstance(batch.inputs[0], Tensor) else batch.inputs[0].to_dense()).equal(x)


def test_alone_may_be_left_out():
    graph = blocks()
    model, method, batches = intercept(student("onehop", lam=0.0, alone=0.0), graph, outputs_of(graph))
    for batch in batches.epoch(Generator().manual_seed(0)):
        assert method(model(*batch.inputs), batch).keys() == {"label", "soft"}


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_a_step_on_labels_and_one_on_the_teacher_are_the_whole_loss(lam):
    model, method, (batch,) = steps("onehop", blocks(), batch_size="all", lam=lam)

    def parts(only):
        torch.manual_seed(1)
        return dict(method(model(*batch.inputs), replace(batch, only=only)))

    of_teacher = parts("teacher")
    of_teacher.pop("label")
    together = parts("label")["label"] + sum(of_teacher.values())
    torch.testing.assert_close(together, sum(parts(None).values()))


def test_batch_norm_learns_from_nodes_with_their_neighbours_only():
    graph = blocks()
    model, method, (batch,) = steps("onehop", graph, batch_size="all", lam=0.0, norm="batch")
    model.train()
    output = model(*batch.inputs)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method(output, batch)
    assert same_bits(before, model.state_dict())


def test_three_targets_are_tried_and_the_one_taken_is_named():
    graph = blocks()
    trained = fitted("onehop", graph, alpha=0.3, channels=4)
    trials = trained.meta_["trials"]
    assert [trial["lam"] for trial in trials] == [0, 0, 1]
    assert [trial["propagations"] for trial in trials] == [10, 0, 10]
    assert all((trial["alpha"], trial["channels"], trial["method"]) == (0.3, 4, "onehop") for trial in trials)
    alone = [fitted("onehop", graph, alpha=0.3, channels=4, **target) for target in TARGETS]
    assert [one.history_.best_score for one in alone] == [trial["val"] for trial in trials]
    assert any(same_bits(weights(trained), weights(one)) for one in alone)
    assert "trials" not in alone[0].meta_


def test_a_method_made_of_it_is_what_is_tried():
    class Mine(Onehop):
        name = "mine"

        def __init__(self, *, own: float = 2.0, **options) -> None:
            super().__init__(**options)
            self.own = own

        @classmethod
        def options(cls):
            return {**Onehop.options(), "own": 2.0}

    try:
        trained = student("mine", own=3.0).fit(blocks(), outputs_of(blocks()))
    finally:
        del REGISTRY["mine"]
    assert [(trial["method"], trial["own"]) for trial in trained.meta_["trials"]] == [("mine", 3.0)] * 3


@pytest.mark.parametrize("name", ["onehop", "auto"])
def test_features_are_decomposed_once_for_all_that_are_tried(name, monkeypatch):
    found, fit_transform = [], PCA.fit_transform
    monkeypatch.setattr(PCA, "fit_transform", lambda self, x: found.append(len(x)) or fit_transform(self, x))
    options = {"neighbours": True, "budget": 3} if name == "auto" else {}
    trained = fitted(name, blocks(unseen=True), **options)
    assert len(trained.meta_["trials"]) == 3
    assert found == [blocks(unseen=True).observed().num_nodes]


def test_what_is_trained_does_not_hold_the_rows_again():
    graph = blocks()
    method = make_method("onehop", {"lam": 0.0})
    _, copied, batches = intercept(student(method), graph, outputs_of(graph))
    assert (len(method._components), len(copied._components)) == (1, 0)
    assert copied.options() == method.options()
    again = intercept(student("onehop", lam=0.0), graph, outputs_of(graph))[2]
    assert torch.equal(batches.x, again.x)


def test_rows_are_of_the_graph_at_hand():
    """A method that is used again on another graph, or one graph's features changed."""
    graph = blocks()
    other = replace(graph, x=graph.x + torch.arange(10) * graph.y[:, None])
    outputs = outputs_of(graph)
    moved = replace(outputs, meta=outputs.meta | {"fingerprint": other.fingerprint()})
    method = make_method("onehop", {"lam": 0.0})
    first = method.positions(graph, outputs)
    second = method.positions(other, moved)
    assert not torch.allclose(first, second, atol=0.1)
    assert torch.equal(second, make_method("onehop", {"lam": 0.0}).positions(other, moved))
    assert torch.equal(method.positions(graph, outputs), first)


def test_nothing_is_tried_twice():
    trials = fitted("onehop", blocks(), propagations=0).meta_["trials"]
    assert [(trial["lam"], trial["propagations"]) for trial in trials] == [(0, 0), (1, 0)]


def test_what_neighbours_have_is_learnt_and_a_teacher_that_is_wrong_is_left():
    graph = of_the_neighbour(0.0)
    outputs = outputs_of(graph)  # of random weights
    options = {"max_epochs": 60, "hidden_channels": 16, "lr": 0.02}
    trained = student("onehop", **options).fit(graph, outputs)
    assert trained.evaluate(graph)["test"] > 0.9
    taken = max(trained.meta_["trials"], key=lambda trial: trial["val"])
    assert taken["lam"] == 1
    assert student("mlp", **options).fit(graph).evaluate(graph)["test"] < 0.65


def test_a_teacher_that_is_right_is_believed():
    graph = of_the_neighbour(0.3)
    outputs = outputs_of(graph)
    true = (graph.x[torch.arange(600).reshape(-1, 2).flip(1).flatten(), :1] > 0).float()
    outputs = replace(outputs, logits=torch.cat([3 - 6 * true, 6 * true - 3], 1))
    options = {"max_epochs": 30, "hidden_channels": 16, "lr": 0.02, "propagations": 0, "clamp": False}
    trained, believing = (student("onehop", lam=lam, **options).fit(graph, outputs) for lam in (None, 0.0))
    assert trained.meta_["trials"][0]["val"] > trained.meta_["trials"][-1]["val"]
    assert same_bits(weights(trained), weights(believing))


def test_teachers_are_fit_for_it():
    graph = blocks(unseen=True)
    outputs = Teacher("gat", hidden_channels=8, max_epochs=2, device="cpu").fit(graph).outputs(graph)
    assert student("onehop").fit(graph, outputs).evaluate(graph).keys() == {"val", "test", "seen", "unseen", "cold"}
