"""Frequency hashing: the most frequent ids own a row, the rest share (Zhang et al. 2020, "Model size reduction")."""

from __future__ import annotations

import numpy as np

from embeddings.id_map import IntArray


def reserve_rows(side_degrees: IntArray, rows: int) -> tuple[IntArray, int]:
    """Give the ``rows // 2`` most frequent ids a row of their own.

    Args:
        side_degrees: train interactions of every id, int64 [N]; ties go to the lower id.
        rows: rows of the table.

    Returns:
        int64 [N], own row in ``[0, rows // 2)`` or -1, and the number of rows left for the others, which start at
        ``rows // 2``. Ids without an interaction never own a row.
    """
    reserved = rows // 2
    order = np.argsort(-side_degrees, kind="stable")[:reserved]
    order = order[side_degrees[order] > 0]
    own = np.full(side_degrees.size, -1, dtype=np.int64)
    own[order] = np.arange(order.size)
    return own, rows - reserved
