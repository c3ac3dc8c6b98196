"""Which entries of a sparse table are stored: drop the smallest, grow others, and move what stays to its new place."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from embeddings.tables.addresses import Floats, Ints, Longs
from embeddings.tables.masked_vector import WORD
from embeddings.tables.sparse_kernels import Bits, Words

_SIGN = np.uint32(0x7FFFFFFF)
_HALF_KEY = np.uint32(16)
_ONE = np.uint32(1)


def select_smallest(magnitudes: Floats, count: int) -> tuple[int, int]:
    """What separates the ``count`` smallest magnitudes from the others.

    Args:
        magnitudes: float32 [n]; the sign does not count.
        count: from 0 to n.

    Returns:
        Bits of the ``count``-th smallest magnitude, and how many of those that equal it belong to the ``count``.
    """
    if count == 0:
        return 0, 0
    key, below = _kth(magnitudes.view(np.uint32), np.uint32(0), count)
    return int(key), count - int(below)


def select_largest(magnitudes: Floats, count: int) -> tuple[int, int]:
    """As :func:`select_smallest`, of the largest."""
    if count == 0:
        return int(_SIGN), 0
    key, below = _kth(magnitudes.view(np.uint32), _SIGN, count)
    return int(key ^ _SIGN), count - int(below)


@numba.njit(cache=True)
def _kth(keys: Bits, flip: Any, count: int) -> tuple[Any, int]:
    """The ``count``-th smallest of ``keys`` without sign, bits flipped, and how many are below: by two histograms."""
    high = np.zeros(1 << 15, np.int64)
    for key in keys:
        high[((key & _SIGN) ^ flip) >> _HALF_KEY] += 1
    below, top = 0, np.uint32(0)
    while below + high[top] < count:
        below += high[top]
        top += np.uint32(1)
    low = np.zeros(1 << 16, np.int64)
    for key in keys:
        flipped = (key & _SIGN) ^ flip
        if flipped >> _HALF_KEY == top:
            low[flipped & np.uint32(0xFFFF)] += 1
    rest = np.uint32(0)
    while below + low[rest] < count:
        below += low[rest]
        rest += np.uint32(1)
    return top << _HALF_KEY | rest, below


@numba.njit(cache=True)
def drop_below(mask: Words, values: Floats, threshold: int, ties: int) -> Words:
    """The mask without the entries whose magnitude is below the threshold, and without the first ``ties`` at it.

    Args:
        mask: uint16 [R, words].
        values: float32 [nnz].
        threshold: bits of a magnitude.
        ties: see :func:`select_smallest`.
    """
    kept, at = mask.copy(), 0
    keys = values.view(np.uint32)
    for row in range(mask.shape[0]):
        for w in range(mask.shape[1]):
            left = np.uint32(mask[row, w])
            while left:
                others = left & (left - _ONE)
                key = np.int64(keys[at] & _SIGN)
                at += 1
                if key < threshold or (key == threshold and ties > 0):
                    ties -= key == threshold
                    kept[row, w] ^= np.uint16(left ^ others)
                left = others
    return kept


@numba.njit(cache=True)
def count_candidates(mask: Words, rows: Ints, scores: Floats) -> int:
    """Entries that are not stored and whose score is not 0.

    Args:
        mask: uint16 [R, words].
        rows: int32 [n].
        scores: float32 [n, D].
    """
    count = 0
    for i in range(len(rows)):
        for first in range(0, scores.shape[1], WORD):
            bits, part = np.uint32(mask[rows[i], first // WORD]), scores[i, first : first + WORD]
            found = np.uint32(0)  # no branch and 32 bits throughout: the loop becomes vectors
            for place in range(len(part)):
                found += np.uint32(part[place] != 0) & ~(bits >> np.uint32(place)) & _ONE
            count += int(found)
    return count


@numba.njit(cache=True)
def hide_stored(mask: Words, rows: Ints, scores: Floats) -> None:
    """Set the scores of stored entries to 0; arguments as of :func:`count_candidates`, the scores changed in place."""
    for i in range(len(rows)):
        for first in range(0, scores.shape[1], WORD):
            bits, part = np.uint32(mask[rows[i], first // WORD]), scores[i, first : first + WORD]
            for place in range(len(part)):
                part[place] = np.float32(0) if bits >> np.uint32(place) & _ONE else part[place]


@numba.njit(cache=True)
def grow_above(mask: Words, rows: Ints, scores: Floats, threshold: int, ties: int) -> None:
    """Store the entries whose score is above the threshold, and the first ``ties`` at it, in the order of the mask.

    Args:
        mask: uint16 [R, words], changed in place.
        rows: int32 [n], distinct.
        scores: float32 [n, D], of :func:`hide_stored`.
        threshold: bits of a magnitude.
        ties: see :func:`select_largest`.
    """
    keys = scores.view(np.uint32)
    for i in np.argsort(rows):
        for column in range(scores.shape[1]):
            key = np.int64(keys[i, column] & _SIGN)
            if key > threshold or (key == threshold and ties > 0):
                ties -= key == threshold
                mask[rows[i], column // WORD] |= np.uint16(1) << np.uint16(column % WORD)


@numba.njit(cache=True)
def grow_at(mask: Words, places: Longs, dim: int, count: int) -> int:
    """Store the first ``count`` of the entries ``row * dim + column`` that are not stored; returns how many it found.

    Args:
        mask: uint16 [R, words], changed in place.
        places: int64 [n].
        dim: D.
        count: at most.
    """
    found = 0
    for place in places:
        if found == count:
            break
        row, column = place // dim, place % dim
        flag = np.uint16(1) << np.uint16(column % WORD)
        if not mask[row, column // WORD] & flag:
            mask[row, column // WORD] |= flag
            found += 1
    return found


@numba.njit(cache=True)
def carry(old: Words, kept: Words, new: Words, values: Floats) -> Floats:
    """The values of the new mask: those of ``old`` where they were kept, 0 where they are new.

    Args:
        old: uint16 [R, words], where the values are.
        kept: a part of it; an entry that was dropped and grown again starts at 0.
        new: a mask with as many bits as the old one, ``kept`` among them.
        values: float32 [nnz].

    Returns:
        float32 [nnz].
    """
    out, from_, to = np.zeros_like(values), 0, 0
    for row in range(old.shape[0]):
        for w in range(old.shape[1]):
            before, stays, after = np.uint32(old[row, w]), np.uint32(kept[row, w]), np.uint32(new[row, w])
            left = before | after
            while left:
                others = left & (left - _ONE)
                flag = left ^ others
                if stays & flag:
                    out[to] = values[from_]
                from_ += (before & flag) != 0
                to += (after & flag) != 0
                left = others
    return out
