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
    weights: tuple[float, ...] | None = None
    algorithm: Algorithm = "louvain"

    def __post_init__(self) -> None:
        """Refuse what no table can have."""
        if self.count < 0 or not self.ratio >= 1 or self.neighbours < 1:
            raise ValueError(
                "levels need count >= 0, ratio and neighbours >= 1, "
                f"got count={self.count}, ratio={self.ratio}, neighbours={self.neighbours}"
            )
        shares = (self.head_share, self.hash_share, self.neighbour_share)
        if min(shares) < 0 or not sum(shares) < 1:
            raise ValueError(
                "levels.head_share, hash_share and neighbour_share must be >= 0 and together below 1, "
                f"got {shares[0]}, {shares[1]} and {shares[2]}"
            )
        if self.weights is not None and len(self.weights) != self.count:
            raise ValueError(f"levels.weights needs one weight for each of {self.count} levels, got {self.weights}")


@dataclasses.dataclass(frozen=True)
class Division:
    """Rows of one table: ``head + hashed + neighbours + sum(levels)`` is exactly what was asked for."""

    head: int
    hashed: int
    levels: tuple[int, ...]
    neighbours: int = 0


def divide(rows: int, seen: int, others: int, levels: Levels) -> Division:
    """Divide the rows of a table; where every seen id can own a row, every one does.

    The finest level takes what rounding leaves. Levels without a row are left out.

    Args:
        rows: of the table, >= 1, the unseen row not counted.
        seen: ids with an interaction.
        others: ids of the other side with an interaction, which bound the clusters of neighbours.
        levels: the shares.
    """
    if rows >= seen:
        return Division(seen, 0, ())
    head, hashed = int(levels.head_share * rows), int(levels.hash_share * rows)
    wanted = int(levels.neighbour_share * rows) if levels.count else rows - head - hashed
    neighbours = min(wanted, others)
    left = rows - head - hashed - neighbours
    if not levels.count:
        return Division(head + left, hashed, (), neighbours)
    powers = np.power(levels.ratio, np.arange(levels.count))
    shares = np.floor(left * powers / powers.sum()).astype(int)
    shares[-1] += left - shares.sum()
    return Division(head, hashed, tuple(int(share) for share in shares if share), neighbours)


def compose(
    division: Division,
    side_degrees: IntArray,
    codes: list[IntArray],
    hashed: IntArray | None,
    neighbours: tuple[IntArray, FloatArray] | None,
    weights: tuple[float, ...] | None,
) -> tuple[IntArray, FloatArray]:
    """Rows and weights of every id: its row of its own or its hashed row, a row for each level, then its neighbours'.

    The rows of the head come first, then the hashed ones, then the levels, coarse first, then clusters of the other
    side. An id of the head keeps its codes with weight zero, because :func:`embeddings.assign.assign` lets it vote.

    Args:
        division: of this table.
        side_degrees: train interactions, int64 [N]; the most frequent ids are the head, ties to the lower id.
        codes: for each level int64 [N] in ``[0, division.levels[l])``; -1 for an unseen id.
        hashed: int64 [N] in ``[0, division.hashed)``, if there are hashed rows.
        neighbours: int64 [N, H] in ``[0, division.neighbours)``, -1 for none, and their weights, if there are any.
        weights: of the levels; the last ones if levels were left out.

    Returns:
        int64 [N, 1 + levels + H] and float32 of the same shape. Unseen ids have arbitrary rows.
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
    if neighbours is not None:
        places = np.concatenate([places, start + np.maximum(neighbours[0], 0)], axis=1)
        scales = np.concatenate([scales, neighbours[1]], axis=1)
    places[head, 0] = np.arange(head.size)
    scales[head, 0], scales[head, 1:] = 1.0, 0.0
    return places, scales
