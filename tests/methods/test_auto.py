"""Auto: a mixture against the methods it is made of, and the search for one."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from cases import blocks, fitted, intercept, of_the_neighbour, outputs_of, same_bits, steps, student, weights
from torch import Generator
from torch.nn import functional as F

from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.losses import soft_label_loss
from g2m.methods import REGISTRY, make_method
from g2m.methods.auto import BLEND, COMPONENTS, Auto, _blends
from g2m.methods.base import first_unless_beaten, label_loss
from g2m.models import MLP
from g2m.outputs import TeacherOutputs
from g2m.sparse import CSR

OPTIONS = {"dropout": 0.3, "batch_size": 7}
names = pytest.mark.parametrize("name", COMPONENTS)


def mixed(mixture: dict, graph, **options) -> tuple:
    return intercept(student("auto", mixture=mixture, **options), graph, outputs_of(graph))


# -- a mixture -----------------------------------------------------------------------------------------------------


def test_a_mixture_is_the_same_in_any_order(tmp_path):
    graph, mixture = blocks(), {"vqgraph": 1.0, "hidden": 2.0, "glnn": 1.0}
    first = fitted("auto", graph, mixture=mixture, **OPTIONS)
    second = fitted("auto", graph, mixture=dict(reversed(mixture.items())), **OPTIONS)
    again = Student.load(first.save(tmp_path / "s.safetensors")).fit(graph, outputs_of(graph))
    assert same_bits(weights(first), weights(second))
    assert same_bits(weights(first), weights(again))


@names
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_mixture_of_one_is_that_method(norm, name):
    graph = blocks(unseen=True)
    first = fitted("auto", graph, mixture={name: 0.3}, norm=norm, **OPTIONS)
    second = fitted(name, graph, norm=norm, **COMPONENTS[name], **OPTIONS)
    assert same_bits(weights(first), weights(second))
    assert [r["val"] for r in first.history_.epochs] == [r["val"] for r in second.history_.epochs]
    own = [{k.removeprefix(f"{name}."): v for k, v in record.items()} for record in first.history_.epochs]
    assert own == second.history_.epochs
    assert "trials" not in first.meta_
    assert first.meta_["figures"] == {f"weight of {name}": 1.0}


@pytest.mark.parametrize("warmup", [50, 1])
def test_krd_chooses_its_neighbours_in_a_mixture_too(warmup, monkeypatch):
    graph, options = blocks(), {"max_epochs": 6, **OPTIONS}
    monkeypatch.setitem(COMPONENTS, "krd", {"warmup": warmup})
    first = fitted("auto", graph, mixture={"krd": 1}, **options)
    assert same_bits(weights(first), weights(fitted("krd", graph, warmup=warmup, **options)))
    powers = [record["krd.power"] for record in first.history_.epochs]
    assert (powers == [1.0] * 6) == (warmup == 50)


def alone(name: str, method: Auto, graph) -> tuple:
    """A component's own method with the parameters it has in the mixture, and its own batches."""
    _, single, batches = intercept(student(name, batch_size=7, **COMPONENTS[name]), graph, outputs_of(graph))
    single.load_state_dict(method.components[name].state_dict())
    return single, batches


