"""Products of a sparse and a dense matrix: weighted sums of rows, each row of the result made by one thread.

So a result has the same bits for any number of threads, and an edge costs one row of the dense matrix in traffic.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from embeddings.tables.addresses import Floats, Ints, Longs, address_of
from embeddings.tables.vector import add_scaled, sum_rows


class Adjacency(NamedTuple):
    """A sparse matrix [R, C] by rows: row r has ``weights[e]`` in column ``columns[e]``, e in ``starts[r:r + 2]``.

    Attributes:
        starts: int64 [R + 1].
        columns: int32 [E], ascending in a row.
        weights: float32 [E].
    """

    starts: Longs
    columns: Ints
    weights: Floats


@numba.njit(cache=True)
def _first_row(starts: Longs, part: int, parts: int) -> int:
    """Where a part begins, so that all have about as many edges; a row counts as four more for its own traffic."""
    low, high = 0, len(starts) - 1
    goal = (starts[high] + 4 * high) * part // parts
    while low < high:
        middle = (low + high) // 2
        if starts[middle] + 4 * middle < goal:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(parallel=True, cache=True)
def multiply(matrix: Adjacency, x: Floats, base: Floats, parts: int, out: Floats) -> None:
    """Write ``base + matrix @ x``.

    Args:
        matrix: [R, C].
        x: float32 [C, D], C-contiguous, as are all the arrays.
        base: float32 [R, D], or [0, D] for zeros.
        parts: pieces of the work, one a thread.
        out: float32 [R, D].
    """
    dim, last = x.shape[1], len(matrix.columns) - 1
    at, index, scales = address_of(x), address_of(matrix.columns), address_of(matrix.weights)
    to, from_, row_bytes, one = address_of(out), address_of(base), dim * 4, np.float32(1)
    for part in numba.prange(parts):
        for r in range(_first_row(matrix.starts, part, parts), _first_row(matrix.starts, part + 1, parts)):
            row = np.int64(r) * row_bytes
            sum_rows(dim, at, row_bytes, index, 4, scales, matrix.starts[r], matrix.starts[r + 1], last, to + row)
            if len(base):
                add_scaled(dim, to + row, one, from_ + row)


@numba.njit(parallel=True, cache=True)
def multiply_rows(matrix: Adjacency, x: Floats, rows: Longs, parts: int, out: Floats) -> None:
    """Write ``(matrix @ x)[rows]``.

    Args:
        matrix: [R, C].
        x: float32 [C, D].
        rows: int64 [n].
        parts: pieces of the work, one a thread.
        out: float32 [n, D].
    """
    dim, last = x.shape[1], len(matrix.columns) - 1
    at, index, scales = address_of(x), address_of(matrix.columns), address_of(matrix.weights)
    to = address_of(out)
    for part in numba.prange(parts):
        for j in range(len(rows) * part // parts, len(rows) * (part + 1) // parts):
            r = rows[j]
            start, stop = matrix.starts[r], matrix.starts[r + 1]
            sum_rows(dim, at, dim * 4, index, 4, scales, start, stop, last, to + np.int64(j) * dim * 4)


@numba.njit(parallel=True, cache=True)
def multiply_sparse(matrix: Adjacency, places: Ints, x: Floats, parts: int, out: Floats) -> None:
    """Write ``matrix @ X`` where most rows of X [C, D] are zero; the others are the rows of ``x``.

    Args:
        matrix: [R, C].
        places: int32 [C], the row of ``x`` that a row of X is, or -1 for zeros.
        x: float32 [n, D].
        parts: pieces of the work, one a thread.
        out: float32 [R, D].
    """
    dim = x.shape[1]
    at, to = address_of(x), address_of(out)
    longest = 1
    for r in range(len(matrix.starts) - 1):
        longest = max(longest, matrix.starts[r + 1] - matrix.starts[r])
    for part in numba.prange(parts):
        found, scales = np.empty(longest, np.int32), np.empty(longest, np.float32)
        for r in range(_first_row(matrix.starts, part, parts), _first_row(matrix.starts, part + 1, parts)):
            count = 0
            for e in range(matrix.starts[r], matrix.starts[r + 1]):
                place = places[matrix.columns[e]]
                found[count], scales[count] = max(place, 0), matrix.weights[e]
                count += place >= 0
            index, weights = address_of(found), address_of(scales)
            sum_rows(dim, at, dim * 4, index, 4, weights, 0, count, count - 1, to + np.int64(r) * dim * 4)


def positions(rows: npt.NDArray[np.int64], count: int) -> Ints:
    """Int32 [count]: the place of each id in ``rows`` (distinct ids), -1 for the others."""
    places = np.full(count, -1, np.int32)
    places[rows] = np.arange(len(rows), dtype=np.int32)
    return places
