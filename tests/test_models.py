"""Networks against PyG's own layers, dense formulas and arithmetic by hand."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch_geometric.nn as pyg
import torch_geometric.typing
from cases import blocks, shuffled, thin, weights
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from g2m import models
from g2m.errors import G2MError
from g2m.estimators import Teacher
from g2m.graph import Graph
from g2m.models import (
    BACKBONES,
    GNN,
    MLP,
    Ensemble,
    Linear,
    Output,
    Part,
    PropagateConv,
    Wrapped,
    mean_adjacency,
    relu_dropout,
    relu_dropout_of,
    sum_adjacency,
    symmetric_adjacency,
)
from g2m.sparse import CSR, features


def random_graph(kind: str, num_nodes: int = 9, num_features: int = 6, seed: int = 0) -> Graph:
    """Undirected, directed, with loops kept on some nodes, or with isolated nodes."""
    generator = Generator().manual_seed(seed)
    dense = torch.rand(num_nodes, num_nodes, generator=generator) < 0.3
    dense.fill_diagonal_(False)
    if kind == "undirected":
        dense |= dense.T.clone()
    if kind == "isolated":
        dense[:3], dense[:, :3] = False, False
    if kind == "loops":
        dense[1, 1] = dense[4, 4] = True
    x = torch.randn(num_nodes, num_features, generator=generator) * (
        torch.rand(num_nodes, num_features, generator=generator) < 0.4
    )
    return Graph(x, dense.nonzero().T, torch.arange(num_nodes) % 3, keep_loops=kind == "loops")


KINDS = ("undirected", "directed", "isolated", "loops")
graphs = pytest.mark.parametrize("kind", KINDS)
backbones = pytest.mark.parametrize("backbone", sorted(BACKBONES))


def build(backbone: str, *sizes: int, **options) -> GNN:
    torch.manual_seed(0)
    model = GNN(backbone, *(sizes or (6, 8, 3)), **options)
    for name, p in model.named_parameters():  # zeros would hide a missing term
        if "bias" in name or name.endswith("eps"):
            nn.init.normal_(p)
    return model


def dense_adjacency(graph: Graph) -> Tensor:
    dense = torch.zeros(graph.num_nodes, graph.num_nodes)
    dense[graph.edge_index[1], graph.edge_index[0]] = 1
    return dense


# -- each backbone against an oracle -----------------------------------------------------------------------------


def gcn_oracle(model: GNN, graph: Graph) -> tuple[Tensor, Tensor]:
    convs = []
    for ours in model.backbone.convs:
        conv = pyg.GCNConv(ours.linear.in_features, ours.linear.out_features)
        conv.lin.weight, conv.bias = ours.linear.weight, ours.bias
        convs.append(conv)
    hidden = convs[0](graph.x, graph.edge_index).relu()
    return hidden, convs[1](hidden, graph.edge_index)


def sage_oracle(model: GNN, graph: Graph) -> tuple[Tensor, Tensor]:
    dense = dense_adjacency(graph).fill_diagonal_(2.0 if model.backbone.reference else 1.0)
    mean = dense / dense.sum(1, keepdim=True)
    first, second = model.backbone.convs
    hidden = (mean @ graph.x @ first.linear.weight.T + first.bias).relu()
    return hidden, mean @ hidden @ second.linear.weight.T + second.bias


def gin_oracle(model: GNN, graph: Graph) -> tuple[Tensor, Tensor]:
    convs = []
    for ours in model.backbone.convs:
        width, out = ours.second.in_features, ours.second.out_features
        mlp = nn.Sequential(nn.Linear(ours.first.in_features, width), nn.ReLU(), nn.Linear(width, out))
        conv = pyg.GINConv(mlp, train_eps=True)
        for index, linear in ((0, ours.first), (2, ours.second)):
            mlp[index].weight, mlp[index].bias = linear.weight, linear.bias
        conv.eps = ours.eps
        convs.append(conv)
    hidden = convs[0](graph.x, graph.edge_index).relu()
    return hidden, convs[1](hidden, graph.edge_index)


def appnp_oracle(model: GNN, graph: Graph) -> tuple[Tensor, Tensor]:
    first, second = model.backbone.mlp.layers
    hidden = F.linear(graph.x, first.weight, first.bias).relu()
    propagate = pyg.APPNP(model.backbone.propagations, model.backbone.alpha)
    return hidden, propagate(F.linear(hidden, second.weight, second.bias), graph.edge_index)


def gat_oracle(model: GNN, graph: Graph) -> tuple[Tensor, Tensor]:
    first = pyg.GATConv(6, 2, heads=4)
    second = pyg.GATConv(8, 3, heads=1, concat=False)
    for conv, ours, projection in zip((first, second), model.backbone.convs, model.backbone.projections, strict=True):
        for name, parameter in ours.named_parameters():
            setattr(conv, name, parameter)
        conv.lin.weight = projection.weight
    hidden = first(graph.x, graph.edge_index).relu()
    return hidden, second(hidden, graph.edge_index)


ORACLES = [
    ("gcn", {}, gcn_oracle),
    ("sage", {}, sage_oracle),
    ("sage", {"reference": True}, sage_oracle),
    ("gin", {}, gin_oracle),
    ("appnp", {"propagations": 3, "alpha": 0.2}, appnp_oracle),
    ("gat", {"heads": 4}, gat_oracle),
]


@graphs
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize(("backbone", "options", "oracle"), ORACLES, ids=lambda v: v if isinstance(v, str) else "")
def test_equals_its_oracle_in_value_and_gradient(backbone, options, oracle, sparse, kind):
    graph = random_graph(kind)
    model = build(backbone, **options).eval()
    x = CSR.from_dense(graph.x) if sparse else graph.x
    output = model(x, model.backbone.adjacency(graph))
    hidden, logits = oracle(model, graph)
    torch.testing.assert_close(output.hidden, hidden)
    torch.testing.assert_close(output.logits, logits)
    ours, expected = (
        torch.autograd.grad(answer.square().sum(), [*model.parameters()]) for answer in (output.logits, logits)
    )
    for found, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backbone", "options", "oracle"), ORACLES[:3], ids=lambda v: v if isinstance(v, str) else "")
def test_order_of_map_and_propagation_is_nothing_to_the_result(backbone, options, oracle):
    graph = random_graph("undirected")
    model = build(backbone, 6, 20, 3, **options).eval()  # widens, then narrows: both orders
    adjacency = model.backbone.adjacency(graph)
    assert [conv._linear_first(adjacency) for conv in model.backbone.convs] == [False, True]
    torch.testing.assert_close(model(graph.x, adjacency).logits, oracle(model, graph)[1])


@pytest.mark.parametrize("shape", [(9, 9), (2, 9)], ids=["square", "cut"])
@pytest.mark.parametrize(("inner", "out"), [(6, 20), (20, 6), (5, 5)])
def test_either_order_of_map_and_propagation_gives_the_same(inner, out, shape, monkeypatch):
    adjacency = sum_adjacency(random_graph("directed"), loops=1.0)[torch.arange(shape[0])]
    torch.manual_seed(0)
    conv, x, upstream = PropagateConv(inner, out, 1.0), torch.randn(9, inner), torch.randn(shape[0], out)
    nn.init.normal_(conv.bias)
    results = []
    for first in (True, False):
        monkeypatch.setattr(PropagateConv, "_linear_first", lambda *_, first=first: first)
        y = conv(x, adjacency)
        results.append((y, *torch.autograd.grad(y, list(conv.parameters()), upstream)))
    expected = adjacency.to_dense() @ x @ conv.linear.weight.T + conv.bias
    torch.testing.assert_close(results[0][0], expected)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_map_goes_first_where_it_leaves_less_to_do():
    graph = random_graph("undirected")
    square = sum_adjacency(graph, loops=1.0)
    one_row, all_but = square[torch.tensor([0])], square.shape[1]
    assert PropagateConv(100, 3, 1.0)._linear_first(square)
    assert not PropagateConv(3, 100, 1.0)._linear_first(square)
    # Mapping what one row reads is dearer than mapping the one row.
    assert one_row.shape == (1, all_but)
    assert not PropagateConv(100, 90, 1.0)._linear_first(one_row)


# -- by hand: the path 0-1-2 and node 3 alone ----------------------------------------------------------------------

PATH = Graph(
    torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), torch.tensor([0, 1, 0, 1])
)
S6 = math.sqrt(6)


@pytest.mark.parametrize(
    ("adjacency", "expected"),
    [
        (sum_adjacency(PATH), [2, 4, 2, 0]),
        (mean_adjacency(PATH), [1.5, 2, 2.5, 4]),
        (mean_adjacency(PATH, reference=True), [4 / 3, 2, 8 / 3, 4]),
        (symmetric_adjacency(PATH), [1 / 2 + 2 / S6, 1 / S6 + 2 / 3 + 3 / S6, 3 / 2 + 2 / S6, 4]),
    ],
    ids=["sum", "mean", "reference", "symmetric"],
)
def test_by_hand(adjacency, expected):
    torch.testing.assert_close((adjacency @ PATH.x).flatten(), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("reference", [False, True])
@graphs
def test_mean_weights_sum_to_one_and_loops_count_once(kind, reference):
    graph = random_graph(kind)
    dense = mean_adjacency(graph, reference=reference).to_dense()
    degree = dense_adjacency(graph).fill_diagonal_(0).sum(1)
    torch.testing.assert_close(dense.sum(1), torch.ones(graph.num_nodes))
    own = (2.0 if reference else 1.0) / (degree + (2 if reference else 1))
    torch.testing.assert_close(dense.diagonal(), own)


def test_arcs_point_from_source_to_target():
    graph = Graph(torch.eye(3), torch.tensor([[0], [1]]), torch.tensor([0, 1, 0]))
    expected = torch.zeros(3, 3)
    expected[1, 0] = 1
    assert torch.equal(sum_adjacency(graph).to_dense(), expected)


# -- what holds for every backbone -----------------------------------------------------------------------------------


@backbones
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_sparse_features_equal_dense_ones(backbone, norm):
    graph = random_graph("undirected")
    model, grads = build(backbone, norm=norm), []
    model = model.eval() if backbone in {"gat", "appnp"} else model.train()  # these drop out at random in training
    for x in (graph.x, CSR.from_dense(graph.x)):
        output = model(x, model.backbone.adjacency(graph))
        grads.append((output.logits, *torch.autograd.grad(output.logits.square().sum(), list(model.parameters()))))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@backbones
@graphs
def test_node_order_permutes_the_output(backbone, kind):
    graph = random_graph(kind)
    other, order = shuffled(graph)
    model = build(backbone).eval()
    first, second = (model(*model.inputs(g)) for g in (graph, other))
    torch.testing.assert_close(second.logits, first.logits[order])
    torch.testing.assert_close(second.hidden, first.hidden[order])


@backbones
def test_an_isolated_node_is_a_graph_of_its_own(backbone):
    graph = random_graph("isolated")
    model = build(backbone).eval()
    with pytest.warns(UserWarning, match="no edges"):
        alone = Graph(graph.x[:3], torch.empty(2, 0), graph.y[:3])
    torch.testing.assert_close(model(*model.inputs(alone)).logits, model(*model.inputs(graph)).logits[:3])


@backbones
def test_one_layer(backbone):
    graph = random_graph("undirected")
    model = build(backbone, num_layers=1, dropout=0.5 if backbone in {"gcn", "sage", "gin"} else 0.0)
    output = model.train()(*model.inputs(graph))
    assert output.logits.shape == (9, 3)
    assert output.hidden is None
    if backbone in {"gcn", "sage", "gin"}:  # there is nothing to drop
        assert torch.equal(output.logits, model.eval()(*model.inputs(graph)).logits)


@backbones
@pytest.mark.parametrize("num_layers", [2, 3])
def test_hidden_is_the_input_of_the_last_layer(backbone, num_layers):
    graph = random_graph("undirected")
    model = build(backbone, num_layers=num_layers).eval()
    x, adjacency = model.inputs(graph)
    output = model(x, adjacency)
    assert output.hidden.shape == (9, 8)
    if backbone != "appnp":
        last = output.hidden
        if backbone == "gat":  # PyG's convolution: arcs from one set of nodes to another, here the same
            x = model.backbone.projections[-1](last)
            last, adjacency = (x, x), torch.stack([adjacency.col.long(), adjacency.row_of_entry()])
        torch.testing.assert_close(model.backbone.convs[-1](last, adjacency), output.logits)


@backbones
@pytest.mark.parametrize("num_layers", [2, 3])
def test_what_stands_between_is_what_the_last_layer_reads(backbone, num_layers):
    graph, options = random_graph("undirected"), {"num_layers": num_layers, "dropout": 0.5}
    model = build(backbone, **options).eval()
    x, adjacency = model.inputs(graph)
    plain, seen = model(x, adjacency), []
    same = model(x, adjacency, between=lambda hidden: (seen.append(hidden), hidden)[1])
    assert torch.equal(same.logits, plain.logits)
    assert len(seen) == 1
    assert torch.equal(seen[0], plain.hidden)
    other = torch.randn(9, 8)
    first, second = (model(z, adjacency, between=lambda _: other) for z in (x, x + 1))
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.hidden, plain.hidden)  # as it was before
    assert not torch.equal(first.logits, plain.logits)


@backbones
def test_the_hidden_state_comes_to_what_stands_between_before_dropout(backbone):
    model, seen = build(backbone, dropout=1.0), []
    inputs = model.inputs(random_graph("undirected"))
    hidden = model(*inputs, between=lambda hidden: (seen.append(hidden), hidden)[1]).hidden
    assert hidden.any()
    assert torch.equal(seen[0], hidden)
    assert not model(*inputs).hidden.any()
    assert backbone == "gat" or torch.equal(hidden, model.eval()(*inputs).hidden)  # gat: the features are gone as well


@backbones
@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
def test_norm_stands_between_hidden_layers_only(backbone, norm, kind):
    model = build(backbone, num_layers=3, norm=norm)
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.LayerNorm))]
    assert len(norms) == 2
    assert all(isinstance(m, kind) and m.weight.shape == (8,) for m in norms)


@backbones
def test_dropout_acts_in_training_alone(backbone):
    graph = random_graph("undirected")
    model = build(backbone, dropout=0.5)
    inputs = model.inputs(graph)
    assert not torch.equal(model(*inputs).logits, model(*inputs).logits)
    model.eval()
    assert torch.equal(model(*inputs).logits, model(*inputs).logits)


@backbones
def test_layer_order_is_conv_norm_relu(backbone):
    """With the norm's weight at 0 and its bias at -1, the hidden layer is the ReLU of -1."""
    graph = random_graph("undirected")
    model = build(backbone, norm="layer").eval()
    norm = next(m for m in model.modules() if isinstance(m, nn.LayerNorm))
    nn.init.zeros_(norm.weight)
    for constant in (-1.0, 2.0):
        nn.init.constant_(norm.bias, constant)
        hidden = model(*model.inputs(graph)).hidden
        assert torch.equal(hidden, torch.full((9, 8), max(constant, 0.0)))


