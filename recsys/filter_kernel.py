"""Scores of a graph filter, tile by tile: written out, or offered to heaps without ever leaving the caches.

A part of the users goes by blocks of 64. A block's polynomial term is a scratch row per user; then each panel of 64
items takes, for six users at a time, the low-rank term in registers (:mod:`recsys.microkernel`), adds the scratch and
hands the tile on. Bits depend neither on the block nor on how the first propagation is done.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from recsys.microkernel import ITEMS, USERS, lowest_bit, score_tile, tile_between
from recsys.random_walk import COLUMNS, SCATTER_COST, Bipartite, fill, walk, walk_from
from recsys.selection import Heaps, Masks, offer

Floats = npt.NDArray[np.float32]
_GROUPS = -(-COLUMNS // USERS)
_TRANSPOSE = 16
_LARGEST = np.finfo(np.float32).max


class Filter(NamedTuple):
    """A graph filter as the kernels take it.

    Attributes:
        graph: the training interactions.
        inner: float32 [items], D^(-1/2 - a), on the way in.
        outer: float32 [items], D^(1/2 + a), on the way out.
        chebyshev: float32 [K + 1] coefficients of the polynomial.
        end: of its interval.
        encode: float32 [items, r].
        panels: float32 [P, r, 64], the decoding factors, see :func:`recsys.microkernel.pack`.
        scattered: whether a linear polynomial is applied user by user, see :func:`prefers_scatter`.
    """

    graph: Bipartite
    inner: Floats
    outer: Floats
    chebyshev: Floats
    end: np.float32
    encode: Floats
    panels: Floats
    scattered: bool


class _Work(NamedTuple):
    """Scratch of a thread; ``columns`` and ``middle`` are empty where propagation is scattered."""

    rows: Floats
    encoded: Floats
    middle: Floats
    columns: Floats
    reached: Floats
    marks: npt.NDArray[np.uint64]


@numba.njit(nogil=True, cache=True)
def prefers_scatter(graph: Bipartite, history: Masks) -> bool:
    """Whether two steps from single users touch so little that scattered adds beat dense blocks of 64 users.

    Args:
        graph: the interactions.
        history: of a sample of users.
    """
    stamps = np.full(len(graph.by_user.indptr) - 1, -1, np.int64)
    adds = 0
    for row in range(len(history.indptr) - 1):
        for item in history.indices[history.indptr[row] : history.indptr[row + 1]]:
            for user in graph.by_item.indices[graph.by_item.indptr[item] : graph.by_item.indptr[item + 1]]:
                if stamps[user] != row:
                    stamps[user] = row
                    adds += graph.by_user.indptr[user + 1] - graph.by_user.indptr[user]
    return bool(adds * SCATTER_COST < len(graph.by_user.indices) * (len(history.indptr) - 1))


@numba.njit(nogil=True, cache=True)
def write_scores(model: Filter, history: Masks, out: Floats) -> None:
    """Scores [B, items] of the users with ``history``."""
    work = _scratch(model)
    tile = np.empty((USERS, ITEMS), np.float32)
    for first in range(0, len(out), COLUMNS):
        count = min(COLUMNS, len(out) - first)
        _prepare(model, _block(history, first, count), work)
        for p in range(len(model.panels)):
            width = min(ITEMS, out.shape[1] - p * ITEMS)
            for group in range(-(-count // USERS)):
                _fill_tile(model, work, group, p, tile)
                for i in range(min(USERS, count - group * USERS)):
                    row = out[first + group * USERS + i]
                    for j in range(width):
                        row[p * ITEMS + j] = tile[i, j]


@numba.njit(nogil=True, cache=True)
def select(model: Filter, history: Masks, masks: Masks, heaps: Heaps) -> int:
    """Offer the scores of the users with ``history`` to their heaps.

    Returns:
        A row with a NaN or infinite score, or -1.
    """
    work = _scratch(model)
    tile = np.empty((USERS, ITEMS), np.float32)
    items = len(model.inner)
    for first in range(0, len(heaps.worst), COLUMNS):
        count = min(COLUMNS, len(heaps.worst) - first)
        _prepare(model, _block(history, first, count), work)
        for p in range(len(model.panels)):
            every = ~np.uint64(0) >> np.uint64(max(0, (p + 1) * ITEMS - items))
            for group in range(-(-count // USERS)):
                _fill_tile(model, work, group, p, tile)
                for i in range(min(USERS, count - group * USERS)):
                    row = first + group * USERS + i
                    if tile_between(tile[i], -_LARGEST, _LARGEST) & every != every:
                        return row
                    bits = tile_between(tile[i], heaps.worst[row], _LARGEST) & every
                    while bits != 0:
                        j = lowest_bit(bits)
                        bits &= bits - np.uint64(1)
                        offer(heaps, masks, row, (tile[i, j], p * ITEMS + j))
    return -1


@numba.njit(nogil=True, cache=True)
def _scratch(model: Filter) -> _Work:
    users, items = len(model.graph.by_user.indptr) - 1, len(model.graph.by_item.indptr) - 1
    dense = 0 if model.scattered else 1
    return _Work(
        np.zeros((_GROUPS * USERS, len(model.panels) * ITEMS), np.float32),
        np.zeros((_GROUPS, model.encode.shape[1], USERS), np.float32),
        np.empty((dense * users, COLUMNS), np.float32),
        np.empty((3 * dense * items, COLUMNS), np.float32),
        np.zeros(users, np.float32),
        np.zeros(-(-users // ITEMS), np.uint64),
    )


@numba.njit(nogil=True, cache=True)
def _block(history: Masks, first: int, count: int) -> Masks:
    indptr = history.indptr[first : first + count + 1]
    return Masks(indptr - indptr[0], history.indices[indptr[0] : indptr[-1]])


@numba.njit(nogil=True, cache=True)
def _prepare(model: Filter, history: Masks, work: _Work) -> None:
    """The polynomial term of at most 64 users in ``work.rows``, their low-rank codes in ``work.encoded``."""
    items = len(model.inner)
    _encode(history, model.encode, work.encoded)
    if model.scattered:
        for row in range(len(history.indptr) - 1):
            own = history.indices[history.indptr[row] : history.indptr[row + 1]]
            _linear(model, own, work, work.rows[row])
    else:
        found = _clenshaw(model, history, work)
        for first in range(0, items, _TRANSPOSE):
            for row in range(len(history.indptr) - 1):
                for item in range(first, min(first + _TRANSPOSE, items)):
                    work.rows[row, item] = found[item, row] * model.outer[item]


@numba.njit(nogil=True, cache=True, forceinline=True)
def _fill_tile(model: Filter, work: _Work, group: int, panel: int, tile: Floats) -> None:
    """Scores of six users and 64 items; what lies behind the last of either is not looked at."""
    unused, passing = np.zeros(USERS, np.float32), np.empty(USERS, np.uint64)
    score_tile(work.encoded[group], model.panels[panel], unused, tile, passing)
    for i in range(USERS):
        row = work.rows[group * USERS + i]
        for j in range(ITEMS):
            tile[i, j] += row[panel * ITEMS + j]


@numba.njit(nogil=True, cache=True)
def _encode(history: Masks, factors: Floats, out: Floats) -> None:
    """``out[u // 6, d, u % 6] = sum of factors[i, d]`` over the items i of row u."""
    total = np.empty(factors.shape[1], np.float32)
    for row in range(len(history.indptr) - 1):
        total[:] = 0
        for item in history.indices[history.indptr[row] : history.indptr[row + 1]]:
            for d in range(len(total)):
                total[d] += factors[item, d]
        out[row // USERS, :, row % USERS] = total


@numba.njit(nogil=True, cache=True)
def _linear(model: Filter, own: npt.NDArray[np.int32], work: _Work, row: Floats) -> None:
    """The linear polynomial of one user in the order and rounding of :func:`_clenshaw`, by the users reached."""
    by_user, by_item = model.graph
    constant, slope = model.chebyshev[0], model.chebyshev[1]
    for item in own:
        for user in by_item.indices[by_item.indptr[item] : by_item.indptr[item + 1]]:
            work.reached[np.uint32(user)] += model.inner[item]
            work.marks[np.uint32(user) >> np.uint32(6)] |= np.uint64(1) << np.uint64(user & 63)
    row[:] = 0
    for word in range(len(work.marks)):
        bits = work.marks[word]
        work.marks[word] = 0
        while bits != 0:
            user = word * ITEMS + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            first, last = by_user.indptr[user], by_user.indptr[user + 1]
            share = work.reached[user] * (np.float32(1.0) / np.float32(last - first))
            work.reached[user] = 0
            for place in range(first, last):
                row[np.uint32(by_user.indices[place])] += share
    scale = np.float32(2.0) / model.end
    for item in range(len(model.inner)):
        count = max(np.int64(1), by_item.indptr[item + 1] - by_item.indptr[item])
        row[item] = scale * (row[item] * (np.float32(1.0) / np.float32(count)) * slope)
    for item in own:
        row[item] = row[item] - slope * model.inner[item] + constant * model.inner[item]
    for item in range(len(model.inner)):
        row[item] *= model.outer[item]


@numba.njit(nogil=True, cache=True)
def _clenshaw(model: Filter, history: Masks, work: _Work) -> Floats:
    """``b_k = p_k x + 2 t b_{k+1} - b_{k+2}``, ``p = p_0 x + t b_1 - b_2`` with t = 2 M / c - 1."""
    items, coefficients, weights = len(model.inner), model.chebyshev, model.inner
    older, newer, walked = work.columns[:items], work.columns[items : 2 * items], work.columns[2 * items :]
    degree = len(coefficients) - 1
    older[:] = 0
    fill(history, weights, coefficients[degree], newer)
    for k in range(degree - 1, -1, -1):
        if k == degree - 1:
            walk_from(model.graph, history, weights, work.middle, walked)
            walked *= coefficients[degree]
        else:
            walk(model.graph, newer, work.middle, walked)
        twice = np.float32(1.0) if k == 0 else np.float32(2.0)
        scale = twice * np.float32(2.0) / model.end
        for item in range(items):
            for column in range(COLUMNS):
                older[item, column] = scale * walked[item, column] - twice * newer[item, column] - older[item, column]
        for column in range(len(history.indptr) - 1):
            for item in history.indices[history.indptr[column] : history.indptr[column + 1]]:
                older[item, column] += coefficients[k] * weights[item]
        older, newer = newer, older
    return newer
