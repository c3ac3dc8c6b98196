"""The leading singular vectors of the degree-normalised interaction matrix."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from numba import get_num_threads
from scipy.sparse import csr_array
from torch import Tensor

from embeddings.one_thread import one_thread
from recsys.random_walk import COLUMNS, Bipartite, bipartite, walk
from recsys.rng import generator

Floats = npt.NDArray[np.float32]
Operator = Callable[[Floats], Floats]
OVERSAMPLING = 64
"""Columns beyond the rank, which the iteration needs to converge."""
_DEGREE = 4
_ROWS = 4096  # of a block of a matrix product; fixed, so that sums do not depend on the number of threads
_SMALLEST = 1e-6


def leading_item_vectors(train: csr_array, rank: int, *, rounds: int = 1, seed: int = 0) -> tuple[Floats, Floats]:
    """Right singular vectors of ``R~ = D_U^-1/2 R D_I^-1/2``, see :func:`leading_eigenvectors`.

    Args:
        train: csr [users, items].
        rank: vectors wanted.
        rounds: of filtering; one spans what an ideal low-pass filter needs, single vectors are accurate after 4. Where
            there are fewer users than items, at most 64 above the rank, they are exact.
        seed: of the start.

    Returns:
        V float32 [items, r], orthonormal columns, and the squared singular values float32 [r], falling; r <= rank.

    Raises:
        ValueError: ``rank`` or ``rounds`` < 1.
    """
    _check(rank, rounds)
    if _few_users(train, rank):
        return _by_users(_normalised(train), rank)
    return leading_eigenvectors(Normalised(train), train.shape, rank, rounds=rounds, seed=seed)


def leading_gram_vectors(train: csr_array, rank: int, *, rounds: int = 4, seed: int = 0) -> tuple[Floats, Floats]:
    """Eigenvectors and eigenvalues of the Gram matrix ``X^T X``; arguments as :func:`leading_item_vectors`."""
    _check(rank, rounds)
    if _few_users(train, rank):
        return _by_users(train.astype(np.float64), rank)
    transposed = train.T.tocsr()

    def gram(columns: Floats) -> Floats:
        return np.asarray(transposed @ (train @ columns), dtype=np.float32)

    return leading_eigenvectors(gram, train.shape, rank, rounds=rounds, seed=seed)


def leading_eigenvectors(
    operator: Operator, shape: tuple[int, int], rank: int, *, rounds: int, seed: int
) -> tuple[Floats, Floats]:
    """The largest eigenvalues of a symmetric, non-negative operator by Chebyshev-filtered subspace iteration.

    The spectra of interaction matrices fall slowly, where plain subspace iteration (Halko et al. 2011, algorithm 4.4)
    hardly converges. Each round rotates the basis to Ritz vectors and applies T_4, scaled to stay below 1 on the
    unwanted eigenvalues (Zhou, Saad, Tiago and Chelikowsky 2006, algorithm 4.2), or a lower degree. Memory is a few
    times ``items x (rank + 64)`` floats.

    Args:
        operator: takes float32 [items, n] and gives the same shape.
        shape: users and items; the smaller bounds the rank.
        rank: eigenvectors wanted; where there are fewer, fewer come back.
        rounds: of filtering.
        seed: of the start.

    Returns:
        V float32 [items, r], orthonormal columns, and the eigenvalues float32 [r], falling; r <= rank.

    Raises:
        ValueError: ``rank`` or ``rounds`` < 1.
    """
    _check(rank, rounds)
    width = min(*shape, rank + OVERSAMPLING)
    start = generator(seed, "truncated_svd").standard_normal((shape[1], width), dtype=np.float32)
    with one_thread():
        whole = width == shape[1]
        basis = np.eye(width, dtype=np.float32) if whole else _orthonormal(operator(_orthonormal(operator(start))))
        applied = 0
        while basis.shape[1] > 0 and width < min(shape) and applied < rounds * _DEGREE:
            basis, values = _ritz(operator, basis)
            end = max(float(values[-1]), 1e-3 * float(values[0]), 1e-30)
            degree = _degree(float(values[0]) / end)
            basis = _orthonormal(_filtered(operator, basis, end, degree))
            applied += degree
        basis, values = _ritz(operator, _orthonormal(basis))
    kept = values[:rank] > _SMALLEST * values.max(initial=0.0)
    return np.ascontiguousarray(basis[:, :rank][:, kept]), values[:rank][kept]


class Normalised:
    """A = R~^T R~ as an operator on columns."""

    def __init__(self, train: csr_array) -> None:
        self.graph = bipartite(train)
        self.threads = torch.get_num_threads()
        degrees = np.diff(self.graph.by_item.indptr).astype(np.float32)
        self.root = np.sqrt(degrees)[:, None]
        self.inverse = np.divide(1.0, self.root, out=np.zeros_like(self.root), where=self.root > 0)

    def __call__(self, columns: Floats) -> Floats:
        """Float32 [items, n] to the same shape."""
        image = apply_walk(self.graph, self.inverse * columns, self.threads)
        image *= self.root
        return image


def _check(rank: int, rounds: int) -> None:
    if rank < 1 or rounds < 1:
        raise ValueError(f"truncated SVD needs rank >= 1 and rounds >= 1, got {rank} and {rounds}")


def _few_users(train: csr_array, rank: int) -> bool:
    """Whether the wanted basis spans all that the users do; filtering would lose its small directions in float32."""
    return train.shape[0] < train.shape[1] and train.shape[0] <= rank + OVERSAMPLING


def _by_users(factor: csr_array, rank: int) -> tuple[Floats, Floats]:
    """Eigenvectors of ``F^T F`` from those of ``F F^T``; F is csr float64 [users, items]."""
    with one_thread():
        values, left = torch.linalg.eigh(torch.from_numpy((factor @ factor.T).toarray()))
    values, left = values.flip(0).clamp(min=0).numpy()[:rank], left.flip(1).numpy()[:, :rank]
    kept = values > _SMALLEST * values.max(initial=0.0)
    vectors = factor.T @ (left[:, kept] / np.sqrt(values[kept]))
    return np.ascontiguousarray(vectors, np.float32), values[kept].astype(np.float32)


def _normalised(train: csr_array) -> csr_array:
    """R~ in float64; every interaction counts as 1."""
    users, items = np.diff(train.indptr), np.bincount(train.indices, minlength=train.shape[1])
    weights = 1 / np.sqrt(np.repeat(users, users).astype(np.float64) * items[train.indices])
    return csr_array((weights, train.indices, train.indptr), shape=train.shape)


def _ritz(operator: Operator, basis: Floats) -> tuple[Floats, Floats]:
    """Ritz vectors and values in the span of an orthonormal basis, the largest first."""
    columns = torch.from_numpy(basis)
    small = _inner(columns, torch.from_numpy(operator(basis))).double()
    values, rotation = torch.linalg.eigh((small + small.T) / 2)
    return _times(columns, rotation.flip(1).float()).numpy(), values.flip(0).clamp(min=0).float().numpy()


def _degree(spread: float) -> int:
    """The largest degree up to 4 that does not drown the small eigenvectors in the float32 noise of the large."""
    fitting = [degree for degree in range(2, _DEGREE + 1) if np.cosh(degree * np.arccosh(2 * spread - 1)) < 1e5]
    return max(fitting, default=1)


def _filtered(operator: Operator, basis: Floats, end: float, degree: int) -> Floats:
    """T_d(2 A / end - 1) times the basis."""
    before, now = basis, operator(basis) * np.float32(2 / end) - basis
    for _ in range(degree - 1):
        image = operator(now)
        image *= np.float32(4 / end)
        image -= 2 * now
        image -= before
        before, now = now, image
    return now


def apply_walk(graph: Bipartite, columns: Floats, threads: int) -> Floats:
    """``M`` of :mod:`recsys.random_walk` times ``columns`` float32 [items, n]."""
    users, items = len(graph.by_user.indptr) - 1, len(graph.by_item.indptr) - 1
    out = np.empty_like(columns)

    def part(first: int) -> None:
        width = min(COLUMNS, columns.shape[1] - first)
        source, middle = np.zeros((items, COLUMNS), np.float32), np.empty((users, COLUMNS), np.float32)
        target = np.empty_like(source)
        source[:, :width] = columns[:, first : first + width]
        walk(graph, source, middle, target)
        out[:, first : first + width] = target[:, :width]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(0, columns.shape[1], COLUMNS)))
    return out


def _orthonormal(columns: Floats) -> Floats:
    """An orthonormal basis of the columns, by the eigenvectors of their Gram matrix; dependent ones are left out.

    Columns are near eigenvectors, so that once of length one they are far from parallel, and a Gram matrix in float32
    serves, at a quarter of the work of a Householder QR.
    """
    matrix = torch.from_numpy(columns)
    matrix = matrix / matrix.norm(dim=0).clamp(min=1e-30)
    values, rotation = torch.linalg.eigh(_inner(matrix, matrix).double())
    kept = values > 1e-6 * values[-1:].clamp(min=1e-6)
    basis: Floats = _times(matrix, (rotation[:, kept] / values[kept].sqrt()).float()).numpy()
    return basis


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """``left^T right``, summed over blocks of rows in their order."""
    with ThreadPoolExecutor(get_num_threads()) as pool:
        blocks = pool.map(lambda block: left[block].T @ right[block], _blocks(len(left)))
        return sum(blocks, start=torch.zeros(left.shape[1], right.shape[1]))


def _times(matrix: Tensor, small: Tensor) -> Tensor:
    """``matrix small``, by blocks of rows."""
    with ThreadPoolExecutor(get_num_threads()) as pool:
        return torch.cat(list(pool.map(lambda block: matrix[block] @ small, _blocks(len(matrix)))))


def _blocks(rows: int) -> list[slice]:
    return [slice(first, first + _ROWS) for first in range(0, rows, _ROWS)]
