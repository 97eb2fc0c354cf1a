"""CondensedSet: what stands for the training graphs, in one byte account for all methods."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from g2m import storage
from g2m.condense.program import Program
from g2m.condense.trees import ClassDAG, Level, RowKeys
from g2m.errors import FileError, G2MError, check_whole
from g2m.graphs import Graphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch_geometric.data import Data

Arrays = dict[str, np.ndarray]


class Bytes:
    """Size of a set: ``raw`` of its arrays as :func:`pack` stores them."""

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        self._arrays = list(arrays)
        self.raw = sum(array.nbytes for array in self._arrays)

    @cached_property
    def compressed(self) -> int:
        """``raw`` compressed by zlib; made when asked for, it takes longer than all else of a set."""
        return len(zlib.compress(b"".join(array.tobytes() for array in self._arrays), 9))


@dataclass(frozen=True, eq=False, repr=False)
class Trees:
    """Bags of computation trees: R bags over the K classes at the top of a DAG.

    Attributes:
        dag: its keys are rows of ``x`` and of ``edge_attr``.
        bags: ``[R, K]``, how often each class counts in each bag.
        x: attributes of nodes ``[U, F]``.
        edge_attr: attributes of arcs ``[D, …]``; ``None``: all alike.
        node_degree: degree that each row of ``x`` stands for ``[U]``; ``None``: it stands for none.
    """

    dag: ClassDAG
    bags: csr_array
    x: Tensor
    edge_attr: Tensor | None = None
    node_degree: Tensor | None = None

    def __post_init__(self) -> None:
        lower = 0
        for depth, level in enumerate(self.dag.levels):
            _check_places(f"{depth}.key", level.key, len(self.x))
            if depth:
                _check_length(f"{depth}.below", level.below, len(level))
                _check_offsets(f"{depth}.children", level.crow, len(level), len(level.child))
                for name in ("edge_key", "multiplicity"):
                    _check_length(f"{depth}.{name}", getattr(level, name), len(level.child))
                _check_places(f"{depth}.below", level.below, lower)
                _check_places(f"{depth}.child", level.child, lower)
                if self.edge_attr is not None:
                    _check_places(f"{depth}.edge_key", level.edge_key, len(self.edge_attr))
            lower = len(level)
        _check_places("bags", self.bags.indices, lower)
        if self.node_degree is not None:
            _check_length("node_degree", self.node_degree, len(self.x))

    def __len__(self) -> int:
        return self.bags.shape[0]

    @cached_property
    def used(self) -> Trees:
        """The same bags, without classes, keys and attributes that none of them needs."""
        dag, kept = self.dag.restrict(np.unique(self.bags.indices))
        bags = csr_array(self.bags)[:, kept[-1]]
        nodes = np.unique(np.concatenate([level.key for level in dag.levels]))
        arcs = np.unique(np.concatenate([level.edge_key for level in dag.levels]))
        levels = [
            Level(
                np.searchsorted(nodes, level.key),
                level.below,
                level.crow,
                level.edge_key if self.edge_attr is None else np.searchsorted(arcs, level.edge_key),
                level.child,
                level.multiplicity,
            )
            for level in dag.levels
        ]
        node, arc = torch.from_numpy(nodes), torch.from_numpy(arcs)
        degree = None if self.node_degree is None else self.node_degree[node]
        edge_attr = None if self.edge_attr is None else self.edge_attr[arc]
        return Trees(ClassDAG(tuple(levels), dag.counts), bags, self.x[node], edge_attr, degree)


@dataclass(frozen=True, eq=False, repr=False)
class CondensedSet:
    """What stands for the training graphs of a data set: some graphs, or bags of computation trees; with labels.

    Made by :func:`g2m.condense.condense`. Train on it with ``GraphClassifier(…).fit(graphs, condensed)``.

    Args:
        content: :class:`~g2m.graphs.Graphs` or :class:`Trees`, R of them.
        y: classes ``[R]``, shares of classes ``[R, C]``, or of class 1 in each task ``[R, T]``, NaN where unknown.
        weight: of each in the loss, or its chance to be drawn: ``[R]``, by task ``[R, T]``.
        meta: how it was made: ``method``, ``data``, ``fingerprint``, ``options``, ``seconds``.
    """

    content: Graphs | Trees
    y: Tensor
    weight: Tensor
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = len(self.content)
        if self.y.dim() not in (1, 2) or len(self.y) != rows:
            raise G2MError(f"y: expected shape [{rows}] or [{rows}, C] (got {list(self.y.shape)}).")
        if self.weight.shape not in ((rows,), self.y.shape):
            raise G2MError(f"weight: expected shape [{rows}], or that of y (got {list(self.weight.shape)}).")

    def __len__(self) -> int:
        return len(self.content)

    @property
    def num_hops(self) -> int | None:
        """How many layers of message passing see what they would see in the graphs; ``None``: any number."""
        return self.content.dag.num_hops if isinstance(self.content, Trees) else None

    def check(self, graphs: Graphs) -> None:
        """Refuse graphs that the set was not made from.

        Raises:
            G2MError: if their fingerprint, split included, is another.
        """
        made_from = self.meta.get("fingerprint")
        if made_from != graphs.fingerprint():
            raise G2MError(
                f"condensed: expected a set made from these graphs and this split (got one of {self.meta.get('data')!r}"
                f", fingerprint {made_from}, not {graphs.fingerprint()}). Condense these graphs, or load those."
            )

    def fingerprint(self) -> str:
        """Return a hash of all that training reads."""
        arrays, notes = self._stored
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return storage.checksum(tensors, "condensed set", json.dumps(notes, sort_keys=True))[:32]

    def program(self, num_layers: int, *, degrees: bool = False) -> Program:
        """Return what a network of so many layers computes on the set.

        Args:
            num_layers: from 1.
            degrees: whether it divides by the degrees of neighbours, as GCN does.

        Raises:
            G2MError: if the trees have too few hops for that.
        """
        content = self.content
        if isinstance(content, Graphs):
            return Program.of_graphs(content, num_layers, degrees=degrees)
        attributes = {name: getattr(content, name) for name in ("x", "edge_attr", "node_degree")}
        return Program.of_trees(content.dag, content.bags, num_layers, degrees=degrees, **attributes)

    # -- bytes -------------------------------------------------------------------------------------------------

    @cached_property
    def arrays(self) -> Arrays:
        """What is stored, at the least widths that hold it exactly; the same fields for every method."""
        return self._stored[0]

    @cached_property
    def _stored(self) -> tuple[Arrays, dict[str, Any]]:
        graphs = isinstance(self.content, Graphs)
        arrays, notes = (_graph_arrays if graphs else _tree_arrays)(self.content)
        y = self.y.numpy()
        if y.ndim == 2 and not np.isnan(y).any() and np.array_equal(_rest(y[:, :-1]), y[:, -1]):
            notes["shares"], y = True, y[:, :-1]  # the last is what the others leave
        arrays |= {"y": y, "weight": self.weight.numpy()}
        stored = {}
        for name, array in arrays.items():
            stored[name], notes[f"{name}:"] = pack(array)
        return {name: array for name, array in stored.items() if array.size}, notes

    def nbytes(self) -> Bytes:
        """Return the size of the stored arrays; names, types and ``meta`` are left out of every account."""
        return Bytes(self.arrays.values())

    # -- as PyG's ----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Data]:
        return iter(self.to_pyg())

    def to_pyg(self, *, max_nodes: int = 1_000_000) -> list[Data]:
        """Return a PyG ``Data`` per graph or bag, for a loop of one's own.

        A bag is a forest of its trees, with ``root_mask`` (pool these alone), ``root_weight`` (how often each root
        counts), ``y`` and ``weight``; where degrees are stored also ``degree``, of the node in its graph, to use in
        place of those of the tree. Where the graphs have no attributes, ``x`` of a bag is that degree ``[n, 1]``,
        integers, and of a graph ``None``.

        Raises:
            G2MError: if the trees of a bag have more than ``max_nodes`` nodes together.
        """
        content, made = self.content, []
        for i in range(len(self)):
            if isinstance(content, Graphs):
                data = content[i]
            else:
                start, end = content.bags.indptr[i : i + 2]
                data = content.dag.to_pyg(content.bags.indices[start:end], max_nodes=max_nodes)
                weight = torch.from_numpy(content.bags.data[start:end].astype(np.float32))
                data.root_weight = torch.zeros(data.num_nodes)
                data.root_weight[: len(weight)] = weight
                data.x = content.x[data.node_key]
                if content.edge_attr is not None:
                    data.edge_attr = content.edge_attr[data.edge_key]
                if content.node_degree is not None:
                    data.degree = content.node_degree[data.node_key]
            data.y, data.weight = self.y[i : i + 1], self.weight[i : i + 1]
            made.append(data)
        return made

    def draw(self, record: int, *, max_trees: int = 6, max_nodes: int = 200) -> Figure:
        """Draw a graph, or the trees of a bag, those that count most first; with its label and its weight.

        A tree of more than 60 nodes is cut to fewer hops, and says so.

        Args:
            record: which.
            max_trees: of a bag, from 1; default 6.
            max_nodes: of a graph; default 200.

        Raises:
            G2MError: on a record that is not there or has no nodes, or a graph with more nodes.
        """
        from g2m.condense.plots import draw_bag, draw_graph

        if not 0 <= record < len(self):
            raise G2MError(f"record: expected one of 0 … {len(self) - 1} (got {record!r}).")
        y, weight = (
            ", ".join(f"{value:.3g}" for value in of[record].flatten().tolist()) for of in (self.y, self.weight)
        )
        title, trees = f"Record {record}: y = {y}; weight = {weight}", isinstance(self.content, Trees)
        size = np.diff(self.content.bags.indptr)[record] if trees else int(self.content.ptr.diff()[record])
        if not size or (not trees and size > max_nodes):
            what = "trees" if trees else f"1 to max_nodes={max_nodes} nodes"
            raise G2MError(f"record: expected one of {what} (got {size} in record {record}). Draw another.")
        if trees:
            return draw_bag(self.content, record, title, check_whole("max_trees", max_trees))
        return draw_graph(self.content[record], title)

    # -- file --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write :attr:`arrays` to a safetensors file."""
        arrays, notes = self._stored
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        types = {name: str(getattr(self, name).dtype).removeprefix("torch.") for name in ("y", "weight")}
        kind = "graphs" if isinstance(self.content, Graphs) else "trees"
        meta = {"content": kind, "notes": notes, "types": types, "meta": dict(self.meta)}
        return storage.write(path, "condensed set", tensors, meta)

    @classmethod
    def load(cls, path: str | Path) -> CondensedSet:
        """Read a saved set.

        Raises:
            FileError: if the file is missing, truncated, changed, or what it holds does not fit together.
        """
        tensors, meta = storage.read(path, "condensed set")
        try:
            return cls._of(tensors, meta)
        except KeyError as error:
            raise FileError(f"path: expected {error} in {str(path)!r} (got none). Condense again.") from None
        except G2MError as error:
            raise FileError(f"path: {str(path)!r} does not fit together: {error} Condense again.") from None

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> CondensedSet:
        notes, types = meta["notes"], meta["types"]
        arrays = {}
        for name in (note[:-1] for note in notes if note.endswith(":")):
            stored = tensors[name].numpy() if name in tensors else np.empty(0)
            arrays[name] = unpack(stored, notes[f"{name}:"], name)
        weight, y = (arrays.pop(name).astype(types[name]) for name in ("weight", "y"))
        if notes.get("shares"):
            y = np.column_stack([y, _rest(y)])
        content = (_graphs_of if meta["content"] == "graphs" else _trees_of)(arrays, notes)
        return cls(content, torch.from_numpy(y), torch.from_numpy(weight), meta["meta"])

    def __repr__(self) -> str:
        size, what = self.nbytes(), "graphs" if isinstance(self.content, Graphs) else "bags of trees"
        hops = "" if self.num_hops is None else f", {self.num_hops} hops"
        method, data = self.meta.get("method", "?"), self.meta.get("data", "?")
        return f"CondensedSet({method} of {data}: {len(self):,} {what}{hops}, {size.raw:,} bytes)"


