"""Frequent, closed and maximal itemsets of sets of tree classes, as Mirage (Gupta et al., ICLR 2024) needs them.

A transaction is a graph, an item a class of computation trees, the support of an itemset the number of graphs that
hold all of it. Itemsets are tuples of items, ascending, and always come by support, highest first, then by their items.

Closed itemsets, those that no superset matches in support, are the default: they keep the support of every frequent
one and are far fewer. They are found as by LCM (Uno et al., FIMI 2004): an itemset grows by one item and is closed; if
that takes in an item before the new one, the result belongs to another branch. So each turns up once, and none is
looked up. A set of transactions is one Python integer: two to five times as fast as packed numpy rows up to 5,000
transactions, as fast at 40,000 to 450,000.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain, islice
from math import ceil, isqrt
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, issparse, sparray, spmatrix

from g2m.errors import G2MError, check_range, check_whole, choose

KINDS = ("closed", "frequent", "maximal")
LIMIT = 100_000
_BITMAP_BYTES = 2**30
_BLOCK = 256  # items whose pairs are counted, or patterns that are unpacked, at a time

Itemset = tuple[int, ...]
Transactions = sparray | spmatrix | Sequence[Iterable[int]]


class TooManyError(G2MError):
    """More itemsets than asked for."""


@dataclass(frozen=True, eq=False, repr=False)
class Itemsets:
    """Itemsets of a database by support, highest first, then by their items; iterates over the itemsets alone.

    Args:
        items: tuples of items, ascending.
        supports: transactions that contain each ``[P]``, int64.
        num_transactions: size of the database.
        min_support: threshold from which on none of this kind is missing, as a count.
        kind: ``"closed"``, ``"frequent"`` or ``"maximal"``.
    """

    items: tuple[Itemset, ...]
    supports: NDArray[np.int64]
    num_transactions: int
    min_support: int
    kind: str = "closed"

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Itemset]:
        return iter(self.items)

    def number_within(self, size_of: Callable[[int], float], budget: float) -> int:
        """Return the largest number of first itemsets, of one support all or none, whose size fits the budget."""
        ends = np.append(np.flatnonzero(np.diff(self.supports)) + 1, len(self)).tolist()
        fitting = bisect_left(ends, True, key=lambda end: size_of(end) > budget)
        return ends[fitting - 1] if fitting else 0

    def __repr__(self) -> str:
        return (
            f"Itemsets({len(self):,} {self.kind} of {self.num_transactions:,} transactions, "
            f"support from {self.min_support:,})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Cover:
    """Which transactions contain each pattern, as bitmaps.

    Args:
        bits: ``[P, ceil(N / 8)]`` uint8, laid out as by :func:`numpy.packbits`.
        num_transactions: N.
    """

    bits: NDArray[np.uint8]
    num_transactions: int

    def __len__(self) -> int:
        return len(self.bits)

    def __repr__(self) -> str:
        return f"Cover({len(self):,} patterns, {self.num_transactions:,} transactions)"

    @property
    def support(self) -> NDArray[np.int64]:
        """Transactions that contain each pattern ``[P]``."""
        return np.array([int.from_bytes(row, "big").bit_count() for row in map(bytes, self.bits)], np.int64)

    def dense(self, patterns: slice = slice(None)) -> NDArray[np.bool_]:
        """Return whether each pattern is contained ``[P, N]``, for all patterns (default) or some."""
        return np.unpackbits(self.bits[patterns], axis=1, count=self.num_transactions).view(np.bool_)

    def totals(self, values: ArrayLike | sparray | spmatrix) -> NDArray[np.float64]:
        """Return sums over the transactions that contain each pattern, ``[P]`` or ``[P, C]``.

        Of one-hot labels these are supports by class; of multiplicities, over :attr:`support`, mean counts.

        Args:
            values: of the transactions ``[N]`` or ``[N, C]``, dense or sparse.

        Raises:
            G2MError: if there is not one value per transaction.
        """
        values = values if issparse(values) else np.asarray(values, np.float64)
        if not 1 <= values.ndim <= 2 or values.shape[0] != self.num_transactions:
            raise G2MError(
                f"values: expected {self.num_transactions}, one per transaction (got shape {tuple(values.shape)}). "
                "Take them in the order of the transactions."
            )
        blocks = [slice(i, i + _BLOCK) for i in range(0, max(len(self), 1), _BLOCK)]
        return np.concatenate([self.dense(block).astype(np.float64) @ values for block in blocks])


# -- mining ----------------------------------------------------------------------------------------------------------


def mine(
    transactions: Transactions,
    *,
    min_support: float,
    kind: str = "closed",
    limit: int = LIMIT,
) -> Itemsets:
    """Return every closed, frequent or maximal itemset from a support on (Mirage: Gupta et al., ICLR 2024).

    Frequent: support at least ``min_support``. Closed: and no superset has as much. Maximal: and no superset is
    frequent. The empty itemset is never returned.

    Args:
        transactions: sparse matrix ``[N, I]`` of multiplicities, a row per graph and a column per item; or a list of
            N sets of item ids.
        min_support: a whole number from 1: that many transactions; otherwise a share of them in (0, 1].
        kind: ``"closed"`` (default), ``"frequent"`` or ``"maximal"``.
        limit: itemsets found, for maximal ones also the closed ones they are among, from 1; default 100,000, a second
            or two.

    Raises:
        G2MError: if an argument is out of its range, if there are more itemsets than ``limit``, or if the items that
            are frequent take more memory than 1 GiB.
    """
    matrix, floor = _database(transactions, min_support)
    choose("kind", kind, KINDS)
    check_whole("limit", limit)
    found, longest = [], 0
    for visited, (support, items, maximal) in enumerate(_walk(matrix, floor, kind), 1):
        longest = max(longest, len(items))
        if visited > limit:
            least = 2**longest - 1 if kind == "frequent" else 0  # every part of a frequent itemset is frequent
            number = f"more than {limit:,}" if least <= limit else f"at least {least:,}"
            way = ", take kind='closed', which keeps every support," if kind == "frequent" else ""
            raise TooManyError(
                f"limit: expected at most {limit:,} itemsets (got {number} {'frequent' if way else 'closed'} ones at "
                f"min_support={floor}, of {matrix.shape[0]:,} transactions). Raise min_support{way} or raise limit."
            )
        if maximal or kind != "maximal":
            found.append((-support, items))
    found.sort()
    return _itemsets([(-negative, items) for negative, items in found], matrix, floor, kind)


def top_k(
    transactions: Transactions,
    k: int,
    *,
    kind: str = "closed",
    min_support: float = 1,
) -> Itemsets:
    """Return the k itemsets of highest support, in the order of all; fewer if there are no more.

    Best first: the threshold rises to the k-th support found so far (as in TFP, Han et al., ICDM 2002).

    Args:
        transactions: as in :func:`mine`.
        k: from 1. Of itemsets with the same support, those with the lower items stay.
        kind: ``"closed"`` (default) or ``"frequent"``.
        min_support: none below, default 1; a number or share as in :func:`mine`.

    Raises:
        G2MError: if an argument is out of its range, or if the items take more memory than 1 GiB.
    """
    matrix, floor = _database(transactions, min_support)
    choose("kind", kind, KINDS[:2])
    return _top_k(matrix, check_whole("k", k), kind, floor)


def within_budget(
    transactions: Transactions,
    size_of: Callable[[Sequence[Itemset]], float],
    budget: float,
    *,
    kind: str = "closed",
    min_support: float = 1,
    limit: int = LIMIT,
) -> Itemsets:
    """Return all itemsets from the lowest threshold on at which they fit the budget, found by bisection.

    Itemsets of one support come together or not at all, so part of the budget may stay unused. A larger budget keeps
    what a smaller one has: it can only lower the threshold, which is ``min_support`` of the result. No budget is
    overrun, and little is mined beyond it: about twice the itemsets that fit, even if the next threshold has millions.

    Args:
        transactions: as in :func:`mine`.
        size_of: size of a list of itemsets, for example bytes; ``len`` for their number. More itemsets must not be
            smaller.
        budget: the most ``size_of`` may give, from 0.
        kind: ``"closed"`` (default) or ``"frequent"``. Maximal itemsets of a lower threshold do not include those of a
            higher one.
        min_support: threshold to go down to, default 1; a number or share as in :func:`mine`.
        limit: itemsets that may fit, from 1; default 100,000.

    Raises:
        G2MError: if an argument is out of its range, if no itemsets at all are over the budget, or if more than
            ``limit`` fit it.
    """
    matrix, floor = _database(transactions, min_support)
    choose("kind", kind, KINDS[:2])
    check_range("budget", budget, 0)
    check_whole("limit", limit)
    if size_of([]) > budget:
        raise G2MError(f"budget: expected at least {size_of([])}, the size of no itemsets (got {budget}). Raise it.")
    k, start = 64, None
    while True:
        found = _top_k(matrix, min(k, limit + 1), kind, floor, start)
        if len(found) < min(k, limit + 1) or size_of(found.items) > budget:
            break
        if k > limit:
            raise TooManyError(
                f"limit: expected at most {limit:,} itemsets within budget={budget} (got more). "
                "Lower the budget, raise min_support or raise limit."
            )
        k, start = 2 * k, int(found.supports[-1]) * 2 // 3
    end = found.number_within(lambda end: size_of(found.items[:end]), budget)  # fewer: the last support is over
    threshold = floor if end == len(found) else int(found.supports[end]) + 1
    return Itemsets(found.items[:end], found.supports[:end], found.num_transactions, threshold, kind)


# -- patterns in data ------------------------------------------------------------------------------------------------


def cover(transactions: Transactions, patterns: Iterable[Iterable[int]]) -> Cover:
    """Return which transactions contain each pattern; all contain the empty one, none an item never seen.

    Args:
        transactions: as in :func:`mine`; they need not be those that the patterns were mined in.
        patterns: P itemsets, or :class:`Itemsets`.

    Raises:
        G2MError: if the transactions or patterns are not as in :func:`mine`.
    """
    matrix = _matrix(transactions)
    patterns = [_pattern(pattern) for pattern in patterns]
    known = np.unique([i for pattern in patterns for i in pattern if i < matrix.shape[1]]).astype(np.int64)
    num, width = matrix.shape[0], -(-matrix.shape[0] // 8)
    columns = np.vstack([_bitmaps(matrix[:, known]), np.zeros((1, width), np.uint8)])  # the last: items never seen
    place = {item: i for i, item in enumerate(known.tolist())}
    full = np.packbits(np.ones(num, np.bool_))
    bits = np.empty((len(patterns), width), np.uint8)
    for row, pattern in zip(bits, patterns, strict=True):
        np.bitwise_and.reduce(columns[[place.get(item, -1) for item in pattern]], axis=0, initial=255, out=row)
        row &= full
    return Cover(bits, num)


# -- the search ------------------------------------------------------------------------------------------------------


def _top_k(matrix: csr_array, k: int, kind: str, floor: int, start: int | None = None) -> Itemsets:
    if start is None:
        counts, rank = np.sort(np.bincount(matrix.indices)), isqrt(k)
        # Where √k items are frequent, k itemsets or fewer usually are. Far below, every step would weigh rare items.
        start = int(counts[-rank]) if rank <= len(counts) else floor
    threshold = max(floor, start)
    while True:
        found = [node[:2] for node in islice(_walk(matrix, threshold, kind, k), k)]
        if len(found) == k or threshold == floor:
            break
        threshold = max(floor, threshold // 2)
    complete = found[-1][0] + 1 if len(found) == k else floor  # more with the last support may have been left out
    return _itemsets(found, matrix, complete, kind)


def _walk(matrix: csr_array, floor: int, kind: str, k: int | None = None) -> Iterator[tuple[int, Itemset, bool]]:
    """Yield support, itemset and whether it is maximal, depth first; given k, in order, for the first k to be taken."""
    closed = kind != "frequent"
    counts = np.bincount(matrix.indices, minlength=matrix.shape[1])
    names = np.flatnonzero(counts >= floor)
    if closed:  # rare items first: the branches with many ways to go on have few transactions
        names = names[np.argsort(counts[names], kind="stable")]
    if len(names) * matrix.shape[0] > 8 * _BITMAP_BYTES:
        raise G2MError(
            f"min_support: expected one that keeps bitmaps within {_BITMAP_BYTES:,} bytes (got {len(names):,} items in "
            f"at least {floor} of {matrix.shape[0]:,} transactions). Raise it."
        )
    presence = matrix[:, names]
    tids = [int.from_bytes(row, "big") for row in map(bytes, _bitmaps(presence))]
    names = names.tolist()
    queue: list[tuple] = []
    best: list[int] = []

    def admit(support: int, items: Itemset, added: Iterable[int], core: int, tid: int, tail: list[int]) -> None:
        nonlocal floor
        items = tuple(sorted((*items, *(names[j] for j in added))))
        node = (-support, items, core, tid, tail)
        if k is None:
            queue.append(node)
            return
        heappush(queue, node)
        heappush(best, support)
        if len(best) > k:
            heappop(best)
        if len(best) == k:
            floor = best[0]

    for support, closure, core, tail in _roots(presence, floor, closed):
        if support >= floor:
            admit(support, (), closure, core, tids[core], tail)
    while queue:
        # The heap gives the final order: what a set grew from has more support or, among frequent ones, lower items.
        negative, items, core, tid, tail = queue.pop() if k is None else heappop(queue)
        yield -negative, items, not tail
        for position in range(len(tail) - 1, -1, -1):  # last in, first out: the longest itemsets come early
            item = tail[position]
            if item < core:
                break
            common = tids[item] & tid
            support = common.bit_count()
            if support < floor:
                continue
            added, rest = [item], []
            for other in tail if closed else tail[position + 1 :]:
                count = (tids[other] & common).bit_count()
                if closed and count == support:
                    if other < item:  # another branch has it
                        break
                    if other != item:
                        added.append(other)
                elif count >= floor:
                    rest.append(other)
            else:
                admit(support, items, added, item, common, rest)


def _roots(presence: csr_array, floor: int, closed: bool) -> Iterator[tuple[int, list[int], int, list[int]]]:
    """Yield what each item alone leads to: support, its closure, itself, and the items it is frequent with."""
    ones = csr_array((np.ones(presence.nnz, np.int32), presence.indices, presence.indptr), shape=presence.shape)
    columns = ones.T.tocsr()
    supports = np.diff(columns.indptr).tolist()
    for start in range(0, len(supports), _BLOCK)[::-1]:
        pairs = (columns[start : start + _BLOCK] @ ones).tocsr()  # transactions with both items
        pairs.sort_indices()
        for row in range(pairs.shape[0])[::-1]:
            core, entries = start + row, slice(pairs.indptr[row], pairs.indptr[row + 1])
            others, counts, support = pairs.indices[entries], pairs.data[entries], supports[start + row]
            if not closed:
                yield support, [core], core, others[(counts >= floor) & (others > core)].tolist()
                continue
            closure = others[counts == support].tolist()
            if closure[0] == core:
                yield support, closure, core, others[(counts >= floor) & (counts < support)].tolist()


def _itemsets(found: list[tuple[int, Itemset]], matrix: csr_array, floor: int, kind: str) -> Itemsets:
    supports = np.array([support for support, _ in found], np.int64)
    return Itemsets(tuple(items for _, items in found), supports, matrix.shape[0], floor, kind)


# -- what came in ----------------------------------------------------------------------------------------------------


def _matrix(transactions: Transactions) -> csr_array:
    """Return transactions as a matrix of multiplicities, with columns in order and no zeros."""
    if issparse(transactions) and transactions.ndim == 2:
        matrix = csr_array(transactions, copy=True)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        if not ((matrix.data >= 1) & np.isfinite(matrix.data) & (np.floor(matrix.data) == matrix.data)).all():
            raise G2MError("transactions: expected whole multiplicities from 0 (got others). Count the items.")
        return matrix
    if not (isinstance(transactions, list | tuple) and all(isinstance(row, Iterable) for row in transactions)):
        raise G2MError(
            f"transactions: expected a sparse matrix, or a list of sets of items (got {type(transactions).__name__}). "
            "Wrap a dense matrix: scipy.sparse.csr_array(x)."
        )
    rows = [list(row) for row in transactions]
    items = _whole("transactions", list(chain.from_iterable(rows)))
    indptr = np.cumsum([0, *map(len, rows)])
    matrix = csr_array(
        (np.ones(len(items), np.int64), items, indptr), shape=(len(rows), int(items.max(initial=-1)) + 1)
    )
    matrix.sum_duplicates()
    return matrix


def _database(transactions: Transactions, min_support: float) -> tuple[csr_array, int]:
    """Return the matrix and the least count that is ``min_support``."""
    matrix = _matrix(transactions)
    if isinstance(min_support, Integral) and not isinstance(min_support, bool) and min_support >= 1:
        return matrix, int(min_support)
    if not isinstance(min_support, Real) or isinstance(min_support, Integral) or not 0 < min_support <= 1:
        raise G2MError(
            f"min_support: expected a whole number from 1, of transactions, or a share in (0, 1] (got {min_support!r})."
            " Write a count as an integer."
        )
    num = matrix.shape[0]
    near = ceil(min_support * num)  # 0.07 * 100 is a little more than 7, yet 7 / 100 is 0.07
    return matrix, next(c for c in range(max(1, near - 1), near + 2) if num == 0 or c / num >= min_support)


def _pattern(pattern: Iterable[int]) -> Itemset:
    if not isinstance(pattern, Iterable):
        raise G2MError(f"pattern: expected a set of items (got {pattern!r}). Wrap one pattern alone in a list.")
    return tuple(np.unique(_whole("pattern", list(pattern))).tolist())


def _whole(argument: str, items: list[int]) -> NDArray[np.int64]:
    wrong = [i for i in items if not (isinstance(i, Integral) and 0 <= i < 2**31)]
    if wrong:
        raise G2MError(
            f"{argument}: expected item ids, whole numbers in [0, 2³¹) (got {wrong[0]!r}). Number the items."
        )
    return np.array(items, np.int64)


def _bitmaps(matrix: csr_array) -> NDArray[np.uint8]:
    """Return the rows that have each column, packed ``[I, ceil(N / 8)]``."""
    width = -(-matrix.shape[0] // 8)
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    bits = np.zeros(matrix.shape[1] * width, np.uint8)
    # An entry has a bit of its own, so that adding is setting.
    np.add.at(bits, matrix.indices.astype(np.int64) * width + (row >> 3), (128 >> (row & 7)).astype(np.uint8))
    return bits.reshape(matrix.shape[1], width)
