"""Compiled loops of the tables: find rows, pool them, and update each touched row once.

The update works on lookups grouped by row: each thread owns the rows of one hash, picks their lookups from the batch,
brings equal rows together with a stable radix sort, sums each group's gradient in the order of the batch, and reads and
writes the row once. So nothing is materialised by lookup, threads wait for each other only at the end, and the result
does not depend on their number.
"""

from __future__ import annotations

import contextlib
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

MAX_DIGIT = 12  # bits sorted in one pass
KINDS = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": 2}
LOOKUPS_PER_THREAD = 2048  # below this, waking a thread takes longer than its work
_HALF, _LOW_HALF = np.uint64(32), np.uint64(0xFFFFFFFF)
_SPREAD = np.uint64(0x9E3779B1)  # 2^32 / golden ratio: consecutive rows get distant hashes


@contextlib.contextmanager
def threads_for(lookups: int) -> Iterator[int]:
    """Run the kernels inside on as many threads as ``lookups`` rows keep busy; results do not depend on it.

    Yields:
        The number of threads, the ``parts`` that the kernels take.
    """
    available = numba.get_num_threads()
    parts: int = max(1, min(available, lookups // LOOKUPS_PER_THREAD))
    if parts == available:
        yield parts
        return
    numba.set_num_threads(parts)
    try:
        yield parts
    finally:
        numba.set_num_threads(available)


@numba.njit(cache=True)
def find_rows(ids: Longs, map_rows: Ints, num_ids: int, unseen_row: int, out: Ints) -> None:
    """Write the rows of each id; an id outside ``[0, num_ids)`` has the rows of the map's last line.

    Args:
        ids: int64 [n].
        map_rows: int32 [num_ids + 1, H], or [0, 0] where id i has row i.
        num_ids: N.
        unseen_row: row of unknown ids where there is no map.
        out: int32 [n * H].
    """
    for i in range(len(ids)):
        known = 0 <= ids[i] < num_ids
        if len(map_rows) == 0:
            out[i] = ids[i] if known else unseen_row
        else:
            source = ids[i] if known else num_ids
            for h in range(map_rows.shape[1]):
                out[i * map_rows.shape[1] + h] = map_rows[source, h]


@numba.njit(parallel=True, cache=True)
def pool_rows(table: Floats, rows: Ints, weights: Floats, offsets: Longs, parts: int, out: Floats) -> None:
    """Sum the rows of each bag into ``out``.

    Args:
        table: float32 [R, D], C-contiguous, as are all the arrays.
        rows: int32 [M].
        weights: float32 [M], or [0] for ones.
        offsets: int64 [B + 1], or [0] for B = M bags of one row.
        parts: pieces of the work, one a thread.
        out: float32 [B, D].
    """
    bags, dim = out.shape
    at, index, to = address_of(table), address_of(rows), address_of(out)
    scales = address_of(weights) if len(weights) else 0
    for part in numba.prange(parts):
        for bag in range(bags * part // parts, bags * (part + 1) // parts):
            start = offsets[bag] if len(offsets) else bag
            stop = offsets[bag + 1] if len(offsets) else bag + 1
            sum_rows(dim, at, index, 4, scales, start, stop, len(rows) - 1, to + bag * dim * 4)


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
def _starts(pairs: Pairs) -> Longs:
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
    table: Floats, state: Floats, rows: Ints, weights: Floats, offsets: Longs, gradients: Floats,
    parts: int, kind: int, lr: Any, eps: Any, weight_decay: Any,
) -> None:  # fmt: skip
    """One update of each touched row with its summed gradient.

    Args:
        table: float32 [R, D], changed in place.
        state: float32 [R, 1] for row-wise Adagrad, [R, D] for Adagrad, [1, 1] for SGD; changed in place.
        rows: int32 [M].
        weights: float32 [M], or [0] for ones.
        offsets: int64 [B + 1] of the bags, or [0] where lookup i is bag i.
        gradients: float32 [B, D], gradient of each bag.
        parts: pieces of the work, one a thread.
        kind: a value of ``KINDS``.
        lr: float32.
        eps: float32.
        weight_decay: float32.
    """
    for part in numba.prange(parts):
        pairs, scales = group_by_row(rows, weights, offsets, len(table), part, parts)
        _update_groups(table, state, pairs, scales, gradients, kind, lr, eps, weight_decay)


@numba.njit(cache=True)
def _update_groups(
    table: Floats, state: Floats, pairs: Pairs, weights: Floats, gradients: Floats,
    kind: int, lr: Any, eps: Any, weight_decay: Any,
) -> None:  # fmt: skip
    dim, last = table.shape[1], len(pairs) - 1
    at, state_at, bag, from_ = address_of(table), address_of(state), address_of(pairs), address_of(gradients)
    row_bytes, state_bytes = dim * 4, state.shape[1] * 4
    scales = address_of(weights) if len(weights) else 0
    total, starts = np.empty(dim, np.float32), _starts(pairs)
    groups = len(starts) - 1
    for group in range(-AHEAD, groups):
        if group + AHEAD < groups:
            later = np.int64(pairs[starts[group + AHEAD]] >> _HALF)
            prefetch_row(at, later, row_bytes)
            if kind != 0:
                prefetch_row(state_at, later, state_bytes)
        if group >= 0:
            sum_rows(dim, from_, bag, 8, scales, starts[group], starts[group + 1], last, address_of(total))
            row = np.uintp(pairs[starts[group]] >> _HALF)
            if weight_decay != 0:
                add_scaled(dim, address_of(total), weight_decay, at + np.int64(row) * row_bytes)
            _update_row(table, state, row, total, kind, lr, eps)


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
