"""Computation trees as integers, as in Mirage (Gupta et al., ICLR 2024), and none of them unrolled.

T_0(v) is v's key and T_ℓ(v) = (key of v, {{(key of the arc u→v, T_{ℓ-1}(u)) : u→v}}): all that ℓ layers of message
passing see of v. L rounds of colour refinement give two nodes the same class if and only if their trees are isomorphic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from g2m.errors import G2MError, check_seed, check_whole, choose

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch_geometric.data import Data

Array = np.ndarray | Tensor

METHODS = ("hash", "exact")
BACKENDS = ("auto", "numpy", "torch")
ROWS = ("rows", "quantile", "codebook")
KMEANS_ROWS = 50_000  # that a codebook is fitted on, drawn at random
HOPELESS = 0.9  # share of nodes whose tree no other node has, from which no set of trees can be frequent
WIDE = 2**31  # two numbers below it make a pair that fits 64 bits
_GOLDEN, _FIRST, _SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


# -- attributes into keys ----------------------------------------------------------------------------------------------


class RowKeys:
    """Give rows of attributes integer keys: equal rows the same one, after numbers that vary smoothly are made coarse.

    Keys count from 0 in order of first appearance; a row that was not there in ``fit`` has key ``num_keys``.

    Args:
        kind: ``"rows"`` (default): rows as they are; ``"quantile"``: continuous columns cut into bins with equally many
            rows, each by itself; ``"codebook"``: the index of the nearest of k means in place of all continuous
            columns, each scaled to unit variance.
        columns: which columns are continuous; default those where ``fit`` meets a number that is not whole.
        bins: of a column, from 2; default 8.
        codes: of the codebook, from 1; default 64.
        seed: of the codebook, default 0.

    Raises:
        G2MError: on any of the above not holding.
    """

    def __init__(
        self,
        kind: str = "rows",
        *,
        columns: Sequence[int] | None = None,
        bins: int = 8,
        codes: int = 64,
        seed: int = 0,
    ) -> None:
        self.kind = choose("kind", kind, ROWS)
        self.columns, self.bins, self.codes, self.seed = columns, check_whole("bins", bins, 2), codes, check_seed(seed)
        check_whole("codes", codes)

    def fit(self, x: Array) -> RowKeys:
        """Learn the keys from the rows ``[N, F]`` of training graphs.

        Raises:
            G2MError: if there is no row, a number is not finite or ``columns`` has one that is not there.
        """
        x = _rows(x)
        if not len(x):
            raise G2MError("x: expected at least one row to fit keys on (got none).")
        self.continuous_ = self._continuous(x)
        self._fit_coarse(x[:, self.continuous_].astype(np.float64))
        table = self._coarse(x)
        for salt in count():  # until no two rows share a hash: at once, but for one chance in about 2⁶⁴ / N²
            ids, first = _dense(_hash_rows(table, salt))
            if (table == table[first][ids]).all():
                break
        self._salt, self._table = salt, table[first]
        self._index = pd.Index(_hash_rows(self._table, salt))
        #: What a key stands for ``[num_keys, F]``: the mean of its rows.
        self.features_ = x[first]
        if self.kind != "rows" and len(self.continuous_):
            members = csr_array((np.ones(len(x)), ids, np.arange(len(x) + 1)), shape=(len(x), len(first))).T
            mean = members @ x.astype(np.float64) / np.bincount(ids)[:, None]
            self.features_ = mean.astype(np.float32)
        return self

    def transform(self, x: Array) -> np.ndarray:
        """Return the keys ``[N]`` of rows ``[N, F]``; ``num_keys`` for a row that is not known.

        Raises:
            G2MError: before ``fit``, or if the number of columns is another one.
        """
        if not hasattr(self, "features_"):
            raise G2MError("keys: expected fitted ones (got none). Call fit on the training graphs first.")
        x = _rows(x)
        if x.shape[1] != self.features_.shape[1]:
            raise G2MError(f"x: expected {self.features_.shape[1]} columns, as in fit (got {x.shape[1]}).")
        table = self._coarse(x)
        found = self._index.get_indexer(_hash_rows(table.astype(self._table.dtype), self._salt))
        found[(table != self._table[found]).any(1)] = -1
        return np.where(found < 0, self.num_keys, found)

    def decode(self, keys: Array) -> np.ndarray:
        """Return the attributes ``[N, F]`` that keys ``[N]`` stand for: the mean of the rows they were fitted on.

        Raises:
            G2MError: on a key that was not fitted.
        """
        keys = _numpy(keys)
        if len(keys) and not 0 <= keys.min() <= keys.max() < self.num_keys:
            raise G2MError(
                f"keys: expected keys in 0 … {self.num_keys - 1} (got {keys.min()} … {keys.max()}). "
                f"{self.num_keys} is the key of rows that were not in fit: it stands for no attributes."
            )
        return self.features_[keys]

    @property
    def num_keys(self) -> int:
        return len(self.features_)

    def _continuous(self, x: np.ndarray) -> np.ndarray:
        if self.columns is None:
            return np.flatnonzero((x != np.rint(x)).any(0)) if x.dtype.kind == "f" else np.empty(0, np.int64)
        columns = np.asarray(self.columns, dtype=np.int64).reshape(-1)
        if len(columns) and not 0 <= columns.min() <= columns.max() < x.shape[1]:
            raise G2MError(f"columns: expected columns in 0 … {x.shape[1] - 1} (got {self.columns!r}).")
        return columns

    def _fit_coarse(self, x: np.ndarray) -> None:
        if self.kind == "quantile":
            inner = np.linspace(0, 1, self.bins + 1)[1:-1]
            self._edges = [np.unique(np.quantile(column, inner)) for column in x.T]
        elif self.kind == "codebook" and x.size:
            from sklearn.cluster import KMeans

            self._scale = np.where(x.std(0) > 0, x.std(0), 1)
            x = x / self._scale
            if len(x) > KMEANS_ROWS:
                x = np.random.default_rng(self.seed).choice(x, KMEANS_ROWS, replace=False)
            codes = min(self.codes, len(np.unique(x, axis=0)))
            self._means = KMeans(codes, n_init=1, random_state=self.seed).fit(x)

    def _coarse(self, x: np.ndarray) -> np.ndarray:
        """Return the rows that keys tell apart."""
        if self.kind == "rows" or not len(self.continuous_):
            return x
        x, continuous = np.delete(x, self.continuous_, 1), x[:, self.continuous_].astype(np.float64)
        if self.kind == "quantile":
            bins = [np.searchsorted(e, c, side="right") for e, c in zip(self._edges, continuous.T, strict=True)]
        else:
            bins = [self._means.predict(continuous / self._scale) if len(x) else np.empty(0)]
        return np.column_stack([x, *bins])


class TreeKeys:
    """Make the keys of nodes and arcs that :func:`tree_classes` tells trees apart by, fitted on training graphs.

    Args:
        node: ``"rows"`` of ``x``, ``"quantile"``, ``"codebook"`` (see :class:`RowKeys`), ``"degree"`` (arcs that lead
            to a node), ``"constant"``; ``"auto"`` (default): rows, or degree where there is no ``x``.
        edge: ``"rows"`` of ``edge_attr``, ``"quantile"``, ``"codebook"``, ``"constant"``; ``"auto"`` (default): rows,
            or constant where there is no ``edge_attr``.
        degree: whether nodes of different degree get different keys besides; default ``False``. A convolution that
            normalises by the neighbours' degrees needs it, or one hop more.
        columns, bins, codes, seed: see :class:`RowKeys`; ``columns`` are those of ``x``.

    Raises:
        G2MError: on a kind that is none of these.
    """

    def __init__(
        self,
        *,
        node: str = "auto",
        edge: str = "auto",
        degree: bool = False,
        columns: Sequence[int] | None = None,
        bins: int = 8,
        codes: int = 64,
        seed: int = 0,
    ) -> None:
        self.node = choose("node", node, ("auto", *ROWS, "degree", "constant"))
        self.edge = choose("edge", edge, ("auto", *ROWS, "constant"))
        self.degree = degree
        coarse = {"bins": bins, "codes": codes, "seed": seed}
        self.nodes = RowKeys(node if node in ROWS else "rows", columns=columns, **coarse)
        self.edges = RowKeys(edge if edge in ROWS else "rows", **coarse)

    def fit(self, data: Data, graphs: Array | None = None) -> TreeKeys:
        """Learn the keys.

        Args:
            data: one PyG ``Data``, or a ``Batch`` of many.
            graphs: ids of the training graphs in the batch, or a mask of them; default all.

        Raises:
            G2MError: if an attribute is missing that ``node`` or ``edge`` asks for, ``data`` has no ``batch``, or the
                training graphs have no nodes.
        """
        self.node_, self.edge_ = self.node, self.edge
        if self.node == "auto":
            self.node_ = "degree" if data.x is None else "rows"
        if self.edge == "auto":
            self.edge_ = "constant" if data.edge_attr is None else "rows"
        nodes, edges = self._tables(data)
        if graphs is not None:
            if getattr(data, "batch", None) is None:
                raise G2MError("graphs: expected data to be a Batch (got one without batch). Leave graphs out.")
            graphs = _numpy(graphs)
            graphs = np.flatnonzero(graphs) if graphs.dtype.kind == "b" else graphs
            train = np.isin(_numpy(data.batch), graphs)
            nodes, edges = nodes[train], edges[train[_numpy(data.edge_index[0])]]
        self.nodes.fit(nodes)
        if len(edges):
            self.edges.fit(edges)
        else:
            self.edge_ = "constant"  # there is no arc to learn a key from
        return self

    def transform(self, data: Data) -> tuple[Tensor, Tensor]:
        """Return the keys of the nodes ``[N]`` and of the arcs ``[E]``; see :class:`RowKeys` for unknown ones.

        Raises:
            G2MError: before ``fit``, or if an attribute is missing.
        """
        if not hasattr(self, "node_"):
            raise G2MError("keys: expected fitted ones (got none). Call fit on the training graphs first.")
        nodes, edges = self._tables(data)
        edge_key = np.zeros(len(edges), np.int64) if self.edge_ == "constant" else self.edges.transform(edges)
        device = data.edge_index.device
        return torch.from_numpy(self.nodes.transform(nodes)).to(device), torch.from_numpy(edge_key).to(device)

    def decode_nodes(self, keys: Array) -> Tensor:
        """Return attributes ``[N, F]`` for node keys ``[N]``: of ``x``, or what stands in for it where it is unused."""
        features = self.nodes.decode(keys)
        return torch.from_numpy(features[:, :-1] if self._degree_apart else features)

    def decode_degrees(self, keys: Array) -> Tensor | None:
        """Return degrees ``[N]`` for node keys ``[N]``, or ``None`` if keys do not tell degrees apart."""
        known = self._degree_apart or self.node_ == "degree"
        return torch.from_numpy(self.nodes.decode(keys)[:, -1]).long() if known else None

    def decode_edges(self, keys: Array) -> Tensor | None:
        """Return attributes ``[E, F]`` for arc keys ``[E]``, or ``None`` if all arcs have the same key."""
        return None if self.edge_ == "constant" else torch.from_numpy(self.edges.decode(keys))

    @property
    def _degree_apart(self) -> bool:
        """Whether the last column of the nodes' rows is the degree, beside others."""
        return self.degree and self.node_ != "degree"

    def _tables(self, data: Data) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of nodes and of arcs that keys are made of."""
        for argument, kind, name in (("node", self.node_, "x"), ("edge", self.edge_, "edge_attr")):
            if kind in ROWS and getattr(data, name, None) is None:
                raise G2MError(f"{argument}: expected data with {name} for {kind!r} (got none). Use 'constant'.")
        degree = np.bincount(_numpy(data.edge_index[1]), minlength=data.num_nodes)[:, None]
        nodes = _rows(data.x) if self.node_ in ROWS else degree if self.node_ == "degree" else np.ones_like(degree)
        if self._degree_apart:
            nodes = np.column_stack([nodes, degree.astype(nodes.dtype if nodes.dtype.kind == "f" else np.int64)])
        return nodes, _rows(data.edge_attr) if self.edge_ in ROWS else np.zeros((data.num_edges, 1), np.int64)


def _rows(x: Array) -> np.ndarray:
    x = _numpy(x)
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or x.dtype.kind not in "iufb":
        raise G2MError(f"x: expected numbers of shape [N, F] (got {x.dtype} of shape {x.shape}).")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise G2MError("x: expected finite numbers (got NaN or infinity). Fill missing values in first.")
    return x


def _hash_rows(x: np.ndarray, salt: int) -> np.ndarray:
    total = np.full(len(x), salt)
    for j, column in enumerate(x.T):
        # Adding 0 makes -0.0 equal to 0.0 in bits too.
        bits = (column.astype(np.float64) + 0).view(np.int64) if x.dtype.kind == "f" else column.astype(np.int64)
        total = _mix(bits + (total + j) * _GOLDEN)
    return total


# -- arrays, of numpy or of torch --------------------------------------------------------------------------------------
# Signed integers in both: they wrap around alike, and torch has few operations on unsigned ones.


def _numpy(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _wide(x: Array) -> Array:
    return x.long() if isinstance(x, Tensor) else x.astype(np.int64, copy=False)


def _mix(z: Array) -> Array:
    """Return a bijection of 64-bit numbers that scatters them: the finaliser of splitmix64."""
    z = z + _GOLDEN
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        z ^= (z >> shift) & (2 ** (64 - shift) - 1)
        z *= factor
    return z


def _dense(x: Array) -> tuple[Array, Array]:
    """Return ids ``[N]`` of the distinct values, numbered as they first appear, and where each ``[K]`` does."""
    if not isinstance(x, Tensor):
        ids, _ = pd.factorize(x)
        return ids, np.flatnonzero(np.diff(np.maximum.accumulate(ids), prepend=-1))
    values, inverse = torch.unique(x, return_inverse=True)
    first = inverse.new_full(values.shape, len(x)).scatter_reduce(0, inverse, _arange(len(x), x), "amin")
    first, order = first.sort()
    return torch.empty_like(order).scatter(0, order, _arange(len(order), x))[inverse], first


def _arange(size: int, like: Array) -> Array:
    return torch.arange(size, device=like.device) if isinstance(like, Tensor) else np.arange(size)


def _offsets(counts: Array) -> Array:
    """Return the running sum, from 0."""
    if isinstance(counts, Tensor):
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _repeat(x: Array, counts: Array) -> Array:
    return torch.repeat_interleave(x, counts) if isinstance(x, Tensor) else np.repeat(x, counts)


def _ranges(start: Array, counts: Array) -> Array:
    """Return ``start … start + count - 1`` for every pair, one after the other."""
    offsets = _offsets(counts)
    index = _repeat(start - offsets[:-1], counts)
    index += _arange(len(index), counts)
    return index


# -- classes -----------------------------------------------------------------------------------------------------------


class _Arcs(NamedTuple):
    """Arcs by target: those to node v are at ``pointer[v] … pointer[v + 1] - 1``."""

    source: Array
    edge: Array | None  # id of the key; none if all are the same
    edge_key: Array  # the key behind an id
    pointer: Array
    degree: Array

    @classmethod
    def of(cls, edge_index: Array, edge_key: Array | None, num_nodes: int) -> _Arcs:
        source, target = edge_index
        if isinstance(target, Tensor):
            order = torch.sort(target, stable=True).indices
            degree = torch.bincount(target, minlength=num_nodes)
        else:  # scipy's transpose is a sort that counts; it merges nothing
            arcs = csr_array((np.arange(len(target)), target, [0, len(target)]), shape=(1, num_nodes)).tocsc()
            order, degree = arcs.data, np.diff(arcs.indptr).astype(np.int64)
        edge, keys = None, source[:1] * 0
        if edge_key is not None:
            edge, first = _dense(edge_key)
            edge, keys = edge[order] if len(first) > 1 else None, edge_key[first]
        return cls(source[order], edge, keys, _offsets(degree), degree)

    def symbols(self, classes: Array, num_classes: int) -> tuple[Array, int]:
        """Return a number for the pair (edge key, class of the source) of every arc, and a bound on it."""
        symbol, size = classes[self.source], num_classes
        if self.edge is not None:
            symbol, size = symbol + self.edge * num_classes, num_classes * len(self.edge_key)
        if size < WIDE:
            return symbol, size
        symbol, first = _dense(symbol)
        return symbol, len(first)

    def sorted(self, symbol: Array, size: int) -> Array:
        """Return the symbols in ascending order at every node: its multiset."""
        row = _repeat(_arange(len(self.degree), symbol) * size, self.degree)
        symbol = row + symbol
        if isinstance(symbol, Tensor):
            return symbol.sort().values.sub_(row)
        symbol.sort(kind="stable")
        symbol -= row
        return symbol


def _hashed(arcs: _Arcs, symbol: Array, classes: Array) -> tuple[Array, Array]:
    """Return classes by a hash of the pair (class, sum of the hashes of the symbols)."""
    total = _offsets(_mix(symbol))  # wraps around, and so do the differences
    total = total[arcs.pointer[1:]] - total[arcs.pointer[:-1]]
    return _dense(_mix(_mix(total) + classes))


def _exact(arcs: _Arcs, symbol: Array, size: int, classes: Array) -> tuple[Array, Array]:
    """Return classes by the pair (class, sorted symbols), whose symbols are joined two by two until one is left."""
    symbol, length = arcs.sorted(symbol, size), arcs.degree
    while len(symbol) and int(length.max()) > 1:
        start = _offsets(length)
        place = _arange(len(symbol), symbol)
        left = place[(place - _repeat(start[:-1], length)) % 2 == 0]
        half = (length + 1) // 2
        alone = left + 1 == _repeat(start[1:], half)
        right = symbol[(left + 1) * ~alone] + 1
        symbol, first = _dense(symbol[left] * (size + 1) + right * ~alone)
        size, length = len(first), half
    last = classes * 0
    last[length > 0] = symbol + 1
    return _dense(classes * (size + 1) + last)


def _agree(arcs: _Arcs, symbol: Array, size: int, classes: Array, ids: Array, first: Array) -> bool:
    """Return whether every node has the class and the multiset of the first node that has its new id.

    Then no class is too coarse; none is too fine, as equal pairs have equal hashes.
    """
    like = first[ids]
    if not bool((classes == classes[like]).all() & (arcs.degree == arcs.degree[like]).all()):
        return False
    symbol = arcs.sorted(symbol, size)
    return bool((symbol == symbol[_ranges(arcs.pointer[like], arcs.degree)]).all())


def tree_classes(
    edge_index: Array,
    node_key: Array,
    edge_key: Array | None = None,
    *,
    num_hops: int,
    method: str = "hash",
    verify: bool = True,
    backend: str = "auto",
) -> TreeClasses:
    """Return the class of every node's computation tree at every number of hops, by colour refinement (1-WL).

    Of a directed graph, a tree follows arcs against their direction, as messages come in. Parallel arcs are children
    each; a loop is a child with the node's own tree; a node without arcs is a tree by itself, at any depth. Time and
    memory are linear in nodes and arcs but for one sort of the arcs a hop, of which ``verify=False`` takes none.

    Args:
        edge_index: ``[2, E]``, of many graphs side by side as in a PyG batch; an undirected graph holds both arcs.
        node_key: integers ``[N]``; any that are equal on nodes that are alike. See :class:`TreeKeys`.
        edge_key: integers ``[E]``, likewise; default: all arcs are alike.
        num_hops: depth L of the trees, from 0: the layers of the network that is to see no difference.
        method: ``"hash"`` (default): of 64 bits; ``"exact"``: by sorting and pairing, a little slower.
        verify: whether to prove of every hashed class that its members agree (default), and to do a hop the exact way
            where they do not. Without it two of k classes are one with a chance of about k² / 2⁶⁵.
        backend: ``"auto"`` (default): numpy, or torch for tensors that are not on the CPU; ``"numpy"``; ``"torch"``.
            They give the same classes.

    Returns:
        classes as tensors where ``node_key`` is one and else as arrays, ids numbered as they first appear.

    Raises:
        G2MError: on any of the above not holding.
    """
    choose("method", method, METHODS)
    num_hops = check_whole("num_hops", num_hops, 0)
    device = node_key.device if isinstance(node_key, Tensor) else None
    if choose("backend", backend, BACKENDS) == "auto":
        backend = "numpy" if device in (None, torch.device("cpu")) else "torch"

    def tensor(x: Array) -> Tensor:
        return torch.as_tensor(x, device=device)

    take, give = _numpy if backend == "numpy" else tensor, _numpy if device is None else tensor
    given = [None if x is None else take(x) for x in (edge_index, node_key, edge_key)]
    _check(*given)
    edge_index, node_key, edge_key = (None if x is None else _wide(x) for x in given)

    arcs = _Arcs.of(edge_index, edge_key, len(node_key))
    ids, first = _dense(node_key)
    levels, firsts = [ids], [first]
    for _ in range(num_hops):
        classes, known = ids, len(first)
        if len(firsts) < 2 or known > len(firsts[-2]):  # else nothing was told apart, nor will be
            symbol, size = arcs.symbols(classes, known)
            if method == "hash":
                ids, first = _hashed(arcs, symbol, classes)
            if method == "exact" or (verify and not _agree(arcs, symbol, size, classes, ids, first)):
                ids, first = _exact(arcs, symbol, size, classes)
        levels.append(ids)
        firsts.append(first)
    return TreeClasses(tuple(map(give, levels)), tuple(map(give, firsts)), give(node_key), arcs)


def _check(edge_index: Array, node_key: Array, edge_key: Array | None) -> None:
    def whole(x: Array) -> bool:
        return not x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind in "iub"

    def what(x: Array) -> str:
        return f"(got {x.dtype} of shape {tuple(x.shape)})"

    if edge_index.ndim != 2 or len(edge_index) != 2 or not whole(edge_index):
        raise G2MError(f"edge_index: expected integers of shape [2, E] {what(edge_index)}.")
    if node_key.ndim != 1 or not whole(node_key):
        raise G2MError(f"node_key: expected integers of shape [N] {what(node_key)}. TreeKeys makes them of attributes.")
    if edge_key is not None and (tuple(edge_key.shape) != tuple(edge_index.shape[1:]) or not whole(edge_key)):
        raise G2MError(f"edge_key: expected integers of shape [{edge_index.shape[1]}] {what(edge_key)}.")
    if edge_index.shape[1] and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < len(node_key):
        low, high = int(edge_index.min()), int(edge_index.max())
        raise G2MError(
            f"edge_index: expected node ids in 0 … {len(node_key) - 1}, of {len(node_key)} node keys "
            f"(got {low} … {high}). Give one key per node."
        )


@dataclass(frozen=True, eq=False, repr=False)
class TreeClasses:
    """The classes of the trees of all nodes, from 0 hops to L; made by :func:`tree_classes`.

    Args:
        levels: for every number of hops the class ``[N]`` of every node, from 0, numbered as they first appear.
        first: for every number of hops the first node ``[K]`` of every class.
        node_key: ``[N]``.
    """

    levels: tuple[Array, ...]
    first: tuple[Array, ...]
    node_key: Array
    _arcs: _Arcs

    @property
    def num_hops(self) -> int:
        return len(self.levels) - 1

    @property
    def num_nodes(self) -> int:
        return len(self.node_key)

    @property
    def num_classes(self) -> tuple[int, ...]:
        return tuple(map(len, self.first))

    @property
    def ids(self) -> Array:
        """Class ``[N]`` of every node's tree of L hops."""
        return self.levels[-1]

    @cached_property
    def dag(self) -> ClassDAG:
        """What the classes are: a structure that all their trees share, on the CPU."""
        arcs = _Arcs(*(None if part is None else _numpy(part) for part in self._arcs))
        node_key, ids, first = _numpy(self.node_key), [*map(_numpy, self.levels)], [*map(_numpy, self.first)]
        none = np.empty(0, np.int64)
        levels = [Level(node_key[first[0]], none, np.zeros(len(first[0]) + 1, np.int64), none, none, none)]
        for below, known, nodes in zip(ids[:-1], map(len, first[:-1]), first[1:], strict=True):
            degree = arcs.degree[nodes]
            arc = _ranges(arcs.pointer[nodes], degree)
            pair = below[arcs.source[arc]] + (0 if arcs.edge is None else arcs.edge[arc] * known)
            row, shape = np.repeat(np.arange(len(nodes)), degree), (len(nodes), known * len(arcs.edge_key))
            children = coo_array((np.ones(len(arc), np.int64), (row, pair)), shape).tocsr()  # adds parallel ones up
            edge, child = np.divmod(children.indices.astype(np.int64), max(known, 1))
            crow = children.indptr.astype(np.int64)
            levels.append(Level(node_key[nodes], below[nodes], crow, arcs.edge_key[edge], child, children.data))
        counts = [np.bincount(level, minlength=len(nodes)) for level, nodes in zip(ids, first, strict=True)]
        return ClassDAG(tuple(levels), tuple(counts))

    def __repr__(self) -> str:
        return f"TreeClasses(num_hops={self.num_hops}, num_nodes={self.num_nodes}, num_classes={self.num_classes})"


