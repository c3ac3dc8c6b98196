"""Embedding tables that start from the singular vectors of the training graph."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.least_squares import nearest_table, weights_of
from embeddings.tables import Table
from recsys.truncated_svd import leading_item_vectors

Floats = npt.NDArray[np.float32]
_ROUNDS = 2
"""Of the subspace iteration: training moves the vectors further than a third round would."""


def spectral_vectors(train: csr_array, dim: int, *, seed: int = 0) -> tuple[Floats, Floats]:
    r"""Vectors whose inner products are the best rank-r approximation of the normalised graph.

    With the truncated decomposition :math:`\tilde R = D_U^{-1/2} R D_I^{-1/2} \approx U \Sigma V^T`, users get
    :math:`U \Sigma^{1/2}` and items :math:`V \Sigma^{1/2}`.

    Args:
        train: csr [users, items], ones.
        dim: rank wanted; small graphs have less.
        seed: of the decomposition.

    Returns:
        float32 [users, r] and [items, r], zero for who has no interaction; r <= dim.
    """
    vectors, squares = leading_item_vectors(train, dim, rounds=_ROUNDS, seed=seed)
    users, items = (np.asarray(train.sum(axis=axis), np.float32)[:, None] for axis in (1, 0))
    root = np.sqrt(np.sqrt(squares))
    vectors = np.where(items > 0, vectors, np.float32(0))  # the decomposition leaves rounding noise there
    found = train @ (vectors / np.sqrt(np.maximum(items, 1)) / root)
    return np.asarray(found / np.sqrt(np.maximum(users, 1)), np.float32), np.asarray(vectors * root, np.float32)


def start_from(table: Table, id_map: IdMap, vectors: Floats, std: float) -> None:
    """Write ``vectors`` into a table: the rows whose weighted sums come nearest to them, by least squares.

    Where an id has one row, that is the mean of its members' vectors. Rows without a member that has a vector, and
    columns beyond r, keep their random draw.

    Args:
        table: changed in place.
        id_map: of the table.
        vectors: float32 [N, r], r <= the table's dimension.
        std: root mean square of the vectors' entries after scaling.
    """
    size = float(np.sqrt(np.mean(np.square(vectors, dtype=np.float64)))) if vectors.size else 0.0
    if size == 0.0:
        return
    fitted = nearest_table(weights_of(id_map), vectors * np.float32(std / size)).astype(np.float32)
    filled = np.flatnonzero(np.abs(fitted).sum(axis=1))
    at = torch.from_numpy(filled)
    rows = table.weight()[at].float()
    rows[:, : fitted.shape[1]] = torch.from_numpy(fitted[filled])
    table.write(rows, at)
