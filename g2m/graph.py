"""The graph: one validated view of node features, edges, labels and a split."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import coalesce, contains_self_loops, remove_self_loops, subgraph

from g2m.errors import G2MError, check_flag, check_keys, check_range, check_seed, check_whole, choose
from g2m.mapped import from_array, is_mapped, not_finite, rows_of
from g2m.sparse import CSR, features

if TYPE_CHECKING:
    import networkx

SETTINGS = ("transductive", "inductive")
METRICS = ("accuracy", "rocauc")
PARTS = ("train", "val", "test", "unseen")


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """A node-classification graph, checked on construction and never changed afterwards.

    Tensors and arrays that need no conversion are shared with you, not copied: nothing is to write into them.

    Args:
        x: node features ``[N, F]``; converted to float32. NaN and infinity are refused. Mapped from a file, as
            ``numpy.load(path, mmap_mode="r")`` gives them, they stay there: float32, row by row.
        edge_index: ``[2, E]`` node ids, source row first; converted to int64, duplicates merged. An undirected
            graph holds both arcs.
        y: labels ``[N]`` (or ``[N, 1]``), integers from 0; -1 marks an unlabelled node.
        split: node ids (or boolean masks ``[N]``) under ``train``, ``val``, ``test``; parts do not overlap.
            ``unseen``, a part of ``test``, is present in the inductive setting only.
        name: what reports and errors call the graph; default ``"graph"``.
        num_classes: number of classes; default ``max(y) + 1``, over all nodes: give it where a class may occur on
            unseen nodes alone.
        metric: ``"accuracy"`` (default) or ``"rocauc"`` (two classes).
        keep_loops: keep self-loops given in ``edge_index``; by default they are dropped, every model adds its own.
        node_id: ids ``[N]`` of the nodes in the graph this one was cut from, ascending; default ``0 … N-1``.

    Raises:
        G2MError: on any of the above not holding; the message names the argument and the first offender.
    """

    x: Tensor
    edge_index: Tensor
    y: Tensor
    split: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "graph"
    num_classes: int | None = None
    metric: str = "accuracy"
    keep_loops: bool = False
    node_id: Tensor | None = None

    def __post_init__(self) -> None:
        def put(key: str, value: Any) -> None:
            object.__setattr__(self, key, value)

        choose("metric", self.metric, METRICS)
        check_flag("keep_loops", self.keep_loops)
        put("x", check_features(self.x))
        put("y", _labels(self.y, len(self.x)))
        put("num_classes", check_num_classes(self.num_classes, self.y, self.metric, "node"))
        put("edge_index", _edges(self.edge_index, len(self.x), self.keep_loops, self.name))
        put("split", check_split(self.split, self.y, PARTS, "node"))
        put("node_id", torch.arange(len(self.x)) if self.node_id is None else _node_id(self.node_id, len(self.x)))

    # -- ways in -----------------------------------------------------------------------------------------------

    @classmethod
    def from_pyg(
        cls,
        data: Data,
        *,
        split: Mapping[str, Any] | None = None,
        split_index: int = 0,
        name: str = "graph",
        **options: Any,
    ) -> Graph:
        """Build a graph from a PyG :class:`~torch_geometric.data.Data`.

        Args:
            data: must hold ``x``, ``edge_index`` and ``y``. ``train_mask``, ``val_mask`` and ``test_mask``, of shape
                ``[N]`` or ``[N, S]`` (S splits), become the split.
            split: ids or masks under ``train``, ``val``, ``test``; takes the place of the masks.
            split_index: which of the S splits to take, taken modulo S; default 0.
            name: what reports call the graph; default ``"graph"``.
            options: passed on to :class:`Graph` (``num_classes``, ``metric``, ``keep_loops``).

        Raises:
            G2MError: if a field is missing, or on anything :class:`Graph` refuses.
        """
        for key in ("x", "edge_index", "y"):
            if not isinstance(data, Data) or data.get(key) is None:
                got = f"none for {key!r}" if isinstance(data, Data) else type(data).__name__
                raise G2MError(f"data: expected a Data with x, edge_index and y (got {got}).")
        if unused := [key for key in ("edge_weight", "edge_attr") if data.get(key) is not None]:
            warnings.warn(f"data: {' and '.join(unused)} left out: g2m's graphs have plain edges.", stacklevel=2)
        split_index = check_whole("split_index", split_index, 0)
        if split is None:
            masks = {part: data.get(f"{part}_mask") for part in PARTS[:3]}
            split = {
                part: mask if mask.ndim == 1 else mask[:, split_index % mask.shape[1]]
                for part, mask in masks.items()
                if mask is not None and mask.shape[-1]
            }
        return cls(data.x, data.edge_index, data.y, split, name=name, **options)

    @classmethod
    def from_networkx(
        cls,
        graph: networkx.Graph,
        *,
        x: str | list[str] = "x",
        y: str = "y",
        split: str | Mapping[str, Any] | None = None,
        name: str = "graph",
        **options: Any,
    ) -> Graph:
        """Build a graph from a networkx graph whose nodes carry attributes.

        Nodes are numbered in ``graph.nodes`` order; an undirected graph gives both arcs of every edge.

        Args:
            graph: a networkx graph.
            x: node attribute (a number or a list of numbers), or several attributes, set side by side; default
                ``"x"``.
            y: node attribute with the class, an integer from 0 (-1: unlabelled); default ``"y"``.
            split: a node attribute that says ``"train"``, ``"val"`` or ``"test"`` (anything else: in no part), or
                ids or masks as in :class:`Graph`; default ``None``: no parts.
            name: what reports call the graph; default ``"graph"``.
            options: passed on to :class:`Graph`.

        Raises:
            G2MError: naming the first node that lacks an attribute.
        """
        if not callable(getattr(graph, "nodes", None)):
            raise G2MError(f"graph: expected a networkx graph (got {type(graph).__name__}).")
        nodes = list(graph.nodes(data=True))
        columns = [x] if isinstance(x, str) else list(x)
        wanted = [*columns, y] + ([split] if isinstance(split, str) else [])
        for node, attributes in nodes:
            for key in wanted:
                if key not in attributes:
                    raise G2MError(f"graph: node {node!r} has no attribute {key!r} (it has: {sorted(attributes)}).")
        features, labels = [], []
        for node, attributes in nodes:
            try:
                features.append(np.concatenate([np.atleast_1d(attributes[c]) for c in columns]).astype(np.float32))
                labels.append(float(attributes[y]))
            except (TypeError, ValueError) as error:
                raise G2MError(
                    f"graph: expected numbers in {', '.join([*columns, y])} on every node "
                    f"(got {error} on node {node!r}). "
                    "Number classes from 0, for example with sklearn.preprocessing.LabelEncoder."
                ) from None
        if len({f.shape for f in features}) > 1:
            raise G2MError(
                f"x: expected the same number of values on every node (got {sorted({len(f) for f in features})})."
            )
        position = {node: i for i, (node, _) in enumerate(nodes)}
        arcs = [(position[u], position[v]) for u, v in graph.edges()]
        if not graph.is_directed():
            arcs += [(v, u) for u, v in arcs]
        if isinstance(split, str):
            of_part = np.array([str(a[split]) for _, a in nodes])
            split = {part: torch.from_numpy(np.flatnonzero(of_part == part)) for part in PARTS[:3]}
            split = {part: ids for part, ids in split.items() if len(ids)}
        return cls(
            torch.from_numpy(np.stack(features)) if features else torch.empty(0, 0),
            torch.tensor(arcs, dtype=torch.long).reshape(-1, 2).t(),
            torch.tensor(labels, dtype=torch.float64),
            split or {},
            name=name,
            **options,
        )

    # -- what it is --------------------------------------------------------------------------------------------

    @property
    def num_nodes(self) -> int:
        return self.x.size(0)

    @property
    def num_edges(self) -> int:
        """Number of arcs: an undirected edge counts twice."""
        return self.edge_index.size(1)

    @property
    def num_features(self) -> int:
        return self.x.size(1)

    @property
    def setting(self) -> str:
        """``"inductive"`` if some test nodes are unseen in training, otherwise ``"transductive"``."""
        return SETTINGS["unseen" in self.split]

    def part(self, name: str) -> Tensor:
        """Return the node ids of a part of the split.

        ``seen`` is ``test`` without ``unseen``.

        Raises:
            G2MError: if the graph has no such part.
        """
        if name == "seen" and "unseen" in self.split:
            return self.split["test"][~torch.isin(self.split["test"], self.split["unseen"])]
        if name not in self.split:
            raise G2MError(
                f"split: graph {self.name!r} has no part {name!r} (it has: {', '.join(self.split) or 'none'}). "
                "Give one with graph.with_split(...), or draw one from g2m.data.splits."
            )
        return self.split[name]

    def with_split(self, split: Mapping[str, Any]) -> Graph:
        """Return the same graph under another split."""
        return replace(self, split=split)

    def without_edges(self) -> Graph:
        """Return the nodes alone, for students that learn from a teacher's outputs where the graph may not go."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "graph .* has no edges")
            return replace(self, edge_index=self.edge_index[:, :0])

    def inductive(self, *, seed: int = 0, fraction: float = 0.2) -> Graph:
        """Return the production view of GLNN (ICLR 2022): a random part of ``test`` becomes ``unseen``.

        Args:
            seed: of the permutation of the test nodes, default 0.
            fraction: share of the test nodes held out, in (0, 1), default 0.2; rounded down.

        Raises:
            G2MError: if nothing, or all of ``test``, would be unseen.
        """
        check_range("fraction", fraction, 0, 1, open_low=True)
        generator = torch.Generator().manual_seed(check_seed(seed))
        test = self.part("test")
        size = int(fraction * len(test))
        if not 0 < size < len(test):
            raise G2MError(
                f"fraction: expected one that leaves seen and unseen nodes (got {size} of {len(test)} unseen)."
            )
        order = torch.randperm(len(test), generator=generator)
        return self.with_split({**self.split, "unseen": test[order[:size]]})

    def observed(self) -> Graph:
        """Return the part that training may see: no unseen node, none of its edges, labels or features.

        ``node_id`` of the result says which nodes of this graph are left. A transductive graph is returned as it is.
        Of mapped features, those left are written to a file in the temporary folder.
        """
        return self if self.setting == "transductive" else self._observed

    @property
    def observed_is_made(self) -> bool:
        """Whether :meth:`observed` takes no more memory."""
        return self.setting == "transductive" or "_observed" in vars(self)

    @cached_property
    def _observed(self) -> Graph:
        keep = torch.ones(self.num_nodes, dtype=torch.bool)
        keep[self.split["unseen"]] = False
        local = keep.cumsum(0) - 1
        edge_index, _ = subgraph(keep, self.edge_index, relabel_nodes=True, num_nodes=self.num_nodes)
        split = {
            part: local[ids[keep[ids]]] for part, ids in self.split.items() if part != "unseen" and keep[ids].any()
        }
        with warnings.catch_warnings():
            if not self.num_edges:  # said already
                warnings.filterwarnings("ignore", "graph .* has no edges")
            return replace(
                self,
                x=rows_of(self.x, keep.nonzero().flatten()),
                edge_index=edge_index,
                y=self.y[keep],
                split=split,
                node_id=self.node_id[keep],
            )

    def for_selection(self) -> Graph:
        """Return what may decide hyper-parameters: the observed graph, its parts ``train`` and ``val``, their labels.

        Other nodes are unlabelled in it (-1), so that no score on them can be had.
        """
        observed = self.observed()
        split = {part: observed.part(part) for part in ("train", "val")}
        y = torch.full_like(observed.y, -1)
        for ids in split.values():
            y[ids] = observed.y[ids]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "graph .* has no edges")  # said already
            return replace(observed, y=y, split=split)

    @cached_property
    def _digests(self) -> dict[bool, str]:
        digest = hashlib.sha256(f"{self.num_classes}|{self.metric}".encode())
        tensors = {"x": self.x, "y": self.y, "node_id": self.node_id}
        tensors |= {f"split.{part}": self.split[part] for part in sorted(self.split)}
        digests = {}
        for key, tensor in {**tensors, "edge_index": self.edge_index}.items():
            digests[False] = digest.hexdigest()[:32]
            digest.update(f"|{key}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy())
        return {**digests, True: digest.hexdigest()[:32]}

    @cached_property
    def features(self) -> Tensor | CSR:
        """``x`` in the form in which products are fast: sparse if at most a tenth of it is non-zero."""
        return features(self.x)

    @cached_property
    def undirected_edges(self) -> Tensor:
        """One arc per edge ``[2, E]`` if every arc has its reverse; otherwise all arcs. Without loops.

        Of the two, the one from the end with fewer edges: few nodes are then at the other end of many, and what belongs
        to a batch of first ends is small.
        """
        source, target = self.edge_index[:, self.edge_index[0] != self.edge_index[1]]
        rank = torch.empty(self.num_nodes, dtype=torch.int32, device=source.device)
        by_degree = torch.bincount(target, minlength=self.num_nodes).argsort(stable=True)
        rank[by_degree] = torch.arange(self.num_nodes, dtype=torch.int32, device=source.device)
        one_way = rank[source] < rank[target]
        forward, backward = (a * self.num_nodes + b for a, b in ((source, target), (target, source)))
        if not torch.equal(forward[one_way], backward[~one_way].sort().values):
            one_way = torch.ones_like(one_way)
        return torch.stack([source[one_way], target[one_way]])

    def fingerprint(self, *, edges: bool = True) -> str:
        """Return a hash of everything in the graph but its name: features, labels, split and, by default, edges."""
        return self._digests[edges]

    def __repr__(self) -> str:
        parts = ", ".join(f"{part}: {len(ids)}" for part, ids in self.split.items())
        return (
            f"Graph(name={self.name!r}, num_nodes={self.num_nodes}, num_edges={self.num_edges}, "
            f"num_features={self.num_features}, num_classes={self.num_classes}, "
            f"setting={self.setting!r}, split={{{parts}}})"
        )


# -- checks ----------------------------------------------------------------------------------------------------


def _tensor(name: str, value: Any) -> Tensor:
    try:
        if isinstance(value, Tensor):
            if name != "x" and value.layout != torch.strided:
                raise TypeError(f"{value.layout}; an adjacency becomes edges by torch_geometric.utils.to_edge_index")
            return value.detach().cpu()
        array = np.asarray(value)
        tensor = from_array(array)
        # pandas hands out read-only ones
        return tensor if array.flags.writeable or (name == "x" and is_mapped(tensor)) else tensor.clone()
    except (TypeError, ValueError) as error:
        hint = " Number classes from 0, for example with sklearn.preprocessing.LabelEncoder." if name == "y" else ""
        got = f"{type(value).__name__}: {error}"
        raise G2MError(f"{name}: expected a tensor or an array of numbers (got {got}).{hint}") from None


def check_features(x: Any) -> Tensor:
    """Return features as float32 ``[N, F]``; refuse what is not real, finite and two-dimensional."""
    x = _tensor("x", x)
    if x.layout != torch.strided:
        x = x.to_dense()
    if x.dim() != 2 or 0 in x.shape:
        raise G2MError(f"x: expected node features of shape [N, F], N and F at least 1 (got {tuple(x.shape)}).")
    if x.is_complex():
        raise G2MError(f"x: expected real numbers (got {x.dtype}).")
    if (x.dtype != torch.float32 or not x.is_contiguous()) and is_mapped(x):
        raise G2MError(
            f"x: expected float32, row by row, of features mapped from a file (got {x.dtype}, strides {x.stride()}): "
            "what is converted is held in memory. Write them so (numpy.lib.format.open_memmap), or hold them: "
            "x=numpy.array(x)."
        )
    x = x.to(torch.float32)
    wrong, node = not_finite(x)
    if wrong:
        raise G2MError(
            f"x: expected finite features (got {wrong} NaN or infinite values, the first on node {node}). "
            "Fill them in, for example with sklearn.impute.SimpleImputer, or drop those nodes."
        )
    return x.contiguous()


def _integers(name: str, value: Any, expected: str) -> Tensor:
    value = _tensor(name, value)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        whole = value.is_floating_point() and bool(torch.isfinite(value).all()) and bool((value == value.round()).all())
        if not whole:
            raise G2MError(f"{name}: expected {expected} as integers (got {value.dtype}).")
    return value.to(torch.int64)


def _labels(y: Any, num_nodes: int) -> Tensor:
    y = _integers("y", y, "labels")
    if y.dim() == 2 and y.size(1) == 1:
        y = y.squeeze(1)
    if y.shape != (num_nodes,):
        raise G2MError(f"y: expected one label per node, shape [{num_nodes}] (got {tuple(y.shape)}).")
    if (y < -1).any():
        node = int((y < -1).nonzero()[0])
        raise G2MError(f"y: expected labels from 0, or -1 for unlabelled (got {int(y[node])} on node {node}).")
    return y.contiguous()


def _node_id(node_id: Any, num_nodes: int) -> Tensor:
    node_id = _integers("node_id", node_id, "ids of nodes")
    if node_id.shape != (num_nodes,):
        raise G2MError(f"node_id: expected {num_nodes} ids, one per node (got shape {tuple(node_id.shape)}).")
    if node_id[0] < 0 or (node_id.diff() <= 0).any():
        raise G2MError(f"node_id: expected ids from 0, each above the one before it (got {node_id[:5].tolist()} …).")
    return node_id.contiguous()


def check_num_classes(num_classes: int | None, y: Tensor, metric: str, of: str) -> int:
    """Return the number of classes of labels, each of a node or a graph; refuse too few, and labels above them."""
    found = int(y.max()) + 1
    num_classes = found if num_classes is None else check_whole("num_classes", num_classes, 2)
    if num_classes < 2:
        raise G2MError(f"y: expected at least two classes (got {num_classes}).")
    if found > num_classes:
        i = int((y >= num_classes).nonzero()[0])
        raise G2MError(f"y: expected labels below num_classes={num_classes} (got {int(y[i])} on {of} {i}).")
    if metric == "rocauc" and num_classes != 2:
        raise G2MError(f"metric: 'rocauc' needs two classes (got {num_classes}). Use metric='accuracy'.")
    return num_classes


def arcs_of(edge_index: Any, num_nodes: int) -> Tensor:
    """Return arcs ``[2, E]`` between ``num_nodes`` nodes as int64; nothing, of any shape, is no arc."""
    edge_index = _tensor("edge_index", edge_index)
    if edge_index.numel() == 0:
        edge_index = edge_index.reshape(2, 0).long()
    edge_index = _integers("edge_index", edge_index, "node ids")
    check_edge_index(edge_index, num_nodes)
    return edge_index


def _edges(edge_index: Any, num_nodes: int, keep_loops: bool, name: str) -> Tensor:
    edge_index = arcs_of(edge_index, num_nodes)
    if not keep_loops and contains_self_loops(edge_index):
        edge_index, _ = remove_self_loops(edge_index)
    if edge_index.size(1) == 0:
        warnings.warn(f"graph {name!r} has no edges: a GNN on it is an MLP.", stacklevel=4)
    return coalesce(edge_index, num_nodes=num_nodes).contiguous()


def check_split(split: Any, y: Tensor, parts: Iterable[str], what: str) -> dict[str, Tensor]:
    """Return ascending ids by part. No two share a node or graph (``what``), but ``unseen`` lies within ``test``."""
    if not isinstance(split, Mapping):
        raise G2MError(f"split: expected a mapping from part to {what} ids (got {type(split).__name__}).")
    check_keys("split", split, parts)
    made: dict[str, Tensor] = {}
    owner = torch.full((len(y),), -1)
    for number, part in enumerate(part for part in parts if part in split):
        ids = check_ids(f"split[{part!r}]", split[part], len(y), what).sort().values
        if repeats := int((ids.diff() == 0).sum()):
            raise G2MError(f"split: expected each {what} once in {part!r} (got {repeats} repeats).")
        if y.dim() == 1 and (y[ids] < 0).any():  # a missing label of one task among several is left out of its score
            raise G2MError(
                f"split: expected labelled {what}s in {part!r} (got {what} {int(ids[y[ids] < 0][0])} without a label)."
            )
        if part == "unseen":
            if not torch.isin(ids, made.get("test", ids[:0])).all():
                raise G2MError("split: expected 'unseen' to be a part of 'test' (got nodes outside it).")
        elif len(both := ids[owner[ids] >= 0]):
            other = list(made)[int(owner[both[0]])]
            raise G2MError(
                f"split: expected parts without common {what}s (got {len(both)} in both {other!r} and {part!r}, "
                f"the first is {what} {int(both[0])})."
            )
        else:
            owner[ids] = number
        made[part] = ids
    return made


def check_ids(argument: str, ids: Any, size: int, what: str) -> Tensor:
    """Return ids from ids or a mask ``[size]``; refuse none, and a node or graph (``what``) that is not there."""
    ids = _tensor(argument, ids)
    if ids.dtype == torch.bool:
        if ids.shape != (size,):
            raise G2MError(f"{argument}: expected a mask of shape [{size}] (got {tuple(ids.shape)}).")
        ids = ids.nonzero()
    if ids.numel() == 0:
        raise G2MError(f"{argument}: expected at least one {what} (got none).")
    ids = _integers(argument, ids, f"{what} ids").flatten()
    if ids.min() < 0 or ids.max() >= size:
        raise G2MError(f"{argument}: expected {what} ids in [0, {size - 1}] (got {int(ids.min())} … {int(ids.max())}).")
    return ids


def check_edge_index(edge_index: Any, num_nodes: int, *, of: str = "", hint: str = "") -> None:
    """Raise :class:`G2MError` unless these are arcs ``[2, E]`` between ``num_nodes`` nodes; ``of`` says whose ids."""
    if not isinstance(edge_index, Tensor) or edge_index.dtype not in (torch.int32, torch.int64):
        got = edge_index.dtype if isinstance(edge_index, Tensor) else type(edge_index).__name__
        raise G2MError(f"edge_index: expected a tensor of int64 (got {got}). Convert it with .long().")
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        turn = " Transpose it." if edge_index.dim() == 2 and edge_index.size(1) == 2 else ""
        raise G2MError(f"edge_index: expected shape [2, E] (got {tuple(edge_index.shape)}).{turn}")
    wrong = ((edge_index < 0) | (edge_index >= num_nodes)).any(0)
    if wrong.any():
        column = int(wrong.nonzero()[0])
        raise G2MError(
            f"edge_index: expected node ids in [0, {num_nodes - 1}]{of} (got {edge_index[:, column].tolist()} in "
            f"column {column}).{hint}"
        )
