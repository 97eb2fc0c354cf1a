from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import outputs_of, thin
from torch_geometric.nn import GraphSAGE

from g2m import latency
from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.latency import compare, measure, student_latency, teacher_latency
from g2m.report import time_against_size

N = 60


def test_measure_counts_calls_after_one_warm_up():
    calls = []
    assert measure(lambda: calls.append(1), repeats=5, seconds=1e9).keys() == {"p50", "p99"}
    assert len(calls) == 1 + 5
    calls.clear()
    measure(lambda: calls.append(1), repeats=50, seconds=0)
    assert len(calls) == 1 + 3, "three at least"


@pytest.mark.parametrize("seed", range(5))
def test_measure_gives_quantiles_in_milliseconds(monkeypatch, seed):
    durations = np.random.default_rng(seed).exponential(size=20).tolist()
    clock, left = [0.0], iter([123.0, *durations])  # the first is the warm-up

    def call():
        clock[0] += next(left)

    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])
    found = measure(call, repeats=20, seconds=1e9)
    p50, p99 = 1e3 * np.quantile(durations, [0.5, 0.99])
    assert found["p50"] == pytest.approx(p50, rel=1e-5)
    assert found["p99"] == pytest.approx(p99, rel=1e-5)
    assert found["p50"] <= found["p99"]


@pytest.fixture
def quick(monkeypatch) -> list:
    """Latency without waiting: every call is made three times."""
    answers = []

    def once(call, **_):
        answers.append(call())
        return measure(call, repeats=3)

    monkeypatch.setattr(latency, "measure", once)
    return answers


@pytest.mark.parametrize("name", ["gcn", "gat", "appnp"])
def test_teacher_latency_times_the_teachers_own_answers(quick, name):
    graph = thin()
    teacher = Teacher(name, hidden_channels=8, max_epochs=1).fit(graph)
    found = teacher_latency(teacher, graph, sizes=(1, 7, 2 * N))
    assert found.keys() == {1, 7, 2 * N}
    assert all(0 < time["p50"] <= time["p99"] for time in found.values())
    logits = teacher.predict_logits(graph)
    assert len(quick) == 6
    for answer in quick:  # whole passes, or of some nodes: rows of the teacher's answer
        assert (answer[:, None] - logits).abs().amax(-1).amin(1).max() < 1e-5


def test_teacher_latency_of_a_module_of_ones_own(quick):
    graph = thin()
    teacher = Teacher(GraphSAGE(40, 8, 1, 3), max_epochs=1).fit(graph)
    assert teacher_latency(teacher, graph, sizes=(1,))[1]["p50"] > 0
    logits = teacher.predict_logits(graph)
    assert (quick[0] - logits).abs().amax(1).min() < 1e-5


def test_student_latency(quick):
    graph = thin()
    student = Student("mlp", hidden_channels=8, max_epochs=1).fit(graph)
    found = student_latency(student, graph, sizes=(1, 2 * N))
    assert found.keys() == {1, 2 * N}
    assert [len(answer) for answer in quick] == [1, 2 * N]


def test_the_student_is_timed_where_the_teacher_is(quick, monkeypatch):
    """On CPU, whatever there is beside it: a student's own device would be the GPU."""
    graph, devices, answer = thin(), [], Student.predict_logits
    monkeypatch.setattr(Student, "predict_logits", lambda self, *x: devices.append(self.device) or answer(self, *x))
    student = Student("mlp", hidden_channels=8, max_epochs=1).fit(graph)
    devices.clear()
    student_latency(student, graph, sizes=(1,))
    assert {*devices} == {"cpu"}
    assert student.device == "auto"


def test_of_a_teachers_ways_the_faster_one_counts(monkeypatch):
    graph = thin()
    teacher = Teacher("gcn", hidden_channels=8, max_epochs=1).fit(graph)
    for times in ([3.0, 5.0], [5.0, 3.0]):
        left = iter(times)
        monkeypatch.setattr(latency, "measure", lambda *_, left=left, **__: dict.fromkeys(("p50", "p99"), next(left)))
        assert teacher_latency(teacher, graph, sizes=(1,))[1]["p50"] == 3.0


def test_time_given_is_time_for_every_size_and_way(monkeypatch):
    given = []
    monkeypatch.setattr(latency, "measure", lambda call, **options: given.append(options) or {"p50": 1.0, "p99": 1.0})
    graph = thin()
    teacher_latency(Teacher("gcn", hidden_channels=8, max_epochs=1).fit(graph), graph, seconds=0.25)
    student_latency(Student("mlp", hidden_channels=8, max_epochs=1).fit(graph), graph, sizes=(1,), seconds=0.5)
    options = {"repeats": latency.REPEATS}
    assert given == [options | {"seconds": 0.25}] * 4 + [options | {"seconds": 0.5}]


