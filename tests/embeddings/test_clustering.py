"""Co-clusters, their modularity, and the search for a number of rows."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from embeddings.clustering import Algorithm, CoClustering, barber_modularity, co_cluster, search_resolution
from embeddings.rebalance import merge_smallest, split_largest

both = pytest.mark.parametrize("algorithm", ["louvain", "leiden"])


def random_graph(users: int, items: int, density: float, seed: int = 0) -> sparse.csr_array:
    edges = np.random.default_rng(seed).random((users, items)) < density
    edges[-1, 0] = True
    return sparse.csr_array(edges.astype(np.float32))


def check(graph: sparse.csr_array, found: CoClustering) -> None:
    for labels, clusters, axis in (
        (found.user_labels, found.num_user_clusters, 1),
        (found.item_labels, found.num_item_clusters, 0),
    ):
        seen = np.asarray(graph.sum(axis=axis)) > 0
        assert labels.dtype == np.int64
        assert (labels[~seen] == -1).all()
        assert np.unique(labels[seen]).tolist() == list(range(clusters))


@pytest.fixture(scope="module")
def gowalla(shared_data: Path) -> sparse.csr_array:
    frame = pl.read_parquet(shared_data / "gowalla" / "interactions.parquet").filter(pl.col("split") == "train")
    pairs = (frame["user_id"].to_numpy(), frame["item_id"].to_numpy())
    return sparse.csr_array((np.ones(len(frame), dtype=np.float32), pairs), shape=(29858, 40981))


def test_gowalla_at_resolution_200_gives_the_known_rows(gowalla: sparse.csr_array) -> None:
    found = co_cluster(gowalla, 200)
    assert (found.num_user_clusters, found.num_item_clusters) == (5652, 5669)
    assert np.median(np.bincount(found.user_labels)) == 4
    assert np.bincount(found.item_labels).max() == 101


@both
def test_planted_clusters_under_any_node_order(algorithm: Algorithm) -> None:
    generator = np.random.default_rng(1)
    users, items = np.repeat(np.arange(8), 20), np.repeat(np.arange(8), 12)
    edges = generator.random((160, 96)) < np.where(users[:, None] == items[None, :], 0.6, 0.01)
    for order in range(3):
        rows, columns = np.random.default_rng(order).permutation(160), np.random.default_rng(order).permutation(96)
        found = co_cluster(sparse.csr_array(edges[rows][:, columns].astype(np.float32)), 1.0, algorithm)
        assert adjusted_rand_score(users[rows], found.user_labels) == 1.0
        assert adjusted_rand_score(items[columns], found.item_labels) == 1.0


@both
def test_a_second_run_in_the_same_process_is_equal(algorithm: Algorithm) -> None:
    graph = random_graph(150, 90, 0.05)
    first, second = co_cluster(graph, 8.0, algorithm), co_cluster(graph, 8.0, algorithm)
    np.testing.assert_array_equal(first.user_labels, second.user_labels)
    np.testing.assert_array_equal(first.item_labels, second.item_labels)


def test_modularity_of_one_block_per_cluster_has_a_closed_form() -> None:
    """k equal complete blocks, clustered right: Q = 1 - resolution / k."""
    graph = sparse.csr_array(np.kron(np.eye(5), np.ones((4, 3))).astype(np.float32))
    found = co_cluster(graph, 1.0)
    assert found.num_user_clusters == found.num_item_clusters == 5
    assert found.modularity == pytest.approx(1 - 1 / 5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), resolution=st.floats(0.1, 20))
def test_modularity_equals_its_definition(seed: int, resolution: float) -> None:
    graph = random_graph(9, 7, 0.3, seed)
    generator = np.random.default_rng(seed)
    users, items = generator.integers(0, 4, 9), generator.integers(0, 4, 7)
    dense = graph.toarray().astype(float)
    m = dense.sum()
    null = resolution * np.outer(dense.sum(1), dense.sum(0)) / m
    expected = ((dense - null) * (users[:, None] == items[None, :])).sum() / m
    assert barber_modularity(graph, users, items, resolution) == pytest.approx(expected, abs=1e-12)


def test_modularity_beats_random_labels_and_is_near_networkx() -> None:
    graph = random_graph(120, 80, 0.06, 3)
    found = co_cluster(graph, 1.0)
    generator = np.random.default_rng(0)
    shuffled = barber_modularity(
        graph, generator.permutation(found.user_labels), generator.permutation(found.item_labels), 1.0
    )
    assert found.modularity > shuffled + 0.2
    peer = nx.algorithms.community.louvain_communities(nx.bipartite.from_biadjacency_matrix(graph), seed=0)
    labels = np.empty(200, dtype=np.int64)
    for label, nodes in enumerate(peer):
        labels[list(nodes)] = label
    assert found.modularity > 0.95 * barber_modularity(graph, labels[:120], labels[120:], 1.0)


def test_more_resolution_gives_more_clusters() -> None:
    graph = random_graph(200, 150, 0.05)
    rows = [co_cluster(graph, resolution).num_rows for resolution in (0.5, 5, 50, 1e9)]
    assert rows == sorted(rows)
    assert rows[-1] == int((graph.sum(1) > 0).sum() + (graph.sum(0) > 0).sum())


@both
def test_isolated_ids_have_no_cluster(algorithm: Algorithm) -> None:
    graph = sparse.csr_array(np.array([[0, 0, 0], [0, 1, 1], [0, 0, 0], [0, 1, 0]], dtype=np.float32))
    found = co_cluster(graph, 0.1, algorithm)
    check(graph, found)
    assert found.user_labels.tolist() == [-1, 0, -1, 0]
    assert found.item_labels.tolist() == [-1, 0, 0]


@both
@settings(max_examples=25, deadline=None)
@given(
    users=st.integers(1, 20),
    items=st.integers(1, 20),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_feasible_number_of_rows_is_met(
    algorithm: Algorithm, users: int, items: int, density: float, seed: int, data: st.DataObject
) -> None:
    graph = random_graph(users, items, density, seed)
    seen = int((graph.sum(1) > 0).sum() + (graph.sum(0) > 0).sum())
    target = data.draw(st.integers(2, seen))
    found = search_resolution(graph, target, algorithm)
    check(graph, found)
    assert abs(found.num_rows - target) <= 0.02 * target
    assert found.fits <= 20


def test_disconnected_components_merge_below_their_number() -> None:
    graph = sparse.csr_array(np.eye(12, dtype=np.float32))
    found = search_resolution(graph, 9)
    check(graph, found)
    assert found.num_rows == 9
    assert found.adjusted < 0
    assert max(np.bincount(found.user_labels)) <= 4


def test_one_edge() -> None:
    graph = sparse.csr_array(([np.float32(1)], ([2], [1])), shape=(4, 3))
    found = search_resolution(graph, 2)
    assert (found.user_labels.tolist(), found.item_labels.tolist()) == ([-1, -1, 0, -1], [-1, 0, -1])
    with pytest.raises(ValueError, match="2 seen users and items can have 2 to 2 rows, not 3; change the budget"):
        search_resolution(graph, 3)


def test_a_real_graph_needs_few_fits_and_little_repair() -> None:
    generator = np.random.default_rng(0)
    users, items = generator.zipf(1.3, 30_000) % 1500, generator.zipf(1.2, 30_000) % 1000
    graph = sparse.csr_array((np.ones(30_000, dtype=np.float32), (users, items)))
    for target in (100, 400, 1200):
        found = search_resolution(graph, target)
        check(graph, found)
        assert abs(found.num_rows - target) <= 0.02 * target
        assert found.fits <= 10
        assert abs(found.adjusted) <= 0.05 * target


def test_errors() -> None:
    graph = sparse.csr_array(np.ones((5, 5), dtype=np.float32))
    with pytest.raises(ValueError, match="resolution must be a positive number, got 0"):
        co_cluster(graph, 0)
    with pytest.raises(ValueError, match="got nan"):
        co_cluster(graph, float("nan"))
    with pytest.raises(ValueError, match=r"at least one interaction, got an empty graph of shape \[3, 2\]"):
        co_cluster(sparse.csr_array((3, 2), dtype=np.float32), 1.0)
    with pytest.raises(ValueError, match="must be 'louvain' or 'leiden', got 'metis'"):
        co_cluster(graph, 1.0, "metis")
    with pytest.raises(ValueError, match="can have 2 to 10 rows, not 1"):
        search_resolution(graph, 1)


def test_splitting_halves_the_largest_and_keeps_finer_clusters_together() -> None:
    users, items = np.array([0, 0, 0, 0, 1, -1]), np.array([0, 0])
    finer = (np.array([3, 1, 3, 1, 0, -1]), np.array([0, 1]))
    split = split_largest((users, items), finer, 1)
    assert split[0].tolist() == [2, 0, 2, 0, 1, -1]
    assert split[1].tolist() == [0, 0]
    assert users.tolist() == [0, 0, 0, 0, 1, -1]
    singletons = split_largest((users, items), finer, 4)
    assert sorted(singletons[0].tolist()) == [-1, 0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="cannot make 5 more buckets"):
        split_largest((users, items), finer, 5)


def test_merging_joins_the_smallest() -> None:
    users, items = np.array([0, 0, 0, 1, 2, 2, -1]), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    merged = merge_smallest((users, items), 1)
    assert merged[0].tolist() == [0, 0, 0, 1, 1, 1, -1]
    assert merged[1].tolist() == items.tolist()
    assert [len(np.unique(side[side >= 0])) for side in merge_smallest((users, items), 3)] == [1, 1]
    with pytest.raises(ValueError, match="cannot merge 4 buckets"):
        merge_smallest((users, items), 4)
