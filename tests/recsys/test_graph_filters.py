from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.sparse import csr_array

from recsys.checkpoint import Model
from recsys.models.bspm import fit_bspm, sharpening_polynomial
from recsys.models.cheby_cf import deflated, economised, fit_cheby_cf, plateau
from recsys.models.gf_cf import fit_gf_cf
from recsys.models.graph_filter import GraphFilter
from recsys.retriever import SelectingRetriever
from recsys.topk import exact_top_k
from recsys.truncated_svd import leading_gram_vectors, leading_item_vectors

USERS, ITEMS, RANK = 150, 130, 9
Dense = npt.NDArray[np.float64]
FITS: dict[str, Callable[[csr_array], Model]] = {
    "gf_cf": lambda train: fit_gf_cf(train, rank=RANK),
    "cheby_cf": lambda train: fit_cheby_cf(train, rank=RANK),
    "bspm": lambda train: fit_bspm(train, rank=RANK),
}


def random_train(seed: int = 0) -> csr_array:
    """Interactions in which one user and one item have none."""
    dense = np.random.default_rng(seed).random((USERS, ITEMS)) < 0.1
    dense[7], dense[:, 11] = False, False
    return csr_array(dense.astype(np.float32))


def dense_parts(train: csr_array) -> tuple[Dense, Dense, Dense, Dense]:
    """X, the normalised item-item matrix A, its leading eigenvectors and the degrees, from dense float64 algebra."""
    x = train.toarray().astype(np.float64)
    users, items = x.sum(1), x.sum(0)
    normalised = x / np.sqrt(np.maximum(users, 1))[:, None] / np.sqrt(np.maximum(items, 1))
    return x, normalised.T @ normalised, np.linalg.svd(normalised)[2][:RANK].T, np.maximum(items, 1)


def all_scores(model: Model) -> Dense:
    return model.scores(np.arange(model.num_users)).numpy().astype(np.float64)


def assert_close(found: Dense, expected: Dense, tolerance: float) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_gf_cf_is_its_equation() -> None:
    train = random_train()
    x, a, v, degrees = dense_parts(train)
    expected = x @ (a + 0.3 * np.diag(degrees**-0.5) @ v @ v.T @ np.diag(degrees**0.5))
    assert_close(all_scores(FITS["gf_cf"](train)), expected, 1e-5)
    one = x @ np.diag(degrees**-0.4) @ (a + 0.3 * v @ v.T) @ np.diag(degrees**0.4)
    assert_close(all_scores(fit_gf_cf(train, rank=RANK, exponent=0.4)), one, 1e-5)


def dense_cheby_cf(train: csr_array, order: int, rank: int) -> Dense:
    x, a, _, degrees = dense_parts(train)
    values, v = np.linalg.eigh(a)
    filtered = v * np.polynomial.chebyshev.chebval(1 - 2 * values, plateau(order, 1.5)) @ v.T
    leading = v[:, -rank:]
    return x @ np.diag(degrees**-0.4) @ (filtered + 0.2 * leading @ leading.T) @ np.diag(degrees**0.4)


@pytest.mark.parametrize("rank", [2, RANK, 64])
@pytest.mark.parametrize("order", [8, 16, 24, 32])
def test_cheby_cf_is_accurate_at_any_order_and_rank(order: int, rank: int) -> None:
    train = random_train()
    assert_close(all_scores(fit_cheby_cf(train, order=order, rank=rank)), dense_cheby_cf(train, order, rank), 5e-4)


def test_cheby_cf_is_its_equation() -> None:
    """By powers of the Laplacian; without economising it is accurate to float32."""
    train = random_train()
    x, a, v, degrees = dense_parts(train)
    laplacian = np.eye(ITEMS) - 2 * a
    terms = [np.eye(ITEMS), laplacian]
    for _ in range(7):
        terms.append(2 * laplacian @ terms[-1] - terms[-2])
    filtered = sum(c * term for c, term in zip(plateau(8, 1.5), terms, strict=True))
    expected = x @ np.diag(degrees**-0.4) @ (filtered + 0.2 * v @ v.T) @ np.diag(degrees**0.4)
    model = fit_cheby_cf(train, rank=RANK)
    assert_close(all_scores(model), expected, 2e-3)
    coefficients = plateau(8, 1.5) * (-1.0) ** np.arange(9)
    exact = deflated(train, coefficients, leading_item_vectors(train, RANK), alpha=0.2, exponent=0.4, accuracy=0.0)
    assert len(exact.chebyshev) == 9 and len(model.chebyshev) < 9
    assert_close(all_scores(exact), expected, 1e-5)


