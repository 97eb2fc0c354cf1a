"""Programs: the rows are the classes of trees, weighed as they occur; and how many hops of a tree a root needs."""

import numpy as np
import pytest
import torch
import torch_geometric.nn as pyg
from graph_cases import PRECISE, answer, apart, gradients_apart, network, program, random_graphs, sets_of_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.data import Data

from g2m import G2MError, Graphs
from g2m.condense import TreeKeys, graph_sets, tree_classes
from g2m.condense.program import Hop, Program, attributes
from g2m.graph_gnn import GRAPH_BACKBONES
from g2m.sparse import CSR

quick = settings(max_examples=40)
ways = pytest.mark.parametrize("share", [True, False], ids=["shared", "by node"])


def content(made: Program) -> list:
    """All of a program that numbers can show, but for the attributes that its keys stand for."""
    hops = [(h.own, h.source, h.edge, h.degree_below, h.count.to_dense()) for h in made.hops]
    return [made.key, made.pool.to_dense(), *(part for hop in hops for part in hop)]


def same(first: Program, second: Program) -> bool:
    pairs = zip(content(first), content(second), strict=True)
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


# -- rows --------------------------------------------------------------------------------------------------------------


@quick
@given(sets_of_graphs, st.integers(1, 4), st.booleans())
def test_rows_are_the_classes_of_trees_and_weigh_what_they_hold(graphs, num_layers, degrees):
    if not graphs.num_nodes:
        return
    made = Program.of_graphs(graphs, num_layers, degrees=degrees)
    keys = TreeKeys(degree=degrees).fit(graphs)
    classes = tree_classes(graphs.edge_index, *keys.transform(graphs), num_hops=num_layers)
    assert made.num_rows == classes.num_classes
    assert made.num_layers == num_layers
    assert [weight.tolist() for weight in made.weights] == [count.tolist() for count in classes.dag.counts[1:]]
    assert made.sizes.tolist() == graphs.ptr.diff().tolist()
    degree = torch.bincount(graphs.edge_index[1], minlength=graphs.num_nodes)
    for depth, hop in enumerate(made.hops, 1):
        assert torch.equal(hop.degree[classes.levels[depth]], degree.float())
        if hop.source is not None:  # every message once
            assert len(set(zip(hop.source.tolist(), hop.edge.tolist(), strict=True))) == hop.count.shape[1]
    known = degrees or graphs.x is None
    for depth, hop in enumerate(made.hops):
        if depth or known:
            assert torch.equal(hop.degree_below[classes.levels[depth]], degree.float())
        else:
            assert hop.degree_below is None


@quick
@given(sets_of_graphs, st.integers(1, 3))
def test_by_node_there_is_a_row_for_each(graphs, num_layers):
    made = Program.of_graphs(graphs, num_layers, share=False)
    assert made.num_rows == (graphs.num_nodes,) * (num_layers + 1)
    assert len(made) == len(graphs)
    assert made.sizes.tolist() == graphs.ptr.diff().tolist()
    assert all(weight.tolist() == [1] * graphs.num_nodes for weight in made.weights)
    x = torch.bincount(graphs.edge_index[1], minlength=graphs.num_nodes)[:, None] if graphs.x is None else graphs.x
    assert torch.equal(made.x[made.key], x)
    assert len(made.x) == len({tuple(row) for row in x.tolist()})


def test_a_program_of_no_layers_is_refused():
    with pytest.raises(G2MError, match="num_layers: expected a whole number from 1"):
        Program.of_graphs(random_graphs(), 0)


# -- some of the graphs ------------------------------------------------------------------------------------------------


