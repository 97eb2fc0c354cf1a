"""Condensed sets: what is stored is what was put in, in the bytes that are counted; what is computed stays the same."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_geometric.nn as pyg
from graph_cases import PRECISE, answer, apart, gradients_apart, network, random_graphs, sets_of_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch_geometric.data import Data

from g2m import G2MError, Graphs, load, storage
from g2m.condense import CondensedSet, Trees, TreeTable, condense
from g2m.condense.condensed import narrow, pack, unpack
from g2m.condense.program import Program
from g2m.errors import FileError
from g2m.graph_gnn import Encoder, GraphGNN

quick = settings(max_examples=60)
KINDS = [("keys", "keys"), ("values", "none"), ("none", "values")]
kinds = pytest.mark.parametrize(("x", "edges"), KINDS)

# -- numbers -----------------------------------------------------------------------------------------------------------

EDGES = sorted({sign * 2**power + more for power in (7, 8, 15, 16, 31, 32, 62) for sign in (-1, 1) for more in (-1, 0)})
shapes = array_shapes(max_dims=2, min_side=0, max_side=6)
whole = st.integers(-3, 3) | st.sampled_from(EDGES) | st.integers(-(2**63), 2**63 - 1)
fractions = st.floats(width=32) | st.integers(0, 510).map(lambda part: float(np.float32(part / 255))) | st.just(-0.25)
any_array = st.one_of(
    arrays(np.int64, shapes, elements=whole),
    arrays(np.int64, shapes, elements=st.integers(0, 1)),
    arrays(np.float32, shapes, elements=fractions, fill=st.nothing()),
    arrays(np.float32, shapes, elements=st.integers(0, 255).map(lambda part: np.float32(part / 255))),
    arrays(np.float64, shapes, elements=st.floats() | st.integers(0, 255).map(lambda part: part / 255)),
    st.builds(np.arange, st.integers(0, 300), dtype=st.sampled_from([np.int64, np.float32])),
    st.builds(np.full, shapes, whole | st.floats()),
)


@settings(quick, max_examples=400)
@given(any_array)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_packed_and_unpacked_it_is_the_same(array):
    stored, how = pack(array)
    found = unpack(stored, json.loads(json.dumps(how)), "x").astype(array.dtype)
    assert found.shape == array.shape
    assert np.array_equal(found, array, equal_nan=array.dtype.kind == "f")
    assert stored.nbytes <= array.nbytes


@pytest.mark.parametrize(
    ("numbers", "dtype", "stored"),
    [
        (range(5), np.int64, 0),
        ([[0, 1, 2]], np.int64, 3),  # a table is no range
        ([0.0, 1, 2], np.float32, 3),
        ([9] * 500, np.int64, 1),
        ([70_000] * 500, np.int64, 4),
        ([0.25] * 500, np.float32, 2),
        (np.arange(256) / 255, np.float32, 256),
        (np.arange(257) / 255, np.float32, 514),
        ([1 / 255, 0.5], np.float32, 8),
        ([np.nan, 0.5], np.float32, 4),
        ([np.nan, np.nan], np.float32, 4),  # not equal, so not the same
        ([], np.float32, 0),
        ([[]], np.int64, 0),
        ([0], np.int64, 1),  # one number is no range
    ],
)
def test_bytes_of_numbers_that_are_stored_in_short(numbers, dtype, stored):
    assert pack(np.array(numbers, dtype))[0].nbytes == stored


TYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64]


@settings(quick, max_examples=150)
@given(arrays(np.int64, shapes, elements=whole))
def test_no_narrower_type_holds_whole_numbers(array):
    holds = [kind for kind in TYPES if all(np.iinfo(kind).min <= n <= np.iinfo(kind).max for n in array.flat)]
    for given_ in (array, array.astype(np.float64)):
        if np.array_equal(given_.astype(object), array.astype(object)):  # beyond 2⁵³ a float is another number
            found = narrow(given_)
            assert np.array_equal(found.astype(given_.dtype), given_)
            least = np.dtype(holds[0]).itemsize
            # Beyond 32 bits a float that is whole may take fewer bytes than an integer.
            assert found.itemsize == least or (given_ is not array and least == 8 and found.dtype.kind == "f")


@pytest.mark.parametrize(
    ("numbers", "dtype", "stored"),
    [
        ([0, 255], np.int64, np.uint8),
        ([0, 256], np.int64, np.uint16),
        ([-1, 127], np.int64, np.int8),
        ([-1, 128], np.int64, np.int16),
        ([-1, 2**31], np.int64, np.int64),
        ([True, False], bool, np.uint8),
        ([3.0, -2], np.float32, np.int8),
        ([0.5, 2048], np.float32, np.float16),
        ([0.1], np.float32, np.float32),
        ([0.1], np.float64, np.float64),
        ([1e-45], np.float32, np.float32),
        ([2.0**40, 1], np.float32, np.float32),
        ([1e30], np.float32, np.float32),
        ([1e300], np.float64, np.float64),
        ([np.inf, -1], np.float32, np.float16),
        ([np.nan], np.float64, np.float16),
    ],
)
def test_types_of_numbers(numbers, dtype, stored):
    assert narrow(np.array(numbers, dtype)).dtype == stored


# -- files -------------------------------------------------------------------------------------------------------------


def one_hot(graphs: Graphs, columns: int = 4) -> Graphs:
    """The same graphs with rows of one 1 for attributes, as TU data sets have them."""
    rows = torch.eye(columns)[torch.arange(graphs.num_nodes) % columns]
    return replace(graphs, x=rows, edge_attr=rows[graphs.edge_index[0]].long())


def arcs(graphs: Graphs) -> list:
    """Arcs with their attributes; in no order where they are parallel."""
    rows = graphs.edge_index.T.tolist()
    attr = [()] * len(rows) if graphs.edge_attr is None else graphs.edge_attr.tolist()
    return sorted((*row, *more) for row, more in zip(rows, attr, strict=True))


def equal(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.dtype == second.dtype and first.shape == second.shape and bool((first == second).all())


def same_graphs(first: Graphs, second: Graphs) -> bool:
    if not all(equal(getattr(first, name), getattr(second, name)) for name in ("x", "ptr")):
        return False
    kind = [None if graphs.edge_attr is None else graphs.edge_attr.dtype for graphs in (first, second)]
    about = [(graphs.num_classes, graphs.metric, graphs.num_edge_features) for graphs in (first, second)]
    return kind[0] == kind[1] and about[0] == about[1] and arcs(first) == arcs(second)


def bags(graphs: Graphs, num_hops: int = 2, seed: int = 0, *, degrees: bool = False, num_bags: int = 4) -> Trees:
    """Bags drawn at random from the trees of some graphs; the last is empty."""
    table, generator = TreeTable(graphs, num_hops, degrees), np.random.default_rng(seed)
    matrix = generator.integers(0, 4, (num_bags, table.counts.shape[1])) * generator.integers(0, 2, (num_bags, 1))
    matrix[-1] = 0
    row, item = matrix.nonzero()
    return table.bags(row, item, matrix[row, item], num_bags)


def labelled(content: Graphs | Trees, **meta) -> CondensedSet:
    shares = torch.tensor([[0.25, 0.75], [1, 0], [0.5, 0.5]])[torch.arange(len(content)) % 3]
    weight = (1 + torch.arange(len(content)) % 7) / 255
    return CondensedSet(content, shares, weight, meta)


def again(made: CondensedSet, folder) -> CondensedSet:
    path = made.save(folder / "set.safetensors")
    loaded = CondensedSet.load(path)
    (header,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert path.stat().st_size == 8 + header + made.nbytes().raw  # names and header, and no more
    assert loaded.nbytes().raw == made.nbytes().raw
    assert loaded.arrays.keys() == made.arrays.keys()
    for name, array in made.arrays.items():
        assert loaded.arrays[name].dtype == array.dtype
        assert np.array_equal(loaded.arrays[name], array, equal_nan=array.dtype.kind == "f")
    for name in ("y", "weight"):
        first, second = (getattr(one, name) for one in (loaded, made))
        assert first.dtype == second.dtype
        assert torch.equal(first.nan_to_num(7), second.nan_to_num(7))
    assert (loaded.meta, loaded.num_hops, len(loaded)) == (made.meta, made.num_hops, len(made))
    assert loaded.fingerprint() == made.fingerprint()  # what was begun on it goes on
    return loaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all examples of hypothesis."""
    return tmp_path_factory.mktemp("sets")