# -- arrays ------------------------------------------------------------------------------------------------------------


def _check_length(name: str, array: np.ndarray | Tensor, size: int) -> None:
    if tuple(array.shape) != (size,):
        raise G2MError(f"{name}: expected shape [{size}] (got {list(array.shape)}).")


def _check_places(name: str, places: np.ndarray, size: int) -> None:
    if len(places) and not 0 <= places.min() <= places.max() < size:
        raise G2MError(f"{name}: expected numbers in [0, {size - 1}] (got {places.min()} … {places.max()}).")


def _check_offsets(name: str, offsets: np.ndarray, rows: int, total: int) -> None:
    _check_length(name, np.diff(offsets), rows)
    if offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise G2MError(f"{name}: expected numbers from 0 of sum {total} (got sum {offsets[-1]}).")


def pack(array: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Return an array as it is stored, of the narrowest type that holds it exactly, and how to read it.

    Numbers that are all the same are stored once; 0, 1, 2, … not at all; fractions in 255ths as their numerators.
    """
    array = np.ascontiguousarray(array)
    how: dict[str, Any] = {"shape": list(array.shape)}
    if array.size > 1 and array.ndim == 1 and array.dtype.kind in "iu" and (array == np.arange(len(array))).all():
        return np.empty(0, np.uint8), how | {"as": "range"}
    if array.size > 1 and (array == array.flat[0]).all():
        array, how["as"] = array.flat[:1], "same"
    if array.dtype.kind == "f" and array.size and np.isfinite(array).all():
        with np.errstate(over="ignore"):
            parts = np.rint(array * 255)
            if (array != np.rint(array)).any() and np.array_equal((parts / 255).astype(array.dtype), array):
                array, how["of"] = parts, 255
    return narrow(array), how


def unpack(array: np.ndarray, how: Mapping[str, Any], name: str) -> np.ndarray:
    """Return what :func:`pack` was given, but for its type; the name is for the error of an array of another size."""
    if how.get("as") == "range":
        return np.arange(how["shape"][0])
    if array.size != (1 if how.get("as") == "same" else prod(how["shape"])):
        raise G2MError(f"{name}: expected shape {how['shape']} (got {array.size} numbers).")
    array = array / how["of"] if "of" in how else array
    return np.full(how["shape"], array[0]) if how.get("as") == "same" else array.reshape(how["shape"])


def narrow(array: np.ndarray) -> np.ndarray:
    """Return the array with the narrowest type that holds its numbers exactly; halves where they do for fractions."""
    array = np.ascontiguousarray(array)
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if array.dtype.kind != "f" or (array == np.rint(array)).all():
        for kind in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return array.astype(kind)
    if array.dtype.kind != "f":
        return array.astype(np.int64)
    with np.errstate(over="ignore"):
        for kind in (np.float16, np.float32):
            if np.array_equal(array.astype(kind), array, equal_nan=True):
                return array.astype(kind)
    return array


def _rest(shares: np.ndarray) -> np.ndarray:
    """Return what shares ``[R, C - 1]`` leave of 1, to the same bit wherever they lie in memory."""
    return 1 - np.ascontiguousarray(shares).sum(1, dtype=shares.dtype)


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts.astype(np.int64))])


def _table(name: str, x: Tensor, notes: dict[str, Any]) -> Arrays:
    """Return a table of attributes, rows of one 1 among zeros as its place."""
    x, notes[name] = x.numpy(), {"dtype": str(x.dtype).removeprefix("torch."), "columns": x.size(1)}
    if x.shape[1] > 1 and (((x == 0) | (x == 1)).all() and (x.sum(1) == 1).all()):
        notes[name]["one_hot"] = True
        x = x.argmax(1)
    return {name: x}


def _untable(name: str, arrays: Arrays, notes: Mapping[str, Any]) -> Tensor | None:
    if name not in notes:
        return None
    note, x = notes[name], arrays[name]
    if note.get("one_hot"):
        x = np.eye(note["columns"])[x.astype(np.int64)]
    return torch.from_numpy(x.astype(note["dtype"])).reshape(-1, note["columns"])


def _distinct(x: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return the distinct rows ``[U, F]``, and which of them each row is ``[N]``."""
    if not len(x):
        return x, np.empty(0, np.int64)
    keys = RowKeys().fit(x)
    return torch.from_numpy(keys.features_), keys.transform(x)


def _graph_arrays(graphs: Graphs) -> tuple[Arrays, dict[str, Any]]:
    """Attributes once each, an undirected edge once; nodes are counted from the first of their graph."""
    notes: dict[str, Any] = {"num_classes": graphs.num_classes, "metric": graphs.metric, "tasks": graphs.y.dim() == 2}
    source, target = graphs.edge_index.numpy()
    arrays: Arrays = {"sizes": graphs.ptr.diff().numpy()}
    edge = np.zeros(len(source), np.int64)
    if graphs.x is not None:
        rows, key = _distinct(graphs.x)
        arrays |= _table("x", rows, notes) | {"key": key}
    if graphs.edge_attr is not None:
        rows, edge = _distinct(graphs.edge_attr)
        arrays |= _table("edge_attr", rows, notes)
    forth, back = (np.lexsort((edge, b, a)) for a, b in ((source, target), (target, source)))
    both = [np.stack([a, b, edge])[:, order] for a, b, order in ((source, target, forth), (target, source, back))]
    notes["undirected"] = bool((both[0] == both[1]).all() and (source != target).all())
    keep = both[0][:, both[0][0] < both[0][1]] if notes["undirected"] else both[0]
    of = graphs.batch.numpy()[keep[0]]
    arrays |= {"arcs": np.bincount(of, minlength=len(graphs)), "edge": keep[:2] - graphs.ptr.numpy()[of]}
    if "edge_attr" in notes:
        arrays["edge_key"] = keep[2]
    return arrays, notes


def _graphs_of(arrays: Arrays, notes: Mapping[str, Any]) -> Graphs:
    ptr, arcs, edge = _offsets(arrays["sizes"]), _offsets(arrays["arcs"]), arrays["edge"].astype(np.int64)
    _check_offsets("arcs", arcs, len(ptr) - 1, edge.shape[-1])
    edge = edge + np.repeat(ptr[:-1], np.diff(arcs))
    x, attr = _untable("x", arrays, notes), _untable("edge_attr", arrays, notes)
    of_node = None if x is None else arrays["key"].astype(np.int64)
    key = arrays["edge_key"].astype(np.int64) if attr is not None else None
    for name, places, table in (("key", of_node, x), ("edge_key", key, attr)):
        if places is not None:
            _check_places(name, places, len(table))
    if notes["undirected"]:
        edge = np.concatenate([edge, edge[::-1]], 1)
        key = None if key is None else np.concatenate([key, key])
    num_graphs = len(ptr) - 1
    return Graphs(
        x=None if x is None else x[torch.from_numpy(of_node)],
        edge_index=torch.from_numpy(edge),
        y=torch.zeros((num_graphs, 2) if notes["tasks"] else num_graphs, dtype=torch.long),  # labels are the set's
        ptr=torch.from_numpy(ptr),
        num_classes=notes["num_classes"],
        metric=notes["metric"],
        edge_attr=None if attr is None else attr[torch.from_numpy(key)],
        keep_loops=True,
    )


def _tree_arrays(trees: Trees) -> tuple[Arrays, dict[str, Any]]:
    """Level by level: the class below, the number of children, and of each its class, arc and multiplicity."""
    trees = trees.used
    notes: dict[str, Any] = {"hops": trees.dag.num_hops}
    arrays = _table("x", trees.x, notes)
    if trees.edge_attr is not None:
        arrays |= _table("edge_attr", trees.edge_attr, notes)
    if trees.node_degree is not None:
        notes["x_is_degree"] = trees.x.size(1) == 1 and torch.equal(trees.x[:, 0].long(), trees.node_degree)
        arrays |= {} if notes["x_is_degree"] else {"node_degree": trees.node_degree.numpy()}
    arrays["key"] = trees.dag.levels[0].key
    for depth, level in enumerate(trees.dag.levels[1:], 1):
        parts = {"below": level.below, "children": np.diff(level.crow), "child": level.child}
        parts |= {"multiplicity": level.multiplicity} | ({} if trees.edge_attr is None else {"edge": level.edge_key})
        arrays |= {f"{depth}.{name}": part for name, part in parts.items()}
    arrays |= {"bag": np.diff(trees.bags.indptr), "item": trees.bags.indices, "times": trees.bags.data}
    return arrays, notes


def _trees_of(arrays: Arrays, notes: Mapping[str, Any]) -> Trees:
    def whole(name: str) -> np.ndarray:
        return arrays[name].astype(np.int64)

    x, edge_attr = _untable("x", arrays, notes), _untable("edge_attr", arrays, notes)
    none, key = np.empty(0, np.int64), whole("key")
    levels = [Level(key, none, np.zeros(len(key) + 1, np.int64), none, none, none)]
    for depth in range(1, notes["hops"] + 1):
        below, child = whole(f"{depth}.below"), whole(f"{depth}.child")
        edge = np.zeros_like(child) if edge_attr is None else whole(f"{depth}.edge")
        crow = _offsets(arrays[f"{depth}.children"])
        _check_places(f"{depth}.below", below, len(levels[-1]))
        levels.append(Level(levels[-1].key[below], below, crow, edge, child, whole(f"{depth}.multiplicity")))
    dag = ClassDAG(tuple(levels), tuple(np.zeros(len(level), np.int64) for level in levels))
    indptr, item, times = _offsets(arrays["bag"]), whole("item"), arrays["times"].astype(np.float32)
    _check_offsets("bag", indptr, len(indptr) - 1, len(item))
    _check_length("times", times, len(item))
    _check_places("item", item, len(levels[-1]))
    bags = csr_array((times, item, indptr), shape=(len(indptr) - 1, len(levels[-1])))
    degree = torch.from_numpy(whole("node_degree")) if "node_degree" in arrays else None
    degree = x[:, 0].long() if notes.get("x_is_degree") else degree
    return Trees(dag, bags, x, edge_attr, degree)
