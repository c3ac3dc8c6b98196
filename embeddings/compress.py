"""Every compressor behind one call: from a graph and a row budget to two id maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from embeddings.clustering import CoClustering
from embeddings.composed import compress_composed
from embeddings.frequency import reserve_rows
from embeddings.graph import canonical, degrees
from embeddings.graphhash import cluster_rows
from embeddings.hashing import UniversalHash, quotient_remainder
from embeddings.id_map import IdMap, IntArray
from embeddings.levels import Levels
from embeddings.lsh import hyperplane_buckets
from embeddings.names import COMPRESSORS, WITHOUT_NARROW, CompressorName
from embeddings.narrow import with_narrow_rows
from embeddings.semantic_id.compress import Semantic, compress_semantic


def compress(
    name: CompressorName,
    graph: sparse.csr_array,
    user_rows: int,
    item_rows: int,
    clustering: CoClustering | None = None,
    seed: int = 0,
    levels: Levels | None = None,
    semantic: Semantic | None = None,
    narrow: tuple[float, float] = (0.0, 0.0),
) -> tuple[IdMap, IdMap]:
    """Map users and items to table rows.

    Each map has the given number of rows and one more, the last, for ids without a train interaction; only "full"
    ignores the numbers and gives every seen id a row. The embedding of an id with several rows is their sum.

    Args:
        name: compressor.
        graph: train pairs [users, items]; it is not changed.
        user_rows: rows of the user table without the unseen row, >= 1.
        item_rows: rows of the item table without the unseen row, >= 1.
        clustering: of this graph; needed by "graphhash" and "double_graphhash".
        seed: of the random hash functions and hyperplanes.
        levels: of "multi_graphhash" and "residual_codes"; none means the defaults.
        semantic: codes and n-grams of "semantic_ngram" and "semantic_spm"; none means codes made from the graph.
        narrow: columns, as a share in [0, 1), of a narrow row that each user, and each item, has which only shares
            rows; it counts as this share of a row. 0 for no such rows. The rows of clusters are given, so that
            "graphhash", "double_graphhash" and "full" have none.

    Returns:
        The user map and the item map.

    Raises:
        ValueError: Unknown name, fewer than one row, or a clustering that is missing or does not fit; narrow rows with
            a compressor that has none, or more of them than the budget.
    """
    if name not in COMPRESSORS:
        raise ValueError(f"unknown compressor {name!r}; choose from {', '.join(COMPRESSORS)}")
    for side, rows in (("user", user_rows), ("item", item_rows)):
        if rows < 1:
            raise ValueError(f"{name} needs {side}_rows >= 1, got {rows}")
    graph = canonical(graph)
    if any(narrow):
        if name in WITHOUT_NARROW:
            raise ValueError(f"{name} has no narrow rows; set narrow: 0, or take another compressor")
        return with_narrow_rows(
            lambda users, items: compress(name, graph, users, items, None, seed, levels, semantic),
            (user_rows, item_rows), degrees(graph), narrow,
        )  # fmt: skip
    user_degrees, item_degrees = degrees(graph)
    if name in ("baco", "multi_graphhash", "residual_codes"):
        return compress_composed(name, graph, user_rows, item_rows, seed, levels or Levels())
    if name in ("semantic_ngram", "semantic_spm"):
        return compress_semantic(name, graph, user_rows, item_rows, seed, semantic or Semantic())
    user_clusters = item_clusters = None
    info: dict[str, Any] = {}
    if name in ("graphhash", "double_graphhash"):
        if clustering is None:
            raise ValueError(f"{name} needs a clustering of the graph; make one with co_cluster or search_resolution")
        user_clusters = cluster_rows(clustering, users=True, rows=user_rows, num_ids=graph.shape[0])
        item_clusters = cluster_rows(clustering, users=False, rows=item_rows, num_ids=graph.shape[1])
        info = _facts(clustering)
    return (
        _compress_side(name, graph, user_degrees, user_rows, user_clusters, _generator(seed, 0), info),
        _compress_side(name, graph.T, item_degrees, item_rows, item_clusters, _generator(seed, 1), info),
    )


def _compress_side(
    name: CompressorName,
    neighbours: sparse.csr_array | sparse.csc_array,
    side_degrees: IntArray,
    rows: int,
    clusters: IntArray | None,
    generator: np.random.Generator,
    info: dict[str, Any],
) -> IdMap:
    seen = side_degrees > 0
    ids = np.arange(side_degrees.size, dtype=np.int64)
    single: npt.NDArray[np.bool_] | None = None
    match name:
        case "full":
            rows = int(seen.sum())
            places = [np.cumsum(seen) - 1]
        case "modulo":
            places = [ids % rows]
        case "universal_hash":
            places = [UniversalHash.draw(rows, generator)(ids)]
        case "double_hash":
            places = [UniversalHash.draw(rows, generator)(ids), UniversalHash.draw(rows, generator)(ids)]
        case "head" | "frequency":
            own, left = reserve_rows(side_degrees, rows, shared=1 if name == "head" else None)
            places = [np.where(own >= 0, own, rows - left + ids % left)]
        case "double_frequency":
            own, left = reserve_rows(side_degrees, rows)
            hashes = [UniversalHash.draw(left, generator) for _ in range(2)]
            places = [np.where(own >= 0, own, rows - left + hashed(ids)) for hashed in hashes]
            single = own >= 0
        case "quotient_remainder":
            places = list(quotient_remainder(ids, ids.size, rows).T)
        case "lsh":
            places = [hyperplane_buckets(neighbours, rows, generator)]
        case "graphhash":
            assert clusters is not None
            places = [clusters]
        case "double_graphhash":
            assert clusters is not None
            places = [clusters, UniversalHash.draw(rows, generator)(ids)]
        case "baco" | "multi_graphhash" | "residual_codes":
            raise AssertionError(f"{name} is made by compress_composed")
        case "semantic_ngram" | "semantic_spm":
            raise AssertionError(f"{name} is made by compress_semantic")
    return _id_map(name, np.stack(places, axis=1).astype(np.int64), rows, seen, single, info)


def _id_map(
    name: str,
    places: IntArray,
    rows: int,
    seen: npt.NDArray[np.bool_],
    single: npt.NDArray[np.bool_] | None,
    info: dict[str, Any],
) -> IdMap:
    """Send unseen ids to the last row; ids that need one row only get weight zero on the other places."""
    places[~seen] = rows
    one_place = ~seen if single is None else ~seen | single
    weights = None
    if places.shape[1] > 1 and one_place.any():
        weights = np.ones(places.shape, dtype=np.float32)
        weights[one_place, 1:] = 0.0
    return IdMap(places, num_rows=rows + 1, unseen_row=rows, compressor=name, weights=weights, info=info)


def _facts(clustering: CoClustering) -> dict[str, Any]:
    """What the map carries of its clustering; no wall time, so that equal maps give equal files."""
    return {key: value for key, value in clustering.facts().items() if key != "seconds"}


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))
