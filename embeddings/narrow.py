"""Narrow rows: a few columns that tell apart ids which otherwise only share rows.

What a rare id teaches the rows that it shares with frequent ones is soon overwritten. A row of its own keeps it, and
the first eighth of the columns is enough for most of it (mixed dimensions, Ginart et al. 2019, beside codes).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from embeddings.id_map import FloatArray, IdMap, IntArray, Narrow

Pair = tuple[IdMap, IdMap]
BoolArray = npt.NDArray[np.bool_]
_PASSES = 16
_LEFT_OVER = 0.002
"""Share of the rows that may stay unused."""


def with_narrow_rows(
    make: Callable[[int, int], Pair],
    rows: tuple[int, int],
    degrees: tuple[IntArray, IntArray],
    shares: tuple[float, float],
) -> Pair:
    """Maps in which every id with an interaction has a row of its own, and be it a narrow one.

    A narrow row counts as its share of a row. How many ids need one depends on the rows that are left for the others,
    so that the maps are made several times, with as many wide rows as are found to fit.

    Args:
        make: from rows of users and items, unseen rows not counted, to maps whose rows are all wide.
        rows: of users and items, narrow ones included as their share.
        degrees: train interactions of users and items, int64 [N] each.
        shares: of the columns that a narrow row of users and of items has, in [0, 1); 0 for none.

    Raises:
        ValueError: The narrow rows leave no other row.
    """
    sides = [_Side(*parts) for parts in zip(("users", "items"), rows, degrees, shares, strict=True)]
    for _ in range(_PASSES):
        for side, made in zip(sides, make(*(side.trial for side in sides)), strict=True):
            side.take(made)
        if all(side.done for side in sides):
            break
    users, items = (side.finished() for side in sides)
    return users, items


class _Side:
    """The search for the wide rows of users or of items.

    Attributes:
        trial: wide rows that are to be tried, unseen row not counted.
        done: whether ``trial`` are so many that next to none would be left over.
    """

    def __init__(self, name: str, rows: int, degrees: IntArray, share: float) -> None:
        self._rows, self._degrees, self._share = rows, degrees, share
        need = math.ceil(share * int((degrees > 0).sum()))
        if rows <= need:
            raise ValueError(
                f"narrow rows of {share:g} of the columns take as much as {need:,} whole rows, but {name} have"
                f" {rows:,}, so that no whole row is left; raise the budget, or lower compressor.narrow"
            )
        self.trial, self.done = rows - need, False  # which fit, were every id to need a narrow row
        self._best, self._limit = 0, rows + 1
        self._fits: IdMap | None = None

    def take(self, made: IdMap) -> None:
        """Learn whether a map of ``trial`` rows leaves enough for the narrow ones."""
        if self.done:
            return
        alone = int(_without_own_row(made, self._degrees).sum()) if self._share else 0
        left = self._rows - self.trial - math.ceil(self._share * alone)
        if left >= 0:
            self._fits, self._best = made, self.trial
            more = int(left / (1 - self._share))  # where each further row is some id's own
        else:
            self._limit = self.trial
            more = (self._limit - self._best) // 2
        self.trial = min(self._best + more, self._limit - 1)
        self.done = self.trial - self._best <= _LEFT_OVER * self._rows
        if self.done:
            self.trial = self._best

    def finished(self) -> IdMap:
        """The map with the most wide rows that fitted, and its narrow rows."""
        assert self._fits is not None
        if not self._share:
            return self._fits
        return _append(self._fits, _without_own_row(self._fits, self._degrees), self._share)


def grown(id_map: IdMap, grow: Callable[[IdMap], IdMap]) -> IdMap:
    """What ``grow`` makes of a map by more ids, where the narrow rows are those of the ids that were there before."""
    if id_map.narrow is None:
        return grow(id_map)
    assert id_map.weights is not None
    wide: dict[str, Any] = {"rows": id_map.rows[:, :-1].copy(), "weights": id_map.weights[:, :-1].copy()}
    more = grow(dataclasses.replace(id_map, **wide, num_rows=id_map.wide_rows, narrow=None))
    assert more.weights is not None
    new = (0, more.num_ids - id_map.num_ids)
    place: IntArray = np.pad(id_map.rows[:, -1], new, constant_values=id_map.unseen_row)
    weight: FloatArray = np.pad(id_map.weights[:, -1], new)
    return dataclasses.replace(
        id_map, rows=np.column_stack([more.rows, place]), weights=np.column_stack([more.weights, weight])
    )


def _without_own_row(id_map: IdMap, degrees: IntArray) -> BoolArray:
    """Ids with interactions that share each of their rows with another such id."""
    seen = degrees > 0
    ids, rows = id_map.uses()
    ids, rows = ids[seen[ids]], rows[seen[ids]]
    lacking = seen.copy()
    lacking[ids[np.bincount(rows, minlength=id_map.num_rows)[rows] == 1]] = False
    return lacking


def _append(id_map: IdMap, alone: BoolArray, share: float) -> IdMap:
    """A narrow row for each of ``alone``, in a last place that has weight zero for the others."""
    count = int(alone.sum())
    if not count:
        return id_map
    place = id_map.rows[:, 0].copy()
    place[alone] = id_map.num_rows + np.arange(count)
    weights = np.ones(id_map.rows.shape, np.float32) if id_map.weights is None else id_map.weights
    return dataclasses.replace(
        id_map,
        rows=np.column_stack([id_map.rows, place]),
        num_rows=id_map.num_rows + count,
        weights=np.column_stack([weights, alone.astype(np.float32)]),
        narrow=Narrow(count, share),
    )