def test_the_plateau_keeps_low_frequencies_and_drops_high_ones() -> None:
    """Coefficients of K = 2 by hand: samples 1, 1/2, 0 at the nodes -sqrt(3)/2, 0, sqrt(3)/2."""
    np.testing.assert_allclose(plateau(2, 1.5), [0.5, -np.sqrt(3) / 3, 0.0], atol=1e-12)
    values = np.polynomial.chebyshev.chebval(np.array([-0.9, 0.0, 0.9]), plateau(8, 1.5))
    assert values[0] > 0.85 and abs(values[1] - 0.5) < 0.01 and values[2] < 0.15


def test_economised_polynomials_are_near_on_their_interval_only() -> None:
    coefficients = np.array([0.3, 0.5, -0.2, 0.1, 0.05])
    cheap = economised(coefficients, 0.2, 1e-3)
    inside = np.linspace(0, 0.2, 50)
    value = np.polynomial.chebyshev.chebval(2 * inside - 1, coefficients)
    assert len(cheap) < 5
    assert np.abs(np.polynomial.chebyshev.chebval(10 * inside - 1, cheap) - value).max() < 1.2e-3


@pytest.mark.parametrize(("sharpening", "steps"), [(1.6, 2), (8.0, 8), (20.0, 8), (5.0, 32)])
def test_bspm_is_its_equations(sharpening: float, steps: int) -> None:
    """Runge-Kutta steps, taken stage by stage on dense matrices."""
    train = random_train()
    x, a, v, degrees = dense_parts(train)
    state = x @ a + 0.3 * x @ np.diag(degrees**-0.5) @ v @ v.T @ np.diag(degrees**0.5)
    step = sharpening / steps
    for _ in range(steps):
        k1 = -state @ a
        k2 = -(state + step / 2 * k1) @ a
        k3 = -(state + step / 2 * k2) @ a
        k4 = -(state + step * k3) @ a
        state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    assert_close(all_scores(fit_bspm(train, rank=RANK, sharpening=sharpening, steps=steps)), state, 3e-5)


def test_without_sharpening_bspm_is_gf_cf() -> None:
    train = random_train()
    assert_close(all_scores(fit_bspm(train, rank=RANK, sharpening=0.0)), all_scores(FITS["gf_cf"](train)), 1e-6)
    assert sharpening_polynomial(0.0, 3) == pytest.approx([1.0] + [0.0] * 12)


@pytest.mark.parametrize("name", FITS)
def test_bits_depend_neither_on_threads_nor_on_the_batch(name: str) -> None:
    train = random_train(3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = FITS[name](train).scores(np.arange(USERS))
        torch.set_num_threads(3)
        model = FITS[name](train)
        assert torch.equal(model.scores(np.arange(USERS)), one)
    finally:
        torch.set_num_threads(before)
    users = np.array([149, 0, 64, 64])  # so few that the first propagation is scattered
    assert torch.equal(model.scores(users), one[users])
    first = exact_top_k(model, users, 5, train).items
    assert not any(train[[user]].toarray()[0, items].any() for user, items in zip(users, first, strict=True))


@pytest.mark.parametrize("name", FITS)
def test_selection_while_scoring_gives_the_lists_and_bits_of_the_scores(name: str) -> None:
    model = FITS[name](random_train())
    assert isinstance(model, SelectingRetriever)
    users = np.arange(USERS)
    top = exact_top_k(model, users, 11, random_train())
    scores = np.where(random_train().toarray() > 0, -np.inf, all_scores(model))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :11]
    np.testing.assert_array_equal(top.items, order)
    np.testing.assert_array_equal(top.scores, np.take_along_axis(scores, order, axis=1))


def test_scattered_and_dense_propagation_give_the_same_bits() -> None:
    model = FITS["gf_cf"](random_train())
    assert isinstance(model, GraphFilter)
    found = []
    for scattered in (False, True):
        model._filter = model._filter._replace(scattered=scattered)
        found.append(all_scores(model))
    np.testing.assert_array_equal(found[0], found[1])


