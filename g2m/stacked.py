"""Many students of one shape, trained as one model by batched products; each ends as it would have alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from tqdm.auto import tqdm

from g2m.batches import Batch, NodeBatches, side_by_side, unless_mapped
from g2m.errors import G2MError, check_whole
from g2m.estimators import Student
from g2m.graph import Graph
from g2m.methods import make_method
from g2m.models import Output, Part, relu_dropout_of
from g2m.outputs import TeacherOutputs
from g2m.sparse import CSR
from g2m.train import Run, memory_of_the_gpu, resolve_device, train_epoch

#: How many members are trained at once unless told otherwise: on CPU, what its cache holds of their weights, gradients
#: and moments; on GPU, what keeps it busy.
WIDTH = {"cpu": 8, "cuda": 128}

_SHAPE = ("hidden_channels", "num_layers", "norm", "batch_size", "edge_batch_size", "reference_schedule")


def stack_key(student: Student, graph: Graph) -> tuple[tuple[str, Any], ...]:
    """Return what students must have in common to be trained by :func:`fit_stacked`, hashable, as pairs.

    They may differ in everything else: seed, learning rate, weight decay, dropout, epochs, patience, the method's
    options. Their graphs may differ, but for the number of features, of classes, and of steps of an epoch. Of those
    that read positions beside the features, one model is made for each number of columns.
    """
    method = make_method(student.method, student.options)
    observed = graph.observed()
    train = observed.part("train")
    nodes = train if method.nodes == "train" else None
    reference = student.reference_schedule and bool(method.needs)
    options = {"nodes": nodes, "batch_size": student.batch_size, "reference_schedule": reference}
    return (
        ("method", method.name),
        *((name, getattr(student, name)) for name in _SHAPE),
        ("device", str(resolve_device(student.device))),
        ("features", graph.num_features),
        ("classes", graph.num_classes),
        ("steps of an epoch", NodeBatches(observed.x, observed.y, train, **options).num_steps),
    )


@memory_of_the_gpu()
def fit_stacked(
    students: Sequence[Student],
    graph: Graph | Sequence[Graph],
    outputs: TeacherOutputs | Sequence[TeacherOutputs | None] | None = None,
    *,
    width: int | None = None,
    progress: bool = False,
    on_epoch: Callable[[int, dict[str, float]], bool | None] | None = None,
) -> dict[int, G2MError]:
    """Fit students of one shape, several at once, as :meth:`Student.fit <g2m.Student.fit>` fits each.

    Same initial weights, batches and dropout; numbers agree to what the order of sums makes of them. One that stops
    early makes room for the next. Seconds of an epoch are shared out evenly.

    Args:
        students: not fitted yet, of one :func:`stack_key`.
        graph: of all, or one for each.
        outputs: of all, or one for each, as ``fit`` takes them.
        width: how many are trained at once; default 8 on CPU, 128 on GPU. Memory follows it.
        progress: show a bar of students; default False.
        on_epoch: called with a student's place and an epoch's record; true: give that student up, it stays unfitted.

    Returns:
        The errors of those that failed, by place; they stay unfitted, the rest do not notice.

    Raises:
        G2MError: if they cannot be trained together, or one's outputs are missing or of another graph.
    """
    if not isinstance(students, Sequence):
        raise G2MError(f"students: expected a list of them (got {type(students).__name__}).")
    graphs, outputs = _one_each("graph", graph, len(students)), _one_each("outputs", outputs, len(students))
    methods = _check_alike(students, graphs, outputs)
    device = resolve_device(students[0].device)
    width = WIDTH.get(device.type, 8) if width is None else check_whole("width", width)
    width = min(width, len(students))
    waiting, failed = deque(range(len(students))), {}
    stacks: dict[int, Stack] = {}  # by the columns of the input: with positions, known once these are made
    members, placed = {}, {}

    def place(x: Any) -> Any:
        if x is not graphs[i].observed().features:  # with positions: one student's own, and gone with it
            return unless_mapped(x, device)
        if id(x) not in placed:
            placed[id(x)] = x, unless_mapped(x, device)
        return placed[id(x)][1]

    bar = tqdm(total=len(students), desc="students", leave=False, disable=None if progress else True)
    with bar, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while waiting or members:
            while waiting and len(members) < width:
                i = waiting.popleft()
                try:
                    task = students[i]._prepare(methods[i], graphs[i], outputs[i], place=place)
                    run = Run(
                        task.model,
                        task.method,
                        task.batches,
                        task.validate,
                        observe=task.observe,
                        own_stream=True,
                        **students[i]._fit_options(),
                    )
                except G2MError as error:
                    failed[i] = error
                    bar.update()
                else:
                    stack = stacks.setdefault(task.model.layers[0].in_features, Stack(width))
                    stack.add(run)
                    members[run] = i, task, stack
            stacks = {columns: stack for columns, stack in stacks.items() if stack.runs}
            for stack in stacks.values():
                stack.train_epoch()
            for run in [*members]:
                i, task, stack = members[run]
                dropped = run.error is None and on_epoch is not None and on_epoch(i, run.history.epochs[-1])
                if run.error is None and not dropped and not run.finished:
                    continue
                stack.remove(run)
                del members[run]
                bar.update()
                if run.error is not None:
                    failed[i] = run.error
                elif not dropped:
                    run.restore()
                    students[i]._finish(task, run.history, graphs[i], outputs[i])
    return failed


def _one_each(argument: str, given: Any, count: int) -> list[Any]:
    if not isinstance(given, list | tuple):
        return [given] * count
    if len(given) != count:
        raise G2MError(f"{argument}: expected one, or one for each of {count} students (got {len(given)}).")
    return [*given]


def _check_alike(students: Sequence[Student], graphs: Sequence[Graph], outputs: Sequence[Any]) -> list[Any]:
    """Return the students' methods, or refuse them."""
    if not students or not all(isinstance(student, Student) for student in students):
        raise G2MError(f"students: expected some of g2m.Student (got {[type(s).__name__ for s in students]}).")
    if len({id(student) for student in students}) < len(students):
        raise G2MError("students: expected different ones (got one twice). Make one for each place.")
    methods, keys = [], []
    for i, (student, graph, output) in enumerate(zip(students, graphs, outputs, strict=True)):
        method, search = student._begin(graph, output)
        if search is not None:
            raise G2MError(f"students: method {method.name!r} of student {i} searches, one fit after another. Use fit.")
        methods.append(method)
        keys.append(stack_key(student, graph))
    for i, key in enumerate(keys):
        for (name, expected), (_, got) in zip(keys[0], key, strict=True):
            if expected != got:
                raise G2MError(
                    f"students: expected one shape, {name} of student 0 is {expected!r} (got {got!r} of student {i}). "
                    "Put together those of equal g2m.stacked.stack_key, on graphs of one size."
                )
    return methods


