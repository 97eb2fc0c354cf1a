"""What condensation is measured against: training graphs drawn or picked, and graphs learned by gradient matching.

Each function takes training graphs and a budget in bytes, and returns as many graphs as fit it by the account of
:class:`~g2m.condense.condensed.CondensedSet`. The first three order the training graphs and keep the longest prefix.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_array, hstack
from torch import Tensor, nn
from torch.nn import functional as F

from g2m.condense.condensed import CondensedSet
from g2m.condense.trees import RowKeys, TreeKeys, graph_sets, tree_classes
from g2m.errors import G2MError, check_range, check_seed, check_whole
from g2m.graphs import Graphs
from g2m.sparse import CSR
from g2m.train import seeded

MAX_KEYS = 512  # distinct attributes that a learned node chooses from
MAX_LOGITS = 2**24  # of all learned nodes together
SPARE = 1.05  # budget that learned graphs start from: they may shrink, and the last are dropped if they do not
SWAPPED = 0.05  # share of the edges that are elsewhere in what is drawn first
KEY_LOGIT = 2.0  # of a node's first key; the others have 0
_MEASURED = 8  # networks by which learned graphs are compared with those they started from
_CPU = torch.device("cpu")
Operators = tuple[Tensor, Tensor | CSR, Tensor | CSR]  # of one graph or many: attributes, sum over neighbours, mean


def random_graphs(graphs: Graphs, *, budget: int, num_hops: int, seed: int) -> CondensedSet:
    """Return training graphs drawn at random, classes in proportion, as many as fit the budget.

    Args:
        graphs: the training graphs, each with a class, or with labels of several tasks. Those with no label known are
            left out, and those so large that there would be no room for one of each class.
        budget: bytes, from 1: the most that ``nbytes().raw`` of the set may be.
        num_hops: has no effect.
        seed: of the draw, from 0.

    Raises:
        G2MError: if a graph has no class, if not even one graph of each class fits, or on an argument out of its range.
    """
    _check(budget, num_hops, seed)
    return _fill(graphs, np.random.default_rng(seed).permutation, budget)


def herding(graphs: Graphs, *, budget: int, num_hops: int, seed: int) -> CondensedSet:
    """Return the training graphs whose mean follows that of their class best, one by one (Welling, ICML 2009).

    The mean is of WL histograms: how many nodes of each class of trees of 0 to ``num_hops`` hops a graph has, scaled to
    length 1. Classes come in proportion; all tasks together are one.

    Args:
        graphs: see :func:`random_graphs`.
        budget: see :func:`random_graphs`.
        num_hops: of the largest trees counted, from 0.
        seed: has no effect: nothing is drawn.

    Raises:
        G2MError: as :func:`random_graphs`, and if no graph has a node.
    """
    _check(budget, num_hops, seed)
    vectors = _histograms(graphs, num_hops)
    return _fill(graphs, lambda ids: (ids[i] for i in _herd(vectors[ids])), budget)


def kcenter(graphs: Graphs, *, budget: int, num_hops: int, seed: int) -> CondensedSet:
    """Return the training graph nearest the mean of its class, then those farthest from all before (k-center greedy).

    As in Sener & Savarese (ICLR 2018), by the distance of the WL histograms that :func:`herding` takes.

    Args:
        graphs: see :func:`random_graphs`.
        budget: see :func:`random_graphs`.
        num_hops: of the largest trees counted, from 0.
        seed: has no effect: nothing is drawn.

    Raises:
        G2MError: as :func:`herding`.
    """
    _check(budget, num_hops, seed)
    vectors = _histograms(graphs, num_hops)
    return _fill(graphs, lambda ids: (ids[i] for i in _spread(vectors[ids])), budget)


# -- an order of the graphs, and how many of them fit ------------------------------------------------------------------


def _check(budget: int, num_hops: int, seed: int) -> None:
    check_whole("budget", budget)
    check_whole("num_hops", num_hops, 0)
    check_seed(seed)


def _groups(graphs: Graphs) -> list[np.ndarray]:
    """Return the ids of the graphs of each class, by class; of several tasks, of all that have a label."""
    y = graphs.y.numpy()
    if y.ndim == 1 and (y < 0).any():
        raise G2MError(
            f"graphs: expected training graphs with a class each (got {(y < 0).sum()} without, the first is graph "
            f"{(y < 0).argmax()}). Take graphs.subset(graphs.part('train'))."
        )
    groups = [np.flatnonzero(y == c) for c in np.unique(y)] if y.ndim == 1 else [np.flatnonzero(~np.isnan(y).all(1))]
    if not len(groups[0]):
        raise G2MError("graphs: expected a label in at least one task of one graph (got none). Label some.")
    return groups


def _rough_bytes(graphs: Graphs) -> Tensor:
    """Return about what each graph takes ``[G]``: its nodes' keys, if they differ, and two ends an edge of two arcs."""
    nodes, arcs = graphs.ptr.diff(), graphs.edge_ptr.diff()
    keys = graphs.x is not None and bool((graphs.x != graphs.x[:1]).any())
    return nodes * keys + arcs * (1 + (nodes > 256))