@pytest.mark.parametrize(
    "mixture",
    [
        {"glnn": 1, "krd": 3},
        {"propagated": 2.0, "simmlp": 0.5, "hidden": 1.5},
        {"ff_g2m": 1, "glnn": 1, "krd": 2, "hidden": 4},
        dict.fromkeys(COMPONENTS, 1.0),
    ],
    ids=lambda mixture: "+".join(mixture),
)
@pytest.mark.parametrize("unseen", [False, True])
def test_parts_are_those_of_the_methods_by_their_weights(unseen, mixture):
    """Batches with edges among them: of a method that takes none, the part is over the rows that were drawn."""
    graph = blocks(unseen=unseen)
    model, method, batches = mixed(mixture, graph, batch_size=7)
    share = {name: weight / sum(mixture.values()) for name, weight in mixture.items()}
    assert method.figures == {f"weight of {name}": pytest.approx(share[name]) for name in mixture}
    singles = {name: alone(name, method, graph) for name in mixture}
    epochs = {name: list(own.epoch(Generator().manual_seed(0))) for name, (_, own) in singles.items()}
    for i, batch in enumerate(batches.epoch(Generator().manual_seed(0))):
        assert (batch.edge_index is not None) == ("ff_g2m" in mixture)
        assert len(batch.row) > batch.batch_size or "ff_g2m" not in mixture
        parts = method(model(*batch.inputs), batch)
        expected = {"label": 0}
        for name, (single, _) in singles.items():
            own = epochs[name][i]
            assert torch.equal(own.row[: own.batch_size], batch.row[: batch.batch_size])
            for key, value in single(model(*own.inputs), own).items():
                key, value = (key if key == "label" else f"{name}.{key}"), share[name] * value
                expected[key] = expected.get(key, 0) + value
        assert parts.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"batch_size": 6}, {"batch_size": 6, "edge_batch_size": 9}, {"batch_size": "all"}])
@pytest.mark.parametrize("sparse", [False, True])
def test_rows_that_are_there_for_their_edges_are_no_ones_but_the_edges(sparse, options):
    graph = blocks()
    graph = replace(graph, x=F.one_hot(torch.arange(36) % 20, 20).float()) if sparse else graph
    mixture = {"ff_g2m": 1, "glnn": 1, "nosmog": 1, "krd": 1}
    model, method, batches = steps("auto", graph, mixture=mixture, **options)
    log_p = outputs_of(graph).log_soft_labels()
    for batch in batches:
        assert isinstance(batch.inputs[0], CSR) == sparse
        assert batch.edge_index is not None
        output = model(*batch.inputs)
        parts = method(output, batch)
        drawn = batch.row[: batch.batch_size]
        soft = soft_label_loss(model(graph.x[drawn]).logits, log_p[drawn])
        for name in ("glnn", "nosmog"):
            torch.testing.assert_close(parts[f"{name}.soft"], soft / 4, rtol=1e-4, atol=1e-6)
        # λ is 0.1 for FF-G2M and 0 for the others; nodes that are there for their edges are not labelled.
        torch.testing.assert_close(parts["label"], 0.1 / 4 * label_loss(output, batch), rtol=1e-4, atol=1e-6)
    fitted("auto", graph, mixture=mixture, **options)


def test_an_epoch_of_a_mixture_estimates_its_loss_without_bias():
    graph, mixture = blocks(), {"ff_g2m": 1, "glnn": 1, "krd": 1, "propagated": 1}
    model, method, (whole,) = steps("auto", graph, mixture=mixture, batch_size="all")
    _, cut, batches = mixed(mixture, graph, batch_size=6)
    expected = method(model(*whole.inputs), whole)
    found = [cut(model(*batch.inputs), batch) for batch in batches.epoch(Generator().manual_seed(0))]
    for key, value in expected.items():
        torch.testing.assert_close(torch.stack([p[key] for p in found]).mean(), value, rtol=1e-4, atol=1e-6)


def test_what_a_mixture_needs_is_what_its_methods_need():
    for mixture in ({"glnn": 1, "hidden": 1}, {"simmlp": 1}, {"krd": 1, "vqgraph": 1}, {"ff_g2m": 1}):
        method, parts = Auto(mixture=mixture), [REGISTRY[name](**COMPONENTS[name]) for name in mixture]
        assert method.needs == frozenset().union(*(part.needs for part in parts))
        assert method.takes_edges == any(part.takes_edges for part in parts)
    graph = blocks()
    bare = TeacherOutputs(outputs_of(graph).node_id, outputs_of(graph).logits, meta=outputs_of(graph).meta)
    with pytest.raises(G2MError, match=r"'auto' needs entropy_change, hidden, which"):
        student("auto", mixture={"krd": 1, "nosmog": 1}).fit(graph, bare)
    student("auto", mixture={"propagated": 1, "glnn": 1}).fit(graph, bare)
    assert student("auto", mixture={"simmlp": 1}).fit(graph).meta_["teacher"] is None


