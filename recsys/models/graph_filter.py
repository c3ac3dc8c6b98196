"""Training-free retrieval by a filter of the item graph: a polynomial of its adjacency and a low-rank term."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from recsys.microkernel import ITEMS, USERS, pack, score_tile
from recsys.random_walk import COLUMNS, Bipartite, bipartite, fill, neighbours, walk, walk_from
from recsys.selection import Masks

Floats = npt.NDArray[np.float32]
_TRANSPOSE = 16


class GraphFilter:
    r"""Scores by filtering the user's history x, a row of ones and zeros.

    .. math:: s = x D^{-a} \; p(\tilde R^T \tilde R) \; D^{a} + x F G^T

    with R~ = D_U^{-1/2} R D_I^{-1/2}, the polynomial p in Chebyshev form on [0, c],
    :math:`p(\lambda) = \sum_k p_k T_k(2 \lambda / c - 1)`, and D the degrees of the items. Clenshaw's recurrence
    applies it to 64 users at a time; no item-item matrix is made. Scores do not depend on the batch or on threads.

    Args:
        history: float32 csr [num_users, num_items], the training interactions.
        chebyshev: float64 [K + 1], the coefficients p_k.
        end: c, the end of the interval.
        exponent: a.
        encode: F, float32 [num_items, r].
        decode: G, float32 [num_items, r].
    """

    def __init__(
        self,
        history: csr_array,
        chebyshev: npt.NDArray[np.float64],
        end: float,
        exponent: float,
        encode: Floats,
        decode: Floats,
    ) -> None:
        self.num_users, self.num_items = history.shape
        self.history = history
        self.chebyshev, self.end, self.exponent = np.asarray(chebyshev, np.float64), float(end), float(exponent)
        if decode.shape[1] == 0:
            encode = decode = np.zeros((self.num_items, 1), np.float32)
        self.encode, self.decode = encode, decode
        self._graph: Bipartite = bipartite(history)
        degrees = np.diff(self._graph.by_item.indptr).astype(np.float64)
        self._inner = _power(degrees, -0.5 - self.exponent)
        self._outer = _power(degrees, 0.5 + self.exponent)
        self._panels = pack(decode)

    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]."""
        out = np.empty((len(users), self.num_items), np.float32)
        if len(users) == 0:
            return torch.from_numpy(out)
        rows = neighbours(self.history[users])
        threads = torch.get_num_threads()
        encoded = np.zeros((-(-len(users) // USERS), self.encode.shape[1], USERS), np.float32)
        _encode(rows, self.encode, encoded)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda some: self._low_rank(encoded, some, out), _spans(len(self._panels), 4 * threads)))
            starts = range(0, len(users), COLUMNS)
            list(pool.map(lambda first: self._add_polynomial(rows, first, out), starts))
        return torch.from_numpy(out)

    def _low_rank(self, encoded: Floats, panels: slice, out: Floats) -> None:
        _multiply(encoded, self._panels[panels], panels.start * ITEMS, out)

    def _add_polynomial(self, rows: Masks, first: int, out: Floats) -> None:
        indptr = rows.indptr[first : first + COLUMNS + 1]
        part = Masks(indptr - indptr[0], rows.indices[indptr[0] : indptr[-1]])
        users, items = self.num_users, self.num_items
        scratch = [np.empty((size, COLUMNS), np.float32) for size in (users, items, items, items)]
        coefficients = self.chebyshev.astype(np.float32)
        found = _filter(self._graph, part, self._inner, (coefficients, np.float32(self.end)), tuple(scratch))
        _add_transposed(found, self._outer, out[first : first + COLUMNS])

    def state(self) -> dict[str, Tensor]:
        """Tensors for a safetensors file, see :meth:`from_state`."""
        parts = {
            "indptr": self.history.indptr.astype(np.int64),
            "indices": self.history.indices.astype(np.int32),
            "chebyshev": self.chebyshev,
            "numbers": np.array([self.end, self.exponent]),
            "encode": self.encode,
            "decode": self.decode,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> GraphFilter:
        """The model whose :meth:`state` this is."""
        parts: dict[str, Any] = {name: tensor.numpy() for name, tensor in state.items()}
        indptr, indices = parts["indptr"], parts["indices"]
        shape = (len(indptr) - 1, len(parts["decode"]))
        history = csr_array((np.ones(len(indices), np.float32), indices, indptr), shape=shape)
        end, exponent = parts["numbers"]
        return cls(history, parts["chebyshev"], end, exponent, parts["encode"], parts["decode"])


def scaled(vectors: Floats, degrees: npt.NDArray[np.int64], exponent: float) -> Floats:
    """Rows of ``vectors`` [items, r] times ``degrees ** exponent``, zero where the degree is zero."""
    return np.asarray(vectors * _power(degrees.astype(np.float64), exponent)[:, None], dtype=np.float32)


def ones(train: csr_array) -> csr_array:
    """The interactions without their values, float32, sorted."""
    matrix = csr_array((np.ones(train.nnz, np.float32), train.indices, train.indptr), shape=train.shape)
    return matrix if matrix.has_sorted_indices else matrix.sorted_indices()


def _power(degrees: npt.NDArray[np.float64], exponent: float) -> Floats:
    powers = np.zeros_like(degrees)
    np.power(degrees, exponent, out=powers, where=degrees > 0)
    return powers.astype(np.float32)


def _spans(count: int, parts: int) -> list[slice]:
    size = max(1, -(-count // parts))
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


@numba.njit(nogil=True, cache=True)
def _encode(rows: Masks, factors: Floats, out: Floats) -> None:
    """``out[u // 6, d, u % 6] = sum of factors[i, d]`` over the items i of row u."""
    rank = factors.shape[1]
    total = np.empty(rank, np.float32)
    for row in range(len(rows.indptr) - 1):
        total[:] = 0
        for item in rows.indices[rows.indptr[row] : rows.indptr[row + 1]]:
            for d in range(rank):
                total[d] += factors[item, d]
        for d in range(rank):
            out[row // USERS, d, row % USERS] = total[d]


@numba.njit(nogil=True, cache=True)
def _multiply(encoded: Floats, panels: Floats, first: int, out: Floats) -> None:
    """Inner products of all users with the items of ``panels``, written to the columns from ``first``."""
    unused = np.zeros(USERS, np.float32)
    passing = np.zeros(USERS, np.uint64)
    tile = np.empty((USERS, ITEMS), np.float32)
    for p in range(len(panels)):
        start = first + p * ITEMS
        width = min(ITEMS, out.shape[1] - start)
        for group in range(len(encoded)):
            score_tile(encoded[group], panels[p], unused, tile, passing)
            for i in range(min(USERS, len(out) - group * USERS)):
                for j in range(width):
                    out[group * USERS + i, start + j] = tile[i, j]


@numba.njit(nogil=True, cache=True)
def _filter(
    graph: Bipartite, history: Masks, weights: Floats, polynomial: tuple[Floats, np.float32], scratch: Any
) -> Any:
    """Clenshaw: ``b_k = p_k x + 2 t b_{k+1} - b_{k+2}``, ``p = p_0 x + t b_1 - b_2`` with t = 2 M / c - 1."""
    coefficients, end = polynomial
    middle, older, newer, walked = scratch
    degree = len(coefficients) - 1
    older[:] = 0
    fill(history, weights, coefficients[degree], newer)
    for k in range(degree - 1, -1, -1):
        if k == degree - 1:
            walk_from(graph, history, weights, middle, walked)
            walked *= coefficients[degree]
        else:
            walk(graph, newer, middle, walked)
        twice = np.float32(1.0) if k == 0 else np.float32(2.0)
        scale = twice * np.float32(2.0) / end
        for item in range(len(newer)):
            for column in range(COLUMNS):
                older[item, column] = scale * walked[item, column] - twice * newer[item, column] - older[item, column]
        for column in range(len(history.indptr) - 1):
            for item in history.indices[history.indptr[column] : history.indptr[column + 1]]:
                older[item, column] += coefficients[k] * weights[item]
        older, newer = newer, older
    return newer


@numba.njit(nogil=True, cache=True)
def _add_transposed(columns: Floats, scales: Floats, out: Floats) -> None:
    """``out[u, i] += columns[i, u] * scales[i]``, in tiles that stay in the first-level cache."""
    for first in range(0, out.shape[1], _TRANSPOSE):
        last = min(first + _TRANSPOSE, out.shape[1])
        for user in range(len(out)):
            for item in range(first, last):
                out[user, item] += columns[item, user] * scales[item]
