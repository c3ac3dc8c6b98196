"""Clusters of neighbours as rows of an id."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from embeddings.assign import assign
from embeddings.compress import compress
from embeddings.graph import canonical, degrees
from embeddings.id_map import IdMap
from embeddings.levels import Levels
from embeddings.neighbour_buckets import neighbour_buckets
from embeddings.refresh import refresh

LEVELS = Levels(count=1, head_share=0.25, neighbour_share=0.5, neighbours=4)


def random_graph(users: int = 60, items: int = 40, seed: int = 0) -> sparse.csr_array:
    drawn = np.random.default_rng(seed).random((users, items)) < 0.1
    drawn[5] = False
    return canonical(sparse.csr_array(drawn.astype(np.float32)))


def test_an_id_gets_the_heaviest_buckets_of_its_neighbours() -> None:
    dense = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], np.float32)
    buckets, popularity = np.array([2, 2, 0, 1, -1]), np.array([4, 16, 1, 1, 9])
    rows, weights = neighbour_buckets(sparse.csr_array(dense), buckets, popularity, 2)
    assert rows.tolist() == [[0, 2], [0, 1], [-1, -1], [-1, -1]]
    first = np.array([1.0, 0.5 + 0.25]) / np.hypot(1.0, 0.75)
    np.testing.assert_allclose(weights, [first, [0.5**0.5, 0.5**0.5], [0, 0], [0, 0]], rtol=1e-6)


def test_with_every_bucket_kept_vectors_are_those_of_a_dense_product() -> None:
    graph, draws = random_graph(), np.random.default_rng(1)
    buckets, (_, popularity) = draws.integers(0, 7, 40), degrees(graph)
    rows, weights = neighbour_buckets(graph, buckets, popularity, 7)
    table = draws.standard_normal((7, 3))
    summed = (graph.toarray() / np.sqrt(np.maximum(popularity, 1))) @ np.eye(7)[buckets]
    expected = summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-12) @ table
    np.testing.assert_allclose(np.einsum("nh,nhd->nd", weights, table[rows]), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["multi_graphhash", "residual_codes"])
def test_every_row_is_reached_and_the_budget_is_met(name: str) -> None:
    graph = random_graph(300, 200, 2)
    for one, rows in zip(compress(name, graph, 80, 64, levels=LEVELS), (80, 64), strict=True):
        assert one.num_rows == rows + 1
        weights = one.lookup_weights(np.arange(one.num_ids))
        seen = (one.rows != one.unseen_row).any(axis=1)
        head = weights[:, 0] > 0
        assert head[seen].sum() == rows // 4
        lengths = np.square(weights[seen & ~head][:, 2:]).sum(axis=1)
        np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)
        assert (one.rows[seen & ~head][:, 2:] >= rows - rows // 2).all()
        assert np.unique(one.rows[seen][weights[seen] > 0]).size >= 0.9 * rows


def test_a_new_id_with_the_interactions_of_an_old_one_gets_its_rows() -> None:
    graph = random_graph(300, 60, 3)  # six items a user, so that most keep all of their buckets
    users, _ = compress("multi_graphhash", graph, 80, 64, levels=dataclasses.replace(LEVELS, neighbours=8))
    tail = np.flatnonzero(users.lookup_weights(np.arange(300))[:, 0] == 0)[:40]
    both = assign(graph[tail], graph, users)
    old, new = (dict_of(both, ids) for ids in (tail, np.arange(300, 340)))
    shared = [len(old[i].keys() & new[i].keys()) / len(old[i]) for i in range(40)]
    assert np.mean(shared) >= 0.9
    carried = refresh(users, both, np.random.default_rng(0).standard_normal((81, 3)).astype(np.float32), {})
    assert carried.fitted == 0


@pytest.mark.parametrize("count", [0, 2])
def test_tiny_graphs(count: int) -> None:
    """One user, one item, an item of everybody, ids without interactions, and more rows than the other side has ids."""
    levels = Levels(count=count, head_share=0.2, neighbour_share=0.6)
    for shape, rows in (((1, 1), (1, 1)), ((6, 1), (3, 1)), ((2, 30), (1, 9)), ((30, 20), (7, 5))):
        graph = random_graph(*shape, seed=4) if shape == (30, 20) else sparse.csr_array(np.ones(shape, np.float32))
        for one, wanted, counts in zip(
            compress("multi_graphhash", graph, *rows, levels=levels), rows, degrees(canonical(graph)), strict=True
        ):
            assert one.num_rows == wanted + 1
            assert ((one.rows == one.unseen_row).all(axis=1) == (counts == 0)).all()
            assert (one.rows[counts > 0] < one.unseen_row).all()
            assert (np.abs(one.lookup_weights(np.arange(one.num_ids))).sum(axis=1) > 0).all()


def dict_of(id_map: IdMap, ids: np.ndarray) -> list[dict[int, float]]:
    """For each id its rows among the clusters of neighbours, with their weights."""
    rows, weights = id_map.rows[ids][:, 2:], id_map.lookup_weights(ids)[:, 2:]
    return [{r: w for r, w in zip(*one, strict=True) if w > 0} for one in zip(rows, weights, strict=True)]
