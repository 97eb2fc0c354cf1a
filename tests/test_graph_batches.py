"""Batches of graphs: each once an epoch or drawn by weight, and a loss that is a weighted mean."""

import pytest
import torch
from graph_cases import random_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Generator, Tensor
from torch.nn import functional as F

from g2m import G2MError
from g2m.batches import Batch, GraphBatches
from g2m.condense.program import Program

quick = settings(max_examples=60)
sizes = st.one_of(st.integers(1, 12), st.just("all"))


class Rows:
    """A program of which all that matters is whose it is."""

    def __init__(self, row: Tensor) -> None:
        self.row, self.device = row, None

    def of(self, row: Tensor) -> "Rows":
        return Rows(self.row[row])

    def to(self, device: str) -> "Rows":
        other = Rows(self.row)
        other.device = device
        return other


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def batches(y: Tensor, weight: Tensor | None = None, **options) -> GraphBatches:
    return GraphBatches(Rows(torch.arange(len(y))), y, weight, **options)


def rows(found: list[Batch]) -> list[int]:
    return torch.cat([batch.row for batch in found]).tolist()


def consistent(found: list[Batch], y: Tensor) -> bool:
    return all(
        torch.equal(batch.inputs[0].row, batch.row)
        and torch.equal(batch.y.nan_to_num(-1), y[batch.row].nan_to_num(-1))
        and batch.labelled.tolist() == [True] * len(batch.row)
        and len(batch.inputs) == 1
        for batch in found
    )


def value(batch: Batch, loss: Tensor) -> Tensor:
    """What a loss makes of the values ``[B]`` or ``[B, T]`` of a batch's rows."""
    return (batch.targets["weight"] * loss[batch.row].nan_to_num()).sum() * batch.label_scale


# -- each once ---------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 30), sizes, st.integers(0, 99))
def test_an_epoch_has_every_graph_once(num_graphs, size, seed):
    y = torch.arange(num_graphs)
    found = list(batches(y, batch_size=size).epoch(generator(seed)))
    assert sorted(rows(found)) == y.tolist()
    assert consistent(found, y)
    size = num_graphs if size == "all" else size
    whole, left = divmod(num_graphs, size)
    lengths = [size] * whole + [left] * (left > 0)
    if left == 1 < size and whole:  # a single graph left over joins the batch before
        lengths[-2:] = [size + 1]
    assert [len(batch.row) for batch in found] == lengths
    assert all(batch.label_scale == pytest.approx(1 / len(batch.row)) for batch in found)
    assert all(torch.equal(batch.targets["weight"], torch.ones(len(batch.row))) for batch in found)