@settings(quick, max_examples=100)
@given(sets_of_graphs, st.booleans())
def test_graphs_are_the_same_from_a_file(folder, graphs, hot):
    graphs = one_hot(graphs) if hot and graphs.num_edges else graphs
    made = labelled(graphs, data="some")
    assert same_graphs(again(made, folder).content, graphs)
    stored = "x" in made.arrays, "edge_attr" in made.arrays
    has = graphs.x is not None and graphs.num_nodes > 0, graphs.edge_attr is not None and graphs.num_edges > 0
    assert all(there <= expected for there, expected in zip(stored, has, strict=True))  # 0 … U-1 is not stored


@pytest.mark.parametrize("x", ["keys", "values", "none"])
@pytest.mark.parametrize("sizes", [[0], [0, 0], [3], [1, 0]], ids=str)
def test_graphs_without_arcs_or_nodes_are_the_same_from_a_file(sizes, x, folder):
    graphs = random_graphs(sizes, x=x, edges="values")
    graphs = replace(graphs, edge_index=torch.empty(2, 0).long(), edge_attr=torch.empty(0, 2))
    found = again(labelled(graphs), folder).content
    assert same_graphs(found, graphs)
    assert (found.num_features, found.num_edge_features) == (graphs.num_features, 2)


@kinds
@pytest.mark.parametrize("degrees", [False, True])
def test_trees_compute_the_same_from_a_file(x, edges, degrees, folder):
    graphs = random_graphs(x=x, edges=edges)
    made = labelled(bags(graphs, degrees=degrees))
    loaded = again(made, folder)
    assert ("node_degree" in made.arrays) is (degrees and x != "none"), "where x is the degree it is stored once"
    for name in ("x", "edge_attr", "node_degree"):
        assert equal(getattr(loaded.content, name), getattr(made.content, name))
    for backbone in ("gin", "gcn") if degrees else ("gin", "gat"):
        model = network(backbone, graphs, pooling="mean")
        programs = [one.program(2, degrees=model.needs_degrees).to(dtype=torch.float64) for one in (loaded, made)]
        (logits, grads), (expected, wanted) = (answer(model, program) for program in programs)
        assert torch.equal(logits, expected)
        assert gradients_apart(grads, wanted) <= PRECISE


