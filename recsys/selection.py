"""Selection of the best k items from a stream of score tiles: bounded heaps, exact, ties by item index.

A heap keeps the k best (score, item) pairs of one user with the worst pair at its root. Pair a is *worse* than pair b
when its score is lower, or equal with a larger item index; so the result does not depend on the order of the stream.
"""

from __future__ import annotations

import numba
import numpy as np

_CHUNK = 64


@numba.njit(nogil=True, cache=True)
def is_seen(seen: np.ndarray, start: int, stop: int, item: int) -> bool:
    """Whether ``item`` is in the sorted ``seen[start:stop]``."""
    while start < stop:
        middle = (start + stop) >> 1
        if seen[middle] < item:
            start = middle + 1
        elif seen[middle] > item:
            stop = middle
        else:
            return True
    return False


@numba.njit(nogil=True, cache=True)
def _worse(score: float, item: int, than_score: float, than_item: int) -> bool:
    return score < than_score or (score == than_score and item > than_item)


@numba.njit(nogil=True, cache=True)
def _sift_down(scores: np.ndarray, items: np.ndarray, size: int, score: float, item: int) -> None:
    """Put (score, item) at the root of a heap of ``size`` pairs whose root is free."""
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and _worse(scores[child + 1], items[child + 1], scores[child], items[child]):
            child += 1
        if not _worse(scores[child], items[child], score, item):
            break
        scores[hole], items[hole] = scores[child], items[child]
        hole = child
    scores[hole], items[hole] = score, item


@numba.njit(nogil=True, cache=True)
def offer(scores: np.ndarray, items: np.ndarray, score: float, item: int) -> None:
    """Replace the worst pair of a full heap by (score, item) if that is better; empty places hold (-inf, max)."""
    if _worse(scores[0], items[0], score, item):
        _sift_down(scores, items, len(scores), score, item)


@numba.njit(nogil=True, cache=True)
def offer_tile(
    tile: np.ndarray,
    tile_items: np.ndarray,
    seen: np.ndarray,
    start: int,
    stop: int,
    scores: np.ndarray,
    items: np.ndarray,
) -> None:
    """Offer every unseen item of a tile to one user's heap.

    Args:
        tile: float32 [T] scores.
        tile_items: int32 [T] their items, in any order.
        seen: int32, of which ``seen[start:stop]`` are the user's masked items, sorted.
        start: see ``seen``.
        stop: see ``seen``.
        scores: float32 [K] heap, changed in place.
        items: int32 [K] heap, changed in place.
    """
    for first in range(0, len(tile), _CHUNK):
        last = min(first + _CHUNK, len(tile))
        worst = scores[0]
        passing = 0
        for j in range(first, last):
            passing += tile[j] >= worst
        if passing == 0:
            continue
        for j in range(first, last):
            if tile[j] >= scores[0] and _worse(scores[0], items[0], tile[j], tile_items[j]):
                if not is_seen(seen, start, stop, tile_items[j]):
                    _sift_down(scores, items, len(scores), tile[j], tile_items[j])


@numba.njit(nogil=True, cache=True)
def sort_heap(scores: np.ndarray, items: np.ndarray) -> None:
    """Turn a heap into a list, best first, in place; empty places come last, as (-inf, -1)."""
    for size in range(len(scores) - 1, 0, -1):
        score, item = scores[size], items[size]
        scores[size], items[size] = scores[0], items[0]
        _sift_down(scores, items, size, score, item)
    for j in range(len(scores)):
        if scores[j] == -np.inf:
            items[j] = -1
