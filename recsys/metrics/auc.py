r"""Exact area under the ROC curve of scored impressions; nothing is binned.

.. math:: AUC = \frac{1}{P N} \sum_{p, n} [s_p > s_n] + [s_p = s_n] / 2

is the probability that a positive outranks a negative (Hanley and McNeil 1982).
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
ScoreArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]


def roc_auc(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Exact AUC; ties count half.

    Without weights the positives and the negatives are sorted apart and merged, and the count is an integer.

    Args:
        labels: [n], 0 or 1 (or bool).
        scores: float32 or float64 [n]; infinities are allowed.
        weights: float [n], at least 0, or None.

    Raises:
        ValueError: Lengths differ, a label is not 0 or 1, a score is NaN, a weight is negative or NaN, or one class has
            no weight.
    """
    positive, values = checked(labels, scores)
    if weights is not None:
        return _weighted(positive, values, np.asarray(weights, dtype=np.float64))
    up, down = values[positive], values[~positive]
    if not len(up) or not len(down):
        raise ValueError(f"AUC needs both classes, got {len(up):,} positives and {len(down):,} negatives")
    up.sort()
    down.sort()
    return int(_wins(up, down)) / (2 * len(up) * len(down))


def checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], ScoreArray]:
    """Whether each label is 1, and the scores as floats; see :func:`roc_auc` for what is refused."""
    given, values = np.asarray(labels), np.asarray(scores)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    if given.ndim != 1 or given.shape != values.shape:
        raise ValueError(f"labels and scores must be one array each, got {list(given.shape)} and {list(values.shape)}")
    positive = given if given.dtype == np.bool_ else given == 1
    if given.dtype != np.bool_ and np.count_nonzero(given) != np.count_nonzero(positive):
        bad = np.flatnonzero((given != 0) & (given != 1))[0]
        raise ValueError(f"labels must be 0 or 1, but labels[{bad}] is {given[bad]}")
    if np.isnan(values).any():
        raise ValueError(f"scores must not be NaN, but scores[{np.flatnonzero(np.isnan(values))[0]}] is")
    return positive, values


@numba.njit(nogil=True, cache=True)
def _wins(up: ScoreArray, down: ScoreArray) -> int:
    """Twice the won pairs plus the tied ones; both arrays ascend."""
    wins, below, reached = 0, 0, 0
    for score in up:
        while below < len(down) and down[below] < score:
            below += 1
        reached = max(reached, below)
        while reached < len(down) and down[reached] == score:
            reached += 1
        wins += below + reached
    return wins


def _weighted(positive: npt.NDArray[np.bool_], values: ScoreArray, weights: FloatArray) -> float:
    if weights.shape != positive.shape:
        raise ValueError(f"weights must have one value per label, got {list(weights.shape)} for {len(positive)} labels")
    if not (weights >= 0).all():
        bad = np.flatnonzero(~(weights >= 0))[0]
        raise ValueError(f"weights must be at least 0, but weights[{bad}] is {weights[bad]}")
    _, places = np.unique(values, return_inverse=True)
    up = np.bincount(places, weights * positive)
    down = np.bincount(places, weights * ~positive)
    if not up.sum() or not down.sum():
        raise ValueError(f"AUC needs weight in both classes, got {up.sum()} positive and {down.sum()} negative")
    return float((up * (np.cumsum(down) - down / 2)).sum() / (up.sum() * down.sum()))
