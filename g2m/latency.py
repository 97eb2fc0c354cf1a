"""How long an answer takes: the student reads features, the teacher must fetch the neighbourhood first."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from g2m.batches import to_device
from g2m.errors import G2MError, check_whole
from g2m.estimators import Student, Teacher
from g2m.export import Exported
from g2m.graph import Graph
from g2m.models import sum_adjacency
from g2m.positions import of_arcs
from g2m.sparse import receptive_field, sampled_field

SIZES = (1, 1000)
REPEATS, DRAWS = 1000, 64  # calls of a measurement at most, and sets of nodes that they take in turn

Way = Callable[[Tensor], tuple[Tensor, int]]  # ids [n] to logits [n, C] and how many nodes' features were read


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
    """Return the milliseconds a student takes on CPU for so many random nodes, by number of nodes.

    Every call asks about other nodes, the same as :func:`teacher_latency`. A student with positions looks up those of
    the nodes' known neighbours first, as for nodes it has not seen.

    Args:
        student: fitted; it is given features.
        graph: has the nodes.
        sizes: default 1 and 1000.
        seconds: spent at most on each size, see :func:`measure`; default 1.
    """
    sizes = _checked(graph, sizes, student=student)
    way = _student_way(_on("cpu", student), graph, _arcs_into(student, graph))
    return {size: _time(way, _asked(graph, size), seconds) for size in sizes}


def teacher_latency(
    teacher: Teacher, graph: Graph, *, sizes: Iterable[int] = SIZES, seconds: float = 1.0
) -> dict[int, dict[str, float]]:
    """Return the milliseconds a teacher takes on CPU for so many random nodes, by number of nodes.

    Each answer fetches the nodes' receptive field from the stored graph (adjacency and features in memory, normalised
    beforehand) and runs the model on it; where a pass over the whole graph is faster, that counts. Every call asks
    about other nodes.

    Args:
        teacher: fitted.
        graph: has the nodes, their neighbours and all else.
        sizes: default 1 and 1000.
        seconds: spent at most on each size and each of the two ways, see :func:`measure`; default 1.
    """
    sizes = _checked(graph, sizes, teacher=teacher)
    ways, result = _ways(teacher, graph), {}
    for size in sizes:
        draws = _once(_asked(graph, size))
        result[size] = min((_time(way, draws, seconds) for way in ways.values()), key=_p50)
    return result


def _checked(graph: Graph, sizes: Iterable[int], **fitted: Teacher | Student) -> list[int]:
    """Return the sizes, once it has been checked that what is fitted can be asked about the graph."""
    for name, estimator in fitted.items():
        if not isinstance(estimator, expected := {"teacher": Teacher, "student": Student}[name]):
            raise G2MError(f"{name}: expected a g2m.{expected.__name__} (got {type(estimator).__name__}).")
        estimator._check_fitted()
        if estimator.meta_["in_channels"] != graph.num_features:
            raise G2MError(
                f"graph: expected {estimator.meta_['in_channels']} features, as the {name} was trained on "
                f"(got {graph.num_features}, of {graph.name!r})."
            )
    if not isinstance(sizes, Iterable):
        raise G2MError(f"sizes: expected numbers of nodes, such as (1, 1000) (got {sizes!r}).")
    if not (found := [check_whole("sizes", size) for size in sizes]):
        raise G2MError("sizes: expected at least one number of nodes (got none).")
    return found


def _ways(teacher: Teacher, graph: Graph, *, device: str = "cpu", fan_out: Sequence[int] = ()) -> dict[str, Way]:
    """Return by what ways a teacher answers for nodes: over the whole graph, what they need of it, or a sample of that.

    Everything is on the device beforehand, but for the ids of the nodes; the answer comes back.
    """
    model = (teacher.model_ if device == "cpu" else copy.deepcopy(teacher.model_).to(device)).eval()
    inputs = x, adjacency = tuple(to_device(value, device) for value in model.inputs(graph))

    @torch.no_grad()
    def whole(nodes: Tensor) -> tuple[Tensor, int]:
        return model(*inputs).logits[nodes.to(device)].cpu(), graph.num_nodes

    @torch.no_grad()
    def fetched(nodes: Tensor) -> tuple[Tensor, int]:
        field, layers = receptive_field(adjacency, nodes.to(device), model.hops)
        return model(x[field], layers).logits.cpu(), len(field)

    @torch.no_grad()
    def sampled(nodes: Tensor) -> tuple[Tensor, int]:
        field, layers = sampled_field(adjacency, nodes.to(device), fan_out)
        return model(x[field], layers).logits.cpu(), len(field)

    if not hasattr(model, "hops"):  # a module of the user's own does not say how far it looks
        return {"whole graph": whole}
    if fan_out and len(fan_out) != model.hops:
        raise G2MError(
            f"fan_out: expected {model.hops} numbers, one for each layer of the teacher, the first layer first "
            f"(got {', '.join(map(str, fan_out))})."
        )
    return {"whole graph": whole, "all neighbours": fetched} | ({"sampled": sampled} if fan_out else {})


def compare(
    teacher: Teacher,
    student: Student,
    graph: Graph,
    *,
    sizes: Sequence[int] = (1, 10, 1000),
    fan_out: Sequence[int] = (),
    seconds: float = 1.0,
) -> list[dict[str, Any]]:
    """Return how long teacher and student take for so many nodes, on CPU and, where there is one, on GPU.

    The teacher fetches all of the nodes' neighbourhood from the stored graph (where a pass over the whole graph is
    faster, that counts) and, if asked to, a sample of it; the student reads the nodes' features. Every call asks about
    other nodes. Asked about more nodes than there are, the teacher answers once for each; the student, to whom they are
    rows of features, answers every row. Graph and weights are in memory beforehand. Where onnx, onnxscript and
    onnxruntime are installed, the student is measured as an ``.onnx`` file, too, on CPU.

    Args:
        teacher: fitted.
        student: fitted. One with positions looks up the nodes' known neighbours, and the rows kept of these, first.
        graph: has the nodes, their neighbours and all else.
        sizes: numbers of nodes, from 1; default 1, 10 and 1000.
        fan_out: neighbours sampled a node, by layer of the teacher, the first first, from 1 each; default: none.
        seconds: spent at most on each measurement, see :func:`measure`; default 1.

    Returns:
        Rows of ``model``, ``device``, ``nodes`` asked about, ``p50`` and ``p99`` in milliseconds, ``nodes_per_second``,
        ``speedup`` (teacher's p50 on the same device over this one's), and ``read``, the nodes whose features are read
        for an answer, on average.

    Raises:
        G2MError: if the graph has other features than the two were trained on, or an argument is not as above.
    """
    sizes = _checked(graph, sizes, teacher=teacher, student=student)
    fan_out = [check_whole("fan_out", most) for most in fan_out]
    exported, arcs_into = _exported(student), _arcs_into(student, graph)
    rows = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        ways = _ways(teacher, graph, device=device, fan_out=fan_out)
        if fan_out and "sampled" not in ways:
            raise G2MError("fan_out: a module of one's own does not say what it samples. Leave it out.")
        sample = {f"teacher, {','.join(map(str, fan_out))} sampled": [ways.pop("sampled")]} if fan_out else {}
        teachers = {"teacher, all neighbours": [*ways.values()], **sample}
        students = {"student": [_student_way(_on(device, student), graph, arcs_into)]}
        if exported is not None and device == "cpu":
            students["student, onnxruntime"] = [_student_way(exported.predict_logits, graph, arcs_into)]
        for size in sizes:
            asked = _asked(graph, size)
            times = {
                model: min((_time(way, draws, seconds) | {"read": _read(way, draws)} for way in ways), key=_p50)
                for models, draws in ((teachers, _once(asked)), (students, asked))
                for model, ways in models.items()
            }
            rows += [
                {"model": model, "device": device, "nodes": size, "p50": time["p50"], "p99": time["p99"]}
                | {"nodes_per_second": 1e3 * size / time["p50"]}
                | {"speedup": times["teacher, all neighbours"]["p50"] / time["p50"], "read": time["read"]}
                for model, time in times.items()
            ]
    return rows


def _p50(time: dict[str, float]) -> float:
    return time["p50"]


def _time(way: Way, draws: Sequence[Tensor], seconds: float) -> dict[str, float]:
    turn = itertools.cycle(draws)
    return measure(lambda: way(next(turn))[0], repeats=REPEATS, seconds=seconds)


def _read(way: Way, draws: Sequence[Tensor]) -> float:
    return statistics.fmean(way(nodes)[1] for nodes in draws[:3])


def _arcs_into(student: Student, graph: Graph) -> Callable[[Tensor], Tensor | None]:
    """Return what tells the arcs to some nodes, beside whose features the student reads of neighbours; if it does."""
    if student.position_ is None:
        return lambda nodes: None
    adjacency = sum_adjacency(graph)

    def arcs_into(nodes: Tensor) -> Tensor:
        rows = adjacency.rows(nodes)
        return torch.stack([graph.node_id[rows.col.long()], rows.row_of_entry()])

    return arcs_into


def _student_way(
    answer: Callable[[Tensor, Tensor | None], Tensor], graph: Graph, arcs_into: Callable[[Tensor], Tensor | None]
) -> Way:
    """Return how a student answers for nodes, with the checks of what it is given."""

    def ask(nodes: Tensor) -> tuple[Tensor, int]:
        arcs = arcs_into(nodes)
        return answer(graph.x[nodes], arcs), len(nodes) + (0 if arcs is None else arcs.size(1))

    return ask


def _on(device: str, student: Student) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return a student's answers on a device that its weights are on beforehand."""
    if device == "cpu":
        student = copy.copy(student)
        student.device = "cpu"
        return student.predict_logits
    model = copy.deepcopy(student.model_).to(device).eval()

    @torch.no_grad()
    def answer(x: Tensor, arcs: Tensor | None) -> Tensor:
        if arcs is not None:
            known, position = student.position_
            x = torch.cat([x, of_arcs(position, known, arcs, len(x))], 1)
        return model(x.to(device)).logits.cpu()

    return answer


def _exported(student: Student) -> Exported | None:
    if not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        return None
    with TemporaryDirectory() as folder:
        return Exported.load(student.export(Path(folder, "student.onnx")))


def _asked(graph: Graph, size: int) -> list[Tensor]:
    """Return the nodes that calls ask about in turn."""
    return [_nodes(graph, size, seed).sort().values for seed in range(DRAWS)]


def _once(asked: Sequence[Tensor]) -> list[Tensor]:
    """Asked twice, a node is answered once."""
    return [nodes.unique() for nodes in asked]


def _nodes(graph: Graph, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if size <= graph.num_nodes:
        return torch.randperm(graph.num_nodes, generator=generator)[:size]
    return torch.randint(graph.num_nodes, (size,), generator=generator)
