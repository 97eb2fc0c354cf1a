"""Cutting a graph into steps: everything once an epoch, labels without bias."""

import math

import pytest
import torch
from cases import blocks, thin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.nn import functional as F
from torch_geometric.utils import subgraph

from g2m.batches import FullBatch, NodeBatches, PartitionBatches, SampledBatches, random_rows
from g2m.errors import G2MError
from g2m.methods import label_loss
from g2m.models import GNN, Output
from g2m.sparse import CSR

N, TRAIN = 12, torch.tensor([1, 4, 5, 9])
X, Y = torch.randn(N, 5, generator=Generator().manual_seed(0)), torch.arange(N) % 3
quick = settings(max_examples=40)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def node_batches(**options) -> NodeBatches:
    return NodeBatches(X, Y, TRAIN, {"target": X * 2}, **options)


def test_full_batch_is_the_graph():
    (batch,) = FullBatch((X, "adjacency"), Y, TRAIN).to("cpu").epoch(generator())
    assert batch.inputs[0] is X
    assert batch.inputs[1] == "adjacency"
    assert torch.equal(batch.row, torch.arange(N))
    assert batch.labelled.nonzero().flatten().tolist() == TRAIN.tolist()
    assert batch.label_scale == pytest.approx(1 / len(TRAIN))
    assert batch.only is None


@pytest.mark.parametrize("row", [[1, 4, 5, 9], [9, 0, 4, 11], [2], [0, 2, 3]], ids=str)
def test_full_batch_of_some_rows_is_those_rows_of_the_whole(row):
    row = torch.tensor(row)
    (batch,) = FullBatch((X, [CSR.from_dense(X)]), Y, TRAIN, row=row).to("cpu").epoch(generator())
    (whole,) = FullBatch((X,), Y, TRAIN).epoch(generator())
    assert torch.equal(batch.row, row)
    for name in ("y", "labelled"):
        assert torch.equal(getattr(batch, name), getattr(whole, name)[row])
    assert batch.inputs[0] is X
    assert isinstance(batch.inputs[1][0], CSR)
    assert batch.label_scale == whole.label_scale  # a mean over all training nodes, whichever are here
    if set(TRAIN.tolist()) <= set(row.tolist()):
        logits = torch.randn(N, 3)
        torch.testing.assert_close(label(batch, logits), label(whole, logits))


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


def test_reference_schedule_skips_others_each_epoch():
    batches, stream = node_batches(batch_size=5, reference_schedule=True), generator()
    skipped = [
        set(range(N)) - {i for b in batches.epoch(stream) if b.only == "teacher" for i in b.row.tolist()}
        for _ in range(5)
    ]
    assert all(len(s) == 2 for s in skipped)
    assert len({frozenset(s) for s in skipped}) > 1


@pytest.mark.parametrize("size", [0, -1, 1.5, 2.0, "5", "every", "All", None, True, float("nan")])
def test_batch_size_from_one(size):
    with pytest.raises(G2MError, match=r"^batch_size: expected"):
        node_batches(batch_size=size)


# -- the whole as one batch ------------------------------------------------------------------------------------------


def all_of(batches: NodeBatches, seed: int = 0) -> list:
    return list(batches.epoch(generator(seed)))


def test_all_is_one_batch_of_everything_made_once():
    batches = node_batches(batch_size="all")
    (batch,), (again,) = all_of(batches), all_of(batches, 1)
    assert again is batch
    assert batch.inputs[0] is X
    assert batch.targets["target"] is batches.targets["target"]
    assert torch.equal(batch.row, torch.arange(N))
    assert torch.equal(batch.y, Y)
    assert batch.labelled.nonzero().flatten().tolist() == TRAIN.tolist()
    assert batch.label_scale == pytest.approx(1 / len(TRAIN))
    assert (batch.only, batch.batch_size, batch.edge_index) == (None, None, None)


def test_all_of_some_nodes_is_those():
    for size in ("all", len(TRAIN)):
        (batch,) = all_of(node_batches(nodes=TRAIN, batch_size=size))
        order = batch.row.argsort()
        assert torch.equal(batch.row[order], TRAIN)
        assert torch.equal(batch.inputs[0][order], X[TRAIN])
        assert torch.equal(batch.y[order], Y[TRAIN])
        assert torch.equal(batch.targets["target"][order], 2 * X[TRAIN])
        assert batch.labelled.all()
        assert batch.label_scale == pytest.approx(1 / len(TRAIN))