@pytest.mark.parametrize("name", ["nosmog", "mlp"])
def test_teacher_and_student_are_asked_about_the_same_many_nodes(monkeypatch, name):
    """A single node says little: neighbourhoods differ by orders of magnitude."""
    monkeypatch.setattr(latency, "measure", lambda call, **_: [call() for _ in range(latency.DRAWS)] and {"p50": 1.0})
    graph = thin().inductive(seed=0)
    teacher = Teacher("gcn", hidden_channels=8, max_epochs=1).fit(graph)
    outputs = teacher.outputs(graph) if name == "nosmog" else None
    student, asked = Student(name, hidden_channels=8, max_epochs=1).fit(graph, outputs), {"teacher": [], "student": []}

    def whole(model, graph):
        return {"": lambda nodes: (asked["teacher"].append(nodes.tolist()), 0)}

    def student_way(answer, graph, arcs_into):
        for nodes in latency._asked(graph, 1):
            assert len(answer(graph.x[nodes], arcs_into(nodes))) == 1  # whichever of its neighbours are known
        return lambda nodes: (asked["student"].append(nodes.tolist()), 0)

    monkeypatch.setattr(latency, "_ways", whole)
    monkeypatch.setattr(latency, "_student_way", student_way)
    teacher_latency(teacher, graph, sizes=(1,))
    student_latency(student, graph, sizes=(1,))
    assert asked["teacher"] == asked["student"]
    assert len({*map(tuple, asked["student"])}) > 20


# -- teacher and student side by side ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    graph = thin()
    teacher = Teacher("gcn", hidden_channels=8, max_epochs=1).fit(graph)
    return teacher, Student("glnn", hidden_channels=8, max_epochs=1).fit(graph, teacher.outputs(graph))


@pytest.fixture
def calls(monkeypatch) -> list:
    """Every measurement as the answers of its first three calls, without waiting."""
    found = []

    def once(call, **_):
        found.append([call() for _ in range(3)])
        return {"p50": float(len(found)), "p99": 2.0 * len(found)}

    monkeypatch.setattr(latency, "measure", once)
    monkeypatch.setattr(latency.torch.cuda, "is_available", lambda: False)
    return found


def without_onnx(monkeypatch):
    monkeypatch.setattr(latency, "find_spec", lambda name: None)


def test_rows_of_a_comparison(pair, calls):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    rows = compare(*pair, thin(), sizes=(1, 4), fan_out=(2, 3))
    models = ["teacher, all neighbours", "teacher, 2,3 sampled", "student", "student, onnxruntime"]
    assert [(row["model"], row["nodes"]) for row in rows] == [(model, size) for size in (1, 4) for model in models]
    assert {row["device"] for row in rows} == {"cpu"}
    for row in rows:
        assert row["nodes_per_second"] == pytest.approx(1e3 * row["nodes"] / row["p50"])
        assert row["p99"] == 2 * row["p50"]
        teachers = next(r for r in rows if r["nodes"] == row["nodes"])
        assert row["speedup"] == teachers["p50"] / row["p50"]
        assert (row["read"] == row["nodes"]) == row["model"].startswith("student")


def test_a_comparison_is_with_the_faster_way_of_the_teacher(pair, monkeypatch):
    without_onnx(monkeypatch)
    monkeypatch.setattr(latency.torch.cuda, "is_available", lambda: False)
    for times in ([3.0, 5.0, 1.5], [5.0, 3.0, 1.5]):  # the teacher's two ways, the student
        left = iter(times)
        monkeypatch.setattr(latency, "measure", lambda *_, left=left, **__: dict.fromkeys(("p50", "p99"), next(left)))
        rows = compare(*pair, thin(), sizes=(1,))
        assert [(row["p50"], row["speedup"]) for row in rows] == [(3.0, 1.0), (1.5, 2.0)]


def test_what_is_timed_are_the_two_models_answers_about_other_nodes_each_time(pair, calls, monkeypatch):
    without_onnx(monkeypatch)
    teacher, student = pair
    graph = thin()
    compare(teacher, student, graph, sizes=(4,), fan_out=(60, 60))
    by_teacher, by_student = teacher.predict_logits(graph), student.predict_logits(graph.x)
    assert len(calls) == 4, "the whole graph, all neighbours, a sample, the student"
    for answers, logits in zip(calls, [by_teacher] * 3 + [by_student], strict=True):
        asked = [latency._nodes(graph, 4, seed).unique() for seed in range(3)]
        assert len({tuple(nodes.tolist()) for nodes in asked}) == 3
        assert all((answer - logits[nodes]).abs().max() < 1e-5 for answer, nodes in zip(answers, asked, strict=True))


