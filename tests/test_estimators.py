"""Teacher and Student as a user meets them."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch_geometric.nn as pyg
from cases import blocks, outputs_of, same_bits, weights
from torch import nn
from torch_geometric.data import Data

from g2m import estimators, models, storage
from g2m.data import load
from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.frequency import indicators
from g2m.methods import REGISTRY
from g2m.methods.glnn import GLNN
from g2m.methods.nosmog import NOSMOG
from g2m.models import BACKBONES, Output

GRAPH = blocks()
SMALL = {"hidden_channels": 8, "max_epochs": 3, "device": "cpu"}


class Own(nn.Module):
    """A user's own teacher, with dropout, batch norm and tied weights."""

    def __init__(self, hidden: bool = False, classes: int = 3) -> None:
        super().__init__()
        self.first, self.norm, self.second = pyg.GCNConv(10, 8), nn.BatchNorm1d(8), pyg.GCNConv(8, classes)
        self.bias = nn.Parameter(torch.zeros(classes))
        self.also_bias = self.bias
        self.hidden = hidden

    def forward(self, x, edge_index):
        hidden = nn.functional.dropout(self.norm(self.first(x, edge_index)).relu(), 0.3, self.training)
        logits = self.second(hidden, edge_index) + self.bias + self.also_bias
        return Output(logits, hidden, {"penalty": logits.square().mean()}) if self.hidden else logits


def own(**options) -> Own:
    torch.manual_seed(0)
    return Own(**options)


def teacher(**options) -> Teacher:
    return Teacher(**{"model": "sage", **SMALL, **options})


def learner(**options) -> Student:
    return Student(**{"method": "glnn", **SMALL, **options})


@pytest.fixture(scope="module")
def trained() -> Student:
    return learner(max_epochs=20).fit(GRAPH, outputs_of(GRAPH))


@pytest.fixture(scope="module")
def taught() -> Teacher:
    return teacher(max_epochs=20).fit(GRAPH)


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "text"),
    [
        (Teacher(), "Teacher('sage')"),
        (Teacher("gcn", lr=0.1, seed=3), "Teacher('gcn', lr=0.1, seed=3)"),
        (Teacher("gat", heads=4, norm="batch"), "Teacher('gat', norm='batch', heads=4)"),
        (Teacher("appnp", alpha=0.2), "Teacher('appnp', alpha=0.2)"),
        (Teacher("gcn", precision="bfloat16"), "Teacher('gcn', precision='bfloat16')"),
        (Student(), "Student('glnn')"),
        (Student("mlp", batch_size=9), "Student('mlp', batch_size=9)"),
        (
            Student("glnn", tau=2.0, reference_schedule=True),
            "Student('glnn', reference_schedule=True, tau=2.0)",
        ),
        (Student(GLNN(lam=0.5)), "Student(GLNN(lam=0.5, tau=1.0))"),
    ],
    ids=repr,
)
def test_repr_can_be_pasted_back(estimator, text):
    assert repr(estimator) == text
    assert repr(eval(text)) == text
    back = eval(text).params()
    assert {k: v for k, v in back.items() if k != "method"} == {
        k: v for k, v in estimator.params().items() if k != "method"
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Teacher("sagee"), "Did you mean 'sage'"),
        (lambda: Teacher("gcn", hiden_channels=3), "unknown key 'hiden_channels'"),
        (lambda: Teacher("gat", head=3), "Did you mean 'heads'"),
        (lambda: Teacher("gcn", heads=3), "unknown key 'heads'"),
        (lambda: Teacher(nn.Linear(2, 2), heads=3), "unknown key 'heads'"),
        (lambda: Teacher(3), "model: expected a name or an nn.Module"),
        (lambda: Student("glnnn"), "Did you mean 'glnn'"),
        (lambda: Student("glnn", lamb=0.3), "Did you mean 'lam'"),
        (lambda: Student("glnn", lam=2), "lam: expected a number in"),
        (lambda: Student("mlp", lam=0.3), "unknown key 'lam'"),
        (lambda: Student(GLNN(), lam=0.3), "no options beside an instance"),
        (lambda: Student(3), "method: expected a name, a Method or a subclass"),
        (lambda: Student(dict), "method: expected a name, a Method or a subclass"),
    ],
)
def test_wrong_arguments_are_refused_at_once(make, message):
    with pytest.raises(G2MError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": -1}, "lr"), ({"dropout": 2}, "dropout"), ({"norm": "bach"}, "'batch'"), ({"num_layers": 0}, "num_layers")],
)
def test_wrong_values_are_refused_at_fit(options, message):
    for call in (lambda: teacher(**options).fit(GRAPH), lambda: learner(**options).fit(GRAPH, outputs_of(GRAPH))):
        with pytest.raises(G2MError, match=message):
            call()


# -- unfitted --------------------------------------------------------------------------------------------------------

UNFITTED = [
    (Teacher(), call, (GRAPH,))
    for call in ("predict", "predict_proba", "predict_logits", "answers", "evaluate", "score", "outputs")
]
UNFITTED += [(Student(), call, (GRAPH.x,)) for call in ("predict", "predict_proba", "predict_logits")]
UNFITTED += [(Student(), call, (GRAPH,)) for call in ("answers", "evaluate", "score")]
UNFITTED += [(e, "save", ("nowhere",)) for e in (Teacher(), Student())]
UNFITTED += [(e, "num_parameters", ()) for e in (Teacher(), Student())]


@pytest.mark.parametrize(("estimator", "call", "args"), UNFITTED, ids=lambda v: v if isinstance(v, str) else "")
def test_unfitted_use_says_which_call_to_make(estimator, call, args):
    name = type(estimator).__name__
    with pytest.raises(G2MError, match=rf"not fitted yet\. Call {name}\.fit\(graph, …\) or {name}\.load"):
        getattr(estimator, call)(*args)


# -- fit -------------------------------------------------------------------------------------------------------------


def test_fit_returns_self_and_leaves_the_arguments(taught):
    estimator = learner()
    before = estimator.params()
    assert estimator.fit(GRAPH, outputs_of(GRAPH)) is estimator
    assert estimator.params() == before
    meta = estimator.meta_
    assert (meta["fingerprint"], meta["setting"], meta["epochs"]) == (GRAPH.fingerprint(), "transductive", 3)
    assert meta["teacher"] == {"model": "imaginary", "seed": 0}
    assert meta["val"] == estimator.history_.best_score == estimator.score(GRAPH, "val")
    assert taught.score(GRAPH, "val") == taught.history_.best_score


def test_both_learn():
    graph = blocks(120)
    taught = teacher(max_epochs=60).fit(graph)
    assert taught.score(graph) > 0.8
    trained = learner(max_epochs=100).fit(graph, taught.outputs(graph))
    assert trained.score(graph) > 0.8
    plain = learner(method="mlp", max_epochs=100).fit(graph)
    assert plain.meta_["teacher"] is None
    agreement = (trained.predict(graph.x) == taught.predict(graph)).float().mean()
    assert agreement > 0.8


def test_fitting_again_starts_afresh():
    estimator = learner()
    first = weights(estimator.fit(GRAPH, outputs_of(GRAPH)))
    assert same_bits(first, weights(estimator.fit(GRAPH, outputs_of(GRAPH))))


