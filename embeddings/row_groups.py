"""Rows of sparse tables that start with the same columns, because the interaction graph puts them together.

The score of a user and an item is a sum over the columns that both store. Where each row draws its own, two rows of
density d share d^2 of them, and training has to bring the columns together first. A user and the items of the same
cluster that start with one set of columns share all of it, and rows of different clusters hardly meet.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from embeddings.graph import canonical, degrees
from embeddings.id_map import IdMap, IntArray
from embeddings.louvain import joint_labels
from embeddings.sparsity import RowGroups


def cluster_groups(
    graph: sparse.csr_array, maps: tuple[IdMap, IdMap], dim: int, *, resolution: float, generator: np.random.Generator
) -> tuple[RowGroups, RowGroups]:
    """Groups of the users' and the items' rows: the joint clusters of their graph.

    A row that several ids share is of the cluster of its most frequent one; rows without a seen id are a group.

    Args:
        graph: train pairs [users, items].
        maps: of users and items.
        dim: D.
        resolution: of Barber's modularity, see :func:`embeddings.clustering.co_cluster`.
        generator: shuffles the columns; users and items of a cluster have the same order.

    Raises:
        ValueError: The graph has no pair.
    """
    graph = canonical(graph)
    if graph.nnz == 0:
        raise ValueError(
            f"columns by cluster need at least one interaction, got an empty graph of shape {list(graph.shape)};"
            " draw the columns of each row instead (columns: random)"
        )
    counts = np.concatenate(degrees(graph))
    seen = counts > 0
    clusters, of_seen = np.unique(joint_labels(graph, resolution, refine=False)[seen], return_inverse=True)
    labels = np.full(len(counts), len(clusters), np.int64)
    labels[seen] = of_seen
    draws = generator.integers(0, 1 << 62, (len(clusters) + 1, dim))
    users, items = (
        RowGroups(_of_rows(id_map, side, times, len(clusters)), draws)
        for id_map, side, times in zip(
            maps, np.split(labels, [graph.shape[0]]), np.split(counts, [graph.shape[0]]), strict=True
        )
    )
    return users, items


def _of_rows(id_map: IdMap, labels: IntArray, counts: IntArray, rest: int) -> IntArray:
    groups = np.full(id_map.num_rows, rest, np.int64)
    order = np.argsort(counts, kind="stable")
    groups[id_map.rows[order]] = labels[order, None]  # of equal places the last one stays, the most frequent id
    return groups