def test_a_mixture_under_the_reference_schedule():
    _, _, batches = steps("auto", blocks(), mixture={"ff_g2m": 1, "nosmog": 1}, batch_size=4, reference_schedule=True)
    assert {batch.only for batch in batches} == {"label", "teacher"}
    mixture = dict.fromkeys(COMPONENTS, 1.0)
    trained = fitted("auto", blocks(), mixture=mixture, batch_size=4, reference_schedule=True)
    assert all(math.isfinite(value) for record in trained.history_.epochs for value in record.values())


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"gln": 1}, r"mixture: expected one of .*'gln'.*Did you mean 'glnn'"),
        ({"mlp": 1}, r"mixture: expected one of .*propagated.*got 'mlp'"),
        ({"auto": 1}, r"mixture: expected one of"),
        ({}, r"mixture: expected weights by name.*got \{\}"),
        ({"glnn": 0}, r"mixture: glnn: expected a number in \(0"),
        ({"glnn": -1}, r"mixture: glnn"),
        ({"glnn": float("nan")}, r"mixture: glnn"),
        ({"glnn": "much"}, r"mixture: glnn"),
        ("glnn", r"mixture: expected weights by name.*got 'glnn'"),
        (0.5, r"mixture: expected weights by name.*got 0\.5"),
        (["glnn", "krd"], r"mixture: expected weights by name"),
    ],
    ids=str,
)
def test_what_is_no_mixture_is_refused(mixture, message):
    with pytest.raises(G2MError, match=message):
        make_method("auto", {"mixture": mixture})


@pytest.mark.parametrize("budget", [0, -1, 1.5, "8"])
def test_a_budget_is_a_whole_number(budget):
    with pytest.raises(G2MError, match=r"^budget: expected a whole number from 1"):
        Student("auto", budget=budget)


def test_a_mixture_is_saved_and_loaded(tmp_path):
    graph, mixture = blocks(), {"glnn": 1.0, "hidden": 2.0}
    trained = fitted("auto", graph, mixture=mixture)
    loaded = Student.load(trained.save(tmp_path / "s.safetensors"))
    assert loaded.options["mixture"] == {"glnn": 1.0, "hidden": 2.0} == Auto(**loaded.options).mixture
    assert torch.equal(loaded.predict_logits(graph.x), trained.predict_logits(graph.x))
    assert loaded.meta_ == trained.meta_


# -- the search ----------------------------------------------------------------------------------------------------


def tried(trained: Student) -> list[dict]:
    """What was tried, a method alone as a mixture of one."""
    return [trial.get("mixture", {trial["method"]: 1.0}) for trial in trained.meta_["trials"]]


@pytest.mark.parametrize("budget", [1, 2, 5, 8, 9, 14])
def test_the_blend_comes_first_then_each_method_alone_then_blends_of_other_weights(budget, capfd):
    trained = fitted("auto", blocks(), budget=budget, max_epochs=1)
    expected = [dict.fromkeys(sorted(BLEND), 1.0), *({name: 1.0} for name in COMPONENTS)]
    assert tried(trained)[:9] == expected[:budget]
    blends = tried(trained)[9:]
    assert len(blends) == max(budget - 9, 0)
    for weights_of in blends:
        assert len(weights_of) > 1
        assert all(0 < weight < 1 for weight in weights_of.values())
    assert capfd.readouterr().err == "", "Optuna says nothing of a study that is nobody's"
    for trial in trained.meta_["trials"]:
        options = REGISTRY[trial["method"]](**COMPONENTS.get(trial["method"], {})).options()
        assert trial.keys() == {"method", *options, "val"}
        assert COMPONENTS.get(trial["method"], {}).items() <= trial.items()


