"""Classes of trees against trees unrolled one by one, as nested tuples; counts against those of published data sets."""

from collections import Counter
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.io import read_tu_data
from torch_geometric.nn import GINEConv

from g2m.condense import RowKeys, TreeKeys, graph_sets, inspect, tree_classes, trees
from g2m.errors import G2MError

quick = settings(max_examples=60)
WAYS = [
    {"method": method, "verify": verify, "backend": backend}
    for method, verify in (("hash", True), ("hash", False), ("exact", True))
    for backend in ("numpy", "torch")
]


class Case(NamedTuple):
    edge_index: np.ndarray
    node_key: np.ndarray
    edge_key: np.ndarray

    def classes(self, num_hops, **options):
        return tree_classes(*self, num_hops=num_hops, **options)

    @property
    def num_nodes(self):
        return len(self.node_key)

    def canonical(self, num_hops):
        """Every node's tree, unrolled to the end and sorted: equal if and only if the trees are isomorphic."""
        arcs = [[] for _ in self.node_key]
        for u, v, key in zip(*self.edge_index.tolist(), self.edge_key.tolist(), strict=True):
            arcs[v].append((key, u))

        @cache
        def tree(v, hops):
            children = sorted((key, tree(u, hops - 1)) for key, u in arcs[v]) if hops else ()
            return int(self.node_key[v]), tuple(children)

        return [tree(v, num_hops) for v in range(self.num_nodes)]


@st.composite
def cases(draw, least: int = 0) -> Case:
    """Directed multigraphs with loops and isolated nodes; few keys, so that trees repeat."""
    size = draw(st.integers(least, 9))
    place = st.integers(0, max(0, size - 1))
    arcs = draw(st.lists(st.tuples(place, place, st.integers(-1, 1)), max_size=18 if size else 0))
    if draw(st.booleans()):
        arcs += [(v, u, key) for u, v, key in arcs]
    source, target, edge_key = np.array(arcs, dtype=np.int64).reshape(-1, 3).T
    node_key = draw(st.lists(st.sampled_from([-(2**63), 0, 5]), min_size=size, max_size=size))
    return Case(np.stack([source, target]), np.array(node_key, dtype=np.int64), edge_key)


hops = st.integers(0, 3)


def numbered(labels):
    """Ids in order of first appearance."""
    ids = {}
    return [ids.setdefault(label, len(ids)) for label in labels]


def size(tree):
    return 1 + sum(size(child) for _, child in tree[1])


def refold(forest):
    """The trees of a forest as nested tuples, in order of their roots."""
    children = [[] for _ in forest.key]
    for i in reversed(range(forest.edge_index.shape[1])):  # children come after their parents
        child, parent = forest.edge_index[:, i]
        tree = int(forest.key[child]), tuple(sorted(children[child]))
        children[parent].append((int(forest.edge_key[i]), tree))
    return [(int(forest.key[r]), tuple(sorted(children[r]))) for r in np.flatnonzero(forest.depth == 0)]


# -- classes -----------------------------------------------------------------------------------------------------------


@settings(quick, max_examples=150)
@given(cases(), hops, st.sampled_from(WAYS))
def test_two_nodes_share_a_class_if_and_only_if_their_unrolled_trees_are_equal(case, num_hops, way):
    classes = case.classes(num_hops, **way)
    assert classes.num_hops == num_hops
    assert classes.num_nodes == case.num_nodes
    for level, (ids, first) in enumerate(zip(classes.levels, classes.first, strict=True)):
        expected = numbered(case.canonical(level))
        assert ids.tolist() == expected
        assert first.tolist() == [expected.index(k) for k in range(len(set(expected)))]
    assert classes.num_classes == tuple(len(set(case.canonical(level))) for level in range(num_hops + 1))


@quick
@given(cases(least=1), hops, st.data())
def test_classes_follow_their_nodes_under_a_permutation(case, num_hops, data):
    new = np.array(data.draw(st.permutations(range(case.num_nodes))))
    order = np.array(data.draw(st.permutations(range(len(case.edge_key)))), dtype=np.int64)
    node_key = np.empty_like(case.node_key)
    node_key[new] = case.node_key
    moved = Case(new[case.edge_index][:, order], node_key, case.edge_key[order])
    before, after = case.classes(num_hops), moved.classes(num_hops)
    assert numbered(after.ids[new].tolist()) == before.ids.tolist()
    assert Counter(refold(after.dag.unroll(after.ids))) == Counter(refold(before.dag.unroll(before.ids)))


