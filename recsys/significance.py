"""Paired comparison of two systems over the same users, and what part of the spread is seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import bdtr, ndtr

from recsys.intervals import resampled_sums
from recsys.rng import generator

FloatArray = npt.NDArray[np.float64]
_BLOCK = 256
_RESOLVED = 10
"""Random flips that must reach the observed mean for their share to be p."""
_FEW = 20
"""Differences whose flips are all counted instead."""


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """System a against system b on the same users.

    Attributes:
        difference: mean of a - b; above 0, a is better.
        low: lower end of the 95 % bootstrap interval of the difference.
        high: its upper end.
        relative: mean(a) / mean(b) - 1; NaN where mean(b) is 0.
        relative_low: lower end of the 95 % bootstrap interval of ``relative``.
        relative_high: its upper end.
        p: two-sided p of the sign-flip permutation test, never 0.
        users: number of pairs.
    """

    difference: float
    low: float
    high: float
    relative: float
    relative_low: float
    relative_high: float
    p: float
    users: int


@dataclasses.dataclass(frozen=True)
class Variance:
    """Variance of the mean of a metric, split by its source.

    Attributes:
        users: part that comes from which users were drawn, s_user^2 / U.
        seeds: part that comes from the seed, s_seed^2 / S; estimates below 0 are set to 0.
        users_error: standard error of the mean from users alone.
        seeds_error: standard error of the mean from seeds alone.
        seed_deviation: s_seed, by how much seeds differ on all users alike. Results of seeds on the same users spread
            more, by the noise of single users that differs between seeds; it is counted in ``users``.
        num_seeds: S; with one seed the seed parts are NaN.
        num_users: U.
    """

    users: float
    seeds: float
    users_error: float
    seeds_error: float
    seed_deviation: float
    num_seeds: int
    num_users: int


def paired_test(
    a: FloatArray, b: FloatArray, seed: int = 0, *, resamples: int = 1000, permutations: int = 9999
) -> PairedTest:
    r"""Compare the per-user values of a with those of b.

    The interval is a percentile bootstrap over users (Efron 1979). p is a permutation test that flips the sign of each
    user's difference (Fisher 1935), the test that Smucker et al. 2007 advise: with c of n random flips reaching
    the observed \|mean\|, ``p = (1 + c) / (1 + n)`` (Davison and Hinkley 1997, eq. 4.11). That cannot fall below
    1 / (1 + n), so that a correction over hundreds of pairs would make a tie of any difference; where c < 10, p is a
    saddlepoint approximation of the share of all flips (Robinson 1982). Of up to 20 differences all flips are counted.

    Args:
        a: float64 [U].
        b: float64 [U] of the same users, the baseline.
        seed: of resamples and flips.
        resamples: of the bootstrap.
        permutations: n.

    Raises:
        ValueError: The lengths differ, there is no user, or a value is not finite.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(f"a paired test needs two values per user, got shapes {list(a.shape)} and {list(b.shape)}")
    bad = np.flatnonzero(~np.isfinite(a) | ~np.isfinite(b))
    if bad.size:
        raise ValueError(
            f"a paired test needs finite values, but pair {bad[0]} is ({a[bad[0]]}, {b[bad[0]]}); leave out the"
            f" {bad.size:,} users without a value on both sides"
        )
    sums = resampled_sums(np.stack([a, b], axis=1), resamples, seed)
    low, high = np.quantile((sums[:, 0] - sums[:, 1]) / len(a), [0.025, 0.975])
    relative, relative_low, relative_high = np.nan, np.nan, np.nan
    if b.sum() != 0 and (sums[:, 1] != 0).all():
        relative = float(a.sum() / b.sum() - 1)
        relative_low, relative_high = np.quantile(sums[:, 0] / sums[:, 1] - 1, [0.025, 0.975])
    return PairedTest(
        difference=float((a - b).mean()),
        low=float(low),
        high=float(high),
        relative=relative,
        relative_low=float(relative_low),
        relative_high=float(relative_high),
        p=_sign_flip_p(a - b, permutations, seed),
        users=len(a),
    )


