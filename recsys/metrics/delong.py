"""Intervals and paired tests of AUC by DeLong et al. 1988, in the time of a sort (Sun and Xu 2014)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from recsys.metrics.auc import checked
from recsys.metrics.scored_counts import ScoredCounts

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_Z95 = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class AucInterval:
    """An AUC with its standard error and 95 % interval, which is cut to [0, 1]."""

    value: float
    error: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class AucDifference:
    """AUC of a minus that of b on the same events; ``p`` is two-sided, from the normal distribution."""

    difference: float
    low: float
    high: float
    p: float


def auc_interval(counts: ScoredCounts) -> AucInterval:
    """AUC with its interval; an AUC of 0 or 1 has a variance of 0, whatever the number of events.

    Raises:
        ValueError: A class has fewer than two events.
    """
    _needs_two(counts.num_positives, counts.num_negatives)
    value = counts.auc()
    won = (np.cumsum(counts.negatives) - counts.negatives / 2) / counts.num_negatives
    lost = (np.cumsum(counts.positives) - counts.positives / 2) / counts.num_positives
    error = math.sqrt(_mean_variance(won, counts.positives) + _mean_variance(lost, counts.negatives))
    return AucInterval(value, error, max(0.0, value - _Z95 * error), min(1.0, value + _Z95 * error))


def auc_difference(labels: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> AucDifference:
    """Paired test of two scorings of the same events.

    Args:
        labels: [n], 0 or 1, at least two of each.
        a: float [n].
        b: float [n], of the same events in the same order.

    Returns:
        Where the AUCs differ but all events of a class by the same amount, as for a perfect scoring against a constant
        one, the estimated variance is 0, of two events as of a million: the test has nothing to go by, and says so by
        the interval [-1, 1] and a p of 1.

    Raises:
        ValueError: As :func:`recsys.metrics.auc.roc_auc`, or a class has fewer than two events.
    """
    (up_a, down_a), (up_b, down_b) = _doubled_placements(labels, a), _doubled_placements(labels, b)
    up, down = up_a - up_b, down_a - down_b
    difference = float(up.mean()) / (2 * len(down))
    variances = up.var(ddof=1) / (4 * len(down) ** 2 * len(up)), down.var(ddof=1) / (4 * len(up) ** 2 * len(down))
    error = math.sqrt(sum(variances))
    if not error:
        return AucDifference(difference, -1.0, 1.0, 1.0) if difference else AucDifference(0.0, 0.0, 0.0, 1.0)
    p = math.erfc(abs(difference) / error / math.sqrt(2))
    return AucDifference(difference, difference - _Z95 * error, difference + _Z95 * error, p)


def _doubled_placements(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[IntArray, IntArray]:
    """Twice the negatives below each positive, and twice the positives below each negative; ties count once."""
    positive, values = checked(labels, scores)
    up, down = values[positive], values[~positive]
    _needs_two(len(up), len(down))
    return _doubled_ranks(up, np.sort(down)), _doubled_ranks(down, np.sort(up))


def _doubled_ranks(values: npt.NDArray[np.floating], others: npt.NDArray[np.floating]) -> IntArray:
    """Twice the number of the ascending ``others`` below each value, plus the number equal to it."""
    left, right = (np.searchsorted(others, values, side=side) for side in ("left", "right"))
    return left + right


def _mean_variance(values: FloatArray, counts: IntArray) -> float:
    """Estimated variance of the mean of values that occur ``counts`` times."""
    total = int(counts.sum())
    squares = np.square(values - (values * counts).sum() / total)
    return float((squares * counts).sum()) / (total - 1) / total


def _needs_two(positives: int, negatives: int) -> None:
    if min(positives, negatives) < 2:
        raise ValueError(f"DeLong's variance needs two events of each class, got {positives:,} and {negatives:,}")