def test_of_more_nodes_than_there_are_the_student_answers_every_row(pair, calls, monkeypatch):
    without_onnx(monkeypatch)
    teacher, student = pair
    graph = thin()
    rows = compare(teacher, student, graph, sizes=(2 * N,))
    assert [row["nodes"] for row in rows] == [2 * N, 2 * N]
    (*by_teacher, by_student), logits = calls, (teacher.predict_logits(graph), student.predict_logits(graph.x))
    for seed in range(3):
        asked = latency._nodes(graph, 2 * N, seed)
        assert all(answers[seed].shape == logits[0][asked.unique()].shape for answers in by_teacher)
        torch.testing.assert_close(by_student[seed], logits[1][asked.sort().values])
    assert rows[1]["read"] == 2 * N


@pytest.mark.parametrize("method", ["nosmog", "onehop"])
def test_a_student_with_positions_reads_those_of_its_neighbours(calls, method):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    graph = thin()
    teacher = Teacher("gcn", hidden_channels=8, max_epochs=1).fit(graph)
    student = Student(method, hidden_channels=8, max_epochs=1).fit(graph, outputs_of(graph))
    rows = compare(teacher, student, graph, sizes=(30,))[-2:]
    assert [row["model"] for row in rows] == ["student", "student, onnxruntime"]
    asked = [latency._nodes(graph, 30, seed).unique() for seed in range(3)]
    into = [torch.isin(graph.edge_index[1], nodes) for nodes in asked]
    assert rows[0]["read"] == rows[1]["read"] == pytest.approx(30 + sum(int(arcs.sum()) for arcs in into) / 3)
    for by_torch, by_onnx, nodes, arcs in zip(*calls[-2:], asked, into, strict=True):
        source, target = graph.edge_index[:, arcs]
        expected = student.predict_logits(graph.x[nodes], torch.stack([source, torch.searchsorted(nodes, target)]))
        torch.testing.assert_close(by_torch, expected)
        torch.testing.assert_close(by_onnx, expected, atol=1e-5, rtol=1e-5)


def test_a_comparison_with_a_module_of_ones_own(calls, monkeypatch, pair):
    without_onnx(monkeypatch)
    graph = thin()
    own = Teacher(GraphSAGE(40, 8, 1, 3), max_epochs=1).fit(graph)
    rows = compare(own, pair[1], graph, sizes=(1,))
    assert rows[0]["read"] == graph.num_nodes
    with pytest.raises(G2MError, match="fan_out: a module of one's own"):
        compare(own, pair[1], graph, sizes=(1,), fan_out=(2,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ()}, "sizes: expected at least one number"),
        ({"sizes": (0,)}, r"sizes: expected a whole number from 1 \(got 0\)"),
        ({"fan_out": (5, 10, 15)}, r"fan_out: expected 2 numbers, one for each layer .*\(got 5, 10, 15\)"),
        ({"fan_out": (0, 1)}, "fan_out: expected a whole number from 1"),
    ],
)
def test_mistakes_in_a_comparison(pair, monkeypatch, options, message):
    without_onnx(monkeypatch)
    with pytest.raises(G2MError, match=message):
        compare(*pair, thin(), **options)


@pytest.mark.parametrize("sizes", [(), (0,), 5])
def test_mistakes_of_those_measured(pair, sizes):
    teacher, student = pair
    with pytest.raises(G2MError, match="sizes: expected"):
        teacher_latency(teacher, thin(), sizes=sizes)
    with pytest.raises(G2MError, match="sizes: expected"):
        student_latency(student, thin(), sizes=sizes)
    with pytest.raises(G2MError, match=r"teacher: expected a g2m.Teacher \(got Student\)"):
        compare(student, teacher, thin())
    with pytest.raises(G2MError, match="not fitted yet"):
        teacher_latency(Teacher("gcn"), thin())
    with pytest.raises(G2MError, match="not fitted yet"):
        student_latency(Student("mlp"), thin())


def test_a_comparison_on_another_graph(pair):
    other = thin()
    with pytest.raises(
        G2MError, match=r"graph: expected 40 features, as the teacher was trained on \(got 39, of 'thin'\)"
    ):
        compare(*pair, replace(other, x=other.x[:, 1:]))


def test_the_plot_has_a_line_for_every_model_and_device(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    labels = []
    errorbar = Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda *a, **k: labels.append((k["label"], list(a[1]))) or errorbar(*a, **k))
    rows = [
        {"model": model, "device": device, "nodes": nodes, "p50": 1.0 * nodes, "p99": 2.0 * nodes}
        for nodes in (1, 10)
        for model, device in (("teacher", "cpu"), ("student", "cpu"), ("student", "cuda"))
    ]
    path = time_against_size(rows, tmp_path / "new" / "plot.png", title="t")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert labels == [(label, [1, 10]) for label in ("teacher, cpu", "student, cpu", "student, cuda")]
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]
