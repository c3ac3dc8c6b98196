"""K-means for codebooks: Lloyd's algorithm on growing samples, and the balanced variant of OneRec."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import numpy.typing as npt
import torch

from embeddings.id_map import IntArray
from embeddings.one_thread import one_thread
from embeddings.spectral import Matrix

BLOCK = 4096
"""Points of one matrix product, however many threads there are, so that the bits are the same."""
CHUNK = 256
"""Centres whose distances the balanced variant keeps at a time."""
START = 16
"""Points a centre that k-means++ draws from."""
SAMPLES = (64, 256)
"""Points a centre of the first passes; the last ones see every point."""
PASSES = (10, 6)
"""Passes over each sample at most."""
LAST_PASSES = 4


def nearest(
    points: Matrix, centres: Matrix, squares: npt.NDArray[np.float32] | None = None
) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """The nearest centre of each point, ties to the lower one, and the squared distance to it.

    Args:
        points: float32 [N, D].
        centres: float32 [K, D].
        squares: float32 [N] of :func:`squared_lengths` of the points, where they are known.

    Returns:
        int64 [N] and float32 [N].
    """
    code, best = np.empty(len(points), dtype=np.int64), np.empty(len(points), dtype=np.float32)
    columns = torch.from_numpy(np.ascontiguousarray(centres.T))
    half = torch.from_numpy(-0.5 * squared_lengths(centres))

    def part(first: int) -> None:
        block = slice(first, first + BLOCK)
        scores = torch.addmm(half, torch.from_numpy(points[block]), columns)
        _first_largest(scores.numpy(), code[block], best[block])

    threads = torch.get_num_threads()
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(0, len(points), BLOCK)))
    lengths = squared_lengths(points) if squares is None else squares
    return code, np.maximum(lengths - 2 * best, np.float32(0))


def squared_lengths(points: Matrix) -> npt.NDArray[np.float32]:
    """Float32 [N] of float32 [N, D]."""
    return np.asarray(np.einsum("nd,nd->n", points, points), dtype=np.float32)


@numba.njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def _first_largest(scores: Matrix, code: IntArray, best: npt.NDArray[np.float32]) -> None:
    """The largest number of each row of float32 [n, K], and the first place that has it."""
    for i in range(len(scores)):
        row, largest = scores[i], scores[i, 0]
        for value in row:
            largest = max(largest, value)
        place = 0
        while place < len(row) - 1 and row[place] != largest:
            place += 1
        code[i], best[i] = place, largest


def distances(points: Matrix, centres: Matrix) -> npt.NDArray[np.float32]:
    """Squared distance float32 [N, K] of float32 [N, D] to each of float32 [K, D]."""
    far = np.empty((len(points), len(centres)), dtype=np.float32)
    columns = torch.from_numpy(np.ascontiguousarray(centres.T))
    with one_thread():
        for first in range(0, len(points), BLOCK):
            block = torch.from_numpy(points[first : first + BLOCK])
            found = torch.addmm(columns.square().sum(0), block, columns, alpha=-2)
            far[first : first + BLOCK] = found.add_(block.square().sum(1)[:, None]).clamp_(min=0).numpy()
    return far


def kmeans(points: Matrix, clusters: int, generator: np.random.Generator) -> tuple[Matrix, IntArray]:
    """Lloyd's algorithm (1982), first on samples of the points and then on all of them.

    It starts from k-means++ and from random points, which lead further where the points have no clusters, and goes on
    with what is better on the first sample. A sample moves the centres most of the way at a fraction of the work. An
    empty cluster takes the point that is farthest from its centre. Where there are fewer different points than
    clusters, some codes stay without a point.

    Args:
        points: float32 [N, D], N >= clusters.
        clusters: K >= 1.
        generator: draws the samples.

    Returns:
        Centres float32 [K, D] and the nearest one of each point, int64 [N].

    Raises:
        ValueError: There are fewer points than clusters, or a value is not finite.
    """
    check_points(points, clusters)
    points = np.ascontiguousarray(points)
    order = generator.permutation(len(points))
    starts = [_spread(points[np.sort(order[: START * clusters])], clusters, generator), points[order[:clusters]]]
    for share, passes in zip(SAMPLES, PASSES, strict=True):
        if share * clusters < len(points):
            starts = [_best_of(points[np.sort(order[: share * clusters])], starts, passes)[0]]
    return _best_of(points, starts, LAST_PASSES if len(starts) == 1 else sum(PASSES))


def _spread(points: Matrix, clusters: int, generator: np.random.Generator) -> Matrix:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007).

    Of some points drawn in proportion to the squared distance to those before, it takes the one that leaves the least.
    """
    rows, squares = torch.from_numpy(points), squared_lengths(points)
    tries = 2 + int(np.log(clusters))
    far = np.full(len(points), np.inf, dtype=np.float32)
    drawn, chosen = generator.integers(len(points), size=1), []
    with one_thread():
        while True:
            products = (rows[drawn] @ rows.T).numpy()
            left = np.minimum(far, np.maximum(squares - 2 * products + squares[drawn][:, None], 0))
            best = int(left.sum(1).argmin())
            chosen.append(int(drawn[best]))
            if len(chosen) == clusters:
                return points[chosen]
            far = left[best]
            total = np.cumsum(far, dtype=np.float64)
            drawn = np.searchsorted(total, generator.random(tries) * total[-1], side="right").clip(max=len(points) - 1)


def _best_of(points: Matrix, starts: Sequence[Matrix], passes: int) -> tuple[Matrix, IntArray]:
    """Centres and codes of :func:`lloyd` from the start that ends nearest to the points."""
    squares = squared_lengths(points)
    found = [lloyd(points, centres, passes, squares) for centres in starts]
    centres, code, _ = min(found, key=lambda ended: float(ended[2].sum(dtype=np.float64)))
    return centres, code


