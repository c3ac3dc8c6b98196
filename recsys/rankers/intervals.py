"""Bootstrap of a ranker's metrics: users are drawn with all their events, for a user's events are not independent."""

from __future__ import annotations

import dataclasses

import numba
import numpy as np
import numpy.typing as npt

from recsys.intervals import resampled_counts
from recsys.metrics.grouped_counts import GroupedCounts

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
METRICS = ("log_loss", "gauc", "pr_auc")
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """95 % interval and two-sided p-value of one scoring minus another of the same events."""

    low: float
    high: float
    p: float


def bootstrap_intervals(
    counts: GroupedCounts, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of 95 % (Efron 1979) of log-loss, GAUC and PR-AUC.

    Args:
        counts: events by user and log-odds.
        resamples: how often the users are drawn.
        seed: of the draws.

    Returns:
        By metric; one that is undefined in half of the resamples or more, for want of a class, is absent.
    """
    found = {}
    for name, values in resampled_metrics(counts, resamples=resamples, seed=seed).items():
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


def resampled_metrics(counts: GroupedCounts, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, FloatArray]:
    """Log-loss, GAUC and PR-AUC of resampled users, float64 [R] each, NaN where a resample lacks a class.

    Arguments are those of :func:`bootstrap_intervals`. Scores of the same events with the same seed share resamples.

    Raises:
        ValueError: There is no event.
    """
    if not len(counts.scores):
        raise ValueError("a bootstrap needs an event, got none")
    aucs, events = counts.group_aucs()
    graded = np.where(np.isnan(aucs), 0, events)
    sums = np.stack([counts.group_log_losses(), events, np.nan_to_num(aucs) * graded, graded], axis=1)
    falling = _falling(counts)
    out = {name: np.empty(resamples) for name in METRICS}
    first = 0
    for drawn in resampled_counts(len(events), resamples, seed):
        rows = slice(first, first + len(drawn))
        totals = drawn.astype(np.float64) @ sums
        with np.errstate(invalid="ignore"):
            out["log_loss"][rows] = totals[:, 0] / totals[:, 1]
            out["gauc"][rows] = totals[:, 2] / totals[:, 3]
        out["pr_auc"][rows] = _average_precisions(drawn, *falling)
        first += len(drawn)
    return out


def _falling(counts: GroupedCounts) -> tuple[IntArray, IntArray, IntArray, npt.NDArray[np.bool_]]:
    """By falling score: the place of the user among the users, positives, all events, and whether the score ends."""
    order = np.argsort(-counts.scores, kind="stable")
    starts, scores = counts.starts, counts.scores[order]
    users = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    totals = counts.positives + counts.negatives
    return users[order], counts.positives[order], totals[order], np.append(scores[1:] != scores[:-1], True)


@numba.njit(nogil=True, cache=True)
def _average_precisions(
    drawn: npt.NDArray[np.uint8],
    users: IntArray,
    positives: IntArray,
    totals: IntArray,
    last: npt.NDArray[np.bool_],
) -> FloatArray:
    """Average precision of each row of ``drawn``, how often each user is; the rest is from :func:`_falling`."""
    out = np.full(len(drawn), np.nan)
    for row in range(len(drawn)):
        hits, seen, tied, area = 0, 0, 0, 0.0
        for place in range(len(users)):
            times = drawn[row, users[place]]
            seen += times * totals[place]
            tied += times * positives[place]
            if last[place] and tied:
                hits += tied
                area += tied * (hits / seen)
                tied = 0
        if hits:
            out[row] = area / hits
    return out
