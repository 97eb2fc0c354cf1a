"""A set of graphs is the list of graphs it was made of, whichever way it is looked at."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data, InMemoryDataset
from torch_geometric.loader import DataLoader

from g2m import G2MError
from g2m.graphs import Graphs


def draw(sizes, seed=0, *, x="keys", edge_attr=True, tasks=1) -> list[Data]:
    """Random graphs: parallel edges, loops, isolated nodes; none of a node, no edges, wherever a size is small."""
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for i, size in enumerate(sizes):
        arcs = int(torch.randint(3 * size, (), generator=generator)) if size else 0
        y = torch.tensor([i % 2])
        if tasks > 1:
            y = torch.randint(3, (1, tasks), generator=generator).float()
            y[y == 2] = torch.nan
        values = {"keys": torch.randint(9, (size, 2), generator=generator), "none": None}
        values["values"] = torch.randn(size, 3, generator=generator)
        edge_index = torch.randint(max(size, 1), (2, arcs), generator=generator)
        kinds = torch.randint(4, (arcs, 2), generator=generator) if edge_attr else None
        graphs.append(Data(x=values[x], edge_index=edge_index, edge_attr=kinds, y=y, num_nodes=size))
    return graphs


def content(graph: Data, *, loops: bool = False) -> tuple:
    """What a graph is, in whatever order its arcs are."""
    rows = graph.edge_index.t().tolist()
    values = graph.edge_attr.tolist() if graph.edge_attr is not None else [None] * len(rows)
    arcs = sorted((u, v, w) for (u, v), w in zip(rows, values, strict=True) if loops or u != v)
    x = None if graph.x is None else graph.x.tolist()
    return graph.num_nodes, x, arcs, graph.y.nan_to_num(-1).flatten().tolist()


sets = st.builds(
    draw,
    st.lists(st.integers(0, 5), min_size=2, max_size=8),
    st.integers(0, 99),
    x=st.sampled_from(["keys", "values", "none"]),
    edge_attr=st.booleans(),
    tasks=st.sampled_from([1, 3]),
)


@settings(max_examples=60)
@given(sets, st.booleans())
def test_it_is_the_list_it_was_made_of(data, loops):
    graphs = Graphs.from_pyg(data, keep_loops=loops)
    assert len(graphs) == len(data)
    assert [content(graph, loops=True) for graph in graphs] == [content(graph, loops=loops) for graph in data]
    assert content(graphs[-1]) == content(data[-1])
    again = Graphs.from_pyg(list(graphs), keep_loops=loops)
    assert again.fingerprint() == graphs.fingerprint()
    assert repr(again) == repr(graphs)


@settings(max_examples=30)
@given(sets)
def test_its_tensors_are_those_of_a_batch(data):
    graphs = Graphs.from_pyg(data)
    batch = Batch.from_data_list(list(graphs))
    for key in ("x", "edge_index", "edge_attr", "ptr", "batch", "y"):
        expected = batch.get(key)
        found = getattr(graphs, key)
        assert (found is None) == (expected is None)
        assert expected is None or torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1)), key
    assert (graphs.num_nodes, graphs.num_edges) == (batch.num_nodes, batch.num_edges)


@settings(max_examples=40)
@given(sets, st.data())
def test_a_subset_is_the_set_of_those_graphs(data, choice):
    graphs = Graphs.from_pyg(data, split={"train": [0], "test": [1]}, num_classes=2)
    ids = choice.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=10))
    part = graphs.subset(ids)
    assert [content(graph) for graph in part] == [content(graphs[i]) for i in ids]
    assert part.graph_id.tolist() == ids
    assert part.subset([len(ids) - 1]).graph_id.tolist() == ids[-1:]
    for name, i in (("train", 0), ("test", 1)):
        if i in ids:
            assert part.graph_id[part.part(name)].unique().tolist() == [i]
        else:
            assert name not in part.split


def test_a_mask_chooses_too_and_every_graph_in_order_is_the_set():
    graphs = Graphs.from_pyg(draw([3, 0, 1, 4]), split={"val": [2]})
    assert graphs.subset([False, True, True, False]).graph_id.tolist() == [1, 2]
    assert graphs.subset(range(4)).fingerprint() == graphs.fingerprint()


class Stored(InMemoryDataset):
    def __init__(self, data, transform=None):
        super().__init__(None, transform)
        self.data, self.slices = self.collate(data)


def shifted(graph: Data) -> Data:
    graph.x = graph.x + 1
    return graph


@pytest.mark.parametrize("x", ["keys", "none"])
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_data_set_of_pyg_gives_what_its_list_gives(x, tasks):
    data = draw([3, 0, 2, 1, 5], x=x, tasks=tasks)
    dataset = Stored(data)
    expected = Graphs.from_pyg(data)
    assert Graphs.from_pyg(dataset).fingerprint() == expected.fingerprint()
    chosen = Graphs.from_pyg(dataset[[4, 0]], num_classes=2)
    assert [content(graph) for graph in chosen] == [content(expected[i]) for i in (4, 0)]
    assert Graphs.from_pyg(Stored(data[:1]), num_classes=2).fingerprint() == (
        Graphs.from_pyg(data[:1], num_classes=2).fingerprint()
    )


def test_a_transform_of_the_data_set_is_applied():
    data = draw([3, 2])
    assert torch.equal(Graphs.from_pyg(Stored(data, shifted)).x, Graphs.from_pyg(data).x + 1)


def test_a_loader_of_pyg_takes_it():
    graphs = Graphs.from_pyg(draw([3, 0, 2, 1, 5]))
    batches = list(DataLoader(graphs, batch_size=2))
    assert torch.cat([batch.x for batch in batches]).equal(graphs.x)
    assert torch.cat([batch.y for batch in batches]).equal(graphs.y)


def test_what_is_done_to_a_graph_is_not_done_to_the_set():
    graphs = Graphs.from_pyg(draw([4, 3], seed=1))
    before = graphs.fingerprint()
    graph = graphs[0]
    for tensor in (graph.x, graph.edge_index, graph.edge_attr, graph.y):
        tensor += 1
    assert dataclasses.replace(graphs).fingerprint() == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        graphs.name = "other"


def tiny(**changes) -> Graphs:
    fields = {
        "x": [[0, 1], [2, 0], [1, 1], [0, 0]],
        "edge_index": [[0, 1, 2, 3], [1, 0, 3, 2]],
        "y": [0, 1, 1],
        "ptr": [0, 2, 4, 4],
        "edge_attr": [[1], [1], [2], [2]],
        "split": {"train": [0], "test": [1, 2]},
    }
    return Graphs(**fields | changes)


def test_the_fingerprint_is_of_all_but_the_name_and_the_order_of_arcs():
    base = tiny().fingerprint()
    assert tiny(name="other", split={"test": [2, 1], "train": [True, False, False]}).fingerprint() == base
    assert tiny(edge_index=[[3, 1, 2, 0], [2, 0, 3, 1]], edge_attr=[[2], [1], [2], [1]]).fingerprint() == base
    changes = [
        {"x": [[0, 1], [2, 0], [1, 1], [0, 9]]},
        {"x": [[0.0, 1], [2, 0], [1, 1], [0, 0]]},
        {"x": None},
        {"edge_index": [[0, 1, 2, 2], [1, 0, 3, 3]]},
        {"edge_attr": None},
        {"edge_attr": [[1], [1], [2], [3]]},
        {"y": [0, 1, 0]},
        {"y": [[0.0, 1], [1, 0], [1, torch.nan]]},
        {"ptr": [0, 2, 2, 4]},
        {"split": {"train": [0], "test": [1]}},
        {"num_classes": 3},
        {"metric": "rocauc"},
        {"graph_id": torch.tensor([4, 5, 6])},
    ]
    prints = [tiny(**change).fingerprint() for change in changes]
    assert len({base, *prints}) == len(changes) + 1


def test_all_missing_labels_are_alike():
    y = torch.tensor([[0, 1], [1, torch.nan], [1, 0]])
    other = y.clone()
    other.view(torch.int32)[1, 1] += 1  # NaN still, of other bits
    assert tiny(y=other).fingerprint() == tiny(y=y).fingerprint()


def test_parallel_edges_keep_their_attributes_and_loops_go_with_theirs():
    arcs = [[1, 0, 0, 0, 1], [0, 1, 0, 1, 1]]
    values = [[10], [20], [30], [40], [50]]
    graphs = Graphs(None, arcs, [0, 1], [0, 2, 2], edge_attr=values)
    assert graphs.edge_index.tolist() == [[0, 0, 1], [1, 1, 0]]
    assert graphs.edge_attr.tolist() == [[20], [40], [10]]
    graphs = Graphs(None, arcs, [0, 1], [0, 2, 2], edge_attr=values, keep_loops=True)
    assert graphs.edge_index.tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 0, 1]]
    assert graphs.edge_attr.flatten().tolist() == [30, 20, 40, 10, 50]
    assert graphs.subset([0]).num_edges == 5


def test_nothing_but_empty_graphs():
    graphs = Graphs(None, [], [0, 1, 0], [0, 0, 0, 0])
    assert [(graph.num_nodes, graph.num_edges) for graph in graphs] == [(0, 0)] * 3
    assert (graphs.num_nodes, graphs.num_edges, graphs.num_features, graphs.num_edge_features) == (0, 0, 0, 0)
    assert len(graphs.batch) == 0
    graphs = Graphs(torch.empty(0, 4), [], [0, 1], [0, 0, 0])
    assert [graph.x.shape for graph in graphs.subset([1, 1])] == [(0, 4), (0, 4)]


def test_types_of_attributes_and_labels():
    graphs = tiny()
    assert (graphs.x.dtype, graphs.edge_attr.dtype, graphs.y.dtype) == (torch.int64,) * 3
    assert tiny(x=torch.zeros(4, 1, dtype=torch.float64)).x.dtype == torch.float32
    assert tiny(x=torch.ones(4, dtype=torch.uint8)).x.tolist() == [[1]] * 4
    assert tiny(x=torch.empty(4, 0), edge_attr=torch.empty(4, 0)).num_features == 0
    assert tiny(x=torch.empty(4, 0)).x is None
    assert tiny(y=torch.tensor([[0.0], [1], [torch.nan]]), split={"train": [0]}).y.tolist() == [0, 1, -1]
    several = tiny(y=[[0, 1], [1, 0], [1, 1]], metric="rocauc")
    assert (several.y.dtype, several.num_tasks, several.num_classes) == (torch.float32, 2, 2)
    assert (graphs.num_tasks, graphs.num_classes, tiny(num_classes=4).num_classes) == (1, 2, 4)


def test_a_graph_without_any_label_may_be_in_a_part_where_there_are_several_tasks():
    nan = torch.nan
    assert tiny(y=[[nan, nan], [1, 0], [1, nan]]).part("train").tolist() == [0]


def test_ids_and_numbers_of_any_kind_become_torchs_and_pythons():
    graphs = tiny(graph_id=np.array([7, 5, 5], dtype=np.int32), num_classes=np.int64(4))
    assert (graphs.graph_id.dtype, graphs.graph_id.tolist()) == (torch.int64, [7, 5, 5])
    assert type(graphs.num_classes) is int


def test_repr():
    assert repr(tiny(name="tiny")) == (
        "Graphs(name='tiny', num_graphs=3, num_nodes=4, num_edges=4, num_features=2, num_edge_features=1, "
        "num_classes=2, split={train: 1, test: 2})"
    )
    assert "num_tasks=2" in repr(tiny(y=[[0, 1], [1, 0], [1, 1]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ptr": [0]}, r"ptr: expected \[G \+ 1\]"),
        ({"ptr": [1, 2, 4, 4]}, "ptr: expected"),
        ({"ptr": [0, 3, 2, 4]}, "ptr: expected"),
        ({"ptr": [0, 1.5, 4, 4]}, "ptr: expected node ids as integers"),
        ({"ptr": [0, 2, 3, 3]}, r"x: expected real numbers of shape \[3, …\], a row per node \(got .*\(4, 2\)"),
        ({"x": [[1.0, torch.nan], [0, 0], [0, 0], [0, 0]]}, "x: expected finite values .* first on node 0"),
        ({"x": torch.zeros(4, 1, dtype=torch.complex64)}, "x: expected real numbers"),
        ({"x": "abc"}, "x: expected a tensor or an array of numbers"),
        ({"edge_attr": [[1]] * 3}, r"edge_attr: expected real numbers of shape \[4, …\], a row per edge"),
        ({"edge_index": [[0, 1]]}, r"edge_index: expected shape \[2, E\]"),
        ({"edge_index": [[0, 4], [1, 0]]}, r"ids in \[0, 3\] \(got \[4, 0\] in column 1\)"),
        ({"edge_index": [[0, 1], [1, 2]]}, r"both ends .* in one graph \(got \[1, 2\], in graphs 0 and 1, in column 1"),
        ({"y": [0, 1]}, r"y: expected a class or tasks per graph, \[3\] or \[3, T\] \(got \(2,\)\)"),
        ({"y": torch.zeros(3, 0)}, "y: expected a class or tasks per graph"),
        ({"y": [0, 1, 0.5]}, "y: expected labels as integers"),
        ({"y": [0, 1, -2]}, r"y: expected labels from 0, or -1 for unlabelled \(got -2 on graph 2\)"),
        ({"y": [[0, 1], [-1, 1], [0, 0]]}, r"y: expected labels 0, 1 or NaN .* \(got -1.0 on graph 1\)"),
        ({"y": [0, 0, 0]}, "at least two classes"),
        ({"y": [0, 1, 5], "num_classes": 3}, r"labels below num_classes=3 \(got 5 on graph 2\)"),
        ({"y": [0, 1, 2], "metric": "rocauc"}, "'rocauc' needs two classes"),
        ({"y": [[0, 1], [1, 1], [0, 0]], "num_classes": 3}, "num_classes: expected 2 where y is"),
        ({"metric": "acc"}, "metric: expected one of"),
        ({"split": [0, 1]}, "split: expected a mapping"),
        ({"split": {"unseen": [0]}}, "split: unknown key 'unseen'"),
        ({"split": {"train": []}}, r"split\['train'\]: expected at least one graph"),
        ({"split": {"train": [3]}}, r"split\['train'\]: expected graph ids in \[0, 2\]"),
        ({"split": {"train": [True, False]}}, r"split\['train'\]: expected a mask of shape \[3\]"),
        ({"split": {"train": [0, 0]}}, "expected each graph once in 'train' .* 1 repeats"),
        ({"split": {"train": [0, 1], "val": [2], "test": [1]}}, "1 in both 'train' and 'test', the first is graph 1"),
        ({"y": [0, 1, -1]}, "expected labelled graphs in 'test' .*graph 2"),
        ({"graph_id": torch.arange(4)}, "graph_id: expected 3 ids"),
        ({"graph_id": ["a"] * 3}, "graph_id: expected a tensor or an array of numbers"),
        ({"num_classes": 2.0}, r"num_classes: expected a whole number from 2 \(got 2\.0\)"),
    ],
)
def test_what_is_not_a_set_of_graphs_is_refused_with_the_reason(change, message):
    with pytest.raises(G2MError, match=message):
        tiny(**change)


def end(graph: Data, node: int) -> Data:
    """The graph with an arc to a node that is not there."""
    return graph.clone().update({"edge_index": torch.tensor([[0], [node]]), "edge_attr": graph.edge_attr[:1]})


def moved(key: str, first: Data, second: Data) -> list[Data]:
    """Two graphs, the first with a row of the second one's attributes."""
    first, second = (graph.clone().update({"num_nodes": graph.num_nodes}) for graph in (first, second))
    first[key], second[key] = torch.cat([first[key], second[key][:1]]), second[key][1:]
    return [first, second]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: [], "expected at least one graph"),
        (lambda data: [*data, "graph"], r"expected a PyG data set or a list of Data \(got str\)"),
        (lambda data: [data[0], data[1].update({"y": None})], r"y on every graph \(got none on graph 1"),
        (lambda data: [data[0].update({"edge_index": None}), data[1]], "edge_index on every graph .*graph 0"),
        (lambda data: [*data, *draw([2], x="none")], r"x on every graph or none \(got none on graph 2\)"),
        (lambda data: [*data, *draw([2], edge_attr=False)], "edge_attr on every graph or none"),
        (lambda data: [*data, *draw([2], x="values")], "x of the same width on every graph"),
        (lambda data: [*data, *draw([2], tasks=3)], "y of the same width on every graph"),
        (lambda data: [end(data[0], 3), data[1]], r"edge_index of nodes 0 to 2 on graph 0 \(got \[0, 3\]"),
        (lambda data: [data[0], end(data[1], -1)], r"edge_index of nodes 0 to 1 on graph 1 \(got \[0, -1\]"),
        (lambda data: moved("x", *data), r"3 rows of x on graph 0, one a node or arc \(got 4\)"),
        (lambda data: moved("edge_attr", *data), r"rows of edge_attr on graph 0, one a node or arc"),
    ],
)
def test_graphs_that_do_not_go_together_are_refused_with_the_reason(spoil, message):
    with pytest.raises(G2MError, match=f"dataset: .*{message}"):
        Graphs.from_pyg(spoil(draw([3, 2])))


@pytest.mark.parametrize("i", [3, -4, 1.0, "a", slice(2)])
def test_a_graph_that_is_not_there(i):
    with pytest.raises(G2MError, match=r"number of a graph in \[-3, 2\] .*graphs\.subset"):
        tiny()[i]


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "at least one"), ([3], r"in \[0, 2\]"), ([0.5], "as integers"), ([True], "a mask of shape")],
)
def test_a_subset_that_is_not_there(ids, message):
    with pytest.raises(G2MError, match=f"ids: expected .*{message}"):
        tiny().subset(ids)


def test_a_part_that_is_not_there_says_which_are():
    with pytest.raises(G2MError, match=r"has no part 'val' \(it has: train, test\)"):
        tiny().part("val")
    assert tiny().with_split({"val": [1]}).part("val").tolist() == [1]
