"""What a student reads of the graph beside the features: DeepWalk, which NOSMOG (Tian et al., ICLR 2023) gives its
students, and the means of rows that neighbours have.

A node that came later has no walks of its own: it takes the mean of its neighbours' rows (:func:`of_arcs`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torch_geometric.utils import coalesce, remove_self_loops

from g2m.errors import check_range, check_seed, check_whole
from g2m.graph import Graph

# Walks and skip-gram are our own: torch_geometric's Node2Vec walks with pyg-lib or torch-cluster alone, neither of
# which g2m may rely on, and gensim would be a dependency for these two functions.

CHUNK = 2**20  # steps of walks held at a time
BATCH = 3200  # steps of walks trained on at a time: their rows stay in cache
PIECE = 50  # walks longer than this are cut: scores are taken of all steps of a piece with all
NOISE = 64  # negatives drawn at a time


class Arcs(NamedTuple):
    """Where a walk may go: from node i to ``target[first[i] : first[i] + degree[i]]``, itself if it has no other."""

    first: Tensor
    degree: Tensor
    target: Tensor


# -- walks -----------------------------------------------------------------------------------------------------


def _arcs(edge_index: Tensor, num_nodes: int) -> Arcs:
    """Return the arcs of int64 ``[2, E]`` as walks follow them, without loops and repeats."""
    edge_index, _ = remove_self_loops(edge_index)
    stuck = torch.ones(num_nodes, dtype=torch.bool)
    stuck[edge_index[0]] = False
    stuck = stuck.nonzero().T
    edge_index = coalesce(torch.cat([edge_index, stuck.expand(2, -1)], 1), num_nodes=num_nodes)
    degree = torch.bincount(edge_index[0], minlength=num_nodes)
    return Arcs(degree.cumsum(0) - degree, degree, edge_index[1])


def _leave(arcs: Arcs) -> Tensor:
    """Return whether each node ``[N]`` has a way out."""
    return arcs.target[arcs.first] != torch.arange(len(arcs.first))


def _walk(arcs: Arcs, start: Tensor, walk_length: int, generator: Generator) -> Tensor:
    """Return the nodes ``[W, walk_length]`` of walks from ``start``, a step to any neighbour as likely."""
    walks = start.new_empty(walk_length, len(start))
    walks[0] = node = start
    for step in range(1, walk_length):
        # float64: in float32 the last of very many neighbours would never come, or one after it
        share = torch.rand(len(start), generator=generator, dtype=torch.float64)
        walks[step] = node = arcs.target[arcs.first[node] + (share * arcs.degree[node]).long()]
    return walks.T


def _visits(arcs: Arcs, walk_length: int) -> Tensor:
    """Return how often a walk from every node is expected at each ``[N]``, what stays where it is left out."""
    leave = _leave(arcs)
    mass = leave.double()
    visits = mass.clone()
    for _ in range(1, walk_length):
        share = (mass * leave / arcs.degree).repeat_interleave(arcs.degree)
        mass = torch.zeros_like(mass).index_add_(0, arcs.target, share)
        visits += mass
    return visits


# -- DeepWalk --------------------------------------------------------------------------------------------------


def deepwalk(
    graph: Graph,
    *,
    channels: int = 64,
    walk_length: int = 50,
    num_walks: int = 1,
    window: int = 5,
    epochs: int = 1,
    negatives: int = 5,
    lr: float = 0.1,
    seed: int = 0,
    standardise: bool = True,
) -> Tensor:
    """Return a position for every node: nodes that meet on random walks lie in the same direction.

    DeepWalk (Perozzi et al., KDD 2014) with the skip-gram and negative sampling of word2vec (Mikolov et al., 2013).
    What is not as published:

    - every centre has its full window, where word2vec draws a smaller one;
    - 64 negatives are drawn, from visits to the power of ¾, for all centres at one step of the walks in a batch, and
      weighted to ``negatives`` for every pair: the same loss on average. Visits are those expected, not counted, and a
      negative that happens to be the context is kept;
    - the optimiser is Adagrad with one rate per row, as sums over a batch have no rate in common;
    - every epoch draws new walks.

    Everything is drawn from one generator of its own, on CPU. Memory grows with nodes, channels and arcs, not with
    pairs.

    Args:
        graph: of N nodes. Of a directed one, walks follow arcs from source to target.
        channels: C, from 1; default 64.
        walk_length: nodes of a walk, from 2; default 50.
        num_walks: walks from every node in an epoch, from 1; default 1.
        window: steps on either side of a centre that are its context, from 1; default 5.
        epochs: from 1; default 1.
        negatives: for every pair, from 1; default 5.
        lr: of Adagrad, above 0; default 0.1.
        seed: from 0; default 0. The same seed gives the same bits on the same machine and number of threads.
        standardise: shift and scale columns to mean 0 and variance 1 over nodes that have a neighbour; default True.
            The published positions are raw (False).

    Returns:
        ``[N, C]``, float32. The row of a node without neighbours is zero.

    Raises:
        G2MError: on any of the above not holding.
    """
    check_whole("channels", channels)
    check_whole("walk_length", walk_length, 2)
    check_whole("num_walks", num_walks)
    check_whole("window", window)
    check_whole("epochs", epochs)
    check_whole("negatives", negatives)
    check_range("lr", lr, 0, open_low=True)
    generator = Generator().manual_seed(check_seed(seed))
    arcs = _arcs(graph.edge_index, graph.num_nodes)
    inside = _leave(arcs)
    inside[arcs.target[inside.repeat_interleave(arcs.degree)]] = True  # an arc that arrives makes a neighbour, too
    if not inside.any():
        return torch.zeros(graph.num_nodes, channels)
    position, _ = _skip_gram(arcs, channels, walk_length, num_walks * epochs, window, negatives, lr, generator)
    if standardise:
        kept = position[inside].double()
        position[inside] = ((kept - kept.mean(0)) / kept.std(0, correction=0).clamp(min=1e-12)).float()
    position[~inside] = 0
    return position


def _skip_gram(
    arcs: Arcs,
    channels: int,
    walk_length: int,
    rounds: int,
    window: int,
    negatives: int,
    lr: float,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Return the tables of centres and of contexts, each ``[N, C]``, after so many walks from every node."""
    num_nodes = len(arcs.first)
    centre = (torch.rand(num_nodes, channels, generator=generator) - 0.5) / channels
    context = torch.zeros_like(centre)
    squares = torch.zeros(2, num_nodes)
    start = _leave(arcs).nonzero().squeeze(1)
    chance = _visits(arcs, walk_length).pow(0.75).cumsum(0)
    # Steps of one batch do not see each other: on a small graph it must be a small part of a round.
    size = max(1, min(BATCH // walk_length, num_nodes // 32))
    for _ in range(rounds):
        order = start[torch.randperm(len(start), generator=generator)]
        for part in order.split(max(size, CHUNK // walk_length // size * size)):
            for walks in _walk(arcs, part, walk_length, generator).split(size):
                walks, pairs = _pairs(walks, window)
                share = torch.rand(walks.size(1), NOISE, generator=generator, dtype=torch.float64) * chance[-1]
                noise = torch.searchsorted(chance, share, right=True)  # right: never a node of chance 0
                rows = F.embedding(walks, centre), F.embedding(walks, context), F.embedding(noise, context)
                of_centre, *of_context = (g.flatten(0, 1) for g in _gradients(*rows, pairs, negatives))
                _ascend(centre, squares[0], walks.flatten(), of_centre, lr)
                _ascend(context, squares[1], torch.cat([walks.flatten(), noise.flatten()]), torch.cat(of_context), lr)
    return centre, context


def _pairs(walks: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return pieces of the walks ``[R, T]``, and which steps are a centre and its context in them ``[R, T, T]``.

    A pair is in the piece that its earlier step is in the first ``stride`` of. From where a walk stays it has none.
    """
    length, stride = walks.size(1), max(PIECE, window)
    if length > stride:
        ahead = -length % stride + window
        walks = torch.cat([walks, walks[:, -1:].expand(-1, ahead)], 1)
        walks = walks.unfold(1, stride + window, stride).flatten(0, 1)
    step = torch.arange(walks.size(1))
    apart = (step[:, None] - step).abs()
    earlier, later = torch.minimum(step[:, None], step), torch.maximum(step[:, None], step)
    band = (apart > 0) & (apart <= window) & (earlier < stride)
    moved = torch.ones_like(walks, dtype=torch.bool)
    moved[:, 1:] = walks[:, 1:] != walks[:, :-1]
    return walks, (band & moved[:, later]).float()


def _gradients(
    centre: Tensor, context: Tensor, noise: Tensor, pairs: Tensor, negatives: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of Σ over pairs of log σ(u·v) + negatives · mean over noise of log σ(−u·v').

    Args:
        centre: rows u of the walks ``[R, T, C]``.
        context: rows v of the walks ``[R, T, C]``.
        noise: rows v' for every step ``[T, K, C]``, shared by the walks.
        pairs: 1 where a centre has a context, otherwise 0, ``[R, T, T]``.
        negatives: for every pair.
    """
    positive = pairs * (-(centre @ context.mT)).sigmoid_()
    by_step = centre.transpose(0, 1)
    negative = (by_step @ noise.mT).sigmoid_() * (pairs.sum(2).T * (-negatives / noise.size(1))).unsqueeze(2)
    return positive @ context + (negative @ noise).transpose(0, 1), positive.mT @ centre, negative.mT @ by_step


def _ascend(table: Tensor, squares: Tensor, nodes: Tensor, gradient: Tensor, lr: float) -> None:
    """Take a step of Adagrad in place, with one rate per row; the gradients of a node that comes often add up."""
    nodes, place = nodes.unique(return_inverse=True)
    total = gradient.new_zeros(len(nodes), gradient.size(1)).index_add_(0, place, gradient)
    square = squares[nodes] + total.square().mean(1)
    squares[nodes] = square
    table.index_add_(0, nodes, total * square.clamp(min=1e-20).rsqrt_().unsqueeze(1), alpha=lr)


# -- nodes that came later -------------------------------------------------------------------------------------


def neighbour_arcs(graph: Graph, known: Tensor, *, own: bool = True) -> Tensor:
    """Return the arcs ``[2, E]``, from ids to places in the graph, whose sources a node reads the mean of.

    They are those that arrive at it from another node. A known node that keeps its row is its own only neighbour.

    Args:
        graph: of N nodes.
        known: ids of the nodes that have a row ``[M]``.
        own: whether a known node keeps its row; default True.
    """
    keeps = torch.isin(graph.node_id, known) & own
    source, target = graph.edge_index
    source, target = graph.edge_index[:, ~keeps[target] & (source != target)]
    kept = keeps.nonzero().squeeze(1)
    return torch.stack([graph.node_id[torch.cat([source, kept])], torch.cat([target, kept])])


def of_arcs(position: Tensor, known: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
    """Return the mean of the rows of known neighbours for each of some new nodes ``[N, P]``, zero if it has none.

    Args:
        position: rows of the known nodes ``[M, P]``.
        known: their ids ``[M]``, ascending.
        edge_index: arcs ``[2, E]`` from ids, of which those that are not known do not count, to new nodes.
        num_nodes: N; new nodes are numbered from 0.
    """
    source, target = edge_index
    if not len(known):
        return position.new_zeros(num_nodes, position.size(1))
    row = torch.searchsorted(known, source).clamp_(max=len(known) - 1)
    counts = known[row] == source
    row, target = row[counts], target[counts]
    row = row[target.argsort(stable=True)]
    first = F.pad(torch.bincount(target, minlength=num_nodes).cumsum(0), (1, 0))[:-1]  # of each node's arcs
    return F.embedding_bag(row.to(position.device), position, first.to(position.device), mode="mean")


def arcs_to(edge_index: Tensor, start: int, stop: int) -> Tensor:
    """Return the arcs ``[2, e]`` to rows ``start`` to ``stop``, numbered from 0; ``edge_index`` is sorted by row."""
    first, last = torch.searchsorted(edge_index[1].contiguous(), edge_index.new_tensor([start, stop])).tolist()
    source, row = edge_index[:, first:last]
    return torch.stack([source, row - start])
