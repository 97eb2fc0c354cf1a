"""The networks: MLP students and GNN teachers, by name. Every one returns :class:`Output`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GATConv
from torch_geometric.utils import softmax

from g2m import distributed
from g2m.errors import G2MError, check_flag, check_keys, check_range, check_whole, choose
from g2m.graph import Graph
from g2m.mapped import rows_of
from g2m.sparse import CSR, attention, receptive_field

NORMS = ("none", "batch", "layer")
PRECISIONS = ("float32", "bfloat16")


class Output(NamedTuple):
    """What every model returns: logits ``[N, C]``, the input of the last layer ``[N, H]`` (where codes come between,
    the state they are of), extra losses by name."""

    logits: Tensor
    hidden: Tensor | None = None
    extra: dict[str, Tensor] = {}  # noqa: RUF012 (never written to)


Between = Callable[[Tensor], Tensor] | None  # makes of the hidden state, before dropout, what the last layer reads
Layer = Callable[[Callable[[Tensor], Tensor]], Tensor]  # a layer that was shown its input: computes, and finishes rows
Rows = Callable[[CSR, int], Tensor]  # answers of a convolution to some rows of the adjacency, and where they begin
ROWS = 2**14  # rows a convolution computes at once where nothing is learned: bounds memory, not results


# -- pieces ----------------------------------------------------------------------------------------------------


class Linear(nn.Linear):
    """A linear layer that takes dense ``[N, F]`` or :class:`~g2m.sparse.CSR` input.

    A wide weight is stored input-major: products with a sparse matrix, their gradients and Adam's state then all share
    one memory layout. A narrow one, a head, keeps torch's: in the other, its gradient takes ten times as long.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, bias)
        if out_channels >= 64:
            self.weight = nn.Parameter(self.weight.detach().t().contiguous().t())

    def forward(self, x: Tensor | CSR) -> Tensor:
        if isinstance(x, CSR):
            product = x @ self.weight.t()
            return product if self.bias is None else product.add_(self.bias)
        return super().forward(x)


def dropout(x: Tensor | CSR, p: float, training: bool) -> Tensor | CSR:
    return x.dropout(p, training) if isinstance(x, CSR) else F.dropout(x, p, training)


class Part(NamedTuple):
    """A member's share in :func:`relu_dropout_of`: how many entries, dropped with what chance, drawn from what."""

    size: int
    p: float
    generator: Generator | None = None


