"""One half-iteration of iALS: a small linear system for every user, or item, from the vectors of the other side.

The system of a row with observed columns S is

    (alpha G + sum_{j in S} v_j v_j^T + r I) x = sum_{j in S} v_j,      G = sum_j v_j v_j^T

Rows are solved one by one, whatever the threads, so the bits do not depend on their number.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch

from recsys.selection import Masks

Floats = npt.NDArray[np.float32]

_ROWS = 256
_NOTHING = np.float32(1e-20)
"""A residual's squared length below which a system counts as solved."""
_ASSOCIATIVE = {"reassoc", "contract", "nsz"}
"""Sums may be vectorised; the order is fixed when the kernel is compiled."""


class System(NamedTuple):
    """What all rows of a half-iteration share.

    Attributes:
        observed: indptr int64 [N + 1] and indices int32, the columns of each row.
        others: float32 [M, D], vectors of the columns.
        gram: float32 [D, D], alpha G.
        penalty: float32 [N], r of each row.
    """

    observed: Masks
    others: Floats
    gram: Floats
    penalty: Floats


def gram(vectors: Floats) -> Floats:
    """``vectors^T vectors`` of float32 [N, D] in float64, summed block by block in a fixed order; float64 [D, D]."""
    count, dim = vectors.shape
    spans = _spans(count)
    parts = np.zeros((len(spans), dim, dim))
    _in_threads(lambda place: _add_gram(vectors[slice(*spans[place])], parts[place]), range(len(spans)))
    total = np.zeros((dim, dim))
    for part in parts:
        total += part
    return total  # type: ignore[return-value]


def solve_rows(system: System, start: Floats, cg_steps: int | None) -> Floats:
    """The solutions of all rows.

    Args:
        system: the equations.
        start: float32 [N, D], where conjugate gradients start.
        cg_steps: steps of conjugate gradients, or None for Cholesky's exact solution.

    Returns:
        Float32 [N, D]; rows without observed columns are 0, which is their exact solution.
    """
    out = np.ascontiguousarray(start, dtype=np.float32).copy()
    if cg_steps is None:
        _in_threads(lambda span: _solve_exactly(system, span, out), _spans(len(out)))
    else:
        _in_threads(lambda span: _solve_by_gradients(system, span, out, cg_steps), _spans(len(out)))
    return out


def _spans(count: int) -> list[tuple[int, int]]:
    return [(first, min(first + _ROWS, count)) for first in range(0, count, _ROWS)]


def _in_threads(work, items) -> None:  # type: ignore[no-untyped-def]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(work, items))


@numba.njit(nogil=True, cache=True)
def _add_gram(vectors: Floats, out: npt.NDArray[np.float64]) -> None:
    dim = out.shape[0]
    for row in range(len(vectors)):
        for i in range(dim):
            value = np.float64(vectors[row, i])
            for j in range(dim):
                out[i, j] += value * vectors[row, j]


@numba.njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def _multiply_gram(gram: Floats, x: Floats, out: Floats) -> None:
    """``out = gram @ x`` for a symmetric matrix, four rows at a time."""
    dim = len(x)
    out[:] = 0.0
    whole = dim // 4 * 4
    for i in range(0, whole, 4):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        for j in range(dim):
            out[j] += a * gram[i, j] + b * gram[i + 1, j] + c * gram[i + 2, j] + d * gram[i + 3, j]
    for i in range(whole, dim):
        for j in range(dim):
            out[j] += x[i] * gram[i, j]


@numba.njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def _dot(a: Floats, b: Floats) -> np.float32:
    total = np.float32(0.0)
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@numba.njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def _add_scaled(out: Floats, factor: np.float32, x: Floats) -> None:
    for k in range(len(out)):
        out[k] += factor * x[k]


@numba.njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def _solve_by_gradients(system: System, span: tuple[int, int], out: Floats, steps: int) -> None:
    """Conjugate gradients (Takacs et al. 2011) from the row's present value."""
    dim = system.others.shape[1]
    residual, direction, product = np.empty(dim, np.float32), np.empty(dim, np.float32), np.empty(dim, np.float32)
    for row in range(span[0], span[1]):
        x, penalty = out[row], system.penalty[row]
        columns = system.observed.indices[system.observed.indptr[row] : system.observed.indptr[row + 1]]
        if len(columns) == 0:
            x[:] = 0.0
            continue
        _multiply_gram(system.gram, x, residual)
        _add_scaled(residual, penalty, x)
        residual *= np.float32(-1.0)
        for column in columns:
            vector = system.others[column]
            _add_scaled(residual, np.float32(1.0) - _dot(vector, x), vector)
        direction[:] = residual
        old = _dot(residual, residual)
        for _ in range(steps):
            if old < _NOTHING:
                break
            _multiply_gram(system.gram, direction, product)
            _add_scaled(product, penalty, direction)
            for column in columns:
                vector = system.others[column]
                _add_scaled(product, _dot(vector, direction), vector)
            length = old / _dot(direction, product)
            _add_scaled(x, length, direction)
            _add_scaled(residual, -length, product)
            new = _dot(residual, residual)
            direction *= new / old
            _add_scaled(direction, np.float32(1.0), residual)
            old = new


@numba.njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def _solve_exactly(system: System, span: tuple[int, int], out: Floats) -> None:
    dim = system.others.shape[1]
    matrix, right = np.empty((dim, dim), np.float32), np.empty(dim, np.float32)
    for row in range(span[0], span[1]):
        columns = system.observed.indices[system.observed.indptr[row] : system.observed.indptr[row + 1]]
        if len(columns) == 0:
            out[row] = 0.0
            continue
        matrix[:] = system.gram
        right[:] = 0.0
        for column in columns:
            vector = system.others[column]
            for i in range(dim):
                right[i] += vector[i]
                value = vector[i]
                for j in range(i + 1):
                    matrix[i, j] += value * vector[j]
        for i in range(dim):
            matrix[i, i] += system.penalty[row]
        _factorise(matrix)
        _substitute(matrix, right)
        out[row] = right


@numba.njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def _factorise(matrix: Floats) -> None:
    """Cholesky's lower factor, in the lower half of the matrix."""
    for i in range(len(matrix)):
        for j in range(i):
            value = matrix[i, j]
            for k in range(j):
                value -= matrix[i, k] * matrix[j, k]
            matrix[i, j] = value / matrix[j, j]
        value = matrix[i, i]
        for k in range(i):
            value -= matrix[i, k] * matrix[i, k]
        matrix[i, i] = np.sqrt(max(value, np.float32(1e-20)))


@numba.njit(nogil=True, cache=True, fastmath=_ASSOCIATIVE)
def _substitute(factor: Floats, right: Floats) -> None:
    """Solve ``L L^T x = right`` in place."""
    dim = len(right)
    for i in range(dim):
        value = right[i]
        for k in range(i):
            value -= factor[i, k] * right[k]
        right[i] = value / factor[i, i]
    for i in range(dim - 1, -1, -1):
        right[i] /= factor[i, i]
        for k in range(i):
            right[k] -= factor[i, k] * right[i]
