"""What tests of networks for graphs share: random sets of graphs, networks without a zero, how far two are apart."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from g2m.condense.program import Program
from g2m.graph_gnn import GraphGNN, columns
from g2m.graphs import Graphs

SIZES = (5, 0, 4, 1, 6, 3, 4, 7)  # the third has no edges, see random_graphs
PRECISE = 1e-12
MANY = [5, 4, 1, 6, 3, 4, 7, 0, 5, 2] * 3
SPLIT = {"train": range(16), "val": range(16, 23), "test": range(23, 30)}
KINDS = {"keys": ("keys", "keys"), "values": ("values", "none"), "none": ("none", "values")}


def random_graphs(
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    *,
    x: str = "keys",
    edges: str = "keys",
    directed: bool = True,
    loops: bool = False,
    tasks: int = 1,
    **options,
) -> Graphs:
    """Sparse graphs with parallel arcs and isolated nodes; attributes from few, so that trees repeat.

    Args:
        sizes: nodes of each; the third graph has no edges.
        seed: of all that is drawn.
        x: ``"keys"``, ``"values"`` or ``"none"``; ``edges`` likewise.
        directed: one arc an edge, or both.
        loops: keep them.
        tasks: columns of labels; above 1 with NaN.
        options: of :class:`Graphs`.
    """
    generator = Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    def attributes(kind: str, rows: int) -> Tensor | None:
        table = torch.randn(3, 2, generator=generator)
        return {"keys": draw(2, rows, 2), "values": table[draw(3, rows)], "none": None}[kind]

    ptr = torch.tensor([0, *sizes]).cumsum(0)
    arcs = [
        start + draw(size, 2, 0 if i == 2 else int(draw(2 * size)))
        for i, (start, size) in enumerate(zip(ptr.tolist(), sizes, strict=False))
        if size
    ]
    edge_index = torch.cat([torch.empty(2, 0).long(), *arcs], 1)
    edge_attr = attributes(edges, edge_index.size(1))
    if not directed:
        edge_index = torch.cat([edge_index, edge_index.flip(0)], 1)
        edge_attr = None if edge_attr is None else torch.cat([edge_attr, edge_attr])
    y = torch.arange(len(sizes)) % 2
    if tasks > 1:
        y = draw(3, len(sizes), tasks).float()
        y[y == 2] = torch.nan
    options = {"num_classes": 2, "keep_loops": loops, **options}
    return Graphs(attributes(x, int(ptr[-1])), edge_index, y, ptr, edge_attr=edge_attr, **options)


sets_of_graphs = st.builds(
    random_graphs,
    st.lists(st.integers(0, 6), min_size=1, max_size=6),
    st.integers(0, 999),
    x=st.sampled_from(["keys", "values", "none"]),
    edges=st.sampled_from(["keys", "values", "none"]),
    directed=st.booleans(),
    loops=st.booleans(),
)


def arranged(graphs: Graphs, seed: int = 0) -> tuple[Graphs, Tensor]:
    """The same graphs in another order, and their nodes and arcs too; graph i of them is graph ``order[i]``."""
    generator = Generator().manual_seed(seed)
    order = torch.randperm(len(graphs), generator=generator)
    part = graphs.subset(order)
    # At random within each graph: what is added is below the step from one graph to the next.
    nodes = (part.batch + torch.rand(part.num_nodes, generator=generator)).argsort()
    new = torch.empty_like(nodes)
    new[nodes] = torch.arange(len(nodes))
    arcs = torch.randperm(part.num_edges, generator=generator)
    other = Graphs(
        None if part.x is None else part.x[nodes],
        new[part.edge_index][:, arcs],
        part.y,
        part.ptr,
        edge_attr=None if part.edge_attr is None else part.edge_attr[arcs],
        num_classes=part.num_classes if part.y.dim() == 1 else None,
        keep_loops=True,
    )
    return other, order


def network(backbone: str, graphs: Graphs, *, num_layers: int = 2, eps: float | None = None, **options) -> GraphGNN:
    """A network of 8 channels in double precision that fits these graphs, none of whose parameters is zero.

    ``eps``: of its norms. Batch norm of rows that are all alike divides their rounding by the root of it, layer by
    layer: where that can happen, a larger one leaves digits to compare.
    """
    program = Program.of_graphs(graphs, 1, share=False)
    of_arcs = None if program.edge_attr is None else columns(program.edge_attr)
    torch.default_generator.manual_seed(0)
    model = GraphGNN(backbone, columns(program.x), of_arcs, 8, 3, num_layers=num_layers, **options).double()
    for name, p in model.named_parameters():  # zeros would hide a missing term, and sit where ReLU has no slope
        if p.dim() == 1 or name.endswith("eps"):
            nn.init.normal_(p)
    for norm in model.norms if eps is not None else ():
        norm.eps = eps
    return model


@lru_cache(maxsize=64)
def _program(graphs: Graphs, num_layers: int, share: bool, degrees: bool) -> Program:
    return Program.of_graphs(graphs, num_layers, share=share, degrees=degrees).to(dtype=torch.float64)


def program(model: GraphGNN, graphs: Graphs, share: bool) -> Program:
    """What the network computes for graphs, in double precision."""
    return _program(graphs, len(model.norms), share, model.needs_degrees)


def answer(model: GraphGNN, program: Program, seed: int = 1) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the gradients of every parameter by a random sum of them."""
    torch.default_generator.manual_seed(seed)  # of dropout too
    upstream = torch.randn(len(program), model.head.out_features, dtype=torch.float64)
    logits = model(program).logits
    grads = torch.autograd.grad((logits * upstream).sum(), list(model.parameters()), materialize_grads=True)
    return logits.detach(), list(grads)