class _ReluDropout(Function):
    @staticmethod
    def forward(ctx, x: Tensor, parts: Sequence[Part]) -> Tensor:
        zero_below, scales = torch.ops.aten.threshold_backward.grad_input, []
        for row, (size, p, generator) in zip(x.view(len(parts), -1), parts, strict=True):
            level = min(round(p * 2**16), 2**16 - 1)
            scales.append(1 / (1 - level / 2**16) if p < 1 else 0.0)
            for part in row[:size].split(2**20):  # stays in cache
                part.clamp_min_(0)
                if 0 < p < 1:
                    # Sixteen random bits an entry: a quarter of the draws, and these are what dropout costs on CPU.
                    bits = torch.empty(-(-len(part) // 4), dtype=torch.int64)
                    bits = bits.random_(-(2**63), None, generator=generator).view(torch.int16)[: len(part)]
                    zero_below(part, bits.to(x.dtype), level - 2**15 - 0.5, grad_input=part)  # no mask is made
                part.mul_(scales[-1])
        ctx.scales = scales
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors  # positive where it was kept and the ReLU open: no mask is stored
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
        if len({*ctx.scales}) == 1:
            return grad.mul_(ctx.scales[0]), None
        return grad.view(len(ctx.scales), -1).mul_(grad.new_tensor(ctx.scales)[:, None]).view_as(y), None


def _in_place(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.is_contiguous() and x.dtype in (torch.float32, torch.float64)


def relu_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """ReLU, then dropout with probability ``p`` (on CPU in steps of 2⁻¹⁶, and unbiased), in training only.

    ``x`` may be written into.
    """
    if training and 0 < p < 1 and _in_place(x):
        return _ReluDropout.apply(x, [Part(x.numel(), p)])
    return F.dropout(F.relu(x), p, training)


def relu_dropout_of(x: Tensor, parts: Sequence[Part]) -> Tensor:
    """ReLU and dropout, in training, of several members' hidden states on CPU: each one's draws are those it has alone.

    Args:
        x: as many equal shares as there are parts, contiguous; may be written into.
        parts: of each share, its first entries: what is behind them is filling.
    """
    return _ReluDropout.apply(x.contiguous(), parts)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm; where joined processes each have a share of the rows (``shared``), over those of all of them."""

    shared = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        rows = distributed.sum_over_processes(torch.tensor(float(len(x)))) if self.shared else len(x)
        if rows == 1:
            raise G2MError(
                "norm: 'batch' needs two rows a step (got one). Raise batch_size or lower partitions, or take "
                "norm='layer'; between a hidden state and its codes, code_dim='hidden'."
            )
        return self._over_processes(x, float(rows)) if self.shared else super().forward(x)

    def _over_processes(self, x: Tensor, rows: float) -> Tensor:
        mean = distributed.sum_over_processes(x.sum(0)) / rows
        x = x - mean
        var = distributed.sum_over_processes(x.square().sum(0)) / rows
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * rows / (rows - 1), self.momentum)
        return x * (var + self.eps).rsqrt() * self.weight + self.bias


def rows_shared(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, the model is given some of a step's rows, and joined processes the rest."""
    return _batch_norms(model, "shared", True)


def statistics_as_they_are(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, batch norm uses a batch's statistics without learning from them."""
    return _batch_norms(model, "track_running_stats", False)


@contextmanager
def _batch_norms(model: nn.Module, name: str, value: bool) -> Iterator[None]:
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    for norm in norms:
        setattr(norm, name, value)
    try:
        yield
    finally:
        for norm in norms:
            setattr(norm, name, not value)


def _norm(name: str, channels: int) -> nn.Module:
    return {"none": nn.Identity, "batch": BatchNorm, "layer": nn.LayerNorm}[choose("norm", name, NORMS)](channels)


def _widths(in_channels: int, hidden_channels: int, out_channels: int, num_layers: int) -> list[tuple[int, int]]:
    check_whole("hidden_channels", hidden_channels)
    check_whole("num_layers", num_layers)
    sizes = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
    return list(pairwise(sizes))


class _Layers(nn.Module):
    """Hidden layers, each followed by norm → ReLU → dropout.

    ``checkpoint_activations``: keep of each its input alone, and compute again in backward what else that takes.
    """

    norms: nn.ModuleList
    dropout: float
    checkpoint_activations = False

    def through(self, layer: Callable[[int, Any], Layer], x: Any, between: Between) -> tuple[Tensor | None, Any]:
        """Return the last hidden state, if there is one, and what the last layer reads."""
        # The last layer is not checkpointed: backward begins with it, nothing would be freed in the meantime.
        again, hidden = self.checkpoint_activations and self.training and torch.is_grad_enabled(), None
        for i, norm in enumerate(self.norms):
            own = between if i + 1 == len(self.norms) else None
            p = self.dropout if own is None else 0.0

            def finish(y: Tensor, norm: nn.Module = norm, p: float = p) -> Tensor:
                y, dtype = norm(y), y.dtype
                return relu_dropout(y.to(dtype), p, self.training)  # some norms answer autocast in float32

            if again:
                hidden = _checkpointed(lambda x, i=i, finish=finish: layer(i, x)(finish), x, norm)
            else:
                answer = layer(i, x)
                hidden = x = None  # the layer may have no more need of it
                hidden = answer(finish)
                del answer  # nor this of what it read
            x = hidden if own is None else own(hidden)
        return hidden, x


def _checkpointed(one: Callable[[Any], Tensor], x: Any, norm: nn.Module) -> Tensor:
    """Return ``one(x)`` and keep no more than ``x``; the second time, random numbers are the same, and running
    statistics stay as they are."""
    of_device = x.value if isinstance(x, CSR) else x  # torch restores the random stream of the tensors it is shown
    contexts = lambda: (nullcontext(), _statistics_kept(norm))  # noqa: E731
    return checkpoint(lambda _: one(x), of_device, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(norm: nn.Module) -> Iterator[None]:
    kept = dict(norm.named_buffers(recurse=False))
    for name, buffer in kept.items():
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for name, buffer in kept.items():
            setattr(norm, name, buffer)


# -- student ---------------------------------------------------------------------------------------------------


class MLP(_Layers):
    """A multi-layer perceptron: linear → norm → ReLU → dropout, and a linear head.

    Args:
        in_channels: F.
        hidden_channels: width of the hidden layers.
        out_channels: C.
        num_layers: number of linear layers, from 1; default 2.
        dropout: after each hidden layer, in [0, 1], default 0.
        norm: ``"none"`` (default), ``"batch"`` or ``"layer"``.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 2,
        dropout: float = 0.0,
        norm: str = "none",
    ) -> None:
        super().__init__()
        widths = _widths(in_channels, hidden_channels, out_channels, num_layers)
        self.dropout = check_range("dropout", dropout, 0, 1)
        self.layers = nn.ModuleList(Linear(*width) for width in widths)
        self.norms = nn.ModuleList(_norm(norm, width) for _, width in widths[:-1])

    def forward(self, x: Tensor | CSR, between: Between = None) -> Output:
        """Return, for features ``[N, F]``, logits ``[N, C]`` and the last hidden state ``[N, H]``, if there is one.

        ``between`` makes of that state, before dropout, what the last layer reads; default ``None``: the state itself.
        """
        hidden, x = self.through(lambda i, x: lambda finish: finish(self.layers[i](x)), x, between)
        return Output(self.layers[-1](x), hidden)


# -- adjacencies: built once per graph, everything constant is inside --------------------------------------------


def _adjacency(graph: Graph, loops: float, normalise: Callable[[Tensor, Tensor, Tensor], Tensor] | None) -> CSR:
    """Rows are targets: ``(adjacency @ x)[i]`` sums over the arcs into i. ``loops`` is the weight of (i, i)."""
    source, target = graph.edge_index
    has_loop = torch.zeros(graph.num_nodes)
    has_loop[target[source == target]] = 1
    missing = (has_loop == 0).nonzero().flatten() if loops else target[:0]
    source, target = torch.cat([source, missing]), torch.cat([target, missing])
    value = torch.ones(len(source))
    if loops:
        value[source == target] = loops
    degree = torch.zeros(graph.num_nodes).index_add_(0, target, value)
    if normalise is not None:
        value = normalise(value, degree[source], degree[target])
    return CSR.from_coo(target, source, value, (graph.num_nodes, graph.num_nodes))


def symmetric_adjacency(graph: Graph) -> CSR:
    """Â = D^-½ (A + I) D^-½, degrees counted with the loop."""
    return _adjacency(graph, 1.0, lambda value, d_source, d_target: value * (d_source * d_target).rsqrt())


def mean_adjacency(graph: Graph, *, reference: bool = False) -> CSR:
    """The mean over N(i) ∪ {i}; with ``reference``, i counts twice, as in the code behind the published tables."""
    return _adjacency(graph, 2.0 if reference else 1.0, lambda value, _, d_target: value / d_target)


def sum_adjacency(graph: Graph, loops: float = 0.0) -> CSR:
    """A as it is stored; with ``loops``, every node is its own neighbour with that weight."""
    return _adjacency(graph, loops, None)


# -- convolutions ----------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """A convolution in two steps: it is shown what it reads, and then answers for some rows, or all."""

    def rows(self, x: Tensor | CSR, adjacency: CSR) -> Rows:
        """Return what answers for rows of ``adjacency`` ``[R, S]``, the first R of x."""
        raise NotImplementedError

    def forward(self, x: Tensor | CSR, adjacency: CSR) -> Tensor:
        return self.rows(x, adjacency)(adjacency, 0)


class PropagateConv(Conv):
    """A linear map and a fixed propagation, in whichever order costs less: A(xW) or (Ax)W, plus a bias.

    With :func:`symmetric_adjacency` this is GCN (Kipf & Welling, ICLR 2017); with :func:`mean_adjacency` it is
    GraphSAGE (Hamilton et al., NeurIPS 2017) with the aggregator that shares its weight between a node and its
    neighbours, the teacher of GLNN.
    """

    def __init__(self, in_channels: int, out_channels: int, gain: float) -> None:
        super().__init__()
        self.linear = Linear(in_channels, out_channels, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.xavier_uniform_(self.linear.weight, gain=gain)

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    def rows(self, x: Tensor | CSR, adjacency: CSR) -> Rows:
        if isinstance(x, CSR) or self._linear_first(adjacency):
            x = self.linear(x)
            return lambda rows, _: (rows @ x).add_(self.bias)
        return lambda rows, _: self.linear(rows @ x).add_(self.bias)

    def _linear_first(self, adjacency: CSR) -> bool:
        """Count multiplications; one of a sparse product takes about as long as four of a dense one."""
        (rows, columns), (out, inner) = adjacency.shape, self.linear.weight.shape
        sparse = 4 * adjacency.nnz
        return columns * inner * out + sparse * out <= sparse * inner + rows * inner * out


class GINConv(Conv):
    """GIN (Xu et al., ICLR 2019): an MLP of (1 + ε)x plus the sum over neighbours, ε learned from 0.

    The first linear layer of the MLP commutes with the sum, and goes first where it makes x narrower.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first, self.second = Linear(in_channels, hidden_channels), nn.Linear(hidden_channels, out_channels)
        self.eps = nn.Parameter(torch.zeros(1))

    def rows(self, x: Tensor | CSR, adjacency: CSR) -> Rows:
        narrowed = isinstance(x, CSR) or self.first.out_features < self.first.in_features
        if narrowed:
            x = x @ self.first.weight.t() if isinstance(x, CSR) else F.linear(x, self.first.weight)

        def answer(rows: CSR, start: int) -> Tensor:
            own = (1 + self.eps).to(x.dtype) * x[start : start + len(rows)]  # a float32 parameter would widen it
            summed = own + rows @ x
            return self.second(F.relu(summed + self.first.bias.to(x.dtype) if narrowed else self.first(summed)))

        return answer


# -- backbones: the stack of layers each name stands for ---------------------------------------------------------
# ``weights``: how often a node is its own neighbour, and what its sum is divided by (see condense.program.Hop).


def _by_layer(adjacency: CSR | list[CSR], num_layers: int) -> list[CSR]:
    return adjacency if isinstance(adjacency, list) else [adjacency] * num_layers


class _Convs(_Layers):
    """conv → norm → ReLU → dropout, none after the last conv."""

    convs: nn.ModuleList

    @property
    def hops(self) -> int:
        return len(self.convs)

    def rows(self, i: int, x: Tensor | CSR, adjacency: CSR) -> Rows:
        """Of a convolution, see :meth:`Conv.rows`."""
        return self.convs[i].rows(x, adjacency)

    def conv(self, i: int, x: Tensor | CSR, adjacency: CSR) -> Tensor:
        return self.rows(i, x, adjacency)(adjacency, 0)

    def forward(self, x: Tensor | CSR, adjacency: CSR | list[CSR], between: Between = None) -> Output:
        adjacencies = _by_layer(adjacency, len(self.convs))
        at_once = self.training or torch.is_grad_enabled()

        def layer(i: int, x: Tensor | CSR) -> Layer:
            return partial(_in_chunks, self.rows(i, x, adjacencies[i]), adjacencies[i], at_once)

        hidden, x = self.through(layer, x, between)
        rows = len(adjacencies[-1])
        return Output(layer(-1, x)(lambda y: y), None if hidden is None else hidden[:rows])


def _in_chunks(answer: Rows, adjacency: CSR, at_once: bool, finish: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the finished answers to all rows: no more is held than of some of them beside what they read."""
    if at_once or len(adjacency) <= ROWS:
        return finish(answer(adjacency, 0))
    sizes = [min(ROWS, len(adjacency) - start) for start in range(0, len(adjacency), ROWS)]
    start, out = 0, None
    for rows in adjacency.split(sizes):
        part = finish(answer(rows, start))
        out = part.new_empty(len(adjacency), part.size(1)) if out is None else out
        out[start : start + len(rows)] = part
        start += len(rows)
    return out


class _Stack(_Convs):
    def __init__(self, convs: list[nn.Module], widths: list[int], dropout: float, norm: str) -> None:
        super().__init__()
        self.convs, self.dropout = nn.ModuleList(convs), dropout
        self.norms = nn.ModuleList(_norm(norm, width) for width in widths)

    @property
    def transforms(self) -> list[Tensor] | None:
        return [conv.weight for conv in self.convs]


class GCN(_Stack):
    weights = (1.0, "symmetric")

    def __init__(self, widths: list[tuple[int, int]], dropout: float, norm: str) -> None:
        super().__init__([PropagateConv(*w, gain=1.0) for w in widths], [o for _, o in widths[:-1]], dropout, norm)

    def adjacency(self, graph: Graph) -> CSR:
        return symmetric_adjacency(graph)


class SAGE(_Stack):
    """``reference``: weigh the node itself twice, as the code behind the published tables does; default False."""

    weights = (1.0, "mean")

    def __init__(self, widths: list[tuple[int, int]], dropout: float, norm: str, *, reference: bool = False) -> None:
        gain = nn.init.calculate_gain("relu")
        super().__init__([PropagateConv(*w, gain=gain) for w in widths], [o for _, o in widths[:-1]], dropout, norm)
        self.reference = check_flag("reference", reference)
        if reference:
            self.weights = (2.0, "mean")

    def adjacency(self, graph: Graph) -> CSR:
        return mean_adjacency(graph, reference=self.reference)


class GIN(_Stack):
    weights = (0.0, "none")

    def __init__(self, widths: list[tuple[int, int]], dropout: float, norm: str) -> None:
        # The MLP of the last layer is as wide as the others': at C wide its ReLU dies.
        hidden = [o for _, o in widths[:-1]]
        inner = [*hidden, hidden[-1] if hidden else widths[-1][1]]
        convs = [GINConv(i, width, o) for (i, o), width in zip(widths, inner, strict=True)]
        super().__init__(convs, hidden, dropout, norm)

    @property
    def transforms(self) -> None:  # a layer of it is an MLP, not a linear map
        return None

    def adjacency(self, graph: Graph) -> CSR:
        return sum_adjacency(graph)


class GAT(_Convs):
    """GAT (Veličković et al., ICLR 2018) on the parameters of PyG's GATConv.

    ``heads`` (default 8) on hidden layers, which share ``hidden_channels``, and one on the output;
    ``attention_dropout``, in [0, 1], default 0.3; ``dropout`` also falls on the features.
    """

    weights = (1.0, "none")

    def __init__(
        self,
        widths: list[tuple[int, int]],
        dropout: float,
        norm: str,
        *,
        heads: int = 8,
        attention_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_range("attention_dropout", attention_dropout, 0, 1)
        if len(widths) > 1 and widths[0][1] % check_whole("heads", heads):
            raise G2MError(f"heads: expected a divisor of hidden_channels={widths[0][1]} (got {heads}).")
        options = {"dropout": attention_dropout, "add_self_loops": False}
        *hidden, last = widths
        convs = [GATConv(i, o // heads, heads, **options) for i, o in hidden]
        self.convs = nn.ModuleList([*convs, GATConv(*last, 1, concat=False, **options)])
        self.projections = nn.ModuleList(Linear(*width, bias=False) for width in widths)
        for conv, projection in zip(self.convs, self.projections, strict=True):
            projection.weight.data.copy_(conv.lin.weight.data)  # PyG's initial weights
            conv.lin = nn.Identity()  # projected before, so that sparse features are taken
        self.norms, self.dropout = nn.ModuleList(_norm(norm, o) for _, o in hidden), dropout

    @property
    def transforms(self) -> list[Tensor]:
        return [projection.weight for projection in self.projections]

    def adjacency(self, graph: Graph) -> CSR:
        return sum_adjacency(graph, loops=1.0)

    def forward(self, x: Tensor | CSR, adjacency: CSR | list[CSR], between: Between = None) -> Output:
        return super().forward(dropout(x, self.dropout, self.training), adjacency, between)

    def rows(self, i: int, x: Tensor | CSR, adjacency: CSR) -> Rows:
        """What ``GATConv.forward`` computes, without a message per arc and channel; entries are multiplicities."""
        conv = self.convs[i]
        x = self.projections[i](x).view(-1, conv.heads, conv.out_channels)
        of_source = torch.cat([(part * conv.att_src).sum(-1) for part in x.split(ROWS)])
        of_target = torch.cat([(part * conv.att_dst).sum(-1) for part in x[: len(adjacency)].split(ROWS)])

        def answer(rows: CSR, start: int) -> Tensor:
            row, col = rows.row_of_entry(), rows.col.long()
            score = of_source[col] + of_target[row + start]
            score = F.leaky_relu(score, conv.negative_slope) + rows.value.log()[:, None]
            weight = softmax(score, row, num_nodes=len(rows))
            y = attention(F.dropout(weight, conv.dropout, self.training), x, rows)
            return (y.flatten(1) if conv.concat else y.mean(1)) + conv.bias.to(y.dtype)

        return answer


class APPNP(nn.Module):
    """APPNP (Gasteiger et al., ICLR 2019): an MLP, then ``propagations`` (default 10) steps of personalised PageRank.

    ``alpha``: restart probability in (0, 1], default 0.1; ``edge_dropout``, in [0, 1], default 0.5.
    """

    def __init__(
        self,
        widths: list[tuple[int, int]],
        dropout: float,
        norm: str,
        *,
        propagations: int = 10,
        alpha: float = 0.1,
        edge_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.alpha = check_range("alpha", alpha, 0, 1, open_low=True)
        self.edge_dropout = check_range("edge_dropout", edge_dropout, 0, 1)
        self.propagations = check_whole("propagations", propagations, 0)
        hidden = widths[0][1]
        self.mlp = MLP(widths[0][0], hidden, widths[-1][1], num_layers=len(widths), dropout=dropout, norm=norm)

    @property
    def hops(self) -> int:
        return self.propagations

    @property
    def transforms(self) -> list[Tensor]:
        return [layer.weight for layer in self.mlp.layers]

    def adjacency(self, graph: Graph) -> CSR:
        return symmetric_adjacency(graph)

    def forward(self, x: Tensor | CSR, adjacency: CSR | list[CSR], between: Between = None) -> Output:
        start = self.mlp(x, between)
        logits = start.logits
        for step in _by_layer(adjacency, self.propagations):
            step = step.dropout(self.edge_dropout, self.training)
            logits = (1 - self.alpha) * (step @ logits) + self.alpha * start.logits[: len(step)]
        return Output(logits, None if start.hidden is None else start.hidden[: len(logits)])


BACKBONES: dict[str, type[nn.Module]] = {"appnp": APPNP, "gat": GAT, "gcn": GCN, "gin": GIN, "sage": SAGE}


class GNN(nn.Module):
    """A graph neural network for node classification, by name.

    Args:
        backbone: ``"gcn"``, ``"sage"``, ``"gat"``, ``"appnp"`` or ``"gin"``.
        in_channels: F.
        hidden_channels: width of the hidden layers.
        out_channels: C.
        num_layers: number of layers (for ``"appnp"``, of its MLP), from 1; default 2.
        dropout: after each hidden layer, in [0, 1], default 0.
        norm: ``"none"`` (default), ``"batch"`` or ``"layer"``.
        checkpoint_activations: in training, compute the activations of each hidden layer again in backward, and keep
            only what it reads; default False. The steps of ``"appnp"`` keep none anyway.
        precision: ``"float32"`` (default), or ``"bfloat16"``: under :class:`torch.autocast`; weights and answers stay
            float32.
        options: of the backbone: ``reference`` (sage), ``heads`` and ``attention_dropout`` (gat), ``propagations``,
            ``alpha`` and ``edge_dropout`` (appnp).

    Raises:
        G2MError: on an unknown backbone or option.
    """

    def __init__(
        self,
        backbone: str,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 2,
        dropout: float = 0.0,
        norm: str = "none",
        checkpoint_activations: bool = False,
        precision: str = "float32",
        **options: Any,
    ) -> None:
        super().__init__()
        check_keys(f"backbone {backbone!r}", options, backbone_options(backbone))
        check_range("dropout", dropout, 0, 1)
        widths = _widths(in_channels, hidden_channels, out_channels, num_layers)
        self.backbone = BACKBONES[backbone](widths, dropout, norm, **options)
        self.precision = choose("precision", precision, PRECISIONS)
        for module in self.backbone.modules():
            if isinstance(module, _Layers):
                module.checkpoint_activations = checkpoint_activations

    def inputs(self, graph: Graph) -> tuple[Tensor | CSR, CSR]:
        """Return what :meth:`forward` takes, built once per graph: features and the backbone's own adjacency."""
        return graph.features, self.backbone.adjacency(graph)

    def inputs_for(self, graph: Graph, nodes: Tensor) -> tuple[tuple, Tensor]:
        """Return what :meth:`forward` takes to answer for ``nodes``, and the ids of the rows of its answer.

        Where that is much cheaper, only their receptive field is computed, layer by layer: the same answers and
        gradients. Batch norm takes its statistics from every node, and always gets them all.
        """
        x, adjacency = self.inputs(graph)
        if not any(isinstance(module, BatchNorm) for module in self.modules()):
            field, layers = receptive_field(adjacency, nodes, self.hops)
            if sum(layer.nnz for layer in layers) < 0.75 * self.hops * adjacency.nnz:
                return (rows_of(x, field), layers), nodes
        return (x, adjacency), torch.arange(graph.num_nodes)

    @property
    def hops(self) -> int:
        """How far a node's answer looks."""
        return self.backbone.hops

    @torch.no_grad()
    def knowledge(self, output: Output) -> dict[str, Any]:
        """Return what :class:`~g2m.outputs.TeacherOutputs` has of the network beside its answers."""
        transforms = self.backbone.transforms
        return {} if transforms is None else {"transforms": tuple(weight.detach().clone() for weight in transforms)}

    def forward(self, x: Tensor | CSR, adjacency: CSR | list[CSR], between: Between = None) -> Output:
        """Return logits and hidden state; ``between`` makes of the hidden state what the last layer reads instead."""
        if self.precision == "float32":
            return self.backbone(x, adjacency, between)
        kind = (x.value if isinstance(x, CSR) else x).device.type

        def in_float32(hidden: Tensor) -> Tensor:
            with torch.autocast(kind, enabled=False):
                return between(hidden.float())

        with torch.autocast(kind, dtype=torch.bfloat16):
            output = self.backbone(x, adjacency, None if between is None else in_float32)
        return Output(output.logits.float(), None if output.hidden is None else output.hidden.float())


def backbone_options(backbone: str) -> list[str]:
    """Return the names of the options a backbone takes beside the common ones."""
    signature = inspect.signature(BACKBONES[choose("backbone", backbone, BACKBONES)])
    return [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]


class Ensemble(nn.Module):
    """Several networks of one shape: the mean of their probabilities, as its logarithm; all else is the first one's."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def hops(self) -> int:
        return self.members[0].hops

    def inputs(self, graph: Graph) -> tuple[Tensor | CSR, CSR]:
        return self.members[0].inputs(graph)

    def forward(self, *inputs: Any) -> Output:
        outputs = [member(*inputs) for member in self.members]
        log_p = torch.stack([F.log_softmax(output.logits, -1) for output in outputs])
        return Output(log_p.logsumexp(0) - math.log(len(outputs)), outputs[0].hidden)

    def knowledge(self, output: Output) -> dict[str, Any]:
        return self.members[0].knowledge(output)


class Wrapped(nn.Module):
    """A user's own GNN with PyG's signature ``module(x, edge_index) -> logits [N, C]`` (or an :class:`Output`)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        try:
            inspect.signature(module.forward).bind(None, None)
        except TypeError as error:
            raise G2MError(
                f"module: expected one that is called as module(x, edge_index) ({error}). Wrap it."
            ) from None
        except ValueError:  # it does not say
            pass
        self.module = module

    def inputs(self, graph: Graph) -> tuple[Tensor, Tensor]:
        return graph.x, graph.edge_index

    def inputs_for(self, graph: Graph, nodes: Tensor) -> tuple[tuple, Tensor]:
        return self.inputs(graph), torch.arange(graph.num_nodes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Output:
        output = self.module(x, edge_index)
        output = output if isinstance(output, Output) else Output(output)
        if not isinstance(output.logits, Tensor):
            raise G2MError(
                f"module: expected it to return logits [N, C], or a g2m.models.Output of them and a hidden state (got "
                f"{type(output.logits).__name__}). Wrap it."
            )
        hidden = None if output.hidden is None else output.hidden.float()
        return output._replace(logits=output.logits.float(), hidden=hidden)  # it may compute in another precision
