"""Mirage (Gupta et al., ICLR 2024): frequent sets of computation trees stand for the graphs that hold them."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from heapq import heapify, heappop, heappush
from itertools import islice

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array

from g2m.condense.condensed import CondensedSet, Trees
from g2m.condense.mining import LIMIT, Cover, Itemset, Itemsets, TooManyError, cover, mine, top_k, within_budget
from g2m.condense.program import attributes
from g2m.condense.trees import TreeKeys, graph_sets, tree_classes
from g2m.errors import G2MError, check_flag, check_keys, check_whole, choose
from g2m.graphs import Graphs

SHARED = ("keep", "drop")
PRIORS = ("train", "balanced")
_CANDIDATES = 20_000  # closed sets that a cover is chosen from
_BLOCK = 256  # patterns whose trees are counted at a time
_LEAST = 8  # bytes of a record, about: so many of them as the budget holds are candidates
_LEFT = 1 / 20  # share of a budget that may stay unused where the next record does not fit


class TreeTable:
    """The trees of training graphs, as condensation reads them.

    Args:
        graphs: the training graphs.
        num_hops: of the trees, from 1.
        degrees: whether nodes of different degree differ from the start, for networks that divide by it.
    """

    def __init__(self, graphs: Graphs, num_hops: int, degrees: bool = False) -> None:
        if not graphs.num_nodes:
            raise G2MError("graphs: expected nodes in the training graphs (got none). There are no trees to condense.")
        self.graphs, self.num_hops = graphs, check_whole("num_hops", num_hops)
        self.keys = TreeKeys(degree=check_flag("degrees", degrees)).fit(graphs)
        self.classes = tree_classes(graphs.edge_index, *self.keys.transform(graphs), num_hops=num_hops)
        self.dag = self.classes.dag
        self.counts = self.at(num_hops)
        self.attributes = attributes(self.keys)

    def at(self, num_hops: int) -> csr_array:
        """Return how often each class of so many hops is in each graph ``[G, K]``."""
        return graph_sets(self.classes, self.graphs.batch, len(self.graphs), num_hops=num_hops)

    def bags(self, row: np.ndarray, item: np.ndarray, times: np.ndarray, num_bags: int) -> Trees:
        """Return bags of classes as content of a condensed set."""
        matrix = coo_array((times.astype(np.float32), (row, item)), shape=(num_bags, self.counts.shape[1])).tocsr()
        return Trees(self.dag, matrix, **self.attributes).used

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return indicators of the classes ``[G, C]``, or of class 1 in each task ``[G, T]``, and which are known."""
        y = self.graphs.y.numpy()
        if y.ndim == 2:
            return np.nan_to_num(y), ~np.isnan(y)
        if (y < 0).any():
            raise G2MError(f"graphs: expected training graphs with a class each (got {(y < 0).sum()} without).")
        return np.eye(self.graphs.num_classes)[y], np.ones((len(y), self.graphs.num_classes), bool)


def mirage(
    graphs: Graphs,
    *,
    num_hops: int,
    budget: int | None = None,
    min_support: float | Sequence[float] | Mapping[int | str, float] | None = None,
    faithful: bool = False,
    shared: str = "keep",
    prior: str = "train",
    min_size: int = 1,
    degrees: bool = False,
    seed: int = 0,
) -> CondensedSet:
    """Condense graphs to frequent sets of their computation trees.

    Ours: closed sets of trees, of all classes together; each is one record, a bag of its trees as often as they are on
    average in the graphs that hold it, scaled to the mean size of those; labelled by the classes of those graphs;
    weighted by their number. Which ones: those that together hold the most nodes of the graphs, greedily by byte;
    where one does not fit the budget and leaves much of it, smaller ones follow.

    Args:
        graphs: the training graphs.
        num_hops: of the trees, from 1: as many as layers of the networks to be trained.
        budget: bytes that the set may take.
        min_support: of the sets of trees, a number of graphs or a share of them; in place of a budget. With
            ``faithful`` of the graphs of each class, or one for each in a list or a mapping.
        faithful: the paper's way: sets mined class by class, each tree once, plain labels, chance to be drawn in
            proportion to support; and all frequent sets, where closed ones would do. Default ``False``.
        shared: with ``faithful``, sets that are frequent in several classes: ``"keep"`` (default), once for each;
            ``"drop"``, not at all. Ours holds a set once, with shares of classes.
        prior: of the classes, in the weights: ``"train"`` (default), as in the graphs; ``"balanced"``: all alike, and
            shares of classes accordingly.
        min_size: trees that a set must have, from 1 (default).
        degrees: whether to tell nodes of different degree apart, for GCN; default: give it one hop more.
        seed: not used, nothing is drawn; every method takes one.

    Raises:
        G2MError: if neither or both of ``budget`` and ``min_support`` are given, no set of trees is frequent or fits,
            or several tasks are to be mined class by class.
    """
    check_mirage(faithful, shared, prior, min_size)
    if (budget is None) == (min_support is None):
        raise G2MError(
            f"budget: expected either budget or min_support (got {budget!r}, {min_support!r}). Give one of the two."
        )
    table = TreeTable(graphs, num_hops, degrees)
    if faithful:
        made = _by_class(table, budget, min_support, shared, prior, min_size)
    else:
        made = _together(table, budget, min_support, prior, min_size)
    name, given = ("budget", budget) if min_support is None else ("min_support", min_support)
    if not len(made):
        raise G2MError(
            f"{name}: expected one that leaves some set of trees (got {given}). Raise the budget, lower min_support, "
            "or take fewer hops; g2m.condense.inspect says how often trees repeat."
        )
    if faithful and (missing := set(graphs.y.tolist()) - set(made.y.tolist())):
        warnings.warn(
            f"{name}: {given} leaves no set of trees of class {min(missing)}, which a network trained on the rest "
            "cannot know. Raise the budget, or lower min_support.",
            stacklevel=3,
        )
    return made


