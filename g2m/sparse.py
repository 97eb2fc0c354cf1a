"""A constant sparse matrix, multiplied from the left, in both directions of autograd."""

from __future__ import annotations

from functools import cached_property

import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F


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
        row, col = dense.nonzero(as_tuple=True)
        return cls.from_coo(row, col, dense[row, col], tuple(dense.shape))

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
        crow, col, entry = self._transposed
        return CSR(crow, col, self.value[entry], self.shape[::-1])

    def rows(self, index: Tensor) -> CSR:
        """Return the matrix of the given rows, in the given order."""
        start, count = self.crow[index].long(), self.crow.diff()[index].long()
        crow = torch.zeros(len(index) + 1, dtype=torch.long, device=self.col.device)
        crow[1:] = count.cumsum(0)
        entry = torch.arange(int(crow[-1]), device=self.col.device)
        entry += torch.repeat_interleave(start - crow[:-1], count)
        return CSR(crow.to(self.crow.dtype), self.col[entry], self.value[entry], (len(index), self.shape[1]))

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
        if self.value.device == torch.device(device):
            return self
        return CSR(self.crow.to(device), self.col.to(device), self.value.to(device), self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor) -> CSR:
        return self.rows(index)

    def __matmul__(self, dense: Tensor) -> Tensor:
        return _Product.apply(dense, self)

    def multiply(self, dense: Tensor) -> Tensor:
        """Return the product, without autograd."""
        if dense.is_cuda:
            return self.matrix @ dense
        # A weighted sum of rows is a bag of embeddings; on CPU, at usual widths, that kernel beats the sparse one.
        weight, value = dense.contiguous(), self.value.to(dense.dtype)
        return F.embedding_bag(
            self.col, weight, self.crow, mode="sum", per_sample_weights=value, include_last_offset=True
        )


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
        of_weight = torch.cat([(grad.index_select(0, i) * x.index_select(0, j)).sum(-1) for i, j in entries])
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


def features(x: Tensor, *, density: float = 0.1) -> Tensor | CSR:
    """Return ``x`` as :class:`CSR` if at most ``density`` of it is non-zero (default 0.1), else unchanged.

    Citation features are the words of a document, nearly all zero: products skip them.
    """
    return CSR.from_dense(x) if torch.count_nonzero(x) <= density * x.numel() else x


def receptive_field(adjacency: CSR, nodes: Tensor, num_layers: int) -> tuple[Tensor, list[CSR]]:
    """Return what answers for ``nodes`` take, and no more: the ids of the inputs, and an adjacency per layer.

    Each adjacency ``[R, S]`` leads from the S nodes that its layer reads to the R it answers for, which are the first
    of the S; its weights are those of the whole graph.
    """
    layers = []
    for _ in range(num_layers):
        rows = adjacency.rows(nodes)
        position = torch.full((len(adjacency),), -1, dtype=rows.col.dtype, device=rows.col.device)
        position[nodes] = 0
        sources = rows.col.long().unique()
        field = torch.cat([nodes, sources[position[sources] < 0]])
        position[field] = torch.arange(len(field), dtype=position.dtype, device=position.device)
        layers.append(CSR(rows.crow, position[rows.col.long()], rows.value, (len(nodes), len(field))))
        nodes = field
    return nodes, layers[::-1]