def _interleaved(groups: list[np.ndarray], arrange: Callable[[np.ndarray], Iterable[int]]) -> Iterator[int]:
    """Yield one graph of each class, then always of that which has fallen behind its share most.

    ``arrange`` orders the ids of a class. It may be lazy: it is asked for no more than is taken.
    """
    queues, sizes = [iter(arrange(ids)) for ids in groups], np.array([*map(len, groups)])
    taken = np.zeros(len(groups))
    for step in range(sizes.sum()):
        due = step if step < len(groups) else int((sizes * (step + 1) / sizes.sum() - taken).argmax())
        taken[due] += 1
        yield int(next(queues[due]))


def _fill(
    graphs: Graphs, arrange: Callable[[np.ndarray], Iterable[int]], budget: int, spare: float = 1.0
) -> CondensedSet:
    """Return the longest prefix of an order of the graphs that fits ``spare`` budgets, found by bisection.

    If the first of each class do not fit, smaller graphs are ordered in their place.
    """
    groups, rough = _groups(graphs), _rough_bytes(graphs).numpy()

    def part(ids: list[int]) -> CondensedSet:
        some = graphs.subset(ids).with_split({})
        return CondensedSet(some, some.y, torch.ones(some.y.shape))

    def size(ids: list[int]) -> int:
        return part(ids).nbytes().raw

    first, least, limit = len(groups), max(rough[ids].min() for ids in groups), budget / len(groups)
    while limit >= least:
        ids, total = [], 0
        for i in _interleaved([ids[rough[ids] <= limit] for ids in groups], arrange):
            ids.append(i)
            total += rough[i]
            if total > 2 * budget and len(ids) > first:  # numbers that are all the same are stored once
                break
        # Bisection ends behind a prefix that was measured and fits, even where a longer one is smaller.
        ends = range(first, len(ids) + 1)
        fitting = bisect_right(ends, spare * budget, key=lambda end: size(ids[:end]))
        if fitting:
            return part(ids[: ends[fitting - 1]])
        if limit == least:
            break
        limit = max(0.8 * min(limit, rough[ids[:first]].max()), least)
    smallest = [ids[rough[ids].argmin()] for ids in groups]
    if (needed := size(smallest)) > budget:
        raise G2MError(
            f"budget: expected {needed} bytes or more, for a small graph of each class (got {budget}). Raise it."
        )
    return part(smallest)


def _histograms(graphs: Graphs, num_hops: int) -> csr_array:
    """Return counts of tree classes of 0 to ``num_hops`` hops ``[G, F]``, rows of length 1, or 0 of no node."""
    classes = tree_classes(graphs.edge_index, *TreeKeys().fit(graphs).transform(graphs), num_hops=num_hops)
    hops = range(num_hops + 1)
    counts = hstack([graph_sets(classes, graphs.batch, len(graphs), num_hops=hop) for hop in hops], "csr", np.float64)
    counts.data /= np.sqrt(counts.multiply(counts).sum(1)).repeat(np.diff(counts.indptr))
    return counts


def _products(vectors: csr_array) -> tuple[np.ndarray, Callable[[int], np.ndarray]]:
    """Return the inner products ``[N]`` of all rows with their mean, and a function that gives those with one row."""
    columns = vectors.T.tocsr()  # of which one row reads no more than those it has
    return vectors @ vectors.mean(0), lambda row: (vectors[[row]] @ columns).toarray()[0]


def _herd(vectors: csr_array) -> Iterator[int]:
    wanted, products = _products(vectors)
    score = wanted.copy()  # of the (k + 1)-fold mean less the k rows taken
    for _ in range(vectors.shape[0]):
        row = int(score.argmax())
        yield row
        score += wanted - products(row)
        score[row] = -np.inf


def _spread(vectors: csr_array) -> Iterator[int]:
    wanted, products = _products(vectors)
    squares = vectors.multiply(vectors).sum(1)
    row, distance = int((squares - 2 * wanted).argmin()), np.full(vectors.shape[0], np.inf)
    for _ in range(vectors.shape[0]):
        yield row
        distance = np.minimum(distance, squares + squares[row] - 2 * products(row))
        distance[row] = -np.inf
        row = int(distance.argmax())