def test_propagation_is_scattered_where_two_steps_reach_little() -> None:
    blocks = csr_array(np.kron(np.eye(300), np.ones((2, 2))).astype(np.float32))
    crowd = csr_array(np.ones((600, 6), np.float32))
    assert [fit_gf_cf(train, rank=2)._filter.scattered for train in (blocks, crowd)] == [True, False]


def test_scores_that_are_not_finite_are_refused_by_the_selection() -> None:
    train = random_train()
    decode = np.ones((ITEMS, 1), np.float32)
    decode[5] = np.inf
    model = GraphFilter(train, np.array([0.5, 0.5]), 1.0, 0.0, np.ones((ITEMS, 1), np.float32), decode)
    with pytest.raises(ValueError, match="user 7 has a NaN or infinite score"):
        exact_top_k(model, np.array([7, 3]), 5, None)


def degenerate() -> dict[str, csr_array]:
    popular = np.zeros((100_000, 3), np.float32)
    popular[:, 1] = 1
    popular[:5, 2] = 1
    return {
        "one user": csr_array(np.array([[1, 0, 1]], np.float32)),
        "one item": csr_array(np.ones((4, 1), np.float32)),
        "one pair": csr_array(np.ones((1, 1), np.float32)),
        "isolated": csr_array(np.diag([1.0, 1.0, 0.0, 1.0]).astype(np.float32)),
        "nothing": csr_array((3, 4), dtype=np.float32),
        "popular": csr_array(popular),
    }


@pytest.mark.parametrize("name", FITS)
def test_degenerate_graphs(name: str) -> None:
    for kind, train in degenerate().items():
        model = FITS[name](train)
        assert isinstance(model, GraphFilter)
        users = np.arange(min(train.shape[0], 70))
        scores = model.scores(users).numpy()
        assert scores.shape == (len(users), train.shape[1]) and np.isfinite(scores).all(), kind
        alone = np.asarray(train.sum(axis=0)) == 0
        assert (scores[:, alone] == 0).all(), kind
    popular = FITS[name](degenerate()["popular"]).scores(np.array([0, 50]))
    assert popular[1, 1] > popular[1, 2]


def test_eigenvectors_are_those_of_dense_algebra() -> None:
    train = random_train()
    x, a, _, _ = dense_parts(train)
    for found, matrix in ((leading_item_vectors(train, 5), a), (leading_gram_vectors(train, 5), x.T @ x)):
        vectors, values = found
        expected = np.linalg.eigvalsh(matrix)[::-1][:5]
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-5)
        np.testing.assert_allclose(matrix @ vectors, vectors * expected, atol=1e-5 * expected[0])


@pytest.mark.parametrize("shape", [(100, 120), (120, 100), (110, 110), (30, 400)])
def test_at_full_rank_eigenvectors_leave_nothing_out(shape: tuple[int, int]) -> None:
    """Popularity differs, so that small singular values are many."""
    rng = np.random.default_rng(0)
    train = csr_array((rng.random(shape) < 0.2 * rng.random(shape[1])).astype(np.float32))
    x, a, _, _ = dense_parts(train)
    for found, matrix in ((leading_item_vectors(train, 400), a), (leading_gram_vectors(train, 400), x.T @ x)):
        vectors, values = found
        expected = np.linalg.eigvalsh(matrix)[::-1]
        known = int((expected > 2e-6 * expected[0]).sum())
        assert vectors.shape[1] >= known
        np.testing.assert_allclose(values[:known], expected[:known], atol=2e-6 * expected[0])
        np.testing.assert_allclose(vectors * values @ vectors.T, matrix, atol=1e-5 * expected[0])
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(vectors.shape[1]), atol=1e-5)


def test_settings_are_checked() -> None:
    train = random_train()
    with pytest.raises(ValueError, match="GF-CF needs alpha >= 0, got -1"):
        fit_gf_cf(train, alpha=-1)
    with pytest.raises(ValueError, match="rank >= 1 and rounds >= 1, got 0 and 1"):
        fit_gf_cf(train, rank=0)
    with pytest.raises(ValueError, match=r"order >= 1, flatness and alpha >= 0, got 0, 1.5 and 0.2"):
        fit_cheby_cf(train, order=0)
    with pytest.raises(ValueError, match=r"BSPM needs steps >= 1, beta and sharpening >= 0, got 0, 0.3 and 2.5"):
        fit_bspm(train, steps=0)
