"""Residual codes of spectral vectors of the graph: k-means on what the levels before it left, as in RQ (Chen 2010)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy import sparse

from embeddings.graph import canonical, degrees
from embeddings.id_map import IntArray

Matrix = npt.NDArray[np.float32]
ITERATIONS = 8
POWER_STEPS = 8


def spectral_vectors(graph: sparse.csr_array, rank: int, generator: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Vectors of users and items from the leading singular space of ``R = D_u^-1/2 A D_i^-1/2``, of length one.

    Subspace iteration with R and its transpose (Halko et al. 2011, algorithm 4.4). The user vectors are ``R Q_i`` and
    the item vectors ``R^T Q_u``, which are U S and V S up to a rotation. No BLAS, so that the bits do not depend on
    the number of threads.

    Args:
        graph: train pairs [users, items].
        rank: columns; at most the smaller side has any effect.
        generator: draws the start.

    Returns:
        float32 [users, rank] and [items, rank]; zeros for an id without an edge.
    """
    graph = canonical(graph)
    users, items = (1 / np.sqrt(np.maximum(side, 1)) for side in degrees(graph))
    scaled = graph.astype(np.float64)
    scaled.data = np.repeat(users, np.diff(graph.indptr)) * items[graph.indices]
    transposed = scaled.T.tocsr()
    rank = max(1, min(rank, *graph.shape))
    item_basis = _orthonormal(generator.standard_normal((graph.shape[1], rank)))
    for _ in range(POWER_STEPS):
        user_basis = _orthonormal(scaled @ item_basis)
        item_basis = _orthonormal(transposed @ user_basis)
    return _unit(scaled @ item_basis), _unit(transposed @ user_basis)


def residual_codes(vectors: Matrix, seen: npt.NDArray[np.bool_], rows: tuple[int, ...]) -> list[IntArray]:
    """Codes of k-means on the vectors, then on what its centres leave, and so on.

    Args:
        vectors: float32 [N, D].
        seen: bool [N], ids that take part; the others get -1.
        rows: centres of each level, each at most the number of seen ids.

    Returns:
        For each level int64 [N]; a level may use fewer than its centres.
    """
    left = np.ascontiguousarray(vectors[seen])
    codes = []
    for centres in rows:
        code = kmeans(left, centres)
        left = left - _means(left, code, centres)[code]
        full = np.full(seen.size, -1, dtype=np.int64)
        full[seen] = code
        codes.append(full)
    return codes


def kmeans(points: Matrix, clusters: int, iterations: int = ITERATIONS) -> IntArray:
    """Lloyd's algorithm (1982) from evenly spaced points of the order by first coordinate; int64 [N] in [0, clusters).

    An empty cluster keeps its centre. Ties go to the lower cluster.

    Args:
        points: float32 [N, D], N >= clusters.
        clusters: >= 1.
        iterations: at most; it stops when no point moves.

    Raises:
        ValueError: There are fewer points than clusters.
    """
    if points.shape[0] < clusters:
        raise ValueError(f"k-means of {clusters} clusters needs as many points, got {points.shape[0]}")
    order = np.lexsort(points.T[::-1])
    centres = points[order[np.arange(clusters) * points.shape[0] // clusters]]
    code = np.full(points.shape[0], -1, dtype=np.int64)
    for _ in range(iterations):
        before, code = code, _nearest(points, np.ascontiguousarray(centres.T))
        if (before == code).all():
            break
        used = np.bincount(code, minlength=clusters) > 0
        centres = np.where(used[:, None], _means(points, code, clusters), centres)
    return code


@njit(cache=True)
def _nearest(points: Matrix, centres: Matrix) -> IntArray:
    """Index of the nearest centre; ``centres`` is [D, K], so that the inner loop runs over centres in order."""
    count, dim = points.shape
    half = np.zeros(centres.shape[1], dtype=np.float32)
    for d in range(dim):
        for k in range(half.size):
            half[k] += centres[d, k] * centres[d, k]
    half *= np.float32(0.5)
    nearest = np.empty(count, dtype=np.int64)
    score = np.empty(half.size, dtype=np.float32)
    for i in range(count):
        score[:] = -half
        for d in range(dim):
            value = points[i, d]
            for k in range(half.size):
                score[k] += value * centres[d, k]
        nearest[i] = np.argmax(score)
    return nearest


def _means(points: Matrix, code: IntArray, clusters: int) -> Matrix:
    counts = np.maximum(np.bincount(code, minlength=clusters), 1)
    sums = [np.bincount(code, weights=column, minlength=clusters) for column in points.T]
    return (np.stack(sums, axis=1) / counts[:, None]).astype(np.float32)


@njit(cache=True)
def _orthonormal(columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Modified Gram-Schmidt, twice; a column that depends on those before it becomes zero."""
    basis = columns.T.copy()
    for _ in range(2):
        for i in range(basis.shape[0]):
            for j in range(i):
                overlap = 0.0
                for n in range(basis.shape[1]):
                    overlap += basis[j, n] * basis[i, n]
                basis[i] -= overlap * basis[j]
            norm = 0.0
            for n in range(basis.shape[1]):
                norm += basis[i, n] * basis[i, n]
            norm = np.sqrt(norm)
            if norm > 1e-10:
                basis[i] /= norm
            else:
                basis[i] = 0.0
    return basis.T.copy()


def _unit(vectors: npt.NDArray[np.float64]) -> Matrix:
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    unit: Matrix = (vectors / np.maximum(norms, 1e-12)[:, None]).astype(np.float32)
    return unit