def test_minibatches_and_the_whole_agree_in_what_they_learn():
    """A batch size of the number of nodes or more is one step an epoch, whatever it is; less is more steps."""
    whole, more = (learner(batch_size=size).fit(GRAPH, outputs_of(GRAPH)) for size in (36, 5000))
    assert same_bits(weights(whole), weights(more))
    graph = blocks(120)
    fits = [learner(batch_size=size, max_epochs=60).fit(graph, outputs_of(graph)) for size in (17, 120)]
    assert not same_bits(*map(weights, fits))
    agreement = (fits[0].predict(graph.x) == fits[1].predict(graph.x)).float().mean()
    assert agreement > 0.9


def test_batch_norm_survives_any_batch_size():
    for size in (2, 5, 7, 35):
        learner(batch_size=size, norm="batch", max_epochs=1).fit(GRAPH, outputs_of(GRAPH))
    with pytest.raises(G2MError, match="norm: 'batch' needs two rows"):
        learner(batch_size=1, norm="batch").fit(GRAPH, outputs_of(GRAPH))


def test_a_graph_without_val_or_train_is_refused():
    for part in ("train", "val"):
        graph = GRAPH.with_split({p: ids for p, ids in GRAPH.split.items() if p != part})
        for call in (lambda g: teacher().fit(g), lambda g: learner(method="mlp").fit(g)):
            with pytest.raises(G2MError, match=f"no part '{part}'"):
                call(graph)


def test_rocauc_is_what_is_validated_and_scored():
    graph = replace(blocks(num_classes=2), metric="rocauc")
    taught = teacher().fit(graph)
    value = estimators.metrics.rocauc(taught.predict_logits(graph)[graph.part("test")], graph.y[graph.part("test")])
    assert taught.score(graph) == value
    assert learner().fit(graph, taught.outputs(graph)).meta_["metric"] == "rocauc"


@pytest.mark.parametrize("select", ["metric", "loss"])
def test_validation_of_one_class_under_rocauc_is_refused(select):
    graph = replace(blocks(num_classes=2), metric="rocauc")
    ids = graph.part("val")
    graph = graph.with_split(graph.split | {"val": ids[graph.y[ids] == 0]})
    with pytest.raises(G2MError, match="does 'val' hold a single class"):
        teacher(select=select).fit(graph)


def test_a_method_may_be_a_class_or_an_instance():
    by_name, by_class, by_instance = (
        learner(method=m, **o).fit(GRAPH, outputs_of(GRAPH))
        for m, o in (("glnn", {"lam": 0.5}), (GLNN, {"lam": 0.5}), (GLNN(lam=0.5), {}))
    )
    assert same_bits(weights(by_name), weights(by_class))
    assert same_bits(weights(by_name), weights(by_instance))
    assert not same_bits(weights(by_name), weights(learner().fit(GRAPH, outputs_of(GRAPH))))


def test_an_instance_is_saved_with_its_own_options(tmp_path):
    saved = learner(method=GLNN(lam=0.5)).fit(GRAPH, outputs_of(GRAPH)).save(tmp_path / "s")
    assert Student.load(saved).options == {"lam": 0.5, "tau": 1.0}


def test_an_instance_is_left_as_it_was():
    class Headed(GLNN):
        name = "headed"

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)

        def loss(self, output, batch):
            return super().loss(output._replace(logits=self.head(output.logits)), batch)

    try:
        method = Headed()
        before = {k: v.clone() for k, v in method.state_dict().items()}
        first, second = (learner(method=method).fit(GRAPH, outputs_of(GRAPH)) for _ in range(2))
    finally:
        del REGISTRY["headed"]
    assert same_bits(before, method.state_dict())
    assert same_bits(weights(first), weights(second))


def test_on_epoch_sees_every_record_and_may_stop():
    seen = []
    history = learner().fit(GRAPH, outputs_of(GRAPH), on_epoch=seen.append).history_
    assert seen == history.epochs

    class Pruned(Exception):
        pass

    def prune(record):
        raise Pruned

    estimator = learner()
    with pytest.raises(Pruned):
        estimator.fit(GRAPH, outputs_of(GRAPH), on_epoch=prune)
    with pytest.raises(G2MError, match="not fitted yet"):
        estimator.predict(GRAPH.x)


# -- student checkpoints ---------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def stop_at_one(record):
    if record["epoch"] == 1:
        raise Killed


def test_a_stopped_student_goes_on_to_the_same_bits(tmp_path):
    options = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}
    whole = learner(dropout=0.5, batch_size=7, max_epochs=6).fit(GRAPH, outputs_of(GRAPH))
    again = learner(dropout=0.5, batch_size=7, max_epochs=6)
    with pytest.raises(Killed):
        again.fit(GRAPH, outputs_of(GRAPH), on_epoch=stop_at_one, **options)
    again.fit(GRAPH, outputs_of(GRAPH), **options)
    assert same_bits(weights(whole), weights(again))
    assert whole.history_.epochs == again.history_.epochs
    assert list(tmp_path.iterdir()) == []


OTHER_RUNS = {
    "config": (lambda: learner(dropout=0.5), GRAPH, 0),
    "instance": (lambda: learner(method=GLNN(lam=0.5)), GRAPH, 0),
    "seed": (lambda: learner(seed=1), GRAPH, 0),
    "fingerprint": (learner, replace(GRAPH, x=GRAPH.x + 1), 0),
    "outputs": (learner, GRAPH, 1),
}


@pytest.mark.parametrize("what", OTHER_RUNS)
def test_the_checkpoint_of_another_student_is_refused(what, tmp_path):
    make, graph, seed = OTHER_RUNS[what]
    options = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}
    with pytest.raises(Killed):
        learner().fit(GRAPH, outputs_of(GRAPH), on_epoch=stop_at_one, **options)
    outputs = outputs_of(graph, seed)
    outputs.meta["teacher"] = {"model": "imaginary", "seed": 0}  # the same configuration does not make the same outputs
    named = {"instance": "config"}.get(what, what)
    with pytest.raises(G2MError, match=rf"made by another run, it differs in: .*{named}"):
        make().fit(graph, outputs, **options)


# -- features only ---------------------------------------------------------------------------------------------------


def test_arrays_in_arrays_out(trained):
    x = GRAPH.x.numpy()
    for call in (trained.predict, trained.predict_proba):
        array, tensor = call(x), call(GRAPH.x)
        assert isinstance(array, np.ndarray)
        assert isinstance(tensor, torch.Tensor)
        assert np.array_equal(array, tensor.numpy())


def test_probabilities_and_classes_follow_from_logits(trained, taught):
    for estimator, given in ((trained, GRAPH.x), (taught, GRAPH)):
        logits, proba = estimator.predict_logits(given), estimator.predict_proba(given)
        torch.testing.assert_close(proba, logits.softmax(-1))
        torch.testing.assert_close(proba.sum(1), torch.ones(36))
        assert torch.equal(estimator.predict(given), logits.argmax(-1))


def same_features(trained, x):
    torch.testing.assert_close(trained.predict_logits(x), trained.predict_logits(GRAPH.x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.double(),
        lambda x: x.double().numpy(),
        lambda x: np.asfortranarray(x.numpy()),
        lambda x: x.tolist(),
        lambda x: x.clone().requires_grad_(),
        lambda x: x.to_sparse(),
        lambda x: x.to_sparse_csr(),
    ],
    ids=["float64", "float64 array", "column-major", "list", "requires grad", "sparse", "sparse rows"],
)
def test_other_kinds_of_features(convert, trained):
    same_features(trained, convert(GRAPH.x))
    assert not trained.predict_logits(convert(GRAPH.x)).requires_grad


