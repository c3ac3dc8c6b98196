"""Selection of the best k of a stream of scores: bounded heaps, exact, ties by item index.

A (score, item) pair is one int64 key: the bits of the score, mapped so that integers order as floats do, above
``2^31 - 1 - item``. A larger key is a better pair, equal scores go to the lower index, and no two keys are equal; so
the k best do not depend on the order of the stream.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from recsys.microkernel import ITEMS, USERS, lowest_bit, score_tile, tile_between

_EMPTY = np.iinfo(np.int64).min
_LAST_ITEM = np.iinfo(np.int32).max
_LARGEST = np.finfo(np.float32).max
_TILE_PANELS = 8
_Keys = npt.NDArray[np.int64]
_Int = npt.NDArray[np.int32]
_Float = npt.NDArray[np.float32]


class Heaps(NamedTuple):
    """The best pairs of B users.

    Attributes:
        keys: int64 [B, K], the worst pair first, heap-ordered.
        worst: float32 [B], the score of the worst pair, -inf while there are fewer than K.
    """

    keys: _Keys
    worst: _Float


class Masks(NamedTuple):
    """Masked items of B users: those of row r are ``indices[indptr[r] : indptr[r + 1]]``, sorted."""

    indptr: npt.NDArray[np.int64]
    indices: _Int


class Catalogue(NamedTuple):
    """Item vectors in the order of falling norms.

    Attributes:
        panels: float32 [P, D, 64], see :func:`recsys.microkernel.pack`.
        items: int32 [P * 64] item of each place, -1 behind the last.
        norms: float64 [P * 64] Euclidean norm of each place.
    """

    panels: _Float
    items: _Int
    norms: npt.NDArray[np.float64]


def empty_heaps(users: int, k: int) -> Heaps:
    """Heaps without any pair."""
    return Heaps(np.full((users, k), _EMPTY, np.int64), np.full(users, -np.inf, np.float32))


def best_first(heaps: Heaps) -> tuple[_Int, _Float]:
    """Items int32 [B, K], -1 where empty, and scores float32 [B, K], -inf where empty; sorts the heaps in place."""
    heaps.keys.sort(axis=1)
    keys = heaps.keys[:, ::-1]
    items = (_LAST_ITEM - (keys & _LAST_ITEM)).astype(np.int32)
    bits = (keys >> 31).astype(np.int32)
    scores = np.where(bits < 0, bits ^ _LAST_ITEM, bits).astype(np.int32).view(np.float32)
    empty = keys == _EMPTY
    items[empty], scores[empty] = -1, -np.inf
    return items, scores


@numba.njit(nogil=True, cache=True, forceinline=True)
def _key(score: np.float32, item: int) -> int:
    bits = np.float32(score + np.float32(0)).view(np.int32)  # -0 + 0 = +0: they are equal scores
    ordered = np.int64(bits ^ np.int32(_LAST_ITEM) if bits < 0 else bits)
    return int(ordered * (_LAST_ITEM + 1) + (_LAST_ITEM - item))


@numba.njit(nogil=True, cache=True, forceinline=True)
def _is_masked(masks: Masks, row: int, item: int) -> bool:
    start, stop = masks.indptr[row], masks.indptr[row + 1]
    end = stop
    while start < stop:
        middle = (start + stop) >> 1
        if masks.indices[middle] < item:
            start = middle + 1
        else:
            stop = middle
    return bool(start < end and masks.indices[start] == item)


@numba.njit(nogil=True, cache=True, forceinline=True)
def offer(heaps: Heaps, masks: Masks, row: int, pair: tuple[np.float32, int]) -> None:
    """Replace the worst pair of a row's heap by (score, item) if that is better and not masked."""
    keys = heaps.keys[row]
    key = _key(pair[0], pair[1])
    if key <= keys[0] or _is_masked(masks, row, pair[1]):
        return
    size, hole, child = len(keys), 0, 1
    while child < size:
        if child + 1 < size:
            child += keys[child + 1] < keys[child]
        if keys[child] >= key:
            break
        keys[hole] = keys[child]
        hole, child = child, 2 * child + 1
    keys[hole] = key
    if keys[0] != _EMPTY:
        bits = keys[0] >> 31
        heaps.worst[row] = np.int32(bits ^ _LAST_ITEM if bits < 0 else bits).view(np.float32)


