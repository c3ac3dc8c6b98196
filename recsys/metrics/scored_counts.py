"""Exact metrics of a stream of scored events, the same for any division of it among workers.

A :class:`ScoredCounts` keeps, for each distinct score, how many positives and negatives have it. Merging two adds
integers, so that every metric, a function of the counts alone, does not depend on batches, workers or their order.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.metrics.auc import checked

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Predicted against observed rates in bins of equally many events, ties kept together.

    Attributes:
        predicted: float64 [B], mean probability of a bin.
        observed: float64 [B], share of positives in it.
        events: int64 [B].
    """

    predicted: FloatArray
    observed: FloatArray
    events: IntArray

    @property
    def error(self) -> float:
        """Expected calibration error (Naeini et al. 2015): mean of ``|predicted - observed|``, weighted by events."""
        return float((np.abs(self.predicted - self.observed) * self.events).sum() / self.events.sum())


@dataclasses.dataclass(frozen=True)
class ScoredCounts:
    """Events by score.

    Attributes:
        scores: float64 [K], distinct and ascending; log-odds where probabilities are asked for.
        positives: int64 [K], events with label 1 at each score.
        negatives: int64 [K].
    """

    scores: FloatArray
    positives: IntArray
    negatives: IntArray

    @classmethod
    def of(cls, labels: npt.ArrayLike, scores: npt.ArrayLike) -> ScoredCounts:
        """Count labels [n], 0 or 1, at float32 or float64 scores [n].

        Raises:
            ValueError: As :func:`recsys.metrics.auc.roc_auc`, but one class may be missing.
        """
        positive, values = checked(labels, scores)
        sides = [np.unique(values[side].astype(np.float64), return_counts=True) for side in (positive, ~positive)]
        (up, ups), (down, downs) = sides
        return _merged(np.concatenate([up, down]), _padded(ups, 0, len(down)), _padded(downs, len(up), 0))

    def merge(self, *others: ScoredCounts) -> ScoredCounts:
        """The counts of this stream and the others together."""
        parts = (self, *others)
        return _merged(
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.positives for part in parts]),
            np.concatenate([part.negatives for part in parts]),
        )

    @property
    def num_positives(self) -> int:
        """Events with label 1."""
        return int(self.positives.sum())

    @property
    def num_negatives(self) -> int:
        """Events with label 0."""
        return int(self.negatives.sum())

    @property
    def probabilities(self) -> FloatArray:
        """``1 / (1 + exp(-score))`` of each score, float64 [K]."""
        return np.exp(-np.logaddexp(0.0, -self.scores))

    def auc(self) -> float:
        """Area under the ROC curve; ties count half (Hanley and McNeil 1982).

        Raises:
            ValueError: One class is missing.
        """
        self._needs_both("AUC")
        below = np.cumsum(self.negatives) - self.negatives
        wins = int((self.positives * (2 * below + self.negatives)).sum())
        return wins / (2 * self.num_positives * self.num_negatives)

    def average_precision(self) -> float:
        """Area under the precision-recall curve by steps, ``sum_t (R_t - R_{t-1}) P_t`` over falling thresholds.

        Raises:
            ValueError: There is no positive.
        """
        if not self.num_positives:
            raise ValueError("average precision needs a positive, got none")
        hits = np.cumsum(self.positives[::-1])
        precision = hits / np.cumsum((self.positives + self.negatives)[::-1])
        return float((precision * self.positives[::-1]).sum() / self.num_positives)

    def log_loss(self) -> float:
        """Mean of ``-ln p(label)`` in nats, the scores being log-odds; infinite ones cost 0 where right, else infinity.

        Raises:
            ValueError: There is no event.
        """
        if not len(self.scores):
            raise ValueError("log-loss needs an event, got none")
        losses = log_losses(self.scores, self.positives, self.negatives)
        return math.fsum(losses) / (self.num_positives + self.num_negatives)

    def normalised_entropy(self) -> float:
        """Log-loss over that of the constant rate of positives (He et al. 2014, eq. 3); below 1 is better than it.

        Raises:
            ValueError: One class is missing.
        """
        self._needs_both("normalised entropy")
        rate = self.num_positives / (self.num_positives + self.num_negatives)
        return self.log_loss() / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))

    def calibration(self) -> tuple[float, float]:
        """Slope and intercept of the labels' logistic regression on the log-odds (Cox 1958); (1, 0) is calibrated.

        A slope below 1 says that the scores are too extreme. Newton's method, to machine
        precision; a step that overshoots is halved. NaN where there is no such regression: a threshold splits the
        classes, all scores are equal, or one is infinite.

        Raises:
            ValueError: One class is missing.
        """
        self._needs_both("calibration")
        if len(self.scores) < 2 or not np.isfinite(self.scores).all() or self._separates():
            return math.nan, math.nan
        totals = self.positives + self.negatives
        centre = float(np.average(self.scores, weights=totals))
        scale = float(np.abs(self.scores - centre).max())
        x = np.stack([(self.scores - centre) / scale, np.ones(len(self.scores))])
        beta = np.array([0.0, math.log(self.num_positives / self.num_negatives)])
        loss = self._logistic_loss(beta @ x)
        for _ in range(200):
            p = np.exp(-np.logaddexp(0.0, -(beta @ x)))
            curvature = (x * (totals * p * (1 - p))) @ x.T
            step = np.linalg.lstsq(curvature, x @ (self.positives - totals * p), rcond=None)[0]
            while (found := self._logistic_loss((beta + step) @ x)) > loss and np.abs(step).max() > 0:
                step = np.where(np.abs(step) > 1e-14 * (1 + np.abs(beta)), step / 2, 0.0)
            beta, loss = beta + step, found
            if np.abs(step).max() < 1e-12 * max(1.0, float(np.abs(beta).max())):
                break
        return float(beta[0] / scale), float(beta[1] - beta[0] / scale * centre)

    def _logistic_loss(self, log_odds: FloatArray) -> float:
        """Negative log-likelihood of the labels under other log-odds, float64 [K], of the same events."""
        return float(self.positives @ np.logaddexp(0, -log_odds) + self.negatives @ np.logaddexp(0, log_odds))

    def reliability(self, bins: int = 20) -> Reliability:
        """Predicted and observed rates by bins; a score with more events than a bin holds makes a bin of its own."""
        totals = self.positives + self.negatives
        middle = np.cumsum(totals) - (totals + 1) / 2
        places = np.minimum((middle * bins / totals.sum()).astype(np.int64), bins - 1)
        _, places = np.unique(places, return_inverse=True)
        events = np.bincount(places, totals)
        predicted = np.bincount(places, self.probabilities * totals) / events
        return Reliability(predicted, np.bincount(places, self.positives) / events, events.astype(np.int64))

    def roc(self) -> tuple[FloatArray, FloatArray]:
        """False and true positive rates over falling thresholds, from (0, 0) to (1, 1), float64 [K + 1] each.

        Raises:
            ValueError: One class is missing.
        """
        self._needs_both("a ROC curve")
        true = np.concatenate([[0], np.cumsum(self.positives[::-1])]) / self.num_positives
        false = np.concatenate([[0], np.cumsum(self.negatives[::-1])]) / self.num_negatives
        return false, true

    def _needs_both(self, what: str) -> None:
        if not self.num_positives or not self.num_negatives:
            raise ValueError(
                f"{what} needs both classes, got {self.num_positives:,} positives and {self.num_negatives:,} negatives"
            )

    def _separates(self) -> bool:
        """Whether a threshold splits the classes, so that the regression has no maximum."""
        up, down = self.scores[self.positives > 0], self.scores[self.negatives > 0]
        return bool(up.min() >= down.max() or down.min() >= up.max())