def test_integer_features(trained):
    x = torch.arange(20).view(2, 10)
    torch.testing.assert_close(trained.predict_logits(x), trained.predict_logits(x.float()))


@pytest.mark.parametrize("rows", [1, 7, 35, 36, 1000])
def test_chunks_do_not_show(rows, trained, monkeypatch):
    whole = trained.predict_logits(GRAPH.x)
    monkeypatch.setattr(estimators, "_PREDICT_ROWS", rows)
    torch.testing.assert_close(trained.predict_logits(GRAPH.x), whole)


def test_no_rows(trained):
    assert trained.predict(torch.empty(0, 10)).shape == (0,)
    assert trained.predict_proba(np.empty((0, 10))).shape == (0, 3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 9), r"x: expected features of shape \[N, 10\] \(got \(3, 9\)\)"),
        (torch.zeros(10), r"got \(10,\)"),
        (torch.zeros(1, 3, 10), r"got \(1, 3, 10\)"),
        (torch.full((3, 10), float("nan")), "x: expected finite features .*row 0"),
        (torch.tensor([[0.0] * 10, [0.0] * 9 + [float("inf")]]), "row 1"),
        (torch.full((2, 10), 1e300, dtype=torch.float64), "x: expected finite features"),
        (blocks(num_features=9), r"x: expected features of shape \[N, 10\] \(got \(36, 9\)\)"),
        ([["a"] * 10], "x: expected features"),
        (None, "x: expected features"),
        (np.zeros((3, 10), dtype=complex), r"x: expected features .*\(got Tensor: complex numbers\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_features_that_are_refused(x, message, trained):
    with pytest.raises(G2MError, match=message):
        trained.predict(x)


def test_a_graph_of_another_width_is_refused(taught, trained):
    other = blocks(num_features=9)
    for call in (taught.predict, taught.evaluate, trained.evaluate):
        with pytest.raises(G2MError, match="10"):
            call(other)


def test_sparse_training_dense_prediction():
    """Bag-of-words features are trained on sparse and predicted on dense: the scores are those of training."""
    graph = replace(GRAPH, x=nn.functional.one_hot(torch.arange(36) % 20, 20).float())
    trained = learner(max_epochs=5).fit(graph, outputs_of(graph))
    assert trained.score(graph, "val") == trained.history_.best_score


# -- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unseen", [False, True])
def test_scores_by_part(unseen):
    graph = blocks(unseen=unseen)
    for estimator in (teacher().fit(graph), learner().fit(graph, outputs_of(graph))):
        scores = estimator.evaluate(graph)
        assert list(scores) == ["val", "test"] + ["seen", "unseen", "cold"] * unseen
        assert {part: estimator.score(graph, part) for part in scores} == scores
        answers = estimator.answers(graph)
        assert {part: estimators.metrics.score("accuracy", *answer) for part, answer in answers.items()} == scores
        for part, (logits, y) in answers.items():
            ids = graph.part("unseen" if part == "cold" else part)
            assert y.equal(graph.y[ids])
            assert logits.shape == (len(ids), graph.num_classes)
        assert estimator.score(graph) == scores["test"]
        with pytest.raises(G2MError, match="Did you mean 'test'"):
            estimator.score(graph, "tset")
        if not unseen:
            with pytest.raises(G2MError, match="part: expected one of val, test"):
                estimator.score(graph, "unseen")


@pytest.mark.parametrize("metric", ["accuracy", "rocauc"])
def test_all_test_nodes_may_be_unseen(metric):
    graph = replace(blocks(num_classes=2), metric=metric)
    graph = graph.with_split({**graph.split, "unseen": graph.part("test")})
    for estimator in (teacher().fit(graph), learner().fit(graph, outputs_of(graph))):
        scores = estimator.evaluate(graph)
        assert list(scores) == ["val", "test", "unseen", "cold"]
        assert scores["test"] == scores["unseen"]


@pytest.mark.parametrize("metric", ["accuracy", "rocauc"])
def test_cold_are_the_unseen_nodes_without_their_edges(metric):
    graph = replace(blocks(90, num_classes=2, unseen=True), metric=metric)
    unseen, taught = graph.part("unseen"), teacher(max_epochs=10).fit(graph)
    scores, alone = taught.evaluate(graph), taught.predict_logits(graph.without_edges())
    assert scores["cold"] == estimators.metrics.score(metric, alone[unseen], graph.y[unseen])
    assert scores["unseen"] == estimators.metrics.score(metric, taught.predict_logits(graph)[unseen], graph.y[unseen])
    assert scores["cold"] != scores["unseen"]
    assert taught.score(graph, "cold") == scores["cold"]
    flat = taught.evaluate(graph.without_edges())
    assert flat["cold"] == flat["unseen"] == scores["cold"]
    for name in ("mlp", "glnn", "simmlp"):  # these look at no edge in the first place
        scores = learner(method=name).fit(graph, outputs_of(graph)).evaluate(graph)
        assert scores["cold"] == scores["unseen"]


@pytest.mark.parametrize("method", ["nosmog", "onehop"])
def test_new_nodes_are_asked_about_by_features_and_the_neighbours_they_are_linked_to(method, tmp_path):
    graph = blocks(60, unseen=True)
    trained = Student(method, hidden_channels=8, max_epochs=2, device="cpu").fit(graph, outputs_of(graph))
    new = graph.part("unseen")
    row = torch.full((60,), -1)
    row[new] = torch.arange(len(new))
    arcs = graph.edge_index[:, row[graph.edge_index[1]] >= 0]  # those from unseen nodes, too, which do not count
    arcs = torch.stack([arcs[0], row[arcs[1]]])
    expected = trained.predict_logits(graph)[new]
    for student in (trained, Student.load(trained.save(tmp_path / "student.safetensors"))):
        torch.testing.assert_close(student.predict_logits(graph.x[new], arcs), expected)
        assert not torch.allclose(student.predict_logits(graph.x[new]), expected)
    found = trained.predict(graph.x[new].numpy(), arcs.numpy())
    assert isinstance(found, np.ndarray)
    assert found.tolist() == expected.argmax(1).tolist()
    torch.testing.assert_close(trained.predict_proba(graph.x[new], arcs), expected.softmax(1))
    assert torch.equal(trained.predict_logits(graph.x, [[], []]), trained.predict_logits(graph.x))
    repeated = torch.cat([arcs, arcs[:, ::3], arcs.flip(1)], 1)  # a graph merges them
    assert torch.equal(trained.predict_logits(graph.x[new], repeated), trained.predict_logits(graph.x[new], arcs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["glnn", "nosmog", "onehop"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_features_and_arcs_may_be_on_a_gpu(method, device):
    trained = Student(method, hidden_channels=8, max_epochs=1, device="cpu").fit(GRAPH, outputs_of(GRAPH))
    given = (GRAPH.x,) if method == "glnn" else (GRAPH.x, GRAPH.edge_index)
    expected, trained.device = trained.predict_logits(*given), device
    found = trained.predict_logits(*(tensor.cuda() for tensor in given))
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "asked", "edge_index", "message"),
    [
        ("glnn", "x", [[0], [0]], "edge_index: a student of method 'glnn' reads features alone"),
        ("onehop", "graph", [[0], [0]], "edge_index: a graph has its own"),
        (
            "onehop",
            "x",
            [[0, 0]],
            r"edge_index: expected .*int64, shape \[2, E\].*got torch.int64, shape \(1, 2\)",
        ),
        ("onehop", "x", [[0.0], [0.0]], r"edge_index: expected arcs of int64.*got torch.float32"),
        ("onehop", "x", [[0, 1], [0, 36]], r"edge_index: expected arcs to rows 0 to 35 of x \(got one to row 36\)"),
        ("onehop", "x", [[0], [-1]], r"got one to row -1"),
        ("onehop", "x", [[0, 1], [0]], r"edge_index: expected arcs of int64.*got list: expected sequence of length 2"),
    ],
)
def test_arcs_that_lead_nowhere_are_refused(method, asked, edge_index, message):
    graph = blocks()
    trained = Student(method, hidden_channels=8, max_epochs=1, device="cpu").fit(graph, outputs_of(graph))
    with pytest.raises(G2MError, match=message):
        trained.predict(graph if asked == "graph" else graph.x, edge_index)


def test_a_graph_is_taken_for_its_features_where_there_are_no_positions(trained):
    for given in (GRAPH, blocks(7), GRAPH.without_edges()):
        assert torch.equal(trained.predict_logits(given), trained.predict_logits(given.x))
        assert torch.equal(trained.predict(given), trained.predict(given.x))
        assert torch.equal(trained.predict_proba(given), trained.predict_proba(given.x))


def test_student_scores_are_plain_accuracy(trained):
    test = GRAPH.part("test")
    assert trained.score(GRAPH) == float((trained.predict(GRAPH.x[test]) == GRAPH.y[test]).double().mean())


def test_number_of_parameters(trained, taught):
    assert trained.num_parameters() == 10 * 8 + 8 + 8 * 3 + 3 == taught.num_parameters()


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", sorted(BACKBONES))
def test_teacher_save_and_load(model, tmp_path):
    taught = teacher(model=model, norm="batch").fit(GRAPH)
    loaded = Teacher.load(taught.save(tmp_path / "t"))
    assert same_bits(weights(taught), weights(loaded))
    assert torch.equal(taught.predict_logits(GRAPH), loaded.predict_logits(GRAPH))
    assert loaded.params() == taught.params() | {"device": "auto"}
    assert loaded.meta_ == taught.meta_
    assert loaded.history_.epochs == taught.history_.epochs
    assert torch.equal(loaded.outputs(GRAPH).logits, taught.outputs(GRAPH).logits)


def test_a_file_of_a_named_teacher_takes_no_module(taught, tmp_path):
    with pytest.raises(G2MError, match=r"^module: .* holds g2m's 'sage' \(got one of yours\)\. Leave it out"):
        Teacher.load(taught.save(tmp_path / "t"), own())


def test_files_of_one_are_none_of_the_other(trained, taught, tmp_path):
    with pytest.raises(G2MError, match=r"expected a teacher file \(got a student"):
        Teacher.load(trained.save(tmp_path / "s"))
    with pytest.raises(G2MError, match=r"expected a student file \(got a teacher"):
        Student.load(taught.save(tmp_path / "t"))


def test_weights_that_do_not_fit_are_refused(trained, tmp_path):
    tensors, meta = storage.read(trained.save(tmp_path / "s"), "student")
    meta["config"]["hidden_channels"] = 9
    storage.write(tmp_path / "s", "student", tensors, meta)
    with pytest.raises(G2MError, match="do not fit its configuration"):
        Student.load(tmp_path / "s")


# -- a module of the user's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [False, True])
def test_own_module_is_trained_as_handed_over(hidden, tmp_path):
    module = own(hidden=hidden)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    taught = Teacher(module, max_epochs=20, device="cpu").fit(GRAPH)
    assert same_bits(before, module.state_dict())  # the caller's is left alone
    assert not same_bits(before, taught.model_.module.state_dict())
    assert ("penalty" in taught.history_.epochs[0]) is hidden
    assert taught.history_.epochs[-1]["loss"] < taught.history_.epochs[0]["loss"]
    outputs = taught.outputs(GRAPH)
    assert (outputs.hidden is not None) is hidden
    assert outputs.meta["teacher"]["model"] == "Own"
    learner().fit(GRAPH, outputs)
    with pytest.raises(G2MError, match="module of yours"):
        Teacher.load(taught.save(tmp_path / "t"))
    loaded = Teacher.load(tmp_path / "t", own(hidden=hidden))
    assert torch.equal(loaded.predict_logits(GRAPH), taught.predict_logits(GRAPH))
    with pytest.raises(G2MError, match="do not fit"):
        Teacher.load(tmp_path / "t", Answers())


@pytest.mark.parametrize("unseen", [False, True])
def test_from_trained(unseen, tmp_path):
    graph, module = blocks(unseen=unseen), own()
    taught = Teacher.from_trained(module, graph)
    observed = graph.observed()
    module.eval()
    with torch.no_grad():
        expected = module(observed.x, observed.edge_index)
    outputs = taught.outputs(graph)
    torch.testing.assert_close(outputs.logits, expected)
    assert len(taught.history_) == 0
    assert taught.meta_["val"] == taught.evaluate(graph)["val"]
    assert learner().fit(graph, outputs).score(graph) >= 0
    loaded = Teacher.load(taught.save(tmp_path / "t"), own())
    assert torch.equal(loaded.predict_logits(graph), taught.predict_logits(graph))


@pytest.mark.parametrize("classes", [2, 5])
def test_a_module_of_other_shapes_is_refused_before_it_is_trained(classes):
    with pytest.raises(G2MError, match=rf"module: expected logits of shape \(\d+, 3\) .*\(got \(\d+, {classes}\)\)"):
        Teacher(own(classes=classes), max_epochs=1).fit(GRAPH)
    outputs = outputs_of(GRAPH)
    with pytest.raises(G2MError, match=r"outputs: expected a column for each of the 3 classes .*\(got 4\)"):
        replace(outputs, logits=torch.cat([outputs.logits, outputs.logits[:, :1]], 1), low_target=None).check(GRAPH)


class Answers(nn.Module):
    """A module that answers by a function of what a linear layer says."""

    def __init__(self, answer=lambda logits: logits):
        super().__init__()
        self.inner, self.answer = nn.Linear(GRAPH.num_features, GRAPH.num_classes), answer

    def forward(self, x, edge_index):
        return self.answer(self.inner(x))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(GRAPH.num_features, 3), r"called as module\(x, edge_index\) \(too many positional arguments\)"),
        (Answers(lambda logits: (logits, logits)), r"return logits \[N, C\].*\(got tuple\)"),
        (Answers(lambda logits: logits / 0), r"finite logits .*\(got NaN or infinity\)"),
    ],
)
def test_a_module_that_does_not_answer_as_expected_is_refused(module, message):
    for train in (lambda: Teacher(module, max_epochs=1).fit(GRAPH), lambda: Teacher.from_trained(module, GRAPH)):
        with pytest.raises(G2MError, match=f"module: expected .*{message}"):
            train()