@settings(quick, max_examples=60)
@given(sets_of_graphs, st.booleans(), st.booleans(), st.integers(1, 3), st.data())
def test_some_graphs_take_the_rows_of_those_graphs_and_no_more(graphs, share, degrees, num_layers, data):
    ids = torch.tensor(data.draw(st.permutations(range(len(graphs)))))[: data.draw(st.integers(1, len(graphs)))]
    some = Program.of_graphs(graphs, num_layers, share=share, degrees=degrees).of(ids)
    alone = Program.of_graphs(graphs.subset(ids), num_layers, share=share, degrees=degrees)
    assert some.num_rows == alone.num_rows
    if alone.hops[0].source is not None:  # else messages are rows, of which some may send none
        assert [len(hop.source) for hop in some.hops] == [len(hop.source) for hop in alone.hops]
    assert [hop.count.nnz for hop in some.hops] == [hop.count.nnz for hop in alone.hops]
    assert some.sizes.tolist() == alone.sizes.tolist()
    assert [sorted(w.tolist()) for w in some.weights] == [sorted(w.tolist()) for w in alone.weights]


@ways
def test_some_of_some_are_some(share):
    made = Program.of_graphs(random_graphs(), 3, share=share)
    first, second = torch.tensor([7, 2, 2, 5, 0]), torch.tensor([3, 1, 1, 0])
    assert same(made.of(first).of(second), made.of(first[second]))
    assert same(made.of(torch.arange(len(made))).of(first), made.of(first))
    twice = made.of(torch.tensor([4, 4]))
    assert twice.num_rows == made.of(torch.tensor([4])).num_rows
    assert twice.weights[-1].tolist() == [2 * w for w in made.of(torch.tensor([4])).weights[-1].tolist()]


def test_all_layers_of_ordinary_graphs_have_one_hop_and_keep_it():
    made = Program.of_graphs(random_graphs(), 3, share=False)
    for other in (made, made.of(torch.tensor([4, 2])), made.to(dtype=torch.float64), made.to("cpu")):
        assert len({id(hop) for hop in other.hops}) == 1


@ways
def test_numbers_change_their_type_and_indices_do_not(share):
    made = Program.of_graphs(random_graphs(x="values", edges="values"), 2, share=share, degrees=True)
    other = made.to("cpu", torch.float64)
    assert same(made, other.to(dtype=torch.float32))
    assert {made.pool.value.dtype, made.x.dtype, made.hops[0].degree.dtype} == {torch.float32}
    values = [other.x, other.edge_attr, other.pool.value, other.sizes, other.weights[0]]
    for hop in other.hops:
        values += [hop.count.value, hop.degree, hop.degree_below, hop.adjacency(1.0, "symmetric").value]
        assert not hop.edge.is_floating_point()
    assert {value.dtype for value in values} == {torch.float64}
    assert not other.key.is_floating_point()
    keys = Program.of_graphs(random_graphs(), 2, share=share).to(dtype=torch.float64)
    assert keys.x.dtype == keys.edge_attr.dtype == torch.int64


# -- one hop, by hand --------------------------------------------------------------------------------------------------

# Two rows from three below, the last and the first; messages from rows 1 and 0, which come 2 and 1 times, and 0 and 3.
COUNT = CSR.from_dense(torch.tensor([[2.0, 1], [0, 3]]))
HOP = Hop(COUNT, torch.tensor([2, 0]), torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([3.0, 0, 8]))
X = torch.tensor([[1.0], [2], [4]])


def test_a_hop_reads_rows_then_messages():
    edge = torch.tensor([[-3.0], [10]])
    assert HOP.read(X, None).flatten().tolist() == [4, 1, 2, 1]
    assert HOP.read(X, edge).flatten().tolist() == [4, 1, 0, 11]  # ReLU(2 - 3), ReLU(1 + 10)
    alike = Hop(COUNT, HOP.own, HOP.source)
    assert alike.read(X, edge).flatten().tolist() == [4, 1, 2, 1]
    assert Hop(COUNT).read(X[:2], edge) is not None
    assert torch.equal(Hop(COUNT).read(X[:2], edge), X[:2])


