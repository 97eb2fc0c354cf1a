"""Networks against PyG's own layers, dense formulas and arithmetic by hand."""

import math
from dataclasses import replace

import pytest
import torch
import torch_geometric.nn as pyg
import torch_geometric.typing
from cases import blocks, shuffled
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from g2m.errors import G2MError
from g2m.graph import Graph
from g2m.models import BACKBONES, GNN, MLP, Output, Wrapped, mean_adjacency, sum_adjacency, symmetric_adjacency
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
    x = torch.randn(num_nodes, num_features, generator=generator) * (torch.rand(num_nodes, num_features) < 0.4)
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
        conv.lin.weight.data, conv.bias.data = ours.linear.weight.data, ours.bias.data
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
        mlp[0].load_state_dict(ours.first.state_dict())
        mlp[2].load_state_dict(ours.second.state_dict())
        conv.eps.data = ours.eps.data
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
        conv.load_state_dict({**ours.state_dict(), "lin.weight": projection.weight})
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
    output.logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(("backbone", "options", "oracle"), ORACLES[:3], ids=lambda v: v if isinstance(v, str) else "")
def test_order_of_map_and_propagation_is_nothing_to_the_result(backbone, options, oracle):
    graph = random_graph("undirected")
    model = build(backbone, 6, 20, 3, **options).eval()  # widens, then narrows: both orders
    assert [conv.linear_first for conv in model.backbone.convs] == [False, True]
    torch.testing.assert_close(model(graph.x, model.backbone.adjacency(graph)).logits, oracle(model, graph)[1])


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
        last = model.backbone.projections[-1](output.hidden) if backbone == "gat" else output.hidden
        torch.testing.assert_close(model.backbone.convs[-1](last, adjacency), output.logits)


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
