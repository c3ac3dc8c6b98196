"""EASE, a linear item-item model in closed form (Steck 2019, "Embarrassingly shallow autoencoders for sparse data")."""

from __future__ import annotations

from typing import Literal

import numba
import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from embeddings.one_thread import one_thread
from recsys.models.graph_filter import ones
from recsys.random_walk import neighbours
from recsys.selection import Masks
from recsys.truncated_svd import leading_gram_vectors

Floats = npt.NDArray[np.float32]
Method = Literal["auto", "dense", "low_rank"]
_COPIES = 3
"""The Gram matrix, its factor or inverse, and one for the work of the solver or the saved file."""


def dense_gib(num_items: int) -> float:
    """Memory of the dense solution, GiB: three float32 matrices [items, items]."""
    return _COPIES * 4 * num_items**2 / 2**30


class Ease:
    r"""Scores by ``x B`` with the user's history x, a row of ones and zeros.

    .. math:: B = I - P \, diag(P)^{-1}, \qquad P = (X^T X + \lambda I)^{-1}

    (eq. 8). Where P is too large it stands on the r leading eigenvectors V of the Gram matrix, the rest of whose
    spectrum counts as zero: with :math:`g_k = \sigma_k^2 / (\sigma_k^2 + \lambda)`,

    .. math:: \lambda P \approx I - V g V^T, \qquad B_{ij} \approx (V g V^T)_{ij} / (1 - (V g V^T)_{jj}), \; B_{jj} = 0,

    which is exact at full rank.

    Args:
        history: float32 csr [num_users, num_items], the training interactions.
        weights: B, float32 [num_items, num_items]; or V, float32 [num_items, r], where ``gains`` is given.
        gains: float32 [r], g; None for the dense model.
    """

    def __init__(self, history: csr_array, weights: Floats, gains: Floats | None) -> None:
        self.num_users, self.num_items = history.shape
        self.history = history
        self.weights = weights
        self.gains = gains

    @classmethod
    def fit(
        cls,
        train: csr_array,
        l2: float = 200.0,
        *,
        method: Method = "auto",
        rank: int = 512,
        memory_gib: float = 8.0,
        seed: int = 0,
    ) -> Ease:
        """Solve on ``train`` [users, items].

        Args:
            train: csr [users, items].
            l2: lambda, in users.
            method: "auto" takes the dense solution where :func:`dense_gib` is at most ``memory_gib``.
            rank: r of the low-rank model.
            memory_gib: what the dense solution may take.
            seed: of the eigenvectors.

        Raises:
            ValueError: ``l2`` <= 0, or "dense" does not fit into ``memory_gib``.
        """
        if not l2 > 0:
            raise ValueError(f"EASE needs l2 > 0, got {l2}; without it the Gram matrix may have no inverse")
        history = ones(train)
        needed = dense_gib(history.shape[1])
        if method == "dense" and needed > memory_gib:
            raise ValueError(
                f"dense EASE on {history.shape[1]:,} items needs {needed:.1f} GiB, memory_gib is {memory_gib:g}; raise"
                " it, drop rare items, or use method low_rank"
            )
        if method == "low_rank" or needed > memory_gib:
            vectors, values = leading_gram_vectors(history, rank, seed=seed)
            return cls(history, vectors, values / (values + np.float32(l2)))
        return cls(history, _solve(history, l2), None)

    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]."""
        rows = neighbours(self.history[users])
        out = np.zeros((len(users), self.num_items), np.float32)
        if self.gains is None:
            _add_rows(rows, self.weights, out)
            return torch.from_numpy(out)
        encoded = np.zeros((len(users), len(self.gains)), np.float32)
        _add_rows(rows, self.weights, encoded)
        vectors, gains = torch.from_numpy(self.weights), torch.from_numpy(self.gains)
        diagonal = (vectors.square() * gains).sum(1).numpy()
        with one_thread():
            found = ((torch.from_numpy(encoded) * gains) @ vectors.T).numpy()
        _without_itself(rows, diagonal, found)
        return torch.from_numpy(found)

    def state(self) -> dict[str, Tensor]:
        """Tensors for a safetensors file, see :meth:`from_state`."""
        parts = {
            "indptr": self.history.indptr.astype(np.int64),
            "indices": self.history.indices.astype(np.int32),
            "weights": self.weights,
        } | ({} if self.gains is None else {"gains": self.gains})
        return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Ease:
        """The model whose :meth:`state` this is."""
        parts = {name: tensor.numpy() for name, tensor in state.items()}
        indptr, indices = parts["indptr"], parts["indices"]
        shape = (len(indptr) - 1, len(parts["weights"]))
        history = csr_array((np.ones(len(indices), np.float32), indices, indptr), shape=shape)
        return cls(history, parts["weights"], parts.get("gains"))


def _solve(history: csr_array, l2: float) -> Floats:
    """B, with the Gram matrix, its Cholesky factor and the inverse in two arrays that are used in turn."""
    gram = torch.from_numpy((history.T @ history).toarray().astype(np.float32))
    gram.diagonal().add_(l2)
    with one_thread():
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram, out=gram), out=gram)
    inverse /= -inverse.diagonal().clone()
    inverse.fill_diagonal_(0.0)
    return inverse.numpy()


@numba.njit(nogil=True, cache=True)
def _add_rows(rows: Masks, matrix: Floats, out: Floats) -> None:
    for row in range(len(out)):
        for item in rows.indices[rows.indptr[row] : rows.indptr[row + 1]]:
            for column in range(out.shape[1]):
                out[row, column] += matrix[item, column]


@numba.njit(nogil=True, cache=True)
def _without_itself(rows: Masks, diagonal: Floats, scores: Floats) -> None:
    """Take away what an item gives to itself, and divide by ``1 - diagonal``."""
    for row in range(len(scores)):
        for item in rows.indices[rows.indptr[row] : rows.indptr[row + 1]]:
            scores[row, item] -= diagonal[item]
        for item in range(scores.shape[1]):
            scores[row, item] /= np.float32(1) - diagonal[item]