def test_a_part_of_the_loss_that_is_called_label_is_refused():
    module = Answers(lambda logits: Output(logits, None, {"label": logits.square().mean()}))
    with pytest.raises(G2MError, match=r"^module: 'label' .*output\.extra"):
        Teacher(module, max_epochs=1).fit(GRAPH)


def test_a_module_without_parameters_is_not_trained():
    with pytest.raises(G2MError, match=r"module: expected parameters to train .*from_trained"):
        Teacher(Answers().requires_grad_(False), max_epochs=1).fit(GRAPH)
    Teacher.from_trained(Answers().requires_grad_(False), GRAPH)


@pytest.mark.parametrize(
    "given",
    [
        lambda x: pd.DataFrame(x, columns=[f"c{i}" for i in range(x.shape[1])]),
        lambda x: pd.DataFrame(x).to_numpy(),
        lambda x: x[:, ::-1].copy()[:, ::-1],
        lambda x: x.astype(">f8"),
        lambda x: x.tolist(),
        lambda x: torch.from_numpy(x).requires_grad_(),
    ],
)
@pytest.mark.filterwarnings("error")
def test_features_of_any_kind_have_the_same_answers(given):
    student, x = Student("mlp", **SMALL).fit(GRAPH), GRAPH.x.numpy()
    assert np.array_equal(np.asarray(student.predict(given(x))), student.predict(x))


