"""The compressors that share rows by semantic codes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from embeddings.graph import degrees
from embeddings.id_map import IdMap, IntArray
from embeddings.semantic_id.codes import SemanticCodes
from embeddings.semantic_id.residual import fit_residual
from embeddings.semantic_id.rows import Places, ngram_rows, piece_rows, with_popularity
from embeddings.spectral import spectral_vectors

SemanticName = Literal["semantic_ngram", "semantic_spm"]
RANK = 64
"""Columns of the spectral vectors that are coded where no codes are given."""
WIDTHS = (256, 256, 256)


@dataclasses.dataclass(frozen=True)
class Semantic:
    """What the semantic compressors take beside the graph.

    Attributes:
        users: codes of the users; none means RQ-KMeans of the spectral vectors of the graph.
        items: codes of the items; likewise.
        n: codes of an n-gram.
        popularity_share: share of a table's rows that ids of about the same frequency share, in addition to those of
            their codes, which do not tell how frequent an id is; in [0, 1).

    Raises:
        ValueError: The share is out of range.
    """

    users: SemanticCodes | None = None
    items: SemanticCodes | None = None
    n: int = 1
    popularity_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no table can have."""
        if not 0 <= self.popularity_share < 1:
            raise ValueError(f"semantic.popularity_share must be in [0, 1), got {self.popularity_share}")


def compress_semantic(
    name: SemanticName, graph: sparse.csr_array, user_rows: int, item_rows: int, seed: int, semantic: Semantic
) -> tuple[IdMap, IdMap]:
    """Map users and items to sums of rows, see :func:`embeddings.compress.compress`.

    An id without interactions whose codes are given has the rows of those of its codes that other ids have trained,
    which is what makes semantic ids good for cold items; it has the unseen row where there are none.

    Args:
        name: compressor.
        graph: canonical train pairs [users, items].
        user_rows: rows of the user table without the unseen row, >= 1.
        item_rows: likewise for items.
        seed: of the spectral vectors, the k-means and the hash functions.
        semantic: codes and n.

    Raises:
        ValueError: Codes are not those of as many ids as the graph has.
    """
    given = (semantic.users, semantic.items)
    vectors: list[npt.NDArray[np.float32]] = []
    if None in given:
        vectors = list(spectral_vectors(graph, RANK, _generator(seed, 0)))
    maps = []
    for side, (counts, rows) in enumerate(zip(degrees(graph), (user_rows, item_rows), strict=True)):
        codes = given[side]
        if codes is not None and codes.num_items != counts.size:
            raise ValueError(
                f"{name} has codes of {codes.num_items:,} {('users', 'items')[side]}, but the graph has"
                f" {counts.size:,}; tokenise this catalogue"
            )
        if codes is None:
            codes = _coded(vectors[side], counts > 0, _generator(seed, 1, side))
            places = _places(name, codes, counts, rows, semantic, _generator(seed, 2, side))
            places[1][counts == 0] = 0.0
        else:
            places = _places(name, codes, counts, rows, semantic, _generator(seed, 2, side))
        maps.append(_id_map(name, places, rows, _facts(codes, given=given[side] is not None)))
    return maps[0], maps[1]


def _places(
    name: SemanticName,
    codes: SemanticCodes,
    counts: IntArray,
    rows: int,
    semantic: Semantic,
    generator: np.random.Generator,
) -> Places:
    coded = rows - min(int(semantic.popularity_share * rows), np.unique(counts[counts > 0]).size)
    match name:
        case "semantic_ngram":
            found = ngram_rows(codes.codes, counts, coded, min(semantic.n, codes.levels), generator)
        case "semantic_spm":
            found = piece_rows(codes.codes, counts, coded)
    return with_popularity(found, counts, coded, rows)


def _coded(
    vectors: npt.NDArray[np.float32], seen: npt.NDArray[np.bool_], generator: np.random.Generator
) -> SemanticCodes:
    """RQ-KMeans of the ids with interactions; the others keep zeros, which nobody looks up."""
    widths = tuple(max(1, min(width, int(seen.sum()))) for width in WIDTHS)
    codes = np.zeros((seen.size, len(widths)), dtype=np.int32)
    if seen.any():
        codes[seen] = fit_residual(vectors[seen], widths, generator)[1]
    return SemanticCodes(codes, widths)


def _facts(codes: SemanticCodes, *, given: bool) -> dict[str, Any]:
    return {"codes": codes.version, "widths": list(codes.widths), "from": "given codes" if given else "graph"}


def _id_map(name: SemanticName, found: Places, rows: int, info: dict[str, Any]) -> IdMap:
    """Put the places with a weight first, and send ids without any to the unseen row."""
    order = np.argsort(found[1] == 0, axis=1, kind="stable")
    places, weights = np.take_along_axis(found[0], order, axis=1), np.take_along_axis(found[1], order, axis=1)
    width = max(1, int((weights > 0).sum(axis=1).max(initial=1)))
    places, weights = places[:, :width].copy(), weights[:, :width].copy()
    unseen = weights[:, 0] == 0
    places[unseen] = rows
    weights[unseen, 0] = 1.0
    kept = None if (weights == 1.0).all() else weights
    return IdMap(places, num_rows=rows + 1, unseen_row=rows, compressor=name, weights=kept, info=info)


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))