@pytest.mark.parametrize("nodes", [None, TRAIN])
def test_all_has_the_label_loss_of_one_large_batch(nodes):
    logits = torch.randn(N, 3, dtype=torch.float64)
    (whole,), (large,) = (all_of(node_batches(nodes=nodes, batch_size=size)) for size in ("all", 99))
    torch.testing.assert_close(label(whole, logits), label(large, logits))
    torch.testing.assert_close(label(whole, logits), F.cross_entropy(logits[TRAIN], Y[TRAIN]))


def test_all_takes_a_step_for_each_pass_of_the_reference_schedule():
    batches = all_of(node_batches(batch_size="all", reference_schedule=True))
    assert [(b.only, len(b.row)) for b in batches] == [("label", len(TRAIN)), ("teacher", N)]


# -- edges -----------------------------------------------------------------------------------------------------------

EDGES = torch.tensor([[0, 0, 0, 1, 3, 5, 5, 7, 8, 9, 9, 4], [1, 5, 9, 5, 8, 7, 11, 3, 0, 10, 9, 0]])  # 2 and 6 alone
E = EDGES.size(1)
random_edges = pytest.mark.parametrize("edge_batch_size", [1, 5, 40])


def edge_batches(**options) -> NodeBatches:
    return node_batches(**{"edge_index": EDGES, **options})


def pairs(edges: Tensor) -> list[tuple[int, int]]:
    return sorted(map(tuple, edges.T.tolist()))


def of_edges(edges: Tensor) -> Tensor:
    """Some function of an edge, by the ids of its ends."""
    return ((edges[0] + 1) * (2.3 * edges[1] + 1)).double().sin()


def estimate(batch) -> Tensor:
    return batch.edge_scale * of_edges(batch.row[batch.edge_index]).sum()


def check_rows(batch, drawn: int) -> None:
    """Each row once, drawn ones first; all that goes by rows belongs to them; no label after the first ``drawn``."""
    size = batch.batch_size or len(batch.row)
    assert size == drawn
    assert len(batch.row.unique()) == len(batch.row)
    for tensor, whole in [(batch.inputs[0], X), (batch.y, Y), (batch.targets["target"], 2 * X)]:
        assert torch.equal(tensor, whole[batch.row])
    assert torch.equal(batch.labelled[:size], torch.isin(batch.row[:size], TRAIN))
    assert batch.labelled.shape == batch.row.shape
    assert not batch.labelled[size:].any()
    # The rest are ends of edges, all of them taken.
    assert set(range(size, len(batch.row))) <= set(batch.edge_index.flatten().tolist())


def test_all_has_all_edges_and_their_mean():
    batches = edge_batches(batch_size="all")
    (batch,), (again,) = all_of(batches), all_of(batches, 1)
    check_rows(batch, N)
    assert batch.inputs[0] is again.inputs[0] is X
    assert torch.equal(batch.edge_index, EDGES)
    assert batch.edge_scale == pytest.approx(1 / E)
    torch.testing.assert_close(estimate(batch), of_edges(EDGES).mean())


@quick
@given(st.integers(1, 14), st.integers(1, 15), st.integers(0, 40), st.integers(0, 99))
def test_an_epoch_has_every_edge_once(num_nodes, size, num_edges, seed):
    """Repeats and loops as often as they are given, in whatever order."""
    x, y = torch.arange(num_nodes)[:, None].float(), torch.arange(num_nodes)
    edges = torch.randint(num_nodes, (2, num_edges), generator=generator(seed))
    options = {"batch_size": size, "edge_index": edges}
    batches = list(NodeBatches(x, y, y[:1], {"t": 2 * y}, **options).epoch(generator(seed)))
    assert torch.cat([b.row[: b.batch_size] for b in batches]).sort().values.tolist() == list(range(num_nodes))
    assert pairs(torch.cat([b.row[b.edge_index] for b in batches], 1)) == pairs(edges)
    for b in batches:
        drawn = b.row[: b.batch_size]
        assert len(b.row.unique()) == len(b.row)
        assert set(b.row.tolist()) == {*drawn.tolist(), *b.row[b.edge_index].flatten().tolist()}
        assert torch.isin(b.row[b.edge_index[0]], drawn).all()
        assert torch.equal(b.labelled, (b.row == 0) & (torch.arange(len(b.row)) < b.batch_size))
        assert torch.equal(b.inputs[0][:, 0], b.row.float())
        assert torch.equal(b.y, b.row)
        assert torch.equal(b.targets["t"], 2 * b.row)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12, 100])
