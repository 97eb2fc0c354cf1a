"""GraphClassifier: what is trained on is the training graphs, computed together or node by node; what it keeps."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cases import blocks, same_bits, weights
from graph_cases import arranged, everything_else, labelled, of_nodes, other_edges, other_features, other_labels
from torch import Generator, Tensor
from torch.nn import functional as F

from g2m import G2MError, Graphs, Student, graph_classifier, load
from g2m.condense import condense
from g2m.graph_classifier import GraphClassifier
from g2m.graph_gnn import GRAPH_BACKBONES, POOLINGS
from g2m.models import NORMS

backbones = pytest.mark.parametrize("backbone", GRAPH_BACKBONES)


GRAPHS = labelled()
TASKS = labelled(tasks=3, metric="rocauc", num_classes=None)


def classifier(backbone: str = "gin", **options) -> GraphClassifier:
    return GraphClassifier(backbone, **{"hidden_channels": 8, "num_layers": 2, **SMALL, **options})


SMALL = {"max_epochs": 3, "batch_size": 7, "device": "cpu"}


def still(graphs: Graphs, **options) -> GraphClassifier:
    """One that hardly moves: what it answers after training is what it was trained at."""
    return classifier(max_epochs=1, lr=1e-12, batch_size="all", precision="float64", **options).fit(graphs)


# -- training ----------------------------------------------------------------------------------------------------------


@backbones
def test_it_learns(backbone):
    trained = classifier(backbone, lr=0.05, max_epochs=10, pooling="mean").fit(GRAPHS)
    losses = [record["loss"] for record in trained.history_.epochs]
    assert losses[-1] < 0.8 * losses[0]
    assert trained.score(GRAPHS, "val") == trained.history_.best_score == trained.meta_["val"]
    assert trained.meta_["condensed"] is None


@backbones
@pytest.mark.parametrize(("kind", "norm"), [("keys", "none"), ("values", "batch"), ("none", "layer")])
def test_training_is_the_same_with_rows_shared_or_not(backbone, kind, norm):
    graphs = labelled(kind)
    options = {"norm": norm, "dropout": 0.3, "pooling": "mean", "precision": "float64", "lr": 0.01}
    shared, each = (classifier(backbone, share=share, **options).fit(graphs) for share in (True, False))
    assert len(shared.history_) == len(each.history_)
    for first, second in zip(shared.history_.epochs, each.history_.epochs, strict=True):
        assert first == pytest.approx(second, rel=1e-9, abs=1e-9)
    assert shared.score(graphs) == each.score(graphs)
    torch.testing.assert_close(shared.predict_logits(graphs), each.predict_logits(graphs), rtol=1e-7, atol=1e-7)


def test_training_is_the_same_on_the_atlas_with_rows_shared_or_not():
    graphs = load("atlas")
    options = {"precision": "float64", "norm": "batch", "max_epochs": 3, "batch_size": 128}
    shared, each = (classifier(share=share, **options).fit(graphs) for share in (True, False))
    for first, second in zip(shared.history_.epochs, each.history_.epochs, strict=True):
        assert first == pytest.approx(second, rel=1e-9, abs=1e-9)
    assert shared.evaluate(graphs) == each.evaluate(graphs)


@pytest.mark.parametrize(
    "options",
    [{"share": False}, {"draws": 9}, {"norm": "batch", "dropout": 0.5}],
    ids=["by node", "drawn", "batch norm"],
)
def test_same_seed_same_bits(options):
    first, again, other = (classifier(seed=seed, **options).fit(GRAPHS) for seed in (0, 0, 1))
    assert same_bits(weights(first), weights(again))
    assert first.history_.epochs == again.history_.epochs
    assert not same_bits(weights(first), weights(other))


def test_the_callers_random_stream_is_left_alone():
    before = torch.get_rng_state()
    classifier(dropout=0.5, draws=9).fit(GRAPHS).predict(GRAPHS)
    assert torch.equal(torch.get_rng_state(), before)


@backbones
def test_the_order_of_graphs_nodes_and_arcs_is_nothing_to_training(backbone):
    other, order = arranged(GRAPHS)
    position = order.argsort()
    other = other.with_split({part: position[ids] for part, ids in GRAPHS.split.items()})
    options = {"batch_size": "all", "precision": "float64", "norm": "batch"}  # batches would be of other graphs
    first, second = (classifier(backbone, **options).fit(graphs) for graphs in (GRAPHS, other))
    for one, two in zip(first.history_.epochs, second.history_.epochs, strict=True):
        assert one == pytest.approx(two, rel=1e-9, abs=1e-9)
    logits = first.predict_logits(GRAPHS)[order]
    torch.testing.assert_close(second.predict_logits(other), logits, rtol=1e-8, atol=1e-8)


def test_all_at_once_is_one_step_of_all():
    whole, large = (classifier(batch_size=size).fit(GRAPHS) for size in ("all", 1000))
    assert same_bits(weights(whole), weights(large))
    assert not same_bits(weights(whole), weights(classifier(batch_size=7).fit(GRAPHS)))


def test_the_loss_is_the_cross_entropy_of_the_training_graphs():
    trained = still(GRAPHS)
    train = GRAPHS.subset(GRAPHS.part("train"))
    expected = F.cross_entropy(trained.predict_logits(train), train.y)
    (record,) = trained.history_.epochs
    assert record["loss"] == record["label"] == pytest.approx(float(expected), rel=1e-9)


def test_the_loss_of_several_tasks_is_the_mean_over_known_labels():
    trained = still(TASKS)
    train = TASKS.subset(TASKS.part("train"))
    known = ~train.y.isnan()
    assert not known.all()
    logits = trained.predict_logits(train)
    assert logits.shape == (16, 3)
    expected = F.binary_cross_entropy_with_logits(logits[known], train.y.double()[known])
    assert trained.history_.epochs[0]["loss"] == pytest.approx(float(expected), rel=1e-9)


def test_drawn_graphs_are_as_many_as_asked_for(monkeypatch):
    seen = []
    epoch = graph_classifier.GraphBatches.epoch

    def spy(self, generator: Generator):
        for batch in epoch(self, generator):
            seen.append(len(batch.row))
            yield batch

    monkeypatch.setattr(graph_classifier.GraphBatches, "epoch", spy)
    classifier(draws=9, max_epochs=2).fit(GRAPHS)
    assert seen == [7, 2] * 2


@pytest.mark.parametrize("lr", [1e-12, 0.1])
def test_epochs_are_reported_and_patience_ends_them(lr):
    seen = []
    trained = classifier(max_epochs=12, patience=2, lr=lr).fit(GRAPHS, on_epoch=seen.append)
    assert seen == trained.history_.epochs
    best = trained.history_.best_epoch  # the latest of equals
    assert best == max(range(len(seen)), key=lambda epoch: (seen[epoch]["val"], epoch)) == trained.meta_["best_epoch"]
    assert len(seen) == min(12, best + 3)


# -- checkpoints -------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stop_at_one(record: dict) -> None:
    if record["epoch"] == 1:
        raise Stop


@pytest.fixture
def often(monkeypatch):
    """Save every epoch."""
    monkeypatch.setattr(graph_classifier, "fit", functools.partial(graph_classifier.fit, checkpoint_seconds=0))


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(("graphs", "draws"), [(GRAPHS, None), (TASKS, 9)], ids=["classes", "tasks"])
def test_stopped_and_resumed_gives_the_bits_of_an_unbroken_run(graphs, draws, tmp_path):
    options = {"dropout": 0.5, "norm": "batch", "draws": draws, "max_epochs": 5}
    whole, again = (classifier(**options) for _ in range(2))
    whole.fit(graphs)
    with pytest.raises(Stop):
        again.fit(graphs, checkpoint=tmp_path / "c", on_epoch=stop_at_one)
    assert (tmp_path / "c").exists()
    seen = []
    again.fit(graphs, checkpoint=tmp_path / "c", on_epoch=lambda record: seen.append(record["epoch"]))
    assert seen == [2, 3, 4]
    assert same_bits(weights(whole), weights(again))
    assert whole.history_.epochs == again.history_.epochs
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("what", "options", "graphs"),
    [("config", {"pooling": "max"}, GRAPHS), ("seed", {"seed": 1}, GRAPHS), ("fingerprint", {}, labelled("none"))],
)
def test_the_checkpoint_of_another_run_is_refused(what, options, graphs, tmp_path):
    with pytest.raises(Stop):
        classifier().fit(GRAPHS, checkpoint=tmp_path / "c", on_epoch=stop_at_one)
    with pytest.raises(G2MError, match=rf"made by another run, it differs in: .*{what}"):
        classifier(**options).fit(graphs, checkpoint=tmp_path / "c")


# -- what training must not see ----------------------------------------------------------------------------------------


def gone(graphs: Graphs, ids: Tensor) -> Graphs:
    rest = torch.arange(len(graphs))
    return graphs.subset(rest[~torch.isin(rest, ids)])


CHANGES: dict[str, Callable[[Graphs, Tensor], Graphs]] = {
    f.__name__: f for f in (other_features, other_labels, other_edges, everything_else, gone)
}


@pytest.mark.parametrize(
    ("name", "graphs", "backbone"),
    [
        *[(name, GRAPHS, "gin") for name in CHANGES],
        ("everything_else", TASKS, "gin"),
        ("everything_else", GRAPHS, "gcn"),  # tells degrees apart
    ],
    ids=lambda v: v if isinstance(v, str) else f"{v.num_tasks} tasks",
)
def test_nothing_of_test_graphs_reaches_training(name, graphs, backbone):
    other = CHANGES[name](graphs, graphs.part("test"))
    assert other.fingerprint() != graphs.fingerprint()
    first, second = (classifier(backbone, norm="batch", max_epochs=2).fit(g) for g in (graphs, other))
    assert same_bits(weights(first), weights(second))
    assert first.history_.epochs == second.history_.epochs


def test_validation_graphs_choose_the_epoch_and_no_more():
    first, second = (classifier(norm="batch").fit(g) for g in (GRAPHS, everything_else(GRAPHS, GRAPHS.part("val"))))
    losses = [[record["loss"] for record in c.history_.epochs] for c in (first, second)]
    assert losses[0] == losses[1]
    shape = {"node_columns": [2, 2], "edge_columns": [2, 2], "x": True}
    assert first.meta_["in_channels"] == second.meta_["in_channels"] == shape


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> GraphClassifier:
    return classifier(norm="batch").fit(GRAPHS)


def test_answers_go_together(trained):
    logits = trained.predict_logits(GRAPHS)
    assert (logits.shape, logits.dtype, logits.requires_grad) == ((30, 2), torch.float32, False)
    torch.testing.assert_close(trained.predict_proba(GRAPHS), logits.softmax(-1))
    assert torch.equal(trained.predict(GRAPHS), logits.argmax(-1))
    scores = trained.evaluate(GRAPHS)
    assert list(scores) == ["val", "test"]
    for part, score in scores.items():
        ids = GRAPHS.part(part)
        assert score == float((logits.argmax(-1)[ids] == GRAPHS.y[ids]).double().mean())
        answers, y = trained.answers(GRAPHS)[part]
        assert answers.equal(trained.predict_logits(GRAPHS.subset(ids)))
        assert y.equal(GRAPHS.y[ids])
        assert trained.score(GRAPHS, part) == score
    assert trained.score(GRAPHS) == scores["test"]
    assert trained.evaluate(GRAPHS, "rocauc").keys() == scores.keys()
    assert trained.num_parameters() == sum(p.numel() for p in trained.model_.parameters())


def test_answers_for_several_tasks():
    trained = classifier(precision="float64").fit(TASKS)
    logits = trained.predict_logits(TASKS)
    assert (logits.shape, logits.dtype) == ((30, 3), torch.float64)
    torch.testing.assert_close(trained.predict_proba(TASKS), logits.sigmoid())
    assert torch.equal(trained.predict(TASKS), (logits > 0).long())
    assert all(0 <= score <= 1 for score in trained.evaluate(TASKS).values())
    assert trained.evaluate(TASKS, "accuracy")["test"] != trained.evaluate(TASKS)["test"]


def test_a_graph_is_answered_as_if_alone(trained, monkeypatch):
    logits = trained.predict_logits(GRAPHS)
    for ids in ([4], [7], [29, 2, 2]):
        torch.testing.assert_close(trained.predict_logits(GRAPHS.subset(ids)), logits[ids], rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(graph_classifier, "_PREDICT_GRAPHS", 7)
    torch.testing.assert_close(trained.predict_logits(GRAPHS), logits, rtol=1e-5, atol=1e-5)


def test_an_unknown_category_is_as_good_as_any_other(trained):
    ids = torch.tensor([1, 3])
    first, second = (
        replace(GRAPHS, x=torch.where(of_nodes(GRAPHS, ids)[:, None], value, GRAPHS.x)) for value in (2, 77)
    )
    assert torch.equal(trained.predict_logits(first), trained.predict_logits(second))
    assert not torch.equal(trained.predict_logits(first), trained.predict_logits(GRAPHS))


@backbones
def test_sharing_is_nothing_to_a_trained_network(backbone):
    trained = classifier(backbone, precision="float64").fit(GRAPHS)
    logits = trained.predict_logits(GRAPHS)
    trained.share = False
    torch.testing.assert_close(trained.predict_logits(GRAPHS), logits, rtol=1e-11, atol=1e-11)


@backbones
def test_its_program_is_what_its_network_takes(backbone):
    trained = classifier(backbone, precision="float64", num_layers=3).fit(GRAPHS)
    program = trained.program(GRAPHS)
    assert (len(program), program.num_layers) == (30, 3)
    assert torch.equal(trained.model_(program).logits.detach(), trained.predict_logits(GRAPHS))


# -- files -------------------------------------------------------------------------------------------------------------


@backbones
@pytest.mark.parametrize(
    ("graphs", "options"),
    [
        (GRAPHS, {"norm": "batch", "batch_size": "all", "draws": 12}),
        (TASKS, {"precision": "float64", "share": False, "pooling": "mean"}),
        (labelled("values"), {"norm": "layer", "dropout": 0.2, "pooling": "max"}),
    ],
    ids=["classes", "tasks", "values"],
)
def test_saved_and_loaded_it_is_the_same(backbone, graphs, options, tmp_path):
    options = options | {"gat": {"heads": 2}, "sage": {"reference": True}}.get(backbone, {})
    trained = classifier(backbone, max_epochs=1, **options).fit(graphs)
    loaded = GraphClassifier.load(trained.save(tmp_path / "c.safetensors"))
    assert same_bits(weights(trained), weights(loaded))
    assert loaded.params() == trained.params() | {"device": "auto"}
    assert loaded.history_.epochs == trained.history_.epochs
    assert loaded.meta_ == trained.meta_
    assert not loaded.model_.training
    loaded.device = "cpu"
    assert torch.equal(loaded.predict_logits(graphs), trained.predict_logits(graphs))
    assert torch.equal(loaded.predict(graphs), trained.predict(graphs))
    assert loaded.evaluate(graphs) == trained.evaluate(graphs)


def test_a_file_is_that_of_a_graph_classifier(trained, tmp_path):
    path = trained.save(tmp_path / "c.safetensors")
    with pytest.raises(G2MError, match="graph classifier"):
        Student.load(path)


def test_repr_can_be_pasted_back():
    assert repr(GraphClassifier("gat", heads=2, share=False)) == "GraphClassifier('gat', share=False, heads=2)"
    made = classifier("sage", reference=True, draws=5)
    assert eval(repr(made)).params() == made.params()


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("gni", {}, r"backbone: expected one of gat, gcn, gin, sage .*Did you mean 'gin'"),
        ("appnp", {}, "backbone: expected one of"),
        (3, {}, "backbone: expected one of"),
        ("gin", {"heads": 4}, "backbone 'gin': unknown key 'heads'"),
        ("gin", {"hidden_chanels": 4}, "unknown key 'hidden_chanels'.*Did you mean 'hidden_channels'"),
        ("gat", {"head": 4}, "backbone 'gat': unknown key 'head'.*Did you mean 'heads'"),
        ("gat", {"heads": 3}, "heads: expected a divisor of hidden_channels=64"),
        ("gat", {"attention_dropout": 1.5}, "attention_dropout: expected a number"),
        ("gat", {"attention_dropout": 0.5}, "attention_dropout: expected 0 where equal trees .*share=False"),
        ("gin", {"pooling": "meen"}, "pooling: .*Did you mean 'mean'"),
        ("gin", {"norm": "bach"}, "norm: .*Did you mean 'batch'"),
        ("gin", {"precision": "float16"}, "precision: expected one of float32, float64"),
        ("gin", {"hidden_channels": 0}, "hidden_channels: expected a whole number from 1"),
        ("gin", {"num_layers": 1.5}, "num_layers: expected a whole number from 1"),
        ("gin", {"dropout": 2}, "dropout: expected a number"),
        ("gin", {"lr": 0}, "lr: expected a number"),
        ("gin", {"batch_size": 0}, "batch_size: expected a whole number from 1"),
        ("gin", {"batch_size": "al"}, "batch_size: .*or 'all'"),
        ("gin", {"draws": 0}, "draws: expected a whole number from 1"),
        ("gin", {"seed": -1}, "seed: expected a whole number from 0"),
        ("gin", {"max_epochs": 0}, "max_epochs: expected"),
        ("gin", {"device": "gpu"}, "device: expected 'auto' or a device of this machine"),
    ],
)
def test_wrong_options_are_refused_at_once(backbone, options, message):
    with pytest.raises(G2MError, match=message):
        GraphClassifier(backbone, **options)


@pytest.mark.parametrize("wrong", ["small.safetensors", GRAPHS, []], ids=lambda v: type(v).__name__)
def test_what_is_no_condensed_set_is_refused(wrong):
    with pytest.raises(G2MError, match=rf"condensed: expected a CondensedSet \(got {type(wrong).__name__}\)"):
        classifier().fit(GRAPHS, wrong)


def test_arcs_are_dropped_node_by_node_or_not_at_all():
    dropping = classifier("gat", attention_dropout=0.5, share=False, max_epochs=1)
    dropping.fit(GRAPHS)
    with pytest.raises(G2MError, match=r"attention_dropout: expected 0 .*A condensed set always is"):
        dropping.fit(GRAPHS, condense(GRAPHS, budget="50%"))


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.predict(GRAPHS),
        lambda c: c.predict_proba(GRAPHS),
        lambda c: c.score(GRAPHS),
        lambda c: c.save("nowhere"),
        lambda c: c.num_parameters(),
    ],
)
def test_an_untrained_one_says_so(call):
    with pytest.raises(G2MError, match="graphclassifier: not fitted yet"):
        call(GraphClassifier())


@pytest.mark.parametrize("wrong", [blocks(), [GRAPHS[0]], GRAPHS[0], None], ids=lambda v: type(v).__name__)
def test_what_is_no_set_of_graphs_is_refused(wrong, trained):
    for call in (classifier().fit, trained.predict, trained.predict_logits):
        with pytest.raises(G2MError, match=rf"graphs: expected g2m.Graphs \(got {type(wrong).__name__}\)"):
            call(wrong)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_missing_part_is_named(part):
    graphs = GRAPHS.with_split({name: ids for name, ids in GRAPHS.split.items() if name != part})
    with pytest.raises(G2MError, match=f"has no part '{part}'"):
        classifier().fit(graphs)


def test_parts_that_are_not_there_have_no_score(trained):
    assert list(trained.evaluate(GRAPHS.with_split({"test": [0, 1]}))) == ["test"]
    assert trained.evaluate(GRAPHS.with_split({})) == {}
    with pytest.raises(G2MError, match=r"part: expected one of val, test \(got 'train'\)"):
        trained.score(GRAPHS, "train")
    with pytest.raises(G2MError, match=r"has no part 'test'"):
        trained.score(GRAPHS.with_split({}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": GRAPHS.x[:, :1]},
            r"expected 2 columns of categories in x, as in training \(got 1 columns of categories\)",
        ),
        ({"x": GRAPHS.x.float()}, r"expected 2 columns of categories in x, .*\(got 2 columns of numbers\)"),
        ({"x": None}, "expected 2 columns of categories in x"),
        ({"edge_attr": GRAPHS.edge_attr[:, :1]}, "expected 2 columns of categories in edge_attr"),
        (
            {"edge_attr": GRAPHS.edge_attr.float()},
            r"expected 2 columns of categories in edge_attr, .*got 2 columns of numbers",
        ),
    ],
)
def test_features_of_another_kind_are_refused(change, message, trained):
    with pytest.raises(G2MError, match=f"graphs: {message}"):
        trained.predict(replace(GRAPHS, **change))


def test_numbers_where_there_were_numbers():
    graphs = labelled("values")
    trained = classifier().fit(graphs)
    assert trained.meta_["in_channels"] == {"node_columns": 2, "edge_columns": None, "x": True}
    with pytest.raises(G2MError, match=r"expected 2 columns of numbers in x, .*columns of categories"):
        trained.predict(GRAPHS)


def test_labels_of_another_kind_are_not_scored(trained):
    with pytest.raises(G2MError, match=r"logits: expected .* one per label of every task"):
        trained.evaluate(TASKS)


def test_batch_norm_of_a_single_node_is_refused():
    graphs = Graphs([[0], [1], [0]], [], [0, 1, 0], [0, 1, 2, 3], split={"train": [0, 1], "val": [2]})
    with pytest.raises(G2MError, match="norm: 'batch' needs two nodes a step"):
        classifier(norm="batch", batch_size=1).fit(graphs)
    assert math.isfinite(classifier(norm="layer", batch_size=1).fit(graphs).history_.best_score)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_graphs_without_arcs_can_be_trained_on(norm, pooling):
    graphs = Graphs(None, [], [0, 1] * 4, torch.arange(9) // 2 * 2, split={"train": range(6), "val": [6, 7]})
    trained = classifier(norm=norm, pooling=pooling).fit(graphs)
    assert trained.predict(graphs).shape == (8,)
    assert trained.meta_["in_channels"] == {"node_columns": [1], "edge_columns": None, "x": False}


def test_attributes_that_training_had_are_missed():
    """Without them there would be an answer, and a wrong one."""
    trained = classifier().fit(GRAPHS)
    for name in ("x", "edge_attr"):
        with pytest.raises(G2MError, match=rf"categories in {name}, as in training \(got none\)"):
            trained.predict_logits(replace(GRAPHS, **{name: None}))
    degrees = classifier().fit(replace(GRAPHS, x=None))
    with pytest.raises(G2MError, match=r"expected none in x, as in training \(got 2 columns of categories\)"):
        degrees.predict_logits(GRAPHS)


def test_what_is_no_set_of_graphs_or_no_part_is_refused():
    trained = classifier().fit(GRAPHS)
    with pytest.raises(G2MError, match=r"expected g2m\.Graphs"):
        trained.evaluate([])
    with pytest.raises(G2MError, match="has no part 'test'"):
        trained.score(replace(GRAPHS, split={"val": GRAPHS.part("val")}))
    with pytest.raises(G2MError, match="share: expected True or False"):
        classifier(share="no")
