"""Frequency hashing: the most frequent ids own a row, the rest share (Zhang et al. 2020, "Model size reduction")."""

from __future__ import annotations

import numpy as np

from embeddings.id_map import IntArray


def reserve_rows(side_degrees: IntArray, rows: int, *, shared: int | None = None) -> tuple[IntArray, int]:
    """Give the most frequent ids a row of their own.

    Args:
        side_degrees: train interactions of every id, int64 [N]; ties go to the lower id.
        rows: rows of the table.
        shared: rows left for the others; None for half of them, rounded up.

    Returns:
        int64 [N], own row in ``[0, rows - shared)`` or -1, and the number of rows left for the others, the last ones.
        Ids without an interaction never own a row.
    """
    reserved = rows // 2 if shared is None else rows - shared
    order = np.argsort(-side_degrees, kind="stable")[:reserved]
    order = order[side_degrees[order] > 0]
    own = np.full(side_degrees.size, -1, dtype=np.int64)
    own[order] = np.arange(order.size)
    return own, rows - reserved