@quick
@given(cases(), cases(), hops)
def test_a_disjoint_union_changes_no_tree(one, two, num_hops):
    union = Case(
        np.hstack([one.edge_index, two.edge_index + one.num_nodes]),
        np.concatenate([one.node_key, two.node_key]),
        np.concatenate([one.edge_key, two.edge_key]),
    )
    ids = union.classes(num_hops).ids
    assert ids[: one.num_nodes].tolist() == one.classes(num_hops).ids.tolist()
    assert numbered(ids[one.num_nodes :].tolist()) == two.classes(num_hops).ids.tolist()
    twice = Case(
        np.hstack([one.edge_index, one.edge_index + one.num_nodes]), *(np.tile(key, 2) for key in one[1:])
    ).classes(num_hops)
    assert twice.ids.tolist() == one.classes(num_hops).ids.tolist() * 2


@quick
@given(cases(), st.integers(0, 2), st.integers(0, 2))
def test_fewer_hops_are_the_first_levels_of_more(case, fewer, more):
    deep, shallow = case.classes(fewer + more), case.classes(fewer)
    assert shallow.num_classes == deep.num_classes[: fewer + 1]
    assert shallow.ids.tolist() == deep.levels[fewer].tolist()
    parts = deep.dag.truncate(fewer), shallow.dag
    assert [level.child.tolist() for level in parts[0].levels] == [level.child.tolist() for level in parts[1].levels]
    # A class cut to fewer hops is the class of its node there.
    assert deep.dag.below(deep.ids, fewer).tolist() == shallow.ids.tolist()


def test_deep_refinement_stops_where_nothing_is_told_apart_any_more():
    path = Case(np.array([[0, 1, 2, 3], [1, 2, 3, 4]]), np.zeros(5, np.int64), np.zeros(4, np.int64))
    classes = path.classes(30)
    assert classes.num_classes == (1, 2, 3, 4, *[5] * 27)
    assert classes.levels[-1] is not None
    assert refold(classes.dag.unroll(classes.ids)) == path.canonical(30)


@pytest.mark.parametrize("way", WAYS)
def test_nodes_alone_and_no_nodes_at_all(way):
    none = np.empty((2, 0), np.int64)
    classes = tree_classes(none, np.array([4, 4, 2]), num_hops=2, **way)
    assert classes.ids.tolist() == [0, 0, 1]
    assert classes.num_classes == (2, 2, 2)
    assert [len(level.child) for level in classes.dag.levels] == [0, 0, 0]
    assert classes.dag.unroll([0, 1]).key.tolist() == [4, 2]
    empty = tree_classes(none, none[0], none[0], num_hops=2, **way)
    assert empty.num_classes == (0, 0, 0)
    assert empty.dag.num_cells == 0
    assert empty.dag.unroll([]).edge_index.shape == (2, 0)
    assert empty.dag.restrict([])[0].num_classes == (0, 0, 0)
    assert graph_sets(empty, none[0], 3).shape == (3, 0)
    assert not inspect(empty, none[0]).works


@pytest.mark.parametrize("way", WAYS)
def test_directions_parallel_arcs_and_loops_count(way):
    def ids(arcs, num_hops=1, edge_key=None):
        index = torch.tensor(arcs).T
        return tree_classes(index, torch.zeros(4).long(), edge_key, num_hops=num_hops, **way).ids.tolist()

    assert ids([[0, 1], [2, 3]]) == [0, 1, 0, 1]
    assert ids([[0, 1], [2, 3], [2, 3]]) == [0, 1, 0, 2]
    assert ids([[0, 1], [3, 3]]) == [0, 1, 0, 1]  # one hop does not see that the child is the node itself
    assert ids([[0, 1], [3, 3]], 2) == [0, 1, 0, 2]
    assert ids([[0, 1], [2, 3]], edge_key=torch.tensor([3, 9])) == [0, 1, 0, 2]
    # A multiset, not a set: {a, a, b} and {a, b, b}
    keys = torch.tensor([0, 0, 1, 0, 1, 1])
    assert ids([[0, 1], [0, 1], [0, 1], [2, 3], [2, 3], [2, 3]], edge_key=keys) == [0, 1, 0, 2]


@pytest.mark.parametrize("weak", [lambda z: z * 0, lambda z: z % 3, lambda z: z])
@settings(quick, max_examples=25)
@given(case=cases(), num_hops=st.integers(1, 3), backend=st.sampled_from(["numpy", "torch"]))
def test_verification_mends_what_a_bad_hash_merges(weak, case, num_hops, backend):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, "_mix", weak)
        assert case.classes(num_hops, backend=backend).ids.tolist() == numbered(case.canonical(num_hops))


def test_a_bad_hash_goes_unnoticed_without_verification(monkeypatch):
    monkeypatch.setattr(trees, "_mix", lambda z: z * 0)
    star = Case(np.array([[1, 2, 3], [0, 0, 0]]), np.zeros(4, np.int64), np.zeros(3, np.int64))
    assert star.classes(1, verify=False).num_classes == (1, 1)
    assert star.classes(1).num_classes == (1, 2)