@pytest.mark.parametrize("budget", [1, 3, 5])
def test_students_that_read_of_neighbours_are_tried_before_the_blend(budget):
    trials = fitted("auto", blocks(), budget=budget, neighbours=True, max_epochs=1).meta_["trials"]
    assert [trial["method"] for trial in trials] == ["onehop", "onehop", "onehop", "auto", "propagated"][:budget]
    assert [(trial["lam"], trial["propagations"]) for trial in trials[:3]] == [(0, 10), (0, 0), (1, 10)][:budget]
    assert [trial.get("mixture") for trial in trials[3:]] == [dict.fromkeys(BLEND, 1.0), None][: max(budget - 3, 0)]


def test_a_student_that_reads_of_neighbours_may_be_the_best(tmp_path):
    graph = of_the_neighbour(0.0)
    options = {"max_epochs": 60, "hidden_channels": 16, "lr": 0.02, "budget": 4}
    trained = fitted("auto", graph, neighbours=True, **options)
    assert trained.evaluate(graph)["test"] > 0.9
    loaded = Student.load(trained.save(tmp_path / "s.safetensors"))
    assert torch.equal(loaded.predict_logits(graph), trained.predict_logits(graph))
    assert fitted("auto", graph, **options).position_ is None


def test_without_edges_there_are_no_neighbours_to_read_of():
    trained = fitted("auto", blocks(edges=False), budget=3, neighbours=True, max_epochs=1)
    assert [trial["method"] for trial in trained.meta_["trials"]] == ["auto", "glnn", "nosmog"]


def settled(scores: list[float], nodes: int = 400) -> int:
    """Which of so many students a search becomes, if these are their scores."""
    graph = blocks(nodes)  # a quarter of them is val
    model = MLP(graph.num_features, 8, graph.num_classes)
    search = Auto(budget=len(scores)).search(model, graph, outputs_of(graph))
    next(search)
    for score in scores[:-1]:
        search.send(score)
    with pytest.raises(StopIteration) as stopped:
        search.send(scores[-1])
    return stopped.value.value


def test_one_alone_has_to_beat_the_blend_by_a_standard_error():
    """At 0.8 on 100 nodes it is 0.04."""
    assert settled([0.8]) == 0
    assert settled([0.8, 0.7, 0.8]) == 0
    assert settled([0.8, 0.83, 0.839, 0.7]) == 0
    assert settled([0.8, 0.83, 0.841, 0.7]) == 2
    assert settled([0.8, 0.9, 0.85, 0.9]) == 1  # the first of equals
    assert settled([0.8, 0.839], nodes=800) == 1  # of twice as many nodes, a smaller one
    assert settled([1.0, 1.0]) == settled([0.0, 0.0]) == 0
    assert settled([0.0, 0.01]) == 1


def test_the_first_is_the_first_that_could_be_trained():
    none = -math.inf
    assert settled([none, 0.8, 0.839]) == settled([none, 0.8, none]) == 1
    assert settled([none, 0.8, 0.841]) == settled([none, none, 0.3]) == 2
    assert settled([none, none]) == 0


def test_of_an_area_the_standard_error_is_wider_where_one_class_is_rare():
    """Of 100 nodes, ten are of class 1: at 0.8 it is 0.0865."""
    graph = blocks(400, num_classes=2)
    rare = replace(graph, y=(torch.arange(400) % 10 == 0).long(), metric="rocauc")
    assert [first_unless_beaten([0.8, score], rare) for score in (0.841, 0.886, 0.887)] == [0, 0, 1]
    assert first_unless_beaten([0.8, 0.841], replace(rare, metric="accuracy")) == 1


def test_the_student_is_the_one_that_the_search_settles_on():
    graph, options = blocks(60, seed=3), {"max_epochs": 5, **OPTIONS}
    trained = fitted("auto", graph, budget=9, **options)
    scores = [trial["val"] for trial in trained.meta_["trials"]]
    assert len(set(scores)) > 1
    blend, *rest = trained.meta_["trials"]
    alone = [fitted("auto", graph, mixture=blend["mixture"], **options)]
    alone += [fitted(trial["method"], graph, **COMPONENTS[trial["method"]], **options) for trial in rest]
    assert [other.history_.best_score for other in alone] == scores
    best = scores.index(max(scores))
    won = best if max(scores) > scores[0] + (scores[0] * (1 - scores[0]) / 15) ** 0.5 else 0
    assert same_bits(weights(trained), weights(alone[won]))
    assert trained.history_.epochs == alone[won].history_.epochs
    assert trained.history_.best_score == trained.meta_["val"] == trained.score(graph, "val") == scores[won]
    assert trained.meta_["figures"] == {**alone[won].meta_["figures"], "taken": won}
    assert (trained.method, trained.params()["budget"]) == ("auto", 9)


