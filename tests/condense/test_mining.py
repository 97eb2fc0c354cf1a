"""Mining against its definitions, by going through all subsets of small databases, and against mlxtend on larger ones.

The oracles work on lists of sets; nothing in them is shared with the miner.
"""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array, csr_array, csr_matrix, random_array

from g2m.condense.mining import (
    KINDS,
    Itemsets,
    cover,
    mine,
    top_k,
    within_budget,
)
from g2m.condense.trees import graph_sets, tree_classes
from g2m.errors import G2MError

quick = settings(max_examples=60)
databases = st.lists(st.frozensets(st.integers(0, 5), max_size=6), max_size=9)
shares = st.floats(0, 1, exclude_min=True)
thresholds = st.integers(1, 5) | shares


# -- oracles ---------------------------------------------------------------------------------------------------------


def holders(database, pattern) -> list[bool]:
    return [set(pattern) <= set(row) for row in database]


def by_definition(database, threshold, kind="closed") -> list[tuple[tuple[int, ...], int]]:
    """All itemsets of a kind with their supports, in order: from every subset of the items, and nothing clever."""
    items = sorted(set().union(*database))
    every = [p for size in range(1, len(items) + 1) for p in combinations(items, size)]
    supports = {p: sum(holders(database, p)) for p in every}
    share = isinstance(threshold, float)
    frequent = {
        p: s for p, s in supports.items() if s > 0 and (s / len(database) >= threshold if share else s >= threshold)
    }
    above = {p: [s for q, s in frequent.items() if set(p) < set(q)] for p in frequent}
    keep = {
        "frequent": lambda p: True,
        "closed": lambda p: frequent[p] not in above[p],
        "maximal": lambda p: not above[p],
    }[kind]
    found = [(p, s) for p, s in frequent.items() if keep(p)]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def pairs(found: Itemsets) -> list[tuple[tuple[int, ...], int]]:
    return list(zip(found.items, found.supports.tolist(), strict=True))


def dense(rows: int, columns: int, density: float, seed: int = 0) -> csr_array:
    return csr_array(random_array((rows, columns), density=density, rng=np.random.default_rng(seed)) > 0).astype(int)


# -- every kind, by definition ---------------------------------------------------------------------------------------


@settings(quick, max_examples=200)
@given(databases, thresholds, st.sampled_from(KINDS))
def test_itemsets_are_those_of_the_definition_in_order(database, threshold, kind):
    found = mine(database, min_support=threshold, kind=kind)
    assert pairs(found) == by_definition(database, threshold, kind)
    assert len(found) == len(list(found)) == len(found.items)
    assert (found.kind, found.num_transactions) == (kind, len(database))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("density", [0.15, 0.4])
def test_larger_databases_against_mlxtend(seed, density):
    patterns = pytest.importorskip("mlxtend.frequent_patterns", reason="needs mlxtend: pip install -e '.[dev]'")
    pandas = pytest.importorskip("pandas")
    matrix = dense(120, 14, density, seed)
    frame = pandas.DataFrame(matrix.toarray().astype(bool))
    for share in (0.05, 0.2):
        for kind, oracle in [("frequent", patterns.fpgrowth), ("maximal", patterns.fpmax)]:
            expected = oracle(frame, min_support=share)
            expected = {
                tuple(sorted(map(int, items))): round(support * matrix.shape[0])
                for items, support in zip(expected["itemsets"], expected["support"], strict=True)
            }
            assert dict(pairs(mine(matrix, min_support=share, kind=kind))) == expected


@pytest.mark.parametrize("seed", range(3))
def test_closed_and_maximal_of_larger_databases_are_those_of_the_frequent(seed):
    matrix = dense(90, 12, 0.45, seed)
    frequent = pairs(mine(matrix, min_support=4, kind="frequent"))
    above = {p: [s for q, s in frequent if set(p) < set(q)] for p, _ in frequent}
    assert len(frequent) > 500
    assert pairs(mine(matrix, min_support=4)) == [(p, s) for p, s in frequent if s not in above[p]]
    assert pairs(mine(matrix, min_support=4, kind="maximal")) == [(p, s) for p, s in frequent if not above[p]]


