"""Rows for ids that arrive after clustering: where the majority of their neighbours leads, without clustering again."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import sparse

from embeddings.graph import canonical, degrees
from embeddings.id_map import FloatArray, IdMap, IntArray
from embeddings.majority import home_buckets, majority
from embeddings.narrow import grown
from embeddings.neighbour_buckets import neighbour_buckets


def assign(new: sparse.csr_array, graph: sparse.csr_array, id_map: IdMap) -> IdMap:
    """Append ids to a map that was made from the graph's clusters.

    Each neighbour has a home, the bucket that most of its own neighbours in ``graph`` are in; a new id gets the home of
    most of its neighbours. This is done once for each place that holds clusters; BACO's second code is the next best
    home, as for old ids. Where ids sum the clusters of their neighbours, a neighbour is in the one that most of its own
    neighbours have; where ids of like frequency share rows, a new id has that of its number of interactions. Places of
    head, hashed or missing codes and of narrow rows get weight zero; an id without a neighbour in ``graph`` gets the
    unseen row. Rows of the old ids stay.

    Args:
        new: interactions of the new ids [n, M], columns as in ``graph``.
        graph: train pairs [N, M] of the side of the map; for items the transpose of [users, items].
        id_map: of the N ids, by "graphhash", "double_graphhash", "baco", "multi_graphhash" or "residual_codes".

    Returns:
        The map of N + n ids, with the same table.

    Raises:
        ValueError: The compressor has no clusters, or shapes do not fit.
    """
    return grown(id_map, lambda wide: _assign(canonical(new), canonical(graph), wide))


def _assign(new: sparse.csr_array, graph: sparse.csr_array, id_map: IdMap) -> IdMap:
    if graph.shape[0] != id_map.num_ids or new.shape[1] != graph.shape[1]:
        raise ValueError(
            f"assign needs new [n, M] and graph [{id_map.num_ids:,}, M] of the map's ids, "
            f"got {list(new.shape)} and {list(graph.shape)}"
        )
    places = cluster_places(id_map)
    known = id_map.lookup_weights(np.arange(id_map.num_ids, dtype=np.int64))
    seen = (id_map.rows != id_map.unseen_row).any(axis=1)
    rows = np.full((new.shape[0], id_map.rows_per_id), id_map.unseen_row, dtype=np.int64)
    weights = np.zeros(rows.shape, dtype=np.float32)
    found = None
    for place in places:
        scale = float(known[:, place].max(initial=0.0))
        led = 0 if id_map.compressor == "baco" else place
        voting = seen if id_map.compressor != "baco" else seen & (known[:, led] > 0)
        buckets = np.where(voting, id_map.rows[:, led], -1)
        found = majority(new, home_buckets(graph.T, buckets), found if led < place else None)
        rows[found >= 0, place] = found[found >= 0]
        weights[found >= 0, place] = scale
    _add_neighbours(rows, weights, new, graph, id_map)
    _add_popularity(rows, weights, new, graph, id_map)
    weights[(weights == 0).all(axis=1), 0] = 1.0
    both = np.concatenate([known, weights])
    return dataclasses.replace(
        id_map,
        rows=np.concatenate([id_map.rows, rows]),
        weights=None if id_map.weights is None and (both == 1.0).all() else both,
    )


def cluster_places(id_map: IdMap) -> range:
    """The places of a map that hold clusters of the graph.

    Raises:
        ValueError: The compressor does not cluster.
    """
    match id_map.compressor:
        case "graphhash" | "double_graphhash":
            return range(1)
        case "baco":
            return range(id_map.rows_per_id)
        case "multi_graphhash" | "residual_codes":
            return range(1, neighbour_places(id_map).start - _popularity(id_map))
        case other:
            raise ValueError(
                f"{other!r} has no clusters that a new id could join; use graphhash, double_graphhash, baco, "
                "multi_graphhash or residual_codes"
            )


def neighbour_places(id_map: IdMap) -> range:
    """The places of a map that hold clusters of an id's neighbours, see :class:`embeddings.levels.Levels`."""
    some = id_map.info.get("division", {}).get("neighbours", 0)
    count = int(id_map.info["levels"]["neighbours"]) if some else 0
    return range(id_map.rows_per_id - count, id_map.rows_per_id)


def _popularity(id_map: IdMap) -> bool:
    """Whether the last place before those of neighbours is that of popularity."""
    return bool(id_map.info.get("division", {}).get("popularity", 0))


def _add_popularity(
    rows: IntArray, weights: FloatArray, new: sparse.csr_array, graph: sparse.csr_array, id_map: IdMap
) -> None:
    """Write the row of the most frequent old id that has no more interactions, or of the rarest, beside other rows."""
    if not _popularity(id_map):
        return
    place = neighbour_places(id_map).start - 1
    counts, joined = degrees(graph)[0], (weights > 0).any(axis=1)
    seen = np.flatnonzero((counts > 0) & (id_map.rows[:, place] != id_map.unseen_row))
    seen = seen[np.argsort(counts[seen], kind="stable")]
    if not seen.size:
        return
    below = np.searchsorted(counts[seen], degrees(new)[0][joined], side="right") - 1
    rows[joined, place] = id_map.rows[seen[np.maximum(below, 0)], place]
    weights[joined, place] = 1.0


def _add_neighbours(
    rows: IntArray, weights: FloatArray, new: sparse.csr_array, graph: sparse.csr_array, id_map: IdMap
) -> None:
    """Write the clusters of the neighbours of new ids into their places."""
    places = neighbour_places(id_map)
    if not places:
        return
    known = id_map.lookup_weights(np.arange(id_map.num_ids, dtype=np.int64))
    voting = np.where(known > 0, id_map.rows, -1)[:, places.start :]
    buckets = majority(sparse.hstack([graph.T.tocsr()] * len(places), format="csr"), voting.T.ravel())
    found, scales = neighbour_buckets(new, buckets, degrees(graph)[1], len(places))
    rows[:, places.start :] = np.where(found >= 0, found, id_map.unseen_row)
    weights[:, places.start :] = scales
