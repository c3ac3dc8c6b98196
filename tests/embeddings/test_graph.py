"""The canonical graph, its statistics, co-occurrence, files and export."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from embeddings.graph import canonical, co_occurrence, degree_statistics, degrees, gini, load_graph, save_graph
from embeddings.graph_export import items_to_networkx, to_networkx, write_graphml


def random_graph(users: int = 40, items: int = 25, density: float = 0.15, seed: int = 0) -> sparse.csr_array:
    return sparse.csr_array((np.random.default_rng(seed).random((users, items)) < density).astype(np.float32))


def test_canonical_form_is_unique_and_free() -> None:
    graph = canonical(random_graph())
    assert canonical(graph) is graph
    coo = graph.tocoo()
    flipped = sparse.csr_matrix(
        (np.repeat(coo.data, 2)[::-1] * 2, (np.repeat(coo.row, 2)[::-1], np.repeat(coo.col, 2)[::-1]))
    )
    flipped.resize(graph.shape)
    again = canonical(flipped)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(again, name), getattr(graph, name))
    assert (again.dtype, again.indices.dtype, again.indptr.dtype) == (np.float32, np.int32, np.int32)
    assert flipped.data.max() >= 2


def test_explicit_zeros_are_no_edges_and_bad_weights_are_named() -> None:
    graph = sparse.csr_array((np.array([0.0, 2.0]), np.array([0, 2]), np.array([0, 1, 2])), shape=(2, 3))
    assert canonical(graph).toarray().tolist() == [[0, 0, 0], [0, 0, 1]]
    graph.data[1] = np.nan
    with pytest.raises(ValueError, match="must be >= 0, but user 1, item 2 has nan"):
        canonical(graph)
    with pytest.raises(ValueError, match=r"must be a scipy sparse matrix .* got ndarray"):
        canonical(np.ones((2, 2)))


def test_degrees_and_statistics() -> None:
    dense = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    users, items = degrees(sparse.csr_array(dense))
    assert (users.tolist(), items.tolist()) == ([3, 1, 0], [2, 1, 1, 0])
    facts = degree_statistics(sparse.csr_array(dense))
    assert facts["edges"] == 4
    assert facts["density"] == pytest.approx(4 / 12)
    assert facts["user_degrees"]["histogram"] == {"edges": [0, 1, 2, 4], "counts": [1, 1, 1]}
    assert (facts["item_degrees"]["isolated"], facts["item_degrees"]["max"]) == (1, 2)
    assert degree_statistics(sparse.csr_array((0, 2)))["user_degrees"]["count"] == 0


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40))
def test_gini_is_half_the_relative_mean_difference(values: list[int]) -> None:
    x = np.array(values)
    mean = x.mean()
    expected = np.abs(x[:, None] - x[None, :]).mean() / (2 * mean) if mean else 0.0
    assert gini(x) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_co_occurrence_equals_the_dense_product(block: int) -> None:
    graph = random_graph()
    dense = graph.toarray()
    expected = dense.T @ dense
    np.fill_diagonal(expected, 0)
    np.testing.assert_array_equal(co_occurrence(graph, block=block).toarray(), expected)
    top = co_occurrence(graph, top=3, block=block).toarray()
    for item, row in enumerate(expected):
        order = np.lexsort((np.arange(row.size), -row))
        kept = [i for i in order[:3] if row[i] > 0]
        assert np.flatnonzero(top[item]).tolist() == sorted(kept)
        assert top[item][kept].tolist() == row[kept].tolist()


def test_co_occurrence_of_nothing_and_bad_arguments() -> None:
    assert co_occurrence(sparse.csr_array((3, 0))).shape == (0, 0)
    assert co_occurrence(sparse.csr_array((3, 2))).nnz == 0
    with pytest.raises(ValueError, match=r"block >= 1 and top >= 1 .* got block=0, top=None"):
        co_occurrence(random_graph(), block=0)


@settings(max_examples=20, deadline=None)
@given(users=st.integers(0, 9), items=st.integers(0, 9), seed=st.integers(0, 9))
def test_a_saved_graph_comes_back(users: int, items: int, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("graph") / "graph.npz"
    graph = random_graph(users, items, 0.3, seed)
    save_graph(path, graph, "abc123")
    loaded, found = load_graph(path, "abc123")
    assert found == "abc123"
    assert loaded.shape == graph.shape
    assert canonical(loaded) is loaded
    np.testing.assert_array_equal(loaded.toarray(), graph.toarray())


def test_bad_graph_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    save_graph(path, random_graph(), "abc")
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="belongs to dataset abc, not to xyz; build the graph again"):
        load_graph(path, "xyz")
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"graph\.npz is not a whole graph file"):
            load_graph(path)
    np.savez(path, a=np.ones(2))
    with pytest.raises(ValueError, match="'format' must be 'recsys graph 1', got None"):
        load_graph(path)
    np.save(path.with_suffix(".npy"), np.ones(2))
    with pytest.raises(ValueError, match="is not a whole graph file"):
        load_graph(path.with_suffix(".npy"))
    np.savez(path, format=np.array("recsys graph 1"), dataset_hash=np.array("x"), shape=np.array([2, 2]),
             indptr=np.array([0, 1, 2]), indices=np.array([0, 5]))  # fmt: skip
    with pytest.raises(ValueError, match="holds no valid graph"):
        load_graph(path)
    np.savez(path, format=np.array("recsys graph 1"), o=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"graph\.npz"):
        load_graph(path)
    with pytest.raises(FileNotFoundError):
        load_graph(tmp_path / "none.npz")


def test_export_to_networkx_and_graphml(tmp_path: Path) -> None:
    graph = random_graph(6, 5, 0.4)
    users, items = [f"user <{i}> & \x00" for i in range(6)], [f"Ítem {i}" for i in range(5)]
    exported = to_networkx(graph, users, items)
    assert nx.bipartite.is_bipartite(exported)
    assert {(a[1], b[1]) for a, b in exported.edges} == set(zip(*(x.tolist() for x in graph.nonzero()), strict=True))
    assert exported.nodes["item", 2] == {"bipartite": 1, "name": "Ítem 2", "degree": exported.degree["item", 2]}
    write_graphml(tmp_path / "graph.graphml", exported)
    back = nx.read_graphml(tmp_path / "graph.graphml")
    assert (back.number_of_nodes(), back.number_of_edges()) == (11, exported.number_of_edges())
    assert back.nodes["user:3"]["name"] == "user <3> & \ufffd"


def test_export_of_a_sample_and_its_limits() -> None:
    graph = random_graph(30, 20, 0.3)
    users, items = [str(i) for i in range(30)], [str(i) for i in range(20)]
    sample = to_networkx(graph, users, items, sample_users=4, generator=np.random.default_rng(0))
    assert sum(kind == "user" for kind, _ in sample) == 4
    chosen = [i for kind, i in sample if kind == "user"]
    assert sample.number_of_edges() == int(degrees(graph)[0][chosen].sum())
    with pytest.raises(ValueError, match=rf"{graph.nnz} edges are too many for networkx \(limit 10\); sample users"):
        to_networkx(graph, users, items, max_edges=10)
    with pytest.raises(ValueError, match="20 items, but 19 item names"):
        to_networkx(graph, users, items[1:])
    with pytest.raises(ValueError, match="sample_users >= 1 and a generator, got 3 and None"):
        to_networkx(graph, users, items, sample_users=3)


def test_the_graph_of_items_has_the_users_they_share() -> None:
    graph = random_graph(12, 6, 0.4)
    dense = graph.toarray().astype(int)
    dense[:, 2] = 0
    exported = items_to_networkx(sparse.csr_array(dense), [f"Item {i}" for i in range(6)])
    shared = dense.T @ dense
    assert {node[1] for node in exported} == set(np.flatnonzero(dense.any(axis=0)).tolist())
    assert {(a[1], b[1], weight) for a, b, weight in exported.edges(data="weight")} == {
        (a, b, int(shared[a, b])) for a, b in np.argwhere(np.triu(shared, 1)).tolist()
    }
    assert exported.nodes["item", 0] == {"name": "Item 0", "degree": int(dense[:, 0].sum())}
    with pytest.raises(ValueError, match=r"edges are too many for networkx \(limit 2\); sample users"):
        items_to_networkx(graph, [""] * 6, max_edges=2)
