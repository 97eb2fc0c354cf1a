"""What the trials of a sweep train on, and what becomes of each."""

from dataclasses import replace

import pytest
import torch

from g2m import trials
from g2m.data import load
from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.experiments import Experiment
from g2m.trials import NodeTrials, end_early, kept

QUICK = {"hidden_channels": 8, "max_epochs": 6}
GLNN = Experiment("sbm", "glnn", "sage", {"num_nodes": 300}, QUICK, QUICK)
MLP = Experiment("sbm", "mlp", None, {"num_nodes": 300}, {}, QUICK)
DROPOUTS = (0.0, 0.3, 0.6)


def go_on(i, record):
    return False


@pytest.fixture
def trainer(tmp_path):
    return lambda setting="transductive", **options: NodeTrials(setting, cache=tmp_path / "cache", **options)


@pytest.fixture
def loaded(monkeypatch):
    """What is really loaded, in order."""
    found = []

    def count(name, **options):
        found.append((name, options["seed"], options["setting"]))
        return load(name, **options)

    monkeypatch.setattr(trials, "load", count)
    return found


def test_a_method_that_searches_is_not_judged_by_its_first_candidate(trainer):
    alive, auto = [], replace(GLNN, method="auto", student_options={**QUICK, "budget": 2})
    students = trainer(alive=lambda: alive.append(1)).train([auto, GLNN], 0, lambda i, record: True)
    assert students[0].history_.best_score > 0
    assert students[1] is None, "reported, and ended"
    assert len(alive) >= 2 * QUICK["max_epochs"]


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
def test_the_graph_of_a_trial_has_no_test_part_and_no_other_labels(trainer, setting):
    graph = trainer(setting).graph(MLP, 1)
    whole = load("sbm", num_nodes=300, seed=1, setting=setting)
    assert graph.split.keys() == {"train", "val"}
    assert graph.setting == "transductive"
    chosen = torch.cat([graph.part("train"), graph.part("val")])
    others = torch.ones(graph.num_nodes, dtype=torch.bool)
    others[chosen] = False
    assert others.any()
    assert (graph.y[others] == -1).all()
    assert torch.equal(graph.y[chosen], whole.y[graph.node_id[chosen]])
    if setting == "inductive":
        assert not torch.isin(graph.node_id, whole.part("unseen")).any()
    for part in ("test", "unseen", "seen"):
        with pytest.raises(G2MError, match="has no part"):
            graph.part(part)


@pytest.mark.parametrize("together", [False, True])
def test_students_are_those_of_a_fit_on_the_whole_graph(trainer, together):
    own = trainer("inductive")
    experiments = [GLNN.changed({"dropout": dropout}) for dropout in DROPOUTS]
    groups = [experiments] if together else [[experiment] for experiment in experiments]
    students = [student for group in groups for student in own.train(group, 1, go_on)]
    graph = load("sbm", num_nodes=300, seed=1, setting="inductive")
    outputs = Teacher("sage", seed=1, **QUICK).fit(graph).outputs(graph)
    for student, dropout in zip(students, DROPOUTS, strict=True):
        alone = Student("glnn", seed=1, dropout=dropout, **QUICK).fit(graph, outputs)
        torch.testing.assert_close(student.predict_logits(graph.x), alone.predict_logits(graph.x), rtol=1e-3, atol=1e-4)
        if not together:
            assert student.history_.epochs == alone.history_.epochs


@pytest.mark.parametrize("together", [False, True])
def test_what_report_ends_is_none_and_the_others_do_not_notice(trainer, together):
    experiments, seen = [MLP.changed({"dropout": dropout}) for dropout in DROPOUTS], []
    own = trainer()

    def report(i, record):
        seen.append((i, record["epoch"]))
        assert 0 <= record["val"] <= 1
        return i == 1 and record["epoch"] == 2

    def train(report):
        if together:
            return own.train(experiments, 0, report)
        return [own.train([e], 0, lambda _, r, i=i: report(i, r))[0] for i, e in enumerate(experiments)]

    found, whole = train(report), train(go_on)
    assert found[1] is None
    assert sorted(seen) == [(i, epoch) for i in range(3) for epoch in range(3 if i == 1 else 6)]
    for i in (0, 2):
        assert len(found[i].history_) == len(whole[i].history_) == 6
        for a, b in zip(found[i].history_.epochs, whole[i].history_.epochs, strict=True):
            assert a == pytest.approx(b)


def test_those_of_a_shape_are_trained_together(trainer, monkeypatch):
    stacks = []
    fit_stacked = trials.fit_stacked

    def count(students, *given, **options):
        stacks.append([student.hidden_channels for student in students])
        return fit_stacked(students, *given, **options)

    monkeypatch.setattr(trials, "fit_stacked", count)
    widths = (8, 4, 8, 16, 4, 8)
    students = trainer().train([MLP.changed({"hidden_channels": width}) for width in widths], 0, go_on)
    assert [student.hidden_channels for student in students] == list(widths)
    assert all(hasattr(student, "history_") for student in students)
    assert sorted(stacks) == [[4, 4], [8, 8, 8]]


