"""GraphHash: a bucket for each co-cluster of the interaction graph (Wu et al. 2025, arXiv 2412.17245)."""

from __future__ import annotations

import numpy as np

from embeddings.clustering import CoClustering
from embeddings.id_map import IntArray


def cluster_rows(clustering: CoClustering, *, users: bool, rows: int, num_ids: int) -> IntArray:
    """The cluster of every id of one side, as its table row.

    Args:
        clustering: of the same graph.
        users: the user side, else the item side.
        rows: rows that the experiment gives this side; must be the number of clusters.
        num_ids: ids of this side.

    Returns:
        int64 [num_ids]; 0 for ids without an interaction, which the caller sends to the unseen row.

    Raises:
        ValueError: Clusters and rows, or labels and ids, differ in number.
    """
    side = "user" if users else "item"
    labels = clustering.user_labels if users else clustering.item_labels
    clusters = clustering.num_user_clusters if users else clustering.num_item_clusters
    if clusters != rows:
        raise ValueError(
            f"graphhash gives each of the {clusters:,} {side} clusters a row, but {side}_rows is {rows:,}; "
            f"pass {side}_rows=clustering.num_{side}_clusters"
        )
    if labels.size != num_ids:
        raise ValueError(
            f"the clustering has {labels.size:,} {side}s, but the graph has {num_ids:,}; cluster this graph"
        )
    return np.maximum(labels, 0)
