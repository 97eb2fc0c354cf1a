"""Features that stay in their file: mapped memory is read where it is needed, never held nor copied as a whole."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

_VALUES = 2**20  # of a chunk: 4 MB of float32


def is_mapped(x: object) -> bool:
    """Return whether this is a tensor whose memory is a file's, as the kernel tells (on Linux; elsewhere: no)."""
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.device.type != "cpu" or not x.numel():
        return False
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    address = x.data_ptr()
    for line in maps.splitlines():
        span, *_, path = [*line.split(maxsplit=5), ""][:6]
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            return path.startswith("/") and not path.startswith(("/dev/", "/memfd:"))  # memory, shared
    return False


def from_array(value: ArrayLike) -> Tensor:
    """Return a tensor of what numpy takes for an array, on its memory where torch can read that, read-only or not:
    nothing may write into it.

    Raises:
        TypeError: of anything but numbers.
    """
    array = np.asarray(value)
    if min(array.strides, default=0) < 0 or not array.dtype.isnative:  # backwards, or of another machine
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def rows_at_once(x: Tensor) -> int:
    """Return how many rows of ``x`` are a chunk; a multiple of 16, so that noise does not depend on it."""
    return max(_VALUES // max(x[:1].numel(), 1) // 16 * 16, 16)


def chunks(x: Tensor) -> Iterator[Tensor]:
    """Yield the rows of ``x``, some at a time."""
    yield from x.split(rows_at_once(x))


def not_finite(x: Tensor) -> tuple[int, int | None]:
    """Return how many values are NaN or infinite, and the first row with one."""
    count, first, before = 0, None, 0
    for rows in chunks(x):
        wrong = ~torch.isfinite(rows)
        if wrong.any():
            count += int(wrong.sum())
            first = before + int(wrong.flatten(1).any(1).nonzero()[0]) if first is None else first
        before += len(rows)
    return count, first


def written(parts: Iterable[Tensor], shape: tuple[int, int]) -> Tensor:
    """Return rows as one mapped tensor: written to a nameless file in the temporary folder, gone with the tensor."""
    with tempfile.TemporaryFile() as file:
        for part in parts:
            file.write(part.contiguous().numpy().data)
        file.flush()
        return from_array(np.memmap(file, dtype=np.float32, mode="r", shape=tuple(shape)))


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Return ``x[index]`` to keep: mapped if ``x`` is."""
    if not is_mapped(x):
        return x[index]
    return written((x[rows] for rows in index.split(rows_at_once(x))), (len(index), x.size(1)))


def beside(x: Tensor, more: Tensor) -> Tensor:
    """Return ``x`` with more columns: mapped if ``x`` is."""
    if not is_mapped(x):
        return torch.cat([x, more], 1)
    size = rows_at_once(x)
    parts = zip(x.split(size), more.split(size), strict=True)
    return written((torch.cat(part, 1) for part in parts), (len(x), x.size(1) + more.size(1)))


def noisy(x: Tensor, spread: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``x`` plus normal noise of the columns' ``spread`` ``[F]``: mapped if ``x`` is."""

    def moved(rows: Tensor) -> Tensor:
        return torch.randn(rows.shape, generator=generator).mul_(spread).add_(rows)

    return written(map(moved, chunks(x)), x.shape) if is_mapped(x) else moved(x)
