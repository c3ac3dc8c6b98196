"""Facts about id maps and clusterings that the report shows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from scipy import sparse

from embeddings.agreement import adjusted_rand, normalised_mutual_information
from embeddings.clustering import Algorithm, CoClustering, co_cluster
from embeddings.graph import canonical, gini, log_histogram
from embeddings.id_map import IdMap, IntArray


def describe(id_map: IdMap, side_degrees: IntArray) -> dict[str, Any]:
    """How a map shares its rows among the seen ids of one side.

    Args:
        id_map: of users or items.
        side_degrees: train interactions of every id, int64 [N].

    Returns:
        JSON-able. ``narrow_rows``: those of ``rows`` with fewer columns, where there are any.
        ``bucket``: ids that use a row, over all rows but the unseen one (min, median, mean, max, and
        ``gini``: 0 = balanced); ``histogram``: rows by the number of their ids, bins [0, 1), [1, 2), [2, 4), ...;
        ``shared_ids``: ids of which some row serves another id; ``expected_shared_ids``: the same for one random hash
        to as many rows; ``distinct_embeddings``; ``colliding_ids``: ids whose embedding is another id's, too;
        ``shared_interactions``: share of the interactions that belong to colliding ids.

    Raises:
        ValueError: The degrees are not those of the map's ids.
    """
    if side_degrees.shape != (id_map.num_ids,):
        raise ValueError(
            f"the map has {id_map.num_ids:,} ids, but degrees of shape {list(side_degrees.shape)} were given"
        )
    seen = side_degrees > 0
    ids, rows = id_map.uses()
    keep = seen[ids]
    ids, rows = ids[keep], rows[keep]
    sizes = np.delete(np.bincount(rows, minlength=id_map.num_rows), id_map.unseen_row)
    usage = np.bincount(rows, minlength=id_map.num_rows)
    shared = np.zeros(id_map.num_ids, dtype=bool)
    shared[ids[usage[rows] > 1]] = True
    colliding, distinct = _collisions(id_map, seen)
    interactions = int(side_degrees.sum())
    return {
        "compressor": id_map.compressor,
        "ids": id_map.num_ids,
        "seen_ids": int(seen.sum()),
        "rows": id_map.num_rows,
        **({"narrow_rows": id_map.narrow.rows} if id_map.narrow else {}),
        "rows_used": int((sizes > 0).sum()),
        "rows_per_id": id_map.rows_per_id,
        "bucket": {
            "min": int(sizes.min(initial=0)) if sizes.size else 0,
            "median": float(np.median(sizes)) if sizes.size else 0.0,
            "mean": float(sizes.mean()) if sizes.size else 0.0,
            "max": int(sizes.max(initial=0)),
            "gini": gini(sizes),
        },
        "histogram": log_histogram(sizes),
        "shared_ids": int(shared.sum()),
        "expected_shared_ids": _expected_shared(int(seen.sum()), sizes.size),
        "distinct_embeddings": distinct,
        "colliding_ids": int(colliding.size),
        "shared_interactions": float(side_degrees[colliding].sum() / interactions) if interactions else 0.0,
        "info": id_map.info,
    }


def _collisions(id_map: IdMap, seen: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[IntArray, int]:
    """Seen ids that have the embedding of another seen id, and the number of different embeddings of seen ids.

    Two embeddings are one if they are the same weighted sum, whatever the order of their rows.
    """
    indices = np.flatnonzero(seen)
    if not indices.size:
        return indices, 0
    order = np.argsort(id_map.rows[indices], axis=1, kind="stable")
    key = np.take_along_axis(id_map.rows[indices], order, axis=1)
    if id_map.weights is not None:
        weights = np.take_along_axis(id_map.weights[indices], order, axis=1)
        key = np.where(weights == 0, -1, key)
        order = np.argsort(key, axis=1, kind="stable")
        bits = np.take_along_axis(weights, order, axis=1).view(np.int32).astype(np.int64)
        key = np.concatenate([np.take_along_axis(key, order, axis=1), bits], axis=1)
    _, inverse, counts = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    return indices[counts[inverse.ravel()] > 1], int(counts.size)


def _expected_shared(ids: int, rows: int) -> float:
    """Expected ids that share a row when each of ``ids`` picks one of ``rows`` at random: n (1 - (1 - 1/m)^(n-1))."""
    return ids * (1.0 - (1.0 - 1.0 / rows) ** (ids - 1)) if ids > 1 and rows else 0.0


def worst_buckets(id_map: IdMap, k: int = 10, members: int = 20) -> list[dict[str, Any]]:
    """The ``k`` rows with the most ids, the unseen row left out; ties by row.

    Returns:
        ``{"row": r, "size": ids of the row, "ids": its first ``members`` ids}`` each, largest first.
    """
    ids, rows = id_map.uses()
    sizes = np.bincount(rows, minlength=id_map.num_rows)
    sizes[id_map.unseen_row] = 0
    worst = [int(row) for row in np.argsort(-sizes, kind="stable")[:k] if sizes[row]]
    return [{"row": row, "size": int(sizes[row]), "ids": ids[rows == row][:members].tolist()} for row in worst]


def stability(
    graph: sparse.csr_array, resolution: float, algorithm: Algorithm = "louvain", orders: int = 5, seed: int = 0
) -> dict[str, Any]:
    """How much the clusters depend on the order of the nodes, which carries no meaning.

    Clusters the graph under ``orders`` random orders of users and items, and compares all pairs of results.

    Args:
        graph: train pairs [users, items].
        resolution: of the modularity.
        algorithm: "louvain" or "leiden".
        orders: number of random orders, >= 2.
        seed: of the orders.

    Returns:
        JSON-able: ``users`` and ``items`` with mean and minimum adjusted Rand index and mean normalised mutual
        information over the pairs; ``rows`` and ``modularity`` of each order.

    Raises:
        ValueError: ``orders`` is below 2.
    """
    if orders < 2:
        raise ValueError(f"stability compares at least 2 node orders, got orders={orders}")
    graph = canonical(graph)
    generator = np.random.Generator(np.random.Philox(seed))
    found = [_cluster_shuffled(graph, resolution, algorithm, generator) for _ in range(orders)]
    return {
        "algorithm": algorithm,
        "resolution": float(resolution),
        "orders": orders,
        "users": _agreement([result.user_labels for result in found]),
        "items": _agreement([result.item_labels for result in found]),
        "rows": [result.num_rows for result in found],
        "modularity": [result.modularity for result in found],
    }


def _cluster_shuffled(
    graph: sparse.csr_array, resolution: float, algorithm: Algorithm, generator: np.random.Generator
) -> CoClustering:
    """Cluster under a random node order and return the labels in the original order."""
    users, items = generator.permutation(graph.shape[0]), generator.permutation(graph.shape[1])
    result = co_cluster(graph[users][:, items], resolution, algorithm)
    user_labels, item_labels = np.empty_like(result.user_labels), np.empty_like(result.item_labels)
    user_labels[users], item_labels[items] = result.user_labels, result.item_labels
    return CoClustering(**(vars(result) | {"user_labels": user_labels, "item_labels": item_labels}))


def _agreement(labelings: list[IntArray]) -> dict[str, float]:
    pairs = [(a[a >= 0], b[a >= 0]) for a, b in itertools.combinations(labelings, 2)]
    rand = [adjusted_rand(a, b) for a, b in pairs]
    information = [normalised_mutual_information(a, b) for a, b in pairs]
    return {"ari": float(np.mean(rand)), "ari_min": min(rand), "nmi": float(np.mean(information))}
