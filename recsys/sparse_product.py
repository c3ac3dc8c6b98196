"""Differentiable products with a sparse matrix that is not symmetric."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from embeddings.tables.addresses import Floats, Longs
from embeddings.tables.kernels import threads_for
from recsys.propagation_kernel import Adjacency, multiply, multiply_rows, multiply_sparse, positions

_NOTHING = np.empty((0, 0), np.float32)


@dataclasses.dataclass(frozen=True)
class SparseMatrix:
    """A matrix [R, C] by rows, and its transpose for the gradient.

    Attributes:
        by_row: the matrix; a column may occur several times in a row, its weights count together.
        by_column: the transpose.
    """

    by_row: Adjacency
    by_column: Adjacency

    @classmethod
    def of(cls, rows: Longs, columns: Longs, weights: Floats, shape: tuple[int, int]) -> SparseMatrix:
        """The matrix of entries [E] that are sorted by row, then column."""
        order = np.argsort(columns, kind="stable")
        return cls(
            Adjacency(_starts(rows, shape[0]), columns.astype(np.int32), weights),
            Adjacency(_starts(columns, shape[1]), rows[order].astype(np.int32), weights[order]),
        )


def sparse_product(matrix: SparseMatrix, x: Tensor, rows: Longs | None = None) -> Tensor:
    """``matrix @ x``, or its ``rows`` only: float32 [R, D] or [len(rows), D], differentiable in ``x``.

    Args:
        matrix: [R, C].
        x: float32 [C, D].
        rows: int64 [n], distinct; None for all.
    """
    product: Tensor = _Product.apply(matrix, x, rows)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    """The autograd node of :func:`sparse_product`."""

    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, x: Tensor, rows: Longs | None) -> Tensor:
        """Float32 [R or n, D]."""
        ctx.matrix, ctx.rows = matrix, rows
        by_row, dense = matrix.by_row, x.detach().contiguous().numpy()
        out = torch.empty(len(by_row.starts) - 1 if rows is None else len(rows), x.shape[1])
        with threads_for(len(by_row.columns)) as parts:
            if rows is None:
                multiply(by_row, dense, _NOTHING, parts, out.numpy())
            else:
                multiply_rows(by_row, dense, rows, parts, out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        """The transpose times the gradient."""
        by_row, by_column, dense = ctx.matrix.by_row, ctx.matrix.by_column, gradient.contiguous().numpy()
        out = torch.empty(len(by_column.starts) - 1, gradient.shape[1])
        with threads_for(len(by_column.columns)) as parts:
            if ctx.rows is None:
                multiply(by_column, dense, _NOTHING, parts, out.numpy())
            else:
                multiply_sparse(by_column, positions(ctx.rows, len(by_row.starts) - 1), dense, parts, out.numpy())
        return None, out, None


def _starts(rows: Longs, count: int) -> Longs:
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int64)