@quick
@given(sets_of_graphs, st.integers(1, 3), st.integers(0, 9), st.booleans())
def test_any_trees_are_the_same_from_a_file(folder, graphs, num_hops, seed, degrees):
    if not graphs.num_nodes:
        return
    made = labelled(bags(graphs, num_hops, seed, degrees=degrees))
    programs = [one.program(num_hops) for one in (made, again(made, folder))]
    for first, second in zip(*(numbers(program) for program in programs), strict=True):
        assert equal(first, second)


def numbers(program: Program) -> list[Tensor | None]:
    hops = [part for hop in program.hops for part in (hop.own, hop.source, hop.edge, hop.degree_below, *csr(hop.count))]
    return [program.x, program.key, program.edge_attr, *csr(program.pool), *hops]


def csr(matrix) -> tuple[Tensor, ...]:
    return matrix.crow, matrix.col, matrix.value


LABELS = {
    "classes": torch.tensor([2, 0, 1, 1]),
    "one class": torch.ones(4).long(),
    "tasks": torch.tensor([[1.0, 0, torch.nan]] * 4),
    "shares of tasks": torch.tensor([[0.2, 0.6], [51 / 255, torch.nan], [1, 1], [0, 0.5]]),
    "double": torch.tensor([0.1, 1 / 3, 1e300, -2], dtype=torch.float64),
}


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("per_task", [False, True])
def test_labels_and_weights_are_the_same_from_a_file(y, per_task, folder):
    weight = torch.tensor([1, 128 / 255, 0.1, 1 / 255])
    weight = weight[:, None].repeat(1, y.size(1)) if per_task and y.dim() == 2 else weight
    again(CondensedSet(bags(random_graphs()), y, weight), folder)


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_graphs_with_tasks_are_the_same_from_a_file(tasks, folder):
    graphs = random_graphs(tasks=tasks)
    found = again(CondensedSet(graphs, graphs.y, torch.ones(graphs.y.shape)), folder)
    assert same_graphs(found.content, graphs)