def check_mirage(faithful: bool, shared: str, prior: str, min_size: int) -> None:
    """Refuse values of options that :func:`mirage` does not have."""
    check_flag("faithful", faithful)
    choose("shared", shared, SHARED)
    choose("prior", prior, PRIORS)
    check_whole("min_size", min_size)
    if shared != "keep" and not faithful:
        raise G2MError(
            f"shared: expected 'keep' without faithful (got {shared!r}): ours holds a set once. Leave it out."
        )


# -- the paper's -------------------------------------------------------------------------------------------------------


def _by_class(
    table: TreeTable,
    budget: int | None,
    min_support: float | Sequence[float] | Mapping[int | str, float] | None,
    shared: str,
    prior: str,
    min_size: int,
) -> CondensedSet:
    y, num_classes = table.graphs.y.numpy(), table.graphs.num_classes
    if y.ndim == 2:
        raise G2MError("faithful: expected one class a graph (got several tasks). Leave it out: ours takes tasks.")
    present = [c for c in range(num_classes) if (y == c).any()]
    support_of = _by_name(min_support, num_classes)
    if missing := [c for c in present if c not in support_of]:
        raise G2MError(f"min_support: expected one for each class (got none for {missing[0]}). Add it.")

    size = _size(table, num_classes, min_size)

    def frequent(c: int) -> Itemsets:
        transactions = table.counts[np.flatnonzero(y == c)]
        try:
            if budget is not None:
                return within_budget(transactions, size, budget, kind="frequent")
            return mine(transactions, min_support=support_of[c], kind="frequent")
        except TooManyError:
            given = f"min_support: expected a higher one (got {support_of[c]}"
            if budget is not None:
                given = f"budget: expected a lower one (got {budget}"
            raise G2MError(
                f"{given}: more than {LIMIT:,} sets of trees of class {c}). Leave faithful out: ours takes closed sets."
            ) from None

    mined = {c: frequent(c) for c in present}
    of_class = np.bincount(y, minlength=num_classes) if prior == "train" else np.ones(num_classes)

    def make(number: Mapping[int, int | None]) -> CondensedSet:
        """Return a set of the first so many of each class."""
        found: dict[int, dict[Itemset, int]] = {}
        for c, sets in mined.items():
            pairs = islice(zip(sets, sets.supports.tolist(), strict=True), number.get(c))
            found[c] = {items: support for items, support in pairs if len(items) >= min_size}
        if shared == "drop":
            common = {items for c in found for items in found[c] if any(items in found[d] for d in found if d != c)}
            found = {c: {items: s for items, s in sets.items() if items not in common} for c, sets in found.items()}
        records = [(items, c, support) for c, sets in found.items() for items, support in sets.items()]
        content = _bags(table, [items for items, _, _ in records])
        total = {c: sum(sets.values()) for c, sets in found.items()}
        # A class is drawn by its share of the graphs, a set within it by its support.
        weight = np.array([support / total[c] * of_class[c] for _, c, support in records], np.float32)
        return CondensedSet(content, torch.tensor([c for _, c, _ in records], dtype=torch.long), rounded(weight))

    if budget is None:
        return make({})
    bytes_of = cache(lambda c, end: size(mined[c].items[:end]))

    def within(share: int) -> dict[int, int]:
        return {c: sets.number_within(lambda end, c=c: bytes_of(c, end), share) for c, sets in mined.items()}

    # Classes have the same share of the budget each: as much as lets them fit together, for they share trees.
    over = bisect_left(range(budget + 1), True, key=lambda share: make(within(share)).nbytes().raw > budget)
    return make(within(over - 1))


