"""Exact metrics of counts: equal to scikit-learn, and the same for any division of the stream."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score, roc_curve

from recsys.metrics.auc import roc_auc
from recsys.metrics.delong import auc_difference, auc_interval
from recsys.metrics.scored_counts import ScoredCounts


def data(count: int = 4000, seed: int = 0, ties: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated log-odds with ties."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(-1, 1.5, count) * ties) / ties
    return (rng.random(count) < 1 / (1 + np.exp(-scores))).astype(np.int64), scores


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_scikit_learn(seed: int) -> None:
    labels, scores = data(seed=seed, ties=[3, 40, 10**6, 1][seed])
    counts = ScoredCounts.of(labels, scores)
    probability = 1 / (1 + np.exp(-scores))
    assert counts.auc() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert counts.average_precision() == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert counts.log_loss() == pytest.approx(log_loss(labels, probability), abs=1e-12)
    base = log_loss(labels, np.full(len(labels), labels.mean()))
    assert counts.normalised_entropy() == pytest.approx(counts.log_loss() / base, abs=1e-12)
    slope, intercept = counts.calibration()
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(scores[:, None], labels)
    assert (slope, intercept) == pytest.approx((oracle.coef_[0, 0], oracle.intercept_[0]), abs=1e-6)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(np.stack(counts.roc()), np.stack([false, true]), atol=1e-15)


def test_workers_and_their_order_change_nothing() -> None:
    labels, scores = data(1000)
    whole = ScoredCounts.of(labels, scores)
    parts = [ScoredCounts.of(labels[i::7], scores[i::7]) for i in range(7)]
    one = parts[0].merge(*parts[1:])
    other = parts[6].merge(parts[2], parts[0]).merge(parts[1].merge(parts[5]), parts[4], parts[3])
    for merged in (one, other):
        assert np.array_equal(merged.scores, whole.scores)
        assert (merged.auc(), merged.log_loss(), merged.average_precision()) == (
            whole.auc(),
            whole.log_loss(),
            whole.average_precision(),
        )
        assert merged.calibration() == whole.calibration()


def test_reliability_bins_by_hand() -> None:
    logit = np.log(np.array([0.1, 0.1, 0.4, 0.8]) / (1 - np.array([0.1, 0.1, 0.4, 0.8])))
    found = ScoredCounts.of([0, 1, 1, 1], logit).reliability(2)
    np.testing.assert_allclose(found.predicted, [0.1, 0.6])
    np.testing.assert_allclose(found.observed, [0.5, 1.0])
    assert found.events.tolist() == [2, 2]
    assert found.error == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)


def test_calibration_of_scaled_log_odds() -> None:
    """Doubling the log-odds halves the slope; adding to them moves the intercept."""
    labels, scores = data(20_000)
    slope, intercept = ScoredCounts.of(labels, scores).calibration()
    assert (slope, intercept) == pytest.approx((1.0, 0.0), abs=0.1)
    assert ScoredCounts.of(labels, 2 * scores).calibration() == pytest.approx((slope / 2, intercept), abs=1e-9)
    assert ScoredCounts.of(labels, scores + 3).calibration() == pytest.approx((slope, intercept - 3 * slope), abs=1e-9)


@pytest.mark.parametrize("seed", [87, 103, 378])
def test_calibration_of_scores_with_enormous_outliers(seed: int) -> None:
    """Whole Newton steps diverge here; at the maximum the residuals are orthogonal to the scores and to ones."""
    draws = np.random.default_rng(seed)
    count = int(draws.integers(4, 60))
    scores = draws.standard_cauchy(count) ** draws.integers(1, 4)
    labels = (draws.random(count) < draws.random()).astype(int)
    slope, intercept = ScoredCounts.of(labels, scores).calibration()
    residuals = labels - np.exp(-np.logaddexp(0, -(slope * scores + intercept)))
    assert abs(residuals.sum()) < 1e-6
    assert abs(residuals @ scores) < 1e-6 * np.abs(scores).max()


def delong_oracle(labels: np.ndarray, *scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUCs and their covariance from the P x N kernel matrix (DeLong et al. 1988, eq. 2 to 6)."""
    kernels = []
    for score in scores:
        up, down = score[labels == 1], score[labels == 0]
        kernels.append((up[:, None] > down) + 0.5 * (up[:, None] == down))
    kernels = np.array(kernels)
    tens, ones = kernels.mean(2), kernels.mean(1)
    covariance = np.cov(tens) / tens.shape[1] + np.cov(ones) / ones.shape[1]
    return kernels.mean((1, 2)), np.atleast_2d(covariance)


