import numpy as np
import pytest
import torch
from cases import thin
from torch_geometric.nn import GraphSAGE

from g2m import latency
from g2m.estimators import Student, Teacher
from g2m.latency import measure, student_latency, teacher_latency

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
    torch.testing.assert_close(quick[0], teacher.predict_logits(graph))


def test_student_latency(quick):
    graph = thin()
    student = Student("mlp", hidden_channels=8, max_epochs=1).fit(graph)
    found = student_latency(student, graph, sizes=(1, 2 * N))
    assert found.keys() == {1, 2 * N}
    assert [len(answer) for answer in quick] == [1, 2 * N]


def test_time_given_is_time_for_every_size_and_way(monkeypatch):
    given = []
    monkeypatch.setattr(latency, "measure", lambda call, **options: given.append(options) or {"p50": 1.0, "p99": 1.0})
    graph = thin()
    teacher_latency(Teacher("gcn", hidden_channels=8, max_epochs=1).fit(graph), graph, seconds=0.25)
    student_latency(Student("mlp", hidden_channels=8, max_epochs=1).fit(graph), graph, sizes=(1,), seconds=0.5)
    assert given == [{"seconds": 0.25}] * 4 + [{"seconds": 0.5}]
