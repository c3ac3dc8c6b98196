"""Paired comparisons of the variants of a run, Holm-corrected."""

from __future__ import annotations

import dataclasses
import itertools
import math

from pipelines.report.data import FloatArray, PerUser, Run
from recsys.significance import PairedTest, holm, paired_test, seed_and_user_variance

ALPHA = 0.05
_DETECTABLE = 1.959964 + 0.841621  # two-sided 5 % level, 80 % power
_NORMAL_95 = 1.959964


@dataclasses.dataclass(frozen=True)
class Contrast(PairedTest):
    """How much better ``a`` is than ``b`` on the same users, each user's value being the mean over seeds.

    Attributes:
        a: the variant with the higher mean.
        b: the other one.
        p_holm: ``p`` corrected for every pair of the run.
    """

    a: str
    b: str
    p_holm: float

    @property
    def is_significant(self) -> bool:
        """Whether the difference survives Holm's correction at 5 %."""
        return self.p_holm < ALPHA

    @property
    def has_relative(self) -> bool:
        """Whether the gain can be said in percent."""
        return all(map(math.isfinite, (self.relative, self.relative_low, self.relative_high)))

    @property
    def detectable(self) -> float:
        """Smallest difference that this many users show with 80 % power at the 5 % level."""
        return _DETECTABLE * (self.high - self.low) / (2 * _NORMAL_95)


def contrasts(run: Run, *, seed: int = 0) -> dict[tuple[str, str], Contrast]:
    """Every pair of variants, by (better, worse) in the order of :attr:`Run.ranking`; empty without per-user values."""
    per_user = run.per_user
    if per_user is None:
        return {}
    names = [variant.name for variant in run.ranking if variant.name in per_user.values]
    pairs = list(itertools.combinations(names, 2))
    tests = [_contrast(per_user, a, b, seed) for a, b in pairs]
    corrected = holm([test.p for test in tests])
    return {pair: dataclasses.replace(test, p_holm=p) for pair, test, p in zip(pairs, tests, corrected, strict=True)}


def _contrast(per_user: PerUser, a: str, b: str, seed: int) -> Contrast:
    test = paired_test(per_user.mean(a), per_user.mean(b), seed)
    return Contrast(**vars(test), a=a, b=b, p_holm=test.p)


def tied_with_best(run: Run, pairs: dict[tuple[str, str], Contrast]) -> set[str]:
    """Names of the variants that the best one does not beat significantly."""
    if not run.ranking:
        return set()
    best = run.ranking[0].name
    return {b for (a, b), contrast in pairs.items() if a == best and not contrast.is_significant}


@dataclasses.dataclass(frozen=True)
class Spread:
    """Standard error of a variant's mean that comes from the choice of users, and from the seed.

    ``seed_error`` is None for one seed.
    """

    name: str
    mean: float
    user_error: float
    seed_error: float | None
    seeds: int


def spreads(run: Run) -> list[Spread]:
    """User and seed variation of every variant with per-user values, best first."""
    per_user = run.per_user
    if per_user is None:
        return []
    return [_spread(name, values) for name, values in per_user.values.items() if values.shape[1] > 1]


def _spread(name: str, values: FloatArray) -> Spread:
    variance = seed_and_user_variance(values)
    seeds = variance.num_seeds
    return Spread(name, float(values.mean()), variance.users_error, variance.seeds_error if seeds > 1 else None, seeds)
