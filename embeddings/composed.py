"""Compressors that look at both sides at once and give an id several weighted rows."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from embeddings.clustering import search_resolution
from embeddings.graph import canonical, degrees
from embeddings.hashing import UniversalHash
from embeddings.id_map import FloatArray, IdMap, IntArray
from embeddings.label_propagation import balanced_clusters
from embeddings.levels import Division, Levels, compose, divide
from embeddings.multi_graphhash import LEVEL_TOLERANCE, cluster_levels
from embeddings.neighbour_buckets import neighbour_buckets
from embeddings.rebalance import fit_rows
from embeddings.semantic_id.residual import fit_residual
from embeddings.spectral import spectral_vectors
from embeddings.structural_order import structural_order

Composed = Literal["baco", "multi_graphhash", "residual_codes"]
RANK = 32
"""Columns of the vectors that ``residual_codes`` quantises."""


def compress_composed(
    name: Composed, graph: sparse.csr_array, user_rows: int, item_rows: int, seed: int, levels: Levels
) -> tuple[IdMap, IdMap]:
    """Map users and items to weighted sums of rows, see :func:`embeddings.compress.compress`.

    Clusters and hashes depend on the order of the nodes, which are taken in their :func:`structural_order`: another
    numbering of the users and items gives the same buckets, but for nodes that colour refinement cannot tell apart.

    Args:
        name: compressor.
        graph: canonical train pairs [users, items].
        user_rows: rows of the user table without the unseen row, >= 1.
        item_rows: likewise for items.
        seed: of the hashed rows and of the start of the spectral vectors.
        levels: how the rows are divided; "baco" has none.
    """
    orders = structural_order(graph)
    ordered = canonical(graph[orders[0]][:, orders[1]])
    found = _compose(name, ordered, (user_rows, item_rows), seed, levels)
    return reordered(found[0], orders[0]), reordered(found[1], orders[1])


def reordered(id_map: IdMap, order: IntArray) -> IdMap:
    """The map in which id ``order[i]``, int64 [N], has the rows that id i has in ``id_map``."""
    places = np.argsort(order)
    weights = None if id_map.weights is None else id_map.weights[places]
    return dataclasses.replace(id_map, rows=id_map.rows[places], weights=weights)


def _compose(
    name: Composed, graph: sparse.csr_array, table_rows: tuple[int, int], seed: int, levels: Levels
) -> tuple[IdMap, IdMap]:
    """:func:`compress_composed` of a graph whose order decides."""
    user_rows, item_rows = table_rows
    if name == "baco":
        return _balanced(graph, user_rows, item_rows)
    sides = degrees(graph)
    users, items = (int((side > 0).sum()) for side in sides)
    divisions = (divide(user_rows, sides[0], items, levels), divide(item_rows, sides[1], users, levels))
    if name == "multi_graphhash":
        codes = cluster_levels(graph, divisions, levels)
    else:
        codes = _residual_codes(graph, divisions, seed)
    neighbours = _neighbours(graph, divisions, levels)
    maps = []
    for side, rows in enumerate((user_rows, item_rows)):
        division, ids = divisions[side], np.arange(sides[side].size, dtype=np.int64)
        hashed = None
        if division.hashed:
            hashed = UniversalHash.draw(division.hashed, _generator(seed, side))(ids)
        places, weights = compose(division, sides[side], codes[side], hashed, neighbours[side], levels.weights)
        info = json.loads(json.dumps({"levels": dataclasses.asdict(levels), "division": dataclasses.asdict(division)}))
        maps.append(_id_map(name, places, weights, sides[side] > 0, rows, info))
    return maps[0], maps[1]


def _residual_codes(
    graph: sparse.csr_array, divisions: tuple[Division, Division], seed: int
) -> tuple[list[IntArray], list[IntArray]]:
    """For each level of a side the codes int64 [N] of RQ-KMeans on spectral vectors; -1 for unseen ids."""
    codes: tuple[list[IntArray], list[IntArray]] = ([], [])
    if not any(division.levels for division in divisions):
        return codes
    vectors = spectral_vectors(graph, RANK, _generator(seed, 2))
    for side, (division, counts) in enumerate(zip(divisions, degrees(graph), strict=True)):
        if division.levels:
            found = np.full((counts.size, len(division.levels)), -1, dtype=np.int64)
            found[counts > 0] = fit_residual(vectors[side][counts > 0], division.levels, _generator(seed, 3, side))[1]
            codes[side].extend(found.T)
    return codes


def _neighbours(
    graph: sparse.csr_array, divisions: tuple[Division, Division], levels: Levels
) -> list[tuple[IntArray, FloatArray] | None]:
    """Of each side the clusters of its neighbours, from one co-clustering whose items are the buckets of users."""
    rows = [division.neighbours for division in divisions]
    if not any(rows):
        return [None, None]
    found = search_resolution(graph, max(2, sum(rows)), levels.algorithm, LEVEL_TOLERANCE)
    user_degrees, item_degrees = degrees(graph)
    sides = ((graph, found.item_labels, item_degrees), (graph.T.tocsr(), found.user_labels, user_degrees))
    return [
        neighbour_buckets(one, fit_rows(labels, labels, count), popularity, levels.neighbours) if count else None
        for (one, labels, popularity), count in zip(sides, rows, strict=True)
    ]


def _balanced(graph: sparse.csr_array, user_rows: int, item_rows: int) -> tuple[IdMap, IdMap]:
    """One code for an item and two for a user; the second has weight zero if all its items are of one cluster."""
    seen = [side > 0 for side in degrees(graph)]
    capped = (min(user_rows, int(seen[0].sum())), min(item_rows, int(seen[1].sum())))
    users = np.full((graph.shape[0], 2), -1, dtype=np.int64)
    items = np.full((graph.shape[1], 1), -1, dtype=np.int64)
    info: dict[str, Any] = {}
    if graph.nnz:
        found = balanced_clusters(graph, *capped)
        users, items = np.stack([found.users, found.second], axis=1), found.items[:, None]
        info = {"penalty": found.penalty}
    weights = [(places >= 0).astype(np.float32) for places in (users, items)]
    user_map = _id_map("baco", np.maximum(users, 0), weights[0], seen[0], user_rows, info)
    return user_map, _id_map("baco", np.maximum(items, 0), weights[1], seen[1], item_rows, info)


def _id_map(
    name: str, places: IntArray, weights: FloatArray, seen: npt.NDArray[np.bool_], rows: int, info: dict[str, Any]
) -> IdMap:
    """Send unseen ids to the last row, with weight one in the first place."""
    places[~seen] = rows
    weights[~seen] = 0.0
    weights[~seen, 0] = 1.0
    given = None if (weights == 1.0).all() else weights
    return IdMap(places, num_rows=rows + 1, unseen_row=rows, compressor=name, weights=given, info=info)


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))
