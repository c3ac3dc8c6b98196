"""Rows that carry over to a new clustering, and ids that join old clusters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from embeddings.assign import assign
from embeddings.clustering import co_cluster
from embeddings.compress import compress
from embeddings.id_map import IdMap
from embeddings.levels import Levels
from embeddings.refresh import refresh


def id_map(rows: list[list[int]], num_rows: int, weights: list[list[float]] | None = None) -> IdMap:
    given = None if weights is None else np.array(weights, dtype=np.float32)
    return IdMap(np.array(rows), num_rows, num_rows - 1, "graphhash", given)


def table(rows: int, dim: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)


def test_the_same_buckets_under_other_numbers_keep_every_bit() -> None:
    old, new = id_map([[0], [1], [0], [2]], 4), id_map([[2], [0], [2], [1]], 4)
    weight, state = table(4), {"sum": table(4) ** 2, "steps": np.array(7)}
    carried = refresh(old, new, weight, state)
    np.testing.assert_array_equal(carried.weight[new.rows], weight[old.rows])
    np.testing.assert_array_equal(carried.weight[3], weight[3])
    np.testing.assert_array_equal(carried.state["sum"][new.rows], state["sum"][old.rows])
    assert carried.state["steps"] == 7
    assert (carried.kept, carried.fitted) == (4, 0)


def test_a_merged_row_is_the_mean_over_its_ids_and_a_split_row_a_copy() -> None:
    old, new = id_map([[0], [0], [1], [2], [2]], 4), id_map([[0], [0], [0], [1], [2]], 4)
    weight, state = table(4), {"sum": np.array([1.0, 4.0, 5.0, 9.0], dtype=np.float32)}
    carried = refresh(old, new, weight, state)
    np.testing.assert_allclose(carried.weight[0], (2 * weight[0] + weight[1]) / 3, rtol=1e-6)
    np.testing.assert_allclose(carried.weight[[1, 2]], weight[[2, 2]], rtol=1e-6)
    np.testing.assert_allclose(carried.state["sum"], [2.0, 5.0, 5.0, 9.0])
    assert carried.fitted == 3


def test_sums_of_rows_are_fitted_by_least_squares() -> None:
    """Old vectors that weighted sums of the new rows can reach are reached; the oracle is numpy's lstsq."""
    old = id_map([[i] for i in range(6)], 7)
    weights = [[1.0, 0.5]] * 6
    new = id_map([[i // 3, 2 + i % 3] for i in range(6)], 6, weights)
    design = np.zeros((6, 5))
    for i in range(6):
        design[i, i // 3], design[i, 2 + i % 3] = 1.0, 0.5
    wanted = design @ np.random.default_rng(1).standard_normal((5, 4))
    weight = np.concatenate([wanted, np.zeros((1, 4))]).astype(np.float32)
    carried = refresh(old, new, weight, {})
    best = design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
    np.testing.assert_allclose(design @ carried.weight[:5], best, atol=1e-5)


def test_a_row_without_a_known_id_starts_as_the_unseen_row_without_state() -> None:
    old, new = id_map([[0], [1]], 3), id_map([[0], [1], [2]], 4)
    weight = table(3)
    carried = refresh(old, new, weight, {"sum": np.ones(3, dtype=np.float32)})
    np.testing.assert_array_equal(carried.weight, weight[[0, 1, 2, 2]])
    np.testing.assert_array_equal(carried.state["sum"], np.array([1, 1, 0, 1], dtype=np.float32))


def test_ids_that_had_the_unseen_row_are_as_new_as_others() -> None:
    """They join a row that was trained without them, which they must not pull towards the unseen row."""
    old, new = id_map([[0], [0], [3], [1], [2]], 4), id_map([[0], [0], [0], [1], [2]], 4)
    weight, state = table(4), {"sum": np.array([4.0, 3.0, 2.0, 0.0], dtype=np.float32)}
    carried = refresh(old, new, weight, state)
    np.testing.assert_array_equal(carried.weight, weight)
    np.testing.assert_array_equal(carried.state["sum"], state["sum"])
    assert (carried.kept, carried.fitted) == (4, 0)


def test_state_comes_from_rows_that_an_id_used() -> None:
    """Id 0 has a row of its own, and a weight of zero for the one that its place would give."""
    old = id_map([[0, 1], [2, 1]], 4, [[1.0, 0.0], [0.0, 1.0]])
    new = id_map([[2, 0], [2, 1]], 4, [[0.0, 1.0], [0.0, 1.0]])
    carried = refresh(old, new, table(4), {"sum": np.array([100.0, 5.0, 1.0, 0.0], dtype=np.float32)})
    np.testing.assert_allclose(carried.weight[0], table(4)[0], rtol=1e-6)
    assert carried.state["sum"][0] == 100.0


def test_refresh_errors_say_what_is_needed() -> None:
    old = id_map([[0], [1]], 3)
    with pytest.raises(ValueError, match="at least the 2 ids of the old one, got 1"):
        refresh(old, id_map([[0]], 3), table(3), {})
    with pytest.raises(ValueError, match=r"weight must have 3 rows, as the old map, got shape \[4, 3\]"):
        refresh(old, old, table(4), {})
    with pytest.raises(ValueError, match=r"sum must have 3 rows, as the old map, got shape \[2\]"):
        refresh(old, old, table(3), {"sum": np.ones(2)})


def planted(blocks: int = 8) -> tuple[sparse.csr_array, np.ndarray]:
    users, items = np.repeat(np.arange(blocks), 10), np.repeat(np.arange(blocks), 8)
    chance = np.where(users[:, None] == items[None, :], 0.8, 0.01)
    drawn = np.random.default_rng(3).random(chance.shape) < chance
    return sparse.csr_array(drawn.astype(np.float32)), users


@pytest.mark.parametrize("name", ["graphhash", "double_graphhash"])
def test_new_ids_join_the_cluster_of_their_neighbours(name: str) -> None:
    graph, _ = planted()
    clusters = co_cluster(graph, 1.0)
    maps = compress(name, graph, clusters.num_user_clusters, clusters.num_item_clusters, clusters)
    new = graph[np.arange(0, 80, 10)]
    both = assign(new, graph, maps[0])
    np.testing.assert_array_equal(both.rows[80:, 0], maps[0].rows[np.arange(0, 80, 10), 0])
    np.testing.assert_array_equal(both.rows[:80], maps[0].rows)
    items = assign(graph.T.tocsr()[:3], graph.T.tocsr(), maps[1])
    np.testing.assert_array_equal(items.rows[64:, 0], maps[1].rows[:3, 0])


@pytest.mark.parametrize("name", ["baco", "multi_graphhash", "residual_codes"])
def test_new_ids_get_a_code_at_every_level_and_lonely_ones_the_unseen_row(name: str) -> None:
    graph, blocks = planted()
    user_map, _ = compress(name, graph, 30, 30)
    new = sparse.csr_array(np.concatenate([graph[[5]].toarray(), np.zeros((1, 64), dtype=np.float32)]))
    both = assign(new, graph, user_map)
    assert (both.rows[81] == user_map.unseen_row).all()
    np.testing.assert_array_equal(both.lookup_weights(np.array([81])), both.lookup_weights(np.array([-1])))
    levels = np.flatnonzero(both.lookup_weights(np.array([80]))[0])
    assert levels.size >= 1
    for level in levels:
        code = both.rows[80, level]
        assert code in user_map.rows[blocks == 0, level]
        if name != "residual_codes" or level == levels[0]:  # blocks may share the codes of what the first level left
            assert np.bincount(blocks[user_map.rows[:, level] == code]).argmax() == 0
    carried = refresh(user_map, both, table(31), {})
    assert carried.fitted == 0
    np.testing.assert_array_equal(carried.weight[np.unique(user_map.rows)], table(31)[np.unique(user_map.rows)])


def test_the_second_code_of_a_new_id_is_another_row_than_its_first() -> None:
    drawn = np.random.default_rng(4).random((300, 120)) < 0.05
    graph = sparse.csr_array(drawn.astype(np.float32))
    user_map, _ = compress("baco", graph[:200], 30, 30)
    rows = assign(graph[200:], graph[:200], user_map)
    some = np.arange(200, 300)
    two = (rows.lookup_weights(some) > 0).all(axis=1)
    assert two.sum() >= 50
    assert (rows.rows[some[two], 0] != rows.rows[some[two], 1]).all()


def test_a_new_id_has_the_row_of_its_popularity_too() -> None:
    graph, _ = planted()
    levels = Levels(count=1, head_share=0.0, neighbour_share=0.3, neighbours=2, popularity_share=0.2)
    user_map, _ = compress("multi_graphhash", graph, 30, 30, levels=levels)
    lonely = np.zeros((1, 64), dtype=np.float32)
    both = assign(sparse.csr_array(np.concatenate([graph.toarray(), lonely])), graph, user_map)
    np.testing.assert_array_equal(both.rows[80:160, 2], user_map.rows[:, 2])
    np.testing.assert_array_equal(both.lookup_weights(np.arange(80, 160))[:, 2], np.ones(80))
    assert (both.rows[160] == user_map.unseen_row).all()
    everything = assign(sparse.csr_array(np.ones((1, 64), dtype=np.float32)), graph, user_map)
    assert everything.rows[80, 2] == user_map.rows[:, 2].max()


def test_assign_errors_say_what_is_needed() -> None:
    graph, _ = planted()
    hashed = compress("modulo", graph, 4, 4)[0]
    with pytest.raises(ValueError, match="'modulo' has no clusters that a new id could join; use graphhash"):
        assign(graph, graph, hashed)
    with pytest.raises(ValueError, match=r"graph \[80, M\] of the map's ids, got \[80, 64\] and \[64, 80\]"):
        assign(graph, graph.T.tocsr(), dataclasses.replace(hashed, compressor="graphhash"))
