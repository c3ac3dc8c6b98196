"""Co-clusters of users and items that maximise Barber's bipartite modularity."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, Literal, get_args

import numpy as np
from scipy import sparse

from embeddings.graph import canonical, degrees
from embeddings.id_map import IntArray
from embeddings.louvain import joint_labels
from embeddings.rebalance import merge_smallest, split_largest

MAX_FITS = 20
MIN_RESOLUTION = 1e-3
Algorithm = Literal["louvain", "leiden"]


@dataclasses.dataclass(frozen=True)
class CoClustering:
    """Clusters of both sides of a bipartite graph, numbered apart for each side.

    Attributes:
        user_labels: int64 [users] in ``[0, num_user_clusters)``, or -1 for a user without an edge.
        item_labels: int64 [items] in ``[0, num_item_clusters)``, or -1 for an item without an edge.
        num_user_clusters: clusters that hold a user.
        num_item_clusters: clusters that hold an item.
        modularity: Barber's modularity at ``resolution`` of the clusters as the algorithm left them.
        seconds: wall time of the fit, or of all fits of a search.
        resolution: weight of the null model; a higher one gives more clusters.
        algorithm: "louvain" or "leiden".
        fits: runs of the algorithm that it took.
        adjusted: buckets split (> 0) or merged (< 0) after the fit to meet a number of rows.
    """

    user_labels: IntArray
    item_labels: IntArray
    num_user_clusters: int
    num_item_clusters: int
    modularity: float
    seconds: float
    resolution: float
    algorithm: Algorithm
    fits: int = 1
    adjusted: int = 0

    @property
    def num_rows(self) -> int:
        """Rows of both tables together, the unseen rows not counted."""
        return self.num_user_clusters + self.num_item_clusters

    def facts(self) -> dict[str, Any]:
        """JSON-able facts for the report: everything but the labels."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("user_labels", "item_labels")
        }


def co_cluster(graph: sparse.csr_array, resolution: float, algorithm: Algorithm = "louvain") -> CoClustering:
    """Cluster users and items together by Barber's modularity (Barber 2007, eq. 15, with a resolution ``g``).

    ``Q = 1/m sum_ui (A_ui - g d_u d_i / m) [c_u = c_i]`` with m edges and degrees d, maximised by Louvain (Blondel
    et al. 2008) or Leiden (Traag et al. 2019), as GraphHash does (Wu et al. 2025, section 4).

    The node order is the order of the indices, and both algorithms depend on it. Ingest numbers ids by sorted raw id,
    so that equal data give equal clusters; the order and the repetition of edges play no part.

    Args:
        graph: train pairs [users, items].
        resolution: g > 0.
        algorithm: "louvain" or "leiden".

    Raises:
        ValueError: The graph has no edge, the resolution is not positive, or the algorithm is unknown.
    """
    if not (np.isfinite(resolution) and resolution > 0):
        raise ValueError(f"resolution must be a positive number, got {resolution}")
    if algorithm not in get_args(Algorithm):
        raise ValueError(f"clustering algorithm must be 'louvain' or 'leiden', got {algorithm!r}")
    start = time.perf_counter()
    graph = canonical(graph)
    if graph.nnz == 0:
        raise ValueError(f"clustering needs at least one interaction, got an empty graph of shape {list(graph.shape)}")
    joint = joint_labels(graph, resolution, refine=algorithm == "leiden")
    joint_users, joint_items = joint[: graph.shape[0]], joint[graph.shape[0] :]
    user_degrees, item_degrees = degrees(graph)
    modularity = barber_modularity(graph, joint_users, joint_items, resolution)
    user_labels, num_user_clusters = _consecutive(joint_users, user_degrees)
    item_labels, num_item_clusters = _consecutive(joint_items, item_degrees)
    return CoClustering(
        user_labels=user_labels,
        item_labels=item_labels,
        num_user_clusters=num_user_clusters,
        num_item_clusters=num_item_clusters,
        modularity=modularity,
        seconds=time.perf_counter() - start,
        resolution=float(resolution),
        algorithm=algorithm,
    )