@quick
@given(cases(), hops, st.sampled_from(WAYS))
def test_pairs_of_keys_and_classes_too_many_for_a_product_are_renumbered(case, num_hops, way):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, "WIDE", 1)
        assert case.classes(num_hops, **way).ids.tolist() == numbered(case.canonical(num_hops))


@pytest.mark.parametrize("method", ["hash", "exact"])
def test_the_torch_backend_never_leaves_torch(method, monkeypatch):
    def refuse(self, *args, **options):
        raise AssertionError("went through numpy")

    torch.manual_seed(0)
    given = torch.randint(50, (2, 300)), torch.randint(3, (50,)), torch.randint(2, (300,))
    with monkeypatch.context() as patch:
        for name in ("numpy", "__array__", "cpu"):
            patch.setattr(Tensor, name, refuse)
        classes = tree_classes(*given, num_hops=2, method=method, backend="torch")
    assert isinstance(classes.ids, Tensor)
    assert torch.equal(classes.ids, tree_classes(*given, num_hops=2).ids)


@pytest.mark.parametrize("backend", ["auto", "numpy", "torch"])
def test_results_are_of_the_kind_of_the_node_keys(backend):
    arcs, key = np.array([[0, 1], [1, 2]], dtype=np.int32), np.array([1, 1, 2], dtype=np.uint8)
    for give in (np.asarray, torch.from_numpy):
        classes = tree_classes(give(arcs), give(key), num_hops=1, backend=backend)
        assert type(classes.ids) is type(give(key))
        assert classes.ids.tolist() == [0, 1, 2]
    assert repr(classes) == "TreeClasses(num_hops=1, num_nodes=3, num_classes=(2, 3))"


ARCS, KEYS = torch.tensor([[0, 1], [1, 2]]), torch.zeros(3).long()


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((torch.zeros(3, 2).long(), KEYS), {}, r"edge_index: expected integers of shape \[2, E\]"),
        ((ARCS.double(), KEYS), {}, r"edge_index: expected integers .*float64"),
        ((ARCS, KEYS.double()), {}, r"node_key: expected integers .*TreeKeys"),
        ((ARCS, KEYS[:, None]), {}, r"node_key: .*\[N\]"),
        ((ARCS, KEYS[:2]), {}, r"edge_index: expected node ids in 0 … 1, .*got 0 … 2"),
        ((ARCS - 1, KEYS), {}, r"edge_index: .*got -1"),
        ((ARCS, KEYS, KEYS), {}, r"edge_key: expected integers of shape \[2\]"),
        ((ARCS, KEYS), {"num_hops": -1}, "num_hops: expected a whole number from 0"),
        ((ARCS, KEYS), {"method": "hsah"}, "method: .*Did you mean 'hash'"),
        ((ARCS, KEYS), {"backend": "cuda"}, "backend: expected one of"),
    ],
)
def test_what_is_no_graph_is_refused(given, options, message):
    with pytest.raises(G2MError, match=message):
        tree_classes(*given, **{"num_hops": 1, **options})


# -- the structure that trees share ------------------------------------------------------------------------------------


@settings(quick, max_examples=150)
@given(cases(), hops)
def test_a_class_unrolls_to_the_tree_of_each_of_its_nodes(case, num_hops):
    classes = case.classes(num_hops)
    forest = classes.dag.unroll(classes.ids)
    assert refold(forest) == case.canonical(num_hops)
    assert (forest.depth[forest.edge_index[0]] == forest.depth[forest.edge_index[1]] + 1).all()
    assert (np.diff(forest.depth) >= 0).all()
    assert (forest.tree[forest.edge_index[0]] == forest.tree[forest.edge_index[1]]).all()
    assert forest.tree[: case.num_nodes].tolist() == list(range(case.num_nodes))


@quick
@given(cases(), hops)
def test_levels_hold_the_distinct_children_and_how_many(case, num_hops):
    dag = case.classes(num_hops).dag
    for depth, level in enumerate(dag.levels):
        assert level.key.tolist() == [key for key, _ in dict.fromkeys(case.canonical(depth))]
        for k, (_, children) in enumerate(dict.fromkeys(case.canonical(depth))):
            entries = slice(*level.crow[k : k + 2])
            found = list(zip(level.edge_key[entries].tolist(), level.child[entries].tolist(), strict=True))
            assert len(set(found)) == len(found)
            below = list(dict.fromkeys(case.canonical(depth - 1))) if depth else []
            expected = Counter((key, below.index(child)) for key, child in children)
            assert dict(zip(found, level.multiplicity[entries].tolist(), strict=True)) == expected
        assert dag.counts[depth].tolist() == list(Counter(case.canonical(depth)).values())