def test_delong_is_its_definition() -> None:
    labels, a = data(300, ties=3)
    b = a + np.random.default_rng(9).normal(0, 1, 300).round(1)
    aucs, covariance = delong_oracle(labels, a, b)
    found = auc_interval(ScoredCounts.of(labels, a))
    assert (found.value, found.error) == pytest.approx((aucs[0], covariance[0, 0] ** 0.5), abs=1e-12)
    assert found.value == pytest.approx(roc_auc(labels, a), abs=1e-14)
    assert found.high - found.value == pytest.approx(1.96 * found.error, rel=1e-4)
    pair = auc_difference(labels, a, b)
    error = (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) ** 0.5
    assert pair.difference == pytest.approx(aucs[0] - aucs[1], abs=1e-12)
    assert pair.high - pair.difference == pytest.approx(1.959964 * error, rel=1e-6)
    assert pair.p == pytest.approx(math.erfc(abs(aucs[0] - aucs[1]) / error / 2**0.5), rel=1e-9)


def test_a_system_against_itself_has_no_difference() -> None:
    labels, a = data(200)
    pair = auc_difference(labels, a, a)
    assert (pair.difference, pair.low, pair.high, pair.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_difference_whose_variance_is_not_known_is_not_certain() -> None:
    """Perfect scores against constant ones move every event alike: DeLong's variance is 0 at any number of events."""
    labels = np.repeat([0, 1], 3)
    pair = auc_difference(labels, labels, np.zeros(6))
    assert (pair.difference, pair.low, pair.high, pair.p) == (0.5, -1.0, 1.0, 1.0)
    shifted = auc_difference(labels, [0, 1, 2, 0, 1, 2], [1, 3, 5, 0, 2, 4])
    assert shifted.difference == pytest.approx(1 / 6)
    assert (shifted.low, shifted.high, shifted.p) == (-1.0, 1.0, 1.0)


def test_degenerate_input() -> None:
    ones = ScoredCounts.of([1, 1], [0.1, 0.2])
    for compute in (ones.auc, ones.normalised_entropy, ones.calibration, ones.roc):
        with pytest.raises(ValueError, match="needs both classes, got 2 positives and 0 negatives"):
            compute()
    with pytest.raises(ValueError, match="needs a positive, got none"):
        ScoredCounts.of([0, 0], [0.1, 0.2]).average_precision()
    with pytest.raises(ValueError, match="log-loss needs an event, got none"):
        ScoredCounts.of(np.empty(0, np.int64), np.empty(0)).log_loss()
    with pytest.raises(ValueError, match=r"labels must be 0 or 1, but labels\[1\] is 2"):
        ScoredCounts.of([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="two events of each class, got 1 and 2"):
        auc_interval(ScoredCounts.of([1, 0, 0], [0.3, 0.1, 0.2]))
    with pytest.raises(ValueError, match="two events of each class, got 2 and 1"):
        auc_difference([1, 0, 1], [0.3, 0.1, 0.2], [0.3, 0.1, 0.2])
    constant = ScoredCounts.of([0, 1, 1], [0.5, 0.5, 0.5])
    assert constant.auc() == 0.5
    assert all(math.isnan(value) for value in constant.calibration())
    separated = ScoredCounts.of([0, 1], [-1.0, 1.0])
    assert separated.auc() == 1.0
    assert all(math.isnan(value) for value in separated.calibration())
    assert ScoredCounts.of([0, 1], [0.0, -0.0]).auc() == 0.5


def test_infinite_log_odds_are_certain() -> None:
    labels, scores = data(200)
    certain = np.where(labels == 1, np.inf, -np.inf)
    some = np.arange(200) % 3 == 0
    right = ScoredCounts.of(labels, np.where(some, certain, scores))
    finite = ScoredCounts.of(labels[~some], scores[~some])
    assert right.log_loss() == pytest.approx(finite.log_loss() * (~some).mean(), abs=1e-12)
    assert ScoredCounts.of(labels, certain).log_loss() == 0.0
    for wrong in (0, 1):
        place = int(np.flatnonzero(labels == wrong)[0])
        told = ScoredCounts.of(labels, np.where(np.arange(200) == place, -certain, scores))
        assert told.log_loss() == told.normalised_entropy() == math.inf
        assert all(map(math.isnan, told.calibration()))
        assert told.auc() == roc_auc(labels, np.where(np.arange(200) == place, -certain, scores))
        assert 0 < told.reliability().error < 1
    assert all(map(math.isnan, right.calibration()))