@quick
@given(databases, thresholds, st.sampled_from(KINDS), st.data())
def test_order_of_transactions_and_names_of_items_do_not_matter(database, threshold, kind, data):
    found = mine(database, min_support=threshold, kind=kind)
    shuffled = data.draw(st.permutations(database))
    assert pairs(mine(shuffled, min_support=threshold, kind=kind)) == pairs(found)
    name = data.draw(st.permutations(range(6)))
    renamed = mine([{name[i] for i in row} for row in database], min_support=threshold, kind=kind)
    assert dict(pairs(renamed)) == {tuple(sorted(name[i] for i in p)): s for p, s in pairs(found)}
    assert pairs(renamed) == sorted(pairs(renamed), key=lambda pair: (-pair[1], pair[0]))


@quick
@given(databases, thresholds, st.sampled_from(KINDS))
def test_lists_and_matrices_of_any_layout_give_the_same(database, threshold, kind):
    entries = [(row, item) for row, items in enumerate(database) for item in items]
    row, item = np.array(entries, dtype=int).reshape(-1, 2).T
    expected = pairs(mine(database, min_support=threshold, kind=kind))
    ones = np.ones(len(row), dtype=int)
    coo = coo_array((ones, (row, item)), shape=(len(database), 9))  # two items that never occur
    twice = coo_array((np.tile(ones, 2), (np.tile(row, 2), np.tile(item, 2))), shape=coo.shape)
    zeros = (
        csr_array((np.append(ones, 0), (np.append(row, 0), np.append(item, 8))), shape=coo.shape) if row.size else coo
    )
    for matrix in (coo, coo.tocsc(), csr_matrix(coo), coo.astype(bool), coo.astype(float), twice, zeros):
        before = matrix.copy()
        assert pairs(mine(matrix, min_support=threshold, kind=kind)) == expected
        assert (matrix != before).nnz == 0
        assert matrix.nnz == before.nnz


@quick
@given(databases, shares)
def test_a_share_is_the_least_count_that_makes_it_up(database, share):
    found = mine(database, min_support=share)
    num = len(database)
    if num:
        assert found.min_support / num >= share or found.min_support == 1
        assert found.min_support == 1 or (found.min_support - 1) / num < share
    assert pairs(found) == pairs(mine(database, min_support=found.min_support))