@pytest.mark.parametrize(
    ("loops", "normalise", "expected"),
    [
        (0.0, "none", [[0, 0, 2, 1], [0, 0, 0, 3]]),
        (2.0, "none", [[2, 0, 2, 1], [0, 2, 0, 3]]),
        (1.0, "mean", [[1 / 4, 0, 2 / 4, 1 / 4], [0, 1 / 4, 0, 3 / 4]]),
        (2.0, "mean", [[2 / 5, 0, 2 / 5, 1 / 5], [0, 2 / 5, 0, 3 / 5]]),
        (1.0, "symmetric", [[1 / 4, 0, 2 / 2, 1 / 4], [0, 1 / 4, 0, 3 / 4]]),  # degrees of senders: 1 and 4
    ],
)
def test_weights_of_a_hop(loops, normalise, expected):
    found = HOP.adjacency(loops, normalise)
    torch.testing.assert_close(found.to_dense(), torch.tensor(expected, dtype=torch.float32))
    assert HOP.adjacency(loops, normalise) is found  # made once


def test_rows_and_messages_that_are_one_and_the_same():
    hop = Hop(CSR.from_dense(torch.tensor([[0.0, 2], [1, 0]])), degree_below=torch.tensor([2.0, 1]))
    weights = {
        (0.0, "none"): [[0, 2], [1, 0]],
        (1.0, "none"): [[1, 2], [1, 1]],
        (1.0, "mean"): [[1 / 3, 2 / 3], [1 / 2, 1 / 2]],
        (1.0, "symmetric"): [[1 / 3, 2 / 6**0.5], [1 / 6**0.5, 1 / 2]],
    }
    for key, expected in weights.items():
        torch.testing.assert_close(hop.adjacency(*key).to_dense(), torch.tensor(expected, dtype=torch.float32))


def test_degrees_that_are_not_known_are_not_made_up():
    with pytest.raises(G2MError, match=r"num_hops: expected trees of one hop more .*degree=True"):
        Hop(COUNT, HOP.own, HOP.source).adjacency(1.0, "symmetric")
    graphs = random_graphs()
    model = network("gcn", graphs)
    with pytest.raises(G2MError, match="num_hops: expected trees of one hop more"):
        model(Program.of_graphs(graphs, 2).to(dtype=torch.float64))


@ways
def test_rows_of_a_hop_are_cut_out(share):
    made = Program.of_graphs(random_graphs(edges="keys" if share else "none"), 2, share=share, degrees=True)
    hop, size = made.hops[-1], made.num_rows[-2]
    x, edge = torch.randn(size, 3), None if made.edge_attr is None else torch.randn(len(made.edge_attr), 3)
    whole = hop.adjacency(1.0, "symmetric") @ hop.read(x, edge)
    for rows in (torch.tensor([1, 4, 9]), torch.arange(len(hop.count)), torch.tensor([0]), torch.tensor([]).long()):
        part, below = hop.rows(rows)
        assert torch.equal(below, below.unique())
        assert torch.equal(part.degree_below, hop.degree_below[below])
        torch.testing.assert_close(part.adjacency(1.0, "symmetric") @ part.read(x[below], edge), whole[rows])


# -- bags of trees -----------------------------------------------------------------------------------------------------


def bags(graphs: Graphs, num_hops: int, **options):
    """The classes of all trees of so many hops, how many each graph has, and what their keys stand for."""
    keys = TreeKeys(**options).fit(graphs)
    classes = tree_classes(graphs.edge_index, *keys.transform(graphs), num_hops=num_hops)
    return classes.dag, graph_sets(classes, graphs.batch, len(graphs)), attributes(keys)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("backbone", GRAPH_BACKBONES)
def test_roots_are_exact_from_as_many_hops_as_layers(backbone, num_layers):
    """One more where degrees of neighbours divide and keys have none; below that it is an error."""
    graphs, gcn = random_graphs(edges="keys" if num_layers == 2 else "none"), backbone == "gcn"
    model = network(backbone, graphs, num_layers=num_layers, norm="batch", pooling="mean")
    expected = answer(model, program(model, graphs, False))
    for known in (False, True):
        for num_hops in range(num_layers + 3):
            dag, pool, meaning = bags(graphs, num_hops, degree=known)
            if num_hops < num_layers + (gcn and not known):
                more = " and one more, for the degrees" if gcn and not known else ""
                with pytest.raises(G2MError, match=rf"hops: expected .*as many as layers{more}.*got {num_hops}\)"):
                    Program.of_trees(dag, pool, num_layers, degrees=gcn, **meaning)
                continue
            made = Program.of_trees(dag, pool, num_layers, degrees=gcn, **meaning).to(dtype=torch.float64)
            logits, grads = answer(model, made)
            assert apart(logits, expected[0]) <= PRECISE
            assert gradients_apart(grads, expected[1]) <= PRECISE


