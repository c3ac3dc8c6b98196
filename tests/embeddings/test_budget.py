"""Budgets in words to rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from embeddings.budget import Budget, cluster_to_budget, resolve_budget
from embeddings.clustering import Algorithm
from embeddings.compress import compress

GOWALLA = {"num_users": 29_858, "num_items": 40_981, "row_bytes": 256}


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({"rows": "16%"}, 11_334),
        ({"rows": " 0.5 % "}, 354),
        ({"rows": 11_321}, 11_321),
        ({"rows": "11_321"}, 11_321),
        ({"rows": "11,321"}, 11_321),
        ({"rows": "100%"}, 70_839),
        ({"table_mib": 2.0}, 2 * 2**20 // 256 - 2),
    ],
)
def test_rows(given: dict[str, Any], rows: int) -> None:
    defaults = {"rows": None, "table_mib": None, "resolution": None}
    assert resolve_budget(**(defaults | given), **GOWALLA) == Budget(rows, None, at_most="table_mib" in given)


def test_table_mib_covers_both_tables_with_their_unseen_rows() -> None:
    found = resolve_budget(None, 3.0, None, **GOWALLA).rows
    assert found is not None
    assert (found + 2) * 64 * 4 <= 3.0 * 2**20 < (found + 3) * 64 * 4


def test_a_table_of_the_items_alone_has_one_unseen_row() -> None:
    given = {"num_users": 0, "num_items": 12_101, "row_bytes": 256}
    assert resolve_budget(None, 12_102 * 256 / 2**20, None, **given) == Budget(12_101, None, at_most=True)
    assert resolve_budget(1, None, None, **given) == Budget(1, None)
    with pytest.raises(ValueError, match="can have rows: 1 to 12101"):
        resolve_budget(0, None, None, **given)


def test_resolution_is_passed_on() -> None:
    assert resolve_budget(None, None, 200, **GOWALLA) == Budget(None, 200.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of rows, table_mib and resolution, got none"),
        ({"rows": 5, "resolution": 2.0}, r"exactly one of .* got \{'rows': 5, 'resolution': 2.0\}"),
        ({"rows": "1,6%"}, "a share with a decimal point, such as '1.6%', got '1,6%'"),
        ({"rows": "many"}, "a share such as '16%' or a number of rows, got 'many'"),
        ({"rows": "nan%"}, "got 'nan%'"),
        ({"rows": "inf%"}, "got 'inf%'"),
        ({"rows": "120%"}, r"'120%' \(85,007 rows\) is out of range: .* can have rows: 2 to 70839"),
        ({"rows": 1}, "rows: '0.00282%' to '100%', or table_mib: 0.0009766 to 17.3"),
        ({"rows": -3}, r"rows=-3 \(-3 rows\) is out of range"),
        ({"table_mib": 99.0}, r"table_mib=99 \(405,502 rows of 256 bytes beside the 2 unseen rows\) is out of range"),
        ({"table_mib": float("inf")}, "out of range"),
        ({"resolution": float("inf")}, "resolution must be a positive number, got inf"),
        ({"resolution": -1.0}, "resolution must be a positive number, got -1.0"),
    ],
)
def test_errors_have_the_feasible_range(given: dict[str, Any], message: str) -> None:
    defaults = {"rows": None, "table_mib": None, "resolution": None}
    with pytest.raises(ValueError, match=message):
        resolve_budget(**(defaults | given), **GOWALLA)


def test_clustering_to_either_kind_of_budget() -> None:
    graph = sparse.csr_array(np.kron(np.eye(6), np.ones((3, 3))).astype(np.float32))
    assert cluster_to_budget(graph, Budget(12, None)).num_rows == 12
    found = cluster_to_budget(graph, Budget(None, 1.5), "leiden")
    assert (found.num_rows, found.resolution, found.algorithm) == (12, 1.5, "leiden")


@pytest.mark.parametrize("algorithm", ["louvain", "leiden"])
def test_tables_that_are_built_take_no_more_than_table_mib(algorithm: Algorithm) -> None:
    """Whatever the search accepts: a resolution that gives a few rows too many is not the last step."""
    drawn = np.random.default_rng(0).random((500, 400)) < 0.02
    graph = sparse.csr_array(drawn.astype(np.float32))
    accepted = []
    for rows in range(100, 500, 50):
        mib = (rows + 2) * 256 / 2**20
        budget = resolve_budget(None, mib, None, 500, 400, 256)
        clusters = cluster_to_budget(graph, budget, algorithm)
        sides = (clusters.num_user_clusters, clusters.num_item_clusters)
        for name, given in (("graphhash", clusters), ("universal_hash", None)):
            built = sum(one.num_rows for one in compress(name, graph, *sides, clustering=given))
            assert 0.98 * rows <= built - 2 <= rows
            assert built * 256 / 2**20 <= mib
        accepted.append(cluster_to_budget(graph, Budget(rows, None), algorithm).num_rows - rows)
    assert max(accepted) > 0, "no budget here is one that the search goes beyond"


@pytest.mark.parametrize("rows", [1, 5, 12, 40, 60])
def test_a_budget_of_the_items_alone_is_met_exactly(rows: int) -> None:
    drawn = np.random.default_rng(0).random((80, 40)) < 0.15
    drawn[:, 39] = False
    graph = sparse.csr_array(drawn.astype(np.float32))
    found = cluster_to_budget(graph, Budget(rows, None), items_only=True)
    wanted = min(rows, 39)
    assert found.num_item_clusters == wanted
    np.testing.assert_array_equal(np.unique(found.item_labels), np.arange(-1, wanted))
    assert found.user_labels.max() + 1 == found.num_user_clusters


def test_halved_and_joined_clusters_of_items_are_counted() -> None:
    drawn = np.random.default_rng(0).random((80, 40)) < 0.15
    graph = sparse.csr_array(drawn.astype(np.float32))
    found = cluster_to_budget(graph, Budget(12, None), items_only=True)
    whole = cluster_to_budget(graph, Budget(round(12 / 40 * 120), None))
    assert found.adjusted == whole.adjusted + 12 - whole.num_item_clusters
    assert found.resolution == whole.resolution
