"""The order of nodes, and what is made in it, do not depend on how they are numbered."""

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from embeddings.compress import CompressorName, compress
from embeddings.graph import canonical
from embeddings.levels import Levels
from embeddings.structural_order import structural_order


def random_graph(seed: int, users: int = 300, items: int = 200, share: float = 0.05) -> sparse.csr_array:
    draws = np.random.default_rng(seed)
    return canonical(sparse.csr_array((draws.random((users, items)) < share * draws.random(items)).astype(np.float32)))


def renumbered(graph: sparse.csr_array, seed: int) -> tuple[sparse.csr_array, np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    users, items = draws.permutation(graph.shape[0]), draws.permutation(graph.shape[1])
    return canonical(graph[users][:, items]), users, items


def without_twins(graph: sparse.csr_array) -> sparse.csr_array:
    """Only users and items that have edges, and those nobody else has."""
    dense = np.unique(graph.toarray(), axis=0)
    dense = np.unique(dense[dense.any(1)], axis=1)
    return canonical(sparse.csr_array(dense[:, dense.any(0)]))


def test_nodes_come_in_the_same_order_however_they_are_numbered() -> None:
    graph = without_twins(random_graph(0))
    users, items = structural_order(graph)
    ordered = graph[users][:, items].toarray()
    for seed in range(5):
        other, _, _ = renumbered(graph, seed)
        users, items = structural_order(other)
        assert np.array_equal(other[users][:, items].toarray(), ordered)


def test_degrees_alone_do_not_part_the_ends_and_the_middle_of_a_path() -> None:
    edges = [(i, i) for i in range(6)] + [(i, i + 1) for i in range(5)]  # item 0 - user 0 - item 1 - ... - user 5
    graph = sparse.csr_array((np.ones(11, np.float32), np.array(edges).T), shape=(6, 6))
    users, items = structural_order(graph)
    for seed in range(5):
        other, names, things = renumbered(graph, seed)
        found = structural_order(other)
        assert np.array_equal(names[found[0]], users)
        assert np.array_equal(things[found[1]], items)


def test_twins_and_nodes_without_edges_keep_their_order() -> None:
    graph = sparse.csr_array(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.float32))
    users, items = (list(order) for order in structural_order(graph))
    assert sorted(users) == sorted(items) == [0, 1, 2, 3]
    for order in (users, items):
        assert order.index(0) < order.index(1)
        assert order.index(2) < order.index(3)
    assert [list(order) for order in structural_order(sparse.csr_array((2, 3), dtype=np.float32))] == [
        [0, 1],
        [0, 1, 2],
    ]


@pytest.mark.parametrize("name", ["baco", "multi_graphhash", "residual_codes"])
def test_whoever_numbers_the_nodes_otherwise_gets_the_same_buckets(name: CompressorName) -> None:
    graph = without_twins(random_graph(1))
    levels = Levels(count=2, head_share=0.2, hash_share=0.1, neighbour_share=0.2)
    maps = compress(name, graph, 60, 50, levels=levels)
    for seed in range(3):
        other, users, items = renumbered(graph, seed)
        found = compress(name, other, 60, 50, levels=levels)
        for one, two, order in zip(maps, found, (users, items), strict=True):
            assert np.array_equal(two.rows, one.rows[order])
            assert one.weights is None or np.array_equal(two.weights, one.weights[order])
            assert dataclasses.replace(one, rows=two.rows, weights=two.weights).info == two.info
