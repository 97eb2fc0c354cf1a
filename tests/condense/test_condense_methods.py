"""Condensation by name: what it may look at, what it says of itself, and that nothing is lost where nothing may be."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from graph_cases import everything_else, labelled, other_edges, other_features, other_labels, random_graphs
from torch import Tensor

from g2m import G2MError, GraphClassifier, Graphs
from g2m.condense import METHODS, CondensedSet, Trees, TreeTable, budget_bytes, condense, everything

OPTIONS = {"doscond": {"steps": 2}}  # learning takes its time
methods = pytest.mark.parametrize("method", METHODS)
degrees = pytest.mark.parametrize(("backbone", "degrees"), [("gin", False), ("gcn", True)])


GRAPHS = labelled()
TASKS = labelled(tasks=3, metric="rocauc", num_classes=None)


def made_by(method: str, graphs: Graphs = GRAPHS, **options) -> CondensedSet:
    budget = {} if method == "lossless" or "min_support" in options else {"budget": 400}
    return condense(graphs, method, **{**budget, "num_hops": 2, **OPTIONS.get(method, {}), **options})


def classifier(backbone: str = "gin", **options) -> GraphClassifier:
    options = {"hidden_channels": 8, "num_layers": 2, "max_epochs": 3, "batch_size": 7, **options}
    return GraphClassifier(backbone, device="cpu", **options)


def same_bits(first: CondensedSet, second: CondensedSet) -> bool:
    return first.arrays.keys() == second.arrays.keys() and all(
        array.dtype == second.arrays[name].dtype and array.tobytes() == second.arrays[name].tobytes()
        for name, array in first.arrays.items()
    )


# -- budgets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (3000, 3000),
        (np.int64(7), 7),
        ("3000", 3000),
        ("3000b", 3000),
        ("10kB", 10_000),
        (" 2 MB ", 2_000_000),
        ("1.5 KiB", 1536),
        (".5MiB", 524_288),
        ("1.kb", 1000),
    ],
)
def test_budgets_are_bytes(given, expected):
    assert budget_bytes(given, GRAPHS) == expected


@pytest.mark.parametrize(("given", "share"), [("100%", 1), ("50 %", 0.5), ("12.5%", 0.125), ("250%", 2.5)])
def test_or_a_share_of_what_the_graphs_take(given, share):
    whole = everything(GRAPHS).nbytes().raw
    assert budget_bytes(given, GRAPHS) == int(share * whole)
    assert whole == sum(array.nbytes for array in everything(GRAPHS).arrays.values()) > 100


@pytest.mark.parametrize("given", ["", "ten", "5 GB", "-3", "1e3", "3,000", "1 %%", "kB", "% 1", "1 2"])
def test_text_that_is_no_budget_is_refused(given):
    with pytest.raises(G2MError, match=r"budget: expected bytes, such as 3000, '10kB' or '1%'"):
        budget_bytes(given, GRAPHS)


@pytest.mark.parametrize("given", [0, -1, 2.5, True, None, "0", "0.4"])
def test_numbers_that_are_no_budget_are_refused(given):
    with pytest.raises(G2MError, match="budget: expected a whole number from 1"):
        budget_bytes(given, GRAPHS)


@pytest.mark.parametrize("given", ["0%", "0.0001%"])
def test_a_share_of_less_than_a_byte_is_refused(given):
    whole = everything(GRAPHS).nbytes().raw
    with pytest.raises(G2MError, match=rf"budget: expected at least one byte \(got '{given}' of {whole:,} bytes\)"):
        budget_bytes(given, GRAPHS)


@methods
def test_a_share_is_of_the_training_graphs_alone(method):
    whole = everything(GRAPHS.subset(GRAPHS.part("train"))).nbytes().raw
    made = made_by(method, **({} if method == "lossless" else {"budget": "50%"}))
    if method == "lossless":
        assert "budget" not in made.meta["options"]
    else:
        assert made.meta["options"]["budget"] == int(0.5 * whole)
        assert 0 < made.nbytes().raw <= int(0.5 * whole)


# -- what it says of itself --------------------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize("graphs", [GRAPHS, TASKS], ids=["classes", "tasks"])
def test_a_set_says_how_it_was_made_and_can_be_kept(method, graphs, tmp_path):
    graphs = replace(graphs, name="these")
    made = made_by(method, graphs, seed=3)
    made.check(graphs)
    assert list(made.meta) == ["method", "data", "fingerprint", "options", "seconds", "figures"]
    assert (made.meta["method"], made.meta["data"]) == (method, "these")
    assert made.meta["fingerprint"] == graphs.fingerprint()
    budget = {} if method == "lossless" else {"budget": 400}
    assert made.meta["options"] == {"num_hops": 2, "seed": 3, **budget, **OPTIONS.get(method, {})}
    assert made.meta["seconds"] >= 0
    loaded = CondensedSet.load(made.save(tmp_path / "set.safetensors"))
    assert same_bits(loaded, made)
    assert loaded.meta == json.loads(json.dumps(made.meta))
    loaded.check(graphs)
    with pytest.raises(G2MError, match=r"condensed: expected a set made from these graphs .*'these'"):
        loaded.check(graphs.with_split({"train": range(15)}))


@methods
@pytest.mark.parametrize("graphs", [GRAPHS, TASKS], ids=["classes", "tasks"])
def test_a_set_can_be_trained_on(method, graphs):
    made = made_by(method, graphs)
    trained = classifier().fit(graphs, made)
    assert trained.meta_["condensed"] == made.meta
    assert all(np.isfinite(record["loss"]) for record in trained.history_.epochs)
    assert trained.predict_logits(graphs).isfinite().all()


@pytest.mark.parametrize("support", [2, {0: 2, 1: 3}], ids=["one", "each"])
def test_options_of_numpy_are_kept_as_numbers(support, tmp_path):
    by_numpy = np.int64(2) if support == 2 else {np.int64(c): np.int64(least) for c, least in support.items()}
    plain, made = (
        made_by("mirage", min_support=given, min_size=size, faithful=support != 2)
        for given, size in ((support, 1), (by_numpy, np.int64(1)))
    )
    assert repr(made.meta["options"]) == repr(plain.meta["options"])
    assert same_bits(CondensedSet.load(made.save(tmp_path / "set.safetensors")), plain)


def test_numbers_of_numpy_are_numbers(tmp_path):
    made = condense(GRAPHS, "random", num_hops=np.int64(2), seed=np.int32(1), budget=np.int64(400))
    assert same_bits(CondensedSet.load(made.save(tmp_path / "set.safetensors")), made)
    assert same_bits(made, made_by("random", seed=1))


@methods
def test_same_seed_same_bits(method):
    first, again, other = (made_by(method, seed=seed) for seed in (0, 0, 1))
    assert same_bits(first, again)
    if method != "scored":  # another fifth held out may choose the same strength
        assert same_bits(first, other) is (method not in ("random", "doscond"))


@methods
def test_the_callers_random_stream_is_left_alone(method):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    made_by(method)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


# -- what it may look at -----------------------------------------------------------------------------------------------


CHANGES: list[Callable[[Graphs, Tensor], Graphs]] = [other_features, other_labels, other_edges, everything_else]


@methods
@pytest.mark.parametrize("graphs", [GRAPHS, TASKS], ids=["classes", "tasks"])
def test_only_training_graphs_are_looked_at(method, graphs):
    made, others = made_by(method, graphs), torch.cat([graphs.part("val"), graphs.part("test")])
    for change in CHANGES if graphs is GRAPHS and method != "doscond" else [everything_else]:
        other = change(graphs, others)
        assert other.fingerprint() != graphs.fingerprint()
        assert same_bits(made_by(method, other), made)


@pytest.mark.parametrize("method", ["lossless", "random", "herding", "kcenter", "mirage", "scored"])
def test_training_graphs_are_looked_at(method):
    made, train = made_by(method), GRAPHS.part("train")
    assert not all(same_bits(made_by(method, change(GRAPHS, train[::2])), made) for change in CHANGES)


# -- graphs with little in them ----------------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize("sizes", [[2, 3, 1, 4] * 4, [2, 0, 0, 1, 3] * 4, [1] * 16], ids=["arcs", "nodes", "single"])
def test_graphs_without_arcs_and_without_nodes_can_be_condensed(method, sizes):
    graphs = random_graphs(sizes, split={"train": range(12), "val": range(12, 16)})
    graphs = replace(graphs, edge_index=torch.empty(2, 0).long(), edge_attr=graphs.edge_attr[:0])
    made = made_by(method, graphs)
    assert len(made) > 0
    assert classifier().fit(graphs, made).predict(graphs).shape == (len(sizes),)


def test_training_graphs_without_any_node_are_kept_or_refused():
    graphs = random_graphs([0] * 6 + [3] * 4, split={"train": range(6), "val": range(6, 10)})
    kept = made_by("lossless", graphs)
    assert isinstance(kept.content, Graphs)
    assert len(kept) == 6
    for method in ("mirage", "scored"):
        with pytest.raises(G2MError, match="graphs: expected nodes in the training graphs"):
            made_by(method, graphs)


@methods
def test_what_training_has_not_seen_is_no_trouble(method):
    """Nodes and arcs of other attributes, and degrees that no training graph has."""
    trained = [classifier(name, num_layers=1).fit(GRAPHS, made_by(method)) for name in ("gin", "gcn")]
    other = everything_else(GRAPHS, GRAPHS.part("test"))
    star = torch.stack([torch.arange(1, 40), torch.zeros(39, dtype=torch.long)])
    large = Graphs(torch.full((40, 2), 9), star, [1], [0, 40], edge_attr=torch.full((39, 2), 9))
    for one in trained:
        assert one.predict_logits(other).isfinite().all()
        assert one.predict_logits(large).isfinite().all()
        train = GRAPHS.part("train")
        assert torch.equal(one.predict_logits(other)[train], one.predict_logits(GRAPHS)[train])


# -- nothing is lost ---------------------------------------------------------------------------------------------------


def as_trees(graphs: Graphs, num_hops: int, degrees: bool) -> CondensedSet:
    """All trees of the training graphs, whether or not they take fewer bytes than these."""
    train = graphs.subset(graphs.part("train"))
    table = TreeTable(train, num_hops, degrees)
    entries = table.counts.tocoo()
    content = table.bags(*entries.coords, entries.data, len(train))
    return CondensedSet(content, train.y, torch.ones(train.y.shape), {"fingerprint": graphs.fingerprint()})


@degrees
@pytest.mark.parametrize(
    ("graphs", "options"),
    [
        (GRAPHS, {"norm": "batch", "pooling": "mean", "dropout": 0.3}),
        (TASKS, {}),
        (labelled("values"), {"batch_size": "all", "pooling": "max"}),
        (labelled("none"), {"norm": "layer", "draws": 12}),
    ],
    ids=["classes", "tasks", "values", "none"],
)
def test_training_on_all_that_can_be_told_apart_is_training_on_the_graphs(graphs, options, backbone, degrees):
    options = options | {"precision": "float64", "lr": 0.01}
    expected = classifier(backbone, **options).fit(graphs)
    for made in (made_by("lossless", graphs, degrees=degrees), as_trees(graphs, 2, degrees)):
        found = classifier(backbone, **options).fit(graphs, made)
        assert len(found.history_) == len(expected.history_)
        for first, second in zip(found.history_.epochs, expected.history_.epochs, strict=True):
            assert first == pytest.approx(second, rel=1e-9, abs=1e-9, nan_ok=True)
        assert found.score(graphs) == pytest.approx(expected.score(graphs), rel=1e-12, nan_ok=True)
        torch.testing.assert_close(found.predict_logits(graphs), expected.predict_logits(graphs), rtol=1e-7, atol=1e-7)


def everything_of(graphs: Graphs) -> CondensedSet:
    return replace(everything(graphs.subset(graphs.part("train"))), meta={"fingerprint": graphs.fingerprint()})


@degrees
def test_trees_are_kept_where_they_take_fewer_bytes_than_graphs(backbone, degrees):
    cliques = [torch.combinations(torch.arange(n)).T + 12 * i for i, n in enumerate([12, 11] * 12)]
    arcs = torch.cat(cliques, 1)
    graphs = Graphs(
        torch.zeros(288, 1),
        torch.cat([arcs, arcs.flip(0)], 1),
        [0, 1] * 12,
        range(0, 289, 12),
        split={"train": range(16), "val": range(16, 24)},
    )
    made = made_by("lossless", graphs, degrees=degrees)
    assert isinstance(made.content, Trees)
    assert made.nbytes().raw < 0.1 * everything_of(graphs).nbytes().raw
    assert made.nbytes().raw == as_trees(graphs, 2, degrees).nbytes().raw
    found, expected = (classifier(backbone, precision="float64").fit(graphs, given) for given in (made, None))
    for first, second in zip(found.history_.epochs, expected.history_.epochs, strict=True):
        assert first == pytest.approx(second, rel=1e-9, abs=1e-9)
    few = made_by("lossless", GRAPHS, degrees=degrees)
    assert isinstance(few.content, Graphs)
    assert few.nbytes().raw == everything_of(GRAPHS).nbytes().raw


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mirag"}, r"method: expected one of mirage, scored, .*Did you mean 'mirage'"),
        ({"method": 3}, "method: expected one of"),
        (
            {"method": "mirage", "min_suport": 3},
            "method 'mirage': unknown key 'min_suport'.*Did you mean 'min_support'",
        ),
        ({"method": "scored", "faithful": True}, "method 'scored': unknown key 'faithful'"),
        ({"method": "lossless", "min_support": 3}, "method 'lossless': unknown key 'min_support'"),
        ({"num_hops": 0}, "num_hops: expected a whole number from 1"),
        ({"num_hops": 1.5}, "num_hops: expected a whole number from 1"),
        ({"seed": -1}, "seed: expected a whole number from 0"),
        ({"method": "lossless", "budget": 100}, r"budget: expected none with method 'lossless' \(got 100\)"),
        ({"method": "mirage", "min_support": 2, "budget": "1%"}, "budget: expected none with min_support"),
        ({"method": "mirage", "min_support": 2, "shared": "drop"}, "shared: expected 'keep' without faithful"),
        ({"method": "mirage", "faithful": "False"}, r"faithful: expected True or False \(got 'False'\)"),
        ({"method": "lossless", "degrees": "no"}, r"degrees: expected True or False \(got 'no'\)"),
        ({"seed": 1 << 32}, "seed: expected a whole number below 4294967296"),
        ({"budget": "9" * 400}, "budget: expected a number"),
        ({"budget": "1 per cent"}, "budget: expected bytes, such as"),
        ({"budget": 0}, "budget: expected a whole number from 1"),
        ({"graphs": GRAPHS.with_split({"val": [0], "test": [1]})}, "has no part 'train'"),
        ({"graphs": [GRAPHS[0]]}, r"graphs: expected g2m.Graphs \(got list\)"),
    ],
)
def test_what_cannot_be_done_is_refused(options, message):
    with pytest.raises(G2MError, match=message):
        condense(**{"graphs": GRAPHS, **options})


@pytest.mark.parametrize("method", [name for name in METHODS if name != "lossless"])
def test_a_budget_too_small_for_anything_is_refused(method):
    with pytest.raises(G2MError, match="budget: expected"):
        made_by(method, budget=2)


def test_numbers_of_numpy_in_a_list_can_be_saved(tmp_path):
    made = made_by("mirage", budget=None, min_support=[np.int64(2)] * GRAPHS.num_classes, faithful=True)
    assert CondensedSet.load(made.save(tmp_path / "s.safetensors")).meta["options"]["min_support"] == [2, 2]


def test_where_no_budget_is_needed_none_is_asked_for():
    assert len(made_by("lossless", budget=None)) == 16
    made = made_by("mirage", budget=None, min_support=2)
    assert made.meta["options"] == {"num_hops": 2, "seed": 0, "min_support": 2}
    assert same_bits(made_by("mirage", min_support=2), made)


@pytest.mark.parametrize("method", ["mirage", "scored"])
def test_trees_of_too_few_hops_are_refused_with_the_reason(method):
    made = made_by(method)
    with pytest.raises(G2MError, match=r"hops: expected trees of at least 3, as many as layers \(got 2\)"):
        classifier(num_layers=3).fit(GRAPHS, made)
    with pytest.raises(G2MError, match=r"at least 3, .* and one more, for the degrees of neighbours \(got 2\)"):
        classifier("gcn").fit(GRAPHS, made)
    for backbone in ("gin", "gcn"):
        assert classifier(backbone).fit(GRAPHS, made_by(method, degrees=True, budget=600)).history_.epochs
    assert classifier("gcn").fit(GRAPHS, made_by(method, num_hops=3, budget=600)).history_.epochs
    with pytest.raises(G2MError, match="condensed: expected a set made from these graphs"):
        classifier().fit(labelled("none"), made)
