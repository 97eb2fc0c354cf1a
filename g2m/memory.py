"""How much memory a training takes, before it is begun."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from g2m.errors import G2MError, check_whole
from g2m.mapped import is_mapped
from g2m.models import ROWS
from g2m.train import resolve_device

log = logging.getLogger(__name__)  # the command line listens

if TYPE_CHECKING:
    from g2m.estimators import Teacher
    from g2m.graph import Graph


def teacher_memory(teacher: Teacher, graph: Graph) -> dict[str, int]:
    """Return about how many bytes fitting a teacher takes, by what for; nothing is built.

    Counted are the graph, the adjacencies of training and validation, and the larger of three that come one after
    another: sorting the arcs, a step of training, an answer for all nodes. It is an estimate, within a third of what
    was measured (docs/scale.md); tokenizers are not counted, nor features that stay in their file. Of a module of your
    own the graph and an answer are all that is known.

    Args:
        teacher: not fitted yet.
        graph: what it is to be fitted on.
    """
    found, last = _estimate(teacher, graph, None)
    most = max(last, key=last.get)
    return {**found, most: last[most]}


def _estimate(teacher: Teacher, graph: Graph, partitions: int | None) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes of what stays, and of what comes one after another."""
    partitions = teacher.partitions if partitions is None else partitions
    nodes, arcs, classes = graph.num_nodes, graph.num_edges + graph.num_nodes, graph.num_classes
    rows, inside = -(-nodes // partitions), -(-graph.num_edges // partitions**2) + -(-nodes // partitions)
    if teacher.fan_out is not None:
        reached = teacher.batch_size
        for most in teacher.fan_out:
            reached *= 1 + most
        rows = inside = min(nodes, reached)
    widths = [teacher.hidden_channels] * (teacher.num_layers - 1)
    whole = 1 if graph.setting == "transductive" else 2  # the observed part is a copy
    if not isinstance(teacher.model, str):
        return {"graph": whole * _held(graph)}, {"an answer for all nodes": 4 * nodes * classes}
    found = {
        "graph": whole * _held(graph),
        "adjacencies": 8 * arcs * (2 if partitions == 1 else 3) + 12 * arcs // partitions,
    }
    widest, share = max([*widths, classes]), min(ROWS / nodes, 1.0)
    kept, at_once = _attention(teacher)
    return found, {
        "sorting the arcs": 36 * arcs,
        "a step of training": rows * (_kept(teacher, widths) + 4 * (2 * max([*widths, 0]) + 4 * classes))
        + inside * kept,
        "an answer for all nodes": int(4 * nodes * widest * (2 + share) + share * arcs * at_once),
    }


def _held(graph: Graph) -> int:
    return sum(v.nbytes for v in (graph.x, graph.edge_index, graph.y) if not is_mapped(v))


def _missing(teacher: Teacher, graph: Graph, device: torch.device, partitions: int | None = None) -> int:
    """Return the bytes of the estimate that a device has yet to find: the graph that was given is in memory already."""
    found, last = _estimate(teacher, graph, partitions)
    if device.type == "cuda":  # of the graph it gets features alone, for validation and steps; the host sorts arcs
        steps = graph.x.nbytes // (partitions or teacher.partitions) if teacher.fan_out is None else 0
        found["graph"] = graph.x.nbytes + steps
        last.pop("sorting the arcs", None)
    else:
        found["graph"] = 0 if graph.observed_is_made else _held(graph)
    return sum(found.values()) + max(last.values())


def _kept(teacher: Teacher, widths: list[int]) -> int:
    """Return the bytes a row that hidden layers keep for backward."""
    size = 4 if teacher.precision == "float32" else 2
    # Two arrays a layer where ReLU and dropout are one step, in place (g2m.models.relu_dropout); else two more.
    in_place = size == 4 and resolve_device(teacher.device).type == "cpu"
    each = size * (2 if in_place or not teacher.dropout else 4)
    if not teacher.checkpoint_activations:
        return each * sum(widths)
    widest = max([*widths, 0])
    return size * (sum(widths) - widest) + each * widest  # what the other layers read; all of the one in hand


def _attention(teacher: Teacher) -> tuple[int, int]:
    """Return the bytes an arc that attention takes in a step of training, and in an answer, as measured."""
    if teacher.model != "gat":
        return 0, 0
    heads = check_whole("heads", teacher.options.get("heads", 8)) if teacher.num_layers > 1 else 1
    layers = 1 if teacher.checkpoint_activations else teacher.num_layers - 1
    return 30 * (heads * layers + 1) + 24 * heads, 80 * heads


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, less than the machine has where its control groups say so; ``None``
    if nothing tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for such as this
        return torch.cuda.mem_get_info(device)[0] + unused
    found = []
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found.append(1024 * int(re.search(r"MemAvailable:\s+(\d+) kB", text)[1]))
        found += _left_by_groups(Path("/proc/self/cgroup").read_text(encoding="utf-8"))
    except (OSError, TypeError):
        pass
    return min(found, default=None)


def _left_by_groups(groups: str, root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield what each limit on this process leaves, its control group's and those of the groups around it.

    Pages of files that the kernel can drop at any time are free.

    Args:
        groups: content of ``/proc/self/cgroup``.
        root: where they are mounted.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif not controllers:  # version 2
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        own = top / path.lstrip("/")
        for group in (own, *own.parents):
            try:
                limit, used = ((group / name).read_text(encoding="ascii").strip() for name in names[:2])
                stat = (group / "memory.stat").read_text(encoding="ascii")
            except OSError:  # it has no limit, or is not mounted here
                continue
            if limit != "max":
                dropped = re.search(rf"^{names[2]} (\d+)$", stat, re.MULTILINE)
                yield int(limit) - int(used) + int(dropped[1] if dropped else 0)


def check_memory(teacher: Teacher, graph: Graph, device: torch.device) -> None:
    """Log what a training takes, at level ``INFO``; refuse one that cannot fit, and say what would.

    Raises:
        G2MError: if what the training adds to the graph given is above what is free on the device.
    """
    free, parts = available_memory(device), teacher_memory(teacher, graph)
    whole, needed = sum(parts.values()), _missing(teacher, graph, device)
    unit, name = (1e9, "GB") if whole >= 1e9 else (1e6, "MB")
    each = ", ".join(f"{part} {size / unit:.1f}" for part, size in parts.items())
    left = "" if free is None else f"; {free / 1e9:.1f} GB free"
    log.info("teacher: about %.1f %s (%s)%s", whole / unit, name, each, left)
    if free is None or needed <= free:
        return
    way = "Take a machine with more."
    if teacher.fan_out is None:
        for doublings in range(1, graph.num_nodes.bit_length()):
            parts = teacher.partitions * 2**doublings
            if _missing(teacher, graph, device, parts) <= free:
                way = f"partitions={parts} would fit."
                break
    raise G2MError(
        f"graph: training on {graph.name!r} takes about {needed / 1e9:.1f} GB more (got {free / 1e9:.1f} GB free). "
        f"{way}"
    )
