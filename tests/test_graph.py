from collections import Counter
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from g2m import G2MError, Graph

X = torch.arange(12.0).reshape(6, 2)
EDGES = torch.tensor([[0, 1, 2, 3, 1, 2, 3, 4], [1, 2, 3, 4, 0, 1, 2, 3]])
Y = torch.tensor([0, 1, 0, 1, 0, 1])
SPLIT = {"train": [0, 1], "val": [2], "test": [3, 4, 5]}


def build(**changes):
    return Graph(**{"x": X, "edge_index": EDGES, "y": Y, "split": SPLIT, **changes})


# -- what is taken -----------------------------------------------------------------------------------------------------


def test_numbers_are_converted():
    graph = build(x=X.double(), edge_index=EDGES.int(), y=Y.to(torch.int8))
    assert (graph.x.dtype, graph.edge_index.dtype, graph.y.dtype) == (torch.float32, torch.int64, torch.int64)
    assert (graph.num_nodes, graph.num_edges, graph.num_features, graph.num_classes) == (6, 8, 2, 2)


def test_lists_arrays_and_read_only_arrays_do(recwarn):
    frozen = X.numpy().copy()
    frozen.flags.writeable = False
    graph = build(x=frozen, edge_index=EDGES.tolist(), y=Y.numpy())
    assert graph.fingerprint() == build().fingerprint()
    assert not recwarn.list


def test_sparse_features_and_column_labels_do():
    assert build(x=X.to_sparse(), y=Y[:, None]).fingerprint() == build().fingerprint()


def test_integral_floats_do_as_ids_and_labels():
    assert build(edge_index=EDGES.double(), y=Y.float()).fingerprint() == build().fingerprint()


def test_ids_and_numbers_of_any_kind_become_torchs_and_pythons():
    graph = build(node_id=np.array([0, 2, 3, 5, 8, 9], dtype=np.int32), num_classes=np.int64(4))
    assert (graph.node_id.dtype, graph.node_id.tolist()) == (torch.int64, [0, 2, 3, 5, 8, 9])
    assert type(graph.num_classes) is int


def test_unlabelled_nodes_are_fine_outside_the_split():
    assert build(y=[0, 1, 0, 1, 0, -1], split={"train": [0], "test": [1]}).num_classes == 2


def test_disconnected_graph_and_isolated_nodes_are_fine():
    graph = build(edge_index=[[0, 1, 3, 4], [1, 0, 4, 3]])
    assert graph.num_nodes == 6
    assert graph.num_edges == 4


def test_no_edges_warns_where_the_graph_was_built():
    with pytest.warns(UserWarning, match="'lonely' has no edges") as caught:
        Graph(X, torch.empty(2, 0), Y, name="lonely")
    assert caught[0].filename == __file__


def test_duplicates_are_merged_and_loops_dropped_unless_kept():
    edges = torch.cat([EDGES, EDGES[:, :3], torch.tensor([[2, 2], [2, 2]])], dim=1)
    assert build(edge_index=edges).fingerprint() == build().fingerprint()
    kept = build(edge_index=edges, keep_loops=True)
    assert kept.num_edges == 9
    assert [2, 2] in kept.edge_index.t().tolist()


def test_edge_order_does_not_matter():
    assert build(edge_index=EDGES.flip(1)).fingerprint() == build().fingerprint()


# -- what is refused ---------------------------------------------------------------------------------------------------

