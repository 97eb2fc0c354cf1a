"""What one optimiser step sees, and the ways of cutting a graph into such steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from g2m.errors import G2MError, check_whole
from g2m.graph import Graph
from g2m.mapped import is_mapped
from g2m.sparse import CSR, receptive_field, sampled_field


def to_device(value: Any, device: torch.device | str) -> Any:
    """Return a tensor, a sparse matrix, or several in a list or tuple, on another device; anything else as it is."""
    if isinstance(value, list | tuple):
        return type(value)(to_device(item, device) for item in value)
    return value.to(device) if isinstance(value, (Tensor, CSR)) else value


def unless_mapped(x: Any, device: torch.device | str) -> Any:
    """Return features or targets on a device, or, mapped, as they are: :class:`NodeBatches` moves rows of them."""
    return x if is_mapped(x) else to_device(x, device)


def _rows(x: Tensor | CSR, row: Tensor) -> Tensor | CSR:
    if isinstance(x, CSR):
        return x[row]
    return x.index_select(0, row.to(x.device)).to(row.device)


@dataclass(frozen=True)
class Batch:
    """One step's data; every tensor has one row per row of the model's output.

    Attributes:
        inputs: what the model is called with.
        row: ids ``[B]`` of the rows in the observed graph.
        y: labels ``[B]``; only those where ``labelled`` may be read.
        labelled: ``[B]``, true on training nodes.
        label_scale: factor that makes the sum of the batch's label losses an unbiased estimate of their mean over all
            training nodes.
        targets: what the method asked for in ``prepare``, sliced to the batch: ``[B, …]`` by name.
        only: ``"label"`` or ``"teacher"`` where a step is to use that half of the loss alone (the reference
            schedule); ``None``: the whole loss.
        batch_size: how many rows were drawn; they come first. Rows after them are there for their edges alone, and
            only where the method asked for edges. ``None``: all rows were drawn.
        edge_index: the edges of this step ``[2, E]``, as rows of the batch; ``None`` unless the method asks for edges.
        edge_scale: factor that makes a sum over them an unbiased estimate of the mean over all edges.
    """

    inputs: tuple
    row: Tensor
    y: Tensor
    labelled: Tensor
    label_scale: float
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    only: str | None = None
    batch_size: int | None = None
    edge_index: Tensor | None = None
    edge_scale: float = 0.0


class FullBatch:
    """The whole graph in one step, for models that need its edges.

    Args:
        inputs: what the model is called with.
        y: labels ``[N]``.
        train: ids of the training nodes.
        row: ids ``[R]`` of the nodes that the model answers for with these inputs; default all N.
    """

    def __init__(self, inputs: tuple, y: Tensor, train: Tensor, *, row: Tensor | None = None) -> None:
        row = torch.arange(len(y)) if row is None else row
        labelled = torch.zeros(len(y), dtype=torch.bool)
        labelled[train] = True
        self.batch = Batch(inputs, row, y[row], labelled[row], 1 / len(train))

    def to(self, device: torch.device | str) -> FullBatch:
        batch = self.batch
        self.batch = replace(
            batch,
            inputs=to_device(batch.inputs, device),
            row=batch.row.to(device),
            y=batch.y.to(device),
            labelled=batch.labelled.to(device),
        )
        return self

    def epoch(self, generator: Generator) -> Iterator[Batch]:
        yield self.batch


class PartitionBatches:
    """A graph in random parts, with the edges inside each, a step a part: for graphs too large for one step.

    Drawn anew every epoch, as the strong baselines of ogbn-products do. A node sees a part of its neighbours, one in
    ``parts`` on average, and normalisation counts those.

    Args:
        graph: what training may see.
        train: ids of the training nodes.
        inputs: of a part, a graph, what the model is called with.
        parts: how many, at most N.
    """

    def __init__(self, graph: Graph, train: Tensor, inputs: Callable[[Graph], tuple], *, parts: int) -> None:
        if check_whole("partitions", parts) > graph.num_nodes:
            raise G2MError(f"partitions: expected at most {graph.num_nodes}, one a node (got {parts}).")
        self.graph, self.inputs, self.parts, self.device = graph, inputs, parts, "cpu"
        self.labelled = torch.zeros(graph.num_nodes, dtype=torch.bool)
        self.labelled[train] = True
        source, target = graph.edge_index
        self._sources = CSR.from_coo(target, source, torch.ones(len(source)), (graph.num_nodes,) * 2)

    def to(self, device: torch.device | str) -> PartitionBatches:
        self.device = device  # a part goes there when it is its turn
        return self

    def epoch(self, generator: Generator) -> Iterator[Batch]:
        num_nodes, labels = self.graph.num_nodes, int(self.labelled.sum())
        for ids in torch.randperm(num_nodes, generator=generator).tensor_split(self.parts):
            ids = ids.sort().values
            inputs = to_device(self.inputs(self._part(ids)), self.device)
            rest = (value[ids].to(self.device) for value in (torch.arange(num_nodes), self.graph.y, self.labelled))
            yield Batch(inputs, *rest, label_scale=num_nodes / (labels * len(ids)))

    def _part(self, ids: Tensor) -> Graph:
        position = torch.full((self.graph.num_nodes,), -1)
        position[ids] = torch.arange(len(ids))
        rows = self._sources.rows(ids)
        source, target = position[rows.col.long()], rows.row_of_entry()
        inside = source >= 0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "graph .* has no edges")
            return replace(
                self.graph,
                x=self.graph.x[ids],
                y=self.graph.y[ids],
                edge_index=torch.stack([source[inside], target[inside]]),
                split={},
                node_id=self.graph.node_id[ids],
            )


class SampledBatches:
    """Training nodes in random batches, each with a sample of its neighbourhood (GraphSAGE, NeurIPS 2017).

    A sampled neighbour weighs for those left out: sums over neighbours are unbiased.

    Args:
        x: features ``[N, F]``, dense or sparse.
        adjacency: the model's own ``[N, N]``.
        y: labels ``[N]``.
        train: ids of the training nodes.
        fan_out: neighbours of a node at most, by layer, the first layer first.
        batch_size: nodes a step.
    """

    def __init__(
        self, x: Tensor | CSR, adjacency: CSR, y: Tensor, train: Tensor, *, fan_out: Sequence[int], batch_size: int
    ) -> None:
        self.x, self.adjacency, self.y, self.train = x, adjacency, y, train
        self.fan_out, self.batch_size, self.device = list(fan_out), batch_size, "cpu"

    def to(self, device: torch.device | str) -> SampledBatches:
        self.device = device  # what is sampled goes there, the graph stays
        return self

    def epoch(self, generator: Generator) -> Iterator[Batch]:
        order = self.train[torch.randperm(len(self.train), generator=generator)]
        rows = list(order.split(self.batch_size))
        if len(rows) > 1 and len(rows[-1]) == 1:  # batch norm cannot take it alone
            rows[-2:] = [torch.cat(rows[-2:])]
        for row in rows:
            field, layers = sampled_field(self.adjacency, row, self.fan_out)
            inputs = to_device((self.x[field], layers), self.device)
            row, y = row.to(self.device), self.y[row].to(self.device)
            yield Batch(inputs, row, y, torch.ones_like(y, dtype=torch.bool), 1 / len(row))


def check_batch_size(value: Any) -> int | str:
    """Return a number of rows, or ``"all"``; refuse anything else."""
    if isinstance(value, str):
        if value != "all":
            raise G2MError(f"batch_size: expected a whole number from 1, or 'all' (got {value!r}).")
        return value
    return check_whole("batch_size", value)


def random_rows(batch: Batch, most: int) -> Batch:
    """Return ``most`` random rows of a batch, as one without edges; the batch itself if it has no more."""
    if most >= len(batch.row):
        return batch
    row = torch.randperm(len(batch.row), device=batch.row.device)[:most]
    return replace(
        batch,
        inputs=tuple(x[row] for x in batch.inputs),
        row=batch.row[row],
        y=batch.y[row],
        labelled=batch.labelled[row],
        label_scale=batch.label_scale * len(batch.row) / most,
        targets={key: value[row] for key, value in batch.targets.items()},
        batch_size=most,
        edge_index=None,
        edge_scale=0.0,
    )


class NodeBatches:
    """Random batches of nodes, for models that need no edges; a loss may have some all the same.

    Args:
        x: features ``[N, F]``, dense or sparse. Mapped from a file they stay there, and so do targets: on any device,
            a step's rows are moved.
        y: labels ``[N]``.
        train: ids of the training nodes.
        targets: per-node tensors ``[N, …]`` by name.
        nodes: ids that a step draws from; default all N.
        batch_size: rows a step; default 512. The last batch of an epoch may be smaller; a
            single row left over joins the batch before, for batch norm cannot take it alone. ``"all"``: one step.
        reference_schedule: as the published codes do: first a pass over ``train`` for the label loss alone, then one
            over ``nodes`` for the rest, a step each, remainders dropped. Default False.
        edge_index: edges ``[2, E]`` that the loss is over, beside nodes; default none. ``nodes`` are all N then.
        edge_batch_size: edges a step, drawn at random with replacement. Default ``None``: the edges whose first end is
            in the batch, so that an epoch has each once; their other ends join the batch.
    """

    def __init__(
        self,
        x: Tensor | CSR,
        y: Tensor,
        train: Tensor,
        targets: Mapping[str, Tensor] | None = None,
        *,
        nodes: Tensor | None = None,
        batch_size: int | str = 512,
        reference_schedule: bool = False,
        edge_index: Tensor | None = None,
        edge_batch_size: int | None = None,
    ) -> None:
        self.x, self.y, self.train, self.targets = x, y, train, dict(targets or {})
        self.everything, self.nodes = nodes is None, torch.arange(len(y)) if nodes is None else nodes
        self.labelled = torch.zeros(len(y), dtype=torch.bool)
        self.labelled[train] = True
        self.batch_size = check_batch_size(batch_size)
        self.reference_schedule, self.edge_index = reference_schedule, edge_index
        self.edge_batch_size = None if edge_batch_size is None else check_whole("edge_batch_size", edge_batch_size)
        if edge_index is not None and nodes is not None:
            raise G2MError("nodes: expected all of them where the loss has edges (got some). Leave one of the two out.")

    def to(self, device: torch.device | str) -> NodeBatches:
        for name in ("y", "train", "nodes", "labelled", "edge_index"):
            setattr(self, name, to_device(getattr(self, name), device))
        self.x = unless_mapped(self.x, device)
        self.targets = {key: unless_mapped(value, device) for key, value in self.targets.items()}
        for name in ("_whole", "_by_first_end"):  # made on the old device
            self.__dict__.pop(name, None)
        return self

    def epoch(self, generator: Generator) -> Iterator[Batch]:
        for batch in self._steps(generator):
            yield batch if batch.inputs else replace(batch, inputs=(self.rows(batch.row),))

    def rows(self, row: Tensor) -> Tensor | CSR:
        """Return the features of some nodes, where their labels are."""
        return _rows(self.x, row.to(self.y.device))

    @property
    def num_steps(self) -> int:
        """How many steps an epoch has."""
        passes = (len(self.train), len(self.nodes)) if self.reference_schedule else (len(self.nodes),)
        if self.batch_size == "all":
            return len(passes)
        if self.reference_schedule:
            return sum(rows // min(self.batch_size, rows) for rows in passes)
        full, left = divmod(passes[0], self.batch_size)
        return max(full + (left > (self.batch_size > 1)), 1)

    def _steps(self, generator: Generator) -> Iterator[Batch]:
        """Draw an epoch. Its batches have no inputs yet, unless they are everything."""
        if self.reference_schedule:
            yield from self._pass(self.train, generator, "label")
            yield from self._pass(self.nodes, generator, "teacher")
        elif self.batch_size == "all":
            yield self._with_edges(self._whole, generator)
        else:
            yield from self._pass(self.nodes, generator, None)

    @cached_property
    def _whole(self) -> Batch:
        if self.everything:
            targets = to_device([*self.targets.values()], self.y.device)
            targets = dict(zip(self.targets, targets, strict=True))
            x = to_device(self.x, self.y.device)
            return Batch((x,), self.nodes, self.y, self.labelled, 1 / max(len(self.train), 1), targets)
        whole = self._batch(self.nodes, len(self.nodes), int(self.labelled[self.nodes].sum()), None, None)
        return replace(whole, inputs=(self.rows(whole.row),))

    def _pass(self, nodes: Tensor, generator: Generator, only: str | None) -> Iterator[Batch]:
        order = nodes[torch.randperm(len(nodes), generator=generator).to(nodes.device)]
        labels = int(self.labelled[nodes].sum())
        size = len(order) if self.batch_size == "all" else min(self.batch_size, len(order))
        if only:
            order = order[: len(order) // size * size]
        rows = list(order.split(size))
        if len(rows[-1]) == 1 < size and len(rows) > 1:
            rows[-2:] = [torch.cat(rows[-2:])]
        for row in rows:
            yield self._batch(row, len(nodes), labels, only, generator)

    def _batch(self, row: Tensor, num_nodes: int, labels: int, only: str | None, generator: Generator | None) -> Batch:
        size, edges, scale = len(row), None, 0.0
        if self.edge_index is not None and only != "label":
            row, edges, scale = self._edges_of(row, generator)
        labelled = self.labelled[row]
        if len(row) > size:
            labelled[size:] = False
        return Batch(
            inputs=(),
            row=row,
            y=self.y[row],
            labelled=labelled,
            label_scale=num_nodes / (max(labels, 1) * size),
            targets={key: _rows(value, row) for key, value in self.targets.items()},
            only=only,
            batch_size=size,
            edge_index=edges,
            edge_scale=scale,
        )

    # -- edges -------------------------------------------------------------------------------------------------

    def _with_edges(self, whole: Batch, generator: Generator) -> Batch:
        if self.edge_index is None:
            return whole
        if self.edge_batch_size is None:
            return replace(whole, edge_index=self.edge_index, edge_scale=1 / max(self.edge_index.size(1), 1))
        return replace(whole, edge_index=self._draw(generator), edge_scale=1 / self.edge_batch_size)

    def _edges_of(self, row: Tensor, generator: Generator) -> tuple[Tensor, Tensor, float]:
        """Return the rows of a batch with edges, ``row`` first, its edges in terms of them, and their scale."""
        if self.edge_batch_size is None:
            field, (layer,) = receptive_field(self._by_first_end, row, 1)
            edges = torch.stack([layer.row_of_entry(), layer.col.long()])
            return field, edges, len(self.y) / (len(row) * max(self._by_first_end.nnz, 1))
        edges = self._draw(generator)
        position = torch.full((len(self.y),), -1, device=row.device)
        position[row] = 0
        ends = edges.unique()
        field = torch.cat([row, ends[position[ends] < 0]])
        position[field] = torch.arange(len(field), device=row.device)
        return field, position[edges], 1 / self.edge_batch_size

    def _draw(self, generator: Generator) -> Tensor:
        num_edges = self.edge_index.size(1)
        drawn = torch.randint(max(num_edges, 1), (self.edge_batch_size if num_edges else 0,), generator=generator)
        return self.edge_index[:, drawn.to(self.edge_index.device)]

    @cached_property
    def _by_first_end(self) -> CSR:
        first, second = self.edge_index
        return CSR.from_coo(first, second, torch.ones(len(first), device=first.device), (len(self.y), len(self.y)))


def side_by_side(several: Sequence[NodeBatches], generators: Sequence[Generator]) -> Iterator[list[Batch]]:
    """Yield an epoch of several at once, step by step: each one's batches are those of its own ``epoch``.

    Rows of features that all of them share are gathered together. All have as many steps.
    """
    x = several[0].x if all(batches.x is several[0].x for batches in several) else None
    epochs = [batches._steps(generator) for batches, generator in zip(several, generators, strict=True)]
    for step in zip(*epochs, strict=True):
        if any(batch.inputs for batch in step):
            yield list(step)
        elif x is None:
            yield [replace(b, inputs=(batches.rows(b.row),)) for batches, b in zip(several, step, strict=True)]
        else:
            rows = several[0].rows(torch.cat([batch.row for batch in step])).split([len(batch.row) for batch in step])
            yield [replace(batch, inputs=(part,)) for batch, part in zip(step, rows, strict=True)]


class GraphBatches:
    """Random batches of graphs, or of what stands for them.

    Args:
        program: see :class:`~g2m.condense.program.Program`; ``of`` gives that of some.
        y: classes ``[G]``, shares of classes ``[G, C]``, or labels of tasks ``[G, T]``, NaN for a missing one.
        weight: of each in the loss, ``[G]``, or of tasks ``[G, T]``; default 1 for classes; tasks need one. Losses
            of steps are on average the mean by weight.
        batch_size: graphs a step; default 128. ``"all"``: one step. A single graph left over joins the batch before.
        draws: graphs an epoch, drawn with replacement in proportion to ``weight`` (of tasks, its sum over them), which
            is then 1 in the loss (of tasks, the share of each in that sum); default ``None``: each once.
    """

    def __init__(
        self,
        program: Any,
        y: Tensor,
        weight: Tensor | None = None,
        *,
        batch_size: int | str = 128,
        draws: int | None = None,
    ) -> None:
        self.program, self.y, self.batch_size = program, y, check_batch_size(batch_size)
        self.weight = torch.ones(len(y)) if weight is None else weight
        self.draws = None if draws is None else check_whole("draws", draws)
        self._mean = None  # weight of a graph; where all weigh the same, or are drawn by it, a batch is its own mean
        if self.draws is None and (self.weight != self.weight.flatten()[0]).any():
            self._mean = float((self.weight * _known(y, self.weight)).sum()) / len(y)

    def to(self, device: torch.device | str) -> GraphBatches:
        self.program = self.program.to(device)
        self.y, self.weight = self.y.to(device), self.weight.to(device)
        self.__dict__.pop("_whole", None)  # made on the old device
        return self

    def epoch(self, generator: Generator) -> Iterator[Batch]:
        if self.draws is not None:
            chance = self.weight.cpu() if self.weight.dim() == 1 else self.weight.cpu().sum(1)
            order = torch.multinomial(chance, self.draws, replacement=True, generator=generator)
        elif self.batch_size == "all" or self.batch_size >= len(self.y):
            yield self._whole
            return
        else:
            order = torch.randperm(len(self.y), generator=generator)
        rows = list(order.split(len(order) if self.batch_size == "all" else self.batch_size))
        if len(rows) > 1 and len(rows[-1]) == 1 < self.batch_size:  # one graph may be one node: no batch for batch norm
            rows[-2:] = [torch.cat(rows[-2:])]
        for row in rows:
            yield self._batch(row.to(self.y.device))

    @cached_property
    def _whole(self) -> Batch:
        row = torch.arange(len(self.y), device=self.y.device)
        return self._of(self.program, row)

    def _batch(self, row: Tensor) -> Batch:
        return self._of(self.program.of(row), row)

    def _of(self, program: Any, row: Tensor) -> Batch:
        y, weight = self.y[row], self.weight[row]
        if self.draws is not None:  # what the draw has not told apart: the tasks of a graph
            weight = weight / weight.sum(1, keepdim=True) if weight.dim() == 2 else torch.ones_like(weight)
        known = _known(y, weight)
        total = float((weight * known).sum()) if self._mean is None else len(row) * self._mean
        labelled = torch.ones(len(row), dtype=torch.bool, device=row.device)
        return Batch((program,), row, y, labelled, 1 / max(total, 1e-12), {"weight": weight * known})


def _known(y: Tensor, weight: Tensor) -> Tensor:
    """Return which labels are there, as ``weight`` has them: of tasks some may be missing."""
    return ~y.isnan() if y.is_floating_point() and weight.dim() == 2 else torch.ones_like(weight, dtype=torch.bool)