# -- graphs that are learned -------------------------------------------------------------------------------------------


def check_doscond(
    steps: int, batch_size: int, lr_edges: float, lr_nodes: float, sparsity: float, max_nodes: int
) -> None:
    """Refuse values of options that :func:`doscond` does not have."""
    for name, value in {"steps": steps, "batch_size": batch_size, "max_nodes": max_nodes}.items():
        check_whole(name, value)
    for name, value in {"lr_edges": lr_edges, "lr_nodes": lr_nodes}.items():
        check_range(name, value, 0, open_low=True)
    check_range("sparsity", sparsity, 0)


def doscond(
    graphs: Graphs,
    *,
    budget: int,
    num_hops: int,
    seed: int,
    steps: int = 100,
    batch_size: int = 64,
    lr_edges: float = 0.2,
    lr_nodes: float = 0.05,
    sparsity: float = 0.1,
    max_nodes: int = 300,
) -> CondensedSet:
    """Return graphs learned by one-step gradient matching, in the manner of DosCond (Jin et al., KDD 2022).

    They start as random training graphs, classes in proportion. Each step draws a new network, and moves the chance of
    every edge and the attributes of every node so that its gradients on the graphs of a class come nearer to those on a
    batch of training graphs of that class; several tasks together are one class. The network is not trained.

    Unlike the reference: the network is a GIN and sees how many neighbours there are; gradients summed over classes are
    matched as well; graphs keep the sizes they start with; attributes are chosen among those of the training graphs (of
    more than 512, those at the start and the most frequent), so that they are stored as keys. Edges are undirected,
    without loops, and all have the arc attributes that are most frequent in training.

    Args:
        graphs: see :func:`random_graphs`.
        budget: see :func:`random_graphs`. Graphs at the end are dropped if they do not fit with the edges learned.
        num_hops: layers of the network, at least 1.
        seed: of all that is drawn, from 0. The caller's random streams are untouched.
        steps: from 1, default 100.
        batch_size: graphs of a class a step, of those learned too; from 1, default 64.
        lr_edges: Adam's learning rate of the edges' logits, above 0, default 0.2; it falls to 0 linearly.
        lr_nodes: likewise of the attributes' logits, default 0.05.
        sparsity: weight of the edges by which graphs outgrow their start, relative to it, from 0; default 0.1.
        max_nodes: graphs with more nodes are no start of learned ones, from 1; default 300. Batches may hold them.

    Returns:
        a set with ``matching_loss_first`` and ``matching_loss_last`` in ``meta``: mean cosine distance of gradients, in
        [0, 2], of the graphs at the start and of those returned, by the same networks and batches.

    Raises:
        G2MError: as :func:`random_graphs`, and if a class has no graph of ``max_nodes`` nodes or fewer.
    """
    _check(budget, num_hops, seed)
    check_doscond(steps, batch_size, lr_edges, lr_nodes, sparsity, max_nodes)
    sizes = graphs.ptr.diff()
    if (smallest := max(int(sizes[ids].min()) for ids in _groups(graphs))) > max_nodes:
        raise G2MError(
            f"max_nodes: expected {smallest} or more, for a graph of each class (got {max_nodes}). Raise it."
        )
    small = graphs.subset(sizes <= max_nodes)
    small = replace(small, edge_attr=_commonest(graphs, small.num_edges))
    start = _fill(small, np.random.default_rng(seed).permutation, budget, SPARE).content
    keys = None if graphs.x is None else RowKeys().fit(graphs.x)
    real, start, table = _keyed(graphs, keys), _keyed(start, keys), _table(keys)
    outputs = graphs.num_tasks if graphs.y.dim() == 2 else graphs.num_classes

    def drawn(groups: list[np.ndarray]) -> list[Tensor]:
        return [torch.from_numpy(ids)[torch.randperm(len(ids))[:batch_size]] for ids in groups]

    def distance(synthetic: Callable[[Tensor], Operators], like: Graphs, **options: bool) -> Tensor:
        """Return that of a new network's gradients on training graphs and on synthetic ones labelled as ``like``."""
        network = _Network(table.size(1), outputs, max(num_hops, 1))
        batches = map(real.subset, drawn(_groups(real)))
        wanted = [network.gradients(_sparse(batch, table), batch.y) for batch in batches]
        found = [network.gradients(synthetic(ids), like.y[ids], **options) for ids in drawn(_groups(like))]
        return _gradient_distance(found, wanted)

    def measured(some: Graphs) -> float:
        losses = []
        for number in range(_MEASURED):
            with seeded(seed + number, _CPU):
                losses.append(float(distance(lambda ids: _sparse(some.subset(ids), table), some)))
        return sum(losses) / len(losses)

    with seeded(seed, _CPU):
        synthetic = _Synthetic(start, real, table)
        rates = [{"params": [synthetic.edges], "lr": lr_edges}, {"params": [synthetic.nodes], "lr": lr_nodes}]
        optimizer = torch.optim.Adam(rates)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = distance(synthetic, start, create_graph=True) + sparsity * synthetic.growth()
            loss.backward(inputs=[synthetic.edges, synthetic.nodes])
            optimizer.step()
            schedule.step()
    learned = synthetic.graphs()
    decoded = _decoded(learned, keys, _commonest(graphs, learned.num_edges))
    made = _fill(decoded, iter, budget)
    last = measured(learned.subset(made.content.graph_id))
    return replace(made, meta={"matching_loss_first": measured(start), "matching_loss_last": last})