NAN = X.clone()
NAN[2, 0], NAN[4, 1] = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": NAN}, r"x: expected finite features \(got 2 NaN or infinite values, the first on node 2\)"),
        ({"x": X.double() * 1e300}, "x: expected finite features"),
        ({"x": X[:, 0]}, r"x: expected node features of shape \[N, F\]"),
        ({"x": X[:, :0]}, r"N and F at least 1 \(got \(6, 0\)\)"),
        ({"x": X.to(torch.complex64)}, "x: expected real numbers"),
        ({"x": "features"}, "x: expected a tensor or an array of numbers"),
        ({"y": Y[:5]}, r"y: expected one label per node, shape \[6\] \(got \(5,\)\)"),
        ({"y": Y.float() + 0.5}, "y: expected labels as integers"),
        ({"y": Y.bool()}, "y: expected labels as integers"),
        ({"y": ["a"] * 6}, "y: expected a tensor or an array of numbers"),
        ({"y": Y - 3}, r"y: expected labels from 0, or -1 for unlabelled \(got -3 on node 0\)"),
        ({"y": Y, "num_classes": 1}, r"num_classes: expected a whole number from 2 \(got 1\)"),
        ({"y": Y, "num_classes": 10.0}, r"num_classes: expected a whole number from 2 \(got 10\.0\)"),
        ({"node_id": torch.arange(5)}, "node_id: expected 6 ids, one per node"),
        ({"node_id": ["a"] * 6}, "node_id: expected a tensor or an array of numbers"),
        (
            {"node_id": [0, 1, 2, 2, 3, 4]},
            r"node_id: expected ids from 0, each above the one before it \(got \[0, 1, 2",
        ),
        ({"node_id": [1, 0, 2, 3, 4, 5]}, "node_id: expected ids from 0, each above"),
        ({"node_id": torch.arange(6) - 1}, "node_id: expected ids from 0, each above"),
        ({"y": Y * 0}, r"at least two classes \(got 1\)"),
        ({"y": Y * 0 - 1, "split": {}}, r"at least two classes \(got 0\)"),
        ({"y": Y * 3, "num_classes": 3}, r"y: expected labels below num_classes=3 \(got 3 on node 1\)"),
        ({"edge_index": EDGES.t()}, r"edge_index: expected shape \[2, E\] \(got \(8, 2\)\)\. Transpose it"),
        ({"edge_index": EDGES + 2}, r"node ids in \[0, 5\] \(got \[5, 6\] in column 3\)"),
        ({"edge_index": EDGES - 1}, r"node ids in \[0, 5\] \(got \[-1, 0\] in column 0\)"),
        ({"edge_index": EDGES + 0.5}, "edge_index: expected node ids as integers"),
        ({"metric": "acuracy"}, "Did you mean 'accuracy'"),
        ({"y": Y * 2, "metric": "rocauc"}, "'rocauc' needs two classes"),
        ({"split": {"train": [0], "tset": [1]}}, "unknown key 'tset'. Did you mean 'test'"),
        ({"split": [[0], [1]]}, r"split: expected a mapping from part to node ids \(got list\)"),
        ({"split": {"train": [0], "val": []}}, r"split\['val'\]: expected at least one node \(got none\)"),
        ({"split": {"train": [0, 3], "test": [3]}}, r"got 1 in both 'train' and 'test', the first is node 3"),
        ({"split": {"train": [0, 0]}}, r"each node once in 'train' \(got 1 repeats\)"),
        ({"split": {"train": [6]}}, r"split\['train'\]: expected node ids in \[0, 5\] \(got 6 … 6\)"),
        ({"split": {"train": [0.5]}}, r"split\['train'\]: expected node ids as integers"),
        ({"split": {"train": [True, False]}}, r"split\['train'\]: expected a mask of shape \[6\]"),
        ({"split": {"train": [0], "unseen": [1]}}, "'unseen' to be a part of 'test'"),
        ({"y": [-1, 1, 0, 1, 0, 1]}, r"labelled nodes in 'train' \(got node 0 without a label\)"),
        ({"node_id": torch.arange(3)}, "node_id: expected 6 ids"),
    ],
)
def test_bad_input_is_refused_with_the_reason(changes, message):
    with pytest.raises(G2MError, match=message):
        build(**changes)


# -- split and view ----------------------------------------------------------------------------------------------------


def test_part_names_what_there_is():
    graph = build()
    assert graph.part("val").tolist() == [2]
    with pytest.raises(G2MError, match=r"has no part 'unseen' \(it has: train, val, test\)"):
        graph.part("unseen")
    with pytest.raises(G2MError, match="it has: none"):
        Graph(X, EDGES, Y).part("train")


def test_inductive_draws_as_the_reference_does():
    graph = ring(60).inductive(seed=5)
    test = graph.part("test")
    torch.manual_seed(5)  # the reference seeds the global generator
    unseen = test[torch.randperm(len(test))[: int(0.2 * len(test))]]
    assert graph.setting == "inductive"
    assert torch.equal(graph.part("unseen"), unseen.sort().values)
    assert torch.equal(torch.cat([graph.part("seen"), unseen]).sort().values, test)