def test_trials_are_saved(tmp_path):
    graph = blocks()
    trained = fitted("auto", graph, budget=2)
    loaded = Student.load(trained.save(tmp_path / "s.safetensors"))
    assert loaded.meta_ == trained.meta_
    assert len(loaded.meta_["trials"]) == 2
    assert trained.meta_["seconds"] == pytest.approx(trained.history_.seconds, abs=1e-3)


@pytest.mark.parametrize("lacking", ["hidden", "low_target", "entropy_change", "codebook"])
def test_what_the_teacher_does_not_say_is_not_tried(lacking):
    graph = blocks()
    gone = ("codebook", "code_input") if lacking == "codebook" else (lacking,)
    outputs = replace(outputs_of(graph), **dict.fromkeys(gone))
    trained = student("auto", budget=12, max_epochs=1).fit(graph, outputs)
    expected = [name for name in COMPONENTS if lacking not in REGISTRY[name].needs]
    assert len(expected) < len(COMPONENTS)
    assert {name for mixture in tried(trained) for name in mixture} == set(expected)


def test_weights_come_from_the_scores_so_far():
    """A loss of two methods is best where validation says so: near ¾ of the second, here; TPE goes there."""
    blends = _blends(["glnn", "krd"], [({"glnn": 1.0}, 0.0), ({"krd": 1.0}, 0.25), ({"glnn": 1.0, "krd": 1.0}, 0.5)])
    mixture, shares = next(blends), []
    for _ in range(60):
        shares.append(mixture["krd"] / sum(mixture.values()))
        mixture = blends.send(1 - abs(shares[-1] - 0.75))
    assert (
        sum(abs(share - 0.75) for share in shares[-20:]) < 0.7 * sum(abs(share - 0.75) for share in shares[:8]) * 20 / 8
    )
    again = _blends(["glnn", "krd"], [({"glnn": 1.0}, -math.inf)])
    first = next(again)
    assert again.send(-math.inf) != first, "one that could not be trained is no end"


@pytest.mark.parametrize("gone", [("hidden",), ("hidden", "low_target", "entropy_change", "codebook", "code_input")])
def test_nothing_is_tried_twice(gone):
    graph = blocks()
    trained = student("auto", budget=12, max_epochs=1).fit(graph, replace(outputs_of(graph), **dict.fromkeys(gone)))
    mixtures = [frozenset(mixture.items()) for mixture in tried(trained)]
    assert len(mixtures) == len(set(mixtures))


@pytest.mark.parametrize("taken_away", [False, True], ids=["a graph that has none", "a graph that was cut"])
def test_without_edges_methods_of_edges_are_not_tried(taken_away):
    graph = blocks(60) if taken_away else blocks(60, edges=False)
    taught = Teacher("gcn", hidden_channels=8, max_epochs=2, tokenizer="beside", num_codes=6, device="cpu").fit(graph)
    trained = student("auto", budget=12, max_epochs=1).fit(graph.without_edges(), taught.outputs(graph))
    assert {name for mixture in tried(trained) for name in mixture} == {"glnn", "nosmog", "vqgraph", "hidden"}


def of_one_code(graph) -> TeacherOutputs:
    """Of a teacher whose nodes all have the same code, which VQGraph refuses."""
    outputs = outputs_of(graph)
    return replace(outputs, code_input=outputs.code_input[:1].expand_as(outputs.code_input))


