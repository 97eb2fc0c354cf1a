"""Students trained together are the students they would be alone."""

import gc
import re
import time
from dataclasses import replace
from weakref import ref

import pytest
import torch
from cases import blocks, outputs_of, student, teacher_for, thin
from torch import Generator

from g2m import fit_stacked, stacked
from g2m.errors import G2MError
from g2m.estimators import Student
from g2m.graph import Graph
from g2m.methods import REGISTRY
from g2m.methods.base import Method, label_loss
from g2m.stacked import Stack, stack_key

GRAPH = blocks()
#: What members of a stack may differ in.
OPTIONS = [
    {"seed": 0, "dropout": 0.5},
    {"seed": 1, "dropout": 0.2, "lr": 0.003},
    {"seed": 2, "weight_decay": 0.1, "max_epochs": 3},
    {"seed": 3, "dropout": 0.5, "lr": 0.2, "patience": 1, "max_epochs": 9},
    {"seed": 4, "dropout": 1.0},
]


def split_anew(graph: Graph, seed: int) -> Graph:
    """The same graph with parts of the same sizes, elsewhere."""
    order = torch.randperm(graph.num_nodes, generator=Generator().manual_seed(seed))
    return replace(graph, split={part: order[ids].sort().values for part, ids in graph.split.items()})


def same(stacked: Student, alone: Student, graph: Graph) -> None:
    """They have the same history and the same answers, to what the order of sums makes of them."""
    assert stacked.history_.best_epoch == alone.history_.best_epoch
    assert len(stacked.history_) == len(alone.history_)
    for a, b in zip(stacked.history_.epochs, alone.history_.epochs, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(stacked.predict_logits(graph), alone.predict_logits(graph), rtol=1e-3, atol=1e-4)
    varying = {"seconds": 0, "val": 0}
    assert stacked.meta_ | varying == alone.meta_ | varying
    assert stacked.model_.state_dict().keys() == alone.model_.state_dict().keys()
    for tensor in stacked.model_.state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), "a view of the stack"
    assert not stacked.model_.training


def check(name: str, members: list[dict], graph: Graph | list[Graph] = GRAPH, width: int | None = None) -> None:
    """Train members together and one by one, and compare."""
    graphs = graph if isinstance(graph, list) else [graph] * len(members)
    outputs = [teacher_for(name, g, seed) for seed, g in enumerate(graphs)]
    together, alone = ([student(name, **options) for options in members] for _ in range(2))
    assert fit_stacked(together, graph, outputs, width=width) == {}
    for first, second, g, output in zip(together, alone, graphs, outputs, strict=True):
        same(first, second.fit(g, output), g)


ALL = sorted(set(REGISTRY) - {"auto", "onehop"})  # which search


@pytest.mark.parametrize("name", ALL)
def test_every_method_in_batches(name):
    check(name, [{"batch_size": 7, **options} for options in OPTIONS], width=3)


@pytest.mark.parametrize("shape", [{"batch_size": 1}, {"batch_size": 7, "hidden_channels": 1}], ids=str)
@pytest.mark.parametrize("schedule", [False, True])
def test_one_row_a_step_and_one_column_a_layer(shape, schedule):
    check("glnn", [{"max_epochs": 2, "reference_schedule": schedule, **OPTIONS[i], **shape} for i in (0, 1, 4)])


@pytest.mark.parametrize("name", ["glnn", "ff_g2m", "vqgraph"])
def test_everything_in_one_step(name):
    check(name, [{"batch_size": "all", **options} for options in OPTIONS])


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("batch_size", [7, "all"])
def test_norms_and_depths(norm, num_layers, batch_size):
    """Running statistics are each one's own, and compared through the answers."""
    shape = {"norm": norm, "num_layers": num_layers, "batch_size": batch_size}
    check("glnn", [{**shape, **options} for options in OPTIONS], width=3)


@pytest.mark.parametrize("hidden_channels", [8, 72])  # stored as torch has it, and input-major
@pytest.mark.parametrize("batch_size", [11, "all"])
@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_and_dense_features_narrow_and_wide(hidden_channels, batch_size, sparse):
    shape = {"hidden_channels": hidden_channels, "batch_size": batch_size, "num_layers": 3}
    check("glnn", [{**shape, **options} for options in OPTIONS], thin(sparse=sparse), width=4)