def in_precision(outputs, dtype):
    """The same outputs with all values in another precision."""
    values = {name: value.to(dtype) for name, value in vars(outputs).items() if isinstance(value, torch.Tensor)}
    weights = tuple(weight.to(dtype) for weight in outputs.transforms)
    return replace(outputs, **values | {"node_id": outputs.node_id, "transforms": weights})


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_outputs_of_any_precision_train_the_same_student(name):
    outputs = outputs_of(GRAPH)
    rounded = in_precision(in_precision(outputs, torch.bfloat16), torch.float32)
    for given, other in ((outputs, torch.float64), (rounded, torch.bfloat16)):
        one, two = (Student(name, **SMALL).fit(GRAPH, each) for each in (given, in_precision(given, other)))
        assert same_bits(weights(one), weights(two))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_that_computes_in_another_precision_answers_in_float32(dtype):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = own(hidden=True)

        def forward(self, x, edge_index):
            output = self.inner(x, edge_index)
            return output._replace(logits=output.logits.to(dtype), hidden=output.hidden.to(dtype))

    taught = Teacher(Other(), max_epochs=2).fit(GRAPH)
    outputs = taught.outputs(GRAPH)
    assert (outputs.logits.dtype, outputs.hidden.dtype) == (torch.float32, torch.float32)


def test_from_trained_refuses_other_shapes():
    with pytest.raises(G2MError, match=r"module: expected logits of shape \(36, 3\).*\(36, 5\)"):
        Teacher.from_trained(own(classes=5), GRAPH)


def test_own_module_has_no_cache(tmp_path):
    with pytest.raises(G2MError, match="cache: needs a model by name"):
        Teacher(own()).fit(GRAPH, cache=tmp_path)


# -- the cache of teachers -------------------------------------------------------------------------------------------


def never(record):
    raise AssertionError("trained, though a teacher of this graph and configuration is there")


def test_a_cached_teacher_is_not_trained_again(tmp_path):
    first = teacher().fit(GRAPH, cache=tmp_path)
    again = teacher().fit(GRAPH, cache=tmp_path, on_epoch=never)
    assert same_bits(weights(first), weights(again))
    assert torch.equal(first.outputs(GRAPH).logits, again.outputs(GRAPH).logits)
    assert again.meta_ == first.meta_
    assert same_bits(weights(first), weights(teacher().fit(GRAPH)))


def test_a_cached_teacher_is_of_the_graph_it_is_asked_for_on(tmp_path):
    graph = blocks(unseen=True)
    teacher().fit(graph, cache=tmp_path)
    again = teacher().fit(replace(graph.observed(), name="mine"), cache=tmp_path, on_epoch=never)
    assert (again.meta_["graph"], again.meta_["setting"]) == ("mine", "transductive")