def test_a_method_that_cannot_be_trained_is_passed_over():
    graph = blocks()
    trained = student("auto", budget=9).fit(graph, of_one_code(graph))
    whole = fitted("auto", graph, budget=9)
    (failed,) = [trial for trial in trained.meta_["trials"] if "error" in trial]
    assert (failed["method"], failed["val"]) == ("vqgraph", None)
    assert failed["error"].startswith("outputs: all nodes have the same of 5 codes")
    kept = [trial for trial in whole.meta_["trials"] if trial["method"] != "vqgraph"]
    assert [trial for trial in trained.meta_["trials"] if trial != failed] == kept
    assert trained.meta_["seconds"] > 0


@pytest.mark.parametrize("what", [("hidden",), ("hidden", "propagated", "ff_g2m"), tuple(COMPONENTS)], ids="+".join)
def test_where_the_first_cannot_be_trained_the_next_takes_its_place(what, monkeypatch):
    """They have a loss that is not finite."""
    for name in what:
        monkeypatch.setattr(
            REGISTRY[name], "loss", lambda self, output, batch: {"label": output.logits.sum() * math.nan}
        )
    graph = blocks()
    if len(what) == len(COMPONENTS):
        with pytest.raises(G2MError, match="loss: became nan"):
            fitted("auto", graph, budget=9)
        return
    trained = fitted("auto", graph, budget=9)
    assert trained.history_.best_score == trained.score(graph, "val") > 0
    for trial, mixture in zip(trained.meta_["trials"], tried(trained), strict=True):
        assert (trial["val"] is None) == ("error" in trial) == bool(set(mixture) & set(what))


def test_a_student_of_one_layer_is_found_among_the_methods_that_read_no_hidden_state():
    graph = blocks()
    trained = student("auto", budget=12, max_epochs=1, num_layers=1).fit(graph, outputs_of(graph))
    assert {name for mixture in tried(trained) for name in mixture} == {"propagated", "ff_g2m", "krd", "glnn"}


def test_a_search_neither_reads_nor_moves_the_callers_random_stream():
    graph = blocks()
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(weights(fitted("auto", graph, budget=3, **OPTIONS)))
        assert torch.equal(torch.get_rng_state(), before)
    assert same_bits(*results)


# -- students that are there already -------------------------------------------------------------------------------


def without_seconds(trained: Student) -> dict:
    return {key: value for key, value in trained.meta_.items() if key != "seconds"}


def with_what_is_there(graph, there: list[Student], *, outputs=None, **options) -> tuple[Student, int]:
    """A search of four, and how many it trains."""
    begun = []

    def on_epoch(record):
        begun.extend([record] if record["epoch"] == 0 else [])

    searcher = student("auto", budget=4, **OPTIONS | options)
    searcher.fit(graph, outputs or outputs_of(graph), trained=there, on_epoch=on_epoch)
    return searcher, len(begun)


@pytest.mark.parametrize("names", [["propagated"], ["krd", "glnn", "ff_g2m"], ["ff_g2m", "krd", "propagated"]], ids=str)
def test_a_search_does_not_train_again_what_is_there(names, tmp_path):
    """It tries propagated, ff_g2m and krd after the blend."""
    graph = blocks(unseen=True)
    there = [fitted(name, graph, **OPTIONS) for name in names]
    before = copy.deepcopy([one.meta_ for one in there])
    whole, all_four = with_what_is_there(graph, [])
    less, trained = with_what_is_there(graph, there)
    assert (all_four, trained) == (4, 4 - len({*names} - {"glnn"}))
    assert same_bits(weights(whole), weights(less))
    assert without_seconds(whole) == without_seconds(less)
    assert [one.meta_ for one in there] == before
    assert less.meta_["seconds"] >= sum(one.meta_["seconds"] for one in there if one.method != "glnn") - 0.01
    loaded = [Student.load(one.save(tmp_path / f"{one.method}.safetensors")) for one in there]
    assert with_what_is_there(graph, loaded)[1] == trained
    again, none = with_what_is_there(graph, [whole])
    assert none == 0, "a search as a whole"
    assert (again.meta_, again.history_) == (whole.meta_, whole.history_)
    assert same_bits(weights(again), weights(whole))
    assert not {p.data_ptr() for p in again.model_.parameters()} & {p.data_ptr() for p in whole.model_.parameters()}


