"""iALS against dense normal equations, against its own gradient, and on degenerate data."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from recsys.ials_kernel import System, gram, solve_rows
from recsys.models.ials import Ials, IalsSettings
from recsys.selection import Masks

SETTINGS = IalsSettings(dim=6, iterations=3, regularization=0.05, unobserved_weight=0.2, exponent=0.7, cg_steps=None)


def random_train(users: int = 23, items: int = 17, share: float = 0.3, seed: int = 0) -> csr_array:
    matrix = csr_array((np.random.default_rng(seed).random((users, items)) < share).astype(np.float32))
    matrix.sort_indices()
    return matrix


def dense_half(matrix: np.ndarray, others: np.ndarray, settings: IalsSettings) -> np.ndarray:
    """The minimum of the objective by each row, from all of its terms, in float64."""
    rows = []
    for row in matrix:
        weight = row + settings.unobserved_weight  # of w h = 1 / weight where observed, of w h = 0 elsewhere
        penalty = settings.regularization * (row.sum() + settings.unobserved_weight * len(row)) ** settings.exponent
        left = (others.T * weight) @ others + penalty * np.eye(others.shape[1])
        rows.append(np.linalg.solve(left, others.T @ row))
    return np.array(rows)


@pytest.mark.parametrize("cg_steps", [None, 30])
def test_a_half_iteration_is_the_dense_closed_form(cg_steps: int | None) -> None:
    train = random_train()
    others = np.random.default_rng(1).standard_normal((17, 6)).astype(np.float32)
    dense = train.toarray().astype(np.float64)
    penalty = SETTINGS.regularization * (dense.sum(1) + SETTINGS.unobserved_weight * 17) ** SETTINGS.exponent
    system = System(
        Masks(train.indptr.astype(np.int64), train.indices.astype(np.int32)),
        others,
        (SETTINGS.unobserved_weight * gram(others)).astype(np.float32),
        penalty.astype(np.float32),
    )
    start = np.random.default_rng(2).standard_normal((23, 6)).astype(np.float32)
    before = start.copy()
    got = solve_rows(system, start, cg_steps)
    assert np.allclose(got, dense_half(dense, others.astype(np.float64), SETTINGS), atol=2e-5)
    assert np.array_equal(start, before)


def test_fit_alternates_dense_closed_forms() -> None:
    train = random_train()
    states: list[Ials] = []
    model = Ials.fit(train, SETTINGS, seed=5, on_iteration=lambda _, m: states.append(m))
    dense = train.toarray().astype(np.float64)
    assert len(states) == 3 and torch.equal(states[-1].users, model.users)
    users = dense_half(dense, states[1].items.double().numpy(), SETTINGS)
    assert np.allclose(model.users.numpy(), users, atol=2e-5)
    assert np.allclose(model.items.numpy(), dense_half(dense.T, users, SETTINGS), atol=5e-5)


def dense_objective(model: Ials, dense: np.ndarray, s: IalsSettings) -> float:
    users, items = model.users.double().numpy(), model.items.double().numpy()
    scores = users @ items.T
    fit = (dense * (1 - scores) ** 2).sum() + s.unobserved_weight * (scores**2).sum()
    by_user = (dense.sum(1) + s.unobserved_weight * dense.shape[1]) ** s.exponent @ (users**2).sum(1)
    by_item = (dense.sum(0) + s.unobserved_weight * dense.shape[0]) ** s.exponent @ (items**2).sum(1)
    return float(fit + s.regularization * (by_user + by_item))


@pytest.mark.parametrize("cg_steps", [None, 3])
def test_the_objective_is_the_dense_one_and_never_rises(cg_steps: int | None) -> None:
    train, settings = random_train(), dataclasses.replace(SETTINGS, iterations=8, cg_steps=cg_steps)
    values: list[float] = []

    def check(_: int, model: Ials) -> None:
        values.append(model.objective(train, settings))
        assert values[-1] == pytest.approx(
            dense_objective(model, train.toarray().astype(np.float64), settings), rel=1e-5
        )

    Ials.fit(train, settings, on_iteration=check)
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(values)) and values[-1] < 0.9 * values[0]


def test_three_gradient_steps_reach_the_minimum_that_exact_solutions_reach() -> None:
    train = random_train()
    exact, steps = (dataclasses.replace(SETTINGS, iterations=60, cg_steps=cg) for cg in (None, 3))
    assert Ials.fit(train, steps).objective(train, steps) == pytest.approx(
        Ials.fit(train, exact).objective(train, exact), rel=1e-3
    )


def test_without_frequency_scaling_it_is_hu_s_objective() -> None:
    """Minimum of ``c (1 - s)^2`` where observed, ``s^2`` elsewhere, lambda' on all: vectors sqrt(1 + alpha) as long."""
    train, alpha = random_train(), 0.2
    settings = dataclasses.replace(SETTINGS, exponent=0.0, iterations=2)
    model = Ials.fit(train, settings)
    confidence, penalty = (1 + alpha) / alpha, settings.regularization * (1 + alpha) / alpha
    users, dense = np.sqrt(1 + alpha) * model.users.double().numpy(), train.toarray().astype(np.float64)
    for item in range(17):
        weight = np.where(dense[:, item] > 0, confidence, 1.0)
        want = np.linalg.solve((users.T * weight) @ users + penalty * np.eye(6), users.T @ (weight * dense[:, item]))
        assert np.allclose(np.sqrt(1 + alpha) * model.items[item].numpy(), want, atol=5e-5)