def test_inductive_takes_seeds_of_numpy_and_refuses_what_is_none():
    graph = ring(60)
    assert graph.inductive(seed=np.int64(3)).fingerprint() == graph.inductive(seed=3).fingerprint()
    for seed in ("a", 1.5, None, True, -1, 1 << 40):
        with pytest.raises(G2MError, match="seed: expected a whole number"):
            graph.inductive(seed=seed)


@pytest.mark.parametrize("key", ["edge_weight", "edge_attr"])
def test_from_pyg_says_what_it_leaves_out(key):
    data = Data(torch.ones(3, 2), torch.tensor([[0, 1], [1, 2]]), y=torch.tensor([0, 1, 0]))
    data[key] = torch.ones(2)
    with pytest.warns(UserWarning, match=f"{key} left out"):
        Graph.from_pyg(data)


def test_from_pyg_takes_masks_of_numpy_and_a_split_that_is_a_number():
    data = Data(torch.ones(3, 2), torch.tensor([[0, 1], [1, 2]]), y=torch.tensor([0, 1, 0]))
    data.train_mask, data.test_mask = np.array([[True, False]] * 3), torch.empty(3, 0, dtype=torch.bool)
    assert Graph.from_pyg(data).part("train").tolist() == [0, 1, 2]
    with pytest.raises(G2MError, match="split_index: expected a whole number from 0"):
        Graph.from_pyg(data, split_index="a")


def test_from_pyg_takes_a_data_and_nothing_else():
    with pytest.raises(G2MError, match=r"expected a Data with x, edge_index and y \(got Graph\)"):
        Graph.from_pyg(ring(60))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": ["a", "b", "a"]}, "y: expected a tensor or an array of numbers .*LabelEncoder"),
        ({"y": np.array(["a", "b", "a"], dtype=object)}, "y: expected a tensor or an array of numbers .*LabelEncoder"),
        ({"edge_index": torch.eye(3).to_sparse()}, "edge_index: .*to_edge_index"),
        ({"keep_loops": "False"}, r"keep_loops: expected True or False \(got 'False'\)"),
    ],
)
def test_what_a_graph_is_not_made_of(change, message):
    with pytest.raises(G2MError, match=message):
        Graph(**{"x": torch.ones(3, 2), "edge_index": [[0, 1], [1, 2]], "y": [0, 1, 0], **change})


def test_inductive_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    ring(60).inductive(seed=5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, 1, 0.01, "half"])
def test_inductive_refuses_a_fraction_that_leaves_nothing(fraction):
    with pytest.raises(G2MError, match="fraction"):
        build().inductive(fraction=fraction)


def test_transductive_graph_is_observed_whole():
    graph = build()
    assert graph.observed() is graph


