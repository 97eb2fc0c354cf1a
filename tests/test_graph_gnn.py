"""Networks for graphs: against PyG's layers node by node; rows computed once against rows computed each."""

from itertools import product

import pytest
import torch
import torch_geometric.nn as pyg
from graph_cases import (
    PRECISE,
    answer,
    apart,
    arranged,
    gradients_apart,
    network,
    program,
    random_graphs,
    sets_of_graphs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from g2m import G2MError, Graphs, load
from g2m.condense.program import Program
from g2m.data.cards import find_card
from g2m.graph_gnn import GRAPH_BACKBONES, POOLINGS, CountedBatchNorm, Encoder, GraphGNN, columns
from g2m.models import NORMS, GINConv
from g2m.sparse import CSR

# Attributes of nodes and of arcs.
KINDS = [("keys", "keys"), ("values", "none"), ("none", "values"), ("none", "none")]
EACH = [random_graphs(x=x, edges=edges) for x, edges in KINDS]
ways = pytest.mark.parametrize("share", [True, False], ids=["shared", "by node"])
backbones = pytest.mark.parametrize("backbone", GRAPH_BACKBONES)
norms = pytest.mark.parametrize("norm", NORMS)
poolings = pytest.mark.parametrize("pooling", POOLINGS)


def both(model: GraphGNN, graphs: Graphs) -> list[Program]:
    return [program(model, graphs, share) for share in (True, False)]


# -- against PyG -------------------------------------------------------------------------------------------------------


def encode(encoder: Encoder, x: Tensor) -> Tensor:
    if x.is_floating_point():
        return x.double() @ encoder.linear.weight.T + encoder.linear.bias
    return sum(table.weight[column] for table, column in zip(encoder.tables, x.T, strict=True))


def gin(model: GraphGNN, i: int, x: Tensor, edge_index: Tensor, e: Tensor | None) -> Tensor:
    ours = model.backbone.convs[i]
    conv = (pyg.GINConv if e is None else pyg.GINEConv)(nn.Linear(8, 8), train_eps=True)
    conv.nn, conv.eps = nn.Sequential(ours.first, nn.ReLU(), ours.second), ours.eps
    return conv(x, edge_index) if e is None else conv(x, edge_index, e)


def gcn(model: GraphGNN, i: int, x: Tensor, edge_index: Tensor, e: Tensor | None) -> Tensor:
    ours = model.backbone.convs[i]
    if e is None:
        conv = pyg.GCNConv(8, 8)
        conv.lin.weight, conv.bias = ours.linear.weight, ours.bias
        return conv(x, edge_index)
    source, target = edge_index
    root = (1 + torch.bincount(target, minlength=len(x))).double().rsqrt()[:, None]
    messages = (x[source] + e).relu() * root[source] * root[target]
    return (x * root**2).index_add(0, target, messages) @ ours.linear.weight.T + ours.bias


def loops(x: Tensor, edge_index: Tensor, e: Tensor | None, times: int = 1) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Arcs from the nodes themselves, and from a node of its own for every message."""
    own = torch.arange(len(x)).repeat(times)
    messages = x[edge_index[0]] if e is None else (x[edge_index[0]] + e).relu()
    senders = torch.cat([own, len(x) + torch.arange(len(messages))])
    return (torch.cat([x, messages]), x), torch.stack([senders, torch.cat([own, edge_index[1]])])


def sage(model: GraphGNN, i: int, x: Tensor, edge_index: Tensor, e: Tensor | None) -> Tensor:
    ours, conv = model.backbone.convs[i], pyg.SAGEConv(8, 8, root_weight=False)
    conv.lin_l.weight, conv.lin_l.bias = ours.linear.weight, ours.bias
    return conv(*loops(x, edge_index, e, 2 if model.backbone.reference else 1))


def gat(model: GraphGNN, i: int, x: Tensor, edge_index: Tensor, e: Tensor | None) -> Tensor:
    ours = model.backbone.convs[i]
    conv = pyg.GATConv(8, ours.out_channels, ours.heads, concat=ours.concat, add_self_loops=e is None)
    conv.lin.weight = model.backbone.projections[i].weight
    conv.att_src, conv.att_dst, conv.bias = ours.att_src, ours.att_dst, ours.bias
    return conv(x, edge_index) if e is None else conv(*loops(x, edge_index, e))


@pytest.mark.parametrize("rows", [6, 2], ids=["square", "cut"])
@pytest.mark.parametrize("inner", [3, 20], ids=["narrower", "wider"])
def test_gin_maps_before_or_after_the_sum_alike(inner, rows):
    torch.manual_seed(0)
    dense = torch.randint(3, (rows, 6)).double()
    conv, x = GINConv(8, inner, 4).double(), torch.randn(6, 8, dtype=torch.float64)
    nn.init.normal_(conv.eps)
    theirs = pyg.GINConv(nn.Linear(8, 8), train_eps=True)
    theirs.nn, theirs.eps = nn.Sequential(conv.first, nn.ReLU(), conv.second), conv.eps
    target, source = dense.nonzero().repeat_interleave(dense[dense > 0].long(), 0).T
    expected, found = theirs((x, x[:rows]), torch.stack([source, target])), conv(x, CSR.from_dense(dense))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(found)
    grads = [torch.autograd.grad(y, list(conv.parameters()), upstream) for y in (found, expected)]
    assert gradients_apart(*grads) <= PRECISE


POOLS = {"sum": pyg.global_add_pool, "mean": pyg.global_mean_pool, "max": pyg.global_max_pool}


def oracle(conv, model: GraphGNN, graphs: Graphs) -> Tensor:
    degree = torch.bincount(graphs.edge_index[1], minlength=graphs.num_nodes)[:, None]
    x = encode(model.nodes, degree if graphs.x is None else graphs.x)
    for i, norm in enumerate(model.norms):
        e = None if graphs.edge_attr is None else encode(model.arcs[i], graphs.edge_attr)
        x = conv(model, i, x, graphs.edge_index, e)
        if isinstance(norm, nn.LayerNorm):
            x = norm(x)
        if isinstance(norm, nn.BatchNorm1d):
            x = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
        x = x.relu()
    return model.head(POOLS[model.pooling](x, graphs.batch, len(graphs)))


ORACLES = [
    ("gin", {}, gin),
    ("gcn", {}, gcn),
    ("sage", {}, sage),
    ("sage", {"reference": True}, sage),
    ("gat", {}, gat),
    ("gat", {"heads": 1}, gat),
]


@pytest.mark.parametrize(("norm", "pooling"), [*zip(NORMS, POOLINGS, strict=True)])
@pytest.mark.parametrize(("backbone", "options", "conv"), ORACLES, ids=lambda v: v if isinstance(v, str) else "")
def test_equals_pyg_in_value_and_gradient(backbone, options, conv, norm, pooling):
    for directed, (x, edges) in enumerate(KINDS):
        graphs = random_graphs(x=x, edges=edges, directed=bool(directed % 2))
        model = network(backbone, graphs, num_layers=3, norm=norm, pooling=pooling, **options)
        parameters, logits = list(model.parameters()), oracle(conv, model, graphs)
        upstream = torch.randn_like(logits)
        grads = torch.autograd.grad(logits, parameters, upstream, materialize_grads=True)
        for made in both(model, graphs):
            found = model(made).logits
            torch.testing.assert_close(found, logits, rtol=1e-10, atol=1e-10)
            found = torch.autograd.grad(found, parameters, upstream, materialize_grads=True)
            assert gradients_apart(found, grads) < 1e-10


# -- each distinct row once --------------------------------------------------------------------------------------------


def check_lossless(model: GraphGNN, graphs: Graphs) -> None:
    """Logits, gradients and running statistics in training, and logits after it."""
    results, start = [], {key: value.clone() for key, value in model.state_dict().items()}
    for made in both(model, graphs):
        model.load_state_dict(start)
        logits, grads = answer(model.train(), made)
        buffers = {key: value.double().clone() for key, value in model.named_buffers()}
        with torch.no_grad():
            results.append((grads, {**buffers, "logits": logits, "after": model.eval()(made).logits}))
    (grads, values), (grads_, values_) = results
    assert gradients_apart(grads, grads_) <= PRECISE
    assert {key: value for key in values_ if (value := apart(values[key], values_[key])) > PRECISE} == {}


@backbones
@norms
@poolings
def test_sharing_loses_nothing(backbone, norm, pooling):
    for graphs in EACH:
        model = network(backbone, graphs, norm=norm, pooling=pooling, dropout=0.3)
        shared, each = both(model, graphs)
        assert shared.num_rows[-1] < each.num_rows[-1] == graphs.num_nodes
        check_lossless(model, graphs)


@settings(max_examples=30)
@given(
    sets_of_graphs,
    st.sampled_from(GRAPH_BACKBONES),
    st.sampled_from(NORMS),
    st.sampled_from(POOLINGS),
    st.integers(1, 4),
)
def test_sharing_loses_nothing_on_any_multigraph(graphs, backbone, norm, pooling, num_layers):
    if graphs.num_nodes < 2:
        norm = "layer"  # there is no variance
    model = network(backbone, graphs, num_layers=num_layers, norm=norm, pooling=pooling, eps=0.1)
    check_lossless(model, graphs)


@backbones
def test_parallel_arcs_and_twins_are_one_message_with_a_count(backbone):
    x = torch.tensor([0, 1, 1, 0, 1, 0, 1, 1])[:, None]
    arcs = torch.tensor([[1, 2, 4, 4, 6], [0, 0, 3, 3, 5]])
    graphs = Graphs(x, arcs, [0, 1, 1], [0, 3, 5, 8])
    model = network(backbone, graphs, num_layers=1, pooling="max")
    shared, _ = both(model, graphs)
    assert shared.hops[0].count.value.tolist() == [2, 1]
    # Degrees, where they matter, tell nodes apart that are alike else: those of two, of one and of no message.
    assert shared.num_rows == ((3, 3) if backbone == "gcn" else (2, 3))
    twins, parallel, one = shared.pool.to_dense().bool()
    assert twins.tolist() == parallel.tolist() != one.tolist()
    check_lossless(model, graphs)


@backbones
def test_messages_by_arcs_of_other_attributes_stay_apart(backbone):
    graphs = Graphs([[0]] * 6, [[1, 3, 5], [0, 2, 4]], [0, 1, 1], [0, 2, 4, 6], edge_attr=[[0], [1], [0]])
    model = network(backbone, graphs, num_layers=1)
    assert program(model, graphs, True).num_rows == ((2, 3) if backbone == "gcn" else (1, 3))
    first, second, third = model(program(model, graphs, True)).logits
    assert torch.equal(first, third)
    assert (first - second).abs().max() > 1e-6
    check_lossless(model, graphs)


@backbones
@poolings
def test_graphs_without_arcs_or_nodes(backbone, pooling):
    rows = {"keys": torch.zeros(2, 1).long(), "values": torch.ones(2, 1)}
    for (x, edges), sizes in zip(KINDS, ([1, 0, 1], [0, 0], [2, 0], [0]), strict=True):
        x = rows[x][: sum(sizes)] if x in rows else None
        edge_attr = rows[edges][:0] if edges in rows else None
        graphs = Graphs(x, [], [1] * len(sizes), torch.tensor([0, *sizes]).cumsum(0), edge_attr=edge_attr)
        model = network(backbone, graphs, pooling=pooling, norm="layer")
        check_lossless(model, graphs)
        for made in both(model, graphs):
            output, empty = model(made), torch.tensor(sizes) == 0
            assert not output.hidden[empty].any()  # nothing of no node is 0
            torch.testing.assert_close(output.logits[empty], model.head.bias.expand(int(empty.sum()), -1))


@pytest.mark.parametrize("name", ["atlas", "mutag"])
@backbones
def test_sharing_loses_nothing_on_real_graphs(backbone, name, request):
    root = request.getfixturevalue("data_root") if name == "mutag" else None
    if root is not None and find_card(name).status(root) == "needs download":
        pytest.skip(f"{name} is not in {root}")
    graphs = load(name, root=root)
    model = network(backbone, graphs, norm="batch", pooling="mean")
    shared, each = both(model, graphs)
    assert shared.num_rows[-1] < 0.75 * each.num_rows[-1]
    check_lossless(model, graphs)


# -- some of the graphs ------------------------------------------------------------------------------------------------


@ways
@backbones
def test_some_graphs_are_answered_as_among_all(backbone, share):
    for graphs, pooling in zip(EACH, ("sum", "mean", "max", "sum"), strict=True):
        model = network(backbone, graphs, num_layers=3, norm="batch", pooling=pooling).eval()
        whole = program(model, graphs, share)
        expected = model(whole)
        for ids in ([3, 0, 6], [5, 5, 1, 5], [1], list(range(8))[::-1], []):
            output = model(whole.of(torch.tensor(ids).long()))
            for name in ("logits", "hidden"):
                torch.testing.assert_close(getattr(output, name), getattr(expected, name)[ids], rtol=1e-12, atol=1e-12)


@settings(max_examples=20)
@given(sets_of_graphs, st.sampled_from(GRAPH_BACKBONES), st.sampled_from(NORMS), st.data())
def test_a_batch_is_what_those_graphs_alone_give(graphs, backbone, norm, data):
    """In training, where batch norm sees this batch and no other, however often a graph is in it."""
    ids = torch.tensor(data.draw(st.lists(st.integers(0, len(graphs) - 1), min_size=1, max_size=6)))
    alone = graphs.subset(ids)
    if alone.num_nodes < 2:
        norm = "layer"
    model = network(backbone, graphs, num_layers=3, norm=norm, eps=0.1)
    expected = answer(model, program(model, alone, False))
    for made in both(model, graphs):
        logits, grads = answer(model, made.of(ids))
        assert apart(logits, expected[0]) <= PRECISE
        assert gradients_apart(grads, expected[1]) <= PRECISE


# -- order -------------------------------------------------------------------------------------------------------------


@ways
@backbones
def test_the_order_of_graphs_nodes_and_arcs_is_nothing_to_the_answer(backbone, share):
    for graphs in EACH:
        other, order = arranged(graphs)
        assert other.fingerprint() != graphs.fingerprint()
        model = network(backbone, graphs, norm="batch")
        logits = [model(program(model, g, share)).logits for g in (graphs, other)]
        assert apart(logits[1], logits[0][order]) <= PRECISE


# -- pieces ------------------------------------------------------------------------------------------------------------


def test_columns_are_counted_for_categories_alone():
    assert columns(torch.zeros(4, 3)) == 3
    assert columns(torch.tensor([[0, 4], [2, 1]])) == [3, 5]
    assert columns(torch.tensor([[-1, 0]])) == [1, 1]
    assert columns(torch.empty(0, 2).long()) == [1, 1]


def test_an_encoder_of_numbers_is_a_linear_map():
    torch.manual_seed(0)
    encoder, x = Encoder(3, 5).double(), torch.randn(4, 3)
    assert list(dict(encoder.named_parameters())) == ["linear.weight", "linear.bias"]
    assert torch.equal(encoder(x), F.linear(x.double(), encoder.linear.weight, encoder.linear.bias))


@pytest.mark.parametrize("sizes", [[3, 2], (3, 2)], ids=["list", "tuple"])
def test_an_encoder_of_categories_sums_an_embedding_a_column(sizes):
    torch.manual_seed(0)
    encoder = Encoder(sizes, 5)
    first, second = (table.weight for table in encoder.tables)
    assert torch.equal(encoder(torch.tensor([[2, 1], [0, 0]])), first[[2, 0]] + second[[1, 0]])
    assert encoder(torch.empty(0, 2).long()).shape == (0, 5)


@pytest.mark.parametrize("unknown", [3, 4, 99, -1, 2**40])
def test_an_unknown_category_adds_nothing_and_learns_nothing(unknown):
    torch.manual_seed(0)
    encoder = Encoder([3, 2], 5)
    assert torch.equal(encoder(torch.tensor([[unknown, 1]]))[0], encoder.tables[1].weight[1])
    assert not encoder(torch.tensor([[unknown, unknown]])).any()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.1, weight_decay=0.1)
    encoder(torch.tensor([[unknown, 1], [0, unknown]])).sum().backward()
    optimizer.step()
    assert not encoder(torch.tensor([[unknown, unknown]])).any()


def batch_norms(channels: int = 4) -> tuple[CountedBatchNorm, nn.BatchNorm1d]:
    torch.manual_seed(0)
    ours, theirs = CountedBatchNorm(channels).double(), nn.BatchNorm1d(channels).double()
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@settings(max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(0, 99))
def test_counted_batch_norm_is_batch_norm_of_rows_repeated(counts, seed):
    counts = torch.tensor([*counts, 2])
    ours, theirs = batch_norms()
    torch.manual_seed(seed)
    for _ in range(3):
        x = (3 * torch.randn(len(counts), 4, dtype=torch.float64) + 1).requires_grad_()
        upstream = torch.randn(int(counts.sum()), 4, dtype=torch.float64)
        found = ours(x, counts.double())
        expected = theirs(x.repeat_interleave(counts, 0))
        torch.testing.assert_close(found.repeat_interleave(counts, 0), expected, rtol=1e-11, atol=1e-11)
        results = []
        for norm, y in ((ours, found.repeat_interleave(counts, 0)), (theirs, expected)):
            results.append(torch.autograd.grad(y, [x, norm.weight, norm.bias], upstream))
        assert gradients_apart(*results) <= 1e-11
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-11, atol=1e-11)
    x = x.detach()
    torch.testing.assert_close(ours.eval()(x, counts.double()), theirs.eval()(x), rtol=1e-11, atol=1e-11)


def test_counted_batch_norm_needs_two_nodes():
    norm, _ = batch_norms()
    x = torch.randn(3, 4, dtype=torch.float64)
    with pytest.raises(G2MError, match="norm: 'batch' needs two nodes a step"):
        norm(x, torch.tensor([0.0, 1.0, 0.0]).double())
    assert norm.num_batches_tracked == 0
    assert norm.eval()(x[:1], torch.ones(1).double()).shape == (1, 4)


def test_weights_of_a_bag_scale_a_sum_and_leave_mean_and_max():
    graphs = random_graphs([5, 4, 6])
    for pooling in POOLINGS:
        model = network("gin", graphs, pooling=pooling)
        made = program(model, graphs, True)
        less = Program(made.x, made.key, made.edge_attr, made.hops, made.pool.with_value(made.pool.value / 8))
        scale = 1 / 8 if pooling == "sum" else 1
        torch.testing.assert_close(model(less).hidden, scale * model(made).hidden, rtol=1e-12, atol=1e-12)


@backbones
def test_dropout_falls_on_pooled_vectors_alone(backbone):
    graphs = random_graphs()
    model = network(backbone, graphs, dropout=0.9).train()
    made = program(model, graphs, False)
    before = model.embed(made)
    assert torch.equal(before, model.embed(made))
    assert not torch.equal(model(made).logits, model(made).logits)
    assert torch.equal(before, model.eval().embed(made))
    assert torch.equal(model(made).logits, model(made).logits)


@backbones
def test_arcs_are_left_out_where_the_network_has_no_encoder_for_them(backbone):
    graphs = random_graphs(edges="keys")
    plain = Graphs(graphs.x, graphs.edge_index, graphs.y, graphs.ptr)
    model = network(backbone, plain, norm="layer")
    assert not len(model.arcs)
    logits = [model(program(model, g, share)).logits for g in (graphs, plain) for share in (True, False)]
    assert all(apart(found, logits[-1]) <= PRECISE for found in logits)


def test_only_a_division_by_degrees_of_neighbours_needs_them():
    needs = {name: GraphGNN(name, 3, None, 8, 2).needs_degrees for name in GRAPH_BACKBONES}
    assert needs == {"gat": False, "gcn": True, "gin": False, "sage": False}


def test_every_parameter_learns():
    graphs = random_graphs()
    for backbone, norm in product(GRAPH_BACKBONES, NORMS):
        model = network(backbone, graphs, norm=norm)
        # The stack's own norms and the like would be weights without a use.
        logits, _ = model(program(model, graphs, True))[:2]
        grads = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        assert all(torch.isfinite(g).all() and g.any() for g in grads)


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("gni", {}, "backbone: expected one of .*Did you mean 'gin'"),
        ("appnp", {}, "backbone: expected one of"),
        ("gin", {"heads": 2}, "backbone 'gin': unknown key 'heads'"),
        ("gat", {"head": 2}, "unknown key 'head'.*Did you mean 'heads'"),
        ("gat", {"heads": 3}, "heads: expected a divisor of hidden_channels=8"),
        ("gat", {"attention_dropout": 2.0}, "attention_dropout: expected a number"),
        ("gin", {"pooling": "avg"}, "pooling: expected one of sum, mean, max"),
        ("gin", {"norm": "bach"}, "norm: .*Did you mean 'batch'"),
        ("gin", {"dropout": -0.1}, "dropout: expected a number"),
        ("gin", {"num_layers": 0}, "num_layers: expected a whole number from 1"),
    ],
)
def test_wrong_options_are_refused(backbone, options, message):
    with pytest.raises(G2MError, match=message):
        GraphGNN(backbone, 3, None, 8, 2, **options)


def test_a_program_of_other_layers_is_refused():
    graphs = random_graphs()
    model = network("gin", graphs, num_layers=2)
    with pytest.raises(G2MError, match=r"program: expected one of 2 layers \(got 3\)"):
        model(Program.of_graphs(graphs, 3).to(dtype=torch.float64))
