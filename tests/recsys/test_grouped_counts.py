"""Counts by group: each group's AUC is scikit-learn's, and workers change no bit of a ranker's evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from recsys.metrics.delong import auc_interval
from recsys.metrics.grouped_counts import GroupedCounts
from recsys.metrics.scored_counts import ScoredCounts
from recsys.rankers.evaluation import evaluate_counts
from recsys.rankers.intervals import bootstrap_intervals


def data(count: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, log-odds with ties, groups some of which have one class."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.1).astype(np.uint8)
    scores = rng.integers(-10, 10, count).astype(np.float32) / 3 + labels
    return labels, scores, rng.integers(-5, 35, count)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_groups_equal_scikit_learn(dtype: type) -> None:
    labels, scores, groups = data()
    counts = GroupedCounts.of(labels, scores.astype(dtype), groups)
    aucs, sizes = counts.group_aucs()
    ids = np.unique(groups)
    rows = [groups == group for group in ids]
    expected = [roc_auc_score(labels[own], scores[own]) if 0 < labels[own].mean() < 1 else np.nan for own in rows]
    np.testing.assert_allclose(aucs, expected, atol=1e-12)
    assert sizes.tolist() == [own.sum() for own in rows]
    assert counts.groups[counts.starts].tolist() == ids.tolist()
    both = ~np.isnan(aucs)
    found = counts.auc()
    assert found.value == pytest.approx(np.average(aucs[both], weights=sizes[both]), abs=1e-12)
    assert (found.groups, found.skipped, found.impressions) == (both.sum(), (~both).sum(), sizes[both].sum())
    assert found.skipped > 0


def test_without_their_groups_the_events_are_scored_counts() -> None:
    labels, scores, groups = data()
    expected, found = ScoredCounts.of(labels, scores), GroupedCounts.of(labels, scores, groups).ungrouped()
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), values)
        assert getattr(found, name).dtype == values.dtype


@pytest.mark.parametrize("seed", range(3))
def test_workers_change_no_bit(seed: int) -> None:
    """Events are dealt to seven workers at random, so that users are spread over several, and merged in any order."""
    labels, scores, groups = data(seed=seed)
    whole = GroupedCounts.of(labels, scores, groups)
    rng = np.random.default_rng(seed + 10)
    worker = rng.integers(0, 7, len(labels))
    dealt = [worker == place for place in rng.permutation(7)]
    parts = [GroupedCounts.of(labels[own], scores[own], groups[own]) for own in dealt]
    slices = [ScoredCounts.of(labels[own], scores[own]) for own in dealt]
    nothing = GroupedCounts.of([], [], [])
    for merged in (parts[0].merge(*parts[1:]), nothing.merge(parts[3].merge(*parts[:3]), parts[4].merge(*parts[5:]))):
        for name, values in vars(whole).items():
            np.testing.assert_array_equal(getattr(merged, name), values)
        assert merged.auc() == whole.auc()
        assert auc_interval(merged.ungrouped()) == auc_interval(whole.ungrouped())
        assert bootstrap_intervals(merged, resamples=70) == bootstrap_intervals(whole, resamples=70)
    of_all = {"all": [("events", slices[0].merge(*slices[1:]))]}
    expected = evaluate_counts(whole, {"all": [("events", ScoredCounts.of(labels, scores))]})
    assert evaluate_counts(parts[0].merge(*parts[1:]), of_all) == expected


def test_equal_zeros_are_one_score() -> None:
    counts = GroupedCounts.of([0, 1], [0.0, -0.0], [3, 3])
    assert (counts.positives.tolist(), counts.negatives.tolist(), counts.auc().value) == ([1], [1], 0.5)


def test_no_events_have_no_groups() -> None:
    nothing = GroupedCounts.of([], [], [])
    assert [len(found) for found in nothing.group_aucs()] == [0, 0]
    assert len(nothing.ungrouped().scores) == len(nothing.merge(nothing).scores) == len(nothing.group_log_losses()) == 0


def test_errors() -> None:
    with pytest.raises(ValueError, match="all 2 groups have one"):
        GroupedCounts.of([0, 1], [0.0, 1.0], [3, 4]).auc()
    with pytest.raises(ValueError, match=r"one id per label, got \[1\] for \[2\] labels"):
        GroupedCounts.of([0, 1], [0.0, 1.0], [3])
    with pytest.raises(ValueError, match=r"scores must not be NaN, but scores\[1\] is"):
        GroupedCounts.of([0, 1], [0.0, np.nan], [3, 3])