def log_losses(log_odds: FloatArray, positives: IntArray, negatives: IntArray) -> FloatArray:
    """Sum of ``-ln p(label)`` of the events at each score, float64 [K]."""
    losses = np.zeros((2, len(log_odds)))
    for out, events, against in zip(losses, (positives, negatives), (-log_odds, log_odds), strict=True):
        np.multiply(events, np.logaddexp(0, against), out=out, where=events > 0)  # of no event not even infinity
    total: FloatArray = losses.sum(axis=0)
    return total


def _padded(counts: IntArray, before: int, after: int) -> IntArray:
    return np.pad(counts.astype(np.int64), (before, after))


def _merged(scores: FloatArray, positives: IntArray, negatives: IntArray) -> ScoredCounts:
    return ScoredCounts(*summed((scores + 0.0,), positives, negatives))  # -0.0 is 0.0


def summed(
    keys: tuple[npt.NDArray[Any], ...], positives: IntArray, negatives: IntArray
) -> tuple[npt.NDArray[Any], ...]:
    """The distinct rows of the keys [n], ascending, the first key first, and their sums of the counts [n]: all [K]."""
    order = np.lexsort(keys[::-1])
    keys = tuple(key[order] for key in keys)
    first = np.arange(len(order)) == 0
    for key in keys:
        first[1:] |= key[1:] != key[:-1]
    starts = np.flatnonzero(first)
    return *(key[starts] for key in keys), *(sums_of_runs(side[order], starts) for side in (positives, negatives))


def sums_of_runs(values: npt.NDArray[Any], starts: IntArray) -> npt.NDArray[Any]:
    """Sum of each run of the values, the first of which starts at 0; without a run, empty."""
    return np.add.reduceat(values, starts) if len(starts) else values[:0]
