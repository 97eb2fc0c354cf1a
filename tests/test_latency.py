import numpy as np
import pytest
import torch
from torch_geometric.nn import GraphSAGE
from torch_geometric.utils import k_hop_subgraph

from g2m import latency
from g2m.estimators import Student, Teacher
from g2m.graph import Graph
from g2m.latency import induced, measure, receptive_field, student_latency, teacher_latency
from g2m.models import GNN, sum_adjacency
from g2m.sparse import CSR

N = 60


def sparse_graph(*, directed: bool = False, sparse: bool = False, seed: int = 0) -> Graph:
    """A thin random graph: several components, isolated nodes, the first and the last node among them."""
    generator = torch.Generator().manual_seed(seed)
    edges = 1 + torch.randint(N - 12, (2, 45), generator=generator)
    if not directed:
        edges = torch.cat([edges, edges.flip(0)], 1)
    x = torch.randn(N, 40, generator=generator)
    if sparse:
        x = x * (torch.rand(N, 40, generator=generator) < 0.05)
    y = torch.arange(N) % 3
    ids = torch.arange(N)
    return Graph(x, edges, y, {"train": ids[:20], "val": ids[20:40], "test": ids[40:]}, name="thin")


SEEDS = {
    "one": torch.tensor([5]),
    "isolated": torch.tensor([N - 1]),
    "mixed": torch.tensor([N - 1, 7, 0, 3, N - 5, 11]),
    "all": torch.randperm(N, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("nodes", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("hops", [0, 1, 2, 5])
def test_receptive_field_is_the_k_hop_subgraph(nodes, directed, hops):
    graph = sparse_graph(directed=directed)
    expected, *_ = k_hop_subgraph(nodes, hops, graph.edge_index, num_nodes=N)
    found = receptive_field(sum_adjacency(graph), nodes, hops)
    assert found[: len(nodes)].tolist() == nodes.tolist()
    assert sorted(found.tolist()) == expected.tolist()


def test_the_graph_of_these_tests_has_what_they_are_about():
    graph = sparse_graph()
    linked = graph.edge_index.unique()
    assert not {0, N - 1} & set(linked.tolist())
    assert len(receptive_field(sum_adjacency(graph), SEEDS["one"], 2)) in range(3, N // 2)
    assert isinstance(sparse_graph(sparse=True).features, CSR)


BACKBONES = {
    "gcn": {},
    "sage": {},
    "sage-reference": {"reference": True},
    "gat": {"heads": 2},
    "gin": {},
    "appnp": {},
    "appnp-2": {"propagations": 2},
}


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_the_fetched_neighbourhood_answers_as_the_whole_graph_does(name, sparse, directed):
    graph = sparse_graph(directed=directed, sparse=sparse)
    torch.manual_seed(0)
    model = GNN(name.partition("-")[0], 40, 8, 3, num_layers=2, **BACKBONES[name]).eval()
    inputs, neighbours = model.inputs(graph), sum_adjacency(graph)
    with torch.no_grad():
        whole = model(*inputs).logits
        for nodes in SEEDS.values():
            field = receptive_field(neighbours, nodes, model.hops)
            part = model(inputs[0][field], induced(inputs[1], field)).logits
            torch.testing.assert_close(part[: len(nodes)], whole[nodes], rtol=1e-5, atol=1e-5)
    # One hop less is not enough: the comparison above can tell.
    nodes = torch.arange(N)[torch.isin(torch.arange(N), graph.edge_index[1])]
    with torch.no_grad():
        errors = []
        for node in nodes.split(1):
            short = receptive_field(neighbours, node, 0)
            part = model(inputs[0][short], induced(inputs[1], short)).logits
            errors.append((part[0] - whole[node[0]]).abs().max())
    assert max(errors) > 1e-3


@pytest.mark.parametrize("nodes", SEEDS.values(), ids=SEEDS)
def test_induced_is_the_dense_submatrix(nodes):
    graph = sparse_graph(directed=True)
    adjacency = sum_adjacency(graph)
    weighted = adjacency.with_value(torch.rand(adjacency.nnz))
    torch.testing.assert_close(induced(weighted, nodes).to_dense(), weighted.to_dense()[nodes][:, nodes])
    edges = induced(graph.edge_index, nodes)
    dense = torch.zeros(len(nodes), len(nodes))
    dense[edges[1], edges[0]] = 1
    torch.testing.assert_close(dense, adjacency.to_dense()[nodes][:, nodes])


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
    graph = sparse_graph()
    teacher = Teacher(name, hidden_channels=8, max_epochs=1).fit(graph)
    found = teacher_latency(teacher, graph, sizes=(1, 7, 2 * N))
    assert found.keys() == {1, 7, 2 * N}
    assert all(0 < time["p50"] <= time["p99"] for time in found.values())
    logits = teacher.predict_logits(graph)
    assert len(quick) == 6
    for answer in quick:  # whole passes, or of some nodes: rows of the teacher's answer
        assert (answer[:, None] - logits).abs().amax(-1).amin(1).max() < 1e-5


def test_teacher_latency_of_a_module_of_ones_own(quick):
    graph = sparse_graph()
    teacher = Teacher(GraphSAGE(40, 8, 1, 3), max_epochs=1).fit(graph)
    assert teacher_latency(teacher, graph, sizes=(1,))[1]["p50"] > 0
    torch.testing.assert_close(quick[0], teacher.predict_logits(graph))


def test_student_latency(quick):
    graph = sparse_graph()
    student = Student("mlp", hidden_channels=8, max_epochs=1).fit(graph)
    found = student_latency(student, graph, sizes=(1, 2 * N))
    assert found.keys() == {1, 2 * N}
    assert [len(answer) for answer in quick] == [1, 2 * N]