@pytest.mark.parametrize("name", ["glnn", "ff_g2m"])
def test_members_on_splits_and_teachers_of_their_own(name):
    check(name, [{"batch_size": 7, **options} for options in OPTIONS], [split_anew(GRAPH, seed) for seed in range(5)])


def test_unseen_nodes_stay_unseen():
    check("glnn", [{"batch_size": 7, **options} for options in OPTIONS], blocks(unseen=True))


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("options", [{}, {"edge_batch_size": 5}, {"reference_schedule": True}])
def test_batches_with_edges_have_rows_of_their_own_number(norm, options):
    """And a member without edges, by its own options, trains among them."""
    shape = {"batch_size": 7, "dropout": 0.3, "norm": norm, **options}
    check("ff_g2m", [{**shape, "seed": seed, "high": high} for seed, high in enumerate([1.0, 0.5, 0.0])])


def test_options_of_the_method_differ():
    check("glnn", [{"lam": lam, "tau": tau, "seed": 1} for lam, tau in [(0.0, 1.0), (0.5, 2.0), (1.0, 0.5)]])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nosmog", [{"position_channels": channels} for channels in (4, 6, 4)] + [{"position": "none"}]),
        ("onehop", [{"lam": 0.0, "channels": 3}, {"lam": 0.5, "channels": 5}, {"lam": 1.0, "channels": 3}]),
    ],
)
def test_positions_are_each_ones_own_and_of_any_number_of_columns(name, options):
    check(name, [{"seed": seed, "batch_size": 7, **each} for seed, each in enumerate(options)], width=3)


def test_features_are_placed_once_for_all_and_those_beside_positions_go_with_their_student(monkeypatch):
    placed = []
    monkeypatch.setattr(stacked, "unless_mapped", lambda x, _: (placed.append(ref(x)), x)[1])
    fit_stacked([student("mlp", seed=seed) for seed in range(3)], GRAPH)
    assert len(placed) == 1
    placed.clear()

    def on_epoch(i, record):
        gc.collect()
        assert [x() is not None for x in placed] == [False] * i + [True]

    students = [student("nosmog", seed=seed) for seed in range(3)]
    fit_stacked(students, GRAPH, outputs_of(GRAPH), width=1, on_epoch=on_epoch)
    assert len(placed) == 3


def test_a_place_that_is_left_goes_to_the_next():
    """Members stop at different epochs; the stack is never wider than asked for, and ends narrower."""
    members = [{"seed": seed, "max_epochs": 1 + seed % 4, "dropout": 0.3, "batch_size": 9} for seed in range(7)]
    widths, train = [], Stack.train_epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "train_epoch", lambda self: (widths.append(len(self.runs)), train(self))[1])
        check("glnn", members, width=3)
    assert max(widths) == 3
    assert sum(widths) == sum(options["max_epochs"] for options in members)
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("width", "expected"), [(2, 2), (100, 3), (None, 3)])
def test_there_is_room_for_no_more_than_there_are(width, expected, monkeypatch):
    room, train = [], Stack.train_epoch
    rows = lambda self: max(map(len, self._weights.values()))  # noqa: E731
    monkeypatch.setattr(Stack, "train_epoch", lambda self: (room.append(rows(self)), train(self))[1])
    check("mlp", [{"seed": seed} for seed in range(3)], width=width)
    assert max(room) == expected


def test_stacks_of_few_have_room_for_few_and_go_when_they_are_empty(monkeypatch):
    stacks, add = [], Stack.add
    monkeypatch.setattr(Stack, "add", lambda self, run: (stacks.append(ref(self)), add(self, run))[1])
    most, train = [], Stack.train_epoch

    def train_epoch(self):
        gc.collect()
        there = {id(stack()): stack() for stack in stacks if stack() is not None}.values()
        most.append((len(there), max(len(own) for stack in there for own in stack._weights.values())))
        train(self)

    monkeypatch.setattr(Stack, "train_epoch", train_epoch)
    check("onehop", [{"lam": 0.5, "channels": channels, "max_epochs": 2} for channels in range(3, 9)], width=2)
    assert max(most) == (2, 1)