def test_order_is_the_generator_s_and_another_every_epoch():
    made, first, second = batches(torch.arange(30), batch_size=7), generator(3), generator(3)
    epochs = [rows(list(made.epoch(first))) for _ in range(2)]
    assert epochs == [rows(list(made.epoch(second))) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != rows(list(made.epoch(generator(4))))


@pytest.mark.parametrize("size", [5, 99, "all"])
def test_one_step_takes_the_program_as_it_is_and_is_made_once(size):
    made = batches(torch.arange(5), batch_size=size)
    (first,), (second,) = (list(made.epoch(generator(seed))) for seed in (0, 1))
    assert first is second
    assert first.inputs[0] is made.program
    assert rows([first]) == list(range(5))
    (moved,) = made.to("cpu").epoch(generator())
    assert moved is not first  # that was of another device
    assert moved.inputs[0].device == "cpu"


@pytest.mark.parametrize("share", [True, False])
def test_a_step_gets_the_program_of_its_graphs(share):
    graphs = random_graphs()
    program = Program.of_graphs(graphs, 2, share=share)
    for batch in GraphBatches(program, graphs.y, batch_size=3).to("cpu").epoch(generator()):
        assert batch.inputs[0].sizes.tolist() == graphs.ptr.diff()[batch.row].tolist()
        assert torch.equal(batch.y, graphs.y[batch.row])


# -- drawn -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_task", [False, True])
def test_graphs_are_drawn_in_proportion_to_their_weight(by_task):
    weight = torch.tensor([1.0, 0, 4, 2.5, 0.5, 8])
    first = torch.tensor([0.1, 0.5, 0.9, 0.3, 1, 0.2]) * weight  # of the first task; the second has the rest
    given = torch.stack([first, weight - first], 1) if by_task else weight
    y = torch.zeros(6, 2) if by_task else torch.arange(6)
    found = list(batches(y, given, draws=4000, batch_size=64).epoch(generator()))
    assert consistent(found, y)
    assert [len(batch.row) for batch in found] == [64] * 62 + [32]
    counts = torch.tensor(rows(found)).bincount(minlength=6)
    assert counts[1] == 0
    drawn = weight > 0
    assert chisquare(counts[drawn], (4000 * weight / weight.sum())[drawn].double()).pvalue > 0.01
    for batch in found:  # the weight is in how often they come, but for how the tasks of one differ
        expected = given[batch.row] / weight[batch.row, None] if by_task else torch.ones(len(batch.row))
        torch.testing.assert_close(batch.targets["weight"], expected)
        assert batch.label_scale == pytest.approx(1 / len(batch.row))
    if by_task:
        share = torch.cat([batch.targets["weight"] for batch in found]).mean(0)
        torch.testing.assert_close(share, given.sum(0) / given.sum(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("draws", "size", "lengths"), [(7, 3, [3, 4]), (8, 3, [3, 3, 2]), (7, "all", [7]), (2, 128, [2]), (40, 50, [40])]
)
def test_an_epoch_has_as_many_as_are_drawn(draws, size, lengths):
    made = batches(torch.arange(5), draws=draws, batch_size=size)
    epochs = [list(made.epoch(generator(seed))) for seed in (0, 0, 1)]
    assert [[len(batch.row) for batch in epoch] for epoch in epochs] == [lengths] * 3
    assert rows(epochs[0]) == rows(epochs[1])
    assert draws < 5 or rows(epochs[0]) != rows(epochs[2])


# -- the loss ----------------------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.floats(0.125, 8), min_size=1, max_size=20), sizes)
def test_a_loss_is_the_mean_by_weight(weight, size):
    weight = torch.tensor(weight)
    loss = torch.randn(len(weight), generator=generator())
    of_epoch = 0
    for batch in batches(torch.arange(len(weight)), weight, batch_size=size).epoch(generator()):
        share = len(batch.row) / len(weight)
        torch.testing.assert_close(value(batch, loss), (weight * loss)[batch.row].sum() / (share * weight.sum()))
        of_epoch += share * value(batch, loss)
    torch.testing.assert_close(of_epoch, (weight * loss).sum() / weight.sum())


def test_shares_of_classes_weigh_once_a_graph():
    y = torch.tensor([[0.2, 0.8], [1, 0], [0.5, 0.5]])
    (batch,) = batches(y, torch.tensor([1.0, 2, 5])).epoch(generator())
    loss = F.cross_entropy(torch.tensor([[1.0, 2], [0, 3], [1, 1]]), batch.y, reduction="none")
    torch.testing.assert_close(value(batch, loss), (loss * torch.tensor([1.0, 2, 5])).sum() / 8)


@pytest.mark.parametrize("size", [2, "all"])
@pytest.mark.parametrize("draws", [None, 9])
def test_a_missing_label_has_no_weight(size, draws):
    nan = torch.nan
    y = torch.tensor([[0, 1, nan], [nan, 1, 0], [1, nan, nan], [0, 0, 0]])
    weight = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]])
    found = list(batches(y, weight, batch_size=size, draws=draws).epoch(generator()))
    assert consistent(found, y)
    loss = torch.randn(4, 3, generator=generator())
    for batch in found:
        known = ~y[batch.row].isnan()
        w = known * weight[batch.row] / (weight[batch.row].sum(1, keepdim=True) if draws else 1)
        torch.testing.assert_close(batch.targets["weight"], w)
        total = w.sum() if draws else len(batch.row) / 4 * (weight * ~y.isnan()).sum()
        torch.testing.assert_close(value(batch, loss), (w * loss[batch.row]).sum() / total)


def test_a_step_without_any_label_has_no_loss_and_no_gradient():
    logits = torch.randn(3, 2, requires_grad=True)
    (batch,) = batches(torch.full((3, 2), torch.nan), torch.ones(3, 2)).epoch(generator())
    loss = F.binary_cross_entropy_with_logits(logits, batch.y.nan_to_num(), reduction="none")
    value(batch, loss).backward()
    assert value(batch, loss) == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a whole number from 1"),
        ({"batch_size": "some"}, "batch_size: .*or 'all'"),
        ({"draws": 0}, "draws: expected a whole number from 1"),
        ({"draws": 2.5}, "draws: expected a whole number from 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(G2MError, match=message):
        batches(torch.arange(3), **options)