def _by_name(
    min_support: float | Sequence[float] | Mapping[int | str, float] | None, num_classes: int
) -> dict[int, float | None]:
    """Return the threshold of each class; a file's names of classes are text."""
    if isinstance(min_support, Mapping):
        found = {int(c) if str(c).isdecimal() else c: support for c, support in min_support.items()}
    elif isinstance(min_support, list | tuple):
        found = dict(enumerate(min_support))
    else:
        return dict.fromkeys(range(num_classes), min_support)
    check_keys("min_support", map(str, found), map(str, range(num_classes)))
    return found


def _bags(table: TreeTable, patterns: Sequence[Itemset]) -> Trees:
    row = np.repeat(np.arange(len(patterns)), [len(items) for items in patterns])
    item = np.array([i for items in patterns for i in items], np.int64)
    return table.bags(row, item, np.ones(len(item)), len(patterns))


def _size(table: TreeTable, num_classes: int, min_size: int) -> Callable[[Sequence[Itemset]], int]:
    def size(patterns: Sequence[Itemset]) -> int:
        patterns = [items for items in patterns if len(items) >= min_size]
        if not patterns:
            return 0
        label = torch.full((len(patterns),), num_classes - 1)
        weight = torch.arange(len(patterns)) % 1000 + 0.5  # two bytes each: one is the label's
        return CondensedSet(_bags(table, patterns), label, weight).nbytes().raw

    return size


def rounded(weight: np.ndarray) -> torch.Tensor:
    """Return weights over the largest, none 0: in 255ths, a byte each when stored, or halves where that raises any.

    Rare records may be many: each at a 255th, they would have more than their share together.
    """
    weight = np.asarray(weight, np.float64)
    if not weight.size:
        return torch.zeros(weight.shape)
    weight = weight / weight.max()
    if 255 * weight[weight > 0].min() >= 0.5:  # of no share at all: without a label as well
        return torch.from_numpy((np.maximum(np.rint(weight * 255), 1) / 255).astype(np.float32))
    half = np.maximum(weight.astype(np.float16), np.finfo(np.float16).smallest_subnormal)
    return torch.from_numpy(half.astype(np.float32))


def shares(values: np.ndarray) -> np.ndarray:
    """Return shares ``[R, C]`` in 255ths that still add up to 1, a byte each when stored."""
    parts = np.floor(values * 255 + 1e-6).astype(int)
    for row, left in enumerate(255 - parts.sum(1)):  # to those that lost most by rounding down
        parts[row, np.argsort(parts[row] - values[row] * 255, kind="stable")[:left]] += 1
    head = (parts[:, :-1] / 255).astype(np.float32)
    return np.column_stack([head, 1 - head.sum(1, dtype=np.float32)])


# -- ours --------------------------------------------------------------------------------------------------------------


