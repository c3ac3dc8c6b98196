from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from recsys.catalogue_auc import catalogue_auc
from recsys.metrics.auc import roc_auc


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("values", [2, 50, 10**9])
def test_equals_scikit_learn(dtype: type, values: int) -> None:
    rng = np.random.default_rng(values)
    for size in (2, 3, 100, 5000):
        labels = rng.random(size) < 0.3
        labels[:2] = [True, False]
        scores = (rng.integers(0, values, size) / values).astype(dtype)
        assert roc_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert roc_auc(labels.astype(np.int64), scores) == roc_auc(labels, scores)
        weights = rng.random(size)
        expected = roc_auc_score(labels, scores, sample_weight=weights)
        assert roc_auc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)


def test_known_values() -> None:
    assert roc_auc([0, 1], [0.1, 0.9]) == 1
    assert roc_auc([1, 0], [0.1, 0.9]) == 0
    assert roc_auc([1, 0, 1, 0], [3.0, 3.0, 3.0, 3.0]) == 0.5
    assert roc_auc([0, 1, 1], [-np.inf, 0.0, np.inf]) == 1
    assert roc_auc([0, 1], [2, 3]) == 1


def test_scores_that_bins_would_merge() -> None:
    scores = 0.5 + np.arange(1000) * 1e-12
    assert roc_auc(np.arange(1000) >= 500, scores) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 1], [0.0, 1.0]), "both classes, got 2 positives and 0 negatives"),
        (([0, 1, 2], [0.0, 1.0, 2.0]), r"labels must be 0 or 1, but labels\[2\] is 2"),
        (([0, 1], [0.0, np.nan]), r"scores must not be NaN, but scores\[1\] is"),
        (([0, 1], [0.0]), r"one array each, got \[2\] and \[1\]"),
        (([0, 1], [0.0, 1.0], [1.0]), r"one value per label, got \[1\] for 2 labels"),
        (([0, 1], [0.0, 1.0], [1.0, -1.0]), r"weights must be at least 0, but weights\[1\] is -1.0"),
        (([0, 1], [0.0, 1.0], [0.0, 1.0]), "weight in both classes, got 1.0 positive and 0.0 negative"),
    ],
)
def test_errors(arguments: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roc_auc(*arguments)


class Table:
    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        self.users, self.items = torch.from_numpy(users), torch.from_numpy(items)
        self.num_users, self.num_items = len(users), len(items)

    def scores(self, users: np.ndarray) -> torch.Tensor:
        return self.users[users] @ self.items.T


class VectorTable(Table):
    def user_vectors(self, users: np.ndarray) -> torch.Tensor:
        return self.users[users]

    def item_vectors(self, items: range) -> torch.Tensor:
        return self.items[items.start : items.stop]


@pytest.mark.parametrize("kind", [Table, VectorTable])
@pytest.mark.parametrize("items", [3, 64, 700])
def test_catalogue_auc_equals_scikit_learn_user_by_user(kind: type[Table], items: int) -> None:
    rng = np.random.default_rng(items)
    users = 13
    model = kind(rng.integers(-3, 4, (users, 5)).astype(np.float32), rng.integers(-3, 4, (items, 5)).astype(np.float32))
    state = rng.choice(3, (users, items), p=[0.7, 0.2, 0.1])
    state[0], state[1], state[2, :2] = 1, 0, [0, 2]
    some = np.arange(users)[::-1].copy()
    found = catalogue_auc(
        model, some, csr_array((state == 2).astype(np.float32)), csr_array((state == 1).astype(np.float32))
    )
    scores = model.scores(np.arange(users)).numpy()
    for user, value in zip(some, found, strict=True):
        shown = state[user] != 1
        if len(set(state[user][shown])) < 2:
            assert np.isnan(value)
        else:
            expected = roc_auc_score(state[user][shown] == 2, scores[user][shown])
            assert value == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found).sum() >= 2
