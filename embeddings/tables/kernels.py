"""Compiled loops of the tables: find rows, pool them, and update each touched row once.

The update works on lookups grouped by row: a stable radix sort brings equal rows together, each group's gradient is
summed in the order of the batch, and one thread reads and writes the row. So nothing is materialised by lookup, and
the result does not depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from embeddings.tables.vector import AHEAD, add_scaled, address_of, prefetch_row, sum_rows, sum_squares

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.uint64]

MAX_DIGIT = 11  # bits sorted in one pass
CHUNKS = 16  # pieces of work; more than threads, so that they balance
KINDS = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": 2}
LOOKUPS_PER_THREAD = 2048  # below this, waking a thread takes longer than its work
_HALF = np.uint64(32)


@contextlib.contextmanager
def threads_for(lookups: int) -> Iterator[None]:
    """Run the kernels inside on as many threads as ``lookups`` rows keep busy; results do not depend on it."""
    available = numba.get_num_threads()
    numba.set_num_threads(max(1, min(available, lookups // LOOKUPS_PER_THREAD)))
    try:
        yield
    finally:
        numba.set_num_threads(available)


@numba.njit(parallel=True, cache=True)
def find_rows(ids: Longs, map_rows: Ints, num_ids: int, unseen_row: int, out: Ints) -> None:
    """Write the rows of each id; an id outside ``[0, num_ids)`` has the rows of the map's last line.

    Args:
        ids: int64 [n].
        map_rows: int32 [num_ids + 1, H], or [0, 0] where id i has row i.
        num_ids: N.
        unseen_row: row of unknown ids where there is no map.
        out: int32 [n * H].
    """
    for i in numba.prange(len(ids)):
        known = 0 <= ids[i] < num_ids
        if len(map_rows) == 0:
            out[i] = ids[i] if known else unseen_row
        else:
            source = ids[i] if known else num_ids
            for h in range(map_rows.shape[1]):
                out[i * map_rows.shape[1] + h] = map_rows[source, h]


@numba.njit(parallel=True, cache=True)
def pool_rows(table: Floats, rows: Ints, weights: Floats, offsets: Longs, out: Floats) -> None:
    """Sum the rows of each bag into ``out``.

    Args:
        table: float32 [R, D], C-contiguous, as are all the arrays.
        rows: int32 [M].
        weights: float32 [M], or [0] for ones.
        offsets: int64 [B + 1], or [0] for B = M bags of one row.
        out: float32 [B, D].
    """
    bags, dim = out.shape
    at, index, to = address_of(table), address_of(rows), address_of(out)
    scales = address_of(weights) if len(weights) else 0
    for chunk in numba.prange(CHUNKS):
        for bag in range(bags * chunk // CHUNKS, bags * (chunk + 1) // CHUNKS):
            start = offsets[bag] if len(offsets) else bag
            stop = offsets[bag + 1] if len(offsets) else bag + 1
            sum_rows(dim, at, index, 4, scales, start, stop, len(rows) - 1, to + bag * dim * 4)


@numba.njit(cache=True)
def _exclusive_sum(counts: Ints) -> None:
    """Counts [parts, digits] become where the pairs of each digit and part go: by digit, then by part."""
    total = np.int32(0)
    for digit in range(counts.shape[1]):
        for part in range(len(counts)):
            count = counts[part, digit]
            counts[part, digit] = total
            total += count


@numba.njit(parallel=True, cache=True)
def _radix_first(rows: Ints, offsets: Longs, bits: int, parts: int, out: Pairs) -> None:
    """Pair each row with its bag (its position without ``offsets``), stably sorted by the lowest ``bits`` bits."""
    bags = len(offsets) - 1 if len(offsets) else len(rows)
    counts, mask = np.zeros((parts, 1 << bits), np.int32), np.uint64((1 << bits) - 1)
    for part in numba.prange(parts):
        start, stop = bags * part // parts, bags * (part + 1) // parts
        for i in range(*((offsets[start], offsets[stop]) if len(offsets) else (start, stop))):
            counts[part, np.uint64(rows[i]) & mask] += np.int32(1)
    _exclusive_sum(counts)
    for part in numba.prange(parts):
        for bag in range(bags * part // parts, bags * (part + 1) // parts):
            for i in range(*((offsets[bag], offsets[bag + 1]) if len(offsets) else (bag, bag + 1))):
                row = np.uint64(rows[i])
                out[counts[part, row & mask]] = row << _HALF | np.uint64(bag)
                counts[part, row & mask] += np.int32(1)


@numba.njit(parallel=True, cache=True)
def _radix_pass(pairs: Pairs, shift: int, bits: int, parts: int, out: Pairs) -> None:
    """Stable counting sort by ``bits`` bits from bit ``shift`` on, in ``parts`` pieces at once."""
    size = len(pairs)
    counts = np.zeros((parts, 1 << bits), np.int32)
    mask, low = np.uint64((1 << bits) - 1), np.uint64(shift)
    for part in numba.prange(parts):
        for i in range(size * part // parts, size * (part + 1) // parts):
            counts[part, (pairs[i] >> low) & mask] += np.int32(1)
    _exclusive_sum(counts)
    for part in numba.prange(parts):
        for i in range(size * part // parts, size * (part + 1) // parts):
            digit = (pairs[i] >> low) & mask
            out[counts[part, digit]] = pairs[i]
            counts[part, digit] += np.int32(1)


@numba.njit(parallel=True, cache=True)
def _bags_and_weights(pairs: Pairs, bag_of: Longs, weights: Floats, out: Floats) -> None:
    """Replace positions by bags, and write each position's weight to ``out`` [M]."""
    for i in numba.prange(len(pairs)):
        position = np.int64(pairs[i] & np.uint64(0xFFFFFFFF))
        out[i] = weights[position]
        if len(bag_of):
            pairs[i] = (pairs[i] >> _HALF) << _HALF | np.uint64(bag_of[position])


