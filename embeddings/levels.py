"""Codes of several levels: how the rows of one table are divided, and the id map that the levels make."""

from __future__ import annotations

import dataclasses

import numpy as np

from embeddings.clustering import Algorithm
from embeddings.id_map import FloatArray, IntArray


@dataclasses.dataclass(frozen=True)
class Levels:
    """How ``multi_graphhash`` and ``residual_codes`` spend their rows.

    Attributes:
        count: clustering levels of the ids of a table, >= 0; without any, clusters of neighbours take what is left.
        ratio: each level has this many times the rows of the one before, >= 1.
        head_share: share of the rows that belong to the most frequent ids, one each, in [0, 1).
        hash_share: share of the rows that the other ids share at random, to tell members of a cluster apart, in [0, 1).
        neighbour_share: share of the rows that are clusters of the other side, of which an id sums those of its
            neighbours, see :mod:`embeddings.neighbour_buckets`, in [0, 1).
        neighbours: clusters of neighbours that an id sums, >= 1.
        popularity_share: share of the rows that ids of about the same frequency share, see :func:`popularity_buckets`;
            clusters do not tell how frequent their members are, in [0, 1).
        weights: of the levels in the sum, coarse first; none means 1 each.
        algorithm: of the clusterings of ``multi_graphhash``.

    Raises:
        ValueError: A value is out of range.
    """

    count: int = 3
    ratio: float = 3.0
    head_share: float = 0.2
    hash_share: float = 0.0
    neighbour_share: float = 0.0
    neighbours: int = 8
    popularity_share: float = 0.0
    weights: tuple[float, ...] | None = None
    algorithm: Algorithm = "louvain"

    def __post_init__(self) -> None:
        """Refuse what no table can have."""
        if self.count < 0 or not self.ratio >= 1 or self.neighbours < 1:
            raise ValueError(
                "levels need count >= 0, ratio and neighbours >= 1, "
                f"got count={self.count}, ratio={self.ratio}, neighbours={self.neighbours}"
            )
        shares = (self.head_share, self.hash_share, self.neighbour_share, self.popularity_share)
        if min(shares) < 0 or not sum(shares) < 1:
            raise ValueError(
                "levels.head_share, hash_share, neighbour_share and popularity_share must be >= 0 and together below 1,"
                f" got {shares[0]}, {shares[1]}, {shares[2]} and {shares[3]}"
            )
        if self.weights is not None and len(self.weights) != self.count:
            raise ValueError(f"levels.weights needs one weight for each of {self.count} levels, got {self.weights}")


@dataclasses.dataclass(frozen=True)
class Division:
    """Rows of one table: ``head + hashed + neighbours + popularity + sum(levels)`` is exactly what was asked for."""

    head: int
    hashed: int
    levels: tuple[int, ...]
    neighbours: int = 0
    popularity: int = 0


def divide(rows: int, side_degrees: IntArray, others: int, levels: Levels) -> Division:
    """Divide the rows of a table; where every seen id can own a row, every one does.

    The finest level takes what rounding leaves, without levels the head what the clusters of neighbours do. Levels
    without a row are left out, and there are no more rows of popularity than ids beside the head have frequencies.

    Args:
        rows: of the table, >= 1, the unseen row not counted.
        side_degrees: train interactions, int64 [N].
        others: ids of the other side with an interaction, which bound the clusters of neighbours.
        levels: the shares.
    """
    falling = np.sort(side_degrees[side_degrees > 0])[::-1]
    if rows >= falling.size:
        return Division(falling.size, 0, ())
    frequencies = np.cumsum((np.diff(falling, append=0) != 0)[::-1])[::-1]  # different ones of falling[i:]
    head, hashed = int(levels.head_share * rows), int(levels.hash_share * rows)
    popularity = min(int(levels.popularity_share * rows), int(frequencies[head]))
    if not levels.count:
        neighbours = min(rows - head - hashed - popularity, others)
        while frequencies[own := rows - hashed - neighbours - popularity] < popularity:
            popularity -= 1
            neighbours = min(neighbours + 1, others)
        return Division(own, hashed, (), neighbours, popularity)
    neighbours = min(int(levels.neighbour_share * rows), others)
    left = rows - head - hashed - popularity - neighbours
    powers = np.power(levels.ratio, np.arange(levels.count))
    shares = np.floor(left * powers / powers.sum()).astype(int)
    shares[-1] += left - shares.sum()
    return Division(head, hashed, tuple(int(share) for share in shares if share), neighbours, popularity)