def test_a_student_of_outputs_that_differ_in_what_it_does_not_read_is_the_same():
    graph = blocks()
    there = student("propagated", **OPTIONS).fit(graph, replace(outputs_of(graph), hidden=None, entropy_change=None))
    assert with_what_is_there(graph, [there])[1] == 3


def test_students_of_older_versions_and_unfitted_ones():
    graph = blocks()
    there = fitted("propagated", graph, **OPTIONS)
    with pytest.raises(G2MError, match=r"^student: not fitted yet"):
        with_what_is_there(graph, [student("propagated", **OPTIONS)])
    del there.meta_["outputs"]
    assert with_what_is_there(graph, [there])[1] == 4
    there = fitted("propagated", graph, **OPTIONS)
    there.meta_["versions"] = {"g2m": "0.0.1"}
    assert with_what_is_there(graph, [there])[1] == 4


def test_a_search_with_indicators_does_not_go_on_from_one_without(tmp_path):
    graph, kept = blocks(), {"checkpoint": tmp_path / "c", "checkpoint_seconds": 1e9}
    searched(graph, stop=(3, 0), **kept)
    trained = student("auto", budget=4, max_epochs=3, patience=3, **OPTIONS)
    trained.fit(graph, outputs_of(graph), indicators=True, **kept)
    assert all("distance_gap" in epoch for epoch in trained.history_.epochs)
    kept["checkpoint_seconds"] = 0
    with pytest.raises(Killed):
        student("glnn", max_epochs=3).fit(graph, outputs_of(graph), on_epoch=stop_at_one, **kept)
    with pytest.raises(G2MError, match=r"checkpoint: .* made by another run, it differs in: indicators"):
        student("glnn", max_epochs=3).fit(graph, outputs_of(graph), indicators=True, **kept)


def stop_at_one(record):
    if record["epoch"] == 1:
        raise Killed


@pytest.mark.parametrize("what", ["option", "method's option", "seed", "graph", "setting", "outputs", "indicators"])
def test_a_student_of_anything_else_is_not_taken_for_one(what):
    graph, outputs, options = blocks(), outputs_of(blocks()), dict(OPTIONS)
    if what == "graph":
        graph = replace(graph, x=graph.x + 1)
        outputs = replace(outputs, meta={**outputs.meta, "fingerprint": graph.fingerprint()})
    options |= {"option": {"lr": 0.02}, "method's option": {"alpha": 0.2}, "seed": {"seed": 1}}.get(what, {})
    there = student("propagated", **options).fit(graph, outputs)
    other = blocks()
    if what == "setting":
        there.meta_["setting"] = "inductive"
    if what == "indicators":
        for method in ("auto", "propagated"):
            one = student(method, **OPTIONS).fit(other, outputs, trained=[there], indicators=True)
            assert all("distance_gap" in epoch for epoch in one.history_.epochs)
        return
    given = outputs_of(other, seed=int(what == "outputs"))
    assert with_what_is_there(other, [there], outputs=given)[1] == 4


