"""Locality-sensitive hashing of the graph's rows (random hyperplanes), without densifying the graph."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from embeddings.id_map import IntArray


def hyperplane_buckets(
    neighbours: sparse.csr_array | sparse.csc_array, rows: int, generator: np.random.Generator
) -> IntArray:
    """Buckets of ids by the signs of random projections of their neighbour vectors (Charikar 2002).

    As GraphHash's baseline it takes ``len(bin(rows))`` = (bits of ``rows``) + 2 hyperplanes. The distinct codes, in
    their order, are packed evenly into the rows: each has a row of its own if they are few enough, else neighbours in
    that order, which share their leading signs, share one.

    Args:
        neighbours: sparse [N, M]; one row for each id. Memory: float32 [M, bits] + [N, bits].
        rows: number of buckets.
        generator: draws the hyperplanes.

    Returns:
        int64 [N] in ``[0, rows)``.
    """
    bits = len(bin(rows))
    planes = generator.standard_normal((neighbours.shape[1], bits), dtype=np.float32)
    signs = np.asarray(neighbours @ planes) > 0
    codes = signs @ (1 << np.arange(bits, dtype=np.int64))
    distinct, rank = np.unique(codes, return_inverse=True)
    return rank * min(rows, distinct.size) // max(distinct.size, 1)