def apart(found: Tensor, expected: Tensor) -> float:
    """How far two tensors are apart, relative to the second's norm."""
    assert found.shape == expected.shape
    return float((found - expected).detach().norm() / expected.detach().norm().clamp(min=1e-300))


def gradients_apart(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """How far gradients are apart, relative to the largest: some are zero but for rounding."""
    found, expected = list(found), list(expected)
    largest = max(float(g.norm()) for g in expected)
    return max(float((a - b).norm()) for a, b in zip(found, expected, strict=True)) / max(largest, 1e-300)


def labelled(kind: str = "keys", sizes: Sequence[int] = MANY, split: dict = SPLIT, **options) -> Graphs:
    """Graphs whose class is whether half their nodes or more have a message coming in: that can be learnt."""
    x, edges = KINDS[kind]
    graphs = random_graphs(sizes, x=x, edges=edges, split=split, **options)
    if graphs.y.dim() == 2:
        return graphs
    reached = torch.bincount(graphs.edge_index[1], minlength=graphs.num_nodes).clamp(max=1)
    mean = torch.zeros(len(graphs)).index_add_(0, graphs.batch, reached.float()) / graphs.ptr.diff().clamp(min=1)
    return replace(graphs, y=(mean >= 0.5).long())


# -- other graphs ------------------------------------------------------------------------------------------------


def of_nodes(graphs: Graphs, ids: Tensor) -> Tensor:
    return torch.isin(graphs.batch, ids)


def other_features(graphs: Graphs, ids: Tensor) -> Graphs:
    """Others altogether: categories that no other graph has."""
    x = graphs.x.clone()
    x[of_nodes(graphs, ids)] = 50
    return replace(graphs, x=x)


def other_labels(graphs: Graphs, ids: Tensor) -> Graphs:
    y = graphs.y.clone()
    y[ids] = 1 - y[ids]
    return replace(graphs, y=y)


def other_edges(graphs: Graphs, ids: Tensor) -> Graphs:
    """Every arc turned round, twice over, with attributes that no other graph has."""
    arcs = of_nodes(graphs, ids)[graphs.edge_index[0]]
    edge_index, edge_attr = graphs.edge_index.clone(), graphs.edge_attr.clone()
    edge_index[:, arcs], edge_attr[arcs] = edge_index[:, arcs].flip(0), 50
    edge_index, edge_attr = (torch.cat([all_, all_[..., arcs, :]], -2) for all_ in (edge_index.T, edge_attr))
    return replace(graphs, edge_index=edge_index.T, edge_attr=edge_attr)


def everything_else(graphs: Graphs, ids: Tensor) -> Graphs:
    return other_edges(other_labels(other_features(graphs, ids), ids), ids)