def test_drawn_rows_come_first_and_bring_their_edges(size):
    plain, batches = (all_of(node_batches(batch_size=size, **o), 3) for o in ({}, {"edge_index": EDGES}))
    for batch, without in zip(batches, plain, strict=True):
        check_rows(batch, len(without.row))
        assert torch.equal(batch.row[: batch.batch_size], without.row)  # edges change nothing in what is drawn
        assert batch.label_scale == without.label_scale
        mine = torch.isin(EDGES[0], without.row)
        assert pairs(batch.row[batch.edge_index]) == pairs(EDGES[:, mine])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12, 100])
def test_the_mean_over_equal_batches_is_the_mean_over_edges(size):
    for seed in range(3):
        values = [estimate(b) for b in all_of(edge_batches(batch_size=size), seed)]
        torch.testing.assert_close(torch.stack(values).mean(), of_edges(EDGES).mean())


def unbiased(draws: Tensor) -> None:
    """Every step's mean over ``draws [D, S]`` is the mean over edges, within five standard errors."""
    expected, error = of_edges(EDGES).mean(), draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() < 5 * error).all()
    assert (error < 0.05).all()


@pytest.mark.parametrize("options", [{"batch_size": 5}, {"batch_size": 5, "reference_schedule": True}], ids=str)
def test_edges_are_unbiased_where_batches_differ_or_rows_are_left_out(options):
    batches = edge_batches(**options)
    unbiased(torch.tensor([[estimate(b) for b in all_of(batches, s) if b.only != "label"] for s in range(2000)]))


@random_edges
@pytest.mark.parametrize("size", [5, 12, "all"])
def test_random_edges_are_so_many_of_the_list_and_rows_cover_their_ends(size, edge_batch_size):
    drawn = set()
    for seed in range(20):
        batches = all_of(edge_batches(batch_size=size, edge_batch_size=edge_batch_size), seed)
        plain = all_of(node_batches(batch_size=size), seed)
        assert len(batches) == len(plain)
        for batch, without in zip(batches, plain, strict=True):
            check_rows(batch, len(without.row))
            assert batch.edge_index.shape == (2, edge_batch_size)
            assert batch.edge_scale == pytest.approx(1 / edge_batch_size)
            assert batch.label_scale == pytest.approx(without.label_scale)
            drawn |= set(pairs(batch.row[batch.edge_index]))
    assert drawn <= set(pairs(EDGES))
    assert edge_batch_size == 1 or drawn == set(pairs(EDGES))


@random_edges
@pytest.mark.parametrize("size", [6, "all"])
def test_random_edges_are_unbiased_and_with_replacement(size, edge_batch_size):
    batches, stream = edge_batches(batch_size=size, edge_batch_size=edge_batch_size), generator()
    epochs = [list(batches.epoch(stream)) for _ in range(2000)]
    unbiased(torch.tensor([[estimate(b) for b in epoch] for epoch in epochs]))
    if edge_batch_size > E:
        return
    repeats = [len(set(pairs(b.row[b.edge_index]))) < edge_batch_size for epoch in epochs for b in epoch]
    chance = 1 - math.prod(1 - k / E for k in range(edge_batch_size))
    assert abs(sum(repeats) - len(repeats) * chance) <= 5 * (len(repeats) * chance * (1 - chance)) ** 0.5


def test_random_edges_come_from_the_generator_alone():
    def edges(seed: int, size: int | str) -> list:
        batches = edge_batches(batch_size=size, edge_batch_size=7)
        return [b.row[b.edge_index].tolist() for b in all_of(batches, seed)]

    for size in (6, "all"):
        torch.manual_seed(0)
        first = edges(0, size)
        torch.manual_seed(1)
        assert edges(0, size) == first
        assert edges(1, size) != first
    batches, stream = edge_batches(batch_size="all", edge_batch_size=7), generator()
    (first,), (second,) = (list(batches.epoch(stream)) for _ in range(2))
    assert not torch.equal(first.edge_index, second.edge_index)
    assert first.inputs[0] is second.inputs[0]


@pytest.mark.parametrize("size", [4, "all"])
@pytest.mark.parametrize("edge_batch_size", [None, 3])
def test_a_pass_over_labels_has_no_edges(size, edge_batch_size):
    batches = all_of(edge_batches(batch_size=size, edge_batch_size=edge_batch_size, reference_schedule=True))
    labels, teacher = ([b for b in batches if b.only == only] for only in ("label", "teacher"))
    assert labels
    for batch in labels:
        assert batch.edge_index is None
        assert set(batch.row.tolist()) <= set(TRAIN.tolist())
        assert batch.labelled.all()
        assert len(batch.row) == batch.batch_size
    for batch in teacher:
        check_rows(batch, 4 if size == 4 else N)
        assert batch.edge_index.size(1) == (edge_batch_size or batch.edge_index.size(1))
    if edge_batch_size is None:
        assert pairs(torch.cat([b.row[b.edge_index] for b in teacher], 1)) == pairs(EDGES)
    plain = all_of(node_batches(batch_size=size, reference_schedule=True))
    assert torch.equal(batches[0].row, plain[0].row)


