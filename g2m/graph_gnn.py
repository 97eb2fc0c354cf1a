"""The networks that classify graphs: a backbone's convolutions between an encoder of attributes and a readout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from g2m.condense.program import Program
from g2m.errors import G2MError, check_keys, check_range, check_whole, choose
from g2m.models import BACKBONES, NORMS, Output, backbone_options

GRAPH_BACKBONES = ("gat", "gcn", "gin", "sage")
POOLINGS = ("sum", "mean", "max")
Columns = int | tuple[int, ...] | list[int]


def columns(x: Tensor) -> int | list[int]:
    """Return what :class:`Encoder` is made for: the number of columns of numbers, or the categories in each column."""
    if x.is_floating_point():
        return x.size(1)
    return (x.amax(0) + 1).clamp(min=1).tolist() if len(x) else [1] * x.size(1)


class Encoder(nn.Module):
    """Attributes into vectors: a linear map of numbers, or the sum of one embedding per column of categories.

    A category above all of training's adds nothing. One below the highest that was not there has a vector nonetheless:
    the one it was drawn with.

    Args:
        columns: F for numbers ``[N, F]``; for categories, how many each column has.
        channels: H.
    """

    def __init__(self, columns: Columns, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(columns, channels) if isinstance(columns, int) else None
        sizes = () if isinstance(columns, int) else columns
        self.tables = nn.ModuleList(nn.Embedding(size + 1, channels, padding_idx=size) for size in sizes)
        for table in self.tables:
            nn.init.xavier_uniform_(table.weight)
            nn.init.zeros_(table.weight.data[-1])

    def forward(self, x: Tensor) -> Tensor:
        if self.linear is not None:
            return self.linear(x.to(self.linear.weight.dtype))
        found = [
            table(torch.where((column >= 0) & (column < table.padding_idx), column, table.padding_idx))
            for table, column in zip(self.tables, x.long().unbind(1), strict=True)
        ]
        return torch.stack(found).sum(0)


def divides_by_degrees(backbone: str) -> bool:
    """Return whether a backbone divides by the degrees of neighbours, so that its trees must know them."""
    return BACKBONES[backbone].weights[1] == "symmetric"


def shape_of(program: Program) -> dict[str, Columns | None]:
    """Return ``node_columns`` and ``edge_columns`` of :class:`GraphGNN` for what a program has."""
    edge_attr = program.edge_attr
    return {"node_columns": columns(program.x), "edge_columns": None if edge_attr is None else columns(edge_attr)}


class CountedBatchNorm(nn.BatchNorm1d):
    """Batch norm of rows that stand for several nodes each, or for none: its statistics are the nodes'."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        total = weight.sum()
        if not total > 1 and int((weight > 0).sum()) < 2:
            raise G2MError("norm: 'batch' needs two nodes a step (got fewer). Raise batch_size, or take norm='layer'.")
        share = (weight / total)[:, None]
        mean = (share * x).sum(0)
        variance = (share * (x - mean).square()).sum(0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (total / (total - 1) if total > 1 else 1), self.momentum)
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class GraphGNN(nn.Module):
    """A graph neural network for graphs: encoder, ``num_layers`` of conv → norm → ReLU, pooling, dropout, linear head.

    A message is the sender's vector; where arcs have attributes, ReLU(vector + their embedding), which makes GIN the
    GINE of Hu et al. (ICLR 2020). Dropout falls on pooled vectors alone, so that equal trees have equal vectors.

    Args:
        backbone: ``"gin"``, ``"gcn"``, ``"gat"`` or ``"sage"``.
        node_columns: of the attributes of nodes, see :class:`Encoder`.
        edge_columns: of the attributes of arcs, or ``None`` to leave them out.
        hidden_channels: H.
        out_channels: C, or T tasks.
        num_layers: from 1; default 3.
        pooling: ``"sum"`` (default), ``"mean"`` or ``"max"`` over the nodes of a graph; nothing of no node is 0.
        dropout: in [0, 1], default 0.
        norm: ``"none"`` (default), ``"batch"`` or ``"layer"``.
        options: of the backbone: ``heads`` and ``attention_dropout`` (gat, default 4 and 0), ``reference`` (sage).

    Raises:
        G2MError: on an unknown name or option.
    """

    def __init__(
        self,
        backbone: str,
        node_columns: Columns,
        edge_columns: Columns | None,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 3,
        pooling: str = "sum",
        dropout: float = 0.0,
        norm: str = "none",
        **options: Any,
    ) -> None:
        super().__init__()
        choose("backbone", backbone, GRAPH_BACKBONES)
        check_keys(f"backbone {backbone!r}", options, backbone_options(backbone))
        check_whole("num_layers", num_layers)
        self.pooling, self.dropout = choose("pooling", pooling, POOLINGS), check_range("dropout", dropout, 0, 1)
        self.needs_degrees = divides_by_degrees(backbone)
        width = check_whole("hidden_channels", hidden_channels)
        if backbone == "gat":
            options = {"heads": 4, "attention_dropout": 0.0} | options
        self.nodes = Encoder(node_columns, width)
        self.arcs = nn.ModuleList(
            [] if edge_columns is None else [Encoder(edge_columns, width) for _ in range(num_layers)]
        )
        # The stack's own norms, dropout and forward stay unused: it ends in a layer without them.
        self.backbone = BACKBONES[backbone]([(width, width)] * num_layers, 0.0, "none", **options)
        norms = {"none": nn.Identity, "batch": CountedBatchNorm, "layer": nn.LayerNorm}
        self.norms = nn.ModuleList(norms[choose("norm", norm, NORMS)](width) for _ in range(num_layers))
        self.head = nn.Linear(width, out_channels)

    def forward(self, program: Program) -> Output:
        """Return logits ``[G, C]`` and pooled vectors ``[G, H]``."""
        return self.answer(program, self.embed(program))

    def embed(self, program: Program) -> Tensor:
        """Return the vectors ``[R, H]`` of the rows at the top of a program, before they are pooled."""
        if program.num_layers != len(self.norms):
            raise G2MError(f"program: expected one of {len(self.norms)} layers (got {program.num_layers}).")
        x = self.nodes(program.x).index_select(0, program.key)
        for i, (hop, norm) in enumerate(zip(program.hops, self.norms, strict=True)):
            edge = self.arcs[i](program.edge_attr) if len(self.arcs) and program.edge_attr is not None else None
            x = self.backbone.conv(i, hop.read(x, edge), hop.adjacency(*self.backbone.weights))
            x = norm(x, program.weights[i]) if isinstance(norm, CountedBatchNorm) else norm(x)
            x = F.relu(x)
        return x

    def answer(self, program: Program, x: Tensor) -> Output:
        """Return logits ``[G, C]`` and pooled vectors ``[G, H]`` from the vectors at the top."""
        pool = program.pool
        if self.pooling == "max":
            graph = pool.row_of_entry()[:, None].expand(-1, x.size(1))
            pooled = x.new_zeros(len(pool), x.size(1)).scatter_reduce(0, graph, x[pool.col.long()], "amax")
        else:
            pooled = pool @ x
        if self.pooling == "mean":
            pooled = pooled / program.sizes.clamp(min=torch.finfo(x.dtype).tiny)[:, None]
        return Output(self.head(F.dropout(pooled, self.dropout, self.training)), pooled)
