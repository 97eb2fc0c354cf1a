"""How long an answer takes: the student reads features, the teacher must fetch the neighbourhood first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from g2m.estimators import Student, Teacher
from g2m.graph import Graph
from g2m.models import mean_adjacency
from g2m.sparse import receptive_field

SIZES = (1, 1000)


def measure(call: Callable[[], Any], *, repeats: int = 30, seconds: float = 1.0) -> dict[str, float]:
    """Return ``p50`` and ``p99`` of a call in milliseconds, after one warm-up.

    Args:
        call: what to time.
        repeats: at most this many times, default 30.
        seconds: stop after about this long, default 1; at least three calls are timed.
    """
    call()
    times: list[float] = []
    while len(times) < 3 or (len(times) < repeats and sum(times) < seconds * 1e3):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    p50, p99 = torch.tensor(times).quantile(torch.tensor([0.5, 0.99])).tolist()
    return {"p50": p50, "p99": p99}


def student_latency(
    student: Student, graph: Graph, *, sizes: Iterable[int] = SIZES, seconds: float = 1.0
) -> dict[int, dict[str, float]]:
    """Return the milliseconds a student takes for so many random nodes, by number of nodes.

    A student with positions looks up those of the nodes' neighbours first, as for nodes it has not seen.

    Args:
        student: fitted; it is given features.
        graph: has the nodes.
        sizes: default 1 and 1000.
        seconds: spent at most on each size, see :func:`measure`; default 1.
    """
    observed = graph.observed()
    adjacency = None if student.position_ is None else mean_adjacency(observed)

    def ask(nodes: Tensor, x: Tensor) -> Tensor:
        if adjacency is not None:
            adjacency.rows(nodes) @ student.position_[1]
        return student.predict_logits(x)

    nodes = {size: _nodes(observed, size) for size in sizes}
    calls = {size: partial(ask, some, observed.x[some]) for size, some in nodes.items()}
    return {size: measure(call, seconds=seconds) for size, call in calls.items()}


def teacher_latency(
    teacher: Teacher, graph: Graph, *, sizes: Iterable[int] = SIZES, seconds: float = 1.0
) -> dict[int, dict[str, float]]:
    """Return the milliseconds a teacher takes for so many random nodes, by number of nodes.

    Each answer fetches the nodes' receptive field from the stored graph (adjacency and features in memory, normalised
    beforehand) and runs the model on it; where a pass over the whole graph is faster, that counts.

    Args:
        teacher: fitted.
        graph: has the nodes, their neighbours and all else.
        sizes: default 1 and 1000.
        seconds: spent at most on each size and each of the two ways, see :func:`measure`; default 1.
    """
    model = teacher.model_.eval()
    inputs = x, adjacency = model.inputs(graph)

    @torch.no_grad()
    def whole() -> Tensor:
        return model(*inputs).logits

    @torch.no_grad()
    def fetched(nodes: Tensor) -> Tensor:
        field, layers = receptive_field(adjacency, nodes, model.hops)
        return model(x[field], layers).logits

    result = {}
    for size in sizes:
        nodes = _nodes(graph, size).unique()  # asked twice, a node is answered once
        times = [measure(whole, seconds=seconds)]
        if hasattr(model, "hops"):  # a module of the user's own does not say how far it looks
            times.append(measure(partial(fetched, nodes), seconds=seconds))
        result[size] = min(times, key=lambda time: time["p50"])
    return result


def _nodes(graph: Graph, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if size <= graph.num_nodes:
        return torch.randperm(graph.num_nodes, generator=generator)[:size]
    return torch.randint(graph.num_nodes, (size,), generator=generator)
