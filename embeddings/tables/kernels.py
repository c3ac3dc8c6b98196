"""Compiled loops of the tables: find rows, pool them, and update each touched row once.

Several tables are one call: its tasks are tables, or parts of tables where there are fewer tables than threads. The
update works on lookups grouped by row: each part of a table owns the rows of one hash, picks their lookups from the
batch, brings equal rows together with a stable radix sort, sums each group's gradient in the order of the batch, and
reads and writes the row once. So nothing is materialised by lookup, threads wait for each other only at the end, and
the result does not depend on their number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from embeddings.tables.vector import (
    AHEAD,
    LINE,
    adagrad,
    add_scaled,
    address_of,
    array_at,
    prefetch_row,
    sum_rows,
    sum_squares,
)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.uint64]
Jobs = npt.NDArray[np.void]

JOB = np.dtype(
    [(name, np.int64) for name in (
        "table", "num_rows", "dim", "state", "state_dim", "rows", "lookups", "weights", "offsets", "bags", "pooled",
    )]
)  # fmt: skip
"""One table of a call. Addresses: ``table`` float32 [num_rows, dim]; ``state`` float32 [num_rows, state_dim]; ``rows``
int32 [lookups]; ``weights`` float32 [lookups], 0 for ones; ``offsets`` int64 [bags + 1], 0 for one lookup a bag;
``pooled`` float32 [bags, dim], the bags' sums in :func:`pool_tables` and their gradients in :func:`update_tables`.
"""
FIND = np.dtype(
    [(name, np.int64) for name in ("ids", "count", "map_rows", "rows_per_id", "num_ids", "unseen_row", "rows")]
)
"""Ids of one table. Addresses: ``ids`` int64 [count]; ``map_rows`` int32 [num_ids + 1, rows_per_id], 0 where id i has
the row i; ``rows`` int32 [count * rows_per_id], written.
"""
MAX_DIGIT = 12  # bits sorted in one pass
KINDS = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": 2}
UNEVEN = 1.25  # work of the largest table over the mean from which on tables are divided
LOOKUPS_PER_THREAD = 2048  # below this, waking a thread takes longer than its work
_HALF, _LOW_HALF = np.uint64(32), np.uint64(0xFFFFFFFF)
_SPREAD = np.uint64(0x9E3779B1)  # 2^32 / golden ratio: consecutive rows get distant hashes


@contextlib.contextmanager
def threads_for(lookups: int) -> Iterator[int]:
    """Run the kernels inside on as many threads as ``lookups`` rows keep busy; results do not depend on it.

    Yields:
        The number of threads.
    """
    available = numba.get_num_threads()
    threads: int = max(1, min(available, lookups // LOOKUPS_PER_THREAD))
    if threads == available:
        yield threads
        return
    numba.set_num_threads(threads)
    try:
        yield threads
    finally:
        numba.set_num_threads(available)


def parts_for(lookups: Sequence[int], threads: int) -> int:
    """Parts of each table that keep the threads equally busy: 1 where whole tables of ``lookups`` rows do."""
    even = len(lookups) % threads == 0 and max(lookups) * len(lookups) <= UNEVEN * sum(lookups)
    return 1 if even else threads


def records(lines: Sequence[tuple[int, ...]], kind: np.dtype[np.void]) -> Jobs:
    """Lines of ``JOB`` or ``FIND`` as an array [T]."""
    return np.array(lines, np.int64).view(kind).reshape(-1)


@numba.njit(parallel=True, cache=True)
def find_rows(jobs: Jobs, parts: int) -> None:
    """Write the rows of each id; an id outside ``[0, num_ids)`` has the rows of the map's last line.

    Args:
        jobs: ``FIND`` [T].
        parts: pieces of the work of one table.
    """
    for task in numba.prange(len(jobs) * parts):
        job, part = jobs[task // parts], task % parts
        num_ids, per_id = job.num_ids, job.rows_per_id
        ids = array_at(job.ids, job.count, np.int64(0))
        map_rows = array_at(job.map_rows, (num_ids + 1) * per_id, np.int32(0))
        rows = array_at(job.rows, job.count * per_id, np.int32(0))
        for i in range(job.count * part // parts, job.count * (part + 1) // parts):
            known = 0 <= ids[i] < num_ids
            if len(map_rows) == 0:
                rows[i] = ids[i] if known else job.unseen_row
            else:
                source = ids[i] if known else num_ids
                for h in range(per_id):
                    rows[i * per_id + h] = map_rows[source * per_id + h]


@numba.njit(cache=True)
def first_fall(offsets: Longs) -> int:
    """First i with ``offsets[i + 1] < offsets[i]``, -1 if there is none."""
    for i in range(len(offsets) - 1):
        if offsets[i + 1] < offsets[i]:
            return i
    return -1


@numba.njit(parallel=True, cache=True)
def pool_tables(jobs: Jobs, parts: int) -> None:
    """Sum the rows of each bag into ``pooled``.

    Args:
        jobs: ``JOB`` [T]; the state is not used.
        parts: pieces of the work of one table.
    """
    for task in numba.prange(len(jobs) * parts):
        job, part = jobs[task // parts], task % parts
        offsets = array_at(job.offsets, job.bags + 1, np.int64(0))
        row_bytes = job.dim * 4
        for bag in range(job.bags * part // parts, job.bags * (part + 1) // parts):
            start = offsets[bag] if len(offsets) else bag
            stop = offsets[bag + 1] if len(offsets) else bag + 1
            out = job.pooled + bag * row_bytes
            sum_rows(job.dim, job.table, job.rows, 4, job.weights, start, stop, job.lookups - 1, out)


def pool_rows(table: Floats, rows: Ints, offsets: Longs, out: Floats) -> None:
    """:func:`pool_tables` of one array.

    Args:
        table: float32 [R, D]; all arrays are C-contiguous.
        rows: int32 [M].
        offsets: int64 [B + 1].
        out: float32 [B, D], the sum of ``table[rows[offsets[b]:offsets[b + 1]]]``.
    """
    bags, dim = out.shape
    at = [array.ctypes.data for array in (table, rows, offsets, out)]
    job = (at[0], len(table), dim, 0, 0, at[1], len(rows), 0, at[2], bags, at[3])
    with threads_for(len(rows)) as threads:
        pool_tables(records([job], JOB), threads)


@numba.njit(cache=True)
def _lookups_of(rows: Ints, weights: Floats, offsets: Longs, part: int, parts: int) -> tuple[Pairs, Floats]:
    """The (row, bag) pairs and the weights of the rows that ``part`` owns, in the order of the batch."""
    pairs, scales = np.empty(len(rows), np.uint64), np.empty(len(weights), np.float32)
    bags, count = len(offsets) - 1 if len(offsets) else len(rows), 0
    for bag in range(bags):
        start = offsets[bag] if len(offsets) else bag
        stop = offsets[bag + 1] if len(offsets) else bag + 1
        for i in range(start, stop):
            row = np.uint64(rows[i])
            pairs[count] = row << _HALF | np.uint64(bag)
            if len(weights):
                scales[count] = weights[i]
            count += (row * _SPREAD & _LOW_HALF) * np.uint64(parts) >> _HALF == np.uint64(part)
    return pairs[:count], scales[: min(count, len(scales))]


@numba.njit(cache=True)
def _radix_pass(pairs: Pairs, scales: Floats, shift: int, bits: int, to: Pairs, to_scales: Floats) -> None:
    """Stable counting sort by ``bits`` bits from bit ``shift`` on; the scales move along."""
    counts = np.zeros(1 << bits, np.int32)
    mask, low = np.uint64((1 << bits) - 1), np.uint64(shift)
    for pair in pairs:
        counts[(pair >> low) & mask] += np.int32(1)
    total = np.int32(0)
    for digit in range(len(counts)):
        count = counts[digit]
        counts[digit] = total
        total += count
    for i in range(len(pairs)):
        digit = (pairs[i] >> low) & mask
        place = counts[digit]
        to[place] = pairs[i]
        if len(scales):
            to_scales[place] = scales[i]
        counts[digit] = place + np.int32(1)


@numba.njit(cache=True)
def group_by_row(
    rows: Ints, weights: Floats, offsets: Longs, num_rows: int, part: int = 0, parts: int = 1
) -> tuple[Pairs, Floats]:
    """Sort lookups by row; within a row they keep the order of the batch.

    Args:
        rows: int32 [M].
        weights: float32 [M], or [0] for ones.
        offsets: int64 [B + 1] of the bags, or [0] where lookup i is bag i.
        num_rows: R.
        part: only lookups of the rows that this part owns.
        parts: number of parts that share the rows.

    Returns:
        pairs: uint64 [n], the row in the high 32 bits and the bag in the low 32; n = M for one part.
        weights: float32 [n] in the order of the pairs, or [0].
    """
    pairs, scales = _lookups_of(rows, weights, offsets, part, parts)
    spare, spare_scales = np.empty_like(pairs), np.empty_like(scales)
    bits = 1
    while num_rows - 1 >> bits:
        bits += 1
    passes = -(-bits // MAX_DIGIT)
    digit = -(-bits // passes)
    for turn in range(passes):
        _radix_pass(pairs, scales, 32 + turn * digit, digit, spare, spare_scales)
        pairs, spare, scales, spare_scales = spare, pairs, spare_scales, scales
    return pairs, scales


@numba.njit(cache=True)
def group_starts(pairs: Pairs) -> Longs:
    """Where each row begins in sorted pairs, and where the last one ends: int64 [groups + 1]."""
    starts = np.empty(len(pairs) + 1, np.int64)
    groups, before = 0, ~np.uint64(0)
    for i in range(len(pairs)):
        row = pairs[i] >> _HALF
        starts[groups] = i
        groups += row != before
        before = row
    starts[groups] = len(pairs)
    return starts[: groups + 1]


@numba.njit(cache=True)
def _update_row(job: Any, row: Any, gradient: Any, kind: int, lr: Any, eps: Any) -> None:
    """Formulas of :class:`embeddings.tables.spec.OptimizerSpec`; ``gradient`` is the address of float32 [dim]."""
    weights, state = job.table + row * job.dim * 4, job.state + row * job.state_dim * 4
    if kind == 0:
        add_scaled(job.dim, weights, -lr, gradient)
    elif kind == 1:
        sums = array_at(state, 1, np.float32(0))
        sums[0] += sum_squares(job.dim, gradient) / np.float32(job.dim)
        add_scaled(job.dim, weights, -lr / (np.sqrt(sums[0]) + eps), gradient)
    else:
        adagrad(job.dim, weights, state, gradient, lr, eps)


@numba.njit(parallel=True, cache=True)
def update_tables(jobs: Jobs, rates: Floats, kinds: Longs, parts: int) -> None:
    """One update of each touched row with its summed gradient, in place.

    Args:
        jobs: ``JOB`` [T]; ``state_dim`` is 1 for row-wise Adagrad, D for Adagrad, 0 for SGD.
        rates: float32 [T, 3], learning rate, eps and weight decay of each table.
        kinds: int64 [T], values of ``KINDS``.
        parts: pieces of the work of one table.
    """
    for task in numba.prange(len(jobs) * parts):
        t, part = len(jobs) - 1 - task // parts, task % parts  # what forward read last is still in cache
        job = jobs[t]
        rows = array_at(job.rows, job.lookups, np.int32(0))
        weights = array_at(job.weights, job.lookups, np.float32(0))
        offsets = array_at(job.offsets, job.bags + 1, np.int64(0))
        pairs, scales = group_by_row(rows, weights, offsets, job.num_rows, part, parts)
        _update_groups(job, pairs, scales, kinds[t], rates[t, 0], rates[t, 1], rates[t, 2])


@numba.njit(cache=True)
def _update_groups(job: Any, pairs: Pairs, weights: Floats, kind: int, lr: Any, eps: Any, weight_decay: Any) -> None:
    """Update each row of sorted pairs; the gradient of a row looked up once is read where it lies."""
    dim, last, starts = job.dim, len(pairs) - 1, group_starts(pairs)
    row_bytes, state_bytes, groups = dim * 4, job.state_dim * 4, len(starts) - 1
    scales = address_of(weights) if len(weights) else 0
    space = np.empty(dim + LINE // 4, np.float32)
    total = (address_of(space) + LINE - 1) // LINE * LINE
    as_it_is = len(weights) == 0 and weight_decay == 0
    for group in range(-AHEAD, groups):
        if group + AHEAD < groups:
            later = pairs[starts[group + AHEAD]]
            prefetch_row(job.table, np.int64(later >> _HALF), row_bytes)
            prefetch_row(job.state, np.int64(later >> _HALF), state_bytes)
            prefetch_row(job.pooled, np.int64(later & _LOW_HALF), row_bytes)
        if group >= 0:
            start, stop = starts[group], starts[group + 1]
            row, gradient = np.int64(pairs[start] >> _HALF), total
            if as_it_is and stop - start == 1:
                gradient = job.pooled + np.int64(pairs[start] & _LOW_HALF) * row_bytes
            else:
                sum_rows(dim, job.pooled, address_of(pairs), 8, scales, start, stop, last, total)
            if weight_decay != 0:
                add_scaled(dim, total, weight_decay, job.table + row * row_bytes)
            _update_row(job, row, gradient, kind, lr, eps)
    space[0] = 0  # its last use: numba frees an array after that, whatever its address is used for


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
        i = np.searchsorted(pairs, np.uint64(first) << _HALF)
        for r in range(first, num_rows * (part + 1) // parts):
            row, start = np.uintp(r), i
            while i <= last and pairs[i] >> _HALF == np.uint64(r):
                i += 1
            sum_rows(dim, from_, bag, 8, scales, start, i, last, address_of(total))
            for d in range(dim):
                g = total[d] + weight_decay * table[row, d]
                m = b1 * exp_avg[row, d] + (one - b1) * g
                v = b2 * exp_avg_sq[row, d] + (one - b2) * g * g
                exp_avg[row, d], exp_avg_sq[row, d] = m, v
                table[row, d] -= step_size * m / (np.sqrt(v) / correction + eps)
