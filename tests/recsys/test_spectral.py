"""Spectral starts of embedding tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.tables import Backend, OptimizerSpec, Table, build_table
from recsys.rng import generator
from recsys.spectral import spectral_vectors, start_from


def table(id_map: IdMap, dim: int, backend: Backend = "torch") -> Table:
    spec = OptimizerSpec("adagrad", lr=0.1)
    return build_table(id_map, dim, backend=backend, optimizer=spec, init_std=0.1, generator=generator(0, "init"))


def test_inner_products_are_the_best_low_rank_approximation() -> None:
    dense = (np.random.default_rng(0).random((50, 40)) < 0.2).astype(np.float64)
    dense[3], dense[:, 5] = 0, 0
    normalised = dense / np.sqrt(np.maximum(dense.sum(1), 1))[:, None] / np.sqrt(np.maximum(dense.sum(0), 1))
    left, values, right = np.linalg.svd(normalised)
    users, items = spectral_vectors(csr_array(dense.astype(np.float32)), 6)
    np.testing.assert_allclose(users @ items.T, (left[:, :6] * values[:6]) @ right[:6], atol=1e-4)
    np.testing.assert_allclose(np.square(users).sum(0), np.square(items).sum(0), rtol=1e-3)
    assert (users[3] == 0).all() and (items[5] == 0).all()


@pytest.mark.parametrize("backend", ["torch", "fbgemm"])
def test_a_row_is_the_mean_of_its_members_and_the_rest_keeps_its_draw(backend: Backend) -> None:
    id_map = IdMap(np.array([[0], [0], [1], [3]]), 5, 4, "some")
    vectors = np.array([[1, 3], [3, 5], [-2, 2], [0, 0]], np.float32)
    made = table(id_map, 4, backend)
    before = made.weight().clone()
    start_from(made, id_map, vectors, std=0.5)
    scale = 0.5 / np.sqrt(np.mean(vectors**2))
    np.testing.assert_allclose(made.weight()[:2, :2].numpy(force=True), scale * np.array([[2, 4], [-2, 2]]), rtol=1e-5)
    assert torch.equal(made.weight()[2:], before[2:]) and torch.equal(made.weight()[:, 2:], before[:, 2:])


def test_rows_of_later_places_fit_what_is_left() -> None:
    """Two coarse rows and four fine ones say four vectors exactly, with weights as well."""
    weights = np.tile(np.array([[0.5, 2.0]], np.float32), (4, 1))
    id_map = IdMap(np.array([[0, 2], [0, 3], [1, 4], [1, 5]]), 7, 6, "levels", weights)
    vectors = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    made = table(id_map, 3)
    start_from(made, id_map, vectors, std=0.1)
    expected = vectors * 0.1 / np.sqrt(np.mean(vectors**2))
    np.testing.assert_allclose(made.vectors(None).numpy(force=True), expected, atol=1e-6)


def test_a_graph_without_interactions_changes_nothing() -> None:
    id_map = IdMap(np.zeros((3, 1), np.int64), 2, 1, "one")
    made = table(id_map, 4)
    before = made.weight().clone()
    users, _ = spectral_vectors(csr_array(np.zeros((3, 4), np.float32)), 2)
    start_from(made, id_map, users, std=0.1)
    assert torch.equal(made.weight(), before)