@quick
@given(cases(), hops)
def test_sizes_count_walks(case, num_hops):
    dag = case.classes(num_hops).dag
    for depth, sizes in enumerate(dag.sizes):
        assert sizes.tolist() == [size(tree) for tree in dict.fromkeys(case.canonical(depth))]
    adjacency = np.zeros((case.num_nodes, case.num_nodes))
    np.add.at(adjacency, tuple(case.edge_index), 1)
    walks = sum(np.linalg.matrix_power(adjacency, length).sum() for length in range(num_hops + 1))
    assert dag.sizes[-1] @ dag.counts[-1] == walks


@quick
@given(cases(least=1), hops, st.data())
def test_a_part_holds_what_its_classes_reach_and_no_more(case, num_hops, data):
    classes = case.classes(num_hops)
    wanted = data.draw(st.lists(st.sampled_from(classes.ids.tolist()), max_size=5))
    part, kept = classes.dag.restrict(wanted)
    assert kept[-1].tolist() == sorted(set(wanted))
    assert refold(part.unroll(np.arange(len(kept[-1])))) == refold(classes.dag.unroll(kept[-1]))
    for depth in range(num_hops + 1):
        assert part.below(np.arange(len(kept[-1])), depth).tolist() == [
            kept[depth].tolist().index(k) for k in classes.dag.below(kept[-1], depth)
        ]
        assert part.counts[depth].tolist() == classes.dag.counts[depth][kept[depth]].tolist()
    for upper, lower in zip(part.levels[1:], part.levels[:-1], strict=True):
        assert set(upper.child.tolist()) | set(upper.below.tolist()) == set(range(len(lower)))
    assert part.num_cells <= classes.dag.num_cells


def test_cells_are_counted_by_hand():
    # A star of two leaves and a single node: 1 class of 0 hops; a root with one child of multiplicity 2, and a leaf.
    star = Case(np.array([[1, 2], [0, 0]]), np.zeros(4, np.int64), np.zeros(2, np.int64))
    assert star.classes(0).dag.num_cells == 1
    assert star.classes(1).dag.num_cells == 1 + 2 * 2 + 2
    keyed = star._replace(edge_key=np.array([3, 4]))  # two children, one each, and the keys of their arcs
    assert keyed.classes(1).dag.num_cells == 1 + 2 * 2 + 3 * 2


def test_what_is_too_large_or_not_there_is_refused():
    full = Case(np.array([[i, j] for i in range(12) for j in range(12)]).T, np.arange(12), np.zeros(144, np.int64))
    dag = full.classes(8).dag
    assert dag.sizes[-1][0] == sum(12**i for i in range(9))
    with pytest.raises(G2MError, match=r"classes: expected trees of at most 1000000 nodes in all \(got 469070941\)"):
        dag.unroll(0)
    with pytest.raises(G2MError, match=r"got 13"):
        dag.truncate(1).unroll(0, max_nodes=12)
    assert len(dag.truncate(1).unroll(0, max_nodes=13).key) == 13
    with pytest.raises(G2MError, match="classes: expected classes of 8 hops in 0 … 11"):
        dag.unroll(12)
    with pytest.raises(G2MError, match="num_hops: expected at most 8"):
        dag.truncate(9)
    assert repr(dag).startswith("ClassDAG(num_hops=8, num_classes=(12, ")


@pytest.mark.parametrize("num_hops", [2, 3])
def test_a_network_of_as_many_layers_gives_roots_what_it_gives_nodes(num_hops):
    torch.manual_seed(0)
    data = Data(torch.randint(3, (40, 2)).double(), torch.randint(40, (2, 70)), torch.randint(2, (70, 1)).double())
    keys = TreeKeys().fit(data)
    classes = tree_classes(data.edge_index, *keys.transform(data), num_hops=num_hops)
    trees = classes.dag.to_pyg(classes.ids)
    trees.x, trees.edge_attr = keys.decode_nodes(trees.node_key), keys.decode_edges(trees.edge_key)

    def conv():
        return GINEConv(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), edge_dim=1).double()

    convs = [conv() for _ in range(num_hops)]

    def forward(data):
        x = data.x
        for layer in convs:
            x = layer(x, data.edge_index, data.edge_attr)
        return x

    roots = forward(trees)[trees.root_mask]
    torch.testing.assert_close(roots, forward(data), rtol=0, atol=1e-12)
    convs.append(conv())  # a layer more sees further than the trees go
    assert (forward(trees)[trees.root_mask] - forward(data)).abs().max() > 1e-3