def _together(
    table: TreeTable, budget: int | None, min_support: float | None, prior: str, min_size: int
) -> CondensedSet:
    if isinstance(min_support, Mapping | list | tuple):
        raise G2MError(
            f"min_support: expected one number (got {min_support!r}). One for each class needs faithful=True."
        )
    if budget is None:
        sets = mine(table.counts, min_support=min_support)
        return _records(table, [items for items in sets if len(items) >= min_size], prior)
    most = min(max(budget // _LEAST, 1), _CANDIDATES)
    sets = top_k(table.counts, most if min_size == 1 else _CANDIDATES)  # smaller ones, often most of them, go
    patterns = [items for items in sets if len(items) >= min_size][:most]
    children, taken = np.diff(table.dag.levels[-1].crow), []

    def cost(items: Itemset) -> int:
        return int((2 + children[list(items)]).sum())

    def fill(patterns: Sequence[Itemset], taken: list[Itemset]) -> tuple[CondensedSet, list[Itemset]]:
        """Return the set of those taken and as many more as fit, and the order of these, one more if there is."""
        ahead, order = [], _coverage_order(table.counts, patterns, taken)

        def make(size: int) -> CondensedSet:
            ahead.extend(patterns[i] for i in islice(order, max(size - len(ahead), 0)))
            return _records(table, taken + ahead[:size], prior)

        return longest(make, len(patterns), budget), ahead

    while True:
        made, ahead = fill(patterns, taken)
        size = len(made) - len(taken)
        if size == len(patterns) or budget - made.nbytes().raw <= _LEFT * budget:
            return made
        # One record may not fit, all trees of a large graph say, where smaller ones do.
        taken, most = taken + ahead[:size], cost(ahead[size]) // 2
        gone = set(taken)
        patterns = [items for items in patterns if cost(items) <= most and items not in gone]


def longest(make: Callable[[int], CondensedSet], most: int, budget: int) -> CondensedSet:
    """Return the largest of the sets ``make(0), …, make(most)`` that fits the budget; larger ones take more bytes."""
    low, made = 0, make(0)
    smallest, size, largest = made.nbytes().raw, 1, None
    while low < most:
        found = make(size)
        bytes_ = found.nbytes().raw
        if bytes_ <= budget:
            low, made, smallest = size, found, bytes_
        else:
            most, largest = size - 1, bytes_
        if largest is None:  # at most doubling: no set is made that is much too large
            size = min(2 * low, most)
        else:  # where a straight line between the two meets the budget
            size = low + round((budget - smallest) / max(largest - smallest, 1) * (most + 1 - low))
            size = min(max(size, low + 1), most)
    return made


def _coverage_order(counts: csr_array, patterns: Sequence[Itemset], taken: Sequence[Itemset] = ()) -> Iterator[int]:
    """Yield patterns by how many nodes of the graphs they cover that none before does, nor those taken, lazily."""
    columns = counts.tocsc()
    seen: dict[int, np.ndarray] = {}  # of a class: which of its entries are covered

    def covered(items: Itemset, held: np.ndarray) -> Iterator[tuple[int, slice, np.ndarray]]:
        for item in items:
            part = slice(*columns.indptr[item : item + 2])
            yield item, part, held[columns.indices[part]]

    def see(items: Itemset, held: np.ndarray) -> None:
        for item, _, here in covered(items, held):
            seen[item] = seen[item] | here if item in seen else here

    def gain(i: int) -> float:
        total = 0.0
        for item, part, here in covered(patterns[i], holders.dense(slice(i, i + 1))[0]):
            total += columns.data[part][here & ~seen[item] if item in seen else here].sum()
        return total / (1 + len(patterns[i]))  # about what it costs

    before = cover(counts, taken)
    for i, items in enumerate(taken):
        see(items, before.dense(slice(i, i + 1))[0])
    holders = cover(counts, patterns)

    queue = [(-np.inf, i) for i in range(len(patterns))]
    heapify(queue)
    fresh, drawn = [-1] * len(patterns), 0
    while queue:
        _, i = heappop(queue)
        if fresh[i] != drawn:
            fresh[i] = drawn
            heappush(queue, (-gain(i), i))
            continue
        see(patterns[i], holders.dense(slice(i, i + 1))[0])
        drawn += 1
        yield i


def _records(table: TreeTable, patterns: Sequence[Itemset], prior: str) -> CondensedSet:
    holders = cover(table.counts, patterns)
    support = holders.support
    sizes = np.asarray(table.counts.sum(1)).ravel()
    label, known = table.labels()
    row = np.repeat(np.arange(len(patterns)), [len(items) for items in patterns])
    item = np.array([i for items in patterns for i in items], np.int64)
    times = _totals(holders, table.counts, row, item) / support[row]
    if len(patterns):
        size = holders.totals(sizes) / support
        times = times * (size / np.bincount(row, times))[row]
    content = table.bags(row, item, np.maximum(np.rint(times), 1), len(patterns))
    if not len(patterns):
        return CondensedSet(content, torch.zeros(0, dtype=torch.long), torch.zeros(0))
    positive, valid = holders.totals(label * known), holders.totals(known.astype(float))
    tasks = table.graphs.y.dim() == 2
    mass = np.stack([valid - positive, positive] if tasks else positive.T)  # of the classes, [C, P, T] or [C, P]
    if prior == "balanced":
        mass /= np.maximum(mass.sum(1, keepdims=True), 1e-12)
    weight = mass.sum(0)
    if tasks:
        share = np.divide(mass[1], weight, out=np.full_like(weight, np.nan), where=weight > 0)
        return CondensedSet(content, torch.from_numpy((np.rint(255 * share) / 255).astype(np.float32)), rounded(weight))
    return CondensedSet(content, torch.from_numpy(shares((mass / weight).T)), rounded(weight))


def _totals(holders: Cover, counts: csr_array, row: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Return how often the graphs that hold each pattern ``row`` (ascending) have each class ``item`` of it ``[L]``."""
    total = np.empty(len(item))
    for first in range(0, len(holders), _BLOCK):
        part = slice(*np.searchsorted(row, [first, first + _BLOCK]))
        own, place = np.unique(item[part], return_inverse=True)
        found = holders.dense(slice(first, first + _BLOCK)).astype(np.float64) @ counts[:, own]
        total[part] = found[row[part] - first, place]
    return total