def test_appnp_drops_edges_in_training_and_restarts():
    graph = random_graph("undirected")
    model = build("appnp", alpha=1.0)
    x, adjacency = model.inputs(graph)
    torch.testing.assert_close(model(x, adjacency).logits, model.backbone.mlp(x).logits)
    model = build("appnp", edge_dropout=0.0)
    assert torch.equal(model(x, adjacency).logits, model.eval()(x, adjacency).logits)


# -- answers in chunks ---------------------------------------------------------------------------------------------


@backbones
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_rows_computed_a_few_at_once_are_those_computed_together(backbone, norm, sparse, monkeypatch):
    """On the whole graph and on a receptive field; under a module's own batch statistics never."""
    graph = thin(sparse=sparse)
    model = build(backbone, 40, 8, 3, num_layers=3, norm=norm, **PLAIN.get(backbone, {})).train()
    together = model(*model.inputs(graph)).logits.detach()
    fields = [model.inputs(graph), model.inputs_for(graph, ASKED["mixed"])[0]]
    model.eval()
    with torch.no_grad():
        whole = [model(*inputs) for inputs in fields]
        for rows in (1, 7, 59):
            monkeypatch.setattr("g2m.models.ROWS", rows)
            for inputs, expected in zip(fields, whole, strict=True):
                output = model(*inputs)
                torch.testing.assert_close(output.logits, expected.logits)
                torch.testing.assert_close(output.hidden, expected.hidden)
    assert torch.equal(model.train()(*model.inputs(graph)).logits, together)