def test_to_pyg_batches_and_says_which_tree_a_node_is_of():
    case = Case(np.array([[1, 2, 0], [0, 0, 1]]), np.array([7, 8, 8]), np.array([5, 6, 5]))
    classes = case.classes(1)
    data = classes.dag.to_pyg(classes.ids[[0, 2]])
    assert data.x is None
    assert data.num_nodes == 4
    assert data.node_key.tolist() == [7, 8, 8, 8]
    assert data.tree.tolist() == [0, 1, 0, 0]
    assert data.root_mask.tolist() == [True, True, False, False]
    assert data.edge_index.tolist() == [[2, 3], [0, 0]]
    assert sorted(data.edge_key.tolist()) == [5, 6]
    batch = Batch.from_data_list([data, data])
    assert batch.edge_index[:, 2:].tolist() == [[6, 7], [4, 4]]
    assert batch.validate()


def test_a_drawing_has_every_node_and_the_root_on_top(tmp_path):
    case = Case(np.array([[1, 2, 3], [0, 0, 1]]), np.array([7, 8, 8, 9]), np.array([5, 6, 5]))
    dag = case.classes(2).dag
    figure = Figure()
    axes = figure.add_subplot()
    size = dag.draw_on(axes, 0, label=lambda key: f"k{key}", edge_label=lambda key: f"e{key}")
    assert size == (2, 3)
    texts = {text.get_text(): text.get_position() for text in axes.texts}
    assert {"k7", "k8", "k9", "e5", "e6"} == set(texts)
    assert texts["k7"][1] > texts["k8"][1] > texts["k9"][1]
    figure.savefig(tmp_path / "tree.png")
    assert (tmp_path / "tree.png").stat().st_size > 1000
    with pytest.raises(G2MError, match="at most 3 nodes"):
        dag.draw_on(axes, 0, max_nodes=3)


# -- per graph, and in sum ---------------------------------------------------------------------------------------------


@quick
@given(cases(), hops, st.data())
def test_sets_count_the_classes_of_every_graph(case, num_hops, data):
    graph = np.array(data.draw(st.lists(st.integers(0, 3), min_size=case.num_nodes, max_size=case.num_nodes)), int)
    classes = case.classes(num_hops + 1)
    sets = graph_sets(classes, torch.from_numpy(graph), 5, num_hops=num_hops).toarray()
    expected = np.zeros((5, classes.num_classes[num_hops]), int)
    np.add.at(expected, (graph, classes.levels[num_hops]), 1)
    assert (sets == expected).all()
    assert graph_sets(classes, graph, 5).sum() == case.num_nodes


def test_sets_of_what_is_no_index_are_refused():
    classes = tree_classes(ARCS, KEYS, num_hops=1)
    for index, options, message in [
        ([0, 0], {}, r"graph_index: expected integers of shape \[3\]"),
        ([0.0, 0, 0], {}, "graph_index: expected integers"),
        ([0, -1, 0], {}, "graph_index: expected numbers from 0"),
        ([0, 2, 0], {"num_graphs": 2}, "num_graphs: expected a whole number from 3"),
        ([0, 0, 0], {"num_hops": 2}, "num_hops: expected at most 1"),
    ]:
        with pytest.raises(G2MError, match=message):
            graph_sets(classes, np.array(index), **options)


@quick
@given(cases(least=1), hops, st.data())
def test_inspection_counts_what_counting_trees_gives(case, num_hops, data):
    graph = data.draw(st.lists(st.integers(0, 2), min_size=case.num_nodes, max_size=case.num_nodes))
    report = inspect(case.classes(num_hops), np.array(graph))
    for depth, level in enumerate(report.levels):
        trees = case.canonical(depth)
        counts = Counter(trees)
        alone = [count for count in counts.values() if count == 1]
        assert level[:4] == (depth, case.num_nodes, len(counts), len(alone))
        held = np.cumsum(sorted(counts.values(), reverse=True))
        assert level.cover == tuple(int((held < share * case.num_nodes).sum()) + 1 for share in (0.5, 0.8, 0.9))
        sizes = [size(tree) for tree in trees]
        assert level.mean_size == pytest.approx(np.mean(sizes))
        assert level.max_size == max(sizes)
        support = Counter(tree for tree, _ in set(zip(trees, graph, strict=True)))
        assert level.top_support == max(support.values()) / len(set(graph))
    assert len(str(report).splitlines()) == num_hops + 4
    assert inspect(case.classes(num_hops)).levels[-1].top_support is None