def _keyed(graphs: Graphs, keys: RowKeys | None) -> Graphs:
    """Return the graphs with the keys of attributes in their place ``[N, 1]``."""
    key = np.zeros(graphs.num_nodes, np.int64) if keys is None else keys.transform(graphs.x)
    return replace(graphs, x=torch.from_numpy(key)[:, None], graph_id=None)


def _decoded(keyed: Graphs, keys: RowKeys | None, edge_attr: Tensor | None) -> Graphs:
    """Return graphs with keys with the attributes that these stand for."""
    x = None if keys is None else torch.from_numpy(keys.decode(keyed.x[:, 0]))
    return replace(keyed, x=x, edge_attr=edge_attr)


def _commonest(graphs: Graphs, num_edges: int) -> Tensor | None:
    """Return the attributes that most arcs have, for so many arcs."""
    if graphs.edge_attr is None or not graphs.num_edges:
        return graphs.edge_attr
    rows, counts = graphs.edge_attr.unique(dim=0, return_counts=True)
    return rows[counts.argmax()].repeat(num_edges, 1)


def _table(keys: RowKeys | None) -> Tensor:
    """Return numbers for what keys stand for ``[K, D]``: columns of categories are one column per category."""
    if keys is None:
        return torch.ones(1, 1)
    rows = torch.from_numpy(keys.features_)
    if rows.is_floating_point():
        return rows
    return torch.cat([F.one_hot(column.unique(return_inverse=True)[1]) for column in rows.unbind(1)], 1).float()


def _sparse(graphs: Graphs, table: Tensor) -> Operators:
    """Return graphs with keys as one large one."""
    (source, target), num_nodes, sizes = graphs.edge_index, graphs.num_nodes, graphs.ptr.diff()
    adjacency = CSR.from_coo(target, source, torch.ones(len(source)), (num_nodes, num_nodes))
    mean = CSR(graphs.ptr, torch.arange(num_nodes), 1 / sizes[graphs.batch].float(), (len(graphs), num_nodes))
    return table[graphs.x[:, 0]], adjacency, mean


class _Network(nn.Module):
    """A GIN (Xu et al., ICLR 2019), pooled by the mean, on one sparse or many dense graphs.

    Pooled by the sum, logits of an untrained network grow with the graph: the largest have all of the gradient.
    """

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, channels: int = 64) -> None:
        super().__init__()
        widths = [in_channels, *[channels] * (num_layers - 1)]
        self.first = nn.ModuleList(nn.Linear(width, channels) for width in widths)
        self.second = nn.ModuleList(nn.Linear(channels, channels) for _ in widths)
        self.head = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor, adjacency: Tensor | CSR, mean: Tensor | CSR) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = F.relu(second(F.relu(first(x + adjacency @ x))))
        return self.head(mean @ x).flatten(0, -2)

    def gradients(self, operators: Operators, y: Tensor, **options: bool) -> tuple[Tensor, ...]:
        logits = self(*operators)
        if y.dim() == 1:
            loss = F.cross_entropy(logits, y)
        else:
            known = ~y.isnan()
            loss = F.binary_cross_entropy_with_logits(logits[known], y[known])
        return torch.autograd.grad(loss, [*self.parameters()], **options)


