"""The graph stage: the bipartite graph of the training split, and no other pair."""

from __future__ import annotations

from pathlib import Path

from scipy.sparse import csr_array

from embeddings.graph import load_graph, save_graph
from pipelines.cache import Cache
from pipelines.dataset import Dataset

VERSION = 1


def graph_stage(cache: Cache, dataset: Dataset) -> csr_array:
    """CSR float32 [users, items] of the training pairs."""

    def build(directory: Path) -> None:
        save_graph(directory / "graph.npz", dataset.matrix("train"), dataset.content_hash)

    entry = cache.stage("graph", {"version": VERSION, "dataset": dataset.content_hash}, build)
    return load_graph(entry / "graph.npz", dataset.content_hash)[0]