def group_by_row(rows: Ints, weights: Floats, offsets: Longs, num_rows: int) -> tuple[Pairs, Floats]:
    """Sort lookups by row; within a row they keep the order of the batch.

    Args:
        rows: int32 [M].
        weights: float32 [M], or [0] for ones.
        offsets: int64 [B + 1] of the bags, or [0] where lookup i is bag i.
        num_rows: R.

    Returns:
        pairs: uint64 [M], the row in the high 32 bits and the bag in the low 32.
        weights: float32 [M] in the order of the pairs, or [0].
    """
    pairs, spare = np.empty(len(rows), np.uint64), np.empty(len(rows), np.uint64)
    bits = max(1, (num_rows - 1).bit_length())
    passes = math.ceil(bits / MAX_DIGIT)
    digit, parts = math.ceil(bits / passes), numba.get_num_threads()
    _radix_first(rows, offsets[:0] if len(weights) else offsets, digit, parts, pairs)
    for turn in range(1, passes):
        _radix_pass(pairs, 32 + turn * digit, digit, parts, spare)
        pairs, spare = spare, pairs
    if not len(weights):
        return pairs, weights
    bag_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) if len(offsets) else offsets
    sorted_weights = np.empty_like(weights)
    _bags_and_weights(pairs, bag_of, weights, sorted_weights)
    return pairs, sorted_weights


@numba.njit(cache=True)
def _starts(pairs: Pairs, begin: int, end: int) -> Any:
    """Where rows begin in ``pairs[begin:end]``, and where the last one ends, even if beyond: int64 [groups + 1]."""
    starts = np.empty(end - begin + 1, np.int64)
    groups = 0
    for i in range(begin, end):
        starts[groups] = i
        groups += i == 0 or pairs[i] >> _HALF != pairs[max(i, 1) - 1] >> _HALF
    stop = end
    while 0 < stop < len(pairs) and pairs[stop] >> _HALF == pairs[stop - 1] >> _HALF:
        stop += 1
    starts[groups] = stop
    return starts[: groups + 1]


@numba.njit(cache=True)
def _update_row(table: Floats, state: Floats, row: Any, gradient: Floats, kind: int, lr: Any, eps: Any) -> None:
    """Formulas of :class:`embeddings.tables.spec.OptimizerSpec`."""
    dim, from_ = len(gradient), address_of(gradient)
    to = address_of(table) + np.int64(row) * dim * 4
    if kind == 0:
        add_scaled(dim, to, -lr, from_)
    elif kind == 1:
        total = state[row, 0] + sum_squares(dim, from_) / np.float32(dim)
        state[row, 0] = total
        add_scaled(dim, to, -lr / (np.sqrt(total) + eps), from_)
    else:
        for d in range(dim):
            state[row, d] += gradient[d] * gradient[d]
            table[row, d] -= lr * gradient[d] / (np.sqrt(state[row, d]) + eps)


@numba.njit(parallel=True, cache=True)
def update_rows(
    table: Floats, state: Floats, pairs: Pairs, weights: Floats, gradients: Floats,
    kind: int, lr: Any, eps: Any, weight_decay: Any,
) -> None:  # fmt: skip
    """One update of each touched row with its summed gradient.

    Args:
        table: float32 [R, D], changed in place.
        state: float32 [R, 1] for row-wise Adagrad, [R, D] for Adagrad, [1, 1] for SGD; changed in place.
        pairs: uint64 [M] from :func:`group_by_row`.
        weights: float32 [M] or [0] from :func:`group_by_row`.
        gradients: float32 [B, D], gradient of each bag.
        kind: a value of ``KINDS``.
        lr: float32.
        eps: float32.
        weight_decay: float32.
    """
    dim, last = table.shape[1], len(pairs) - 1
    at, state_at, bag, from_ = address_of(table), address_of(state), address_of(pairs), address_of(gradients)
    state_bytes = state.shape[1] * 4
    scales = address_of(weights) if len(weights) else 0
    for chunk in numba.prange(CHUNKS):
        total = np.empty(dim, np.float32)
        starts = _starts(pairs, len(pairs) * chunk // CHUNKS, len(pairs) * (chunk + 1) // CHUNKS)
        groups = len(starts) - 1
        for group in range(groups):
            later = np.int64(pairs[starts[min(group + AHEAD, groups - 1)]] >> _HALF)
            prefetch_row(at, later, dim * 4)
            if kind != 0:
                prefetch_row(state_at, later, state_bytes)
            sum_rows(dim, from_, bag, 8, scales, starts[group], starts[group + 1], last, address_of(total))
            row = np.uintp(pairs[starts[group]] >> _HALF)
            if weight_decay != 0:
                add_scaled(dim, address_of(total), weight_decay, at + np.int64(row) * dim * 4)
            _update_row(table, state, row, total, kind, lr, eps)


@numba.njit(parallel=True, cache=True)
def update_adam(
    table: Floats, exp_avg: Floats, exp_avg_sq: Floats, pairs: Pairs, weights: Floats, gradients: Floats,
    betas: Any, step_size: Any, correction: Any, eps: Any, weight_decay: Any,
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
    for chunk in numba.prange(CHUNKS):
        total = np.empty(dim, np.float32)
        first = num_rows * chunk // CHUNKS
        i = np.searchsorted(pairs, np.uint64(first) << _HALF)
        for r in range(first, num_rows * (chunk + 1) // CHUNKS):
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
