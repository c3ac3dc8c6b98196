"""Buckets of an id's neighbours: what a user's items, or an item's users, are clusters of, summed with weights."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from embeddings.id_map import FloatArray, IntArray


def neighbour_buckets(
    graph: sparse.csr_array, buckets: IntArray, popularity: IntArray, count: int
) -> tuple[IntArray, FloatArray]:
    r"""The buckets that most neighbours of an id are in.

    A neighbour of degree d adds :math:`d^{-1/2}` to its bucket, as in the symmetric normalisation of LightGCN, so that
    an id's vector is that of one step of propagation over the graph whose other side is clustered.

    Args:
        graph: canonical pairs [N, M].
        buckets: int64 [M], -1 for a column without a bucket.
        popularity: int64 [M], the degrees d.
        count: H, buckets kept for an id, the heaviest first; ties go to the lower bucket.

    Returns:
        int64 [N, H], -1 where an id has fewer buckets, and float32 [N, H] with rows of length one, 0 there.
    """
    ids, width = graph.shape[0], int(buckets.max(initial=-1)) + 1
    rows = np.full((ids, count), -1, dtype=np.int64)
    weights = np.zeros((ids, count), dtype=np.float32)
    who = np.repeat(np.arange(ids, dtype=np.int64), np.diff(graph.indptr))
    votes = 1.0 / np.sqrt(np.maximum(popularity, 1))[graph.indices]
    bucket = buckets[graph.indices]
    voting = bucket >= 0
    keys, at = np.unique(who[voting] * max(width, 1) + bucket[voting], return_inverse=True)
    if not keys.size:
        return rows, weights
    total = np.bincount(at, weights=votes[voting])
    order = np.lexsort((-total, keys // width))
    keys, total = keys[order], total[order]
    owner = keys // width
    place = np.arange(keys.size) - np.searchsorted(owner, owner)
    kept = place < count
    rows[owner[kept], place[kept]] = keys[kept] % width
    weights[owner[kept], place[kept]] = total[kept]
    lengths = np.sqrt(np.einsum("nh,nh->n", weights, weights, dtype=np.float64))
    return rows, (weights / np.maximum(lengths, 1e-12)[:, None]).astype(np.float32)