@pytest.mark.parametrize("size", [5, 12, "all"])
@pytest.mark.parametrize("edge_batch_size", [None, 3])
@pytest.mark.parametrize("reference_schedule", [False, True])
def test_no_edges_at_all(size, edge_batch_size, reference_schedule):
    options = {"batch_size": size, "edge_batch_size": edge_batch_size, "reference_schedule": reference_schedule}
    batches = edge_batches(edge_index=torch.empty(2, 0, dtype=torch.long), **options)
    for batch in all_of(batches):
        if batch.only != "label":
            assert batch.edge_index.shape == (2, 0)
            assert batch.edge_index.dtype == torch.long
            assert estimate(batch) == 0
        assert len(batch.row) == (batch.batch_size or N)


def test_without_edges_asked_for_there_are_none():
    for size in (5, "all"):
        for batch in all_of(node_batches(batch_size=size, edge_batch_size=3)):
            assert batch.edge_index is None
            assert len(batch.row) == (batch.batch_size or N)


def test_edges_with_sparse_features():
    x = X * (X > 0)
    dense = NodeBatches(x, Y, TRAIN, batch_size=5, edge_index=EDGES).epoch(generator())
    sparse = NodeBatches(CSR.from_dense(x), Y, TRAIN, batch_size=5, edge_index=EDGES).epoch(generator())
    for a, b in zip(dense, sparse, strict=True):
        assert torch.equal(a.inputs[0], b.inputs[0].to_dense())
        assert torch.equal(a.edge_index, b.edge_index)


@pytest.mark.parametrize("size", [5, "all"])
@pytest.mark.parametrize("edge_batch_size", [None, 3])
def test_moving_to_a_device_changes_nothing(size, edge_batch_size):
    options = {"batch_size": size, "edge_batch_size": edge_batch_size}
    here, moved = edge_batches(**options), edge_batches(**options)
    assert moved.to("cpu") is moved
    for a, b in zip(all_of(here), all_of(moved), strict=True):
        assert torch.equal(a.row, b.row)
        assert torch.equal(a.inputs[0], b.inputs[0])
        assert torch.equal(a.edge_index, b.edge_index)
        assert a.edge_scale == b.edge_scale


def test_edges_take_all_nodes():
    with pytest.raises(G2MError, match="nodes: expected all of them where the loss has edges"):
        edge_batches(nodes=TRAIN)


@pytest.mark.parametrize("size", [0, -1, 1.5, "every", "all", True])
def test_edge_batch_size_from_one(size):
    with pytest.raises(G2MError, match=r"^edge_batch_size: expected a whole number from 1"):
        edge_batches(edge_batch_size=size)


def test_all_at_once_takes_nodes_in_the_order_given_and_counts_their_labels():
    for nodes in (torch.tensor([3, 1, 0, 2, 5, 4]), torch.tensor([0, 1, 4])):
        y, train = torch.arange(6), torch.arange(4)
        (whole,) = NodeBatches(torch.eye(6), y, train, nodes=nodes, batch_size="all").epoch(generator())
        assert torch.equal(whole.row, nodes)
        assert torch.equal(whole.y, y[nodes])
        assert torch.equal(whole.inputs[0], torch.eye(6)[nodes])
        assert whole.label_scale == 1 / int(torch.isin(nodes, train).sum())


# -- graphs too large for one step -----------------------------------------------------------------------------------


def of_part(graph):
    return graph.x, graph.edge_index, graph.node_id


@pytest.mark.parametrize("parts", [1, 2, 5, 7, 59, 60])
@pytest.mark.parametrize("directed", [False, True])
def test_parts_have_every_node_once_and_the_edges_inside(parts, directed):
    graph = thin(directed=directed)
    batches = PartitionBatches(graph, torch.arange(20), of_part, parts=parts)
    found = list(batches.epoch(generator()))
    assert len(found) == parts
    sizes = {len(batch.row) for batch in found}
    assert max(sizes) - min(sizes) <= 1
    assert torch.cat([batch.row for batch in found]).sort().values.tolist() == list(range(60))
    for batch in found:
        x, edge_index, node_id = batch.inputs
        assert node_id.equal(batch.row)
        assert x.equal(graph.x[batch.row])
        assert batch.y.equal(graph.y[batch.row])
        assert batch.labelled.equal(batch.row < 20)
        inside, _ = subgraph(batch.row, graph.edge_index, relabel_nodes=True, num_nodes=60)
        assert set(map(tuple, edge_index.T.tolist())) == set(map(tuple, inside.T.tolist()))


