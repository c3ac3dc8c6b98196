from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.linear_model import ElasticNet

from recsys.checkpoint import Model
from recsys.models.ease import Ease, dense_gib
from recsys.models.item_knn import ItemKnn
from recsys.models.slim import Slim

USERS, ITEMS = 80, 60
FITS: dict[str, Callable[[csr_array], Model]] = {
    "ease": Ease.fit,
    "ease-low-rank": lambda train: Ease.fit(train, method="low_rank", rank=4),
    "slim": Slim.fit,
    "item_knn": ItemKnn.fit,
}


def random_train(seed: int = 0) -> csr_array:
    dense = np.random.default_rng(seed).random((USERS, ITEMS)) < 0.15
    dense[:, 4] = False
    return csr_array(dense.astype(np.float32))


def ease_weights(train: csr_array, l2: float) -> np.ndarray:
    """Each column as the ridge regression that may not use its own item, one linear system at a time."""
    x = train.toarray().astype(np.float64)
    weights = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = np.delete(np.arange(ITEMS), item)
        gram = x[:, others].T @ x[:, others] + l2 * np.eye(ITEMS - 1)
        weights[others, item] = np.linalg.solve(gram, x[:, others].T @ x[:, item])
    return weights


@pytest.mark.parametrize(("method", "rank"), [("dense", 1), ("low_rank", ITEMS)])
def test_ease_is_ridge_regression_without_the_item_itself(method: str, rank: int) -> None:
    train = random_train()
    model = Ease.fit(train, l2=20.0, method=method, rank=rank)  # type: ignore[arg-type]
    expected = train.toarray() @ ease_weights(train, 20.0)
    np.testing.assert_allclose(model.scores(np.arange(USERS)).numpy(), expected, atol=2e-5)


def test_low_rank_ease_of_few_users_is_exact_at_full_rank() -> None:
    rng = np.random.default_rng(0)
    train = csr_array((rng.random((100, 120)) < 0.2 * rng.random(120)).astype(np.float32))
    dense, low = (Ease.fit(train, l2=1.0, method=m, rank=120).scores(np.arange(100)) for m in ("dense", "low_rank"))  # type: ignore[arg-type]
    np.testing.assert_allclose(low.numpy(), dense.numpy(), atol=2e-5)


def test_low_rank_ease_keeps_the_leading_eigenvectors() -> None:
    train, l2, rank = random_train(), 20.0, 7
    x = train.toarray().astype(np.float64)
    values, vectors = np.linalg.eigh(x.T @ x)
    values, vectors = values[-rank:], vectors[:, -rank:]
    low = vectors @ np.diag(values / (values + l2)) @ vectors.T
    weights = low / (1 - np.diag(low))
    np.fill_diagonal(weights, 0)
    model = Ease.fit(train, l2=l2, method="low_rank", rank=rank)
    np.testing.assert_allclose(model.scores(np.arange(USERS)).numpy(), x @ weights, atol=2e-3)


def test_ease_estimates_its_memory_and_takes_low_rank_where_it_does_not_fit() -> None:
    assert dense_gib(40_981) == pytest.approx(3 * 4 * 40_981**2 / 2**30)
    train = random_train()
    assert Ease.fit(train).gains is None
    assert Ease.fit(train, memory_gib=1e-6).gains is not None
    message = r"dense EASE on 60 items needs 0.0 GiB, memory_gib is 1e-06; raise it, drop rare items, or use method"
    with pytest.raises(ValueError, match=message):
        Ease.fit(train, method="dense", memory_gib=1e-6)
    with pytest.raises(ValueError, match="EASE needs l2 > 0, got 0"):
        Ease.fit(train, l2=0.0)


@pytest.mark.parametrize(("l1", "l2"), [(0.5, 2.0), (2.0, 0.5), (0.05, 5.0)])
def test_slim_is_the_elastic_net_of_scikit_learn(l1: float, l2: float) -> None:
    train = random_train()
    x = train.toarray().astype(np.float64)
    expected = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = np.delete(np.arange(ITEMS), item)
        solver = ElasticNet(
            alpha=(l1 + l2) / USERS,
            l1_ratio=l1 / (l1 + l2),
            positive=True,
            fit_intercept=False,
            tol=1e-9,
            max_iter=10**5,
        )
        expected[others, item] = solver.fit(x[:, others], x[:, item]).coef_
    model = Slim.fit(train, l1, l2, sweeps=1000, tolerance=1e-7)
    np.testing.assert_allclose(model.similarity.toarray(), expected, atol=1e-5)
    np.testing.assert_allclose(model.scores(np.arange(USERS)).numpy(), x @ expected, atol=1e-4)
    assert model.similarity.nnz < ITEMS * (ITEMS - 1)


def test_slim_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"SLIM needs l1, l2 and tolerance >= 0, not both .* got l1 0.0, l2 0.0,"):
        Slim.fit(random_train(), 0.0, 0.0)


@pytest.mark.parametrize("name", FITS)
def test_bits_do_not_depend_on_threads(name: str) -> None:
    train = random_train(1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(FITS[name](train).scores(np.arange(USERS)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", FITS)
def test_degenerate_input(name: str) -> None:
    popular = np.zeros((100_000, 3), np.float32)
    popular[:, 1] = 1
    popular[:50, 2] = 1
    matrices = [
        csr_array(np.array([[1, 0, 1]], np.float32)),
        csr_array(np.ones((4, 1), np.float32)),
        csr_array(np.diag([1.0, 1.0, 0.0]).astype(np.float32)),
        csr_array((3, 4), dtype=np.float32),
        csr_array(popular),
    ]
    for train in matrices:
        scores = FITS[name](train).scores(np.arange(min(9, train.shape[0]))).numpy()
        assert scores.shape[1] == train.shape[1] and np.isfinite(scores).all()
    assert scores[0, 1] > scores[0, 0] == 0
