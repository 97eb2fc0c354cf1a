"""Many graphs with a label each: one validated, flat view of a graph-classification data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import index
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.utils import cumsum

from g2m.errors import G2MError, check_flag, choose
from g2m.graph import METRICS, _integers, _tensor, arcs_of, check_ids, check_num_classes, check_split

PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False, repr=False)
class Graphs:
    """A graph-classification data set, stored end to end, checked on construction and never changed afterwards.

    Tensors and arrays that need no conversion are shared with you, not copied: nothing is to write into them.

    ``len(graphs)``, ``graphs[i]`` and iteration see it as a list of PyG :class:`~torch_geometric.data.Data`. A graph
    may have no edges, or no nodes.

    Args:
        x: node features ``[N, F]`` of all graphs, one after the other, or ``None`` for nodes without attributes.
            Integers, categories such as an atom's element, become int64; all else becomes float32. ``[N]`` is one
            column. NaN and infinity are refused.
        edge_index: ``[2, E]`` node ids among all N, source row first; converted to int64 and sorted. Both ends are in
            one graph. Parallel edges stay, each may have its own attributes. An undirected graph holds both arcs.
        y: classes ``[G]`` (or ``[G, 1]``), integers from 0, -1 or NaN for an unlabelled graph; or several binary tasks
            ``[G, T]``, each label 0, 1 or NaN for a missing one, kept as float32.
        ptr: ``[G + 1]``, first node of every graph and N at the end, as in a PyG batch.
        split: graph ids (or boolean masks ``[G]``) under ``train``, ``val``, ``test``; parts do not overlap.
        name: what reports and errors call the data set.
        num_classes: number of classes; default ``max(y) + 1``. 2 where there are several tasks.
        metric: ``"accuracy"`` (default) or ``"rocauc"`` (two classes, or several tasks).
        edge_attr: edge attributes ``[E, D]``, treated as ``x`` is, or ``None`` (default).
        keep_loops: keep self-loops given in ``edge_index``; by default they are dropped, every model adds its own.
        graph_id: ids ``[G]`` of the graphs in the data set this one was cut from; default ``0 … G-1``.

    Raises:
        G2MError: on any of the above not holding; the message names the argument and the first offender.
    """

    x: Tensor | None
    edge_index: Tensor
    y: Tensor
    ptr: Tensor
    split: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "graphs"
    num_classes: int | None = None
    metric: str = "accuracy"
    edge_attr: Tensor | None = None
    keep_loops: bool = False
    graph_id: Tensor | None = None

    def __post_init__(self) -> None:
        def put(key: str, value: Any) -> None:
            object.__setattr__(self, key, value)

        choose("metric", self.metric, METRICS)
        check_flag("keep_loops", self.keep_loops)
        put("ptr", _ptr(self.ptr))
        put("x", _attributes("x", self.x, self.num_nodes, "node"))
        edge_index = _edge_index(self.edge_index, self.batch)
        edge_attr = _attributes("edge_attr", self.edge_attr, edge_index.size(1), "edge")
        edge_index, edge_attr = _in_order(edge_index, edge_attr, self.num_nodes, self.keep_loops)
        put("edge_index", edge_index)
        put("edge_attr", edge_attr)
        put("y", _labels(self.y, len(self)))
        put("num_classes", _num_classes(self.num_classes, self.y, self.metric))
        put("split", check_split(self.split, self.y, PARTS, "graph"))
        graph_id = torch.arange(len(self)) if self.graph_id is None else _integers("graph_id", self.graph_id, "ids")
        if graph_id.shape != (len(self),):
            raise G2MError(f"graph_id: expected {len(self)} ids, one per graph (got shape {tuple(graph_id.shape)}).")
        put("graph_id", graph_id)

    @classmethod
    def from_pyg(
        cls, dataset: Iterable[Data], *, split: Mapping[str, Any] | None = None, name: str = "graphs", **options: Any
    ) -> Graphs:
        """Build the set from a PyG data set, or a list of :class:`~torch_geometric.data.Data`.

        Args:
            dataset: every graph with ``edge_index`` and ``y``, ``[1]`` or ``[1, T]``; with ``x`` or, lacking that, with
                ``num_nodes``; all with ``x`` and ``edge_attr``, or none.
            split: ids or masks under ``train``, ``val``, ``test``.
            name: what reports call the data set.
            options: passed on to :class:`Graphs` (``num_classes``, ``metric``, ``keep_loops``).

        Raises:
            G2MError: naming the first graph that lacks something, or on anything :class:`Graphs` refuses.
        """
        return cls(**flat(dataset), split=split or {}, name=name, **options)

    # -- what it is --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def __getitem__(self, i: int) -> Data:
        try:
            i = range(len(self))[index(i)]
        except (TypeError, IndexError):
            raise G2MError(
                f"graphs: expected the number of a graph in [-{len(self)}, {len(self) - 1}] (got {i!r}). "
                "For several, use graphs.subset(ids)."
            ) from None
        (node, end), (arc, last) = self._ends[0][i : i + 2], self._ends[1][i : i + 2]
        return Data(
            x=None if self.x is None else self.x[node:end].clone(),  # what is done to it is not done to this
            edge_index=self.edge_index[:, arc:last] - node,
            edge_attr=None if self.edge_attr is None else self.edge_attr[arc:last].clone(),
            y=self.y[i : i + 1].clone(),
            num_nodes=end - node,
        )

    def __iter__(self) -> Iterator[Data]:
        return (self[i] for i in range(len(self)))

    @property
    def num_nodes(self) -> int:
        """Number of nodes of all graphs together."""
        return int(self.ptr[-1])

    @property
    def num_edges(self) -> int:
        """Number of arcs of all graphs together: an undirected edge counts twice."""
        return self.edge_index.size(1)

    @property
    def num_features(self) -> int:
        """Columns of ``x``; 0 if there is none."""
        return 0 if self.x is None else self.x.size(1)

    @property
    def num_edge_features(self) -> int:
        """Columns of ``edge_attr``; 0 if there is none."""
        return 0 if self.edge_attr is None else self.edge_attr.size(1)

    @property
    def num_tasks(self) -> int:
        """Columns of ``y``; 1 if it is one class a graph."""
        return 1 if self.y.dim() == 1 else self.y.size(1)

    @cached_property
    def batch(self) -> Tensor:
        """Graph ``[N]`` of every node, as in a PyG batch."""
        return torch.arange(len(self)).repeat_interleave(self.ptr.diff())

    @cached_property
    def edge_ptr(self) -> Tensor:
        """``[G + 1]``, first arc of every graph and E at the end."""
        return torch.searchsorted(self.edge_index[0], self.ptr)

    @cached_property
    def _ends(self) -> tuple[list[int], list[int]]:
        return self.ptr.tolist(), self.edge_ptr.tolist()

    @cached_property
    def _part_of(self) -> Tensor:
        """``[G]``: which part of the split, -1 for none."""
        part_of = torch.full((len(self),), -1)
        for number, ids in enumerate(self.split.values()):
            part_of[ids] = number
        return part_of

    def part(self, name: str) -> Tensor:
        """Return the graph ids of a part of the split; ``graphs.subset`` makes graphs of them.

        Raises:
            G2MError: if the data set has no such part.
        """
        if name not in self.split:
            raise G2MError(
                f"split: data set {self.name!r} has no part {name!r} (it has: {', '.join(self.split) or 'none'}). "
                "Give one with graphs.with_split(...), or draw one from g2m.data.splits."
            )
        return self.split[name]

    def with_split(self, split: Mapping[str, Any]) -> Graphs:
        """Return the same graphs under another split."""
        return replace(self, split=split)

    def subset(self, ids: Any) -> Graphs:
        """Return some of the graphs, in the order given; what of the split is left follows them.

        Args:
            ids: graph ids, repeats allowed, or a boolean mask ``[G]``; at least one.

        Raises:
            G2MError: on no graph at all, or one that is not there.
        """
        ids = check_ids("ids", ids, len(self), "graph")
        sizes, arcs = (ends[ids + 1] - ends[ids] for ends in (self.ptr, self.edge_ptr))
        ptr = cumsum(sizes)
        nodes, edges = _rows(self.ptr[ids], sizes), _rows(self.edge_ptr[ids], arcs)
        part_of = self._part_of[ids]
        split = {part: (part_of == number).nonzero().flatten() for number, part in enumerate(self.split)}
        return replace(
            self,
            x=None if self.x is None else self.x[nodes],
            edge_index=self.edge_index[:, edges] + (ptr[:-1] - self.ptr[ids]).repeat_interleave(arcs),
            edge_attr=None if self.edge_attr is None else self.edge_attr[edges],
            y=self.y[ids],
            ptr=ptr,
            split={part: found for part, found in split.items() if len(found)},
            graph_id=self.graph_id[ids],
        )

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(f"{self.num_classes}|{self.metric}".encode())
        tensors = {"x": self.x, "edge_attr": self.edge_attr, "y": self.y, "ptr": self.ptr, "graph_id": self.graph_id}
        tensors |= {f"split.{part}": self.split[part] for part in sorted(self.split)}
        for key, tensor in {**tensors, "edge_index": self.edge_index}.items():
            if tensor is not None:
                digest.update(f"|{key}{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy())
        return digest.hexdigest()[:32]

    def fingerprint(self) -> str:
        """Return a hash of everything in the data set but its name.

        In what order edges were given is no part of it, but for several with attributes between the same two nodes.
        """
        return self._digest

    def __repr__(self) -> str:
        parts = ", ".join(f"{part}: {len(ids)}" for part, ids in self.split.items())
        labels = f"num_classes={self.num_classes}" if self.y.dim() == 1 else f"num_tasks={self.num_tasks}"
        return (
            f"Graphs(name={self.name!r}, num_graphs={len(self)}, num_nodes={self.num_nodes}, "
            f"num_edges={self.num_edges}, num_features={self.num_features}, "
            f"num_edge_features={self.num_edge_features}, {labels}, split={{{parts}}})"
        )


# -- from PyG --------------------------------------------------------------------------------------------------


def flat(dataset: Iterable[Data]) -> dict[str, Tensor | None]:
    """Return ``x``, ``edge_index``, ``edge_attr``, ``y`` and ``ptr`` of a PyG data set or list, graphs end to end.

    Raises:
        G2MError: naming the first graph that lacks what others have, or what is needed.
    """
    data = getattr(dataset, "_data", None)
    stored = getattr(dataset, "slices", None) or {}
    # Such a data set lies end to end already; taking it apart first would cost more than all the rest.
    whole = isinstance(dataset, InMemoryDataset) and dataset.transform is None and dataset._indices is None
    if whole and {"edge_index", "y"} <= stored.keys() and ("x" in stored or hasattr(data, "_num_nodes")):
        x, edge_index, edge_attr, y = data.x, data.edge_index, data.edge_attr, data.y
        sizes = stored["x"].diff() if "x" in stored else torch.tensor(data._num_nodes)
        arcs = stored["edge_index"].diff()
        arcs = pad(arcs, (0, len(sizes) - len(arcs)))  # PyG's reader of TU files forgets last graphs without edges
    else:
        graphs = list(dataset)
        if wrong := {type(graph).__name__ for graph in graphs if not isinstance(graph, Data)}:
            raise G2MError(f"dataset: expected a PyG data set or a list of Data (got {', '.join(sorted(wrong))}).")
        if not graphs:
            raise G2MError("dataset: expected at least one graph (got none).")
        x, edge_index, edge_attr, y = (_column(graphs, key) for key in ("x", "edge_index", "edge_attr", "y"))
        sizes = torch.tensor([graph.num_nodes for graph in graphs])
        arcs = torch.tensor([graph.edge_index.size(-1) for graph in graphs])
        for key, column, expected in (("x", x, sizes), ("edge_attr", edge_attr, arcs)):
            for i, graph in enumerate(graphs if column is not None else ()):
                if len(graph[key]) != expected[i]:
                    what = f"{expected[i]} rows of {key} on graph {i}"
                    raise G2MError(f"dataset: expected {what}, one a node or arc (got {len(graph[key])}).")
    ptr = cumsum(sizes)
    if y.numel() and y.numel() % len(sizes) == 0:
        y = y.reshape(len(sizes), -1).squeeze(1)
    of_arc = torch.arange(len(sizes)).repeat_interleave(arcs)
    edge_index = edge_index.cpu()
    if edge_index.dim() == 2 and (outside := ((edge_index < 0) | (edge_index >= sizes[of_arc])).any(0)).any():
        arc = int(outside.nonzero()[0])
        raise G2MError(
            f"dataset: expected edge_index of nodes 0 to {sizes[of_arc[arc]] - 1} on graph {of_arc[arc]} "
            f"(got {edge_index[:, arc].tolist()})."
        )
    edge_index = edge_index + ptr[of_arc]
    return {"x": x, "edge_index": edge_index, "edge_attr": edge_attr, "y": y, "ptr": ptr}


def _column(graphs: list[Data], key: str) -> Tensor | None:
    values = [graph.get(key) for graph in graphs]
    missing = [value is None for value in values]
    optional = key in ("x", "edge_attr")
    if optional and all(missing):
        return None
    if any(missing):
        which = "every graph or none" if optional else "every graph"
        raise G2MError(f"dataset: expected {key} on {which} (got none on graph {missing.index(True)}).")
    if key == "y":
        values = [torch.as_tensor(value).reshape(1, -1) for value in values]
    try:
        return torch.cat(values, dim=-1 if key == "edge_index" else 0)
    except RuntimeError as error:
        raise G2MError(f"dataset: expected {key} of the same width on every graph ({error}).") from None


# -- checks ----------------------------------------------------------------------------------------------------


def _ptr(ptr: Any) -> Tensor:
    ptr = _integers("ptr", ptr, "node ids")
    if ptr.dim() != 1 or len(ptr) < 2 or ptr[0] != 0 or (ptr.diff() < 0).any():
        raise G2MError(
            "ptr: expected [G + 1] node ids for at least one graph, from 0 up to the number of nodes, none below the "
            f"one before it (got shape {tuple(ptr.shape)}: {ptr.flatten()[:5].tolist()} …)."
        )
    return ptr.contiguous()


def _attributes(name: str, value: Any, rows: int, what: str) -> Tensor | None:
    if value is None:
        return None
    value = _tensor(name, value)
    if value.dim() == 1:
        value = value[:, None]
    if value.dim() != 2 or len(value) != rows or value.is_complex():
        raise G2MError(
            f"{name}: expected real numbers of shape [{rows}, …], a row per {what} "
            f"(got {value.dtype}, shape {tuple(value.shape)})."
        )
    if value.size(1) == 0:  # PyG's way to say that there are none
        return None
    if not value.is_floating_point():
        return value.long().contiguous()
    value = value.float().contiguous()
    wrong = ~torch.isfinite(value)
    if wrong.any():
        raise G2MError(
            f"{name}: expected finite values (got {int(wrong.sum())} NaN or infinite ones, the first on {what} "
            f"{int(wrong.any(1).nonzero()[0])}). Fill them in, or leave those graphs out."
        )
    return value


def _edge_index(edge_index: Any, batch: Tensor) -> Tensor:
    edge_index = arcs_of(edge_index, len(batch))
    first, second = batch[edge_index]
    if (first != second).any():
        column = int((first != second).nonzero()[0])
        raise G2MError(
            f"edge_index: expected both ends of an edge in one graph (got {edge_index[:, column].tolist()}, in graphs "
            f"{int(first[column])} and {int(second[column])}, in column {column}). Count nodes over all graphs."
        )
    return edge_index


def _in_order(
    edge_index: Tensor, edge_attr: Tensor | None, num_nodes: int, keep_loops: bool
) -> tuple[Tensor, Tensor | None]:
    """Sort arcs by source, then target, so that a graph's lie together; drop loops unless told otherwise."""
    source, target = edge_index
    key = source * num_nodes + target
    keep = slice(None) if keep_loops else source != target
    if (key.diff() < 0).any():
        order = key.argsort(stable=True)
        keep = order if keep_loops else order[keep[order]]
    elif keep_loops or keep.all():
        return edge_index.contiguous(), edge_attr
    return edge_index[:, keep].contiguous(), None if edge_attr is None else edge_attr[keep]