def test_a_teacher_of_another_version_is_trained(tmp_path, monkeypatch):
    teacher().fit(GRAPH, cache=tmp_path)
    monkeypatch.setattr(estimators, "versions", lambda: {"g2m": "99.0"})
    seen = []
    teacher().fit(GRAPH, cache=tmp_path, on_epoch=seen.append)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("options", "graph"),
    [
        ({"seed": 1}, GRAPH),
        ({"lr": 0.1}, GRAPH),
        ({"model": "gcn"}, GRAPH),
        ({"reference": True}, GRAPH),
        ({}, replace(GRAPH, x=GRAPH.x + 1)),
        ({}, blocks(unseen=True)),
    ],
)
def test_another_teacher_is_trained(options, graph, tmp_path):
    teacher().fit(GRAPH, cache=tmp_path)
    seen = []
    teacher(**options).fit(graph, cache=tmp_path, on_epoch=seen.append)
    assert len(seen) == 3


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_trained(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(G2MError, match=r"^cache: .*file/teachers/.* cannot be written"):
        teacher().fit(GRAPH, cache=file, on_epoch=never)
    for checkpoint in (file / "c", tmp_path):
        with pytest.raises(G2MError, match=r"^checkpoint: .* cannot be written"):
            learner().fit(GRAPH, outputs_of(GRAPH), checkpoint=checkpoint, on_epoch=never)


def test_a_damaged_cache_is_refused(tmp_path):
    teacher().fit(GRAPH, cache=tmp_path)
    (file,) = (tmp_path / "teachers").iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(G2MError, match="truncated"):
        teacher().fit(GRAPH, cache=tmp_path)


KILLED = """
import functools, os, signal, sys
sys.path.insert(0, {tests!r})
import test_estimators as t
t.estimators.fit = functools.partial(t.estimators.fit, checkpoint_seconds=0)
kill = lambda record: os.kill(os.getpid(), signal.SIGKILL) if record["epoch"] == 2 else None
t.dropping().fit(t.GRAPH, cache={cache!r}, on_epoch=kill)
"""


def dropping() -> Teacher:
    return teacher(model="gcn", dropout=0.5, norm="batch", max_epochs=6)


def test_a_killed_teacher_goes_on_to_the_same_bits(tmp_path):
    code = KILLED.format(tests=str(Path(__file__).parent), cache=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == -signal.SIGKILL
    (checkpoint,) = os.listdir(tmp_path / "teachers")
    assert checkpoint.endswith(".checkpoint")
    seen = []
    resumed = dropping().fit(GRAPH, cache=tmp_path, on_epoch=lambda record: seen.append(record["epoch"]))
    assert seen == [3, 4, 5]
    whole = dropping().fit(GRAPH)
    assert same_bits(weights(whole), weights(resumed))
    assert whole.history_.epochs == resumed.history_.epochs
    assert whole.history_.best_epoch == resumed.history_.best_epoch
    assert [name.endswith(".safetensors") for name in os.listdir(tmp_path / "teachers")] == [True]
    dropping().fit(GRAPH, cache=tmp_path, on_epoch=never)


@pytest.mark.parametrize("options", [{}, {"tokenizer": "beside", "num_codes": 6}])
def test_a_teacher_that_could_not_be_written_goes_on_from_its_checkpoint(options, tmp_path, monkeypatch):
    teacher().fit(GRAPH, cache=tmp_path if options else None)  # what is beside it is written by itself
    with monkeypatch.context() as patch:
        patch.setattr(estimators, "fit", partial(estimators.fit, checkpoint_seconds=0))
        patch.setattr(Teacher, "save", disk_full)
        with pytest.raises(OSError, match="full"):
            teacher(**options).fit(GRAPH, cache=tmp_path)
    resumed = teacher(**options).fit(GRAPH, cache=tmp_path, on_epoch=never)
    assert same_bits(weights(teacher(**options).fit(GRAPH)), weights(resumed))
    assert all(name.endswith(".safetensors") for name in os.listdir(tmp_path / "teachers"))


def test_a_tried_student_that_could_not_be_written_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    options, outputs = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}, outputs_of(GRAPH)
    with monkeypatch.context() as patch:
        patch.setattr(Student, "save", disk_full)
        with pytest.raises(OSError, match="full"):
            learner(method="auto", budget=2).fit(GRAPH, outputs, **options)
    seen = []
    resumed = learner(method="auto", budget=2).fit(GRAPH, outputs, on_epoch=seen.append, **options)
    assert len(seen) == 3, "the second alone"
    assert same_bits(weights(learner(method="auto", budget=2).fit(GRAPH, outputs)), weights(resumed))
    assert list(tmp_path.iterdir()) == []


def disk_full(*_):
    raise OSError("full")


def test_where_no_teacher_is_needed_outputs_are_optional():
    assert learner(method="mlp").fit(GRAPH).score(GRAPH) >= 0
    with pytest.raises(G2MError, match="learns from a teacher"):
        learner().fit(GRAPH)


@pytest.mark.parametrize("options", [{"hidden_channels": 7}, {"num_layers": 3}, {"dropout": 0.5}, {"norm": "batch"}])
def test_a_module_with_a_shape_of_ours_is_refused(options):
    with pytest.raises(G2MError, match=f"{next(iter(options))}: a module has its own shape"):
        Teacher(own(), **options)


def test_numpy_numbers_are_numbers(tmp_path):
    given = {"seed": np.int64(3), "patience": np.int64(2), "lr": np.float32(0.5), "dropout": np.float64(0.5)}
    graph = replace(GRAPH, num_classes=np.int64(3))
    student = learner(**given, batch_size=np.int32(7), lam=np.float32(0.25)).fit(graph, outputs_of(graph))
    loaded = Student.load(student.save(tmp_path / "s.safetensors"))
    assert (loaded.seed, loaded.patience, loaded.lr, loaded.batch_size) == (3, 2, 0.5, 7)
    assert loaded.params()["lam"] == 0.25
    blend = Student("auto", **SMALL, lr=Fraction(1, 100), mixture={"glnn": np.int64(2), "hidden": Fraction(1, 2)})
    loaded = Student.load(blend.fit(graph, outputs_of(graph)).save(tmp_path / "b.safetensors"))
    assert (loaded.lr, loaded.params()["mixture"]) == (0.01, {"glnn": 2, "hidden": 0.5})
    assert type(NOSMOG(adversarial_nodes=np.int64(4)).options()["adversarial_nodes"]) is int
    taught = teacher(**given, max_epochs=np.int64(2), hidden_channels=np.int64(4), checkpoint_activations=False)
    taught.fit(graph, cache=tmp_path)
    assert (
        len(teacher(**given, max_epochs=2, hidden_channels=4).fit(graph, cache=tmp_path, on_epoch=never).history_) == 2
    )
    with pytest.raises(G2MError, match="seed: expected a whole number from 0"):
        learner(seed=-1)


def test_a_student_of_an_unknown_method_still_predicts(trained, tmp_path, monkeypatch):
    path = trained.save(tmp_path / "s.safetensors")
    monkeypatch.delitem(REGISTRY, "glnn")
    loaded = Student.load(path)
    assert torch.equal(loaded.predict_logits(GRAPH.x), trained.predict_logits(GRAPH.x))
    assert (loaded.method, loaded.options) == (trained.method, trained.options)
    again = Student.load(loaded.save(tmp_path / "again.safetensors"))
    assert storage.read(tmp_path / "again.safetensors", "student")[1] == storage.read(path, "student")[1]
    assert torch.equal(again.predict_logits(GRAPH.x), trained.predict_logits(GRAPH.x))
    with pytest.raises(G2MError, match="method: expected one of"):
        loaded.fit(GRAPH, outputs_of(GRAPH))


def test_scores_where_there_is_no_test_part(trained):
    graph = GRAPH.with_split({part: GRAPH.split[part] for part in ("train", "val")})
    assert trained.evaluate(graph) == {"val": trained.score(GRAPH, "val")}


# -- one step an epoch, and what is recorded -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mlp", "glnn", "ff_g2m"])
def test_all_at_once_is_one_batch_of_everything(method):
    graph = blocks()
    first, second = (
        Student(method, hidden_channels=8, max_epochs=4, batch_size=size).fit(graph, outputs_of(graph))
        for size in ("all", 1000)
    )
    for a, b in zip(first.model_.parameters(), second.model_.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"batch_size": "whole"}, {"batch_size": 0}, {"edge_batch_size": 1.5}])
def test_wrong_batch_sizes_are_refused_at_once(options):
    with pytest.raises(G2MError, match=next(iter(options))):
        Student("ff_g2m", **options)


@pytest.mark.parametrize("unseen", [False, True])
def test_indicators_are_recorded_on_the_observed_graph_and_change_nothing(unseen):
    graph = blocks(unseen=unseen)
    observed, outputs = graph.observed(), outputs_of(graph)
    plain, watched = (
        Student("glnn", hidden_channels=8, max_epochs=4, patience=4, dropout=0.3).fit(graph, outputs, indicators=on)
        for on in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.model_.parameters(), watched.model_.parameters(), strict=True))
    record = watched.history_.epochs[watched.history_.best_epoch]
    expected = indicators(watched.predict_logits(observed.x), outputs.logits, observed.edge_index)
    assert {key: record[key] for key in expected._fields} == pytest.approx(expected._asdict(), rel=1e-5)
    assert not set(expected._fields) & plain.history_.epochs[0].keys()


def test_indicators_need_a_teacher_to_compare_with():
    with pytest.raises(G2MError, match=r"indicators: .*teacher\.outputs"):
        Student("mlp").fit(blocks(), indicators=True)
    trained = Student("mlp", hidden_channels=8, max_epochs=2).fit(blocks(), outputs_of(blocks()), indicators=True)
    assert "distance_gap" in trained.history_.epochs[0]
    assert trained.meta_["teacher"] is None, "it has not learned from it"


def test_indicators_need_outputs_and_edges_of_this_graph():
    for method in ("mlp", "glnn"):
        with pytest.raises(G2MError, match="outputs: made on another graph"):
            learner(method=method).fit(GRAPH, outputs_of(blocks(seed=1)), indicators=True)
        for graph in (GRAPH.without_edges(), blocks(edges=False)):
            with pytest.raises(G2MError, match="indicators: compare the ends of edges"):
                learner(method=method).fit(graph, outputs_of(graph), indicators=True)


# -- how a teacher's epoch is chosen -------------------------------------------------------------------------------