def _gradient_distance(found: list[tuple[Tensor, ...]], wanted: list[tuple[Tensor, ...]]) -> Tensor:
    """Return the mean cosine distance of gradients, weight by weight, of each class and summed over classes.

    On an untrained network the gradients of a class mostly say which class it is, whatever the graphs are. That cancels
    out in the sum, and what tells the classes apart is left.
    """
    pairs = [*zip(found, wanted, strict=True)]
    if len(pairs) > 1:
        pairs.append(tuple([sum(parts) for parts in zip(*some, strict=True)] for some in (found, wanted)))
    cosines = [
        F.cosine_similarity(a.flatten(), b.flatten(), dim=0) for pair in pairs for a, b in zip(*pair, strict=True)
    ]
    return 1 - torch.stack(cosines).mean()


class _Synthetic(nn.Module):
    """Graphs with a chance for each edge and each key of a node; drawn from when called with ids, as dense operators.

    Args:
        start: graphs with keys, that most of what is drawn at first agrees with.
        real: graphs whose keys nodes may have.
        table: what keys stand for ``[K, D]``.
    """

    def __init__(self, start: Graphs, real: Graphs, table: Tensor) -> None:
        super().__init__()
        self.start, sizes = start, start.ptr.diff()
        count = torch.bincount(real.x[:, 0], minlength=len(table))
        count[start.x[:, 0]] += real.num_nodes  # these come first
        room = MAX_LOGITS // max(start.num_nodes, 1)
        self.known = count.argsort(descending=True, stable=True)[: max(1, min(MAX_KEYS, room))]
        self.table = table[self.known]
        apart = torch.cdist(table[start.x[:, 0]], self.table, compute_mode="donot_use_mm_for_euclid_dist")
        self.nodes = nn.Parameter(KEY_LOGIT * F.one_hot(apart.argmin(1), len(self.known)).float())

        self.place = torch.arange(start.num_nodes) - start.ptr[start.batch]
        corners = zip(sizes.tolist(), start.ptr[:-1].tolist(), strict=True)
        pairs = torch.cat([torch.triu_indices(size, size, 1) + first for size, first in corners], 1)
        self.pairs = pairs if real.num_edges else pairs[:, :0]
        low, high = start.edge_index.sort(0).values
        linked = torch.isin(self.pairs[0] * start.num_nodes + self.pairs[1], low * start.num_nodes + high)
        self.graph = start.batch[self.pairs[0]]
        # As many edges come as go, whatever the size: with one chance for all, large graphs would fill up.
        edges = self._sums(linked.float())
        others = self._sums((~linked).float()).clamp(min=1)
        come = (SWAPPED * edges.clamp(min=1) / others).clamp(max=SWAPPED)[self.graph]
        self.edges = nn.Parameter(torch.where(linked, 1 - SWAPPED, come).logit())
        self.expected = self._sums(self.edges.detach().sigmoid()).clamp(min=1)

    def _sums(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(self.start)).index_add(0, self.graph, values)

    def growth(self) -> Tensor:
        """Return by how much the graphs have more edges than at the start, relative to that, in sum."""
        return F.relu(self._sums(self.edges.sigmoid()) / self.expected - 1).sum()

    def forward(self, ids: Tensor) -> Operators:
        sizes = self.start.ptr.diff()
        width, row = int(sizes[ids].max()), torch.full((len(self.start),), -1)
        row[ids] = torch.arange(len(ids))
        row = row[self.start.batch]
        node, pair = row >= 0, row[self.pairs[0]] >= 0
        cell = row * width + self.place
        soft = self.nodes[node].softmax(1)
        # Straight-through: the values are those of one key, one draw; the slopes those of the chances.
        hard = F.one_hot(soft.argmax(1), soft.size(1)) + soft - soft.detach()
        x = soft.new_zeros(len(ids) * width, self.table.size(1)).index_put((cell[node],), hard @ self.table)
        mean = soft.new_zeros(len(ids) * width).index_put((cell[node],), 1 / sizes[self.start.batch[node]].float())
        edges = self.edges[pair]
        soft = (edges + torch.rand_like(edges).logit(1e-6)).sigmoid()  # binary concrete (Maddison et al., ICLR 2017)
        link = (soft > 0.5) + soft - soft.detach()
        first, second = self.pairs[:, pair]
        adjacency = soft.new_zeros(len(ids) * width, width).index_put((cell[first], self.place[second]), link)
        adjacency = adjacency.view(len(ids), width, width)
        return x.view(len(ids), width, x.size(1)), adjacency + adjacency.mT, mean.view(len(ids), 1, width)

    def graphs(self) -> Graphs:
        """Return the likeliest graphs, with keys."""
        edge_index = self.pairs[:, self.edges > 0]
        edge_index, key = torch.cat([edge_index, edge_index.flip(0)], 1), self.known[self.nodes.argmax(1)]
        return replace(self.start, x=key[:, None], edge_index=edge_index, edge_attr=None)
