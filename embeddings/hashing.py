"""Hash functions from ids to buckets, free of overflow."""

from __future__ import annotations

import dataclasses

import numpy as np

from embeddings.id_map import IntArray

PRIME = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class UniversalHash:
    """``h(x) = ((a x + b) mod p) mod m`` (Carter and Wegman 1979) with p = 2^31 - 1.

    A 31-bit Mersenne prime and not one near 2^61: with a, b, x < p the sum ``a x + b`` stays below 2^62 + 2^31, so that
    plain int64 arithmetic is exact, and it is universal for every x < p, which dense indices (int32) always are.

    Attributes:
        a: in ``[1, p)``.
        b: in ``[0, p)``.
        buckets: m >= 1.
    """

    a: int
    b: int
    buckets: int

    @classmethod
    def draw(cls, buckets: int, generator: np.random.Generator) -> UniversalHash:
        """A random member of the family with ``buckets`` buckets."""
        if buckets < 1:
            raise ValueError(f"a hash function needs at least one bucket, got {buckets}")
        return cls(int(generator.integers(1, PRIME)), int(generator.integers(0, PRIME)), buckets)

    def __call__(self, ids: IntArray) -> IntArray:
        """Buckets int64 of int64 ids.

        Raises:
            ValueError: An id is outside ``[0, 2^31 - 1)``, where the hash is not universal.
        """
        bad = np.flatnonzero((ids < 0) | (ids >= PRIME))
        if bad.size:
            raise ValueError(f"universal hashing needs ids in [0, {PRIME:,}), got {ids[bad[0]]} at position {bad[0]}")
        return (self.a * ids + self.b) % PRIME % self.buckets


def quotient_remainder(ids: IntArray, num_ids: int, rows: int) -> IntArray:
    """Quotient and remainder rows of one table (Shi et al. 2020, section 3), distinct pairs where that is possible.

    The table has R remainder rows and ``rows - R`` quotient rows; R is the largest with
    ``R + ceil(num_ids / R) <= rows``. With fewer than about ``2 sqrt(num_ids)`` rows no such R exists: then both parts
    have half of the rows and quotients wrap.

    Args:
        ids: int64 [n] in ``[0, num_ids)``.
        num_ids: size of the id space.
        rows: rows of the table, >= 1.

    Returns:
        int64 [n, 2], remainder rows in ``[0, R)`` and quotient rows in ``[R, rows)``; both 0 for a one-row table.
    """
    if rows == 1:
        return np.zeros((len(ids), 2), dtype=np.int64)
    candidates = np.arange(1, rows, dtype=np.int64)
    fits = candidates[candidates + -(-num_ids // candidates) <= rows]
    remainders = int(fits[-1]) if fits.size else (rows + 1) // 2
    quotients = rows - remainders
    return np.stack([ids % remainders, remainders + ids // remainders % quotients], axis=1)