def test_seconds_are_shared_out():
    together = [student("glnn", seed=seed) for seed in range(3)]
    started = time.perf_counter()
    fit_stacked(together, GRAPH, outputs_of(GRAPH))
    passed = time.perf_counter() - started
    assert len({one.history_.seconds for one in together}) == 1
    assert 0 < sum(one.history_.seconds for one in together) <= passed


def test_the_callers_stream_is_untouched():
    before = torch.get_rng_state()
    fit_stacked([student("nosmog", dropout=0.5, seed=seed) for seed in range(2)], GRAPH, outputs_of(GRAPH))
    assert torch.equal(torch.get_rng_state(), before)


# -- those that do not end -------------------------------------------------------------------------------------------


class Fails(Method):
    """Makes a mistake at a step of one's choice, as a user's method might."""

    name = "fails"

    def __init__(self, *, at: int = -1) -> None:
        super().__init__()
        self.at, self.step = at, 0

    def loss(self, output, batch):
        self.step += 1
        if self.step == self.at:
            raise G2MError("made: on purpose")
        return {"label": label_loss(output, batch)}


REGISTRY.pop("fails")  # tests of the whole registry are not about it


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_one_that_diverges_leaves_the_rest_alone(norm):
    shape = {"batch_size": 7, "norm": norm, "dropout": 0.2, "max_epochs": 6}
    members = [{"seed": seed, "lr": lr, **shape} for seed, lr in enumerate([0.01, 1e30, 0.02])]
    together, alone = ([student("glnn", **options) for options in members] for _ in range(2))
    failed = fit_stacked(together, GRAPH, outputs_of(GRAPH))
    if norm == "none":  # batch norm brings anything back
        assert failed.keys() == {1}
        assert "Lower lr" in str(failed[1])
        assert not hasattr(together[1], "model_")
    for i in (0, 2):
        same(together[i], alone[i].fit(GRAPH, outputs_of(GRAPH)), GRAPH)


def test_one_whose_weights_overflow_in_its_last_step_fails_alone():
    options = [{"seed": 0}, {"seed": 1, "lr": 1e38}, {"seed": 2}]
    members = [student("mlp", batch_size="all", max_epochs=1, **each) for each in options]
    failed = fit_stacked(members, GRAPH)
    assert list(failed) == [1]
    assert str(failed[1]).startswith("lr: expected steps that leave weights finite")
    for i in (0, 2):
        same(members[i], student("mlp", batch_size="all", max_epochs=1, **options[i]).fit(GRAPH), GRAPH)


@pytest.mark.parametrize("at", [1, 4])
def test_a_mistake_in_a_loss_is_its_members_own(at):
    together = [Student(Fails(at=where), **SMALL, seed=seed) for seed, where in enumerate([-1, at, -1])]
    failed = fit_stacked(together, GRAPH)
    assert {i: str(error) for i, error in failed.items()} == {1: "made: on purpose"}
    for i in (0, 2):
        same(together[i], Student(Fails(), **SMALL, seed=i).fit(GRAPH), GRAPH)


SMALL = {"hidden_channels": 8, "max_epochs": 3, "batch_size": 20, "device": "cpu", "dropout": 0.5}


def test_a_step_of_one_row_under_batch_norm_is_its_members_own_mistake():
    """Here of the one that draws no edges."""
    shape = {"batch_size": 1, "edge_batch_size": 9, "norm": "batch", "num_layers": 3}
    together, alone = ([student("ff_g2m", **shape, seed=0, high=high) for high in (1.0, 0.0)] for _ in range(2))
    failed = fit_stacked(together, GRAPH, outputs_of(GRAPH))
    assert failed.keys() == {1}
    with pytest.raises(G2MError, match=f"^{re.escape(str(failed[1]))}$"):
        alone[1].fit(GRAPH, outputs_of(GRAPH))
    same(together[0], alone[0].fit(GRAPH, outputs_of(GRAPH)), GRAPH)