@pytest.mark.parametrize("num_classes", [2, 3, 6, 10, 40])
def test_shares_are_the_same_to_the_bit_without_their_last(num_classes, folder):
    """In whatever order and width a sum is taken here or there."""
    parts = np.random.default_rng(num_classes).multinomial(255, np.full(num_classes, 1 / num_classes), size=50)
    head = (parts[:, :-1] / 255).astype(np.float32)
    y = torch.from_numpy(np.column_stack([head, 1 - head.sum(1, dtype=np.float32)]))
    for given_ in (y, y.T.contiguous().T):
        made = CondensedSet(bags(random_graphs(), num_bags=50), given_, torch.ones(50))
        assert made.arrays["y"].shape == (50, num_classes - 1)
        assert made.arrays["y"].dtype == np.uint8
        again(made, folder)


def test_labels_that_are_no_shares_are_stored_whole():
    made = CondensedSet(bags(random_graphs()), torch.tensor([[0.25, 0.5]] * 3 + [[1, 1]]), torch.ones(4))
    assert made.arrays["y"].shape == (4, 2)


@kinds
def test_the_account_is_the_sum_of_what_is_stored(x, edges):
    graphs = random_graphs(x=x, edges=edges, directed=False)
    for content in (graphs, bags(graphs)):
        made = labelled(content)
        assert made.nbytes().raw == sum(array.nbytes for array in made.arrays.values())
        assert 0 < made.nbytes().compressed < made.nbytes().raw + 100
        assert all(array.size for array in made.arrays.values())


def test_an_account_by_hand():
    """A triangle of one kind of node and a path of two nodes of kinds 0 and 1, arcs of two kinds."""
    arcs = torch.tensor([[0, 1, 2, 3], [1, 2, 0, 4]])
    graphs = Graphs(
        [[0], [0], [0], [0], [7]],
        torch.cat([arcs, arcs.flip(0)], 1),
        [0, 1],
        [0, 3, 5],
        edge_attr=torch.tensor([[3], [3], [4], [3]]).repeat(2, 1),
    )
    made = CondensedSet(graphs, graphs.y, torch.ones(2))
    stored = {name: array.tolist() for name, array in made.arrays.items()}
    assert stored == {
        "sizes": [3, 2],
        "x": [[0], [7]],
        "key": [0, 0, 0, 0, 1],
        "edge_attr": [[3], [4]],
        "arcs": [3, 1],
        "edge": [[0, 0, 1, 0], [1, 2, 2, 1]],  # an edge once, nodes from the first of their graph
        "edge_key": [0, 1, 0, 0],
        "weight": [1],
    }  # y is 0, 1: a range
    assert made.nbytes().raw == 26
    one_way = CondensedSet(replace(graphs, edge_index=arcs, edge_attr=None), graphs.y, torch.ones(2))
    assert one_way.nbytes().raw == 26 - 2 - 4  # no attributes and keys of arcs


