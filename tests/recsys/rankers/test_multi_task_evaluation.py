"""Evaluation of several tasks: metrics on known labels, intervals that cover, paired tests of events and of seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error, r2_score, roc_auc_score

from recsys.rankers.multi_task import Task
from recsys.rankers.multi_task_evaluation import evaluate_task, headline, seed_difference, task_difference
from recsys.task_events import TaskEvents

WATCH, RATING = Task("watch", "binary"), Task("rating", "regression", mean=1.0, deviation=2.0)
PLACES = {"user": "user", "item": "item"}


def events(count: int = 400, seed: int = 0) -> TaskEvents:
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.random(count) < 0.4, rng.normal(1.0, 2.0, count)], axis=1).astype(np.float32)
    labels[rng.random((count, 2)) < 0.3] = np.nan
    ids = rng.integers(0, 9, (count, 2)).astype(np.int32)
    return TaskEvents(ids, labels, ("user", "item"), ("watch", "rating"))


def test_a_binary_task_is_evaluated_on_its_known_labels() -> None:
    data = events()
    scores = np.random.default_rng(1).normal(size=len(data)).astype(np.float32)
    found = evaluate_task(WATCH, data, scores, data, **PLACES)
    known = ~np.isnan(data.labels[:, 0])
    assert found["events"] == known.sum()
    labels = data.labels[known, 0]
    assert found["metrics"]["auc"] == pytest.approx(roc_auc_score(labels, scores[known]), abs=1e-12)
    probabilities = 1 / (1 + np.exp(-scores[known].astype(np.float64)))
    assert found["metrics"]["log_loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    seen = {row["label"]: row["events"] for row in found["slices"]["train events of the user"]}
    assert seen == {"20 to 99": known.sum()}
    assert headline(WATCH) == "auc"


def test_a_regression_is_evaluated_on_its_known_labels() -> None:
    data = events()
    predictions = np.random.default_rng(1).normal(1.0, 1.0, len(data)).astype(np.float32)
    found = evaluate_task(RATING, data, predictions, data, **PLACES)
    known = ~np.isnan(data.labels[:, 1])
    pair = data.labels[known, 1].astype(np.float64), predictions[known].astype(np.float64)
    assert found["metrics"]["rmse"] == pytest.approx(mean_squared_error(*pair) ** 0.5)
    assert found["metrics"]["mae"] == pytest.approx(mean_absolute_error(*pair))
    assert found["metrics"]["r2"] == pytest.approx(r2_score(*pair))
    low, high = found["ci95"]["rmse"]
    assert low < found["metrics"]["rmse"] < high
    assert headline(RATING) == "rmse"


def test_one_label_has_neither_an_interval_nor_a_share_of_variance() -> None:
    labels = np.array([[1.0, 3.0], [0.0, np.nan]], np.float32)
    data = TaskEvents(np.zeros((2, 2), np.int32), labels, ("user", "item"), ("watch", "rating"))
    found = evaluate_task(RATING, data, np.array([2.0, 9.0], np.float32), data, **PLACES)
    assert found == {"events": 1, "metrics": {"rmse": 1.0, "mae": 1.0}, "ci95": {}}


def test_intervals_cover_the_true_error_and_the_true_difference() -> None:
    """In 300 draws about 95 % of the intervals hold what they are of: rmse 1, and the difference from rmse 1.2."""
    covered, told, rejected = 0, 0, 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        labels = rng.normal(size=(300, 1)).astype(np.float32)
        data = TaskEvents(np.zeros((300, 1), np.int32), labels, ("user",), ("rating",))
        shared = rng.normal(size=300)
        a, b = labels[:, 0] + shared, labels[:, 0] + 1.2 * shared * rng.choice([-1, 1], 300)
        task = Task("rating", "regression")
        low, high = evaluate_task(task, data, a, data, user="user", item="user")["ci95"]["rmse"]
        covered += low < 1 < high
        found = task_difference(task, data, a, b)
        told += found.low < -0.2 < found.high
        same = task_difference(task, data, a, labels[:, 0] + rng.normal(size=300))
        rejected += same.p < 0.05
    assert 270 < covered <= 298
    assert 270 < told <= 300
    assert rejected < 30


def test_a_paired_difference_is_the_difference_of_the_metrics() -> None:
    data = events()
    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=len(data)).astype(np.float32) for _ in range(2))
    for task in (WATCH, RATING):
        metric = headline(task)
        values = [evaluate_task(task, data, scores, data, **PLACES)["metrics"][metric] for scores in (a, b)]
        found = task_difference(task, data, a, b)
        assert found.difference == pytest.approx(values[0] - values[1], rel=1e-6)
        assert found.low < found.difference < found.high
        turned = task_difference(task, data, b, a)
        assert (turned.difference, turned.p) == pytest.approx((-found.difference, found.p))
        assert task_difference(task, data, a, a).p == 1.0
    exact = data.labels[:, 1]
    assert task_difference(RATING, data, exact, exact).p == 1.0


@pytest.mark.parametrize("count", [2, 3, 7, 1000])
def test_a_difference_without_spread_is_not_certain(count: int) -> None:
    """A shift of every pair by the same amount: rounding alone would give a spread, and p near 0."""
    for a, b in ((0.9, 0.8), (0.1, 0.3), (1e6 + 0.1, 1e6)):
        found = seed_difference([a] * count, [b] * count)
        assert found is not None
        assert found.difference == pytest.approx(a - b)
        assert (found.low, found.high, found.p) == (-math.inf, math.inf, 1.0)
    steps = np.linspace(0.7, 0.9, count)
    shifted, same = seed_difference(list(steps + 0.01), list(steps)), seed_difference(list(steps), list(steps))
    assert shifted is not None and same is not None
    assert (shifted.low, shifted.high, shifted.p) == (-math.inf, math.inf, 1.0)
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    labels = np.arange(count, dtype=np.float32)[:, None]
    data = TaskEvents(np.zeros((count, 1), np.int32), labels, ("user",), ("rating",))
    rmse = task_difference(RATING, data, labels[:, 0] + 0.5, labels[:, 0] - 0.25)
    assert rmse.difference == pytest.approx(0.25)
    assert (rmse.low, rmse.high, rmse.p) == (-math.inf, math.inf, 1.0)
    turned = task_difference(RATING, data, labels[:, 0] + 0.5, labels[:, 0] - 0.5)
    assert (turned.difference, turned.low, turned.high, turned.p) == (0.0, 0.0, 0.0, 1.0)


def test_one_pair_and_perfect_scores_tell_no_more_than_in_delong() -> None:
    one = TaskEvents(np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32), ("user",), ("rating",))
    assert task_difference(RATING, one, np.array([3.0]), np.array([2.0])).p == 1.0
    watched = np.repeat([0.0, 1.0], 3).astype(np.float32)[:, None]
    data = TaskEvents(np.zeros((6, 1), np.int32), watched, ("user",), ("watch",))
    found = task_difference(WATCH, data, watched[:, 0], np.zeros(6, np.float32))
    assert (found.difference, found.low, found.high, found.p) == (0.5, -1.0, 1.0, 1.0)


def test_a_small_but_real_spread_is_tested() -> None:
    a, b = [0.8 + 1e-9, 0.8 + 2e-9, 0.8 + 3e-9], [0.8, 0.8, 0.8]
    found, expected = seed_difference(a, b), stats.ttest_rel(a, b)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue)


def test_seeds_are_pairs_of_a_t_test() -> None:
    a, b = [0.81, 0.84, 0.80, 0.83], [0.80, 0.81, 0.805, 0.80]
    found, expected = seed_difference(a, b), stats.ttest_rel(a, b)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue)
    bounds = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high))
    assert seed_difference([0.8], [0.7]) is None
    same = seed_difference([0.8, 0.9], [0.8, 0.9])
    assert same is not None
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
