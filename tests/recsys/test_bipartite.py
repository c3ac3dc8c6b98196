from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from recsys.bipartite import BipartiteGraph, Pair
from tests.recsys.graph_fixture import ITEMS, USERS, dense_adjacency, toy

GRAPHS: dict[str, Any] = {
    "toy": toy(),
    "one user, one item": csr_array(np.ones((1, 1), np.float32)),
    "no edge": csr_array((3, 2), dtype=np.float32),
    "one item of everybody": csr_array(np.ones((100_000, 1), np.float32)),
}
SMALL = [name for name in GRAPHS if name != "one item of everybody"]


def random_pair(graph: BipartiteGraph, dim: int = 80) -> Pair:
    generator = torch.Generator().manual_seed(0)
    sizes = graph.num_users + 1, graph.num_items + 1
    users, items = (torch.randn(size, dim, generator=generator) for size in sizes)
    return users, items


@pytest.mark.parametrize("name", SMALL)
def test_products_are_those_of_the_dense_matrix(name: str) -> None:
    graph, dense = BipartiteGraph.of(GRAPHS[name]), dense_adjacency(GRAPHS[name])
    x, base = random_pair(graph), random_pair(graph)
    expected = dense @ torch.cat(x)
    torch.testing.assert_close(torch.cat(graph.product(x)), expected)
    torch.testing.assert_close(torch.cat(graph.product(x, base)), expected + torch.cat(base))
    rows = np.array([graph.num_users, 0]), np.array([0])
    places = torch.from_numpy(np.concatenate([rows[0], rows[1] + graph.num_users + 1]))
    torch.testing.assert_close(torch.cat(graph.product_rows(x, rows)), expected[places])
    some = x[0][torch.from_numpy(rows[0])], x[1][torch.from_numpy(rows[1])]
    sparse = torch.zeros_like(expected)
    sparse[places] = torch.cat(some)
    torch.testing.assert_close(torch.cat(graph.product_of_rows(some, rows)), dense @ sparse)


def test_an_item_of_a_hundred_thousand_users_gets_their_weighted_sum() -> None:
    graph = BipartiteGraph.of(GRAPHS["one item of everybody"])
    users, items = torch.ones(100_001, 3), torch.full((2, 3), 2.0)
    to_users, to_items = graph.product((users, items))
    weight = 100_000**-0.5
    torch.testing.assert_close(to_items, torch.tensor([[100_000 * weight], [0.0]]).expand(2, 3), rtol=1e-3, atol=0)
    torch.testing.assert_close(to_users[:-1], torch.full((100_000, 3), 2 * weight))
    assert not to_users[-1].any()


def test_products_have_the_same_bits_for_any_number_of_threads() -> None:
    available = numba.get_num_threads()
    rng = np.random.default_rng(0)
    train = csr_array((rng.random((400, 300)) < 0.2).astype(np.float32))
    graph = BipartiteGraph.of(train)
    x, rows = random_pair(graph), (np.arange(0, 400, 3), np.arange(0, 300, 2))
    results = []
    for threads in {1, available}:
        numba.set_num_threads(threads)
        some = graph.product_rows(x, rows)
        results.append(torch.cat([*graph.product(x), *some, *graph.product_of_rows(some, rows)]))
    numba.set_num_threads(available)
    assert all(torch.equal(results[0], other) for other in results)


def test_edges_left_after_dropout_are_normalised_anew() -> None:
    graph = BipartiteGraph.of(toy())
    dropped = np.random.default_rng(0).random(graph.num_edges) < 0.4
    left = toy().tocoo()
    kept = csr_array((left.data[~dropped], (left.row[~dropped], left.col[~dropped])), shape=left.shape)
    x = random_pair(graph)
    torch.testing.assert_close(torch.cat(graph.without(dropped).product(x)), dense_adjacency(kept) @ torch.cat(x))


def test_the_interactions_bring_the_graph_back_and_their_order_does_not_matter() -> None:
    train = toy()
    graph = BipartiteGraph.of(train)
    shuffled = train.copy()
    for row in range(USERS):
        part = slice(shuffled.indptr[row], shuffled.indptr[row + 1])
        shuffled.indices[part] = shuffled.indices[part][::-1].copy()
    for other in (BipartiteGraph.from_interactions(graph.interactions()), BipartiteGraph.of(shuffled)):
        assert (other.num_users, other.num_items, other.num_edges) == (USERS, ITEMS, train.nnz)
        for ours, theirs in zip([*graph.by_user, *graph.by_item], [*other.by_user, *other.by_item], strict=True):
            assert np.array_equal(ours, theirs)


def test_an_interaction_stored_twice_is_refused() -> None:
    twice = csr_array((np.ones(3, np.float32), np.array([0, 0, 1]), np.array([0, 3])), shape=(1, 2))
    with pytest.raises(ValueError, match=r"each interaction once, got 1 that occur again; call sum_duplicates"):
        BipartiteGraph.of(twice)
