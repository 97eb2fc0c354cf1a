"""A constant sparse matrix, multiplied from the left, in both directions of autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from g2m.mapped import chunks

_TABLE = 2**21  # bytes: more than the cache of a core
_PANEL = 64  # columns
_FEW = 16  # rows


class CSR:
    """A constant sparse matrix in compressed rows, for bag-of-words features and for adjacencies.

    ``matrix @ dense`` is differentiable in ``dense``; its backward multiplies by the transpose, which is made once and
    kept (torch's own backward transposes at every step).

    Args:
        crow: row pointers ``[R + 1]``.
        col: column of every entry ``[nnz]``.
        value: the entries ``[nnz]``.
        shape: ``(R, C)``.
    """

    def __init__(self, crow: Tensor, col: Tensor, value: Tensor, shape: tuple[int, int]) -> None:
        self.crow, self.col, self.value, self.shape = crow, col, value, tuple(shape)

    @classmethod
    def from_coo(cls, row: Tensor, col: Tensor, value: Tensor, shape: tuple[int, int]) -> CSR:
        """Build from coordinates in any order; repeated coordinates stay apart and add up in a product."""
        order = torch.argsort(row * shape[1] + col, stable=True)
        crow = row.new_zeros(shape[0] + 1)
        crow[1:] = torch.bincount(row, minlength=shape[0]).cumsum(0)
        # 32-bit indices: half the memory, and what cuSPARSE takes without a copy at every product.
        index = torch.int32 if max(len(col), *shape) < 2**31 else torch.int64
        return cls(crow.to(index), col[order].to(index), value[order], shape)

    @classmethod
    def from_dense(cls, dense: Tensor) -> CSR:
        parts = [(rows.count_nonzero(1), rows.nonzero()[:, 1].int(), rows[rows != 0]) for rows in chunks(dense)]
        count, col, value = map(torch.cat, zip(*parts, strict=True))
        index = torch.int32 if max(len(col), *dense.shape) < 2**31 else torch.int64
        return cls(F.pad(count.cumsum(0), (1, 0)).to(index), col.to(index), value, tuple(dense.shape))

    @property
    def nnz(self) -> int:
        return len(self.value)

    def row_of_entry(self) -> Tensor:
        """Return the row of every entry ``[nnz]``."""
        counts = self.crow.diff()
        return torch.repeat_interleave(torch.arange(self.shape[0], device=self.col.device), counts.long())

    @cached_property
    def matrix(self) -> Tensor:
        return torch.sparse_csr_tensor(self.crow, self.col, self.value, self.shape, check_invariants=False)

    @cached_property
    def _transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row pointers and columns of the transpose, and the entry of this matrix behind each of its entries."""
        entry = torch.arange(self.nnz, device=self.col.device)
        if self.col.device.type == "cpu":  # scipy counts where torch can only sort
            csr = csr_array((entry.numpy(), self.col.numpy(), self.crow.numpy()), shape=self.shape)
            csc = csr.tocsc()
            return torch.from_numpy(csc.indptr), torch.from_numpy(csc.indices), torch.from_numpy(csc.data)
        transposed = CSR.from_coo(self.col.long(), self.row_of_entry(), entry, self.shape[::-1])
        return transposed.crow, transposed.col, transposed.value

    @cached_property
    def T(self) -> CSR:
        if self.col.device.type == "cpu" and "_transposed" not in vars(self):
            csc = self._scipy.tocsc()
            return CSR(*map(torch.from_numpy, (csc.indptr, csc.indices, csc.data)), self.shape[::-1])
        crow, col, entry = self._transposed
        return CSR(crow, col, self.value[entry], self.shape[::-1])

    @cached_property
    def _scipy(self) -> csr_array:
        """The same memory, as scipy sees it."""
        parts = (self.value.numpy(), self.col.numpy(), self.crow.numpy())
        return csr_array(parts, shape=self.shape)

    def rows(self, index: Tensor) -> CSR:
        """Return the matrix of the given rows, in the given order."""
        if self.col.device.type == "cpu" and len(index) <= _FEW:  # scipy's checks take longer
            first, last = (self.crow.numpy()[index.numpy() + more] for more in (0, 1))
            crow = np.zeros(len(index) + 1, first.dtype)
            np.cumsum(last - first, out=crow[1:])
            entry = torch.from_numpy(np.arange(crow[-1]) + np.repeat(first - crow[:-1], last - first))
            return CSR(torch.from_numpy(crow), self.col[entry], self.value[entry], (len(index), self.shape[1]))
        if self.col.device.type == "cpu" and self.crow.dtype == self.col.dtype:  # a copy by row, not by entry
            rows = self._scipy[index.numpy()]
            return CSR(*map(torch.from_numpy, (rows.indptr, rows.indices, rows.data)), rows.shape)
        start = self.crow[index].long()
        count = self.crow[index + 1].long() - start
        crow = torch.zeros(len(index) + 1, dtype=torch.long, device=self.col.device)
        crow[1:] = count.cumsum(0)
        entry = torch.arange(int(crow[-1]), device=self.col.device)
        entry += torch.repeat_interleave(start - crow[:-1], count)
        return CSR(crow.to(self.crow.dtype), self.col[entry], self.value[entry], (len(index), self.shape[1]))

    def sampled_rows(self, index: Tensor, most: int) -> CSR:
        """Return the given rows with at most so many entries each.

        Of a longer row they are drawn at random, with replacement, the one on the diagonal like the others, and weigh
        more by as much as there are fewer: the expected product is that of the whole row.
        """
        start = self.crow[index].long()
        count = self.crow[index + 1].long() - start
        taken = count.clamp(max=most)
        crow = torch.zeros(len(index) + 1, dtype=torch.long, device=self.col.device)
        crow[1:] = taken.cumsum(0)
        row = torch.repeat_interleave(torch.arange(len(index), device=self.col.device), taken)
        place = torch.arange(len(row), device=self.col.device) - crow[row]
        drawn = (torch.rand(len(row), device=self.col.device, dtype=torch.float64) * count[row]).long()
        entry = start[row] + torch.where(count[row] > most, drawn, place)
        value = self.value[entry] * (count / taken)[row].to(self.value.dtype)
        return CSR(crow.to(self.crow.dtype), self.col[entry], value, (len(index), self.shape[1]))

    def split(self, sizes: Sequence[int]) -> list[CSR]:
        """Return the matrices of so many rows each, one after the other."""
        ends = self.crow[torch.tensor([0, *sizes]).cumsum(0).to(self.crow.device)].tolist()
        pointers = zip(ends[:-1], ends[1:], sizes, torch.tensor([0, *sizes]).cumsum(0).tolist(), strict=False)
        return [
            CSR(self.crow[row : row + size + 1] - a, self.col[a:b], self.value[a:b], (size, self.shape[1]))
            for a, b, size, row in pointers
        ]

    @classmethod
    def block_diagonal(cls, matrices: Sequence[CSR], rows: int | None = None) -> CSR:
        """Return the matrix with those given, all as wide, along its diagonal.

        Args:
            matrices: of the same width.
            rows: how many each is to have, the missing ones empty; default as many as it has.
        """
        width = matrices[0].shape[1]
        height = sum(len(m) for m in matrices) if rows is None else rows * len(matrices)
        nnz = [0, *itertools.accumulate(m.nnz for m in matrices)]
        index = torch.int32 if max(nnz[-1], height, width * len(matrices)) < 2**31 else torch.int64
        crow = [matrices[0].crow[:1].to(index)]
        for m, before in zip(matrices, nnz, strict=False):
            crow.append(m.crow[1:].to(index) + before)
            if rows is not None and rows > len(m):
                crow.append(crow[-1].new_full((rows - len(m),), before + m.nnz))
        col = torch.cat([m.col.to(index) + i * width for i, m in enumerate(matrices)])
        value = torch.cat([m.value for m in matrices])
        return cls(torch.cat(crow), col, value, (height, width * len(matrices)))

    def with_value(self, value: Tensor) -> CSR:
        """Return the matrix with the same pattern and other entries."""
        matrix = CSR(self.crow, self.col, value, self.shape)
        matrix._transposed = self._transposed  # the sort depends on the pattern alone
        return matrix

    def dropout(self, p: float, training: bool) -> CSR:
        """Drop entries with probability ``p`` and scale the rest, in training only."""
        return self.with_value(F.dropout(self.value, p)) if training and p > 0 else self

    def to_dense(self) -> Tensor:
        return self.matrix.to_dense()

    def to(self, device: torch.device | str) -> CSR:
        value = self.value.to(device)  # torch knows that "cuda" is the GPU it is on
        return self if value is self.value else CSR(self.crow.to(device), self.col.to(device), value, self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor) -> CSR:
        return self.rows(index)

    def __matmul__(self, dense: Tensor) -> Tensor:
        kind = dense.device.type
        if torch.is_autocast_enabled(kind):  # as torch's own products
            dense = dense.to(torch.get_autocast_dtype(kind))
        return _Product.apply(dense, self)

    def multiply(self, dense: Tensor) -> Tensor:
        """Return the product, without autograd. Sums of narrow types are taken in float32, and rounded at the end."""
        if dense.dtype in (torch.bfloat16, torch.float16):
            return self.multiply(dense.float()).to(dense.dtype)
        if dense.is_cuda:
            with torch.autocast("cuda", enabled=False):  # which would narrow both again
                return self.matrix @ dense
        # A weighted sum of rows is a bag of embeddings; on CPU that kernel beats the sparse one. A table larger than a
        # core's cache, with rows that are read often, goes a few columns at a time.
        value, width = self.value.to(dense.dtype), dense.size(1)
        panel = _PANEL if dense.nbytes >= _TABLE and self.nnz >= 12 * len(dense) else width
        if width <= panel:
            return self._bag(dense.contiguous(), value)
        product = dense.new_empty(len(self), width)
        for columns, part in zip(product.split(panel, 1), dense.split(panel, 1), strict=True):
            columns.copy_(self._bag(part.contiguous(), value))
        return product

    def _bag(self, table: Tensor, value: Tensor) -> Tensor:
        options = {"mode": "sum", "per_sample_weights": value, "include_last_offset": True}
        return F.embedding_bag(self.col, table, self.crow, **options)


class _Product(Function):
    @staticmethod
    def forward(ctx, dense: Tensor, csr: CSR) -> Tensor:
        ctx.csr = csr
        return csr.multiply(dense)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None]:
        return (ctx.csr.T.multiply(grad) if ctx.needs_input_grad[0] else None), None