def _labels(y: Any, num_graphs: int) -> Tensor:
    y = _tensor("y", y)
    if y.dim() == 2 and y.size(1) == 1:
        y = y.squeeze(1)
    if y.dim() not in (1, 2) or len(y) != num_graphs or y.numel() == 0:
        raise G2MError(
            f"y: expected a class or tasks per graph, [{num_graphs}] or [{num_graphs}, T] (got {tuple(y.shape)})."
        )
    if y.dim() == 1:
        y = _integers("y", y.masked_fill(y.isnan(), -1) if y.is_floating_point() else y, "labels")
        wrong, expected = y < -1, "labels from 0, or -1 for unlabelled"
    else:
        y = y.float()
        y = y.masked_fill(y.isnan(), torch.nan)  # one NaN for all: its bits go into the fingerprint
        wrong, expected = ~(y.isnan() | (y == 0) | (y == 1)), "labels 0, 1 or NaN for missing in every task"
    if wrong.any():
        first = wrong.nonzero()[0]
        raise G2MError(f"y: expected {expected} (got {y[tuple(first)].item()} on graph {int(first[0])}).")
    return y.contiguous()


def _num_classes(num_classes: int | None, y: Tensor, metric: str) -> int:
    if y.dim() == 1:
        return check_num_classes(num_classes, y, metric, "graph")
    if num_classes not in (None, 2):
        raise G2MError(f"num_classes: expected 2 where y is [G, T], binary tasks (got {num_classes}).")
    return 2


def _rows(start: Tensor, count: Tensor) -> Tensor:
    """Return ``start[0] … start[0] + count[0] - 1``, then the same from ``start[1]``, and so on."""
    return torch.arange(int(count.sum())) + (start - cumsum(count)[:-1]).repeat_interleave(count)