@pytest.mark.parametrize("backbone", ["gat", "gcn", "gin", "sage"])
def test_a_layer_of_answers_takes_two_arrays_not_three(backbone, monkeypatch):
    """What it reads and what it writes; the largest tensor of a chunk is of the chunk's size."""
    nodes = 4000
    ring = torch.arange(nodes)
    graph = Graph(torch.rand(nodes, 64), torch.stack([ring, ring.roll(1)]), ring % 2, {"train": ring[:2]})
    model = build(backbone, 64, 64, 2, num_layers=3).eval()
    inputs = model.inputs(graph)

    def peak() -> float:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found, torch.no_grad():
            model(*inputs)
        changes = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
        changes.sort(key=lambda event: event.start_ns())
        return max(itertools.accumulate(event.nbytes() for event in changes)) / (nodes * 64 * 4)

    at_once = peak()
    monkeypatch.setattr("g2m.models.ROWS", 100)
    assert peak() < 2.5 < at_once


# -- no more than the receptive field --------------------------------------------------------------------------------

PLAIN = {"appnp": {"propagations": 3, "edge_dropout": 0.0}, "gat": {"heads": 2, "attention_dropout": 0.0}}
ASKED = {
    "one": torch.tensor([5]),
    "isolated": torch.tensor([59]),
    "mixed": torch.tensor([59, 7, 0, 3, 55, 11]),
    "all": torch.randperm(60, generator=Generator().manual_seed(1)),
}