@pytest.mark.parametrize(("alone", "works"), [(0, True), (89, True), (90, False), (100, False)])
def test_the_verdict_turns_where_ninety_percent_have_a_tree_of_their_own(alone, works):
    key = np.r_[np.arange(alone), np.full(100 - alone, -1)]
    report = inspect(tree_classes(np.empty((2, 0), np.int64), key, num_hops=1), np.zeros(100, int))
    assert report.works is works
    assert report.levels[-1].repeated == pytest.approx(1 - alone / 100)
    assert ("Mirage cannot work" in str(report)) is not works
    assert f"{alone}% of the nodes have a tree of their own" in report.verdict


def test_the_verdict_names_the_hops_that_do_work():
    path = np.stack([np.arange(30), np.arange(1, 31)])
    classes = tree_classes(path, np.zeros(31, np.int64), num_hops=40)
    assert "Mirage cannot work with 40 hops" in inspect(classes).verdict
    assert "Take 27 hops (" in inspect(classes).verdict  # 28 hops: 28 of 31 alone


# -- keys --------------------------------------------------------------------------------------------------------------


@quick
@given(st.data(), st.sampled_from([np.int64, np.float32, np.float64, np.bool_, np.uint8]))
def test_keys_of_rows_are_those_of_a_dictionary(data, dtype):
    width = data.draw(st.integers(0, 3))
    row = st.tuples(*[st.sampled_from([0, 1, 3] if dtype is np.bool_ else [0, 1, 200])] * width)
    drawn = (data.draw(st.lists(row, min_size=1, max_size=12)) for _ in range(2))
    train, other = (np.array(rows, dtype).reshape(len(rows), width) for rows in drawn)
    keys = RowKeys().fit(train)
    known = {}
    expected = [known.setdefault(tuple(row), len(known)) for row in train.tolist()]
    assert keys.transform(train).tolist() == expected
    assert keys.num_keys == len(known)
    assert keys.transform(torch.from_numpy(other)).tolist() == [known.get(tuple(r), len(known)) for r in other.tolist()]
    assert np.array_equal(keys.decode(keys.transform(train)), train)
    assert keys.decode([0]).dtype == dtype


def test_rows_that_share_a_hash_are_told_apart(monkeypatch):
    hash_rows = trees._hash_rows
    monkeypatch.setattr(trees, "_hash_rows", lambda x, salt: hash_rows(x[:, :1] if salt < 2 else x, salt))
    x = np.array([[0, 1], [0, 2], [1, 1]])
    keys = RowKeys().fit(x)
    assert keys.transform(x).tolist() == [0, 1, 2]
    monkeypatch.setattr(trees, "_hash_rows", lambda x, salt: hash_rows(x[:, :1], salt))
    keys = RowKeys().fit(x[1:])
    assert keys.transform(x).tolist() == [2, 0, 1]  # unknown, though its hash is known


def test_rows_equal_as_numbers_are_equal_as_keys():
    keys = RowKeys().fit(np.array([[0.0, 1], [2, 1]], np.float32))
    assert keys.transform(np.array([[-0.0, 1.0], [2, 1]])).tolist() == [0, 1]
    assert keys.transform(np.array([[0, 1], [2, 1], [1, 2]])).tolist() == [0, 1, 2]
    whole = RowKeys().fit(np.array([1, 0]))
    assert whole.transform(np.array([1.0, 1.5, 0.0])).tolist() == [0, 2, 1]


def test_quantiles_have_equally_many_rows_and_decode_to_their_means():
    x = np.random.default_rng(0).normal(size=(800, 1)) ** 3
    x = np.hstack([x, np.arange(800)[:, None] % 2])
    keys = RowKeys("quantile", bins=4).fit(x)
    ids = keys.transform(x)
    assert keys.num_keys == 8  # the other column is whole, and kept as it is
    one = RowKeys("quantile", bins=4).fit(x[:, :1])
    assert np.bincount(one.transform(x[:, :1])).tolist() == [200] * 4
    for k in range(8):
        np.testing.assert_allclose(keys.features_[k], x[ids == k].mean(0), rtol=1e-6)
        assert len(np.unique(x[ids == k, 1])) == 1
    assert keys.transform([[1e9, 0], [-1e9, 1], [0, 5]])[2] == 8
    assert max(keys.transform([[1e9, 0], [-1e9, 1]])) < 8  # beyond what was seen is in the outer bins
    assert RowKeys("quantile", columns=[1], bins=2).fit(x).num_keys == 800


def test_a_codebook_finds_blobs_and_keeps_the_rest_of_the_row():
    generator = np.random.default_rng(0)
    blob = generator.integers(3, size=300)
    x = np.column_stack([np.eye(3)[blob] * [1, 100, 1] + generator.normal(size=(300, 3)) / 50, blob % 2])
    keys = RowKeys("codebook", codes=3).fit(x)
    assert numbered(keys.transform(x).tolist()) == numbered(blob.tolist())
    for k in range(3):
        np.testing.assert_allclose(keys.features_[k], x[keys.transform(x) == k].mean(0), rtol=1e-5)
    again = RowKeys("codebook", codes=3).fit(x)
    assert np.array_equal(again.transform(x), keys.transform(x))
    assert RowKeys("codebook", codes=9).fit(np.array([[0.5], [0.5], [1.5]])).num_keys == 2


