"""Scored events by group: the AUC within groups, the same for any division of the events among workers."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from recsys.metrics.auc import checked
from recsys.metrics.scored_counts import ScoredCounts, log_losses, summed, sums_of_runs

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class GroupAuc:
    """AUC by group.

    Attributes:
        value: mean of the groups' AUCs weighted by impressions.
        groups: groups with both classes.
        skipped: groups with one class, which have no AUC.
        impressions: events in ``groups``.
    """

    value: float
    groups: int
    skipped: int
    impressions: int


@dataclasses.dataclass(frozen=True)
class GroupedCounts:
    """Events by group and score, distinct pairs in ascending order; merging adds integers.

    Attributes:
        groups: int64 [K], for example user ids.
        scores: float64 [K]; log-odds where probabilities are asked for.
        positives: int64 [K], events with label 1 of each group at each score.
        negatives: int64 [K].
    """

    groups: IntArray
    scores: FloatArray
    positives: IntArray
    negatives: IntArray

    @classmethod
    def of(cls, labels: npt.ArrayLike, scores: npt.ArrayLike, groups: npt.ArrayLike) -> GroupedCounts:
        """Count labels [n], 0 or 1, at float32 or float64 scores [n] of int groups [n].

        Raises:
            ValueError: As :meth:`ScoredCounts.of`, or the groups are not one id per label.
        """
        positive, values = checked(labels, scores)
        ids = np.asarray(groups)
        if ids.shape != positive.shape:
            raise ValueError(
                f"groups must have one id per label, got {list(ids.shape)} for {list(positive.shape)} labels"
            )
        log_odds = values.astype(np.float64) + 0.0  # -0.0 is 0.0
        return cls(*summed((ids.astype(np.int64), log_odds), positive.astype(np.int64), (~positive).astype(np.int64)))

    def merge(self, *others: GroupedCounts) -> GroupedCounts:
        """The counts of these events and the others together; a group may be spread over several."""
        parts = (self, *others)
        keys = np.concatenate([part.groups for part in parts]), np.concatenate([part.scores for part in parts])
        sides = [np.concatenate([getattr(part, side) for part in parts]) for side in ("positives", "negatives")]
        return GroupedCounts(*summed(keys, *sides))

    def ungrouped(self) -> ScoredCounts:
        """The same events by score alone."""
        return ScoredCounts(*summed((self.scores,), self.positives, self.negatives))

    @property
    def starts(self) -> IntArray:
        """Where each of the G groups starts, int64 [G]."""
        return np.flatnonzero(np.diff(self.groups, prepend=self.groups[:1] - 1))

    def group_aucs(self) -> tuple[FloatArray, IntArray]:
        """Exact AUC of every group, float64 [G] by ascending id, NaN for one class; and its events, int64 [G]."""
        starts = self.starts
        ups, downs = (sums_of_runs(side, starts) for side in (self.positives, self.negatives))
        below = np.cumsum(self.negatives) - self.negatives
        below -= np.repeat(below[starts], np.diff(starts, append=len(below)))
        wins = sums_of_runs(self.positives * (2 * below + self.negatives), starts)
        aucs = np.full(len(starts), np.nan)
        np.divide(wins, 2 * ups * downs, out=aucs, where=(ups > 0) & (downs > 0))
        return aucs, ups + downs

    def auc(self) -> GroupAuc:
        """AUC within each group, weighted by impressions (Zhu et al. 2017, "Optimized cost per click", eq. 8).

        Raises:
            ValueError: No group has both classes.
        """
        aucs, sizes = self.group_aucs()
        valid = ~np.isnan(aucs)
        if not valid.any():
            raise ValueError(f"grouped AUC needs a group with both classes, but all {len(aucs):,} groups have one")
        value = float((aucs[valid] * sizes[valid]).sum() / sizes[valid].sum())
        return GroupAuc(value, int(valid.sum()), int((~valid).sum()), int(sizes[valid].sum()))

    def group_log_losses(self) -> FloatArray:
        """Sum of ``-ln p(label)`` of every group's events in nats, the scores being log-odds, float64 [G]."""
        return sums_of_runs(log_losses(self.scores, self.positives, self.negatives), self.starts)