def _check_hops(num_hops: int, most: int) -> int:
    if check_whole("num_hops", num_hops, 0) > most:
        raise G2MError(f"num_hops: expected at most {most} (got {num_hops}). Make the classes with more hops.")
    return num_hops


# -- the structure that trees share ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Level:
    """The K classes of trees of one depth; entries ``crow[k] … crow[k + 1] - 1`` are the children of class k.

    Distinct children, that is, and how many of each. At depth 0 there are none, and no ``below``.
    """

    key: np.ndarray  #: of the root ``[K]``
    below: np.ndarray  #: class in the level below of the same tree cut by a hop ``[K]``
    crow: np.ndarray  #: ``[K + 1]``
    edge_key: np.ndarray  #: of the arc from child to root ``[nnz]``
    child: np.ndarray  #: class in the level below ``[nnz]``
    multiplicity: np.ndarray  #: ``[nnz]``

    def __len__(self) -> int:
        return len(self.key)

    def entries(self, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which entries the children of the given classes are, and how many ``[len(classes)]`` each has."""
        counts = np.diff(self.crow)[classes]
        return _ranges(self.crow[classes], counts), counts


class Forest(NamedTuple):
    """Trees unrolled: R roots first, then the nodes of depth 1, and so on."""

    key: np.ndarray  #: of the nodes ``[n]``
    edge_index: np.ndarray  #: from child to parent ``[2, n - R]``; arc i starts at node R + i
    edge_key: np.ndarray  #: of the arcs ``[n - R]``
    depth: np.ndarray  #: ``[n]``
    tree: np.ndarray  #: which root a node is under ``[n]``


@dataclass(frozen=True, eq=False, repr=False)
class ClassDAG:
    """Every class of trees once, by its root and the classes of its children; trees are unrolled on demand alone.

    Args:
        levels: by depth, from 0.
        counts: for every level, how many nodes ``[K]`` have the class, in the graphs that the classes come from.
    """

    levels: tuple[Level, ...]
    counts: tuple[np.ndarray, ...]

    @property
    def num_hops(self) -> int:
        return len(self.levels) - 1

    @property
    def num_classes(self) -> tuple[int, ...]:
        return tuple(map(len, self.levels))

    @property
    def num_cells(self) -> int:
        """How many integers say it all: keys at depth 0; above, a pointer down, a row pointer, and its children.

        A child is two, its class and how many, and a third, the key of its arc, where there is more than one key.
        """
        above = self.levels[1:]
        keys = pd.unique(np.concatenate([level.edge_key for level in self.levels]))
        return len(self.levels[0]) + sum(2 * len(level) + (2 + (len(keys) > 1)) * len(level.child) for level in above)

    @cached_property
    def sizes(self) -> tuple[np.ndarray, ...]:
        """For every level the number of nodes ``[K]`` of the trees, by counting walks; exact up to 2⁵³."""
        sizes = [np.ones(len(self.levels[0]))]
        for level in self.levels[1:]:
            shape = (len(level), len(sizes[-1]))
            sizes.append(1 + csr_array((level.multiplicity.astype(float), level.child, level.crow), shape) @ sizes[-1])
        return tuple(sizes)

    def below(self, classes: Array, num_hops: int) -> np.ndarray:
        """Return for classes of the top level the classes, at ``num_hops``, of the same trees cut to that depth."""
        classes = self._top(classes)
        for level in self.levels[: _check_hops(num_hops, self.num_hops) : -1]:
            classes = level.below[classes]
        return classes

    def truncate(self, num_hops: int) -> ClassDAG:
        """Return the levels up to ``num_hops``: what the same graphs give with fewer hops."""
        end = _check_hops(num_hops, self.num_hops) + 1
        return ClassDAG(self.levels[:end], self.counts[:end])

    def restrict(self, classes: Array) -> tuple[ClassDAG, tuple[np.ndarray, ...]]:
        """Return the part that the given classes of the top level reach, and which classes of each level it holds.

        Class i of a level of the part is class ``kept[level][i]`` of this one, in ascending order.
        """
        kept = [np.unique(self._top(classes))]
        for level in self.levels[:0:-1]:
            entry, _ = level.entries(kept[-1])
            kept.append(np.unique(np.concatenate([level.below[kept[-1]], level.child[entry]])))
        kept.reverse()
        levels = [replace(self.levels[0], key=self.levels[0].key[kept[0]], crow=np.zeros(len(kept[0]) + 1, np.int64))]
        for level, rows, lower in zip(self.levels[1:], kept[1:], kept[:-1], strict=True):
            entry, counts = level.entries(rows)
            below, child = np.searchsorted(lower, level.below[rows]), np.searchsorted(lower, level.child[entry])
            edge_key, multiplicity = level.edge_key[entry], level.multiplicity[entry]
            levels.append(Level(level.key[rows], below, _offsets(counts), edge_key, child, multiplicity))
        counts = [count[rows] for count, rows in zip(self.counts, kept, strict=True)]
        return ClassDAG(tuple(levels), tuple(counts)), tuple(kept)

    def unroll(self, classes: Array, *, max_nodes: int = 1_000_000) -> Forest:
        """Return the trees of classes of the top level, node by node.

        Args:
            classes: one, or R of them; a class may come more than once. For those of fewer hops, ``truncate`` first.
            max_nodes: of all of them together, default a million.

        Raises:
            G2MError: on a class that is not there, or if the trees have more nodes: their size is known beforehand.
        """
        nodes = self._top(classes)
        if (size := self.sizes[-1][nodes].sum()) > check_whole("max_nodes", max_nodes):
            raise G2MError(
                f"classes: expected trees of at most {max_nodes} nodes in all (got {size:.0f}). "
                "Unroll fewer, truncate them to fewer hops, or raise max_nodes."
            )
        keys, trees, parents, edges, done = [self.levels[-1].key[nodes]], [np.arange(len(nodes))], [], [], 0
        for level, lower in zip(self.levels[:0:-1], self.levels[-2::-1], strict=True):
            entry, counts = level.entries(nodes)
            times = level.multiplicity[entry]
            entry, parent = np.repeat(entry, times), np.repeat(np.repeat(np.arange(len(nodes)), counts), times)
            parents.append(parent + done)
            trees.append(trees[-1][parent])
            edges.append(level.edge_key[entry])
            done += len(nodes)
            nodes = level.child[entry]
            keys.append(lower.key[nodes])
        none = np.empty(0, np.int64)
        parent, edge_key = np.concatenate([none, *parents]), np.concatenate([none, *edges])
        depth = np.repeat(np.arange(len(keys)), [*map(len, keys)])
        edge_index = np.stack([np.arange(len(parent)) + len(keys[0]), parent])
        return Forest(np.concatenate(keys), edge_index, edge_key, depth, np.concatenate(trees))

    def to_pyg(self, classes: Array, *, max_nodes: int = 1_000_000) -> Data:
        """Return the trees of classes of the top level as one PyG ``Data``, arcs from child to parent.

        Args:
            classes: see :meth:`unroll`.
            max_nodes: see :meth:`unroll`.

        Returns:
            ``Data`` with ``node_key``, ``depth``, ``tree`` (which class of ``classes`` a node belongs to) and
            ``root_mask`` ``[n]``, ``edge_index`` ``[2, n - R]`` and ``edge_key`` ``[n - R]``.

        Raises:
            G2MError: as :meth:`unroll`.
        """
        from torch_geometric.data import Data

        forest = Forest(*map(torch.from_numpy, self.unroll(classes, max_nodes=max_nodes)))
        return Data(
            edge_index=forest.edge_index,
            num_nodes=len(forest.key),
            node_key=forest.key,
            edge_key=forest.edge_key,
            depth=forest.depth,
            tree=forest.tree,
            root_mask=forest.depth == 0,
        )

    def draw_on(
        self,
        axes: Axes,
        tree: int,
        *,
        label: Callable[[int], str] = str,
        edge_label: Callable[[int], str] | None = None,
        number: Callable[[int], int] = int,
        max_nodes: int = 200,
    ) -> tuple[int, int]:
        """Draw the tree of a class of the top level, its root on top; return how many leaves and levels it has.

        Leaves are at 0, 1, … from the left, nodes of depth d at -d: limits and size of the axes are the caller's.

        Args:
            axes: of matplotlib.
            tree: the class.
            label: text for a node's key, default the number itself.
            edge_label: text for an arc's key; default none.
            number: of a key's colour, of which there are 20; default the key itself.
            max_nodes: of the tree, default 200.

        Raises:
            G2MError: on a class that is not there, or a larger tree.
        """
        import networkx as nx
        from matplotlib import colormaps

        forest = self.unroll([tree], max_nodes=max_nodes)
        arcs = [(parent, child) for child, parent in forest.edge_index.T.tolist()]
        graph = nx.DiGraph()
        graph.add_nodes_from(range(len(forest.key)))
        graph.add_edges_from(arcs)
        place, leaf = {}, count()
        for node in nx.dfs_postorder_nodes(graph, 0):  # leaves side by side, a parent over the middle of its children
            across = [place[child][0] for child in graph[node]]
            place[node] = (sum(across) / len(across) if across else next(leaf), -int(forest.depth[node]))
        nx.draw_networkx_edges(graph, place, ax=axes, edge_color="0.6", arrows=False)
        colours = [colormaps["tab20"](number(int(key)) % 20) for key in forest.key]
        nx.draw_networkx_nodes(graph, place, ax=axes, node_size=220, node_color=colours, edgecolors="0.3")
        texts = {i: label(int(key)) for i, key in enumerate(forest.key)}
        nx.draw_networkx_labels(graph, place, texts, ax=axes, font_size=8)
        if edge_label is not None:
            texts = {arc: edge_label(int(key)) for arc, key in zip(arcs, forest.edge_key, strict=True)}
            nx.draw_networkx_edge_labels(graph, place, texts, ax=axes, font_size=7, rotate=False)
        return next(leaf), int(forest.depth.max()) + 1

    def _top(self, classes: Array) -> np.ndarray:
        classes, known = np.atleast_1d(_numpy(classes)), len(self.levels[-1])
        if len(classes) and not 0 <= classes.min() <= classes.max() < known:
            raise G2MError(
                f"classes: expected classes of {self.num_hops} hops in 0 … {known - 1} "
                f"(got {classes.min()} … {classes.max()}). For those of fewer hops, truncate first."
            )
        return classes.astype(np.int64)

    def __repr__(self) -> str:
        return f"ClassDAG(num_hops={self.num_hops}, num_classes={self.num_classes}, num_cells={self.num_cells})"


# -- per graph, and in sum ---------------------------------------------------------------------------------------------


def graph_sets(
    classes: TreeClasses, graph_index: Array, num_graphs: int | None = None, *, num_hops: int | None = None
) -> csr_array:
    """Return how many nodes of each class every graph has, as a matrix ``[num_graphs, K]`` of integers.

    Args:
        classes: of all nodes.
        graph_index: graph ``[N]`` of every node, as ``batch`` of a PyG batch.
        num_graphs: default the largest ``graph_index`` + 1; a graph without nodes is a row without entries.
        num_hops: of the classes, default the most there are.

    Raises:
        G2MError: on any of the above not holding.
    """
    level = classes.num_hops if num_hops is None else _check_hops(num_hops, classes.num_hops)
    graph_index = _numpy(graph_index)
    if graph_index.shape != (classes.num_nodes,) or graph_index.dtype.kind not in "iu":
        raise G2MError(
            f"graph_index: expected integers of shape [{classes.num_nodes}], one per node "
            f"(got {graph_index.dtype} of shape {graph_index.shape})."
        )
    least = int(graph_index.max()) + 1 if len(graph_index) else 0
    num_graphs = least if num_graphs is None else check_whole("num_graphs", num_graphs, least)
    if len(graph_index) and graph_index.min() < 0:
        raise G2MError(f"graph_index: expected numbers from 0 (got {graph_index.min()}).")
    one = np.ones(classes.num_nodes, np.int64)
    entries = (one, (graph_index, _numpy(classes.levels[level])))
    return coo_array(entries, (num_graphs, classes.num_classes[level])).tocsr()


class Repetition(NamedTuple):
    """How often trees of one depth repeat."""

    num_hops: int
    num_nodes: int
    num_classes: int
    num_singletons: int  #: classes of one node
    cover: tuple[int, int, int]  #: how many of the most frequent classes hold 50, 80 and 90 % of the nodes
    mean_size: float  #: nodes of a tree unrolled, over all nodes
    max_size: float
    top_support: float | None  #: share of the graphs that have the class which most graphs have

    @property
    def repeated(self) -> float:
        """Share of the nodes whose tree is that of another node too."""
        return 1 - self.num_singletons / max(self.num_nodes, 1)

    @property
    def works(self) -> bool:
        """Whether sets of trees can be frequent at all: fewer than 90 % of the nodes have a tree of their own."""
        return self.num_nodes > 0 and self.num_singletons < HOPELESS * self.num_nodes


def _hops(level: Repetition) -> str:
    return f"{level.num_hops} hop{'s' * (level.num_hops != 1)}"


class Inspection(NamedTuple):
    """Repetition of trees by number of hops, from 0; as text, a table and a verdict."""

    levels: tuple[Repetition, ...]

    @property
    def works(self) -> bool:
        """Whether Mirage can work with the deepest trees."""
        return self.levels[-1].works

    @property
    def verdict(self) -> str:
        """What that means for sets of trees, in a sentence or two."""
        last = self.levels[-1]
        where, share = f"with {_hops(last)}", f"{1 - last.repeated:.0%} of the nodes have a tree of their own"
        if not last.num_nodes:
            return "There are no nodes: Mirage has nothing to work on."
        if last.works:
            support = "" if last.top_support is None else f" The commonest is in {last.top_support:.0%} of the graphs."
            return f"Trees repeat {where}: {share}; {last.cover[0]:,} of {last.num_classes:,} hold half.{support}"
        fewer = [level for level in self.levels[1:-1] if level.works]
        advice = f"{_hops(fewer[-1])} ({fewer[-1].repeated:.0%} of the nodes repeat) or " if fewer else ""
        return (
            f"Mirage cannot work {where}: {share}, so no set of trees is frequent. "
            f"Take {advice}whole graphs: 'herding', 'kcenter' or 'random'."
        )

    def __str__(self) -> str:
        head = ("hops", "classes", "singletons", "repeat", "50 / 80 / 90 % of nodes in", "nodes a tree", "largest")
        rows = [
            (
                f"{level.num_hops}",
                f"{level.num_classes:,}",
                f"{level.num_singletons:,}",
                f"{level.repeated:.1%}",
                " / ".join(f"{number:,}" for number in level.cover),
                f"{level.mean_size:,.1f}",
                f"{level.max_size:,.0f}",
                *(() if level.top_support is None else (f"{level.top_support:.1%}",)),
            )
            for level in self.levels
        ]
        rows.insert(0, head if len(rows[0]) == len(head) else (*head, "graphs with the commonest"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([f"{self.levels[-1].num_nodes:,} nodes", *lines, self.verdict])


def inspect(classes: TreeClasses, graph_index: Array | None = None) -> Inspection:
    """Count how often trees repeat, and say whether sets of trees can stand for the graphs.

    Args:
        classes: of the nodes of all graphs.
        graph_index: graph ``[N]`` of every node; default: the share of graphs with the commonest tree is not counted.

    Raises:
        G2MError: if ``graph_index`` is not one integer per node.
    """
    dag, levels = classes.dag, []
    for num_hops, (counts, sizes) in enumerate(zip(dag.counts, dag.sizes, strict=True)):
        held = np.sort(counts)[::-1].cumsum()
        support = None
        if graph_index is not None and classes.num_nodes:
            sets = graph_sets(classes, graph_index, num_hops=num_hops)
            graphs = len(np.unique(_numpy(graph_index)))
            support = float(np.bincount(sets.indices).max() / graphs)
        levels.append(
            Repetition(
                num_hops,
                classes.num_nodes,
                len(counts),
                int((counts == 1).sum()),
                tuple(
                    min(len(held), int(np.searchsorted(held, share * classes.num_nodes)) + 1)
                    for share in (0.5, 0.8, 0.9)
                ),
                float(sizes @ counts / max(classes.num_nodes, 1)),
                float(sizes.max(initial=0)),
                support,
            )
        )
    return Inspection(tuple(levels))
