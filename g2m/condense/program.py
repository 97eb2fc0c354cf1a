"""What message passing computes on a set of graphs, level by level, each distinct row once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from g2m.batches import to_device
from g2m.condense.trees import ClassDAG, RowKeys, TreeKeys, graph_sets, tree_classes
from g2m.errors import G2MError, check_whole
from g2m.graphs import Graphs
from g2m.sparse import CSR


@dataclass(frozen=True, eq=False)
class Hop:
    """One round of messages: R rows read P distinct messages, each from one of S rows of the level below.

    Attributes:
        count: ``[R, P]``, how many of each message reach each row.
        own: row below that is the row itself ``[R]``; ``None``: row r is row r.
        source: row below that a message is from ``[P]``; ``None``: message p is from row p.
        edge: key of the arc that a message came by ``[P]``; ``None``: arcs are all alike.
        degree_below: arcs into each row below ``[S]``; ``None``: not known, as of leaves of a tree.
    """

    count: CSR
    own: Tensor | None = None
    source: Tensor | None = None
    edge: Tensor | None = None
    degree_below: Tensor | None = None

    @cached_property
    def degree(self) -> Tensor:
        """Arcs into each row ``[R]``."""
        return _row_sums(self.count)

    @cached_property
    def _adjacencies(self) -> dict[tuple, CSR]:
        return {}

    def read(self, x: Tensor, edge: Tensor | None) -> Tensor:
        """Return what a convolution reads: the rows themselves, then the messages, ``[R + P, H]``.

        ``edge``: vectors of the arc keys ``[K, H]``; a message is ReLU(x + edge), as in GINE and OGB's GCN.
        """
        if self.own is None and self.source is None:
            return x
        own = x if self.own is None else x.index_select(0, self.own)
        message = x if self.source is None else x.index_select(0, self.source)
        if self.edge is not None and edge is not None:
            message = torch.relu(message + edge.index_select(0, self.edge))
        return torch.cat([own, message])

    def adjacency(self, loops: float, normalise: str) -> CSR:
        """Return the weights ``[R, R + P]`` of what :meth:`read` gives; made once and kept.

        Args:
            loops: how often a row counts among its own messages; 0: not at all.
            normalise: ``"none"``; ``"mean"``: by the number of messages; ``"symmetric"``: by the roots of both degrees.

        Raises:
            G2MError: if ``"symmetric"`` needs degrees that are not known.
        """
        if (loops, normalise) not in self._adjacencies:
            self._adjacencies[loops, normalise] = self._weigh(loops, normalise)
        return self._adjacencies[loops, normalise]

    def _weigh(self, loops: float, normalise: str) -> CSR:
        count, rows = self.count, self.count.shape[0]
        row, col, value = count.row_of_entry(), count.col.long(), count.value
        degree = self.degree + loops
        loop = torch.full_like(degree, loops)
        if normalise == "mean":
            value, loop = value / degree[row], loop / degree
        elif normalise == "symmetric":
            if self.degree_below is None:
                raise G2MError(
                    "num_hops: expected trees of one hop more than the network has layers, or keys with "
                    "degree=True: it divides by the degrees of neighbours, and a tree's leaves have lost theirs. "
                    "Take backbone='gin', 'sage' or 'gat', which need neither."
                )
            below = (self.degree_below if self.source is None else self.degree_below[self.source]) + loops
            value, loop = value * (degree[row] * below[col]).rsqrt(), loop / degree
        shared = self.own is None and self.source is None  # then rows and messages are one and the same
        shape = (rows, count.shape[1] if shared else rows + count.shape[1])
        col = col if shared else col + rows
        if not loops:
            return CSR(count.crow, col.to(count.col.dtype), value, shape)
        here = torch.arange(rows, device=row.device)
        crow = count.crow.long() + torch.arange(rows + 1, device=row.device)
        place = torch.arange(len(row), device=row.device) + row + 1  # a loop comes first in its row
        cols, values = count.col.new_empty(len(row) + rows), value.new_empty(len(row) + rows)
        cols[crow[:-1]], values[crow[:-1]] = here.to(cols.dtype), loop
        cols[place], values[place] = col.to(cols.dtype), value
        return CSR(crow.to(count.crow.dtype), cols, values, shape)

    def rows(self, rows: Tensor) -> tuple[Hop, Tensor]:
        """Return the hop of some of its rows, ascending, and the rows below that it reads, ascending."""
        count = self.count.rows(rows)
        own = rows if self.own is None else self.own[rows]
        if self.source is None:
            below = torch.cat([own, count.col.long()]).unique()
            source, edge, num_messages = None, None, len(below)
            col = torch.searchsorted(below, count.col.long())
        else:
            message, col = count.col.unique(return_inverse=True)
            message, num_messages = message.long(), len(message)
            source, edge = self.source[message], None if self.edge is None else self.edge[message]
            below = torch.cat([own, source]).unique()
            source = torch.searchsorted(below, source)
        own = None if len(below) == len(own) and torch.equal(below, own) else torch.searchsorted(below, own)
        count = CSR(count.crow, col.to(count.col.dtype), count.value, (len(rows), num_messages))
        degree = None if self.degree_below is None else self.degree_below[below]
        return Hop(count, own, source, edge, degree), below

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Hop:
        parts = (self.count, self.own, self.source, self.edge, self.degree_below)
        return Hop(*(_moved(part, device, dtype) for part in parts))


@dataclass(frozen=True, eq=False)
class Program:
    """All that a network of L layers computes for G graphs, or bags of trees: what ``GraphGNN`` is called with.

    Attributes:
        x: distinct attributes of nodes ``[U, F]``.
        key: which of them each row at the bottom has ``[R_0]``.
        edge_attr: distinct attributes of arcs ``[K, D]``, or ``None``.
        hops: L of them, from the bottom up.
        pool: ``[G, R_L]``, how often each row at the top is in each graph.
    """

    x: Tensor
    key: Tensor
    edge_attr: Tensor | None
    hops: tuple[Hop, ...]
    pool: CSR

    def __len__(self) -> int:
        return len(self.pool)

    @property
    def num_layers(self) -> int:
        return len(self.hops)

    @property
    def num_rows(self) -> tuple[int, ...]:
        """Rows computed at each level, from the bottom."""
        return (len(self.key), *(len(hop.count) for hop in self.hops))

    @cached_property
    def sizes(self) -> Tensor:
        """Nodes of each graph ``[G]``; of a bag, the sum of its weights."""
        return _row_sums(self.pool)

    @cached_property
    def weights(self) -> tuple[Tensor, ...]:
        """For every level above the bottom, how many nodes of the graphs each row stands for ``[R]``."""
        column = torch.zeros(self.pool.shape[1], dtype=self.pool.value.dtype, device=self.pool.value.device)
        weights = [column.index_add_(0, self.pool.col.long(), self.pool.value)]
        for hop, below in zip(self.hops[:0:-1], self.hops[-2::-1], strict=True):
            if hop.own is None:
                weights.append(weights[-1])
            else:
                weights.append(weights[-1].new_zeros(len(below.count)).index_add_(0, hop.own, weights[-1]))
        return tuple(weights[::-1])

    def of(self, graphs: Tensor) -> Program:
        """Return the program of some of the graphs: what they need, and no more."""
        pool = self.pool.rows(graphs)
        rows, col = pool.col.unique(return_inverse=True)
        pool = CSR(pool.crow, col.to(pool.col.dtype), pool.value, (len(graphs), len(rows)))
        rows, hops, made = rows.long(), [], {}
        for hop in self.hops[::-1]:
            # Ordinary graphs have one hop for all layers, whose rows read no others: it is cut once.
            part, below = made[id(hop)] if id(hop) in made else made.setdefault(id(hop), hop.rows(rows))
            rows = below
            hops.append(part)
        return Program(self.x, self.key[rows], self.edge_attr, tuple(hops[::-1]), pool)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Program:
        """Return the program on another device, or with another type of floating-point numbers."""
        hops: dict[int, Hop] = {}
        for hop in self.hops:
            if id(hop) not in hops:
                hops[id(hop)] = hop.to(device, dtype)
        x, key, edge_attr, pool = (
            _moved(part, device, dtype) for part in (self.x, self.key, self.edge_attr, self.pool)
        )
        return Program(x, key, edge_attr, tuple(hops[id(hop)] for hop in self.hops), pool)

    # -- what programs are made of ---------------------------------------------------------------------------------

    @classmethod
    def of_graphs(cls, graphs: Graphs, num_layers: int, *, share: bool = True, degrees: bool = False) -> Program:
        """Return the program of ordinary graphs; a loop among their arcs counts beside the one a network may add.

        Args:
            graphs: of which nodes without attributes have their degree as one, an integer.
            num_layers: of the network, from 1.
            share: compute nodes that no network of so many layers can tell apart once (default): the same answers, up
                to rounding, and gradients; ``False``: one row per node.
            degrees: whether the network divides by the degrees of neighbours, so that those are told apart as well.
        """
        check_whole("num_layers", num_layers)
        if not share or not graphs.num_nodes:
            return cls._by_node(graphs, num_layers)
        keys = TreeKeys(degree=degrees).fit(graphs)
        node_key, edge_key = keys.transform(graphs)
        classes = tree_classes(graphs.edge_index, node_key, edge_key, num_hops=num_layers)
        pool = graph_sets(classes, graphs.batch, len(graphs))
        return cls.of_trees(classes.dag, pool, num_layers, degrees=degrees, **attributes(keys))

    @classmethod
    def _by_node(cls, graphs: Graphs, num_layers: int) -> Program:
        num_nodes = graphs.num_nodes
        (source, target), attr = graphs.edge_index, graphs.edge_attr
        degree = torch.bincount(target, minlength=num_nodes)
        x = degree[:, None] if graphs.x is None else graphs.x
        keys = RowKeys().fit(x) if num_nodes else None
        key = torch.from_numpy(keys.transform(x)) if num_nodes else degree
        col, rows, edge, edge_attr = source, None, None, None
        if attr is not None and len(attr):
            arcs = RowKeys().fit(attr)
            edge_attr = torch.from_numpy(arcs.features_)
            pair = source * arcs.num_keys + torch.from_numpy(arcs.transform(attr))
            pair, col = pair.unique(return_inverse=True)
            rows, edge = pair // arcs.num_keys, pair % arcs.num_keys
        num_messages = num_nodes if rows is None else len(rows)
        count = CSR.from_coo(target, col, torch.ones(len(col)), (num_nodes, num_messages))
        hop = Hop(count, None, rows, edge, degree.float())
        pool = CSR(graphs.ptr.int(), torch.arange(num_nodes).int(), torch.ones(num_nodes), (len(graphs), num_nodes))
        return cls(x if keys is None else torch.from_numpy(keys.features_), key, edge_attr, (hop,) * num_layers, pool)

    @classmethod
    def of_trees(
        cls,
        dag: ClassDAG,
        pool: csr_array,
        num_layers: int,
        *,
        x: Tensor,
        edge_attr: Tensor | None = None,
        node_degree: Tensor | None = None,
        degrees: bool = False,
    ) -> Program:
        """Return the program of bags of trees.

        Args:
            dag: the classes of the trees.
            pool: ``[G, K]``, how often each class of the deepest level is in each bag.
            num_layers: of the network, from 1; the trees are cut to as many hops.
            x: attributes that the keys of nodes stand for ``[U, F]``.
            edge_attr: attributes that the keys of arcs stand for ``[D, …]``; default: arcs are all alike.
            node_degree: degrees that the keys of nodes stand for ``[U]``; default: they stand for none.
            degrees: whether the network divides by the degrees of neighbours: then one hop more stays if keys have
                none.

        Raises:
            G2MError: if the trees have fewer hops than that takes.
        """
        num_hops = check_whole("num_layers", num_layers) + (degrees and node_degree is None)
        if dag.num_hops < num_hops:
            extra = " and one more, for the degrees of neighbours" if num_hops > num_layers else ""
            raise G2MError(
                f"hops: expected trees of at least {num_hops}, as many as layers{extra} (got {dag.num_hops}). "
                "Condense with more hops, or take fewer layers."
            )
        pool = coo_array(pool)
        top = dag.below(pool.coords[1], num_hops) if num_hops < dag.num_hops else pool.coords[1]
        start, levels = num_hops - num_layers, dag.levels
        shape = (pool.shape[0], len(levels[num_hops]))
        pool = _csr(csr_array(coo_array((pool.data, (pool.coords[0], top)), shape)))
        hops, arcs = [], None if edge_attr is None else len(edge_attr)
        below = torch.from_numpy(node_degree.numpy()[levels[0].key]).float() if node_degree is not None else None
        for depth in range(1, num_hops + 1):
            level, size = levels[depth], len(levels[depth - 1])
            col, source, edge = level.child, None, None
            if arcs is not None:
                pair, col = np.unique(level.edge_key * size + level.child, return_inverse=True)
                source, edge = (torch.from_numpy(part) for part in (pair % size, pair // size))
            shape = (len(level), size if source is None else len(source))
            count = _csr(csr_array((level.multiplicity, col, level.crow), shape))
            hop = Hop(count, torch.from_numpy(level.below), source, edge, below)
            below = hop.degree
            hops.append(hop)
        return cls(x, torch.from_numpy(levels[start].key), edge_attr, tuple(hops[start:]), pool)


def attributes(keys: TreeKeys) -> dict[str, Tensor | None]:
    """Return what keys stand for, as :meth:`Program.of_trees` takes it."""
    known = np.arange(keys.nodes.num_keys)
    arcs = None if keys.edge_ == "constant" else keys.decode_edges(np.arange(keys.edges.num_keys))
    return {"x": keys.decode_nodes(known), "edge_attr": arcs, "node_degree": keys.decode_degrees(known)}


def _csr(matrix: csr_array) -> CSR:
    parts = (matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data.astype(np.float32))
    return CSR(*map(torch.from_numpy, parts), matrix.shape)


def _row_sums(matrix: CSR) -> Tensor:
    sums = matrix.value.new_zeros(len(matrix))
    return sums.index_add_(0, matrix.row_of_entry(), matrix.value)


def _moved(part: Any, device: torch.device | str | None, dtype: torch.dtype | None) -> Any:
    """Return a tensor or matrix on a device, its floating-point numbers of a type; anything else as it is."""
    if dtype is not None and isinstance(part, CSR):
        part = part.with_value(part.value.to(dtype))
    if dtype is not None and isinstance(part, Tensor) and part.is_floating_point():
        part = part.to(dtype)
    return part if device is None else to_device(part, device)
