"""Compiled loops of the sparse table: pool rows, update them, and change which of their entries are stored.

A row is found through the start of its block of rows and the set bits between: half a byte a row instead of a pointer.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from embeddings.tables.addresses import Floats, Ints, Longs, address_of
from embeddings.tables.kernels import Pairs, group_by_row, group_starts
from embeddings.tables.masked_vector import WORD, count_ones, expand_add, pack
from embeddings.tables.vector import AHEAD, adagrad, add_scaled, prefetch_row, sum_rows, sum_squares

Words = npt.NDArray[np.uint16]
Bits = npt.NDArray[np.uint32]

BLOCK = 16  # rows between two known starts
_HALF = np.uint64(32)


@numba.njit(cache=True)
def block_starts(mask: Words) -> Longs:
    """Where the values of every ``BLOCK``-th row begin, and their number.

    Args:
        mask: uint16 [R, words].

    Returns:
        int64 [ceil(R / BLOCK) + 1].
    """
    rows, words = mask.shape
    blocks, at = -(-rows // BLOCK), address_of(mask)
    starts = np.empty(blocks + 1, np.int64)
    starts[0] = 0
    for block in range(blocks):
        inside = min(BLOCK, rows - block * BLOCK)
        starts[block + 1] = starts[block] + count_ones(at + block * BLOCK * words * 2, inside * words)
    return starts


@numba.njit(cache=True)
def start_of(mask: Words, starts: Longs, row: Any) -> Any:
    """Where the values of a row begin."""
    words, first = mask.shape[1], row // BLOCK * BLOCK
    return starts[row // BLOCK] + count_ones(address_of(mask) + first * words * 2, (row - first) * words)


@numba.njit(parallel=True, cache=True)
def pool_sparse(
    mask: Words, starts: Longs, values: Floats, rows: Ints, weights: Floats, offsets: Longs, out: Floats, parts: int
) -> None:
    """Write the sum of each bag's rows.

    Args:
        mask: uint16 [R, words].
        starts: int64 [blocks + 1], of :func:`block_starts`.
        values: float32 [nnz].
        rows: int32 [M].
        weights: float32 [M], or [0] for ones.
        offsets: int64 [B + 1] of the bags, or [0] where lookup i is bag i.
        out: float32 [B, D].
        parts: pieces of the work.
    """
    bags, words, last = len(out), mask.shape[1], len(rows) - 1
    table, from_, to = address_of(mask), address_of(values), address_of(out)
    for part in numba.prange(parts):
        for bag in range(bags * part // parts, bags * (part + 1) // parts):
            out[bag] = 0
            start = offsets[bag] if len(offsets) else bag
            stop = offsets[bag + 1] if len(offsets) else bag + 1
            for i in range(start, stop):
                prefetch_row(table, np.int64(rows[min(i + 2 * AHEAD, last)]), words * 2)
                later = start_of(mask, starts, np.int64(rows[min(i + AHEAD, last)]))
                prefetch_row(from_ + later * 4, 0, words * WORD * 2)
                row = np.int64(rows[i])
                at = from_ + start_of(mask, starts, row) * 4
                scale = weights[i] if len(weights) else np.float32(1)
                expand_add(table + row * words * 2, words, at, scale, to + bag * out.shape[1] * 4)


@numba.njit(parallel=True, cache=True)
def update_sparse(
    mask: Words, starts: Longs, values: Floats, state: Floats, rows: Ints, weights: Floats, offsets: Longs,
    gradients: Floats, kind: int, rates: Floats, parts: int,
) -> None:  # fmt: skip
    """One update of the stored entries of each touched row with its summed gradient, in place.

    Args:
        mask: uint16 [R, words].
        starts: int64 [blocks + 1].
        values: float32 [nnz].
        state: float32 [R] for row-wise Adagrad, [nnz] for Adagrad, [0] for SGD.
        rows: int32 [M].
        weights: float32 [M], or [0] for ones.
        offsets: int64 [B + 1] of the bags, or [0] where lookup i is bag i.
        gradients: float32 [B, D].
        kind: of ``kernels.KINDS``.
        rates: float32 [3], learning rate, eps and weight decay.
        parts: pieces of the work, which own the rows of one hash each.
    """
    (num_rows, words), dim = mask.shape, gradients.shape[1]
    lr, eps, weight_decay = rates[0], rates[1], rates[2]
    for part in numba.prange(parts):
        pairs, scales = group_by_row(rows, weights, offsets, num_rows, part, parts)
        groups, last = group_starts(pairs), len(pairs) - 1
        total, packed = np.empty(dim, np.float32), np.empty(words * WORD, np.float32)
        scale = address_of(scales) if len(scales) else 0
        for group in range(len(groups) - 1):
            ahead = np.int64(pairs[groups[min(group + 2 * AHEAD, len(groups) - 2)]] >> _HALF)
            prefetch_row(address_of(mask), ahead, words * 2)
            ahead = np.int64(pairs[groups[min(group + AHEAD, len(groups) - 2)]] >> _HALF)
            prefetch_row(address_of(values) + start_of(mask, starts, ahead) * 4, 0, words * WORD * 2)
            row = np.int64(pairs[groups[group]] >> _HALF)
            at, bits = start_of(mask, starts, row), address_of(mask) + row * words * 2
            count = count_ones(bits, words)
            sum_rows(
                dim, address_of(gradients), dim * 4, address_of(pairs), 8, scale, groups[group], groups[group + 1],
                last, address_of(total),
            )  # fmt: skip
            pack(bits, words, address_of(total), address_of(packed))
            to, gradient = address_of(values) + at * 4, address_of(packed)
            if weight_decay != 0:
                add_scaled(count, gradient, weight_decay, to)
            if kind == 0:
                add_scaled(count, to, -lr, gradient)
            elif kind == 1 and count > 0:
                state[row] += sum_squares(count, gradient) / np.float32(count)
                add_scaled(count, to, -lr / (np.sqrt(state[row]) + eps), gradient)
            elif kind == 2:
                adagrad(count, to, address_of(state) + at * 4, gradient, lr, eps)
        total[0], packed[0] = 0, 0  # their last use: numba frees an array after that, whatever its address is used for
        if len(scales):
            scales[0] = 0


@numba.njit(cache=True)
def row_gradients(pairs: Pairs, weights: Floats, gradients: Floats) -> tuple[Ints, Floats]:
    """The touched rows and their summed gradients.

    Args:
        pairs: uint64 [M] of ``kernels.group_by_row``.
        weights: float32 [M] or [0] of the same.
        gradients: float32 [B, D].

    Returns:
        rows: int32 [n], rising.
        sums: float32 [n, D].
    """
    groups, dim, last = group_starts(pairs), gradients.shape[1], len(pairs) - 1
    rows, sums = np.empty(len(groups) - 1, np.int32), np.empty((len(groups) - 1, dim), np.float32)
    scale = address_of(weights) if len(weights) else 0
    for group in range(len(rows)):
        rows[group] = np.int32(pairs[groups[group]] >> _HALF)
        sum_rows(
            dim, address_of(gradients), dim * 4, address_of(pairs), 8, scale, groups[group], groups[group + 1], last,
            address_of(sums[group]),
        )  # fmt: skip
    return rows, sums


@numba.njit(cache=True)
def add_to_window(rows: Ints, sums: Floats, slots: Ints, used: int, window_rows: Ints, window: Floats) -> int:
    """Add the gradients of rows to those that the window has of them; rows that it has not get the next slots.

    Args:
        rows: int32 [n], distinct.
        sums: float32 [n, D].
        slots: int32 [R], where each row is in the window, -1 for nowhere; changed in place.
        used: slots in use.
        window_rows: int32 [capacity], enough for all of them; changed in place.
        window: float32 [capacity, D], changed in place.

    Returns:
        Slots in use now.
    """
    for i in range(len(rows)):
        slot = slots[rows[i]]
        if slot < 0:
            slot = used
            slots[rows[i]], window_rows[used] = used, rows[i]
            window[used] = 0
            used += 1
        for column in range(sums.shape[1]):
            window[slot, column] += sums[i, column]
    return used


@numba.njit(cache=True)
def pack_rows(mask: Words, starts: Longs, rows: Ints, full: Floats, out: Floats) -> None:
    """Write the stored columns of full rows, float32 [n, D], to where the values of these rows are in [nnz]."""
    words = mask.shape[1]
    for i in range(len(rows)):
        row = np.int64(rows[i])
        to = address_of(out) + start_of(mask, starts, row) * 4
        pack(address_of(mask) + row * words * 2, words, address_of(full[i]), to)


@numba.njit(parallel=True, cache=True)
def adam_values(
    values: Floats, exp_avg: Floats, exp_avg_sq: Floats, gradients: Floats, betas: Any, step_size: Any,
    correction: Any, eps: Any, weight_decay: Any,
) -> None:  # fmt: skip
    """Adam of ``adam_kernel.update_adam`` for float32 [nnz] each."""
    b1, b2 = betas
    one = np.float32(1)
    for i in numba.prange(len(values)):
        g = gradients[i] + weight_decay * values[i]
        m = b1 * exp_avg[i] + (one - b1) * g
        v = b2 * exp_avg_sq[i] + (one - b2) * g * g
        exp_avg[i], exp_avg_sq[i] = m, v
        values[i] -= step_size * m / (np.sqrt(v) / correction + eps)


@numba.njit(cache=True)
def draw_mask(counts: Longs, random: Longs, dim: int, mask: Words) -> None:
    """Give row r ``counts[r]`` random columns.

    Args:
        counts: int64 [n].
        random: int64 [n, D], any non-negative numbers.
        dim: D.
        mask: uint16 [n, words], set.
    """
    columns = np.empty(dim, np.int64)
    for r in range(len(counts)):
        mask[r] = 0
        for c in range(dim):
            columns[c] = c
        for k in range(counts[r]):  # Fisher and Yates
            other = k + random[r, k] % (dim - k)
            columns[k], columns[other] = columns[other], columns[k]
            mask[r, columns[k] // WORD] |= np.uint16(1) << np.uint16(columns[k] % WORD)