@pytest.mark.parametrize("kind", ["quantile", "codebook"])
def test_coarse_keys_leave_whole_numbers_alone(kind):
    x = np.array([[3.0, 1], [2, 1], [3, 1]])
    assert RowKeys(kind, bins=2, codes=1).fit(x).transform(x).tolist() == [0, 1, 0]
    keys = RowKeys(kind).fit(np.array([[0.5, 1], [2, 1]]))
    assert keys.transform(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: RowKeys("row"), "kind: .*Did you mean 'rows'"),
        (lambda: RowKeys(bins=1), "bins: expected a whole number from 2"),
        (lambda: RowKeys(codes=0), "codes: expected a whole number from 1"),
        (lambda: RowKeys().fit(np.empty((0, 2))), "x: expected at least one row"),
        (lambda: RowKeys().fit(np.array([[np.nan]])), "x: expected finite numbers"),
        (lambda: RowKeys().fit(np.array([["a"]])), "x: expected numbers of shape"),
        (lambda: RowKeys().fit(np.ones((3, 2, 1))), r"x: expected numbers of shape \[N, F\]"),
        (lambda: RowKeys("quantile", columns=[2]).fit(np.ones((3, 2))), "columns: expected columns in 0 … 1"),
        (lambda: RowKeys().transform(np.ones((3, 2))), "keys: .*Call fit"),
        (lambda: RowKeys().fit(np.ones((3, 2))).transform(np.ones((3, 1))), "x: expected 2 columns"),
        (lambda: RowKeys().fit(np.ones((3, 2))).decode([1]), "keys: expected keys in 0 … 0 .*stands for no attributes"),
        (lambda: TreeKeys(node="edges"), "node: expected one of"),
        (lambda: TreeKeys(edge="degree"), "edge: expected one of"),
        (lambda: TreeKeys(node="rows").fit(Data(edge_index=ARCS, num_nodes=3)), "node: expected data with x"),
        (lambda: TreeKeys(edge="rows").fit(Data(KEYS, ARCS)), "edge: expected data with edge_attr"),
        (lambda: TreeKeys().fit(Data(KEYS, ARCS), [0]), "graphs: expected data to be a Batch"),
        (lambda: TreeKeys().transform(Data(KEYS, ARCS)), "keys: .*Call fit"),
    ],
)
def test_keys_of_what_has_none_are_refused(act, message):
    with pytest.raises(G2MError, match=message):
        act()


def test_keys_are_fitted_on_the_training_graphs_alone():
    graphs = [
        Data(torch.tensor([[4], [4]]), torch.tensor([[0], [1]]), torch.tensor([[1, 1]])),
        Data(torch.tensor([[4], [6]]), torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1, 1], [2, 1]])),
    ]
    batch = Batch.from_data_list(graphs)
    keys = TreeKeys().fit(batch, [0])
    node, edge = keys.transform(batch)
    assert node.tolist() == [0, 0, 0, 1]  # 1: unknown
    assert edge.tolist() == [0, 0, 1]
    for same in (TreeKeys().fit(graphs[0]), TreeKeys().fit(batch, torch.tensor([True, False]))):
        assert all(torch.equal(a, b) for a, b in zip(same.transform(batch), (node, edge), strict=True))
    assert keys.decode_nodes(node[:3]).tolist() == [[4]] * 3
    assert keys.decode_edges(edge[:2]).tolist() == [[1, 1]] * 2
    assert keys.decode_degrees(node[:3]) is None
    with pytest.raises(G2MError, match="stands for no attributes"):
        keys.decode_nodes(node)


def test_degrees_apart_beside_attributes_and_without_any():
    arcs = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])  # a path: degrees 1, 2, 1
    bare = Data(edge_index=arcs, num_nodes=4)
    keys = TreeKeys().fit(bare)
    node, edge = keys.transform(bare)
    assert node.tolist() == [0, 1, 0, 2]
    assert edge.tolist() == [0] * 4
    assert keys.decode_nodes(node).tolist() == [[1], [2], [1], [0]]
    assert keys.decode_degrees(node).tolist() == [1, 2, 1, 0]
    assert keys.decode_edges(edge) is None
    x = torch.tensor([[0.5], [0.5], [0.5], [2.5]])
    keys = TreeKeys(degree=True).fit(Data(x, arcs))
    node, _ = keys.transform(Data(x, arcs))
    assert node.tolist() == [0, 1, 0, 2]
    assert torch.equal(keys.decode_nodes(node), x)
    assert keys.decode_degrees(node).tolist() == [1, 2, 1, 0]
    for options in ({"node": "constant"}, {"node": "quantile", "bins": 2, "columns": [0]}):
        assert TreeKeys(**options).fit(Data(x, arcs)).transform(Data(x, arcs))[0].tolist()[:3] == [0] * 3
    mask = torch.ones(4, 1, dtype=torch.bool)
    assert TreeKeys(degree=True).fit(Data(mask, arcs)).transform(Data(mask, arcs))[0].tolist() == [0, 1, 0, 2]
    assert TreeKeys(node="constant", degree=True).fit(bare).decode_nodes([0]).tolist() == [[1]]


