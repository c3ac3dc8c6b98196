"""Training-free retrieval by a filter of the item graph: a polynomial of its adjacency and a low-rank term."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from recsys.filter_kernel import Filter, prefers_scatter, select, write_scores
from recsys.microkernel import pack
from recsys.random_walk import COLUMNS, bipartite, neighbours
from recsys.selection import Heaps, Masks

Floats = npt.NDArray[np.float32]
_SAMPLE = 256
"""Users that tell how sparse propagation stays."""


class GraphFilter:
    r"""Scores by filtering the user's history x, a row of ones and zeros.

    .. math:: s = x D^{-a} \; p(\tilde R^T \tilde R) \; D^{a} + x F G^T

    with R~ = D_U^{-1/2} R D_I^{-1/2}, the polynomial p in Chebyshev form on [0, c],
    :math:`p(\lambda) = \sum_k p_k T_k(2 \lambda / c - 1)`, and D the degrees of the items. Clenshaw's recurrence
    applies it to 64 users at a time; no item-item matrix is made, and exact top-k needs no score matrix
    (:mod:`recsys.filter_kernel`). Scores do not depend on the batch or on threads.

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
        graph = bipartite(history)
        degrees = np.diff(graph.by_item.indptr).astype(np.float64)
        self._filter = Filter(
            graph,
            _power(degrees, -0.5 - self.exponent),
            _power(degrees, 0.5 + self.exponent),
            self.chebyshev.astype(np.float32),
            np.float32(self.end),
            np.ascontiguousarray(encode),
            pack(decode),
            len(chebyshev) == 2 and prefers_scatter(graph, _sample(history)),
        )

    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]."""
        out = np.empty((len(users), self.num_items), np.float32)

        def part(rows: slice) -> None:
            write_scores(self._filter, neighbours(self.history[users[rows]]), out[rows])

        parts = [slice(first, first + COLUMNS) for first in range(0, len(users), COLUMNS)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(part, parts))
        return torch.from_numpy(out)

    def select(self, users: npt.NDArray[np.int64], masks: Masks, heaps: Heaps) -> int:
        """See :class:`recsys.retriever.SelectingRetriever`."""
        return int(select(self._filter, neighbours(self.history[users]), masks, heaps))

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


def _sample(history: csr_array) -> Masks:
    return neighbours(history[:: max(1, history.shape[0] // _SAMPLE)])


def _power(degrees: npt.NDArray[np.float64], exponent: float) -> Floats:
    powers = np.zeros_like(degrees)
    np.power(degrees, exponent, out=powers, where=degrees > 0)
    return powers.astype(np.float32)
