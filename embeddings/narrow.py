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
    make: Callable[[int, int], Pair], rows: tuple[int, int], degrees: tuple[IntArray, IntArray], share: float
) -> Pair:
    """Maps in which every id with an interaction has a row of its own, and be it a narrow one.

    A narrow row counts as its share of a row. How many ids need one depends on the rows that are left for the others,
    so that the maps are made several times, with more rows each time.

    Args:
        make: from rows of users and items, unseen rows not counted, to maps whose rows are all wide.
        rows: of users and items, narrow ones included as their share.
        degrees: train interactions of users and items, int64 [N] each.
        share: of the columns that a narrow row has, in (0, 1).

    Raises:
        ValueError: The narrow rows leave no other row.
    """
    need = [math.ceil(share * int((side > 0).sum())) for side in degrees]
    for side, count, wanted in zip(("user", "item"), rows, need, strict=True):
        if count <= wanted:
            raise ValueError(
                f"narrow rows of {share:g} of the columns are as many as {wanted:,} whole rows, but {side}s have"
                f" {count:,}; raise the budget above that, or lower compressor.narrow"
            )
    wide = [count - wanted for count, wanted in zip(rows, need, strict=True)]
    made: Pair | None = None
    alone: list[BoolArray] = []
    for _ in range(_PASSES):
        maps = make(wide[0], wide[1])
        lacking = [_without_own_row(one, side) for one, side in zip(maps, degrees, strict=True)]
        left = [
            count - used - math.ceil(share * int(some.sum()))
            for count, used, some in zip(rows, wide, lacking, strict=True)
        ]
        if min(left) < 0:
            break
        made, alone = maps, lacking
        if all(some <= max(1, _LEFT_OVER * count) for some, count in zip(left, rows, strict=True)):
            break
        wide = [used + some for used, some in zip(wide, left, strict=True)]
    assert made is not None
    users, items = (_append(one, some, share) for one, some in zip(made, alone, strict=True))
    return users, items


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
    used = np.ones(id_map.rows.shape, bool) if id_map.weights is None else id_map.weights != 0
    used &= seen[:, None]
    users = np.bincount(id_map.rows[used], minlength=id_map.num_rows)
    lacking: BoolArray = seen & ~(used & (users == 1)[id_map.rows]).any(axis=1)
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
