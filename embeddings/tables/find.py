"""Compiled loops that find the rows of ids in the maps of tables."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from embeddings.tables.addresses import Floats, Ints, Longs, array_at

FIND = np.dtype(
    [(name, np.int64) for name in ("ids", "count", "map_rows", "rows_per_id", "num_ids", "unseen_row", "rows")]
)
"""Ids of one table. Addresses: ``ids`` int64 [count]; ``map_rows`` int32 [num_ids + 1, rows_per_id], 0 where id i has
the row i; ``rows`` int32 [count * rows_per_id], written.
"""


@numba.njit(parallel=True, cache=True)
def find_rows(jobs: npt.NDArray[np.void], parts: int) -> None:
    """Write the rows of each id; an id outside ``[0, num_ids)`` has the rows of the map's last line.

    Args:
        jobs: ``FIND`` [T].
        parts: pieces of the work of one table.
    """
    for task in numba.prange(len(jobs) * parts):
        job, part = jobs[task // parts], task % parts
        find_part(job, job.count * part // parts, job.count * (part + 1) // parts)


@numba.njit(cache=True)
def find_part(job: Any, first: int, last: int) -> None:
    """:func:`find_rows` for the ids from ``first`` to ``last`` of one table."""
    num_ids, per_id, unseen_row = job.num_ids, job.rows_per_id, np.int32(job.unseen_row)
    ids = array_at(job.ids + first * 8, last - first, np.int64(0))
    map_rows = array_at(job.map_rows, (num_ids + 1) * per_id, np.int32(0))
    rows = array_at(job.rows + first * per_id * 4, (last - first) * per_id, np.int32(0))
    if len(map_rows) == 0:
        for i in range(len(ids)):
            rows[i] = np.int32(ids[i]) if 0 <= ids[i] < num_ids else unseen_row
        return
    for i in range(len(ids)):
        source = ids[i] if 0 <= ids[i] < num_ids else num_ids
        for h in range(per_id):
            rows[i * per_id + h] = map_rows[source * per_id + h]


@numba.njit(cache=True)
def find_used(
    ids: Longs, offsets: Longs, starts: Longs, map_rows: Ints, map_weights: Floats
) -> tuple[Ints, Floats, Longs]:
    """The rows of ids that have unlike many of them.

    Args:
        ids: int64 [n]; one outside ``[0, num_ids)`` has the rows of the map's last line.
        offsets: int64 [B + 1] of the bags of ids, or [0] for a bag for each.
        starts: int64 [num_ids + 2], where the rows of each id begin, those of the last line last.
        map_rows: int32 [P].
        map_weights: float32 [P].

    Returns:
        rows int32 [M] and weights float32 [M] of the ids, one after the other, and int64 [B + 1] of their bags.
    """
    num_ids, total = len(starts) - 2, 0
    ends = np.empty(len(ids) + 1, np.int64)
    ends[0] = 0
    for i in range(len(ids)):
        source = ids[i] if 0 <= ids[i] < num_ids else num_ids
        total += starts[source + 1] - starts[source]
        ends[i + 1] = total
    rows, weights = np.empty(total, np.int32), np.empty(total, np.float32)
    for i in range(len(ids)):
        first = starts[ids[i] if 0 <= ids[i] < num_ids else num_ids]
        for place in range(ends[i + 1] - ends[i]):
            rows[ends[i] + place] = map_rows[first + place]
            weights[ends[i] + place] = map_weights[first + place]
    return rows, weights, ends[offsets] if len(offsets) else ends


@numba.njit(cache=True)
def first_fall(offsets: Longs) -> int:
    """First i with ``offsets[i + 1] < offsets[i]``, -1 if there is none."""
    for i in range(len(offsets) - 1):
        if offsets[i + 1] < offsets[i]:
            return i
    return -1