def test_trees_by_hand():
    """Of a star of three leaves: the bag holds the centre once and the leaf three times, at one hop."""
    graphs = Graphs([[4, 4], [2, 9], [2, 9], [2, 9]], [[1, 2, 3], [0, 0, 0]], [1], [0, 4])
    table = TreeTable(graphs, 1)
    made = CondensedSet(table.bags(np.array([0, 0]), np.array([0, 1]), np.array([1, 3]), 1), graphs.y, torch.ones(1))
    stored = {name: array.tolist() for name, array in made.arrays.items()}
    assert stored == {
        "x": [[4, 4], [2, 9]],
        "1.children": [1, 0],
        "1.child": [1],
        "1.multiplicity": [3],
        "bag": [2],
        "times": [1, 3],
        "y": [1],
        "weight": [1],
    }  # keys, classes below and items are ranges
    assert made.nbytes().raw == 13


@pytest.mark.parametrize(
    ("what", "field", "wrong", "message"),
    [
        ("trees", "1.child", [99], r"1\.child: expected numbers in \[0, \d+\] \(got .*99\)"),
        ("trees", "1.below", [99], r"1\.below: expected numbers in \[0, \d+\] \(got .*99\)"),
        ("trees", "1.children", [99], r"1\.children: expected numbers from 0 of sum"),
        ("trees", "1.multiplicity", None, r"1\.multiplicity: expected shape \[\d+\] \(got \d+ numbers\)"),
        ("trees", "key", [99], r"0\.key: expected numbers in \[0, \d+\]"),
        ("trees", "item", [99], r"item: expected numbers in \[0, \d+\]"),
        ("trees", "bag", [99], "bag: expected numbers from 0 of sum"),
        ("trees", "y", None, r"y: expected shape \[4\] \(got 3 numbers\)"),
        ("graphs", "key", [99], r"key: expected numbers in \[0, \d+\]"),
        ("graphs", "arcs", [99], "arcs: expected numbers from 0 of sum"),
        ("graphs", "edge", [99], "edge_index: expected"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(what, field, wrong, message, tmp_path):
    graphs = random_graphs(edges="none")
    rows = len(graphs) if what == "graphs" else 4
    made = CondensedSet(graphs if what == "graphs" else bags(graphs), torch.arange(rows) % 3, torch.rand(rows))
    path = made.save(tmp_path / "set.safetensors")
    tensors, meta = storage.read(path, "condensed set")
    notes = meta["notes"][f"{field}:"]
    if wrong is None:
        tensors[field] = tensors[field].flatten()[:-1]
    else:
        full = unpack(tensors[field].numpy() if field in tensors else np.empty(0), notes, field).copy()
        full.flat[0] = wrong[0]
        array, meta["notes"][f"{field}:"] = pack(full)
        tensors[field] = torch.from_numpy(array)
    storage.write(path, "condensed set", tensors, meta)
    with pytest.raises(FileError, match=rf"does not fit together: {message}.* Condense again"):
        CondensedSet.load(path)


def test_a_file_without_a_field_is_refused(tmp_path):
    path = labelled(random_graphs()).save(tmp_path / "set.safetensors")
    tensors, meta = storage.read(path, "condensed set")
    del meta["notes"]["sizes:"]
    storage.write(path, "condensed set", tensors, meta)
    with pytest.raises(FileError, match=r"path: expected 'sizes' in .*none"):
        CondensedSet.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.zeros(3)}, r"y: expected shape \[4\] or \[4, C\] \(got \[3\]\)"),
        ({"y": torch.zeros(4, 1, 1)}, "y: expected shape"),
        ({"weight": torch.ones(5)}, r"weight: expected shape \[4\], or that of y \(got \[5\]\)"),
        ({"weight": torch.ones(4, 2)}, "weight: expected shape"),
    ],
)
def test_labels_and_weights_are_one_a_record(change, message):
    given = {"content": bags(random_graphs()), "y": torch.zeros(4).long(), "weight": torch.ones(4)}
    with pytest.raises(G2MError, match=message):
        CondensedSet(**given | change)


