"""The compiled Louvain against scikit-network, label by label, and Leiden by its modularity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sknetwork.clustering import Leiden, Louvain

from embeddings.clustering import barber_modularity
from embeddings.louvain import joint_labels


def zipf_graph(users: int, items: int, edges: int, seed: int) -> sparse.csr_array:
    generator = np.random.default_rng(seed)
    pairs = (generator.zipf(1.4, edges) % users, generator.zipf(1.3, edges) % items)
    graph = sparse.csr_array((np.ones(edges, dtype=np.float32), pairs), shape=(users, items))
    graph.sum_duplicates()
    graph.data[:] = 1.0
    return graph


def theirs(graph: sparse.csr_array, resolution: float, model: type[Louvain] = Louvain) -> np.ndarray:
    fitted = model(resolution, sort_clusters=False, return_probs=False, return_aggregate=False)
    fitted.fit(sparse.csr_matrix(graph), force_bipartite=True)
    return np.concatenate([fitted.labels_row_, fitted.labels_col_])


@settings(max_examples=60, deadline=None)
@given(
    users=st.integers(1, 60),
    items=st.integers(1, 60),
    edges=st.integers(1, 600),
    seed=st.integers(0, 9999),
    resolution=st.sampled_from([0.05, 1.0, 7.5, 60.0, 1e6]),
)
def test_louvain_labels_are_scikit_networks(users: int, items: int, edges: int, seed: int, resolution: float) -> None:
    graph = zipf_graph(users, items, edges, seed)
    np.testing.assert_array_equal(joint_labels(graph, resolution, refine=False), theirs(graph, resolution))


@pytest.mark.parametrize(
    ("users", "items", "edges", "resolution"), [(3000, 2000, 60_000, 1.0), (3000, 2000, 60_000, 80.0)]
)
def test_louvain_labels_are_scikit_networks_on_larger_graphs(
    users: int, items: int, edges: int, resolution: float
) -> None:
    graph = zipf_graph(users, items, edges, seed=0)
    np.testing.assert_array_equal(joint_labels(graph, resolution, refine=False), theirs(graph, resolution))


@pytest.mark.parametrize("resolution", [1.0, 20.0])
def test_leiden_has_at_least_the_modularity_of_its_peer(shared_data: Path, resolution: float) -> None:
    frame = pl.read_parquet(shared_data / "ml100k" / "interactions.parquet")
    pairs = (frame["user_id"].rank("dense").to_numpy() - 1, frame["item_id"].rank("dense").to_numpy() - 1)
    graph = sparse.csr_array((np.ones(len(frame), dtype=np.float32), pairs))
    users = graph.shape[0]

    def modularity(labels: np.ndarray) -> float:
        return barber_modularity(graph, labels[:users], labels[users:], resolution)

    ours, louvain = (modularity(joint_labels(graph, resolution, refine=refine)) for refine in (True, False))
    assert ours >= modularity(theirs(graph, resolution, Leiden)) - 1e-3
    assert ours > louvain


@settings(max_examples=30, deadline=None)
@given(edges=st.integers(1, 300), seed=st.integers(0, 9999), resolution=st.sampled_from([1e-3, 0.3, 3.0]))
def test_leiden_clusters_span_no_two_components(edges: int, seed: int, resolution: float) -> None:
    graph = zipf_graph(40, 40, edges, seed)
    labels = joint_labels(graph, resolution, refine=True)
    adjacency = sparse.block_array([[None, graph], [graph.T, None]])
    _, components = sparse.csgraph.connected_components(adjacency, directed=False)
    pairs = np.unique(np.stack([labels, components]), axis=1)
    assert pairs.shape[1] == len(np.unique(labels))
    if resolution == 1e-3:
        assert len(np.unique(labels)) <= len(np.unique(components)) + 4