def test_graphs_without_arcs_have_no_key_of_arcs():
    data = Data(torch.zeros(2, 1), torch.empty(2, 0).long(), torch.empty(0, 3))
    keys = TreeKeys().fit(data)
    other = Data(torch.zeros(2, 1), ARCS[:, :1], torch.ones(1, 3))
    assert keys.transform(other)[1].tolist() == [0]
    assert keys.decode_edges([0]) is None


# -- data sets ---------------------------------------------------------------------------------------------------------


@cache
def read(root, name):
    """All graphs of a TU data set side by side: arcs, node keys (label, else degree), graph of every node."""
    folder = root / "tu" / name / "raw"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    data, slices, _ = read_tu_data(str(folder), name)
    graph = torch.from_numpy(np.loadtxt(folder / f"{name}_graph_indicator.txt", dtype=np.int64) - 1)
    start = torch.searchsorted(graph, torch.arange(len(slices["edge_index"]) - 1))
    data.edge_index = data.edge_index + torch.repeat_interleave(start, slices["edge_index"].diff())
    data.num_nodes, data.edge_attr = len(graph), None
    keys = TreeKeys().fit(data)
    return data.edge_index, keys.transform(data)[0], graph


@cache
def read_molecules(root, name):
    """Arcs, node and arc keys of an OGB data set of molecules, from its text."""
    folder = root / "ogb" / name / "raw"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    files = ("num-node-list", "num-edge-list", "edge", "node-feat", "edge-feat")
    nodes, bonds, edge, x, edge_attr = (pd.read_csv(folder / f"{f}.csv.gz", header=None).to_numpy() for f in files)
    edge = edge + np.repeat(np.cumsum(nodes) - nodes[:, 0], bonds[:, 0])[:, None]
    edge_index = np.concatenate([edge, edge[:, ::-1]]).T
    return edge_index, RowKeys().fit(x).transform(x), np.tile(RowKeys().fit(edge_attr).transform(edge_attr), 2)


#: From a canonical form of every tree unrolled: classes with 1 … 5 hops.
CLASSES = {
    "MUTAG": (33, 174, 572, 1197, 1766),
    "NCI1": (292, 4058, 22948, 44508, 58948),
    "PROTEINS": (297, 20962, 35676, 37940, 38653),
    "IMDB-BINARY": (2931, 3595, 3595, 3595, 3595),
    "ogbg_molbace": (1446, 5632, 10573, 15263, 19692),
    "ogbg_molbbbp": (3547, 14369, 23701, 29700, 33716),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_as_many_as_unrolled_trees_of_real_graphs(data_root, name):
    given = read_molecules(data_root, name) if name.startswith("ogbg") else read(data_root, name)[:2]
    for way in ({}, {"method": "exact"}):
        assert tree_classes(*given, num_hops=5, **way).num_classes[1:] == CLASSES[name]


#: Hops, nodes, classes, singletons, most frequent classes for 50, 80, 90 % of nodes; mean and largest tree.
REPETITION = {
    "MUTAG": (2, 3371, 174, 68, (5, 13, 31), None, None),
    "NCI1": (2, 122747, 4058, 1508, (41, 246, 571), 8.5, 20),
    "PROTEINS": (1, 43471, 297, 61, (11, 25, 41), 4.7, 26),
    "IMDB-BINARY": (2, 19773, 3595, 1358, (316, 1285, 1928), 161, 2500),
}


@pytest.mark.parametrize("name", REPETITION)
def test_repetition_in_real_graphs(data_root, name):
    *expected, mean, largest = REPETITION[name]
    edge_index, node_key, graph = read(data_root, name)
    report = inspect(tree_classes(edge_index, node_key, num_hops=expected[0]), graph)
    level = report.levels[-1]
    assert list(level[:5]) == expected
    assert report.works
    if mean is not None:
        assert level.mean_size == pytest.approx(mean, rel=0.01)
        assert level.max_size == pytest.approx(largest, rel=0.01)