def test_mistakes_stay_where_they_are(trainer):
    """Of options, of a teacher's options, of data, of a training."""
    wrong = [{"lrr": 1}, {"dropout": 0.1}, {"teacher.norm": "bach"}, {"data.homophily": 2}, {"lr": 1e30}, {"lr": 0.02}]
    found = trainer().train([GLNN.changed(options) for options in wrong], 0, go_on)
    kinds = [type(one) for one in found]
    assert kinds == [G2MError, Student, G2MError, G2MError, G2MError, Student]
    for error, word in zip((found[0], found[2], found[3], found[4]), ("lrr", "bach", "homophily", "loss"), strict=True):
        assert word in str(error)


def test_graphs_and_teachers_are_kept(trainer, loaded, tmp_path, monkeypatch):
    own = trainer()
    own.prepare(GLNN, range(2))
    assert loaded == [("sbm", 0, "transductive"), ("sbm", 1, "transductive")]
    assert len(list(tmp_path.glob("cache/teachers/*.safetensors"))) == 2
    monkeypatch.setattr(Teacher, "fit", lambda *_, **__: pytest.fail("trained again"))
    for seed in (0, 1, 0):
        assert own.train([GLNN], seed, go_on)[0].history_
    assert len(loaded) == 2


def test_what_a_teacher_emits_is_of_the_graph_with_the_same_options(trainer):
    own = trainer()
    widths = (8, 12, 16)
    experiments = [GLNN.changed({"data.num_features": width}) for width in widths]
    for groups in ([experiments], [[experiment] for experiment in experiments]):
        students = [student for group in groups for student in own.train(group, 0, go_on)]
        assert [student.meta_["in_channels"] for student in students] == list(widths)


def test_a_stack_goes_on_without_one_whose_teacher_lacks_what_it_needs(trainer):
    vqgraph = replace(GLNN, method="vqgraph")
    with_codes = {"teacher.tokenizer": "beside", "teacher.num_codes": 8}
    found = trainer().train([vqgraph.changed(o) for o in ({}, with_codes, with_codes | {"lr": 0.02})], 0, go_on)
    assert [type(one) for one in found] == [G2MError, Student, Student]
    assert all(hasattr(student, "history_") for student in found[1:])


def test_latency_is_that_of_one_node_on_the_graph_of_the_student(trainer, monkeypatch):
    def told(student, graph, *, sizes):
        asked.append((student.meta_["in_channels"], graph.num_features, sizes))
        return {1: {"p50": 0.25, "p99": 9.0}}

    own, asked = trainer(), []
    monkeypatch.setattr(trials, "student_latency", told)
    for width in (8, 16):
        (student,) = own.train([MLP.changed({"data.num_features": width})], 0, go_on)
        assert own.cost(student, "latency") == 0.25
    assert asked == [(8, 8, (1,)), (16, 16, (1,))]


def test_graphs_of_all_seeds_are_kept_however_many(trainer, loaded):
    own = trainer()
    own.prepare(MLP, range(11))
    for seed in 2 * [*range(11)]:
        own.graph(MLP, seed)
    assert len(loaded) == 11


def test_teachers_are_asked_again_with_noise_for_methods_that_want_it_alone(trainer):
    own = trainer()
    assert own.outputs(GLNN, 0).entropy_change is None
    assert own.outputs(replace(GLNN, method="krd"), 0).entropy_change is not None


def test_a_searched_teacher_is_not_trained_beforehand(trainer, loaded):
    trainer().prepare(replace(GLNN, space={"teacher.lr": [0.1, 0.2]}), range(2))
    trainer().prepare(replace(GLNN, space={"data.homophily": [0.1, 0.2]}), range(2))
    assert loaded == []


def test_a_teacher_in_training_is_a_sign_of_life(trainer):
    signs = []
    trainer(alive=lambda: signs.append(1)).outputs(GLNN, 0)
    assert len(signs) == 6


def test_what_is_kept_is_kept_by_what_it_is_and_not_for_ever():
    store, made = {}, []

    def get(identity):
        return kept(store, identity, lambda: made.append(identity) or len(made), most=3)

    assert [get(i) for i in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1})] == [1, 1, 2]
    assert [get(i) for i in (3, 4)] == [3, 4]
    assert len(store) == 3
    assert get({"a": 1}) == 2
    assert get({"a": 1, "b": 2}) == 5, "the oldest went"


def test_end_early_says_whether_it_did():
    def fit(given, on_epoch):
        for epoch in range(5):
            on_epoch({"epoch": epoch, "given": given})

    seen = []
    assert end_early(fit, 7, report=lambda record: seen.append(record) or record["epoch"] == 2)
    assert seen == [{"epoch": epoch, "given": 7} for epoch in range(3)]
    assert not end_early(fit, 7, report=lambda record: False)
