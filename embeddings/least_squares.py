"""Rows of a table whose weighted sums come nearest to given vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from embeddings.id_map import IdMap

STEPS = 30
_SMALLEST = 1e-30


def weights_of(id_map: IdMap) -> csr_array:
    """The map as a matrix [num_ids, num_rows]: row i has the weights of id i, so that it times a table is vectors."""
    ids = np.arange(id_map.num_ids, dtype=np.int64)
    weights = id_map.lookup_weights(ids).astype(np.float64)
    who = np.repeat(ids, id_map.rows_per_id)
    matrix = csr_array((weights.ravel(), (who, id_map.rows.ravel())), shape=(id_map.num_ids, id_map.num_rows))
    matrix.eliminate_zeros()
    return matrix


def nearest_table(matrix: csr_array, vectors: npt.NDArray[np.floating], steps: int = STEPS) -> npt.NDArray[np.float64]:
    """The table T that minimises ``|matrix T - vectors|^2``, by conjugate gradients from zero (CGLS, Hestenes 1952).

    Where several tables do, the smallest. Each column is a problem of its own, and all take their steps together.

    Args:
        matrix: float64 [N, R].
        vectors: [N, D].
        steps: at most; a column that is solved does not move any more.

    Returns:
        Float64 [R, D]; zero for a row without an id.
    """
    transposed = matrix.T.tocsr()
    left = vectors.astype(np.float64)
    table = np.zeros((matrix.shape[1], left.shape[1]))
    gradient = transposed @ left
    direction, size = gradient, np.einsum("rd,rd->d", gradient, gradient)
    smallest = np.maximum(size * 1e-14, _SMALLEST)
    for _ in range(steps):
        moving = size > smallest
        if not moving.any():
            break
        image = matrix @ direction
        length = np.where(moving, size / np.maximum(np.einsum("nd,nd->d", image, image), _SMALLEST), 0.0)
        table += length * direction
        left -= length * image
        gradient = transposed @ left
        before, size = size, np.einsum("rd,rd->d", gradient, gradient)
        direction = gradient + np.where(moving, size / np.maximum(before, _SMALLEST), 0.0) * direction
    return table