def test_degrees_as_attributes_are_known_already():
    graphs = random_graphs(x="none")
    model = network("gcn", graphs)
    dag, pool, meaning = bags(graphs, 2)
    assert meaning["node_degree"].tolist() == meaning["x"].flatten().tolist()
    made = Program.of_trees(dag, pool, 2, degrees=True, **meaning).to(dtype=torch.float64)
    assert apart(answer(model, made)[0], answer(model, program(model, graphs, False))[0]) <= PRECISE


def test_bags_are_cut_with_their_trees():
    """Trees that differ in what is cut off become one, as often in a bag as both; weights need not be whole."""
    path = torch.stack([torch.arange(7), torch.arange(1, 8)])
    graphs = Graphs(None, torch.cat([path, path.flip(0), 8 + path[:, :3]], 1), [0, 1], [0, 8, 12])
    dag, pool, meaning = bags(graphs, 3)
    deep = Program.of_trees(dag, pool * 0.5, 1, **meaning)
    flat = Program.of_trees(dag.truncate(1), bags(graphs, 1)[1], 1, **meaning)
    assert len(deep.pool.value) == len(flat.pool.value) < pool.nnz
    assert torch.equal(2 * deep.pool.to_dense(), flat.pool.to_dense())
    assert same(deep, Program.of_trees(dag, 0.5 * pool.tocoo(), 1, **meaning))


@pytest.mark.parametrize("backbone", GRAPH_BACKBONES)
def test_arcs_are_alike_without_attributes_for_them(backbone):
    """Trees told apart by arcs, computed by a network that is not told: children alike but for their arc add up."""
    graphs = random_graphs(edges="keys")
    plain = Graphs(graphs.x, graphs.edge_index, graphs.y, graphs.ptr)
    model = network(backbone, plain)
    dag, pool, meaning = bags(graphs, 2, degree=True)
    made = Program.of_trees(dag, pool, 2, degrees=model.needs_degrees, **meaning | {"edge_attr": None})
    found, expected = answer(model, made.to(dtype=torch.float64)), answer(model, program(model, plain, False))
    assert apart(found[0], expected[0]) <= PRECISE
    assert gradients_apart(found[1], expected[1]) <= PRECISE


# -- trees as ordinary graphs ------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh())


CONVS = {
    "gin": (lambda: pyg.GINConv(mlp()), 0),
    "gine": (lambda: pyg.GINEConv(mlp(), edge_dim=2), 0),
    "sage": (lambda: pyg.SAGEConv(2, 2), 0),
    "gat": (lambda: pyg.GATConv(2, 2), 0),
    "gcn": (lambda: pyg.GCNConv(2, 2), 1),  # sees no degree of a leaf
}


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("name", CONVS)
def test_a_root_is_what_its_node_is_from_as_many_hops_and_not_from_fewer(name, num_layers):
    make, more = CONVS[name]
    graphs = random_graphs(x="values", edges="values", directed=False)
    torch.manual_seed(0)
    convs = [make().double() for _ in range(num_layers)]

    def forward(data: Data | Graphs) -> Tensor:
        x, edges = data.x.double(), [data.edge_attr.double()] if name == "gine" else []
        for conv in convs:
            x = conv(x, data.edge_index, *edges).tanh()
        return x.detach()

    expected = forward(graphs)
    keys = TreeKeys().fit(graphs)
    for num_hops in range(num_layers + 2):
        part = tree_classes(graphs.edge_index, *keys.transform(graphs), num_hops=num_hops)
        trees = part.dag.to_pyg(np.arange(part.num_classes[-1]))
        trees.x, trees.edge_attr = keys.decode_nodes(trees.node_key), keys.decode_edges(trees.edge_key)
        roots = forward(trees)[trees.root_mask]
        error = float((roots[part.ids] - expected).abs().max())
        assert error < PRECISE if num_hops >= num_layers + more else error > 1e-3