def test_parts_are_drawn_anew_every_epoch_from_the_generator_alone():
    batches, first = PartitionBatches(thin(), torch.arange(20), of_part, parts=3), generator()
    one, two = ([batch.row.tolist() for batch in batches.epoch(first)] for _ in range(2))
    assert one != two
    assert one == [batch.row.tolist() for batch in batches.epoch(generator())]


def test_label_loss_over_equal_parts_is_the_full_mean():
    graph = thin()
    logits = torch.randn(60, graph.num_classes, generator=generator(3))
    batches = PartitionBatches(graph, torch.arange(20), of_part, parts=5)
    parts = [label(batch, logits) for batch in batches.epoch(generator())]
    assert torch.allclose(torch.stack(parts).mean(), F.cross_entropy(logits[:20], graph.y[:20]))


def test_more_parts_than_nodes_are_refused():
    with pytest.raises(G2MError, match=r"partitions: expected at most 60, one a node \(got 61\)"):
        PartitionBatches(thin(), torch.arange(20), of_part, parts=61)


@pytest.mark.parametrize("backbone", ["gcn", "sage", "gin", "gat", "appnp"])
def test_a_sample_of_all_neighbours_gives_the_whole_answer(backbone):
    graph, options = blocks(), {"propagations": 3} if backbone == "appnp" else {}
    model = GNN(backbone, graph.num_features, 8, graph.num_classes, **options).eval()
    x, adjacency = model.inputs(graph)
    whole = model(x, adjacency).logits
    fan_out = [int(adjacency.crow.diff().max())] * model.hops
    batches = SampledBatches(x, adjacency, graph.y, torch.arange(9), fan_out=fan_out, batch_size=4)
    found = list(batches.epoch(generator()))
    assert [len(batch.row) for batch in found] == [4, 5]  # the last is not alone
    assert torch.cat([batch.row for batch in found]).sort().values.tolist() == list(range(9))
    for batch in found:
        assert torch.allclose(model(*batch.inputs).logits, whole[batch.row], atol=1e-5)
        assert batch.labelled.all()
        assert batch.label_scale == 1 / len(batch.row)


def test_a_sample_is_no_larger_than_asked_for_and_unbiased():
    graph = blocks()
    model = GNN("sage", graph.num_features, 8, graph.num_classes, num_layers=1)
    x, adjacency = model.inputs(graph)
    batches = SampledBatches(x, adjacency, graph.y, torch.tensor([3]), fan_out=[2], batch_size=1)
    torch.manual_seed(0)
    total = torch.zeros(graph.num_features)
    for _ in range(4000):
        (batch,) = batches.epoch(generator())
        field, (layer,) = batch.inputs
        assert layer.nnz == 2
        total += (layer @ field)[0]
    assert torch.allclose(total / 4000, (adjacency @ x)[3], atol=0.15)


# -- some of a batch -----------------------------------------------------------------------------------------------


def test_random_rows_are_rows_and_their_labels_are_without_bias():
    edges = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    (batch,) = node_batches(batch_size="all", edge_index=edges).epoch(generator())
    assert batch.edge_index is not None
    sums, seen = [], torch.zeros(N)
    torch.manual_seed(0)
    for _ in range(3000):
        some = random_rows(batch, 5)
        assert some.batch_size == len(some.row) == len(some.row.unique()) == 5
        assert some.edge_index is None
        assert torch.equal(some.inputs[0], X[some.row])
        assert torch.equal(some.targets["target"], 2 * X[some.row])
        assert torch.equal(some.y, Y[some.row])
        assert some.labelled.tolist() == torch.isin(some.row, TRAIN).tolist()
        seen[some.row] += 1
        sums.append(float(X[some.row][some.labelled].sum() * some.label_scale))
    expected = float(X[TRAIN].sum() / len(TRAIN))
    assert abs(torch.tensor(sums).mean() - expected) < 5 * torch.tensor(sums).std() / 3000**0.5
    assert seen.min() > 1000
    assert random_rows(batch, N) is batch