def search_resolution(
    graph: sparse.csr_array,
    target_rows: int,
    algorithm: Algorithm = "louvain",
    tolerance: float = 0.02,
    *,
    at_most: bool = False,
) -> CoClustering:
    """Find the resolution whose user and item clusters together number ``target_rows``, the unseen rows not counted.

    The number of clusters grows with the resolution, about as a power: the search interpolates the logarithms inside
    a bracket. Where no resolution comes within ``tolerance`` (small graphs, plateaus, many components) the nearest
    clustering is brought to exactly ``target_rows`` by halving its largest or merging its smallest buckets; with
    ``at_most`` so is one within ``tolerance`` that has more rows.

    Args:
        graph: train pairs [users, items].
        target_rows: from 2 to the number of users and items with an interaction.
        algorithm: "louvain" or "leiden".
        tolerance: relative error of the number of rows that is accepted as it is.
        at_most: more than ``target_rows`` are not accepted.

    Raises:
        ValueError: The target cannot be met; the message has the feasible range.
    """
    start = time.perf_counter()
    graph = canonical(graph)
    seen = sum(int((side > 0).sum()) for side in degrees(graph))
    if not 2 <= target_rows <= seen:
        raise ValueError(
            f"a clustering of {seen:,} seen users and items can have 2 to {seen:,} rows, not {target_rows:,}; "
            "change the budget"
        )
    coarse: CoClustering | None = None
    fine: CoClustering | None = None
    resolution = max(1.0, target_rows / 50)
    for fits in range(1, MAX_FITS + 1):
        found = co_cluster(graph, resolution, algorithm)
        if abs(found.num_rows - target_rows) <= tolerance * target_rows:
            met = _adjust(None, found, target_rows) if at_most and found.num_rows > target_rows else found
            return dataclasses.replace(met, seconds=time.perf_counter() - start, fits=fits)
        if found.num_rows < target_rows:
            coarse = found
        else:
            fine = found
        resolution = _next_resolution(coarse, fine, target_rows)
        if resolution < MIN_RESOLUTION or (coarse and fine and fine.resolution < 1.001 * coarse.resolution):
            break
    adjusted = _adjust(coarse, fine, target_rows)
    return dataclasses.replace(adjusted, seconds=time.perf_counter() - start, fits=fits)


def _next_resolution(coarse: CoClustering | None, fine: CoClustering | None, target: int) -> float:
    """Interpolate log(resolution) over log(rows), a tenth away from either end; extrapolate without a bracket."""
    if coarse and fine:
        share = math.log(target / coarse.num_rows) / math.log(fine.num_rows / coarse.num_rows)
        return coarse.resolution * math.pow(fine.resolution / coarse.resolution, min(max(share, 0.1), 0.9))
    if coarse:
        return coarse.resolution * max(1.2, math.pow(target / coarse.num_rows, 1.2))
    assert fine is not None
    return fine.resolution * min(0.8, math.pow(target / fine.num_rows, 1.2))


def _adjust(coarse: CoClustering | None, fine: CoClustering | None, target: int) -> CoClustering:
    """Split the coarse or merge the fine clustering, whichever is nearer, to exactly ``target`` rows."""
    nearest = min((found for found in (coarse, fine) if found), key=lambda found: abs(found.num_rows - target))
    labels = (nearest.user_labels, nearest.item_labels)
    missing = target - nearest.num_rows
    if missing > 0:
        order = fine or nearest
        labels = split_largest(labels, (order.user_labels, order.item_labels), missing)
    else:
        labels = merge_smallest(labels, -missing)
    return dataclasses.replace(
        nearest,
        user_labels=labels[0],
        item_labels=labels[1],
        num_user_clusters=int(labels[0].max()) + 1,
        num_item_clusters=int(labels[1].max()) + 1,
        adjusted=missing,
    )


def barber_modularity(graph: sparse.csr_array, users: IntArray, items: IntArray, resolution: float) -> float:
    """Barber's modularity (2007, eq. 15) of joint labels of a canonical graph, float64.

    Args:
        graph: [users, items] with m > 0 edges.
        users: labels >= 0, int [users].
        items: labels from the same space, int [items].
        resolution: weight of the null model.
    """
    user_degrees, item_degrees = degrees(graph)
    clusters = int(max(users.max(), items.max())) + 1
    inside = np.count_nonzero(np.repeat(users, user_degrees) == items[graph.indices])
    user_volume = np.bincount(users, weights=user_degrees, minlength=clusters)
    item_volume = np.bincount(items, weights=item_degrees, minlength=clusters)
    return float(inside / graph.nnz - resolution * (user_volume @ item_volume) / graph.nnz**2)


def _consecutive(joint: IntArray, side_degrees: IntArray) -> tuple[IntArray, int]:
    """Number the labels that a seen id has 0, 1, ... in their order; -1 where the degree is zero."""
    seen = side_degrees > 0
    used = np.zeros(int(joint.max()) + 1, dtype=bool)
    used[joint[seen]] = True
    number = np.cumsum(used) - 1
    return np.where(seen, number[joint], -1).astype(np.int64), int(used.sum())
