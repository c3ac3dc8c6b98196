"""The bucket that most neighbours of an id lead to: second codes, and codes of ids that came after clustering."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from embeddings.id_map import IntArray


def home_buckets(neighbours: sparse.csr_array | sparse.csc_array, buckets: IntArray) -> IntArray:
    """For each row of ``neighbours`` the most frequent bucket among its non-zero columns, -1 if it has none.

    Args:
        neighbours: sparse [M, N] of non-negative counts.
        buckets: int64 [N], -1 for an id without a bucket, which has no vote.

    Returns:
        int64 [M]. Ties go to the lower bucket.
    """
    return majority(neighbours, buckets)


def majority(
    neighbours: sparse.csr_array | sparse.csc_array, buckets: IntArray, exclude: IntArray | None = None
) -> IntArray:
    """As :func:`home_buckets`, leaving out one bucket for each row.

    Args:
        neighbours: sparse [M, N].
        buckets: int64 [N], -1 has no vote.
        exclude: int64 [M], a bucket that row must not get.

    Raises:
        ValueError: The shapes do not fit.
    """
    rows, columns = neighbours.shape
    if buckets.shape != (columns,):
        raise ValueError(f"majority needs one bucket for each of {columns} columns, got {list(buckets.shape)}")
    coordinates = sparse.coo_array(neighbours)
    row, bucket = coordinates.row.astype(np.int64), buckets[coordinates.col]
    voting = (bucket >= 0) & (coordinates.data != 0)
    if exclude is not None:
        voting &= bucket != exclude[row]
    winner = np.full(rows, -1, dtype=np.int64)
    if not voting.any():
        return winner
    width = int(bucket.max()) + 1
    pairs, votes = np.unique(row[voting] * width + bucket[voting], return_counts=True)
    order = np.lexsort((-(pairs % width), votes, pairs // width))
    winner[pairs[order] // width] = pairs[order] % width
    return winner
