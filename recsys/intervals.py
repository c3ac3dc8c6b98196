"""Bootstrap intervals of means over users."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from recsys.rng import generator

FloatArray = npt.NDArray[np.float64]
_BLOCK_RESAMPLES = 64
_CACHED_USERS = 100_000


def resampled_sums(values: FloatArray | npt.NDArray[np.float32], resamples: int, seed: int) -> FloatArray:
    """Column sums of ``values`` over users drawn with replacement (Efron 1979).

    Args:
        values: float64 or float32 [U, M]; float32 halves the time and is exact to about 1e-6.
        resamples: R, how often U users are drawn.
        seed: the same seed and U give the same draws, so that columns of different calls can be compared.

    Returns:
        float64 [R, M].
    """
    sums = np.empty((resamples, values.shape[1]))
    first = 0
    for counts in resampled_counts(len(values), resamples, seed):
        sums[first : first + len(counts)] = counts.astype(values.dtype) @ np.asarray(values)
        first += len(counts)
    return sums


def resampled_counts(num_users: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """How often each resample draws each user, uint8 [up to 64, num_users] at a time, ``resamples`` rows in all."""
    count = _cached_counts if num_users <= _CACHED_USERS else _counts
    for block, first in enumerate(range(0, resamples, _BLOCK_RESAMPLES)):
        yield count(num_users, seed, block)[: resamples - first]


def _counts(num_users: int, seed: int, block: int) -> npt.NDArray[np.uint8]:
    """How often each of 64 resamples draws each user, [64, num_users]."""
    rng = generator(seed, "bootstrap", block)
    drawn = (rng.integers(0, num_users, num_users, dtype=np.int32) for _ in range(_BLOCK_RESAMPLES))
    return np.stack([np.bincount(users, minlength=num_users).astype(np.uint8) for users in drawn])


_cached_counts = functools.lru_cache(maxsize=32)(_counts)


def bootstrap_means(
    values: FloatArray | npt.NDArray[np.float32], resamples: int, seed: int, level: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Percentile interval of every column's mean: low and high, float64 [M] each; ``values`` is [U, M]."""
    means = resampled_sums(values, resamples, seed) / len(values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def bootstrap_ratios(
    numerators: FloatArray, denominators: FloatArray, resamples: int, seed: int, level: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Percentile interval of ``sum(numerator) / sum(denominator)`` per column; NaN where a denominator is all zero.

    Args:
        numerators: float64 [U, M].
        denominators: float64 [U, M].
        resamples: number of resamples.
        seed: see :func:`resampled_sums`.
        level: coverage of the interval.

    Returns:
        low and high, float64 [M] each.
    """
    width = numerators.shape[1]
    sums = resampled_sums(np.concatenate([numerators, denominators], axis=1), resamples, seed)
    with np.errstate(invalid="ignore"):
        ratios = sums[:, :width] / sums[:, width:]
    low, high = np.full(width, np.nan), np.full(width, np.nan)
    defined = ~np.isnan(ratios).all(axis=0)
    if defined.any():
        low[defined], high[defined] = np.nanquantile(ratios[:, defined], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
