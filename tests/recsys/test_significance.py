from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from recsys.intervals import bootstrap_means, bootstrap_ratios, resampled_sums
from recsys.significance import holm, paired_test, seed_and_user_variance


def test_bootstrap_interval_is_the_normal_one_for_many_users() -> None:
    values = np.random.default_rng(0).gamma(1.0, size=(4000, 2)) * [1, 10]
    low, high = bootstrap_means(values, 4000, seed=1)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    np.testing.assert_allclose(low, values.mean(axis=0) - 1.96 * error, atol=0.15 * error.max())
    np.testing.assert_allclose((high - low) / (2 * 1.96 * error), 1, atol=0.05)


def test_resamples_repeat_and_are_shared() -> None:
    values = np.random.default_rng(0).random((50, 3))
    sums = resampled_sums(values, 130, seed=3)
    np.testing.assert_array_equal(sums, resampled_sums(values, 130, seed=3))
    np.testing.assert_allclose(sums[:, :1], resampled_sums(values[:, :1], 130, seed=3), rtol=1e-14)
    np.testing.assert_allclose(sums[:40], resampled_sums(values, 40, seed=3), rtol=1e-14)
    assert not np.array_equal(sums, resampled_sums(values, 130, seed=4))
    np.testing.assert_allclose(resampled_sums(np.ones((50, 1)), 130, seed=3), 50)
    assert len(np.unique(sums[:, 0])) > 120


def test_ratio_interval_is_that_of_the_ratio_of_sums() -> None:
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 9, (500, 1)).astype(np.float64)
    values = weights * 0.25
    low, high = bootstrap_ratios(np.hstack([values, values * 0]), np.hstack([weights, weights * 0]), 200, seed=0)
    assert (low[0], high[0]) == (0.25, 0.25)
    assert np.isnan([low[1], high[1]]).all()


def test_planted_difference_is_found_and_signed() -> None:
    rng = np.random.default_rng(0)
    b = rng.random(2000)
    a = b + 0.02 + rng.normal(0, 0.1, 2000)
    test = paired_test(a, b, seed=0)
    assert test.low < 0.02 < test.high
    assert test.low < test.difference < test.high
    assert test.difference == pytest.approx((a - b).mean())
    assert test.relative == pytest.approx(a.mean() / b.mean() - 1)
    assert test.relative_low < test.relative < test.relative_high
    standard = (a - b).sum() / np.sqrt(((a - b) ** 2).sum())
    assert test.p == pytest.approx(2 * stats.norm.sf(standard), rel=0.25)
    assert test.users == 2000
    mirrored = paired_test(b, a, seed=0)
    assert (mirrored.low, mirrored.high) == pytest.approx((-test.high, -test.low))
    assert paired_test(a, b, seed=0) == test


@pytest.mark.parametrize("users", [5, 8, 11])
def test_p_is_that_of_all_sign_flips(users: int) -> None:
    differences = np.round(np.random.default_rng(users).normal(0.5, 1, users), 1)
    flips = np.array(list(itertools.product([-1, 1], repeat=users)))
    exact = (np.abs(flips @ differences) >= abs(differences.sum()) - 1e-9).mean()
    found = paired_test(differences, np.zeros(users), permutations=40_000).p
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000) + 1e-4)


@pytest.mark.parametrize("users", [18, 22])
@pytest.mark.parametrize("seed", range(3))
def test_rare_p_is_that_of_all_sign_flips(users: int, seed: int) -> None:
    differences = np.random.default_rng(seed).gamma(2.0, size=users)
    differences[differences.argsort()[1:5]] *= -1
    sums = np.zeros(1)
    for difference in differences:
        sums = np.add.outer(sums, [difference, -difference]).ravel()
    exact = (np.abs(sums) >= abs(differences.sum()) - 1e-9).mean()
    assert exact < 3e-3
    assert paired_test(differences, np.zeros(users)).p == pytest.approx(exact, rel=1e-9 if users == 18 else 0.05)


@pytest.mark.parametrize(("better", "worse", "size"), [(18, 3, 1.0), (45, 15, 1 / 3), (95, 5, 0.1), (1300, 1000, 1.0)])
def test_p_of_hits_is_that_of_the_sign_test(better: int, worse: int, size: float) -> None:
    differences = np.repeat([size, -size, 0.0], [better, worse, 500])
    exact = stats.binomtest(better, better + worse).pvalue
    found = paired_test(differences, np.zeros(len(differences))).p
    assert found == pytest.approx(exact, rel=1e-9 if exact < 2e-4 else 0.5)


@pytest.mark.parametrize(("users", "least"), [(12, 2**-11), (40, 2**-39), (3000, np.finfo(np.float64).tiny)])
def test_p_of_one_sign_is_that_of_two_flips(users: int, least: float) -> None:
    assert paired_test(np.linspace(1, 2, users), np.zeros(users)).p == least


def test_a_clear_difference_survives_hundreds_of_pairs() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 1500)) + np.array([[0.1], [0.0]])
    clear, none = paired_test(a, b).p, paired_test(b, b[::-1]).p
    assert holm([clear, *[none] * 700])[0] < 1e-6


def test_p_is_uniform_under_the_null() -> None:
    rng = np.random.default_rng(5)
    found = [paired_test(*rng.normal(size=(2, 60)), seed=i, permutations=199, resamples=10).p for i in range(300)]
    assert stats.kstest(found, "uniform").pvalue > 0.001


def test_equal_systems() -> None:
    values = np.arange(9.0)
    test = paired_test(values, values)
    assert (test.difference, test.low, test.high, test.relative, test.p) == (0, 0, 0, 0, 1)
    assert np.isnan(paired_test(values, values * 0).relative)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0, 2.0], [1.0], r"got shapes \[2\] and \[1\]"),
        ([], [], r"got shapes \[0\] and \[0\]"),
        ([1.0, 2.0, 3.0], [1.0, np.nan, np.nan], r"pair 1 is \(2.0, nan\); leave out the 2 users"),
    ],
)
def test_paired_errors(a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_test(np.array(a), np.array(b))


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"\[0, 1\], but number 1 is 1.5"):
        holm([0.1, 1.5])


def test_variance_components_are_recovered() -> None:
    rng = np.random.default_rng(2)
    values = 0.3 + rng.normal(0, 0.02, (200, 1)) + rng.normal(0, 0.1, (1, 3000)) + rng.normal(0, 0.05, (200, 3000))
    found = seed_and_user_variance(values)
    assert found.seed_deviation == pytest.approx(0.02, rel=0.15)
    assert found.seeds_error == pytest.approx(0.02 / np.sqrt(200), rel=0.15)
    assert found.users_error == pytest.approx(np.sqrt(0.1**2 + 0.05**2 / 200) / np.sqrt(3000), rel=0.1)
    assert (found.num_seeds, found.num_users) == (200, 3000)


def test_noise_that_is_not_the_seeds() -> None:
    values = np.tile(np.random.default_rng(0).random(50), (3, 1))
    assert seed_and_user_variance(values).seeds == 0
    single = seed_and_user_variance(values[:1])
    assert np.isnan(single.seeds_error)
    assert single.users_error == pytest.approx(values[0].std(ddof=1) / np.sqrt(50))


def test_variance_errors() -> None:
    with pytest.raises(ValueError, match=r"\[seeds, users\] with at least two users, got \[3\]"):
        seed_and_user_variance(np.ones(3))
    with pytest.raises(ValueError, match=r"values\[1, 0\] is nan"):
        seed_and_user_variance(np.array([[1.0, 2.0], [np.nan, 1.0]]))