@pytest.mark.parametrize("cg_steps", [None, 3])
def test_the_bits_do_not_depend_on_threads(cg_steps: int | None) -> None:
    train, settings = random_train(700, 300, 0.02), dataclasses.replace(SETTINGS, dim=9, cg_steps=cg_steps)
    before = torch.get_num_threads()
    try:
        states = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            states.append(Ials.fit(train, settings, seed=1).state())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(Ials.fit(train, settings, seed=2).users, states[0]["users"])


@pytest.mark.parametrize("cg_steps", [None, 3])
def test_degenerate_data(cg_steps: int | None) -> None:
    settings = dataclasses.replace(SETTINGS, cg_steps=cg_steps)
    one = Ials.fit(csr_array(np.ones((1, 1), np.float32)), settings)
    assert 0 < one.scores(np.array([0])).item() < 1
    lonely = random_train()
    lonely = csr_array(lonely.toarray() * (np.arange(23) != 4)[:, None] * (np.arange(17) != 9))
    model = Ials.fit(lonely, settings)
    assert not model.users[4].any() and not model.items[9].any() and model.users[5].any()
    assert not Ials.fit(csr_array((5, 3), dtype=np.float32), settings).users.any()


@pytest.mark.parametrize("cg_steps", [None, 3])
def test_an_item_of_100_000_users(cg_steps: int | None) -> None:
    """Everybody likes item 0, every second user item 1 as well: two scores per user, both well ordered."""
    users = np.arange(100_000)
    rows, columns = np.concatenate([users, users[::2]]), np.concatenate([np.zeros(100_000), np.ones(50_000)])
    train = csr_array((np.ones(150_000, np.float32), (rows, columns.astype(np.int64))), shape=(100_000, 3))
    model = Ials.fit(train, dataclasses.replace(SETTINGS, dim=2, iterations=5, cg_steps=cg_steps, exponent=0.0))
    scores = model.scores(np.array([0, 1, 99_998, 99_999])).numpy()
    assert np.isfinite(scores).all() and np.allclose(scores[0], scores[2], atol=1e-3)
    assert (scores[[0, 2], 1] > scores[[1, 3], 1] + 0.3).all() and (scores[:, 0] > scores[:, 2] + 0.5).all()


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"iALS needs values above 0, got regularization -1, cg_steps 0$"):
        Ials.fit(random_train(), dataclasses.replace(SETTINGS, regularization=-1, cg_steps=0))
