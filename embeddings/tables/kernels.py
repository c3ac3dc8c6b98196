"""Compiled loops of the tables: pool rows, and update each touched row once.

Several tables are one call: its tasks are tables, or parts of tables where there are fewer tables than threads. The
update works on lookups grouped by row: each part of a table owns some of its rows, brings their lookups together with a
stable radix sort, sums each group's gradient in the order of the batch, and reads and writes the row once. So no
gradient is materialised by lookup, threads wait for each other only at the end, and the result does not depend on their
number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from embeddings.tables.addresses import Floats, Ints, Longs, address_of, array_at
from embeddings.tables.find import FIND, find_part
from embeddings.tables.vector import (
    AHEAD,
    LINE,
    adagrad,
    adam,
    add_scaled,
    add_stored,
    prefetch_row,
    sum_rows,
    sum_squares,
    sum_stored,
)

Pairs = npt.NDArray[np.uint64]
Jobs = npt.NDArray[np.void]

JOB = np.dtype(
    [(name, np.int64) for name in (
        "table", "num_rows", "dim", "value_bytes", "state", "state_dim", "second", "steps", "rows", "lookups",
        "weights", "offsets", "bags", "pooled", "pooled_step",
    )]
)  # fmt: skip
"""One table of a call. Addresses: ``table`` float32 [num_rows, dim] where ``value_bytes`` is 4, bfloat16 where it is 2,
int8 [num_rows, dim + 1] (:mod:`embeddings.tables.int8`) where it is 1; ``state`` and, for lazy Adam, ``second`` float32
[num_rows, state_dim]; ``rows`` int32 [lookups]; ``weights`` float32 [lookups], 0 for ones; ``offsets`` int64 [bags + 1]
or 0 for bags of one lookup; ``pooled`` float32 [dim] every ``pooled_step`` bytes, the bags' sums in :func:`pool_tables`
and their gradients in :func:`update_tables`. ``steps`` counts the updates before this one; with the row it decides how
what is below float32 is rounded.
"""
KINDS = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": 2, "lazy_adam": 3}
UNEVEN = 1.25  # work of the largest table over the mean from which on tables are divided
BLOCK = 32  # rows of which the gradients are summed before they are updated
LOOKUPS_PER_THREAD = 2048  # below this, waking a thread takes longer than its work
_HALF, _LOW_HALF = np.uint64(32), np.uint64(0xFFFFFFFF)
_U, _ONE = np.uint64, np.uint32(1)  # unsigned: numba then does not ask whether an index counts from the end


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


@numba.njit(cache=True)
def row_bytes_of(job: Any) -> Any:
    """Bytes from one row of a table to the next; int8 rows end with their exponent."""
    return job.dim * job.value_bytes + (job.value_bytes == 1)


@numba.njit(parallel=True, cache=True)
def pool_tables(jobs: Jobs, finds: Jobs, parts: int) -> None:
    """Sum the rows of each bag into ``pooled``.

    Args:
        jobs: ``JOB`` [T]; the state is not used.
        finds: ``FIND`` [T] to find the rows first, or [0] where they are there.
        parts: pieces of the work of one table.
    """
    for task in numba.prange(len(jobs) * parts):
        t, part = task // parts, task % parts
        job = jobs[t]
        offsets = array_at(job.offsets, job.bags + 1, np.int64(0))
        first, last = job.bags * part // parts, job.bags * (part + 1) // parts
        begin, end = (offsets[first], offsets[last]) if len(offsets) else (first, last)
        if len(finds) and finds[t].count:
            find_part(finds[t], begin // finds[t].rows_per_id, end // finds[t].rows_per_id)
        for bag in range(first, last):
            start = offsets[bag] if len(offsets) else bag
            stop = offsets[bag + 1] if len(offsets) else bag + 1
            out = job.pooled + bag * job.pooled_step
            where = job.rows, job.weights, start, stop, end - 1, out
            sum_stored(job.value_bytes, job.dim, job.table, row_bytes_of(job), where)


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
    job = (at[0], len(table), dim, 4, 0, 0, 0, 0, at[1], len(rows), 0, at[2], bags, at[3], dim * 4)
    with threads_for(len(rows)) as threads:
        pool_tables(records([job], JOB), records([], FIND), threads)


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
    bags = len(offsets) - 1 if len(offsets) else len(rows)
    low = _bits(num_rows) // 2
    if _bits(num_rows) - low + _bits(bags) <= 32:
        return _radix_sort(rows, weights, offsets, bags, num_rows, part, parts, np.empty(0, np.uint32))
    return _radix_sort(rows, weights, offsets, bags, num_rows, part, parts, np.empty(0, np.uint64))


@numba.njit(cache=True)
def _bits(count: int) -> int:
    """Bits of the numbers below ``count``."""
    bits = 0
    while count - 1 >> bits > 0:
        bits += 1
    return bits


@numba.njit(cache=True)
def _counts_to_places(counts: Any) -> None:
    """Turn the count of each digit, uint32, into the place of its first lookup, in place."""
    total = np.uint32(0)
    for digit in range(len(counts)):
        count = counts[digit]
        counts[digit] = total
        total += count


@numba.njit(cache=True)
def _radix_sort(
    rows: Ints, weights: Floats, offsets: Longs, bags: int, num_rows: int, part: int, parts: int, like: Any
) -> tuple[Pairs, Floats]:
    """:func:`group_by_row` in two stable counting sorts, by the low half of the row's bits and then by the high half.

    Between them a lookup is a key of the type of ``like``: the high half and the bag. Its place tells the low half.
    """
    row_bits, bag_bits = _bits(num_rows), _U(_bits(bags))
    low_bits = _U(row_bits // 2)
    low_mask, bag_mask = (_U(1) << low_bits) - _U(1), (_U(1) << bag_bits) - _U(1)
    places = np.zeros(low_mask + _U(2), np.uint32)
    for i in range(len(rows)):
        places[_U(rows[i]) & low_mask] += _ONE
    _counts_to_places(places)
    first = np.searchsorted(places[:-1], len(rows) * part // parts) if part else 0
    last = np.searchsorted(places[:-1], len(rows) * (part + 1) // parts) if part + 1 < parts else len(places) - 1
    starts = places[first : last + 1].copy()
    keys, scales = np.empty(len(rows), like.dtype), np.empty(len(weights), np.float32)
    for bag in range(bags):
        start = _U(offsets[bag]) if len(offsets) else _U(bag)
        stop = _U(offsets[bag + 1]) if len(offsets) else _U(bag + 1)
        for i in range(start, stop):
            row = _U(rows[i])
            place = places[row & low_mask]
            places[row & low_mask] = place + _ONE
            keys[place] = (row >> low_bits) << bag_bits | _U(bag)
            if len(weights):
                scales[place] = weights[i]
    keys, scales = keys[starts[0] : starts[-1]], scales[starts[0] : starts[-1]]
    highs = np.zeros(1 << (row_bits - row_bits // 2), np.uint32)
    for i in range(len(keys)):
        highs[_U(keys[i]) >> bag_bits] += _ONE
    _counts_to_places(highs)
    pairs, sorted_scales = np.empty(len(keys), np.uint64), np.empty_like(scales)
    for digit in range(len(starts) - 1):
        for i in range(_U(starts[digit] - starts[0]), _U(starts[digit + 1] - starts[0])):
            key = _U(keys[i])
            high = key >> bag_bits
            place = highs[high]
            highs[high] = place + _ONE
            pairs[place] = (high << low_bits | _U(first + digit)) << _HALF | (key & bag_mask)
            if len(scales):
                sorted_scales[place] = scales[i]
    return pairs, sorted_scales


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
def _drawn(row: Any, step: Any) -> Any:
    """32 bits for a row in a step, by the mixer of SplitMix64 (Steele et al. 2014)."""
    bits = _U(row) << _HALF | (_U(step) & _LOW_HALF)
    bits = (bits ^ bits >> _U(30)) * _U(0xBF58476D1CE4E5B9)
    bits = (bits ^ bits >> _U(27)) * _U(0x94D049BB133111EB)
    return np.int64(bits >> _HALF)


@numba.njit(cache=True)
def _update_rows(
    job: Any, rows: Longs, gradients: Longs, count: int, squares: Floats, kind: int, rates: Floats
) -> None:
    """Formulas of :class:`embeddings.tables.spec.OptimizerSpec` for the first ``count`` rows.

    ``gradients`` are addresses of float32 [dim], ``squares`` the means of their squares for row-wise Adagrad. One loop
    follows the other, so that a row's square root and division do not wait for those of the row before.
    """
    dim, row_bytes, stored, lr, eps = job.dim, job.dim * 4, row_bytes_of(job), rates[0], rates[1]
    if kind == 2:
        for i in range(count):
            place = rows[i] * row_bytes
            adagrad(dim, job.table + place, job.state + place, gradients[i], lr, eps)
        return
    if kind == 3:
        for i in range(count):
            place = rows[i] * row_bytes
            adam(dim, job.table + place, (job.state + place, job.second + place), gradients[i], rates)
        return
    scales, sums = squares, array_at(job.state, job.num_rows, np.float32(0))
    for i in range(count):
        if kind == 1:
            sums[rows[i]] += squares[i]
            scales[i] = -lr / (np.sqrt(sums[rows[i]]) + eps)
        else:
            scales[i] = -lr
    for i in range(count):
        at = job.table + rows[i] * stored
        add_stored(job.value_bytes, dim, at, scales[i], gradients[i], _drawn(rows[i], job.steps))


@numba.njit(parallel=True, cache=True)
def update_tables(jobs: Jobs, rates: Floats, kinds: Longs, parts: int) -> None:
    """One update of each touched row with its summed gradient, in place.

    Args:
        jobs: ``JOB`` [T]; ``state_dim`` is 1 for row-wise Adagrad, D for Adagrad, 0 for SGD.
        rates: float32 [T, 6] of each table: learning rate, eps, and for lazy Adam b1, b2 and sqrt(1 - b2^t), with
            lr / (1 - b1^t) for the rate; then weight decay.
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
        _update_groups(job, pairs, scales, kinds[t], rates[t])