class _Attention(Function):
    @staticmethod
    def forward(ctx, weight: Tensor, x: Tensor, pattern: CSR) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(weight, x)
        heads = zip(weight.unbind(1), x.unbind(1), strict=True)
        return torch.stack([pattern.with_value(w.contiguous()).multiply(v) for w, v in heads], 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, x = ctx.saved_tensors
        heads = zip(weight.unbind(1), grad.unbind(1), strict=True)
        of_x = torch.stack([ctx.pattern.with_value(w.contiguous()).T.multiply(g) for w, g in heads], 1)
        entries = zip(ctx.pattern.row_of_entry().split(2**14), ctx.pattern.col.long().split(2**14), strict=True)
        products = (grad.index_select(0, i) * x.index_select(0, j) for i, j in entries)
        of_weight = torch.cat([product.sum(-1, dtype=weight.dtype) for product in products])
        return of_weight, of_x, None


def attention(weight: Tensor, x: Tensor, pattern: CSR) -> Tensor:
    """Return the sums ``[R, H, D]`` over each row's entries of ``x`` at their columns, weighted head by head.

    Differentiable in both; nothing of the size of entries × D is held.

    Args:
        weight: of every entry of ``pattern`` and every head ``[nnz, H]``.
        x: ``[S, H, D]``.
        pattern: ``[R, S]``; its own values are not used.
    """
    return _Attention.apply(weight, x, pattern)


def features(x: Tensor) -> Tensor | CSR:
    """Return ``x`` as :class:`CSR` if at most a tenth of it is non-zero, else unchanged.

    Citation features are the words of a document, nearly all zero: products skip them.
    """
    found = 0
    for rows in chunks(x):
        found += int(rows.count_nonzero())
        if found > 0.1 * x.numel():
            return x
    return CSR.from_dense(x)


def receptive_field(adjacency: CSR, nodes: Tensor, num_layers: int) -> tuple[Tensor, list[CSR]]:
    """Return what answers for ``nodes`` take, and no more: the ids of the inputs, and an adjacency per layer.

    Each adjacency ``[R, S]`` leads from the S nodes that its layer reads to the R it answers for, which are the first
    of the S; its weights are those of the whole graph.
    """
    return _field(nodes, [adjacency.rows] * num_layers)


def sampled_field(adjacency: CSR, nodes: Tensor, fan_out: Sequence[int]) -> tuple[Tensor, list[CSR]]:
    """Return what estimates for ``nodes`` take, as :func:`receptive_field` does, from a sample of the neighbours.

    ``fan_out``: at most so many entries of a row, by layer, the first layer first: the last is of ``nodes`` themselves.
    """
    return _field(nodes, [partial(adjacency.sampled_rows, most=most) for most in reversed(fan_out)])


def _field(nodes: Tensor, rows_by_layer: Sequence[Callable[[Tensor], CSR]]) -> tuple[Tensor, list[CSR]]:
    """The same, from what gives the rows of nodes, the last layer first."""
    layers = []
    for rows_of in rows_by_layer:
        rows = rows_of(nodes)
        field, position = _numbered(nodes, rows.col.long(), rows.shape[1])
        layers.append(CSR(rows.crow, position.to(rows.col.dtype), rows.value, (len(nodes), len(field))))
        nodes = field
    return nodes, layers[::-1]


def _numbered(nodes: Tensor, col: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Return the ids of what is read, ``nodes`` first, and where among them every entry of ``col`` is."""
    sources = col.unique()
    if num_nodes > 1000 * (len(nodes) + len(col)):  # a table of all nodes takes longer than sorting these few
        field = torch.cat([nodes, sources[~torch.isin(sources, nodes)]])
        ascending, order = field.sort()
        return field, order[torch.searchsorted(ascending, col)]
    position = torch.full((num_nodes,), -1, device=col.device)
    position[nodes] = 0
    field = torch.cat([nodes, sources[position[sources] < 0]])
    position[field] = torch.arange(len(field), device=col.device)
    return field, position[col]
