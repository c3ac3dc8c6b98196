"""Multi-resolution GraphHash: co-clusters of several resolutions, whose rows are summed."""

from __future__ import annotations

from scipy import sparse

from embeddings.clustering import search_resolution
from embeddings.graph import canonical, degrees
from embeddings.id_map import IntArray
from embeddings.levels import Division, Levels
from embeddings.rebalance import fit_rows

LEVEL_TOLERANCE = 0.1


def cluster_levels(
    graph: sparse.csr_array, divisions: tuple[Division, Division], levels: Levels
) -> tuple[list[IntArray], list[IntArray]]:
    """Cluster the graph once for each level, to exactly the rows that each side has for it.

    Each level is a co-clustering of its own: one resolution gives users and items together, then buckets of either side
    are halved (along the next finer level) or joined until the numbers are met.

    Args:
        graph: train pairs [users, items].
        divisions: of the user and the item table.
        levels: gives the algorithm.

    Returns:
        User codes and item codes, each a list of int64 [N], one for each level of its division; -1 = unseen.
    """
    graph = canonical(graph)
    seen = [int((side > 0).sum()) for side in degrees(graph)]
    depth = max(len(division.levels) for division in divisions)
    codes: tuple[list[IntArray], list[IntArray]] = ([], [])
    finer: list[IntArray] | None = None
    for level in range(-1, -depth - 1, -1):
        wanted = [d.levels[level] if len(d.levels) >= -level else None for d in divisions]
        target = min(max(2, sum(w or 1 for w in wanted)), sum(seen))
        found = search_resolution(graph, target, levels.algorithm, LEVEL_TOLERANCE)
        labels = [found.user_labels, found.item_labels]
        for side, rows in enumerate(wanted):
            if rows is not None:
                order = labels[side] if finer is None else finer[side]
                codes[side].insert(0, fit_rows(labels[side], order, rows))
        finer = labels
    return codes
