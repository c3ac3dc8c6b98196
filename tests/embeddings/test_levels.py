"""Division of rows between head, hash and levels, and what the levels are made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from embeddings.clustering import barber_modularity
from embeddings.compress import compress
from embeddings.label_propagation import balanced_clusters, propagate
from embeddings.levels import Levels, divide, popularity_buckets
from embeddings.majority import majority
from embeddings.rebalance import fit_rows
from embeddings.spectral import spectral_vectors


def planted(blocks: int, per_user: int, per_item: int) -> tuple[sparse.csr_array, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    users = generator.permutation(np.repeat(np.arange(blocks), per_user))
    items = generator.permutation(np.repeat(np.arange(blocks), per_item))
    chance = np.where(users[:, None] == items[None, :], 0.5, 0.01)
    return sparse.csr_array((generator.random(chance.shape) < chance).astype(np.float32)), users, items


@example(
    rows=40, degrees=[*range(2, 30), *[1] * 40], count=0, ratio=1, head=0.3, hashed=0, near=0, popular=0.2, others=5
)
@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 500),
    degrees=st.lists(st.integers(0, 60), min_size=1, max_size=900),
    count=st.integers(0, 5),
    ratio=st.floats(1, 9),
    head=st.floats(0, 0.6),
    hashed=st.floats(0, 0.2),
    near=st.floats(0, 0.1),
    popular=st.floats(0, 0.09),
    others=st.integers(1, 50),
)
def test_every_row_is_spent_once(
    rows: int,
    degrees: list[int],
    count: int,
    ratio: float,
    head: float,
    hashed: float,
    near: float,
    popular: float,
    others: int,
) -> None:
    levels = Levels(
        count=count, ratio=ratio, head_share=head, hash_share=hashed, neighbour_share=near, popularity_share=popular
    )
    division = divide(rows, np.array(degrees), others, levels)
    spent = division.head + division.hashed + division.neighbours + division.popularity + sum(division.levels)
    assert spent == min(rows, np.count_nonzero(degrees))
    assert division.neighbours <= others
    others_of_head = np.sort(degrees)[: len(degrees) - division.head]
    assert popularity_buckets(others_of_head, division.popularity).max(initial=-1) + 1 == division.popularity
    assert all(level >= 1 for level in division.levels)
    assert list(division.levels) == sorted(division.levels)


@given(degrees=st.lists(st.integers(0, 10**6), max_size=60), count=st.integers(1, 40))
def test_popularity_buckets_rise_and_none_is_empty(degrees: list[int], count: int) -> None:
    counts = np.array(degrees, dtype=np.int64)
    found = popularity_buckets(counts, count)
    np.testing.assert_array_equal(found == -1, counts == 0)
    order = np.argsort(counts, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    wanted = min(count, np.unique(counts[counts > 0]).size)
    np.testing.assert_array_equal(np.unique(found[found >= 0]), np.arange(wanted))
    assert np.unique(np.stack([counts, found]), axis=1).shape[1] == np.unique(counts).size


def test_popularity_buckets_are_even_on_a_logarithmic_scale() -> None:
    found = popularity_buckets(np.arange(1, 1024), 10)
    np.testing.assert_array_equal(np.flatnonzero(np.diff(found)) + 2, 2 ** np.arange(1, 10))
    np.testing.assert_array_equal(popularity_buckets(np.array([1, 2, 3, 1000]), 4), [0, 1, 2, 3])


def test_ids_of_like_popularity_share_a_row_beside_their_clusters() -> None:
    graph, _, _ = planted(12, 30, 20)
    levels = Levels(count=1, head_share=0.25, neighbour_share=0.25, neighbours=3, popularity_share=0.125)
    user_map, _ = compress("multi_graphhash", graph, 80, 64, levels=levels)
    counts = np.asarray(graph.sum(axis=1)).astype(np.int64)
    assert user_map.info["division"]["popularity"] == 10
    weights = user_map.lookup_weights(np.arange(user_map.num_ids))
    head = weights[:, 1] == 0
    assert head.sum() == 20
    np.testing.assert_array_equal(weights[:, 2], ~head)
    start = user_map.num_rows - 1 - user_map.info["division"]["neighbours"] - 10
    expected = popularity_buckets(np.where(head, 0, counts), 10)
    np.testing.assert_array_equal((user_map.rows[:, 2] - start)[~head], expected[~head])
    np.testing.assert_array_equal(np.unique(user_map.rows[weights > 0]), np.arange(80))  # none is never looked up


def test_popularity_has_no_row_that_the_growing_head_left_unread() -> None:
    """Six items make six clusters of them, so that the head gets the rest: all users of several items."""
    users = np.arange(240)[:, None]
    graph = sparse.csr_array(((users % 6 == np.arange(6)) | (np.arange(6) < 6 - users)).astype(np.float32))
    levels = Levels(count=0, head_share=0.1, popularity_share=0.15)
    user_map, _ = compress("multi_graphhash", graph, 30, 4, levels=levels)
    division = user_map.info["division"]
    assert (division["head"], division["neighbours"], division["popularity"]) == (23, 6, 1)
    weights = user_map.lookup_weights(np.arange(user_map.num_ids))
    np.testing.assert_array_equal(np.unique(user_map.rows[weights > 0]), np.arange(30))


def test_levels_errors_say_what_is_needed() -> None:
    with pytest.raises(
        ValueError, match=r"count >= 0, ratio and neighbours >= 1, got count=-1, ratio=3.0, neighbours=8"
    ):
        Levels(count=-1)
    with pytest.raises(ValueError, match=r"together below 1, got 0.5, 0.5, 0.0 and 0.0"):
        Levels(head_share=0.5, hash_share=0.5)
    with pytest.raises(ValueError, match=r"one weight for each of 3 levels, got \(1.0, 2.0\)"):
        Levels(weights=(1.0, 2.0))


@pytest.mark.parametrize("name", ["multi_graphhash", "residual_codes"])
def test_the_head_owns_its_rows_and_every_row_is_reached(name: str) -> None:
    graph, _, _ = planted(12, 30, 20)
    levels = Levels(count=2, head_share=0.25, hash_share=0.125, weights=(0.5, 2.0))
    user_map, item_map = compress(name, graph, 80, 64, levels=levels)
    for one, rows, degrees in ((user_map, 80, graph.sum(axis=1)), (item_map, 64, graph.sum(axis=0))):
        weights = one.lookup_weights(np.arange(one.num_ids))
        head = (weights == [1.0, 0.0, 0.0]).all(axis=1)
        assert head.sum() == rows // 4
        assert degrees[head].min() >= degrees[~head].max()
        np.testing.assert_array_equal(np.sort(one.rows[head, 0]), np.arange(rows // 4))
        others = np.flatnonzero(~head)
        assert (weights[others] == [1.0, 0.5, 2.0]).all()
        assert (one.rows[others] >= rows // 4).all()
        if name == "multi_graphhash":
            levels_used = np.unique(one.rows[:, 1:][weights[:, 1:] > 0])
            assert levels_used.size == rows - rows // 4 - rows // 8


def test_planted_clusters_are_a_level_of_multi_graphhash() -> None:
    graph, users, items = planted(12, 30, 20)
    levels = Levels(count=1, head_share=0.0)
    user_map, item_map = compress("multi_graphhash", graph, 12, 12, levels=levels)
    assert adjusted_rand_score(users, user_map.rows[:, 1]) >= 0.95
    assert adjusted_rand_score(items, item_map.rows[:, 1]) >= 0.95


def test_planted_clusters_are_found_by_residual_codes() -> None:
    graph, users, items = planted(6, 60, 40)
    levels = Levels(count=2, ratio=1.0, head_share=0.0)
    for one, blocks in zip(compress("residual_codes", graph, 48, 48, levels=levels), (users, items), strict=True):
        codes = one.rows[:, 1]
        majority_block = [np.bincount(blocks[codes == code]).max() for code in np.unique(codes)]
        assert sum(majority_block) >= 0.95 * len(blocks)


def test_balanced_propagation_recovers_planted_clusters_and_bounds_their_size() -> None:
    graph, users, items = planted(12, 30, 20)
    found = balanced_clusters(graph, 12, 12)
    assert adjusted_rand_score(users, found.users) >= 0.9
    assert adjusted_rand_score(items, found.items) >= 0.9
    labels = propagate(graph, 1e-9, (45, 30))
    assert np.bincount(labels[:360]).max() <= 45
    assert np.bincount(labels[360:]).max() <= 30
    assert ((found.second != found.users) | (found.second < 0)).all()


def test_propagation_with_exponent_one_raises_barbers_modularity() -> None:
    """With penalty 1/m and exponent 1 the objective is m times the modularity, which no move may lower."""
    graph, _, _ = planted(8, 10, 9)
    labels = propagate(graph, 1 / graph.nnz, (10**6, 10**6), exponent=1.0)
    single = np.arange(sum(graph.shape))
    reached = barber_modularity(graph, labels[:80], labels[80:], 1.0)
    assert reached > barber_modularity(graph, single[:80], single[80:], 1.0)
    for node in range(80):
        neighbours = labels[80:][graph.indices[graph.indptr[node] : graph.indptr[node + 1]]]
        for label in np.unique(neighbours):
            moved = labels[:80].copy()
            moved[node] = label
            assert barber_modularity(graph, moved, labels[80:], 1.0) <= reached + 1e-9


def test_balanced_clusters_errors_say_what_is_needed() -> None:
    graph = sparse.csr_array(np.ones((10, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="10 users with an interaction can have 1 to 10 clusters, not 11"):
        balanced_clusters(graph, 11, 2)


def test_an_item_of_everyone_does_not_swallow_the_clusters() -> None:
    """A star of 10^5 users: one item of all of them, isolated users and items beside it."""
    users = 100_000
    rows, columns = np.arange(users), np.zeros(users, dtype=np.int64)
    graph = sparse.csr_array((np.ones(users, dtype=np.float32), (rows, columns)), shape=(users + 2, 3))
    user_map, item_map = compress("baco", graph, 50, 1)
    assert (user_map.rows[-2:] == 50).all()
    assert np.unique(user_map.rows[:-2, 0]).size == 50
    assert item_map.rows[:, 0].tolist() == [0, 1, 1]


def test_majority_counts_neighbours_ties_low_and_leaves_out() -> None:
    graph = sparse.csr_array(np.array([[1, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=np.float32))
    buckets = np.array([4, 2, 4, 1])
    assert majority(graph, buckets).tolist() == [4, 1, -1]
    assert majority(graph, buckets, exclude=np.array([4, 1, 0])).tolist() == [2, 2, -1]
    with pytest.raises(ValueError, match=r"one bucket for each of 4 columns, got \[3\]"):
        majority(graph, buckets[:3])


def test_fit_rows_halves_and_joins_to_the_exact_number() -> None:
    labels = np.array([0, 0, 0, 0, 1, -1])
    assert np.unique(fit_rows(labels, labels, 3)).tolist() == [-1, 0, 1, 2]
    assert fit_rows(labels, labels, 1).tolist() == [0, 0, 0, 0, 0, -1]


def test_spectral_vectors_are_the_singular_space_up_to_a_rotation() -> None:
    graph, _, _ = planted(4, 12, 10)
    dense = graph.toarray()
    scaled = dense / np.sqrt(np.maximum(dense.sum(axis=1), 1))[:, None] / np.sqrt(np.maximum(dense.sum(axis=0), 1))
    left, values, _ = np.linalg.svd(scaled)
    expected = left[:, :4] * values[:4]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors, _ = spectral_vectors(graph, 4, np.random.default_rng(0))
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=5e-3)
