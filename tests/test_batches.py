"""Cutting a graph into steps: everything once an epoch, labels without bias."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator
from torch.nn import functional as F

from g2m.batches import FullBatch, NodeBatches
from g2m.errors import G2MError
from g2m.methods import label_loss
from g2m.models import Output
from g2m.sparse import CSR

N, TRAIN = 12, torch.tensor([1, 4, 5, 9])
X, Y = torch.randn(N, 5, generator=Generator().manual_seed(0)), torch.arange(N) % 3
quick = settings(max_examples=40, deadline=None)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def node_batches(**options) -> NodeBatches:
    return NodeBatches(X, Y, TRAIN, {"target": X * 2}, **options)


def test_full_batch_is_the_graph():
    (batch,) = FullBatch((X, "adjacency"), Y, TRAIN, {"target": X}).to("cpu").epoch(generator())
    assert batch.inputs[0] is X
    assert batch.inputs[1] == "adjacency"
    assert torch.equal(batch.row, torch.arange(N))
    assert batch.labelled.nonzero().flatten().tolist() == TRAIN.tolist()
    assert batch.label_scale == pytest.approx(1 / len(TRAIN))
    assert batch.only is None


@quick
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 99))
def test_an_epoch_has_every_node_once(num_nodes, size, seed):
    x, y = torch.arange(num_nodes)[:, None].float(), torch.arange(num_nodes)
    batches = list(NodeBatches(x, y, y[:1], {"t": 2 * y}, batch_size=size).epoch(generator(seed)))
    rows = torch.cat([b.row for b in batches])
    assert rows.sort().values.tolist() == list(range(num_nodes))
    lengths = [len(b.row) for b in batches]
    assert set(lengths[:-1]) <= {size}
    assert lengths[-1] <= size + 1
    for b in batches:
        assert torch.equal(b.inputs[0][:, 0], b.row.float())
        assert torch.equal(b.y, b.row)
        assert torch.equal(b.targets["t"], 2 * b.row)
        assert torch.equal(b.labelled, b.row == 0)


@pytest.mark.parametrize(
    ("num_nodes", "size", "lengths"),
    [(9, 4, [4, 5]), (5, 4, [5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1]), (8, 4, [4, 4])],
)
def test_one_row_left_over_joins_the_batch_before(num_nodes, size, lengths):
    """One row has no variance: batch norm could not take it."""
    y = torch.arange(num_nodes)
    batches = NodeBatches(torch.ones(num_nodes, 2), y, y[:1], batch_size=size)
    assert [len(b.row) for b in batches.epoch(generator())] == lengths


def test_order_comes_from_the_generator_alone():
    def order(seed: int) -> list[int]:
        return torch.cat([b.row for b in node_batches(batch_size=5).epoch(generator(seed))]).tolist()

    torch.manual_seed(0)
    first = order(0)
    torch.manual_seed(1)
    assert order(0) == first
    assert order(1) != first
    stream = generator()
    epochs = [[b.row.tolist() for b in node_batches(batch_size=5).epoch(stream)] for _ in range(2)]
    assert epochs[0] != epochs[1]


def label(batch, logits) -> torch.Tensor:
    return label_loss(Output(logits[batch.row]), batch)


def test_label_loss_over_equal_batches_is_the_full_mean():
    logits = torch.randn(N, 3, dtype=torch.float64)
    expected = F.cross_entropy(logits[TRAIN], Y[TRAIN])
    (full,) = FullBatch((X,), Y, TRAIN).epoch(generator())
    torch.testing.assert_close(label(full, logits), expected)
    for size in (1, 2, 3, 4, 6, 12, 100):
        for seed in range(3):
            values = [label(b, logits) for b in node_batches(batch_size=size).epoch(generator(seed))]
            torch.testing.assert_close(torch.stack(values).mean(), expected)


def test_label_loss_is_unbiased_where_the_last_batch_is_smaller():
    logits = torch.randn(N, 3, dtype=torch.float64)
    values = [[label(b, logits) for b in node_batches(batch_size=5).epoch(generator(s))] for s in range(4000)]
    expected, values = F.cross_entropy(logits[TRAIN], Y[TRAIN]), torch.tensor(values, dtype=torch.float64)
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - expected).abs() < 5 * error).all()
    assert (error < 0.05 * expected).all()


def test_nodes_bounds_what_is_drawn():
    batches = list(node_batches(nodes=TRAIN, batch_size=2).epoch(generator()))
    assert torch.cat([b.row for b in batches]).sort().values.tolist() == TRAIN.tolist()
    assert all(b.labelled.all() for b in batches)
    logits = torch.randn(N, 3)
    torch.testing.assert_close(
        torch.stack([label(b, logits) for b in batches]).mean(), F.cross_entropy(logits[TRAIN], Y[TRAIN])
    )


def test_sparse_features_are_cut_like_dense_ones():
    x = X * (X > 0)
    dense = NodeBatches(x, Y, TRAIN, batch_size=5).epoch(generator())
    sparse = NodeBatches(CSR.from_dense(x), Y, TRAIN, batch_size=5).epoch(generator())
    for a, b in zip(dense, sparse, strict=True):
        assert torch.equal(a.inputs[0], b.inputs[0].to_dense())


# -- the reference schedule ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "label_steps", "teacher_steps"),
    [(5, [4], [5, 5]), (3, [3], [3, 3, 3, 3]), (2, [2, 2], [2] * 6), (99, [4], [12])],
)
def test_reference_schedule_is_a_pass_over_labels_then_one_over_nodes(size, label_steps, teacher_steps):
    batches = list(node_batches(batch_size=size, reference_schedule=True).epoch(generator()))
    assert [b.only for b in batches] == ["label"] * len(label_steps) + ["teacher"] * len(teacher_steps)
    assert [len(b.row) for b in batches] == label_steps + teacher_steps
    labels, nodes = (torch.cat([b.row for b in batches if b.only == only]) for only in ("label", "teacher"))
    assert len(labels.unique()) == len(labels)
    assert len(nodes.unique()) == len(nodes)
    assert set(labels.tolist()) <= set(TRAIN.tolist())
    logits = torch.randn(N, 3)
    for b in batches[: len(label_steps)]:  # the plain mean of its rows
        torch.testing.assert_close(label(b, logits), F.cross_entropy(logits[b.row], Y[b.row]))


def test_reference_schedule_needs_a_teacher_to_make_a_difference():
    plain = NodeBatches(X, Y, TRAIN, reference_schedule=True, batch_size=5)
    assert [b.only for b in plain.epoch(generator())] == [None] * 3


def test_reference_schedule_skips_others_each_epoch():
    batches, stream = node_batches(batch_size=5, reference_schedule=True), generator()
    skipped = [
        set(range(N)) - {i for b in batches.epoch(stream) if b.only == "teacher" for i in b.row.tolist()}
        for _ in range(5)
    ]
    assert all(len(s) == 2 for s in skipped)
    assert len({frozenset(s) for s in skipped}) > 1


@pytest.mark.parametrize("size", [0, -1, 2.0, "5", None])
def test_batch_size_from_one(size):
    with pytest.raises(G2MError, match="batch_size"):
        node_batches(batch_size=size)