@pytest.mark.parametrize("unseen", [False, True])
def test_select_by_loss_takes_the_epoch_of_the_least_validation_loss(unseen, tmp_path):
    graph = blocks(60, unseen=unseen)
    wrong = torch.rand(60, generator=torch.Generator().manual_seed(0)) < 0.3
    graph = replace(graph, y=(graph.y + wrong) % 3)  # more than it can learn: it comes to be wrong and sure of it
    options = {"hidden_channels": 8, "max_epochs": 60, "patience": 60, "lr": 0.1, "weight_decay": 0.0}
    taught = Teacher("gcn", select="loss", **options).fit(graph)
    observed = graph.observed()
    val = observed.part("val")
    logits = taught.predict_logits(observed)[val]
    loss = torch.nn.functional.cross_entropy(logits, observed.y[val])
    scores = [record["val"] for record in taught.history_.epochs]
    assert taught.history_.best_score == max(scores) == pytest.approx(-float(loss), rel=1e-4)
    assert 0 < taught.history_.best_epoch < 59, "neither the first nor the last: there was something to choose"
    # What is told of it is the metric, after saving and loading too.
    assert taught.meta_["val"] == taught.evaluate(graph)["val"]
    loaded = Teacher.load(taught.save(tmp_path / "t.safetensors"))
    assert loaded.history_.best_score == taught.history_.best_score
    assert loaded.select == "loss"
    by_metric = Teacher("gcn", **options).fit(graph)
    assert by_metric.history_.best_score == by_metric.evaluate(graph)["val"]
    assert by_metric.history_.best_epoch != taught.history_.best_epoch


def test_select_has_two_ways():
    with pytest.raises(G2MError, match=r"select.*'los'.*Did you mean 'loss'"):
        Teacher("gcn", select="los")


def test_a_set_of_graphs_is_refused():
    graphs = load("atlas")
    for estimator in (Teacher(), Student("mlp")):
        with pytest.raises(G2MError, match=r"graph: expected a g2m\.Graph.*got Graphs"):
            estimator.fit(graphs)


def test_what_is_no_graph_is_refused_where_one_is_asked_about(taught, trained):
    calls = ("predict", "predict_proba", "predict_logits", "outputs", "answers", "evaluate", "score")
    asked = [getattr(taught, call) for call in calls] + [getattr(trained, call) for call in calls[4:]]
    for given in (Data(GRAPH.x, GRAPH.edge_index, y=GRAPH.y), GRAPH.x):
        for call in (*asked, partial(Teacher.from_trained, own())):
            with pytest.raises(G2MError, match=rf"graph: expected a g2m\.Graph.*got {type(given).__name__}"):
                call(given)


def test_outputs_that_are_none_are_refused(taught):
    for name, given in {"glnn": taught, "mlp": GRAPH.y}.items():
        with pytest.raises(G2MError, match=rf"outputs: expected TeacherOutputs \(got {type(given).__name__}\)"):
            Student(name).fit(GRAPH, given)


# -- several networks ------------------------------------------------------------------------------------------------

SEEDS = (5, 5 + 1_000_003, 5 + 2 * 1_000_003)


def several(**options) -> Teacher:
    return teacher(members=3, seed=5, dropout=0.3, **options)


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("model", ["sage", "gat"])
def test_several_networks_answer_with_their_mean_probabilities(model, unseen, tmp_path):
    graph = blocks(unseen=unseen)
    taught = several(model=model).fit(graph)
    singles = [teacher(model=model, seed=seed, dropout=0.3).fit(graph) for seed in SEEDS]
    assert not same_bits(weights(singles[0]), weights(singles[1]))
    for single, member in zip(singles, taught.model_.members, strict=True):
        assert same_bits(weights(single), member.state_dict())
    mean = sum(single.predict_proba(graph) for single in singles) / 3
    torch.testing.assert_close(taught.predict_proba(graph), mean)
    assert torch.equal(taught.predict(graph), mean.argmax(1))
    assert taught.num_parameters() == 3 * singles[0].num_parameters()
    assert taught.meta_["val"] == taught.evaluate(graph)["val"]

    outputs, first = taught.outputs(graph), singles[0].outputs(graph)
    observed = sum(single.outputs(graph).soft_labels() for single in singles) / 3
    torch.testing.assert_close(outputs.soft_labels(), observed)
    assert torch.equal(outputs.hidden, first.hidden)  # no mean: channels of two networks have nothing in common
    for a, b in zip(outputs.transforms, first.transforms, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(outputs.entropy_change, first.entropy_change)
    loaded = Teacher.load(taught.save(tmp_path / "t"))
    assert same_bits(weights(loaded), weights(taught))
    assert torch.equal(loaded.predict_logits(graph), taught.predict_logits(graph))
    assert loaded.outputs(graph).fingerprint() == outputs.fingerprint()
    assert loaded.params() == taught.params() | {"device": "auto"}
    assert loaded.meta_ == taught.meta_
    for method in ("glnn", "krd", "nosmog", "tined", "auto"):
        options = {"num_layers": 3, "max_epochs": 1} if method == "tined" else {"max_epochs": 1}
        assert learner(method=method, **options).fit(graph, outputs).score(graph) >= 0


def test_several_networks_of_the_last_seed_have_seeds_as_well():
    last = (1 << 32) - 1
    trained = teacher(members=2, seed=last, max_epochs=1).fit(GRAPH)
    alone = teacher(seed=1_000_002, max_epochs=1).fit(GRAPH)
    assert same_bits(trained.model_.members[1].state_dict(), alone.model_.state_dict())


def test_several_networks_share_the_cache_with_each_alone(tmp_path):
    seen = []
    for seed in SEEDS[:2]:
        teacher(seed=seed, dropout=0.3).fit(GRAPH, cache=tmp_path)
    first = several().fit(GRAPH, cache=tmp_path, on_epoch=seen.append)
    assert [record["epoch"] for record in seen] == [0, 1, 2]  # the third
    again = several().fit(GRAPH, cache=tmp_path, on_epoch=never)
    assert same_bits(weights(first), weights(again))
    assert same_bits(weights(first), weights(several().fit(GRAPH)))
    teacher(seed=SEEDS[2], dropout=0.3).fit(GRAPH, cache=tmp_path, on_epoch=never)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: several(tokenizer="inside"), "members: expected 1 with a tokenizer.*got 3"),
        (lambda: Teacher(own(), members=2), "members: a module has its own shape"),
        (lambda: Teacher("gcn", members=0), "members: expected a whole number from 1"),
        (lambda: Teacher("gcn", members=1.5), "members: expected a whole number from 1"),
        (lambda: Teacher("gcn", member=2), "Did you mean 'members'"),
    ],
)
def test_members_that_are_refused(make, message):
    with pytest.raises(G2MError, match=message):
        make()


# -- less memory -----------------------------------------------------------------------------------------------------

DEEP = {"num_layers": 3, "dropout": 0.4, "norm": "batch", "seed": 2}
WAYS = {
    "partitions": {"partitions": 2},
    "fan_out": {"fan_out": [3, 3, 3], "batch_size": 4},
    "inside": {"tokenizer": "inside", "num_codes": 6},
    "beside": {"tokenizer": "beside", "num_codes": 6},
    "members": {"members": 2},
}