# -- the stack -------------------------------------------------------------------------------------------------


class Stack:
    """Runs whose models' weights lie one after the other in memory, and the forward pass of all of them.

    Args:
        width: how many there are at most.
    """

    def __init__(self, width: int) -> None:
        self.width, self.runs = width, []
        self._weights: dict[str, Tensor] = {}
        self._block: tuple[list[CSR], CSR] | None = None

    def add(self, run: Run) -> None:
        """Take a run in, its model of the shape of the others'; the parameters of its layers become views."""
        self.runs.append(run)
        self._bind(run, len(self.runs) - 1)

    def remove(self, run: Run) -> None:
        """Let a run go, with memory of its own."""
        place, last = self.runs.index(run), self.runs.pop()
        run.adam.zero_grad()
        for p in run.model.layers.parameters():
            p.data = p.data.clone()
        if last is not run:
            self.runs[place] = last
            self._bind(last, place)

    def _bind(self, run: Run, place: int) -> None:
        for name, p in run.model.layers.named_parameters():
            if place == len(self._weights.get(name, ())):  # twice the room; those that are there move
                lying = _lying(p.data)
                self._weights[name] = lying.new_empty(min(max(2 * place, 1), self.width), *lying.shape)
                for at, other in enumerate(self.runs[:place]):
                    self._move(name, other.model.layers.get_parameter(name), at)
            self._move(name, p, place)

    def _move(self, name: str, p: nn.Parameter, place: int) -> None:
        own = self._weights[name][place].copy_(_lying(p.data))
        p.data = own if p.is_contiguous() else own.t()

    def train_epoch(self) -> None:
        """Train all for an epoch; see :func:`g2m.train.train_epoch`."""
        steps = side_by_side([run.batches for run in self.runs], [run.generator for run in self.runs])
        train_epoch(self.runs, self.forward, steps)

    def forward(self, runs: Sequence[Run], batches: Sequence[Batch]) -> list[Output]:
        """Return the outputs of all models, in training mode, each for its batch."""
        inputs = [batch.inputs[0] for batch in batches]
        sizes = [len(x) for x in inputs]
        x, hidden = self._joined(inputs, max(sizes)), None
        for i in range(len(runs[0].model.norms)):
            x = self._normed(self._linear(i, x), i, sizes)
            x = hidden = self._dropped(x, sizes).view(len(runs), max(sizes), -1)
        logits = self._linear(len(runs[0].model.norms), x).view(len(runs), max(sizes), -1)
        rows = [None] * len(runs) if hidden is None else _rows(hidden, sizes)
        return [Output(*pair) for pair in zip(_rows(logits, sizes), rows, strict=True)]

    def _joined(self, inputs: list[Tensor | CSR], rows: int) -> Tensor | CSR:
        """Return inputs as one: a block diagonal, or ``[S, B, F]``; shorter ones are filled up."""
        if not all(isinstance(x, CSR) for x in inputs):
            inputs = [x.to_dense() if isinstance(x, CSR) else x for x in inputs]
            return torch.stack([_filled(x, rows) for x in inputs])
        known = [] if self._block is None else self._block[0]
        if len(known) != len(inputs) or any(a is not b for a, b in zip(known, inputs, strict=True)):
            self._block = inputs, CSR.block_diagonal(inputs, rows)
        return self._block[1]

    def _linear(self, i: int, x: Tensor | CSR) -> Tensor:
        """Return a layer's products: ``[S, B, H]``, or of sparse inputs ``[S · B, H]``."""
        layers = [run.model.layers[i] for run in self.runs]
        weight = self._stacked(f"{i}.weight", [layer.weight for layer in layers])
        bias = self._stacked(f"{i}.bias", [layer.bias for layer in layers])
        narrow = layers[0].weight.is_contiguous()
        if isinstance(x, CSR):
            return _SparseLinear.apply(weight.mT if narrow else weight, bias, x)
        return _Narrow.apply(weight, bias, x) if narrow else torch.baddbmm(bias[:, None], x, weight)

    def _stacked(self, name: str, members: list[Tensor]) -> Tensor:
        return _Stacked.apply(self._weights[name][: len(members)], *members)

    def _normed(self, x: Tensor, i: int, sizes: list[int]) -> Tensor:
        norms = [run.model.norms[i] for run in self.runs]
        if isinstance(norms[0], nn.Identity):
            return x
        parts = _rows(x.view(len(norms), max(sizes), -1), sizes)
        for place, (run, norm) in enumerate(zip(self.runs, norms, strict=True)):
            try:
                parts[place] = norm(parts[place])
            except G2MError as error:  # a step of one row: a mistake of its own, as one in its loss
                run.error = run.error or error
        return torch.stack([_filled(part, max(sizes)) for part in parts])

    def _dropped(self, x: Tensor, sizes: list[int]) -> Tensor:
        width = x.size(-1)
        parts = [
            Part(size * width, run.model.dropout, run.stream.cpu) for run, size in zip(self.runs, sizes, strict=True)
        ]
        if not any(part.p for part in parts):
            return F.relu(x)
        if x.device.type == "cpu":
            return relu_dropout_of(x, parts)
        dropped = []
        for run, part in zip(self.runs, _rows(F.relu(x).view(len(sizes), max(sizes), -1), sizes), strict=True):
            with run.stream:
                dropped.append(_filled(F.dropout(part, run.model.dropout), max(sizes)))
        return torch.stack(dropped)