@pytest.mark.parametrize("what", ["graphs", "trees"])
def test_a_truncated_or_changed_file_is_refused(what, tmp_path):
    graphs = random_graphs(x="values")
    made = labelled(graphs if what == "graphs" else bags(graphs), data="some")
    path = made.save(tmp_path / "set.safetensors")
    content = path.read_bytes()
    for end in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(G2MError, match="truncated or not a safetensors file"):
            CondensedSet.load(path)
    for place in (len(content) - 1, len(content) - made.nbytes().raw):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(G2MError, match="was changed after it was written"):
            CondensedSet.load(path)
    path.write_bytes(content.replace(b"some", b"same"))
    with pytest.raises(G2MError, match="was changed after it was written"):
        CondensedSet.load(path)
    with pytest.raises(G2MError, match="path: no file"):
        CondensedSet.load(tmp_path / "other")


# -- which graphs it stands for ----------------------------------------------------------------------------------------


def test_a_set_is_of_these_graphs_and_this_split():
    graphs = random_graphs(split={"train": [0, 1, 3], "val": [4]}, name="first")
    made = CondensedSet(graphs, graphs.y, torch.ones(8), {"fingerprint": graphs.fingerprint(), "data": "first"})
    made.check(graphs)
    made.check(replace(graphs, name="renamed"))
    others = [random_graphs(seed=1), graphs.with_split({"train": [0, 1], "val": [4]}), graphs.subset(range(8))]
    for other in (*others[:2], replace(graphs, y=1 - graphs.y)):
        with pytest.raises(G2MError, match=r"condensed: expected a set made from these graphs .*'first', fingerprint"):
            made.check(other)
    made.check(others[2])
    with pytest.raises(G2MError, match="condensed: expected a set made from these graphs"):
        CondensedSet(graphs, graphs.y, torch.ones(8)).check(graphs)


def test_what_is_shown_says_what_it_is():
    graphs = random_graphs()
    made = labelled(bags(graphs), method="mirage", data="these")
    size = made.nbytes().raw
    assert repr(made) == f"CondensedSet(mirage of these: 4 bags of trees, 2 hops, {size:,} bytes)"
    assert repr(labelled(graphs)).startswith("CondensedSet(? of ?: 8 graphs, ")
    assert (made.num_hops, labelled(graphs).num_hops) == (2, None)


# -- what is computed --------------------------------------------------------------------------------------------------


@kinds
def test_graphs_have_the_program_of_graphs(x, edges):
    graphs = random_graphs(x=x, edges=edges)
    for degrees in (False, True):
        made, expected = labelled(graphs).program(2, degrees=degrees), Program.of_graphs(graphs, 2, degrees=degrees)
        assert all(equal(a, b) for a, b in zip(numbers(made), numbers(expected), strict=True))


def test_trees_of_too_few_hops_are_refused():
    made = labelled(bags(random_graphs(), 2))
    assert made.program(1).num_layers == 1
    for num_layers, degrees, least in ((3, False, 3), (2, True, 3)):
        with pytest.raises(G2MError, match=rf"hops: expected trees of at least {least}, .*\(got 2\)"):
            made.program(num_layers, degrees=degrees)
    assert labelled(bags(random_graphs(), 2, degrees=True)).program(2, degrees=True).num_layers == 2


