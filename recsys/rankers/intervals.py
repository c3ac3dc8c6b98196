"""Bootstrap of a ranker's metrics: users are drawn with all their events, for a user's events are not independent."""

from __future__ import annotations

import dataclasses

import numba
import numpy as np
import numpy.typing as npt

from recsys.intervals import resampled_counts
from recsys.metrics.auc import checked, group_aucs

FloatArray = npt.NDArray[np.float64]
METRICS = ("log_loss", "gauc", "pr_auc")
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """95 % interval and two-sided p-value of one scoring minus another of the same events."""

    low: float
    high: float
    p: float


def bootstrap_intervals(
    labels: npt.ArrayLike, scores: npt.ArrayLike, users: npt.ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of 95 % (Efron 1979) of log-loss, GAUC and PR-AUC.

    Args:
        labels: [E], 0 or 1.
        scores: float [E], log-odds.
        users: int [E], at least 0.
        resamples: how often the users are drawn.
        seed: of the draws.

    Returns:
        By metric; one that is undefined in half of the resamples or more, for want of a class, is absent.
    """
    found = {}
    for name, values in resampled_metrics(labels, scores, users, resamples=resamples, seed=seed).items():
        known = values[~np.isnan(values)]
        if 2 * len(known) > resamples:
            low, high = np.quantile(known, [0.025, 0.975])
            found[name] = (float(low), float(high))
    return found


def bootstrap_difference(a: FloatArray, b: FloatArray) -> PairedDifference:
    """Paired difference of two metrics of the same resamples, float64 [R] each, see :func:`resampled_metrics`.

    The p-value is twice the smaller share of resamples on one side of zero, and at least ``2 / (R + 1)``.
    """
    differences = (a - b)[~np.isnan(a - b)]
    low, high = np.quantile(differences, [0.025, 0.975])
    side = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return PairedDifference(float(low), float(high), min(1.0, 2 * (side + 1) / (len(differences) + 1)))


def resampled_metrics(
    labels: npt.ArrayLike, scores: npt.ArrayLike, users: npt.ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, FloatArray]:
    """Log-loss, GAUC and PR-AUC of resampled users, float64 [R] each, NaN where a resample lacks a class.

    Arguments are those of :func:`bootstrap_intervals`. Scores of the same events with the same seed share resamples.

    Raises:
        ValueError: As :func:`recsys.metrics.auc.roc_auc`, but one class may be missing, or there is no event.
    """
    positive, values = checked(labels, scores)
    if not len(positive):
        raise ValueError("a bootstrap needs an event, got none")
    _, user = np.unique(np.asarray(users), return_inverse=True)
    losses = np.bincount(user, np.logaddexp(0.0, np.where(positive, -values, values).astype(np.float64)))
    aucs, events = group_aucs(positive, values, user)
    graded = np.where(np.isnan(aucs), 0.0, events)
    sums = np.stack([losses, events.astype(np.float64), np.nan_to_num(aucs) * graded, graded], axis=1)
    order = np.argsort(-values, kind="stable")
    last = np.append(values[order][1:] != values[order][:-1], True)
    out = {name: np.empty(resamples) for name in METRICS}
    first = 0
    for counts in resampled_counts(len(events), resamples, seed):
        rows = slice(first, first + len(counts))
        totals = counts.astype(np.float64) @ sums
        with np.errstate(invalid="ignore"):
            out["log_loss"][rows] = totals[:, 0] / totals[:, 1]
            out["gauc"][rows] = totals[:, 2] / totals[:, 3]
        out["pr_auc"][rows] = _average_precisions(counts, user[order], positive[order], last)
        first += len(counts)
    return out


@numba.njit(nogil=True, cache=True)
def _average_precisions(
    counts: npt.NDArray[np.uint8],
    users: npt.NDArray[np.int64],
    positive: npt.NDArray[np.bool_],
    last: npt.NDArray[np.bool_],
) -> FloatArray:
    """Average precision, each event as often as its user was drawn; events by falling score, ``last`` ends a tie."""
    out = np.full(len(counts), np.nan)
    for row in range(len(counts)):
        hits, seen, tied, area = 0, 0, 0, 0.0
        for event in range(len(users)):
            count = counts[row, users[event]]
            seen += count
            tied += count * positive[event]
            if last[event] and tied:
                hits += tied
                area += tied * (hits / seen)
                tied = 0
        if hits:
            out[row] = area / hits
    return out