def is_cut(inputs: tuple) -> bool:
    return isinstance(inputs[1], list)


def test_the_thin_graph_has_what_these_tests_are_about():
    graph = thin()
    linked = graph.edge_index.unique().tolist()
    assert 5 in linked
    assert not {0, 59} & set(linked)
    assert isinstance(graph.features, Tensor)
    assert isinstance(thin(sparse=True).features, CSR)
    for backbone in BACKBONES:
        model = build(backbone, 40, 8, 3, **PLAIN.get(backbone, {}))
        assert [is_cut(model.inputs_for(graph, nodes)[0]) for nodes in ASKED.values()] == [True, True, True, False]


@backbones
@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("directed", [False, True], ids=["undirected", "directed"])
def test_the_receptive_field_answers_as_the_whole_graph_does(backbone, norm, num_layers, sparse, directed):
    """In value and in gradient, for one node or many, isolated ones too."""
    graph = thin(directed=directed, sparse=sparse)
    model = build(backbone, 40, 8, 3, num_layers=num_layers, norm=norm, **PLAIN.get(backbone, {})).train()
    parameters = list(model.parameters())
    whole = model(*model.inputs(graph))
    for nodes in ASKED.values():
        inputs, row = model.inputs_for(graph, nodes)
        part = model(*inputs)
        assert torch.equal(row, nodes if is_cut(inputs) else torch.arange(60))
        assert part.logits.shape == (len(row), 3)
        torch.testing.assert_close(part.logits, whole.logits[row], rtol=1e-4, atol=1e-5)
        if num_layers == 1:
            assert part.hidden is None
        else:
            assert part.hidden.shape == (len(row), 8)
            torch.testing.assert_close(part.hidden, whole.hidden[row], rtol=1e-4, atol=1e-5)
        upstream = torch.randn(len(row), 3)
        for a, b in zip(
            torch.autograd.grad(part.logits, parameters, upstream),
            torch.autograd.grad(whole.logits[row], parameters, upstream, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@backbones
def test_no_layer_answers_for_more_nodes_than_the_next_one_reads(backbone):
    graph = thin()
    model = build(backbone, 40, 8, 3, num_layers=3, **PLAIN.get(backbone, {}))
    (x, layers), row = model.inputs_for(graph, ASKED["mixed"])
    sizes = [len(x), *(len(layer) for layer in layers)]
    assert [layer.shape[1] for layer in layers] == sizes[:-1]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == len(row) < sizes[0] < graph.num_nodes
    assert len(layers) == model.hops
    assert torch.equal(x[: len(row)], graph.x[row])


@backbones
def test_batch_norm_gets_every_node(backbone):
    """Its statistics are over all of them; a network of one layer has none."""
    graph = thin()
    for num_layers in (1, 2, 3):
        model = build(backbone, 40, 8, 3, num_layers=num_layers, norm="batch", **PLAIN.get(backbone, {}))
        inputs, row = model.inputs_for(graph, ASKED["one"])
        assert is_cut(inputs) is (num_layers == 1)
        if num_layers > 1:
            assert torch.equal(row, torch.arange(60))
            assert inputs[0] is graph.features
            assert len(inputs[1]) == 60


@backbones
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_whole_graph_is_taken_where_less_gains_nothing(backbone, num_layers):
    ring = torch.arange(40)
    graph = Graph(torch.randn(40, 6), torch.stack([ring, ring.roll(1)]), ring % 3, {})
    model = build(backbone, num_layers=num_layers, **PLAIN.get(backbone, {}))
    for nodes, cut in [(ring, False), (ring[1:], False), (ring[::8], True), (ring[:4], True)]:
        inputs, row = model.inputs_for(graph, nodes)
        assert is_cut(inputs) is cut
        assert torch.equal(row, nodes if cut else ring)
        if not cut:
            assert inputs[0] is graph.features
            assert inputs[1].shape == (40, 40)
        else:
            assert sum(layer.nnz for layer in inputs[1]) < model.hops * model.inputs(graph)[1].nnz


def test_no_propagation_and_no_edges_take_the_whole_graph():
    model = build("appnp", 40, 8, 3, propagations=0)
    assert torch.equal(model.inputs_for(thin(), ASKED["one"])[1], torch.arange(60))
    with pytest.warns(UserWarning, match="no edges"):
        empty = Graph(torch.randn(9, 6), torch.empty(2, 0), torch.arange(9) % 3)
    model = build("gin")
    inputs, row = model.inputs_for(empty, torch.tensor([2]))
    torch.testing.assert_close(model(*inputs).logits, model(*model.inputs(empty)).logits[row])


def test_a_module_of_ones_own_gets_the_whole_graph():
    graph = thin()
    (x, edge_index), row = Wrapped(pyg.GraphSAGE(6, 8, 2)).inputs_for(graph, ASKED["one"])
    assert x is graph.x
    assert edge_index is graph.edge_index
    assert torch.equal(row, torch.arange(60))


@backbones
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_teacher_trained_on_receptive_fields_is_the_one_trained_on_the_whole(backbone, norm, monkeypatch):
    options = {"hidden_channels": 8, "norm": norm, "max_epochs": 12, "lr": 0.003, "device": "cpu"}
    options |= PLAIN.get(backbone, {})
    split = {"train": torch.arange(0, 30, 3), "val": torch.arange(1, 31, 3), "test": torch.arange(60, 120)}
    graph, cut, teachers = replace(thin(num_nodes=120), split=split), [], []
    inputs_for = GNN.inputs_for

    def spy(self: GNN, graph: Graph, nodes: Tensor) -> tuple[tuple, Tensor]:
        inputs, row = inputs_for(self, graph, nodes)
        cut.append(is_cut(inputs))
        return inputs, row

    def everything(self: GNN, graph: Graph, nodes: Tensor) -> tuple[tuple, Tensor]:
        return self.inputs(graph), torch.arange(graph.num_nodes)

    for function in (spy, everything):
        monkeypatch.setattr(GNN, "inputs_for", function)
        teachers.append(Teacher(backbone, **options).fit(graph))
    assert cut == [True, True]
    first, second = teachers
    for a, b in zip(first.history_.epochs, second.history_.epochs, strict=True):
        assert (a["loss"], a["label"], a["val"]) == pytest.approx((b["loss"], b["label"], b["val"]), rel=1e-4)
    assert first.history_.best_epoch == second.history_.best_epoch
    for a, b in zip(weights(first).values(), weights(second).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# -- ReLU and dropout in one -----------------------------------------------------------------------------------------

P = (0.0001, 0.1, 0.5, 0.9, 0.99)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def taken(p: float) -> float:
    """The probability in place of ``p``: sixteen bits an entry."""
    return round(p * 2**16) / 2**16


def dropped_ones(p: float, size: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return relu_dropout(torch.ones(size), p, True)


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (1.0, False), (0.0, True)])
def test_relu_dropout_is_relu_in_evaluation_or_at_zero(p, training):
    x = torch.randn(50, 7)
    assert torch.equal(relu_dropout(x.clone(), p, training), x.relu())


def test_relu_dropout_at_one_leaves_nothing():
    leaf = torch.randn(50, 7, requires_grad=True)
    y = relu_dropout(leaf * 1, 1.0, True)
    assert not y.any()
    assert not torch.autograd.grad(y.sum(), leaf)[0].any()


@dtypes
@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("shape", [(0, 3), (1,), (3, 5), (7,), (64, 32), (2**20 + 3,), (3, 2**19 + 1)])
def test_relu_dropout_keeps_scaled_entries_exactly_and_its_gradient_follows(shape, p, dtype):
    torch.manual_seed(0)
    leaf, upstream = torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(shape, dtype=dtype)
    y = relu_dropout(leaf * 1, p, True)
    gradient = torch.autograd.grad(y, leaf, upstream)[0]
    with torch.no_grad():
        kept, scale = y > 0, 1 / (1 - taken(p))
        assert y.dtype == gradient.dtype == dtype
        assert torch.equal(y, torch.where(kept, leaf.relu() * scale, 0))
        assert torch.equal(gradient, torch.where(kept, upstream * scale, 0))


def test_relu_dropout_passes_gradcheck():
    x = torch.randn(6, 7, dtype=torch.float64, generator=Generator().manual_seed(0), requires_grad=True)

    def call(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return relu_dropout(x * 1, 0.4, True)

    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(call, x)


@pytest.mark.parametrize("p", P)
def test_relu_dropout_keeps_as_many_as_it_should_everywhere(p):
    """Within five standard deviations: in all, in each part that is drawn at once, in each quarter of a draw."""
    size = 2**21 + 2**18
    kept = dropped_ones(p, size) > 0
    for some in (kept, kept[: 2**20], kept[2**20 : 2**21], kept[2**21 :], *(kept[i::4] for i in range(4))):
        n = len(some)
        error = 5 * (n * p * (1 - p)) ** 0.5 + n * 2**-17  # the second term: a step of the probability
        assert abs(int(some.sum()) - n * (1 - p)) <= error


@pytest.mark.parametrize("p", [2**-16, 0.25, 0.5, 1 - 2**-4, 1 - 2**-10])
def test_relu_dropout_is_unbiased(p):
    size = 2**22
    y = dropped_ones(p, size)
    assert abs(float(y.double().mean()) - 1) <= 5 * (p / (1 - p) / size) ** 0.5


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_relu_dropout_next_to_the_ends_of_its_range_is_finite(p):
    y = dropped_ones(p, 2**18)
    assert torch.isfinite(y).all()
    assert torch.equal(y, torch.ones(2**18)) if p < 0.5 else int(y.count_nonzero()) < 50


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_relu_dropout_treats_neighbours_independently(p):
    size = 2**21 + 2**20
    kept = (dropped_ones(p, size) > 0).double() - (1 - p)
    for lag in (1, 2, 3, 4, 5, 8, 16, 64, 4096, 2**18, 2**20, 2**21):
        a, b = kept[:-lag], kept[lag:]
        assert abs(float((a * b).mean())) <= 5 * p * (1 - p) / len(a) ** 0.5


def test_relu_dropout_draws_from_torchs_generator():
    first, again, other = (dropped_ones(0.5, 2**20 + 5, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(0)
    once, twice = (relu_dropout(torch.ones(999), 0.5, True) for _ in range(2))
    assert not torch.equal(once, twice)


@pytest.mark.parametrize("shape", [(4, 5, 6), (20, 6)])
@pytest.mark.parametrize("rows", [(5, 5, 5, 5), (5, 3, 0, 4)])
def test_relu_dropout_of_several_is_that_of_each_alone(rows, shape):
    """Gradients included; filling behind a member's rows takes no draws."""
    leaf, chances = torch.randn(shape, requires_grad=True), (0.0, 0.3, 0.5, 1.0)
    generators = [Generator().manual_seed(seed) for seed in range(4)]
    y = relu_dropout_of(
        leaf * 1, [Part(n * 6, p, generator) for n, p, generator in zip(rows, chances, generators, strict=True)]
    )
    (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
    for seed, (n, p) in enumerate(zip(rows, chances, strict=True)):
        torch.manual_seed(seed)
        own = leaf.detach().view(4, 5, 6)[seed, :n].clone().requires_grad_()
        alone = relu_dropout(own * 1, p, True)
        assert torch.equal(y.view(4, 5, 6)[seed, :n], alone)
        assert torch.equal(gradient.view(4, 5, 6)[seed, :n], torch.autograd.grad(alone.square().sum(), own)[0])
        assert torch.equal(torch.get_rng_state(), generators[seed].get_state())


def test_relu_dropout_may_write_into_its_input_but_not_into_a_leaf():
    leaf = torch.randn(6, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        relu_dropout(leaf, 0.5, True)
    # A result that its own operation keeps for its gradient is protected as well.
    kept_by_exp = leaf.exp()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        relu_dropout(kept_by_exp, 0.5, True).sum().backward()
    with torch.no_grad():
        assert relu_dropout(leaf.exp(), 0.5, True).grad_fn is None


def test_relu_dropout_of_a_transposed_tensor():
    torch.manual_seed(0)
    leaf = torch.randn(30, 50, requires_grad=True)
    y = relu_dropout(leaf.t() * 1, 0.25, True)
    gradient = torch.autograd.grad(y.sum(), leaf)[0]
    kept = y > 0
    torch.testing.assert_close(y, torch.where(kept, leaf.t().relu() / 0.75, 0))
    torch.testing.assert_close(gradient, kept.t() / 0.75)
    assert 0.2 < float(kept.float().mean()) < 0.55


def remember(monkeypatch) -> list[Tensor]:
    """Have networks keep their masks."""
    masks = []

    def recorded(x: Tensor, p: float, training: bool) -> Tensor:
        y = relu_dropout(x, p, training)
        masks.append((y > 0) / (1 - taken(p)))
        return y

    monkeypatch.setattr(models, "relu_dropout", recorded)
    return masks


def replay(monkeypatch, masks: list[Tensor]) -> None:
    """Have networks take these masks, out of place and by torch's own gradient."""
    left = iter(masks)
    monkeypatch.setattr(models, "relu_dropout", lambda x, p, training: F.relu(x) * next(left))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("network", ["mlp", *sorted(BACKBONES)])
def test_writing_in_place_changes_no_value_and_no_gradient_of_a_network(network, norm, sparse, monkeypatch):
    graph = thin(sparse=sparse)
    if network == "mlp":
        torch.manual_seed(0)
        model, inputs = MLP(40, 8, 3, num_layers=3, dropout=0.5, norm=norm), (graph.features,)
    else:
        model = build(network, 40, 8, 3, num_layers=3, dropout=0.5, norm=norm, **PLAIN.get(network, {}))
        inputs = model.inputs(graph)
    masks, results, upstream = remember(monkeypatch), [], torch.randn(60, 3)
    for _ in range(2):
        torch.manual_seed(1)
        output = model.train()(*inputs)
        gradients = torch.autograd.grad(output.logits, list(model.parameters()), upstream)
        results.append((output.logits, output.hidden, *gradients))
        replay(monkeypatch, masks)
    assert len(masks) == 2
    assert all(0.05 < float((mask > 0).float().mean()) < 0.45 for mask in masks)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# -- activations computed again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@backbones
def test_checkpointed_activations_change_no_bit_and_are_not_kept(backbone, norm, sparse, monkeypatch):
    graph, calls, results, kept = thin(sparse=sparse), [], [], []
    monkeypatch.setattr(models, "relu_dropout", lambda *given: calls.append(1) or relu_dropout(*given))
    for again in (False, True):
        model = build(
            backbone,
            40,
            8,
            3,
            num_layers=4,
            dropout=0.5,
            norm=norm,
            checkpoint_activations=again,
            **PLAIN.get(backbone, {}),
        ).train()
        inputs, saved = model.inputs(graph), []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            output = model(*inputs)
        assert len(calls) == 3
        gradients = torch.autograd.grad(output.logits.square().sum(), list(model.parameters()))
        after = torch.rand(3)  # the stream of random numbers goes on where it would have
        assert len(calls) == (6 if again else 3)
        calls.clear()
        with torch.no_grad():
            model(*inputs)
        model.eval()(*inputs)
        assert len(calls) == 6
        calls.clear()
        kept.append(sum(saved))
        results.append((output.logits, output.hidden, *gradients, *model.buffers(), after))
    assert kept[1] < kept[0], "torch saves what a checkpointed layer reads, and nothing else of it"
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("options", [{"attention_dropout": 0.5}, {"edge_dropout": 0.5}], ids=["gat", "appnp"])
def test_all_that_is_drawn_in_a_checkpointed_layer_is_drawn_again(options):
    graph, results, backbone = thin(), [], "gat" if "attention_dropout" in options else "appnp"
    for again in (False, True):
        model = build(backbone, 40, 8, 3, num_layers=3, dropout=0.5, checkpoint_activations=again, **options).train()
        torch.manual_seed(1)
        loss = model(*model.inputs(graph)).logits.square().sum()
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


# -- bfloat16 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@backbones
def test_bfloat16_answers_in_float32_about_as_float32_does(backbone, norm, sparse, monkeypatch):
    graph, results, seen = thin(sparse=sparse), [], set()
    monkeypatch.setattr(models, "relu_dropout", lambda x, *given: seen.add(x.dtype) or relu_dropout(x, *given))
    for precision, narrow in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = build(backbone, 40, 8, 3, num_layers=3, norm=norm, precision=precision, **PLAIN.get(backbone, {}))
        output = model.train()(*model.inputs(graph))
        gradients = torch.autograd.grad(output.logits.square().mean(), list(model.parameters()))
        results.append((output.logits, output.hidden, torch.cat([gradient.flatten() for gradient in gradients])))
        assert seen == {narrow}, "what is kept for backward is narrow"
        seen.clear()
    for wide, narrow, error in zip(*results, (0.1, 0.1, 0.3), strict=True):  # gradients: a ReLU near 0 may turn
        assert narrow.dtype == torch.float32
        assert narrow.isfinite().all()
        assert (narrow - wide).norm() <= error * wide.norm()
    assert not torch.equal(results[0][0], results[1][0])


@backbones
def test_what_stands_between_is_in_float32(backbone):
    model, seen = build(backbone, precision="bfloat16"), []

    def between(hidden: Tensor) -> Tensor:
        seen.append((hidden.dtype, (hidden @ hidden.T).dtype))
        return hidden

    model(*model.inputs(random_graph("undirected")), between=between)
    assert seen == [(torch.float32, torch.float32)]


# -- the linear layer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("out", "wide"), [(1, False), (7, False), (63, False), (64, True), (200, True)])
def test_linear_is_torchs_and_a_wide_one_is_stored_input_major(out, wide, bias, sparse):
    torch.manual_seed(0)
    plain = nn.Linear(9, out, bias)
    torch.manual_seed(0)
    ours = Linear(9, out, bias)
    assert torch.equal(ours.weight, plain.weight)
    x, upstream = random_graph("undirected", num_features=9).x, torch.randn(9, out)
    results = []
    for layer, given in [(ours, CSR.from_dense(x) if sparse else x), (plain, x)]:
        y = layer(given)
        results.append((y, *torch.autograd.grad(y, list(layer.parameters()), upstream)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    optimiser = torch.optim.Adam(ours.parameters())
    ours(CSR.from_dense(x)).square().sum().backward()
    optimiser.step()
    state = optimiser.state[ours.weight]
    loaded = Linear(9, out, bias)
    loaded.load_state_dict(ours.state_dict())
    assert torch.equal(loaded.weight, ours.weight)
    tensors = [ours.weight, ours.weight.grad, state["exp_avg"], state["exp_avg_sq"]]
    for tensor in (*tensors, copy.deepcopy(ours).weight, loaded.weight):
        assert (tensor.t() if wide else tensor).is_contiguous()


# -- MLP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_mlp_equals_a_sequence_of_layers(norm, sparse):
    torch.manual_seed(0)
    model = MLP(6, 8, 3, num_layers=3, norm=norm)
    layers = []
    for linear, norm_layer in zip(model.layers, [*model.norms, None], strict=True):
        plain = nn.Linear(linear.in_features, linear.out_features)
        plain.load_state_dict(linear.state_dict())
        layers += [plain, norm_layer, nn.ReLU()] if norm_layer is not None else [plain]
    x = random_graph("undirected").x
    output = model(CSR.from_dense(x) if sparse else x)
    torch.testing.assert_close(output.logits, nn.Sequential(*layers)(x))
    torch.testing.assert_close(output.hidden, nn.Sequential(*layers[:-1])(x))


def test_mlp_of_one_layer_is_linear():
    model = MLP(6, 8, 3, num_layers=1, dropout=0.9)
    x = torch.randn(5, 6)
    output = model(x)
    assert output.hidden is None
    torch.testing.assert_close(output.logits, F.linear(x, model.layers[0].weight, model.layers[0].bias))


def test_batch_norm_on_one_row_is_refused():
    with pytest.raises(G2MError, match=r"norm: 'batch' needs two rows.*layer"):
        MLP(6, 8, 3, norm="batch")(torch.randn(1, 6))
    assert MLP(6, 8, 3, norm="batch").eval()(torch.randn(1, 6)).logits.shape == (1, 3)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("sagee", {}, "Did you mean 'sage'"),
        ("gat", {"head": 2}, "Did you mean 'heads'"),
        ("gcn", {"reference": True}, "unknown key 'reference'"),
        ("gcn", {"norm": "bach"}, "Did you mean 'batch'"),
        ("gcn", {"dropout": 1.5}, "dropout"),
        ("gcn", {"dropout": -0.1}, "dropout"),
        ("gcn", {"num_layers": 0}, "num_layers"),
        ("gcn", {"num_layers": 2.0}, "num_layers"),
        ("gat", {"heads": 3}, "heads: expected a divisor of hidden_channels=8"),
        ("gat", {"heads": 0}, "heads"),
        ("gat", {"heads": 2.0}, "heads"),
        ("gat", {"attention_dropout": 2}, "attention_dropout"),
        ("appnp", {"alpha": 0}, "alpha"),
        ("appnp", {"edge_dropout": 7}, "edge_dropout"),
        ("appnp", {"propagations": -1}, "propagations"),
        ("appnp", {"propagations": 1.5}, "propagations"),
    ],
)
def test_refuses(backbone, options, message):
    with pytest.raises(G2MError, match=message):
        GNN(backbone, 6, 8, 3, **options)


def test_width_from_one():
    with pytest.raises(G2MError, match="hidden_channels"):
        MLP(6, 0, 3)


# -- a module of the user's own ------------------------------------------------------------------------------------


class Own(nn.Module):
    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.conv, self.whole = pyg.GCNConv(6, 3), whole

    def forward(self, x, edge_index):
        logits = self.conv(x, edge_index)
        return Output(logits, x, {"penalty": logits.square().mean()}) if self.whole else logits


@pytest.mark.parametrize("whole", [False, True])
def test_wrapped_module_is_called_as_pyg_calls_it(whole):
    graph, module = random_graph("undirected"), Own(whole)
    wrapped = Wrapped(module)
    output = wrapped(*wrapped.inputs(graph))
    torch.testing.assert_close(output.logits, module.conv(graph.x, graph.edge_index))
    assert set(output.extra) == ({"penalty"} if whole else set())


# -- torch_scatter ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch_geometric.typing.WITH_TORCH_SCATTER, reason="torch_scatter is not installed")
@pytest.mark.parametrize("layer", ["gat", "gcn", "max"])
def test_torch_scatter_changes_nothing(layer, monkeypatch):
    graph = blocks(num_features=6)
    torch.manual_seed(0)
    if layer == "gat":
        model = build("gat", attention_dropout=0.0)
        inputs = model.inputs(graph)
    else:
        model = pyg.GCNConv(6, 3) if layer == "gcn" else pyg.SAGEConv(6, 3, aggr="max")
        inputs = (graph.x, graph.edge_index)
    results = []
    for present in (True, False):
        monkeypatch.setattr(torch_geometric.typing, "WITH_TORCH_SCATTER", present)
        output = model(*inputs)
        logits = output.logits if isinstance(output, Output) else output
        results.append((logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_inputs_are_sparse_where_that_pays():
    graph = random_graph("undirected")
    wordy = replace(graph, x=F.one_hot(torch.arange(9), 20).float())
    assert isinstance(build("gcn").inputs(graph)[0], Tensor)
    assert isinstance(build("gcn", 20, 8, 3).inputs(wordy)[0], CSR)
    assert isinstance(features(wordy.x), CSR)


# -- several networks ------------------------------------------------------------------------------------------------


@backbones
@pytest.mark.parametrize("count", [1, 3])
def test_an_ensemble_answers_with_the_mean_of_probabilities(count, backbone):
    graph, members = random_graph("undirected"), []
    for seed in range(count):
        torch.manual_seed(seed)
        members.append(GNN(backbone, 6, 8, 3).eval())
    ensemble = Ensemble(members)
    inputs = ensemble.inputs(graph)
    outputs = [member(*inputs) for member in members]
    found = ensemble(*inputs)
    torch.testing.assert_close(found.logits.exp(), sum(output.logits.softmax(1) for output in outputs) / count)
    assert torch.equal(found.hidden, outputs[0].hidden)
    assert ensemble.hops == members[0].hops
    known, first = ensemble.knowledge(found), members[0].knowledge(outputs[0])
    assert known.keys() == first.keys()
    assert all(torch.equal(a, b) for a, b in zip(known.get("transforms", ()), first.get("transforms", ()), strict=True))


def test_an_ensemble_is_finite_where_its_members_are_sure_of_different_classes():
    class Sure(nn.Module):
        def __init__(self, label: int) -> None:
            super().__init__()
            self.label = label

        def forward(self, x: Tensor) -> Output:
            return Output(1000 * F.one_hot(torch.full((len(x),), self.label), 3).float())

    found = Ensemble([Sure(0), Sure(1)])(torch.zeros(2, 1)).logits
    torch.testing.assert_close(found.softmax(1), torch.tensor([[0.5, 0.5, 0.0]] * 2))
    assert torch.isfinite(found).all()