@quick
@given(sets_of_graphs, st.integers(1, 3), st.integers(0, 99), st.booleans())
def test_a_used_part_has_what_its_bags_need_and_no_more(graphs, num_hops, seed, degrees):
    if not graphs.num_nodes:
        return
    table, generator = TreeTable(graphs, num_hops, degrees), np.random.default_rng(seed)
    matrix = generator.integers(0, 2, (3, table.counts.shape[1])) * generator.integers(1, 4, (3, 1))
    row, item = matrix.nonzero()
    used = table.bags(row, item, matrix[row, item], 3)
    full = Trees(table.dag, csr_array(matrix.astype(np.float32)), **table.attributes)
    if len(row):
        model = network("gcn" if degrees else "gin", graphs, num_layers=num_hops)
        found, expected = (
            answer(model, labelled(one).program(num_hops, degrees=degrees).to(dtype=torch.float64))
            for one in (used, full)
        )
        assert apart(found[0], expected[0]) <= PRECISE
        assert gradients_apart(found[1], expected[1]) <= PRECISE
    levels = used.dag.levels
    assert len(levels[-1]) == len(set(item))
    for upper, lower in zip(levels[1:], levels[:-1], strict=True):
        assert set(upper.child.tolist()) | set(upper.below.tolist()) == set(range(len(lower)))
    assert set(np.concatenate([level.key for level in levels]).tolist()) == set(range(len(used.x)))
    if used.edge_attr is not None:
        keys = np.concatenate([level.edge_key for level in levels]).tolist()
        assert set(keys) == set(range(len(used.edge_attr)))
    assert used.used.dag.num_classes == used.dag.num_classes
    assert labelled(used).nbytes().raw == labelled(full).nbytes().raw  # the account is of what is used


# -- as PyG's ----------------------------------------------------------------------------------------------------------


@kinds
def test_graphs_as_data_have_their_labels_and_weights(x, edges):
    graphs = random_graphs(x=x, edges=edges)
    made = labelled(graphs)
    for i, data in enumerate(made):
        assert equal(data.x, graphs[i].x)
        assert equal(data.edge_index, graphs[i].edge_index)
        assert equal(data.edge_attr, graphs[i].edge_attr)
        assert torch.equal(data.y, made.y[i : i + 1])
        assert torch.equal(data.weight, made.weight[i : i + 1])
        assert data.num_nodes == graphs[i].num_nodes


@kinds
@pytest.mark.parametrize("degrees", [False, True])
def test_bags_as_data_are_forests_of_their_trees(x, edges, degrees):
    content = bags(random_graphs(x=x, edges=edges), degrees=degrees)
    made = labelled(content)
    for i, data in enumerate(made.to_pyg()):
        times = content.bags[[i]].tocoo()
        roots = len(times.data)
        assert data.root_mask.tolist() == [True] * roots + [False] * (data.num_nodes - roots)
        assert data.root_weight.tolist() == [*times.data.tolist(), *[0] * (data.num_nodes - roots)]
        assert data.num_nodes == content.dag.sizes[-1][times.coords[1]].sum()
        assert torch.equal(data.node_key[data.root_mask], torch.from_numpy(content.dag.levels[-1].key[times.coords[1]]))
        assert torch.equal(data.x, content.x[data.node_key])
        assert (data.edge_attr is None) == (content.edge_attr is None)
        if data.edge_attr is not None:
            assert torch.equal(data.edge_attr, content.edge_attr[data.edge_key])
        known = degrees or x == "none"
        assert ("degree" in data) is known
        if known:  # it is that of the node in its graph; in the tree all but leaves have theirs too
            inner = data.depth < made.num_hops
            arrived = torch.bincount(data.edge_index[1], minlength=data.num_nodes)
            assert torch.equal(arrived[inner], data.degree[inner])
        assert torch.equal(data.y, made.y[i : i + 1])
        assert torch.equal(data.weight, made.weight[i : i + 1])
    assert made.to_pyg()[-1].num_nodes == 0


def test_forests_larger_than_wanted_are_refused():
    made = labelled(bags(random_graphs()))
    with pytest.raises(G2MError, match="expected trees of at most 3 nodes in all"):
        made.to_pyg(max_nodes=3)


