"""K-means for codebooks: Lloyd's algorithm on growing samples, and the balanced variant of OneRec."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

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


def nearest(points: Matrix, centres: Matrix) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """The nearest centre of each point, ties to the lower one, and the squared distance to it.

    Args:
        points: float32 [N, D].
        centres: float32 [K, D].

    Returns:
        int64 [N] and float32 [N].
    """
    code, distance = np.empty(len(points), dtype=np.int64), np.empty(len(points), dtype=np.float32)
    columns = torch.from_numpy(np.ascontiguousarray(centres.T))
    half = -0.5 * columns.square().sum(0)

    def part(first: int) -> None:
        block = torch.from_numpy(points[first : first + BLOCK])
        best, index = torch.addmm(half, block, columns).max(dim=1)
        code[first : first + BLOCK] = index.numpy()
        distance[first : first + BLOCK] = (block.square().sum(1) - 2 * best).clamp_(min=0).numpy()

    threads = torch.get_num_threads()
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(0, len(points), BLOCK)))
    return code, distance


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
    """Lloyd's algorithm (1982), first on samples of the points and then on all of them, from k-means++.

    A sample moves the centres most of the way at a fraction of the work. An empty cluster takes the point that is
    farthest from its centre. Where there are fewer different points than clusters, some codes stay without a point.

    Args:
        points: float32 [N, D], N >= clusters.
        clusters: K >= 1.
        generator: draws the samples.

    Returns:
        Centres float32 [K, D] and the nearest one of each point, int64 [N].

    Raises:
        ValueError: There are fewer points than clusters, or a value is not finite.
    """
    _check(points, clusters)
    points = np.ascontiguousarray(points)
    order = generator.permutation(len(points))
    centres = _spread(points[np.sort(order[: START * clusters])], clusters, generator)
    for share, passes in zip(SAMPLES, PASSES, strict=True):
        if share * clusters < len(points):
            sample = np.ascontiguousarray(points[np.sort(order[: share * clusters])])
            centres, _ = _lloyd(sample, centres, passes)
    passes = LAST_PASSES if SAMPLES[0] * clusters < len(points) else sum(PASSES)
    return _lloyd(points, centres, passes)


def _spread(points: Matrix, clusters: int, generator: np.random.Generator) -> Matrix:
    """Points drawn in proportion to the squared distance to those before (Arthur and Vassilvitskii 2007)."""
    chosen = [int(generator.integers(len(points)))]
    far = np.full(len(points), np.inf, dtype=np.float32)
    for _ in range(clusters - 1):
        far = np.minimum(far, distances(points, points[chosen[-1:]])[:, 0])
        total = np.cumsum(far, dtype=np.float64)
        drawn = np.searchsorted(total, generator.random() * total[-1], side="right")
        chosen.append(int(min(drawn, len(points) - 1)))
    return points[chosen]


def _lloyd(points: Matrix, centres: Matrix, passes: int) -> tuple[Matrix, IntArray]:
    """At most ``passes`` updates of the centres; the codes are the nearest of the centres that come back."""
    code, distance = nearest(points, centres)
    for _ in range(passes):
        centres = _updated(points, code, distance, centres)
        before = code
        code, distance = nearest(points, centres)
        if (before == code).all():
            break
    return centres, code


def _updated(points: Matrix, code: IntArray, distance: npt.NDArray[np.float32], centres: Matrix) -> Matrix:
    used = np.bincount(code, minlength=len(centres)) > 0
    centres = np.where(used[:, None], _means(points, code, len(centres)), centres)
    empty = np.flatnonzero(~used)
    far = np.argsort(-distance, kind="stable")[: empty.size]
    far = far[distance[far] > 0]
    centres[empty[: far.size]] = points[far]
    return centres


def _means(points: Matrix, code: IntArray, clusters: int) -> Matrix:
    """Mean float32 [K, D] of the points of each cluster; zero for an empty one."""
    counts = np.bincount(code, minlength=clusters)
    starts = np.concatenate([[0], np.cumsum(counts)])
    members = (np.ones(len(points), dtype=np.float32), np.argsort(code, kind="stable"), starts)
    sums = sparse.csr_array(members, shape=(clusters, len(points))) @ points
    return np.asarray(sums / np.maximum(counts, 1)[:, None], dtype=np.float32)


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


def _check(points: Matrix, clusters: int) -> None:
    if len(points) < clusters:
        raise ValueError(f"k-means of {clusters} clusters needs as many points, got {len(points)}; use narrower levels")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise ValueError(f"vectors must be finite, but that of item {bad[0]} is not ({bad.size:,} bad items in all)")
