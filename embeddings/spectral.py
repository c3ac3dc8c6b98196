"""Vectors of the nodes from the leading singular space of the graph."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy import sparse

from embeddings.graph import canonical, degrees

Matrix = npt.NDArray[np.float32]
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