@pytest.mark.parametrize(
    "options",
    [
        *({"model": model, "norm": norm} for model in sorted(BACKBONES) for norm in ("none", "batch", "layer")),
        *WAYS.values(),
        {"precision": "bfloat16"},
        {"tokenizer": "reference", "num_codes": 6, "model": "gcn", "num_layers": 2},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_checkpointed_activations_train_the_same_teacher(options, monkeypatch):
    calls, relu_dropout = [], models.relu_dropout
    monkeypatch.setattr(models, "relu_dropout", lambda *given: calls.append(1) or relu_dropout(*given))
    plain = teacher(**DEEP | options).fit(GRAPH)
    once = len(calls)
    checkpointed = teacher(**DEEP | options | {"checkpoint_activations": True}).fit(GRAPH)
    assert len(calls) > 2 * once, "activations are made again"
    assert same_bits(weights(plain), weights(checkpointed))
    assert plain.history_.epochs == checkpointed.history_.epochs


@pytest.mark.parametrize("options", [{}, *WAYS.values()], ids=["whole", *WAYS])
def test_bfloat16_learns_and_answers_in_float32(options, tmp_path):
    taught = teacher(precision="bfloat16", **DEEP | {"max_epochs": 40} | options).fit(GRAPH)
    assert taught.score(GRAPH) > 0.8
    assert not same_bits(weights(taught), weights(teacher(**DEEP | {"max_epochs": 40} | options).fit(GRAPH)))
    assert all(value.dtype != torch.bfloat16 for value in weights(taught).values())
    outputs = taught.outputs(GRAPH)
    assert (outputs.logits.dtype, outputs.hidden.dtype) == (torch.float32, torch.float32)
    loaded = Teacher.load(taught.save(tmp_path / "t"))
    assert loaded.precision == "bfloat16"
    assert torch.equal(loaded.predict_logits(GRAPH), taught.predict_logits(GRAPH))
    taught.model_.precision = loaded.precision = "float32"
    assert same_bits(weights(loaded), weights(taught))


def test_what_is_at_its_default_is_in_no_configuration(tmp_path):
    """Files and caches from before these arguments existed are those of today."""
    late = {"checkpoint_activations": True, "precision": "bfloat16"}
    plain = teacher().fit(GRAPH, cache=tmp_path)
    assert not {*late} & {*plain._config()}
    assert not {*late} & {*storage.read(plain.save(tmp_path / "t"), "teacher")[1]["config"]}
    loaded = Teacher.load(tmp_path / "t")
    assert (loaded.checkpoint_activations, loaded.precision) == (False, "float32")
    files = [teacher(**{name: value})._cache_file(GRAPH, tmp_path) for name, value in late.items()]
    assert len({*files, plain._cache_file(GRAPH, tmp_path)}) == 3
    for name, value in late.items():
        changed = teacher(**{name: value})
        assert f"{name}={value!r}" in repr(changed)
        assert getattr(Teacher.load(changed.fit(GRAPH).save(tmp_path / "t")), name) == value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: teacher(checkpoint_activations=1), r"checkpoint_activations: expected True or False \(got 1\)"),
        (lambda: teacher(precision="bfloat"), "precision: expected one of float32, bfloat16.*Did you mean 'bfloat16'"),
        (lambda: teacher(precision=torch.bfloat16), "precision: expected one of float32, bfloat16"),
        (lambda: Teacher(own(), checkpoint_activations=True), "checkpoint_activations: expected a model by name.*Own"),
        (lambda: Teacher(own(), precision="bfloat16"), "precision: expected a model by name.*Own"),
        (lambda: teacher(precision="bfloat16", device="meta").fit(GRAPH), "precision: expected 'float32' on 'meta'"),
    ],
)
def test_ways_to_less_memory_that_are_refused(make, message):
    with pytest.raises(G2MError, match=message):
        make()


# -- the reference schedule ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(REGISTRY))
def test_the_reference_schedule_needs_a_teacher_to_make_a_difference(method):
    """Where there is none, there are no two passes to be told apart."""
    first, second = (
        learner(method=method, reference_schedule=on, batch_size=7, max_epochs=1).fit(GRAPH, outputs_of(GRAPH))
        for on in (False, True)
    )
    assert same_bits(weights(first), weights(second)) == (not REGISTRY[method].needs)


def test_a_batch_size_without_samples_is_refused():
    with pytest.raises(G2MError, match=r"^batch_size: of steps that fan_out samples \(got 64 without\)"):
        Teacher("sage", batch_size=64)


def test_a_gpu_that_is_too_small_is_a_mistake_with_a_way_out(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB. GPU 0 has …")

    message = r"^device: the GPU's memory does not hold .*\(CUDA out of memory\)"
    taught = teacher().fit(GRAPH)
    monkeypatch.setattr(models.GNN, "forward", full)
    for ask in (lambda: teacher().fit(GRAPH), lambda: taught.predict(GRAPH)):
        with pytest.raises(G2MError, match=message):
            ask()
    monkeypatch.setattr(models.GNN, "inputs_for", full)
    with pytest.raises(G2MError, match=message):
        teacher().fit(GRAPH)
    monkeypatch.setattr(models.MLP, "forward", full)
    with pytest.raises(G2MError, match=message):
        learner().fit(GRAPH, outputs_of(GRAPH))


def test_what_a_module_draws_at_its_first_call_follows_the_seed():
    module, found = pyg.GraphSAGE(-1, 8, 2, 3), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        found.append(Teacher(module, max_epochs=2, device="cpu").fit(GRAPH))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert same_bits(*(weights(each) for each in found))


def test_reading_leaves_the_callers_random_stream(tmp_path, trained, taught):
    before = torch.random.get_rng_state()
    Student.load(trained.save(tmp_path / "student.safetensors"))
    Teacher.load(taught.save(tmp_path / "teacher.safetensors"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_checkpoint_of_another_version_is_not_gone_on_from(tmp_path, monkeypatch):
    def stop(record):
        if record["epoch"] == 1:
            raise KeyboardInterrupt

    outputs, given = outputs_of(GRAPH), {"checkpoint": tmp_path / "half", "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        learner().fit(GRAPH, outputs, **given, on_epoch=stop)
    monkeypatch.setattr(estimators, "versions", lambda: {"g2m": "99.0"})
    with pytest.raises(G2MError, match=r"^checkpoint: "):
        learner().fit(GRAPH, outputs, **given)


def test_a_student_of_options_that_are_not_known_here_can_be_kept_and_is_not_taken_over(tmp_path, trained):
    path = trained.save(tmp_path / "student.safetensors")
    loaded = Student.load(path)
    loaded.options = {**loaded.options, "gone": 1}
    assert same_bits(weights(Student.load(loaded.save(path))), weights(trained))
    for other, epochs in ((trained, 0), (loaded, 20)):
        seen = []
        learner(max_epochs=20).fit(GRAPH, outputs_of(GRAPH), trained=other, on_epoch=seen.append)
        assert len(seen) == epochs


def test_an_option_that_no_file_can_hold_is_said_when_it_is_to_be_kept(tmp_path):
    class Weighed(GLNN):
        name = "weighed"

        def __init__(self, *, weight: object = None) -> None:
            super().__init__()
            self.weight = weight

    try:
        student = Student(Weighed(weight=torch.ones(3)), **SMALL).fit(GRAPH, outputs_of(GRAPH))
        with pytest.raises(G2MError, match=r"^method 'weighed': to be saved or resumed, weight has to be"):
            student.save(tmp_path / "student.safetensors")
    finally:
        del REGISTRY["weighed"]
    assert not list(tmp_path.iterdir())


def test_a_student_counts_what_it_looks_up():
    nosmog = learner(method="nosmog").fit(GRAPH, outputs_of(GRAPH))
    assert nosmog.num_entries() == nosmog.position_[1].numel() > 0
    assert learner().fit(GRAPH, outputs_of(GRAPH)).num_entries() == 0
    coded = teacher(tokenizer="inside", num_codes=4).fit(GRAPH)
    assert coded.num_entries() == coded.outputs(GRAPH).codebook.numel()