@numba.njit(cache=True)
def _update_groups(job: Any, pairs: Pairs, weights: Floats, kind: int, rates: Floats) -> None:
    """Update each row of sorted pairs; the gradient of a row looked up once is read where it lies.

    A block of rows is asked for while their gradients are summed, and updated after that.
    """
    dim, count, last, i = job.dim, len(pairs), len(pairs) - 1, 0
    row_bytes, stored, state_bytes = dim * 4, row_bytes_of(job), job.state_dim * 4
    sum_bytes = (row_bytes + LINE - 1) // LINE * LINE
    space = np.empty((sum_bytes * BLOCK + LINE) // 4, np.float32)
    sums = (address_of(space) + LINE - 1) // LINE * LINE
    rows, gradients = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    squares = np.empty(BLOCK, np.float32)
    bags, scales = address_of(pairs), address_of(weights) if len(weights) else 0
    weight_decay = rates[5]
    as_it_is = len(weights) == 0 and weight_decay == 0
    while i < count:
        groups = 0
        while groups < BLOCK and i < count:
            start, high = i, pairs[i] >> _HALF
            row = np.int64(high)
            prefetch_row(job.table, row, stored)
            prefetch_row(job.state, row, state_bytes)
            if kind == 3:
                prefetch_row(job.second, row, state_bytes)
            i += 1
            while i < count and pairs[i] >> _HALF == high:
                i += 1
            if as_it_is and i - start == 1:
                gradient = job.pooled + np.int64(pairs[start] & _LOW_HALF) * job.pooled_step
                later = np.int64(pairs[min(start + AHEAD, last)] & _LOW_HALF)
                prefetch_row(job.pooled + later * job.pooled_step, 0, row_bytes)
            else:
                gradient = sums + groups * sum_bytes
                sum_rows(dim, job.pooled, job.pooled_step, bags, 8, scales, start, i, last, gradient)
            if weight_decay != 0:
                add_scaled(dim, gradient, weight_decay, job.table + row * row_bytes)
            rows[groups], gradients[groups] = row, gradient
            if kind == 1:
                squares[groups] = sum_squares(dim, gradient) / np.float32(dim)
            groups += 1
        _update_rows(job, rows, gradients, groups, squares, kind, rates)
    space[0] = 0  # its last use: numba frees an array after that, whatever its address is used for
