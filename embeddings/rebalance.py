"""Splitting and merging buckets, to land on a number of rows that no resolution gives."""

from __future__ import annotations

import heapq

import numpy as np

from embeddings.id_map import IntArray

Sides = tuple[IntArray, IntArray]


def split_largest(labels: Sides, finer: Sides, splits: int) -> Sides:
    """Halve the largest bucket of either side, ``splits`` times.

    The members of a bucket are ordered by their label in a finer clustering and cut in the middle, so that ids which
    the finer one holds together mostly stay together. Ties: users before items, then the lower label.

    Args:
        labels: user and item labels, int64, -1 = none.
        finer: labels of the same ids that order the members.
        splits: number of new buckets; a bucket of one id is not split.

    Returns:
        New labels; each second half has a label above the old ones of its side.

    Raises:
        ValueError: There are fewer ids than buckets asked for.
    """
    orders = []
    heap: list[tuple[int, int, int, int]] = []
    for side, (side_labels, side_finer) in enumerate(zip(labels, finer, strict=True)):
        order = np.lexsort((side_finer, side_labels))
        order = order[side_labels[order] >= 0]
        starts = np.flatnonzero(np.diff(side_labels[order], prepend=-1))
        ends = np.append(starts[1:], order.size)[: starts.size]
        heap += [(start - end, side, start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        orders.append(order)
    result = (labels[0].copy(), labels[1].copy())
    following = [int(side_labels.max(initial=-1)) + 1 for side_labels in labels]
    heapq.heapify(heap)
    for _ in range(splits):
        if not heap or heap[0][0] > -2:
            raise ValueError(f"cannot make {splits:,} more buckets: every bucket is down to one id")
        _, side, start, end = heapq.heappop(heap)
        middle = (start + end + 1) // 2
        result[side][orders[side][middle:end]] = following[side]
        following[side] += 1
        heapq.heappush(heap, (start - middle, side, start, middle))
        heapq.heappush(heap, (middle - end, side, middle, end))
    return result


def merge_smallest(labels: Sides, merges: int) -> Sides:
    """Join the two smallest buckets of one side, ``merges`` times, on the side where they are smaller together.

    Ties: users before items, then the lower labels. Labels stay in ``[0, K)`` without gaps; -1 stays.

    Raises:
        ValueError: Each side is down to one bucket.
    """
    result = (labels[0].copy(), labels[1].copy())
    heaps = [[(int(size), label) for label, size in enumerate(np.bincount(one[one >= 0]))] for one in labels]
    parents = [np.arange(len(heap)) for heap in heaps]
    for heap in heaps:
        heapq.heapify(heap)
    for _ in range(merges):
        pairs = [(heap[0][0] + min(heap[1:3])[0], side) for side, heap in enumerate(heaps) if len(heap) > 1]
        if not pairs:
            raise ValueError(f"cannot merge {merges:,} buckets: each side is down to one")
        total, side = min(pairs)
        (_, gone), (_, kept) = heapq.heappop(heaps[side]), heapq.heappop(heaps[side])
        parents[side][gone] = kept
        heapq.heappush(heaps[side], (total, kept))
    for side, parent in enumerate(parents):
        roots = parent
        while (roots != parent[roots]).any():
            roots = parent[roots]
        number = np.cumsum(roots == np.arange(roots.size)) - 1
        seen = result[side] >= 0
        result[side][seen] = number[roots[result[side][seen]]]
    return result


def fit_rows(labels: IntArray, finer: IntArray, rows: int) -> IntArray:
    """Bring the buckets of one side to exactly ``rows``: halve the largest or join the smallest.

    Args:
        labels: int64 [N] in ``[0, K)`` without gaps, -1 = none.
        finer: labels of the same ids that say which members of a halved bucket stay together.
        rows: buckets wanted, >= 1 and at most the number of ids with a label.

    Raises:
        ValueError: There are fewer ids with a label than ``rows``.
    """
    none = np.empty(0, dtype=np.int64)
    missing = rows - (int(labels.max(initial=-1)) + 1)
    if missing > 0:
        return split_largest((labels, none), (finer, none), missing)[0]
    return merge_smallest((labels, none), -missing)[0]