def ring(num_nodes, seed=0):
    """A ring with chords, features unique to each node."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.arange(num_nodes)
    pairs = torch.cat([torch.stack([u, (u + 1) % num_nodes]), torch.stack([u, u * 7 % num_nodes])], dim=1)
    x = torch.randn(num_nodes, 5, generator=generator)
    x[:, 0] = u
    split = {"train": u[: num_nodes // 4], "val": u[num_nodes // 4 : num_nodes // 3], "test": u[num_nodes // 3 :]}
    return Graph(x, torch.cat([pairs, pairs.flip(0)], dim=1), u % 3, split, num_classes=3)


def test_observed_has_no_unseen_node_edge_or_label():
    graph = ring(60).inductive(seed=1)
    seen, unseen = graph.observed(), set(graph.part("unseen").tolist())
    assert seen.num_nodes == 60 - len(unseen)
    assert not unseen & set(seen.node_id.tolist())
    assert not unseen & set(seen.x[:, 0].int().tolist())  # column 0 holds the node's own id
    assert torch.equal(seen.x[:, 0].long(), seen.node_id)
    assert torch.equal(seen.y, graph.y[seen.node_id])
    kept = {tuple(edge) for edge in graph.edge_index.t().tolist() if not unseen & set(edge)}
    assert {tuple(edge) for edge in seen.node_id[seen.edge_index].t().tolist()} == kept
    assert "unseen" not in seen.split
    assert torch.equal(seen.node_id[seen.part("test")], graph.part("seen"))
    assert torch.equal(seen.node_id[seen.part("train")], graph.part("train"))


def test_observed_of_observed_keeps_the_ids():
    seen = ring(60).inductive(seed=1).observed()
    twice = seen.inductive(seed=2).observed()
    assert torch.equal(twice.node_id, twice.x[:, 0].long())


def test_nothing_about_unseen_nodes_reaches_the_observed_graph():
    graph = ring(60).inductive(seed=1)
    unseen = graph.part("unseen")
    x, y = graph.x.clone(), graph.y.clone()
    x[unseen] = 1e6
    y[unseen] = (y[unseen] + 1) % 3
    touched = torch.isin(graph.edge_index, unseen).any(0)
    new = torch.stack([unseen, torch.zeros_like(unseen)])
    edges = torch.cat([graph.edge_index[:, ~touched], new, new.flip(0)], dim=1)
    changed = Graph(x, edges, y, graph.split, num_classes=3)
    assert changed.fingerprint() != graph.fingerprint()
    before, after = graph.observed(), changed.observed()
    for key in ("x", "edge_index", "y", "node_id"):
        assert torch.equal(getattr(before, key), getattr(after, key)), key
    assert before.fingerprint() == after.fingerprint()


def test_fingerprint_changes_with_anything_seen():
    x, y = X.clone(), Y.clone()
    x[5, 1] = 3
    y[5] = 0
    variants = [
        build(),
        build(x=x),
        build(y=y),
        build(edge_index=EDGES[:, 1:]),
        build(num_classes=3),
        build(metric="rocauc"),
        build(split={**SPLIT, "val": [2, 5], "test": [3, 4]}),
        build(split={"train": [0, 1], "test": [3, 4, 5]}),
        build(node_id=torch.arange(6) + 1),
        build().inductive(seed=0, fraction=0.5),
    ]
    assert len({graph.fingerprint() for graph in variants}) == len(variants)
    assert build(name="another").fingerprint() == build().fingerprint()


def test_repr_says_what_it_is():
    assert repr(build(name="toy")) == (
        "Graph(name='toy', num_nodes=6, num_edges=8, num_features=2, num_classes=2, "
        "setting='transductive', split={train: 2, val: 1, test: 3})"
    )


# -- ways in -----------------------------------------------------------------------------------------------------------


def masks(num_nodes, split):
    return {f"{part}_mask": torch.isin(torch.arange(num_nodes), torch.tensor(ids)) for part, ids in split.items()}


def test_from_pyg_takes_the_masks():
    assert Graph.from_pyg(Data(X, EDGES, y=Y, **masks(6, SPLIT))).fingerprint() == build().fingerprint()
    assert not Graph.from_pyg(Data(X, EDGES, y=Y)).split


def test_from_pyg_picks_one_of_several_splits():
    both = [SPLIT, {"train": [5], "val": [4], "test": [0, 1]}]
    stacked = {
        key: torch.stack([masks(6, split)[key] for split in both], dim=1)
        for key in ("train_mask", "val_mask", "test_mask")
    }
    data = Data(X, EDGES, y=Y, **stacked)
    assert Graph.from_pyg(data, split_index=3).part("test").tolist() == [0, 1]
    assert Graph.from_pyg(data, split=SPLIT, split_index=1).part("test").tolist() == [3, 4, 5]


def test_from_pyg_names_the_missing_field():
    with pytest.raises(G2MError, match=r"a Data with x, edge_index and y \(got none for 'y'\)"):
        Graph.from_pyg(Data(X, EDGES))


def toy_networkx(**attributes):
    graph = nx.Graph()
    for i, node in enumerate("abcd"):
        graph.add_node(node, **{"x": [i, 2.0 * i], "size": i, "y": i % 2, "part": ["train", "val", "test", "none"][i]})
    nx.set_node_attributes(graph, {"c": attributes})
    graph.add_edges_from(["ab", "bc", "cd", "cc"])
    return graph


def test_from_networkx_reads_attributes_and_gives_both_arcs():
    graph = Graph.from_networkx(toy_networkx(), x=["x", "size"], split="part")
    assert graph.x.tolist() == [[i, 2 * i, i] for i in range(4)]
    assert graph.edge_index.t().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]
    assert {part: ids.tolist() for part, ids in graph.split.items()} == {"train": [0], "val": [1], "test": [2]}


def test_from_networkx_keeps_directed_edges_directed():
    directed = nx.DiGraph()
    directed.add_nodes_from(toy_networkx().nodes(data=True))
    directed.add_edge("a", "b")
    assert Graph.from_networkx(directed).edge_index.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"y": "Officer"}, "could not convert string to float: 'Officer' on node 'c'.*LabelEncoder"),
        ({"y": 0.5}, "y: expected labels as integers"),
        ({"x": "red"}, "expected numbers in x, y on every node.*node 'c'"),
        ({"x": [1.0]}, r"x: expected the same number of values on every node \(got \[1, 2\]\)"),
        ({"x": [float("nan"), 0.0]}, "1 NaN or infinite values, the first on node 2"),
    ],
)
def test_from_networkx_refuses_bad_attributes(attributes, message):
    with pytest.raises(G2MError, match=message):
        Graph.from_networkx(toy_networkx(**attributes))


def test_from_networkx_names_the_node_without_the_attribute():
    graph = toy_networkx()
    del graph.nodes["b"]["y"]
    with pytest.raises(G2MError, match=r"node 'b' has no attribute 'y' \(it has: \['part', 'size', 'x'\]\)"):
        Graph.from_networkx(graph)
    with pytest.raises(G2MError, match="x: expected node features"):
        Graph.from_networkx(nx.Graph())


# -- properties --------------------------------------------------------------------------------------------------------


@st.composite
def random_graphs(draw):
    num_nodes = draw(st.integers(6, 25))
    node = st.integers(0, num_nodes - 1)
    pairs = draw(st.lists(st.tuples(node, node).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    order = rng.permutation(num_nodes)
    cuts = np.sort(rng.choice(np.arange(1, num_nodes - 2), 2, replace=False))
    split = dict(zip(("train", "val", "test"), np.split(order, cuts), strict=True))
    y = torch.from_numpy(rng.permutation(np.arange(num_nodes) % 3))
    return Graph(torch.from_numpy(rng.standard_normal((num_nodes, 4))), np.array(pairs).T, y, split)


@settings(max_examples=40)
@given(random_graphs())
def test_masks_say_the_same_as_ids(graph):
    ids = {part: ids.tolist() for part, ids in graph.split.items()}
    as_masks = {part.removesuffix("_mask"): mask for part, mask in masks(graph.num_nodes, ids).items()}
    assert graph.with_split(as_masks).fingerprint() == graph.fingerprint()
    assert graph.with_split({part: ids[::-1] for part, ids in ids.items()}).fingerprint() == graph.fingerprint()


@settings(max_examples=40)
@given(random_graphs())
def test_round_trip_through_pyg(graph):
    ids = {part: ids.tolist() for part, ids in graph.split.items()}
    data = Data(graph.x, graph.edge_index, y=graph.y, **masks(graph.num_nodes, ids))
    assert Graph.from_pyg(data).fingerprint() == graph.fingerprint()


@settings(max_examples=40)
@given(random_graphs())
def test_round_trip_through_networkx(graph):
    directed = nx.DiGraph()
    for i in range(graph.num_nodes):
        part = next((part for part, ids in graph.split.items() if i in ids), "")
        directed.add_node(i, x=graph.x[i].tolist(), y=int(graph.y[i]), part=part)
    directed.add_edges_from(graph.edge_index.t().tolist())
    assert Graph.from_networkx(directed, split="part").fingerprint() == graph.fingerprint()


@pytest.mark.filterwarnings("ignore:.*has no edges")
@settings(max_examples=40)
@given(random_graphs(), st.integers(0, 1000))
def test_observed_and_unseen_make_the_whole(graph, seed):
    test = graph.part("test")
    if len(test) < 2:
        return
    view = graph.inductive(seed=seed, fraction=0.5)
    seen = view.observed()
    nodes = torch.cat([seen.node_id, view.part("unseen")]).sort().values
    assert torch.equal(nodes, torch.arange(graph.num_nodes))
    unseen_edges = torch.isin(graph.edge_index, view.part("unseen")).any(0).sum()
    assert seen.num_edges + unseen_edges == graph.num_edges
    assert seen.fingerprint() == graph.inductive(seed=seed, fraction=0.5).observed().fingerprint()


# -- edges, once or not at all -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*has no edges")
@settings(max_examples=40)
@given(random_graphs(), st.booleans())
def test_undirected_edges_are_each_edge_once(graph, symmetric):
    source, target = graph.edge_index
    if symmetric:
        graph = replace(graph, edge_index=torch.cat([graph.edge_index, graph.edge_index.flip(0)], 1))
        source, target = graph.edge_index
    arcs = {(a, b) for a, b in zip(source.tolist(), target.tolist(), strict=True) if a != b}
    once = list(zip(*graph.undirected_edges.tolist(), strict=True))
    assert len(once) == len(set(once))
    if arcs == {(b, a) for a, b in arcs}:
        assert {frozenset(e) for e in once} == {frozenset(a) for a in arcs}
        assert len(once) * 2 == len(arcs)
        degree = Counter(end for edge in once for end in edge)
        assert all(degree[a] <= degree[b] for a, b in once)
    else:
        assert set(once) == arcs


@pytest.mark.parametrize("edges", [True, False])
def test_fingerprint_with_and_without_edges(edges):
    graph = ring(12)
    fewer = replace(graph, edge_index=graph.edge_index[:, 1:])
    assert (fewer.fingerprint(edges=edges) == graph.fingerprint(edges=edges)) is not edges
    assert replace(graph, x=graph.x + 1).fingerprint(edges=edges) != graph.fingerprint(edges=edges)
    assert graph.fingerprint(edges=True) != graph.fingerprint(edges=False)


def test_without_edges_keeps_the_nodes_and_says_nothing(recwarn):
    graph = ring(12).inductive(fraction=0.5)
    alone = graph.without_edges()
    assert alone.num_edges == 0
    assert alone.setting == "inductive"
    assert alone.fingerprint(edges=False) == graph.fingerprint(edges=False)
    assert alone.observed().fingerprint(edges=False) == graph.observed().fingerprint(edges=False)
    assert not recwarn.list


# -- for selection -----------------------------------------------------------------------------------------------------

SELECTED = {"train": [0, 1], "val": [2], "test": [3, 4], "unseen": [4]}


def test_for_selection_there_are_train_and_val_and_their_labels():
    graph = build(split=SPLIT, metric="rocauc", keep_loops=True)
    selected = graph.for_selection()
    assert {part: ids.tolist() for part, ids in selected.split.items()} == {"train": [0, 1], "val": [2]}
    assert selected.y.tolist() == [0, 1, 0, -1, -1, -1]
    assert torch.equal(selected.x, graph.x), "nodes of the test are there, as in training"
    assert torch.equal(selected.edge_index, graph.edge_index)
    assert (selected.name, selected.metric, selected.num_classes) == (graph.name, "rocauc", 2)
    assert graph.y.equal(Y), "the original is as it was"
    assert selected.for_selection().fingerprint() == selected.fingerprint()


def test_for_selection_unseen_nodes_are_cut_off():
    graph = build(split=SELECTED)
    selected, observed = graph.for_selection(), graph.observed()
    assert selected.node_id.tolist() == [0, 1, 2, 3, 5]
    assert torch.equal(selected.x, observed.x)
    assert torch.equal(selected.edge_index, observed.edge_index)
    assert selected.y.tolist() == [0, 1, 0, -1, -1]
    assert selected.setting == "transductive"
    assert selected.for_selection().fingerprint() == selected.fingerprint()


@given(
    st.lists(st.integers(0, 1), min_size=3, max_size=3), st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=2)
)
def test_for_selection_labels_of_the_test_and_all_of_the_unseen_mean_nothing(labels, features):
    y, x = Y.clone(), X.clone()
    y[3:], x[4] = torch.tensor(labels), torch.tensor(features)
    edges = EDGES[:, (EDGES != 4).all(0)]
    other = build(split=SELECTED, y=y, x=x, edge_index=edges, num_classes=2).for_selection()
    assert other.fingerprint() == build(split=SELECTED).for_selection().fingerprint()


def test_for_selection_classes_of_the_test_alone_still_count():
    graph = build(y=[0, 1, 0, 2, 1, 3], split={"train": [0, 1], "val": [2], "test": [3, 4, 5]})
    assert graph.for_selection().num_classes == graph.num_classes == 4


def test_for_selection_it_takes_train_and_val_and_warns_of_no_edges_once(recwarn):
    with pytest.raises(G2MError, match="has no part 'val'"):
        build(split={"train": [0, 1]}).for_selection()
    build(split=SPLIT).without_edges().for_selection()
    assert not recwarn.list
