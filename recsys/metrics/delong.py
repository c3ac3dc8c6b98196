"""Intervals and paired tests of AUC by DeLong et al. 1988, in the time of a sort (Sun and Xu 2014)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from recsys.metrics.auc import checked

FloatArray = npt.NDArray[np.float64]
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


def auc_interval(labels: npt.ArrayLike, scores: npt.ArrayLike) -> AucInterval:
    """AUC with its interval.

    Args:
        labels: [n], 0 or 1, at least two of each.
        scores: float [n].

    Raises:
        ValueError: As :func:`recsys.metrics.auc.roc_auc`, or a class has fewer than two events.
    """
    up, down = _placements(labels, scores)
    error = math.sqrt(up.var(ddof=1) / len(up) + down.var(ddof=1) / len(down))
    value = float(up.mean())
    return AucInterval(value, error, max(0.0, value - _Z95 * error), min(1.0, value + _Z95 * error))


def auc_difference(labels: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> AucDifference:
    """Paired test of two scorings of the same events.

    Args:
        labels: [n], 0 or 1, at least two of each.
        a: float [n].
        b: float [n], of the same events in the same order.

    Raises:
        ValueError: As :func:`auc_interval`.
    """
    (up_a, down_a), (up_b, down_b) = _placements(labels, a), _placements(labels, b)
    up, down = up_a - up_b, down_a - down_b
    difference = float(up_a.mean() - up_b.mean())
    error = math.sqrt(up.var(ddof=1) / len(up) + down.var(ddof=1) / len(down))
    p = math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(difference == 0.0)
    return AucDifference(difference, difference - _Z95 * error, difference + _Z95 * error, p)


def _placements(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """For each positive the share of negatives below it, for each negative the share of positives above it."""
    positive, values = checked(labels, scores)
    up, down = values[positive], values[~positive]
    if len(up) < 2 or len(down) < 2:
        raise ValueError(f"DeLong's variance needs two events of each class, got {len(up):,} and {len(down):,}")
    return _share_below(up, np.sort(down)), 1.0 - _share_below(down, np.sort(up))


def _share_below(values: npt.NDArray[np.floating], others: npt.NDArray[np.floating]) -> FloatArray:
    """Share of the ascending ``others`` below each value, ties counting half."""
    left, right = (np.searchsorted(others, values, side=side) for side in ("left", "right"))
    shares: FloatArray = (left + right) / (2.0 * len(others))
    return shares