def _lying(p: Tensor) -> Tensor:
    """Return a parameter as it lies in memory."""
    return p if p.is_contiguous() else p.t()


def _filled(x: Tensor, rows: int) -> Tensor:
    return x if len(x) == rows else F.pad(x, (0, 0, 0, rows - len(x)))


def _rows(x: Tensor, sizes: list[int]) -> list[Tensor]:
    return [part if len(part) == size else part[:size] for part, size in zip(x.unbind(0), sizes, strict=True)]


class _Stacked(Function):
    """Members' parameters as one tensor: the memory that they are views of. Their gradients are views as well."""

    @staticmethod
    def forward(ctx, stacked: Tensor, *members: Tensor) -> Tensor:
        ctx.transposed = not members[0].is_contiguous()
        return stacked.view_as(stacked)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grad.mT if ctx.transposed else grad).unbind(0)


class _SparseLinear(Function):
    """Products ``[S · B, H]`` of a block diagonal with weights ``[S, F, H]``, plus biases ``[S, H]``."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor, x: CSR) -> Tensor:
        ctx.x, ctx.shape = x, weight.shape
        product = x.multiply(weight.flatten(0, 1))
        product.view(len(bias), -1, bias.size(1)).add_(bias[:, None])
        return product

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        of_bias = grad.view(ctx.shape[0], -1, ctx.shape[2]).sum(1)
        return ctx.x.T.multiply(grad).view(ctx.shape), of_bias, None


class _Narrow(Function):
    """Products ``[S, B, C]`` of ``[S, B, H]`` with few columns each, weights ``[S, C, H]``, plus biases ``[S, C]``.

    In the order in which a thin product is fast: the wide factor last, here and in the gradient of the weights.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(weight, x)
        product = torch.baddbmm(bias[..., None], weight, x.mT).mT
        # A copy even of one row: what follows writes into it, which a view of it would not allow.
        return product.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, x = ctx.saved_tensors
        return grad.mT @ x, grad.sum(1), grad @ weight if ctx.needs_input_grad[2] else None
