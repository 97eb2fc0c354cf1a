"""Several processes that train one student, started by ``torchrun``: on one machine or several, on CPUs or GPUs.

Each takes its share of the rows of every step through the network. The answers are brought together, so that the loss
is that of the whole step, whatever it compares; gradients are averaged. The student is the one that a single process
trains, to float tolerance; with dropout it is another of the same kind, for every process draws its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd import Function

from g2m.errors import FileError, G2MError

_WAIT = timedelta(days=7)  # while the first process trains a teacher, the others do nothing
_joined = False


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that ``torchrun`` started: inside the block, :meth:`g2m.Student.fit` is shared among them.

    A process that is alone goes on alone. A group that you made yourself is used, and left as it is; it has to carry
    tensors of the CPU, too.

    Raises:
        G2MError: if there are more processes on this machine than GPUs, where there are any, or the group that is there
            carries tensors of GPUs alone.
    """
    global _joined
    if _joined or not (dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        yield
        return
    begun = not dist.is_initialized()
    if not begun and "cpu" not in (backend := dist.get_backend_config()):
        raise G2MError(
            f"backend: expected a group that carries tensors of the CPU as well (got {backend!r}). Make it with "
            'torch.distributed.init_process_group("cpu:gloo,cuda:nccl").'
        )
    if begun:
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if count and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > count:
            raise G2MError(
                f"nproc-per-node: expected at most {count}, one a GPU (got {os.environ['LOCAL_WORLD_SIZE']})."
            )
        if count:
            torch.cuda.set_device(local)
        dist.init_process_group("cpu:gloo,cuda:nccl" if count else "gloo", timeout=_WAIT)
    _joined = True
    try:
        yield
    finally:
        _joined = False
        if begun:
            dist.destroy_process_group()


def rank() -> int:
    """Return which of the joined processes this one is, from 0."""
    return dist.get_rank() if _joined else 0


def size() -> int:
    """Return how many processes are joined; 1 outside :func:`joined`."""
    return dist.get_world_size() if _joined else 1


def from_first(do: Callable[[], Any]) -> Any:
    """Do something in the first process alone, and return what it gave, JSON, in all of them; its mistake is theirs."""
    if size() == 1:
        return do()
    text = ""
    if rank() == 0:
        try:
            text = json.dumps({"value": do()})
        except G2MError as error:
            text = json.dumps({"error": str(error), "of a file": isinstance(error, FileError)})
    data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
    length = torch.tensor([len(data)])
    dist.broadcast(length, 0)
    if rank():
        data = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(data, 0)
    found = json.loads(bytes(data.tolist()))
    if "error" in found:
        raise (FileError if found["of a file"] else G2MError)(found["error"])
    return found["value"]


def alike(do: Callable[[], int], file: str | Path) -> int:
    """Do in every process what depends on a file, and return what it gave, a number from 0.

    Raises:
        G2MError: in all of them, if it did in one.
        FileError: if they did not get the same.
    """
    if size() == 1:
        return do()
    found, raised = -1, None
    try:
        found = int(do())
    except G2MError as error:
        raised = error
    reached = gather(torch.tensor([found]), [1] * size()).tolist()
    if raised is not None:
        raise raised
    if len({*reached}) > 1:
        raise FileError(
            f"checkpoint: expected a file that all joined processes read (got {str(file)!r}, of which they have "
            f"{reached} by process: epochs, or whether it is theirs; -1 where it was refused). Put it in a folder that "
            "they share."
        )
    return found


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the mean over the processes in the place of each one's gradients."""
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= size()
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view(grad.shape))


class _Gather(Function):
    """The rows of all processes, one after the other. Each has the loss of them all, and its own rows' gradient: the
    processes' mean of what comes of these is right if every one counts for all."""

    @staticmethod
    def forward(ctx, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:rows] for part, rows in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad.split(ctx.sizes)[rank()] * size(), None


class _Sum(Function):
    """The sum over the processes; what depends on it in any of them is in its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


def sum_over_processes(x: Tensor) -> Tensor:
    """Return the sum of a tensor that every process has one of; differentiable."""
    return _Sum.apply(x)


def shares(rows: int) -> list[int]:
    """Return how many of so many rows each process takes."""
    return [rows // size() + (i < rows % size()) for i in range(size())]


def gather(x: Tensor, sizes: list[int]) -> Tensor:
    """Return the rows of all processes, so many of each; differentiable, for losses that are the same in all."""
    return _Gather.apply(x, sizes)