# -- a search that is stopped --------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def searched(graph, *, stop: tuple[int, int] | None = None, seed: int = 0, **kept) -> tuple:
    """A search, ended after an epoch of a candidate if asked; with the epochs it has trained, by candidate."""
    epochs: list[list[int]] = []

    def on_epoch(record):
        if record["epoch"] == 0 or not epochs:
            epochs.append([])
        epochs[-1].append(record["epoch"])
        if stop is not None and (len(epochs) - 1, record["epoch"]) == stop:
            raise Killed

    searcher = student("auto", budget=4, max_epochs=3, patience=3, seed=seed, **OPTIONS)
    if stop is None:
        searcher.fit(graph, outputs_of(graph), on_epoch=on_epoch, **kept)
    else:
        with pytest.raises(Killed):
            searcher.fit(graph, outputs_of(graph), on_epoch=on_epoch, **kept)
    return searcher, epochs


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["with checkpoints", "between checkpoints"])
@pytest.mark.parametrize("stop", [(0, 1), (2, 0), (3, 2)], ids=str)
def test_a_stopped_search_goes_on_and_trains_nothing_again(stop, seconds, tmp_path):
    graph = blocks()
    whole, epochs = searched(graph)
    assert epochs == [[0, 1, 2]] * 4
    kept = {"checkpoint": tmp_path / "c", "checkpoint_seconds": seconds}
    searched(graph, stop=stop, **kept)
    assert list(tmp_path.iterdir()) or stop[0] == 0
    again, rest = searched(graph, **kept)
    candidate, last = stop
    started = list(range(last + 1, 3)) if seconds == 0 else [0, 1, 2]
    assert rest == [e for e in [started, *[[0, 1, 2]] * (3 - candidate)] if e]
    assert same_bits(weights(again), weights(whole))
    assert again.history_.epochs == whole.history_.epochs
    assert without_seconds(again) == without_seconds(whole)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("what", ["seed", "outputs", "graph"])
def test_what_another_search_left_is_not_taken_over(what, tmp_path):
    graph, kept = blocks(), {"checkpoint": tmp_path / "c", "checkpoint_seconds": 1e9}
    searched(graph, stop=(3, 0), **kept)
    assert len(list(tmp_path.iterdir())) == 3
    if what == "outputs":
        trained, reference = (
            student("auto", budget=4).fit(graph, outputs_of(graph, seed=1), **options) for options in (kept, {})
        )
    else:
        other = replace(graph, x=graph.x + 1) if what == "graph" else graph
        seed = int(what == "seed")
        (trained, epochs), (reference, _) = (searched(other, seed=seed, **options) for options in (kept, {}))
        assert len(epochs) == 4
    assert same_bits(weights(trained), weights(reference))
    assert without_seconds(trained) == without_seconds(reference)
    assert not list(tmp_path.iterdir())


def test_one_that_cannot_be_trained_fails_again_in_a_search_that_goes_on(tmp_path):
    """It is the fourth. What it fails by is no file: a checkpoint of another run still ends the search."""
    graph, options = blocks(), {"mixture": None, "budget": 5, "max_epochs": 2}
    outputs, kept = of_one_code(graph), {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}
    outputs = replace(outputs, hidden=None, low_target=None)  # tried: simmlp, propagated, krd, glnn, vqgraph
    whole = student("auto", **options).fit(graph, outputs)

    def stop(record):
        if len(list(tmp_path.glob("c.?"))) == 3 and record["epoch"] == 1:
            raise Killed

    with pytest.raises(Killed):
        student("auto", **options).fit(graph, outputs, on_epoch=stop, **kept)
    with pytest.raises(G2MError, match=r"^checkpoint: .*c\.3\.checkpoint.* made by another run"):
        student("auto", lr=0.02, **options).fit(graph, outputs, **kept)
    (tmp_path / "c.4").write_bytes((tmp_path / "c.0").read_bytes())  # of another search
    again = student("auto", **options).fit(graph, outputs, **kept)
    assert [("error" in trial) for trial in again.meta_["trials"]] == [False] * 4 + [True]
    assert without_seconds(again) == without_seconds(whole)
    assert same_bits(weights(again), weights(whole))
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_who_watches_a_search_may_end_it(tmp_path):
    told = []

    def on_epoch(record):
        told.append(record)
        if len(told) == 4:
            raise G2MError("on_epoch: enough.")

    graph = blocks()
    with pytest.raises(G2MError, match=r"on_epoch: enough\."):
        student("auto", budget=4, max_epochs=3).fit(graph, outputs_of(graph), on_epoch=on_epoch)
    assert len(told) == 4


def test_indicators_of_a_search_are_those_of_its_best():
    graph = blocks()
    trained = student("auto", budget=2).fit(graph, outputs_of(graph), indicators=True)
    assert "distance_gap" in trained.history_.epochs[0]
