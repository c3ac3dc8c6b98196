"""The compiled loop of dense Adam, which moves every row of a table."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from embeddings.tables.addresses import Floats, address_of
from embeddings.tables.kernels import Pairs
from embeddings.tables.vector import sum_rows

_ROW = np.uint64(32)
"""Bits of a pair below its row."""


@numba.njit(parallel=True, cache=True)
def update_adam(
    table: Floats, exp_avg: Floats, exp_avg_sq: Floats, pairs: Pairs, weights: Floats, gradients: Floats,
    parts: int, betas: Any, step_size: Any, correction: Any, eps: Any, weight_decay: Any,
) -> None:  # fmt: skip
    """Dense Adam: every row, with gradient zero where the batch did not touch it.

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= step_size m / (sqrt(v) / correction + eps).

    Args:
        table: float32 [R, D], changed in place, as the moments are.
        exp_avg: float32 [R, D], m.
        exp_avg_sq: float32 [R, D], v.
        pairs: uint64 [M] from :func:`group_by_row`.
        weights: float32 [M] or [0] from :func:`group_by_row`.
        gradients: float32 [B, D].
        parts: pieces of the work, one a thread.
        betas: float32 b1 and b2.
        step_size: float32 lr / (1 - b1^t).
        correction: float32 sqrt(1 - b2^t).
        eps: float32.
        weight_decay: float32.
    """
    (num_rows, dim), last = table.shape, len(pairs) - 1
    bag, from_ = address_of(pairs), address_of(gradients)
    scales = address_of(weights) if len(weights) else 0
    one = np.float32(1)
    b1, b2 = betas
    for part in numba.prange(parts):
        total = np.empty(dim, np.float32)
        first = num_rows * part // parts
        i = np.searchsorted(pairs, np.uint64(first) << _ROW)
        for r in range(first, num_rows * (part + 1) // parts):
            row, start = np.uintp(r), i
            while i <= last and pairs[i] >> _ROW == np.uint64(r):
                i += 1
            sum_rows(dim, from_, dim * 4, bag, 8, scales, start, i, last, address_of(total))
            for d in range(dim):
                g = total[d] + weight_decay * table[row, d]
                m = b1 * exp_avg[row, d] + (one - b1) * g
                v = b2 * exp_avg_sq[row, d] + (one - b2) * g * g
                exp_avg[row, d], exp_avg_sq[row, d] = m, v
                table[row, d] -= step_size * m / (np.sqrt(v) / correction + eps)
