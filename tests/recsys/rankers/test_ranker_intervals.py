"""The bootstrap of a ranker's metrics, resample by resample against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from recsys.intervals import resampled_counts
from recsys.metrics.grouped_counts import GroupedCounts
from recsys.rankers.intervals import bootstrap_difference, bootstrap_intervals, resampled_metrics


def data(events: int = 600, users: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, log-odds with ties, users with gaps between their ids."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=events), 1).astype(np.float32)
    labels = (rng.random(events) < 1 / (1 + np.exp(-scores))).astype(np.uint8)
    return labels, scores, 3 * rng.integers(0, users, events).astype(np.int32)


def test_each_resample_has_the_metrics_of_its_events() -> None:
    labels, scores, users = data()
    found = resampled_metrics(GroupedCounts.of(labels, scores, users), resamples=70, seed=5)
    known, place = np.unique(users, return_inverse=True)
    counts = np.concatenate(list(resampled_counts(len(known), 70, 5)))
    assert counts.shape == (70, len(known))
    for row in (0, 63, 64, 69):
        weights = counts[row][place]
        probability = 1 / (1 + np.exp(-scores.astype(np.float64)))
        assert found["log_loss"][row] == pytest.approx(log_loss(labels, probability, sample_weight=weights), abs=1e-12)
        average = average_precision_score(labels, scores, sample_weight=weights)
        assert found["pr_auc"][row] == pytest.approx(average, abs=1e-12)
        aucs = [
            (roc_auc_score(labels[place == user], scores[place == user]), counts[row][user] * (place == user).sum())
            for user in range(len(known))
            if len(set(labels[place == user])) == 2
        ]
        values, sizes = zip(*aucs, strict=True)
        assert found["gauc"][row] == pytest.approx(np.average(values, weights=sizes), abs=1e-12)


def test_intervals_hold_the_value_and_repeat() -> None:
    labels, scores, users = data()
    counts = GroupedCounts.of(labels, scores, users)
    found = bootstrap_intervals(counts)
    low, high = found["pr_auc"]
    assert low < average_precision_score(labels, scores) < high
    assert set(found) == {"log_loss", "gauc", "pr_auc"}
    assert bootstrap_intervals(counts) == found
    assert bootstrap_intervals(counts, seed=1) != found


def test_events_of_a_user_are_drawn_together() -> None:
    """Copies of a user's events say nothing new: the interval stays, where one over events would shrink."""
    labels, scores, users = data()
    once = bootstrap_intervals(GroupedCounts.of(labels, scores, users))
    often = bootstrap_intervals(GroupedCounts.of(*(np.repeat(array, 9) for array in (labels, scores, users))))
    assert often["log_loss"] == pytest.approx(once["log_loss"])


def test_a_difference_is_seen_and_none_is_not() -> None:
    labels, scores, users = data(3000, 200)
    worse = scores + np.random.default_rng(1).normal(size=len(scores)).astype(np.float32) * 2
    a, b = (resampled_metrics(GroupedCounts.of(labels, values, users))["log_loss"] for values in (scores, worse))
    found = bootstrap_difference(a, b)
    assert found.high < 0
    assert found.p == pytest.approx(2 / 1001)
    same = bootstrap_difference(a, a)
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)


def test_what_one_class_leaves_undefined_is_absent() -> None:
    scores, users = np.arange(6, dtype=np.float32), np.arange(6)
    assert set(bootstrap_intervals(GroupedCounts.of(np.zeros(6), scores, users))) == {"log_loss"}
    assert set(bootstrap_intervals(GroupedCounts.of([0, 1] * 3, scores, users))) == {"log_loss", "pr_auc"}
    with pytest.raises(ValueError, match="a bootstrap needs an event, got none"):
        bootstrap_intervals(GroupedCounts.of([], [], []))