def lloyd(
    points: Matrix, centres: Matrix, passes: int, squares: npt.NDArray[np.float32] | None = None
) -> tuple[Matrix, IntArray, npt.NDArray[np.float32]]:
    """At most ``passes`` updates of the centres; codes and distances are those of the centres that come back.

    Args:
        points: float32 [N, D], contiguous.
        centres: float32 [K, D].
        passes: at most.
        squares: as :func:`nearest` takes them.

    Returns:
        Centres float32 [K, D], the nearest one of each point int64 [N], and its squared distance float32 [N].
    """
    code, distance = nearest(points, centres, squares)
    for _ in range(passes):
        centres = _updated(points, code, distance, centres)
        before = code
        code, distance = nearest(points, centres, squares)
        if (before == code).all():
            break
    return centres, code, distance


def _updated(points: Matrix, code: IntArray, distance: npt.NDArray[np.float32], centres: Matrix) -> Matrix:
    used = np.bincount(code, minlength=len(centres)) > 0
    centres = np.where(used[:, None], _means(points, code, len(centres)), centres)
    empty = np.flatnonzero(~used)
    if empty.size:
        far = np.argsort(-distance, kind="stable")[: empty.size]
        far = far[distance[far] > 0]
        centres[empty[: far.size]] = points[far]
    return centres


def _means(points: Matrix, code: IntArray, clusters: int) -> Matrix:
    """Mean float32 [K, D] of the points of each cluster; zero for an empty one."""
    counts = np.bincount(code, minlength=clusters)
    starts = np.concatenate([[0], np.cumsum(counts)])
    sums = _sums(points, _grouped(code, starts), starts)
    return np.asarray(sums / np.maximum(counts, 1)[:, None], dtype=np.float32)


@numba.njit(cache=True)
def _grouped(code: IntArray, starts: IntArray) -> IntArray:
    """The points by cluster, in their order within each."""
    places, order = starts.copy(), np.empty(len(code), np.int64)
    for i in range(len(code)):
        order[places[code[i]]] = i
        places[code[i]] += 1
    return order


@numba.njit(parallel=True, cache=True)
def _sums(points: Matrix, order: IntArray, starts: IntArray) -> npt.NDArray[np.float64]:
    """Sum float64 [K, D] of the points ``order[starts[k]:starts[k + 1]]``, four at a time.

    Float32 would stop growing, for it has no 2^24 + 1. That a sum is read and written once for four points
    makes up for its width.
    """
    sums = np.zeros((len(starts) - 1, points.shape[1]), np.float64)
    for k in numba.prange(len(sums)):
        total, fours = sums[k], starts[k + 1] - (starts[k + 1] - starts[k]) % 4
        for place in range(starts[k], fours, 4):
            one, two = points[order[place]], points[order[place + 1]]
            three, four = points[order[place + 2]], points[order[place + 3]]
            for d in range(len(total)):
                total[d] += (np.float64(one[d]) + two[d]) + (np.float64(three[d]) + four[d])
        for place in range(fours, starts[k + 1]):
            for d in range(len(total)):
                total[d] += points[order[place], d]
    return sums


def balanced_kmeans(
    points: Matrix, clusters: int, generator: np.random.Generator, passes: int = 20
) -> tuple[Matrix, IntArray]:
    """K-means whose clusters have N / K points each (OneRec, Deng et al. 2025, algorithm 1).

    Each centre in turn takes the nearest points that are still free, as many as its capacity, and moves to their
    mean. The capacities differ by one where K does not divide N.

    Args:
        points: float32 [N, D], N >= clusters.
        clusters: K >= 1.
        generator: draws the start, that of :func:`kmeans`.
        passes: at most.

    Returns:
        As :func:`kmeans`, but with the balanced code of each point, which is not always its nearest centre.

    Raises:
        ValueError: As :func:`kmeans`.
    """
    centres, _ = kmeans(points, clusters, generator)
    points = np.ascontiguousarray(points)
    capacity = len(points) // clusters + (np.arange(clusters) < len(points) % clusters)
    code = np.full(len(points), -1, dtype=np.int64)
    for _ in range(passes):
        before, code = code, _filled(points, centres, capacity)
        if (before == code).all():
            break
        centres = _means(points, code, clusters)
    return centres, code


def _filled(points: Matrix, centres: Matrix, capacity: IntArray) -> IntArray:
    code = np.full(len(points), -1, dtype=np.int64)
    free = np.arange(len(points))
    for start in range(0, len(centres), CHUNK):
        far = distances(points[free], centres[start : start + CHUNK])
        left = np.ones(free.size, dtype=bool)
        for offset in range(far.shape[1]):
            count, candidates = int(capacity[start + offset]), np.flatnonzero(left)
            taken = candidates[np.argsort(far[candidates, offset], kind="stable")[:count]]
            code[free[taken]] = start + offset
            left[taken] = False
        free = free[left]
    return code


def check_points(points: Matrix, clusters: int) -> None:
    """Refuse what cannot be clustered, see :func:`kmeans`.

    Raises:
        ValueError: There are fewer points than clusters, or a value is not finite.
    """
    if len(points) < clusters:
        raise ValueError(f"k-means of {clusters} clusters needs as many points, got {len(points)}; use narrower levels")
    with np.errstate(over="ignore", invalid="ignore"):
        bad = np.flatnonzero(~np.isfinite(squared_lengths(points)))
    if bad.size:
        raise ValueError(f"vectors must be finite, but that of item {bad[0]} is not ({bad.size:,} bad items in all)")
