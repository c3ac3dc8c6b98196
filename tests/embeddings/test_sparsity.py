import math

import pytest

from embeddings.sparsity import Schedule, Sparsity, entries, erk_densities


def test_the_share_falls_along_half_a_cosine() -> None:
    schedule = Schedule(every=10, steps=1000)
    for step in (10, 500, 1000):
        wanted = 0.005 + 0.495 / 2 * (1 + math.cos(math.pi * step / 1000))
        assert schedule.share(step) == pytest.approx(wanted, rel=1e-12)
    assert schedule.share(1000) == pytest.approx(0.005)
    assert [schedule.share(step) for step in (0, 1, 9, 11, 1010)] == [0.0] * 5


def test_stop_shortens_the_cosine_and_ends_the_updates() -> None:
    schedule = Schedule(every=10, steps=1000, start=0.3, end=0.0, stop=0.75)
    assert schedule.share(370) == pytest.approx(0.3 / 2 * (1 + math.cos(math.pi * 370 / 750)))
    assert schedule.share(750) == pytest.approx(0.0)
    assert schedule.share(760) == 0.0
    assert [schedule.to_update(step) for step in (0, 9, 10, 749, 750)] == [10, 1, 10, 1, None]


def test_only_gradients_of_the_window_count() -> None:
    schedule = Schedule(every=10, steps=25)
    observed = [step for step in range(1, 41) if Sparsity(0.2, schedule, "gradient", window=3).observes(step)]
    assert observed == [8, 9, 10, 18, 19, 20]
    assert not any(Sparsity(0.2, schedule, "random").observes(step) for step in range(1, 41))
    assert not any(Sparsity(0.2).observes(step) for step in range(1, 41))


def test_entries_are_whole_and_at_least_one() -> None:
    assert entries(0.2, 11, 7) == 15
    assert entries(1e-9, 11, 7) == 1


def test_erk_meets_the_budget_and_keeps_small_matrices_denser() -> None:
    shapes = [(1000, 64), (100_000, 64), (4, 64)]
    densities = erk_densities(shapes, 0.1)
    sizes = [n * m for n, m in shapes]
    assert sum(d * size for d, size in zip(densities, sizes, strict=True)) == pytest.approx(0.1 * sum(sizes))
    assert densities[2] == 1.0
    free = [(n + m) / (n * m) for n, m in shapes[:2]]
    assert densities[0] / densities[1] == pytest.approx(free[0] / free[1])
    assert erk_densities([(5, 5)], 1.0) == [1.0]
    assert erk_densities([(30, 30), (30, 30)], 0.4) == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(0, 10), "every >= 1 and steps >= 1, got 0 and 10"),
        (lambda: Schedule(1, 10, start=0.1, end=0.2), "0 <= end <= start <= 1 .*, got end 0.2, start 0.1, stop 1.0"),
        (lambda: Schedule(1, 10, stop=0), "0 < stop <= 1, got .* stop 0"),
        (lambda: Sparsity(0.0), "0 < density <= 1, got 0.0"),
        (lambda: Sparsity(0.5, window=0), "window >= 1 and 0 <= momentum < 1, got window 0, momentum 0.9"),
        (lambda: erk_densities([(3, 0)], 0.5), r"shapes of at least one entry, got 0.5 and \[\(3, 0\)\]"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
