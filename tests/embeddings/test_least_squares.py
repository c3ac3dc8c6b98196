"""Rows that are fitted to vectors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.least_squares import nearest_table, weights_of


def test_the_matrix_of_a_map_times_a_table_is_the_vectors() -> None:
    rows, weights = np.array([[0, 2], [1, 2], [2, 2]]), np.array([[1, 0.5], [2, 0], [0.25, 0.5]], np.float32)
    table = np.random.default_rng(0).standard_normal((4, 3))
    expected = np.einsum("nh,nhd->nd", weights, table[rows])
    np.testing.assert_allclose(weights_of(IdMap(rows, 4, 3, "some", weights)) @ table, expected)


@pytest.mark.parametrize("rank", [5, 12])
def test_the_fit_is_that_of_lstsq(rank: int) -> None:
    """Twelve columns of rank 5 have many solutions, of which the smallest is wanted."""
    draws = np.random.default_rng(1)
    dense = draws.standard_normal((40, rank)) @ draws.standard_normal((rank, 12))
    wanted = draws.standard_normal((40, 3)).astype(np.float32)
    found = nearest_table(csr_array(dense), wanted, steps=200)
    np.testing.assert_allclose(found, np.linalg.lstsq(dense, wanted, rcond=None)[0], atol=1e-4)


def test_rows_without_ids_and_vectors_of_zero_stay_zero() -> None:
    matrix = csr_array(np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))
    found = nearest_table(matrix, np.array([[3.0, 0.0], [1.0, 0.0]], np.float32))
    np.testing.assert_allclose(found, [[2, 0], [0, 0], [1, 0]], atol=1e-12)