def _sign_flip_p(differences: FloatArray, permutations: int, seed: int) -> float:
    """Eight users' flips are one random byte, and a table has the sum of every such byte."""
    moved = differences[differences != 0]
    observed = abs(moved.sum()) - 1e-12 * np.abs(moved).sum()
    if len(moved) <= _FEW:
        return _all_flips_p(moved, observed)
    eights = np.zeros((-(-len(moved) // 8), 8))
    eights.flat[: len(moved)] = moved
    signs = 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) - 1
    tables = eights @ signs.T
    sums = np.zeros(permutations)
    for block, first in enumerate(range(0, len(tables), _BLOCK)):
        rng = generator(seed, "sign flips", block)
        some = tables[first : first + _BLOCK]
        _add_flips(some, rng.integers(0, 256, (len(some), permutations), dtype=np.uint8), sums)
    reached = int((np.abs(sums) >= observed).sum())
    if reached >= min(_RESOLVED, permutations):
        return (1 + reached) / (1 + permutations)
    return _saddlepoint_p(np.abs(moved), observed)


def _all_flips_p(moved: FloatArray, observed: float) -> float:
    sums = np.zeros(1)
    for difference in moved:
        sums = np.concatenate([sums + difference, sums - difference])
    return float((np.abs(sums) >= observed).mean())


def _saddlepoint_p(sizes: FloatArray, observed: float) -> float:
    r"""Approximate the share of the sign flips of ``sizes`` whose \|sum\| reaches ``observed`` (Robinson 1982, as r*).

    With K(t) = sum ln cosh(t d_u) and K'(t) = ``observed``, let w = sqrt(2 (t K' - K)) and v = t sqrt(K''): the share
    is 2 Phi(-w - ln(v / w) / w), and no less than the two flips of 2^m that give all differences one sign. Sizes that
    are all equal, as with one relevant item a user, are counted: their sums lie on a lattice, of which the continuous
    approximation misses half a step.
    """
    least = max(2.0 ** (1 - len(sizes)), np.finfo(np.float64).tiny)
    if np.ptp(sizes) <= 1e-12 * sizes.max():
        against = np.floor((len(sizes) - observed / sizes.mean()) / 2 + 1e-6)
        return float(max(2 * bdtr(against, len(sizes), 0.5), least))
    if observed > (1 - 1e-9) * sizes.sum():
        return float(least)
    sizes, observed = sizes / sizes.max(), observed / sizes.max()

    def excess(t: float) -> float:
        return float((sizes * np.tanh(t * sizes)).sum() - observed)

    high = 1.0
    while excess(high) < 0:
        high *= 2
    t = brentq(excess, 0.0, high)
    cumulant = float((np.logaddexp(t * sizes, -t * sizes) - np.log(2)).sum())
    curvature = float(((sizes / np.cosh(np.minimum(t * sizes, 300.0))) ** 2).sum())
    w, v = np.sqrt(2 * (t * observed - cumulant)), t * np.sqrt(curvature)
    return float(max(2 * ndtr(-w - np.log(v / w) / w), least))


@numba.njit(nogil=True, cache=True)
def _add_flips(tables: FloatArray, flips: npt.NDArray[np.uint8], sums: FloatArray) -> None:
    for row in range(len(tables)):
        table = tables[row]
        for j in range(len(sums)):
            sums[j] += table[flips[row, j]]


def holm(p_values: Sequence[float]) -> list[float]:
    """Family-wise adjusted p-values (Holm 1979), in the order given.

    Raises:
        ValueError: A p lies outside [0, 1].
    """
    bad = [i for i, p in enumerate(p_values) if not 0 <= p <= 1]
    if bad:
        raise ValueError(f"p-values must lie in [0, 1], but number {bad[0]} is {p_values[bad[0]]}")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda j: p_values[j])):
        running = max(running, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = running
    return adjusted


def seed_and_user_variance(values: FloatArray) -> Variance:
    r"""Split the variance of a mean over users and seeds into the two (two-way random effects without replication).

    .. math:: y_{su} = \mu + \alpha_s + \beta_u + \epsilon_{su}

    The mean squares give s_seed^2 = (MS_seed - MS_error) / U and s_user^2 = (MS_user - MS_error) / S + MS_error / S,
    so that the user part is what an evaluation with these seeds and other users would show (Searle et al. 1992, ch. 4).

    Args:
        values: float64 [S, U], one row per seed.

    Raises:
        ValueError: Not two-dimensional, fewer than two users, or a value is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
        raise ValueError(f"values must have shape [seeds, users] with at least two users, got {list(values.shape)}")
    if not np.isfinite(values).all():
        seed, user = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"values must be finite, but values[{seed}, {user}] is {values[seed, user]}")
    num_seeds, num_users = values.shape
    users = float(values.mean(axis=0).var(ddof=1)) / num_users
    if num_seeds == 1:
        return Variance(users, np.nan, users**0.5, np.nan, np.nan, 1, num_users)
    seed_means, user_means = values.mean(axis=1), values.mean(axis=0)
    residual = values - seed_means[:, None] - user_means + values.mean()
    error = float((residual**2).sum()) / ((num_seeds - 1) * (num_users - 1))
    between = max(0.0, float(seed_means.var(ddof=1)) - error / num_users)
    return Variance(
        users, between / num_seeds, users**0.5, (between / num_seeds) ** 0.5, between**0.5, num_seeds, num_users
    )