def test_shares_do_not_suffer_from_rounding_and_one_is_a_count():
    database = [{0}] * 7 + [{1}] * 93
    assert mine(database, min_support=0.07).items == ((1,), (0,))
    assert mine(database, min_support=1).min_support == 1
    assert mine(database, min_support=1.0).min_support == 100
    assert mine(database, min_support=np.float32(0.5)).items == ((1,),)
    assert mine(database, min_support=np.int64(8)).items == ((1,),)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "database", [[], [set()], [set(), set()], csr_array((0, 0)), csr_array((0, 3)), csr_array((3, 0))]
)
def test_of_nothing_there_is_nothing(database, kind):
    found = mine(database, min_support=0.5, kind=kind)
    assert (found.items, found.supports.tolist()) == ((), [])
    assert len(cover(database, found)) == 0
    if kind != "maximal":
        assert len(top_k(database, 3, kind=kind)) == len(within_budget(database, len, 3, kind=kind)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_one_item_and_thresholds_above_the_database(kind):
    assert pairs(mine([{4}, set(), {4}], min_support=2, kind=kind)) == [((4,), 2)]
    assert len(mine([{4}, set(), {4}], min_support=3, kind=kind)) == 0
    assert len(mine([{4}], min_support=10**9, kind=kind)) == 0


def test_items_in_every_transaction_are_in_every_closed_itemset():
    database = [{1, 5, 0}, {1, 5, 2}, {1, 5, 2, 0}]
    assert pairs(mine(database, min_support=1))[0] == ((1, 5), 3)
    assert all({1, 5} <= set(p) for p in mine(database, min_support=1))


# Counts published with the description of the method: closed sets are what is left of the explosion.
@pytest.mark.parametrize(
    ("name", "num_hops", "label", "threshold", "frequent", "closed", "maximal", "share"),
    [
        ("NCI1", 2, 0, 0.05, 386, 335, 111, 0.99),
        ("NCI1", 2, 1, 0.05, 2526, 1821, 463, 0.99),
        ("PROTEINS", 1, 1, 0.2, 681, 679, 242, 0.98),
        ("IMDB-BINARY", 2, 0, 7, 53, 11, 11, 0.27),
    ],
)
def test_itemsets_of_real_graphs(data_root, name, num_hops, label, threshold, frequent, closed, maximal, share):
    raw = data_root / "tu" / name / "raw"
    if not raw.is_dir():
        pytest.skip(f"needs {raw}")
    graph = np.loadtxt(raw / f"{name}_graph_indicator.txt", dtype=int) - 1
    arcs = np.loadtxt(raw / f"{name}_A.txt", dtype=int, delimiter=",").T - 1
    labels = raw / f"{name}_node_labels.txt"
    key = np.loadtxt(labels, dtype=int) if labels.exists() else np.bincount(arcs[1], minlength=len(graph))
    sets = graph_sets(tree_classes(arcs, key, num_hops=num_hops), graph)
    database = sets[np.loadtxt(raw / f"{name}_graph_labels.txt", dtype=int) == label]
    expected = {"frequent": frequent, "closed": closed, "maximal": maximal}
    found = {kind: mine(database, min_support=threshold, kind=kind) for kind in KINDS}
    assert {kind: len(itemsets) for kind, itemsets in found.items()} == expected
    covered = [cover(database, found[kind]).dense().any(0) for kind in ("closed", "frequent")]
    assert np.array_equal(*covered)
    assert covered[0].mean() == pytest.approx(share, abs=0.01)
    assert top_k(database, 100).items == found["closed"].items[:100] or len(found["closed"]) < 100


# -- top k -----------------------------------------------------------------------------------------------------------


@settings(quick, max_examples=100)
@given(databases, st.integers(1, 40), thresholds, st.sampled_from(KINDS[:2]))
def test_top_k_are_the_first_of_all(database, k, threshold, kind):
    every = by_definition(database, threshold, kind)
    found = top_k(database, k, kind=kind, min_support=threshold)
    assert pairs(found) == every[:k]
    complete = [pair for pair in by_definition(database, 1, kind) if pair[1] >= found.min_support]
    assert complete == pairs(found)[: len(complete)]  # from min_support on, none is missing


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("k", [1, 7, 50, 400, 10**6])
def test_top_k_of_a_larger_database_are_the_first_of_all(k, kind):
    matrix = dense(80, 11, 0.35)
    assert pairs(top_k(matrix, k, kind=kind)) == pairs(mine(matrix, min_support=1, kind=kind))[:k]


# -- limits and budgets ----------------------------------------------------------------------------------------------


@quick
@given(databases, st.sampled_from(KINDS), st.integers(1, 30))
def test_the_limit_allows_as_many_itemsets_and_no_more(database, kind, limit):
    visited = len(by_definition(database, 1, "frequent" if kind == "frequent" else "closed"))
    if visited <= limit:
        assert pairs(mine(database, min_support=1, kind=kind, limit=limit)) == by_definition(database, 1, kind)
    else:
        with pytest.raises(G2MError, match=rf"^limit: expected at most {limit} .*Raise min_support"):
            mine(database, min_support=1, kind=kind, limit=limit)


def test_an_explosion_is_refused_with_its_size_and_a_way_out():
    clique = [set(range(60))] * 5
    with pytest.raises(G2MError, match=rf"at least {2**60 - 1:,} frequent .*take kind='closed'"):
        mine(clique, min_support=2, kind="frequent", limit=1000)
    assert pairs(mine(clique, min_support=2, limit=1)) == [(tuple(range(60)), 5)]


def test_bitmaps_that_would_fill_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr("g2m.condense.mining._BITMAP_BYTES", 10)
    assert len(mine([{0, 1}] * 40, min_support=1)) == 1
    with pytest.raises(G2MError, match=r"^min_support: .*got 3 items in at least 1 of 40"):
        mine([{0, 1, 2}] * 40, min_support=1)


def cells(patterns) -> int:
    """A size that shares items among patterns, as a stored set of trees does."""
    return len(set().union(*patterns)) * 3 + sum(map(len, patterns))


budgets = st.integers(0, 60)


@settings(quick, max_examples=100)
@given(databases, budgets, st.sampled_from([len, cells]), st.sampled_from(KINDS[:2]), st.integers(1, 3))
def test_budgets_are_met_by_the_lowest_threshold_that_does(database, budget, size_of, kind, floor):
    found = within_budget(database, size_of, budget, kind=kind, min_support=floor)
    assert size_of(found.items) <= budget
    assert pairs(found) == by_definition(database, found.min_support, kind)
    assert found.min_support >= floor
    if found.min_support > floor:
        lower = by_definition(database, found.min_support - 1, kind)
        assert size_of([p for p, _ in lower]) > budget


@quick
@given(databases, budgets, budgets)
def test_a_larger_budget_keeps_what_a_smaller_one_has(database, one, other):
    small, large = (within_budget(database, cells, b) for b in sorted([one, other]))
    assert large.items[: len(small)] == small.items
    assert large.min_support <= small.min_support


@pytest.mark.parametrize("budget", [0, 1, 63, 64, 65, 500, 10**6])
def test_budgets_on_a_larger_database(budget):
    matrix = dense(80, 11, 0.35)
    every = mine(matrix, min_support=1)
    found = within_budget(matrix, len, budget)
    counts = [(every.supports >= support).sum() for support in range(1, 82)]
    assert len(found) == max(count for count in counts if count <= budget)
    assert found.items == every.items[: len(found)]


def test_little_is_mined_beyond_the_budget():
    sizes = []
    matrix = dense(400, 40, 0.3)

    def size_of(patterns):
        sizes.append(len(patterns))
        return len(patterns)

    assert 90 < len(within_budget(matrix, size_of, 100)) <= 100
    assert max(sizes) == 128


def test_a_budget_beyond_the_limit_is_refused_unless_all_fits():
    database = [{i} for i in range(70)]
    assert len(within_budget(database, len, 70, limit=70)) == 70
    with pytest.raises(G2MError, match=r"^limit: expected at most 69 itemsets within budget=70"):
        within_budget(database, len, 70, limit=69)
    assert len(within_budget(database, len, 69, limit=69)) == 0  # all of one support, and that is one too many


def test_a_budget_below_the_size_of_nothing_is_refused():
    with pytest.raises(G2MError, match=r"^budget: expected at least 8, .*got 7"):
        within_budget([{0}], lambda patterns: 8 + len(patterns), 7)


# -- patterns in data ------------------------------------------------------------------------------------------------


@quick
@given(databases, st.lists(st.frozensets(st.integers(0, 9), max_size=4), max_size=6), st.data())
def test_covers_are_those_of_the_definition(database, patterns, data):
    expected = np.array([holders(database, p) for p in patterns], dtype=bool).reshape(len(patterns), len(database))
    covers = cover(database, patterns)
    assert np.array_equal(covers.dense(), expected)
    assert np.array_equal(covers.support, expected.sum(1))
    assert covers.bits.shape == (len(patterns), -(-len(database) // 8))
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=len(database), max_size=len(database)))
    values = np.stack([np.array(sizes, dtype=float), np.ones(len(database))], 1)
    for given_ in (values, csr_array(values)):
        assert np.array_equal(covers.totals(given_), expected @ values)
    assert np.array_equal(covers.totals(sizes), expected @ np.array(sizes, dtype=float))


@quick
@given(databases, thresholds, st.sampled_from(KINDS))
def test_covers_count_the_supports_that_were_mined(database, threshold, kind):
    found = mine(database, min_support=threshold, kind=kind)
    assert np.array_equal(cover(database, found).support, found.supports)


def test_covers_of_many_patterns_are_summed_in_blocks():
    matrix = dense(70, 12, 0.5)
    found = mine(matrix, min_support=1)
    assert len(found) > 600
    labels = np.eye(3)[np.arange(70) % 3]
    by_class = cover(matrix, found).totals(labels)
    assert np.array_equal(by_class.sum(1), found.supports)
    assert np.array_equal(by_class, cover(matrix, found).dense() @ labels)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_support", [0, -1, 1.5, 0.0, -0.1, float("nan"), float("inf"), True, "0.1", None])
def test_a_threshold_is_a_count_or_a_share(min_support):
    with pytest.raises(G2MError, match=r"^min_support: expected a whole number from 1"):
        mine([{0}], min_support=min_support)


@pytest.mark.parametrize(
    "transactions",
    [np.eye(3), {0: [1]}, "ab", 3, [1, 2], csr_array(np.ones(3)), iter([{1}])],
    ids=lambda given: type(given).__name__,
)
def test_transactions_are_a_sparse_matrix_or_a_list_of_sets(transactions):
    for call in (lambda t: mine(t, min_support=1), lambda t: cover(t, [])):
        with pytest.raises(G2MError, match=r"^transactions: expected a sparse matrix, or a list of sets"):
            call(transactions)


@pytest.mark.parametrize("items", [{-1}, {0.5}, {"a"}, {2**31}, {(1, 2)}, {None}, "ab"])
def test_items_are_whole_numbers(items):
    with pytest.raises(G2MError, match=r"^transactions: expected item ids"):
        mine([{1}, items], min_support=1)
    with pytest.raises(G2MError, match=r"^pattern: expected item ids"):
        cover([{1}], [items])


@pytest.mark.parametrize("value", [-1, 0.5, float("nan"), float("inf")])
def test_multiplicities_are_whole(value):
    with pytest.raises(G2MError, match=r"^transactions: expected whole multiplicities"):
        mine(csr_array([[1.0, value]]), min_support=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: mine(d, min_support=1, kind="close"), r"kind: .*Did you mean 'closed'\?"),
        (lambda d: mine(d, min_support=1, limit=0), "limit: expected a whole number from 1"),
        (lambda d: top_k(d, 0), "k: expected a whole number from 1"),
        (lambda d: top_k(d, 3, kind="maximal"), "kind: expected one of closed, frequent"),
        (lambda d: within_budget(d, len, 3, kind="maximal"), "kind: expected one of closed, frequent"),
        (lambda d: within_budget(d, len, -1), r"budget: expected a number in \[0, inf\]"),
        (lambda d: within_budget(d, len, 1, limit=0), "limit: expected a whole number from 1"),
        (lambda d: cover(d, (0, 1)), "pattern: expected a set of items .*Wrap"),
        (lambda d: cover(d, [[0]]).totals([1.0]), r"values: expected 2, one per transaction \(got shape \(1,\)\)"),
    ],
)
def test_what_is_out_of_range_is_named(call, message):
    with pytest.raises(G2MError, match=f"^{message}"):
        call([{0, 1}, {0}])


def test_what_is_shown_says_how_many():
    database = [{0, 1}, {0}]
    assert repr(mine(database, min_support=1)) == "Itemsets(2 closed of 2 transactions, support from 1)"
    assert repr(cover(database, [[0]])) == "Cover(1 patterns, 2 transactions)"
