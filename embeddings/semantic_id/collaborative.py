"""Item features without text: random projections of the interaction graph."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from embeddings.graph import canonical, degrees
from embeddings.spectral import Matrix

WEIGHTS = (1.0, 1.0, 1.0)
"""Of the powers of the two-step walk."""


def fast_rp(
    train: sparse.csr_array,
    dim: int,
    generator: np.random.Generator,
    weights: tuple[float, ...] = WEIGHTS,
    exponent: float = -0.5,
) -> Matrix:
    """FastRP (Chen et al. 2019) of the item-item walk: ``sum_k w_k unit(S^k D^a R)``, unit length by row.

    ``S = D_i^-1 A^T D_u^-1 A`` steps from an item to a user and on to an item, R is very sparse random (Li, Hastie and
    Church 2006) with one in sqrt(items) entries, and ``a < 0`` damps popular items.

    Args:
        train: pairs [users, items].
        dim: columns.
        generator: draws R.
        weights: w_1, w_2, ..
        exponent: a.

    Returns:
        float32 [items, dim]; zeros for an item without a user.
    """
    graph = canonical(train).astype(np.float64)
    user_degrees, item_degrees = (np.maximum(side, 1).astype(np.float64) for side in degrees(graph))
    forward = sparse.diags_array(1 / user_degrees) @ graph
    back = sparse.diags_array(1 / item_degrees) @ graph.T
    share = 1 / np.sqrt(max(1, graph.shape[1]))
    draws = generator.random((graph.shape[1], dim))
    projection = np.where(draws < share / 2, 1.0, np.where(draws < share, -1.0, 0.0))
    walked = item_degrees[:, None] ** exponent * projection
    total = np.zeros_like(walked)
    for weight in weights:
        walked = back @ (forward @ walked)
        total += weight * _unit(walked)
    features: Matrix = _unit(total).astype(np.float32)
    return features


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    unit: npt.NDArray[np.float64] = vectors / np.maximum(norms, 1e-12)[:, None]
    return unit