def encode(encoder: Encoder, x: Tensor) -> Tensor:
    if x.is_floating_point():
        return x.double() @ encoder.linear.weight.T + encoder.linear.bias
    return sum(table.weight[column] for table, column in zip(encoder.tables, x.T, strict=True))


def message(model: GraphGNN, i: int, data: Data, x: Tensor) -> Tensor:
    """One layer by PyG's GIN or GINE; or GCN, which divides by the degrees that are stored."""
    ours, edge_index = model.backbone.convs[i], data.edge_index
    e = None if data.edge_attr is None else encode(model.arcs[i], data.edge_attr)
    if not model.needs_degrees:
        conv = (pyg.GINConv if e is None else pyg.GINEConv)(nn.Linear(8, 8), train_eps=True)
        conv.nn, conv.eps = nn.Sequential(ours.first, nn.ReLU(), ours.second), ours.eps
        return conv(x, edge_index) if e is None else conv(x, edge_index, e)
    source, target = edge_index
    root = (1 + data.degree).double().rsqrt()[:, None]
    messages = (x[source] if e is None else (x[source] + e).relu()) * root[source] * root[target]
    return (x * root**2).index_add(0, target, messages) @ ours.linear.weight.T + ours.bias


@kinds
@pytest.mark.parametrize("backbone", ["gin", "gcn"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_messages_in_forests_give_what_the_program_gives(backbone, num_layers, x, edges):
    graphs = random_graphs(x=x, edges=edges)
    model = network(backbone, graphs, num_layers=num_layers)
    made = labelled(bags(graphs, 3, degrees=model.needs_degrees))
    logits = []
    for data in made:
        x = encode(model.nodes, data.x)
        for i in range(num_layers):
            x = message(model, i, data, x).relu()
        logits.append(model.head((data.root_weight[:, None] * x)[data.root_mask].sum(0)))
    expected = model(made.program(num_layers, degrees=model.needs_degrees).to(dtype=torch.float64)).logits
    torch.testing.assert_close(torch.stack(logits), expected, rtol=1e-10, atol=1e-10)


# -- drawn -------------------------------------------------------------------------------------------------------------


def test_a_record_is_drawn():
    graphs = load("atlas", seed=0)
    trees, whole = (condense(graphs, method, budget=600) for method in ("scored", "random"))
    figure = trees.draw(0)
    assert len(figure.axes) == len(trees.content.bags[[0]].indices)
    assert figure.axes[0].get_title() == f"× {trees.content.bags.data[0]:g}"
    assert any(text.get_text().startswith("Record 0: y = ") for text in figure.texts)
    # Graphs without attributes: a node is named by its degree, a bag has one tree here.
    assert [text.get_text() for text in figure.axes[0].texts] == [str(d) for d in trees.to_pyg()[0].degree.tolist()]
    assert figure.texts[-1].get_text() == "In the circles: degree of the node."
    assert len(whole.draw(0).axes) == 1
    for made in (trees, whole):
        with pytest.raises(G2MError, match=r"record: expected one of 0 …"):
            made.draw(len(made))
    with pytest.raises(G2MError, match="record: expected one of 1 to max_nodes=1 nodes"):
        whole.draw(0, max_nodes=1)
    for content, empty in ((random_graphs(), 1), (bags(random_graphs()), 3)):
        with pytest.raises(G2MError, match=rf"record: expected one of .* \(got 0 in record {empty}\)"):
            labelled(content).draw(empty)


def test_nodes_of_a_graph_are_named_by_their_attributes():
    graphs = Graphs(torch.tensor([[5], [7], [5]]), [[0, 1], [1, 0]], [0], [0, 3], num_classes=2)
    figure = CondensedSet(graphs, graphs.y, torch.ones(1)).draw(0)
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "7", "5"]
    assert figure.get_supxlabel() == "In the circles: attribute of the node."
    assert figure.get_suptitle() == "Record 0: y = 0; weight = 1"