def test_all_may_fail():
    together = [Student(Fails(at=1), **SMALL, seed=seed) for seed in range(2)]
    assert fit_stacked(together, GRAPH, width=1).keys() == {0, 1}


def test_one_that_is_given_up_stays_unfitted():
    seen, members = [], [{"seed": seed, "batch_size": 7, "dropout": 0.4} for seed in range(3)]
    together, alone = ([student("glnn", **options) for options in members] for _ in range(2))

    def on_epoch(i, record):
        seen.append((i, record["epoch"]))
        return i == 1 and record["epoch"] == 1

    assert fit_stacked(together, GRAPH, outputs_of(GRAPH), on_epoch=on_epoch) == {}
    assert sorted(seen) == [(0, e) for e in range(4)] + [(1, 0), (1, 1)] + [(2, e) for e in range(4)]
    assert not hasattr(together[1], "model_")
    for i in (0, 2):
        same(together[i], alone[i].fit(GRAPH, outputs_of(GRAPH)), GRAPH)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_keys_are_equal_where_students_go_together():
    options = {"lr": 0.1, "dropout": 0.5, "lam": 0.3, "patience": 3, "max_epochs": 9, "weight_decay": 0}
    first = stack_key(student("glnn", seed=1, **options), GRAPH)
    assert hash(first) == hash(stack_key(student("glnn"), GRAPH))
    assert first == stack_key(student("glnn"), blocks(seed=3))
    for other in ({"hidden_channels": 9}, {"num_layers": 3}, {"norm": "batch"}, {"batch_size": 9}):
        assert stack_key(student("glnn", **other), GRAPH) != first
    assert stack_key(student("mlp"), GRAPH) != first
    for graph in (blocks(num_features=9), blocks(num_classes=4), blocks(1200)):
        assert stack_key(student("glnn"), graph) != first


@pytest.mark.parametrize(
    ("students", "graph", "outputs", "message"),
    [
        ([], GRAPH, None, "students: expected some"),
        (student("mlp"), GRAPH, None, r"students: expected a list of them \(got Student\)"),
        ([3], GRAPH, None, r"students: expected some of g2m.Student \(got \['int'\]\)"),
        ([student("mlp"), student("mlp", hidden_channels=9)], GRAPH, None, "hidden_channels of student 0 is 8.*got 9"),
        ([student("mlp"), student("mlp", norm="batch")], GRAPH, None, "norm of student 0 is 'none'"),
        ([student("mlp"), student("glnn")], GRAPH, outputs_of(GRAPH), "method of student 0 is 'mlp'"),
        ([student("mlp")] * 2, GRAPH, None, "got one twice"),
        ([student("mlp"), student("mlp")], [GRAPH], None, r"graph: expected one, or one for each of 2.*got 1"),
        ([student("glnn")], GRAPH, None, "outputs: method 'glnn' learns from a teacher"),
        ([student("auto")], GRAPH, outputs_of(GRAPH), "'auto' of student 0 searches.*Use fit"),
        ([student("mlp"), student("mlp")], [GRAPH, blocks(num_features=9)], None, "features of student 0 is 10"),
        (
            [student("mlp", batch_size=4), student("mlp", batch_size=4)],
            [GRAPH, blocks(72)],
            None,
            "steps of an epoch of student 0 is 2.*got 5",
        ),
    ],
)
def test_what_cannot_be_trained_together_is_refused(students, graph, outputs, message):
    with pytest.raises(G2MError, match=message):
        fit_stacked(students, graph, outputs)


def test_width_out_of_range():
    with pytest.raises(G2MError, match="width: expected a whole number from 1"):
        fit_stacked([student("mlp")], GRAPH, width=0)


def test_an_auto_with_its_mixture_is_a_method_like_any():
    check("auto", [{"mixture": {"glnn": 1.0, "hidden": 2.0}, "seed": seed} for seed in range(2)])


def test_a_onehop_with_its_weight_is_a_method_like_any():
    check("onehop", [{"lam": lam, "seed": seed, "batch_size": 7} for seed, lam in enumerate((0.0, 0.5))])