@numba.njit(nogil=True, cache=True)
def select_from_scores(block: _Float, masks: Masks, heaps: Heaps) -> int:
    """Offer the scores [B, num_items] of B users.

    Returns:
        The first row with a NaN or infinite score, or -1.
    """
    rest = np.empty(ITEMS, dtype=np.float32)
    for row in range(block.shape[0]):
        scores = block[row]
        for first in range(0, len(scores), ITEMS):
            tile = scores[first : first + ITEMS]
            every = ~np.uint64(0) >> np.uint64(ITEMS - len(tile))
            if len(tile) < ITEMS:
                rest[:] = np.nan
                rest[: len(tile)] = tile
                tile = rest
            if tile_between(tile, -_LARGEST, _LARGEST) != every:
                return row
            bits = tile_between(tile, np.nextafter(heaps.worst[row], _LARGEST), _LARGEST)  # a later tie loses
            while bits != 0:
                j = lowest_bit(bits)
                bits &= bits - np.uint64(1)
                offer(heaps, masks, row, (tile[j], first + j))
    return -1


@numba.njit(nogil=True, cache=True)
def _select_group(vectors: _Float, group: _Keys, tile: Any, masks: Masks, heaps: Heaps) -> None:
    """Offer the items of ``tile = (panels, items)`` to the at most 6 users ``group``."""
    panels, items = tile
    packed = np.zeros((panels.shape[1], USERS), dtype=np.float32)
    worst = np.full(USERS, np.inf, dtype=np.float32)
    scores = np.empty((USERS, ITEMS), dtype=np.float32)
    passing = np.empty(USERS, dtype=np.uint64)
    for i, row in enumerate(group):
        packed[:, i] = vectors[row]
        worst[i] = heaps.worst[row]
    for p in range(len(panels)):
        score_tile(packed, panels[p], worst, scores, passing)
        for i, row in enumerate(group):
            bits = passing[i]
            if bits == 0:
                continue
            while bits != 0:
                j = lowest_bit(bits)
                bits &= bits - np.uint64(1)
                if items[p * ITEMS + j] >= 0 and scores[i, j] >= heaps.worst[row]:
                    offer(heaps, masks, row, (scores[i, j], items[p * ITEMS + j]))
            worst[i] = heaps.worst[row]


@numba.njit(nogil=True, cache=True)
def select_from_vectors(vectors: _Float, catalogue: Catalogue, masks: Masks, heaps: Heaps) -> None:
    """Offer all items to B users with vectors [B, D]; no score leaves the first-level cache.

    Tiles of items go past groups of users. By Cauchy-Schwarz no later item scores above ``|u| * |v|`` of the next
    one, as norms fall, so a user whose worst kept score exceeds that is done; ``slack`` covers the rounding of D
    fused multiply-adds (Higham 2002, eq. 3.5).
    """
    slack = 1.0 + (vectors.shape[1] + 2) * 2.0**-23
    norms = np.empty(len(vectors))
    for row in range(len(vectors)):
        total = 0.0
        for value in vectors[row]:
            total += np.float64(value) * np.float64(value)
        norms[row] = np.sqrt(total) * slack
    active = np.arange(len(vectors))
    for first in range(0, len(catalogue.panels), _TILE_PANELS):
        last = min(first + _TILE_PANELS, len(catalogue.panels))
        open_ = norms[active] * catalogue.norms[first * ITEMS] + 1e-36 >= heaps.worst[active]
        active = active[open_]
        tile = (catalogue.panels[first:last], catalogue.items[first * ITEMS : last * ITEMS])
        for start in range(0, len(active), USERS):
            _select_group(vectors, active[start : start + USERS], tile, masks, heaps)
