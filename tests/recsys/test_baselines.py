from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from recsys.models.item_knn import ItemKnn
from recsys.models.popularity import Popularity
from recsys.topk import exact_top_k


def random_train(seed: int = 0, users: int = 40, items: int = 50) -> csr_array:
    return csr_array((np.random.default_rng(seed).random((users, items)) < 0.15).astype(np.float32))


def test_popularity_counts() -> None:
    train = random_train()
    model = Popularity.fit(train)
    counts = train.sum(axis=0)
    np.testing.assert_array_equal(model.scores(np.array([3, 5])).numpy(), [counts, counts])
    product = model.user_vectors(np.array([3])) @ model.item_vectors(range(50)).T
    np.testing.assert_array_equal(product.numpy()[0], counts)
    best = np.argsort(-counts, kind="stable")[:7]
    np.testing.assert_array_equal(exact_top_k(model, np.array([0]), 7, None).items[0], best)


@pytest.mark.parametrize(("neighbours", "shrinkage"), [(5, 0.0), (100, 10.0), (1, 2.5)])
def test_item_knn_equals_the_definition(neighbours: int, shrinkage: float) -> None:
    train = random_train()
    dense = train.toarray().astype(np.float64)
    common = dense.T @ dense
    norms = np.sqrt(np.diag(common))
    similarity = (common / (np.outer(norms, norms) + shrinkage)).astype(np.float32)
    np.fill_diagonal(similarity, 0)
    for row in similarity:
        row[np.argsort(-row, kind="stable")[neighbours:]] = 0
    model = ItemKnn.fit(train, neighbours, shrinkage)
    np.testing.assert_allclose(model.similarity.toarray(), similarity, rtol=1e-6)
    np.testing.assert_allclose(model.scores(np.arange(40)).numpy(), dense @ similarity, rtol=1e-5)
    assert np.diff(model.similarity.indptr).max() <= neighbours


def test_items_without_users_have_no_neighbours() -> None:
    model = ItemKnn.fit(csr_array(np.array([[1, 0, 1], [0, 0, 1]], dtype=np.float32)), shrinkage=0.0)
    assert np.diff(model.similarity.indptr).tolist() == [1, 0, 1]
    np.testing.assert_allclose(model.scores(np.array([1])).numpy(), [[1 / np.sqrt(2), 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("kind", [Popularity, ItemKnn])
def test_state_restores_the_model(kind: type[Popularity] | type[ItemKnn]) -> None:
    model = kind.fit(random_train())
    again = kind.from_state({name: tensor.clone() for name, tensor in model.state().items()})
    assert (again.num_users, again.num_items) == (40, 50)
    np.testing.assert_array_equal(again.scores(np.arange(40)), model.scores(np.arange(40)))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"neighbours >= 1 and shrinkage >= 0, got 0 and 10.0"):
        ItemKnn.fit(random_train(), neighbours=0)
    with pytest.raises(ValueError, match="got 5 and -1"):
        ItemKnn.fit(random_train(), 5, -1)