def popularity_buckets(side_degrees: IntArray, count: int) -> IntArray:
    """Buckets of ids with about as many interactions, on a logarithmic scale as far as low numbers have ids to fill it.

    Args:
        side_degrees: train interactions, int64 [N].
        count: buckets; no more than there are different numbers are made.

    Returns:
        int64 [N], rising with the interactions, every bucket with an id; -1 for an id without interactions.
    """
    found = np.full(side_degrees.size, -1, dtype=np.int64)
    seen = side_degrees > 0
    values, place = np.unique(side_degrees[seen], return_inverse=True)
    count, index = min(count, values.size), np.arange(values.size)
    if count:
        even = np.floor(count * np.log2(values) / np.log2(values[-1] + 1)).astype(np.int64)
        reached = index + np.minimum.accumulate(np.minimum(even - index, 0))
        found[seen] = np.maximum(reached, count - values.size + index)[place]
    return found


def compose(
    division: Division,
    side_degrees: IntArray,
    codes: list[IntArray],
    hashed: IntArray | None,
    neighbours: tuple[IntArray, FloatArray] | None,
    weights: tuple[float, ...] | None,
) -> tuple[IntArray, FloatArray]:
    """Rows and weights of every id: its own or hashed row, one for each level, that of its popularity, its neighbours'.

    The rows of the head come first, then the hashed ones, then the levels, coarse first, then those of popularity, then
    clusters of the other side. An id of the head keeps its codes with weight zero, because
    :func:`embeddings.assign.assign` lets it vote.

    Args:
        division: of this table.
        side_degrees: train interactions, int64 [N]; the most frequent ids are the head, ties to the lower id.
        codes: for each level int64 [N] in ``[0, division.levels[l])``; -1 for an unseen id.
        hashed: int64 [N] in ``[0, division.hashed)``, if there are hashed rows.
        neighbours: int64 [N, H] in ``[0, division.neighbours)``, -1 for none, and their weights, if there are any.
        weights: of the levels; the last ones if levels were left out.

    Returns:
        int64 [N, 1 + levels + (1 if there are rows of popularity) + H] and float32 of the same shape. Unseen ids have
        arbitrary rows.
    """
    head = np.argsort(-side_degrees, kind="stable")[: division.head]
    head = head[side_degrees[head] > 0]
    places = np.zeros((side_degrees.size, 1 + len(codes)), dtype=np.int64)
    scales = np.ones(places.shape, dtype=np.float32)
    scales[:, 0] = 0.0
    if hashed is not None and division.hashed:
        places[:, 0], scales[:, 0] = division.head + hashed, 1.0
    start = division.head + division.hashed
    for level, (code, rows) in enumerate(zip(codes, division.levels, strict=True)):
        places[:, 1 + level] = start + np.maximum(code, 0)
        scales[:, 1 + level] = 1.0 if weights is None else weights[level - len(codes)]
        start += rows
    if division.popularity:
        others = side_degrees.copy()
        others[head] = 0
        bucket = popularity_buckets(others, division.popularity)
        bucket[head] = division.popularity - 1
        places = np.column_stack([places, start + np.maximum(bucket, 0)])
        scales = np.column_stack([scales, np.ones(bucket.size, np.float32)])
        start += division.popularity
    if neighbours is not None:
        places = np.concatenate([places, start + np.maximum(neighbours[0], 0)], axis=1)
        scales = np.concatenate([scales, neighbours[1]], axis=1)
    places[head, 0] = np.arange(head.size)
    scales[head, 0], scales[head, 1:] = 1.0, 0.0
    return places, scales
