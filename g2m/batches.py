"""What one optimiser step sees, and the ways of cutting a graph into such steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor

from g2m.errors import check_whole
from g2m.sparse import CSR


def _to(value: Any, device: torch.device | str) -> Any:
    return value.to(device) if isinstance(value, (Tensor, CSR)) else value


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
    """

    inputs: tuple
    row: Tensor
    y: Tensor
    labelled: Tensor
    label_scale: float
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    only: str | None = None


class FullBatch:
    """The whole graph in one step.

    Args:
        inputs: what the model is called with.
        y: labels ``[N]``.
        train: ids of the training nodes.
        targets: per-node tensors ``[N, …]`` by name.
    """

    def __init__(self, inputs: tuple, y: Tensor, train: Tensor, targets: Mapping[str, Tensor] | None = None) -> None:
        labelled = torch.zeros(len(y), dtype=torch.bool)
        labelled[train] = True
        self.batch = Batch(inputs, torch.arange(len(y)), y, labelled, 1 / len(train), targets or {})

    def to(self, device: torch.device | str) -> FullBatch:
        batch = self.batch
        self.batch = replace(
            batch,
            inputs=tuple(_to(value, device) for value in batch.inputs),
            row=batch.row.to(device),
            y=batch.y.to(device),
            labelled=batch.labelled.to(device),
            targets={key: value.to(device) for key, value in batch.targets.items()},
        )
        return self

    def epoch(self, generator: Generator) -> Iterator[Batch]:
        yield self.batch


class NodeBatches:
    """Random batches of nodes, for models that need no edges.

    Args:
        x: features ``[N, F]``, dense or sparse.
        y: labels ``[N]``.
        train: ids of the training nodes.
        targets: per-node tensors ``[N, …]`` by name.
        nodes: ids that a step draws from; default all N.
        batch_size: rows a step; default 512. The last batch of an epoch may be smaller; a
            single row left over joins the batch before, for batch norm cannot take it alone.
        reference_schedule: as the published codes do: first a pass over ``train`` for the label loss alone, then one
            over ``nodes`` for the rest, a step each, remainders dropped. Default False.
    """

    def __init__(
        self,
        x: Tensor | CSR,
        y: Tensor,
        train: Tensor,
        targets: Mapping[str, Tensor] | None = None,
        *,
        nodes: Tensor | None = None,
        batch_size: int = 512,
        reference_schedule: bool = False,
    ) -> None:
        self.x, self.y, self.train, self.targets = x, y, train, dict(targets or {})
        self.nodes = torch.arange(len(y)) if nodes is None else nodes
        self.labelled = torch.zeros(len(y), dtype=torch.bool)
        self.labelled[train] = True
        self.batch_size, self.reference_schedule = check_whole("batch_size", batch_size), reference_schedule

    def to(self, device: torch.device | str) -> NodeBatches:
        for name in ("x", "y", "train", "nodes", "labelled"):
            setattr(self, name, _to(getattr(self, name), device))
        self.targets = {key: value.to(device) for key, value in self.targets.items()}
        return self

    def epoch(self, generator: Generator) -> Iterator[Batch]:
        if self.reference_schedule and self.targets:
            yield from self._pass(self.train, generator, "label")
            yield from self._pass(self.nodes, generator, "teacher")
        else:
            yield from self._pass(self.nodes, generator, None)

    def _pass(self, nodes: Tensor, generator: Generator, only: str | None) -> Iterator[Batch]:
        order = nodes[torch.randperm(len(nodes), generator=generator).to(nodes.device)]
        labels = int(self.labelled[nodes].sum())
        size = min(self.batch_size, len(order))
        if only:
            order = order[: len(order) // size * size]
        rows = list(order.split(size))
        if len(rows[-1]) == 1 < size and len(rows) > 1:
            rows[-2:] = [torch.cat(rows[-2:])]
        for row in rows:
            yield Batch(
                inputs=(self.x[row],),
                row=row,
                y=self.y[row],
                labelled=self.labelled[row],
                label_scale=len(nodes) / (max(labels, 1) * len(row)),
                targets={key: value[row] for key, value in self.targets.items()},
                only=only,
            )
