"""From a trained table to one with new clusters: rows and optimizer state that carry over."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from embeddings.id_map import FloatArray, IdMap, IntArray
from embeddings.least_squares import nearest_table, weights_of

BoolArray = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Carried:
    """What a table starts from.

    Attributes:
        weight: float32 [num_rows, D].
        state: optimizer state by name, the arrays of the old state with one row for each new row; scalars as they were.
        kept: rows that are the same as before, bit for bit.
        fitted: rows made from the vectors of their ids.
    """

    weight: FloatArray
    state: dict[str, npt.NDArray[np.generic]]
    kept: int
    fitted: int


def refresh(old: IdMap, new: IdMap, weight: FloatArray, state: dict[str, npt.NDArray[np.generic]]) -> Carried:
    """Carry a trained table over to another map of the same ids, and of ids that are new.

    A row whose known ids had one row of the old table to themselves, in the same place, is copied with its state, and
    so is the unseen row. The others are fitted to what the old vectors of the known ids then lack, by least squares.
    Their state is the mean over their ids of that of the old rows of each. A row without a known id is a copy of the
    unseen row, without state. Not known are ids that are new, and those that only had the unseen row.

    Args:
        old: map of the trained table.
        new: id i < ``old.num_ids`` is the same entity in both.
        weight: float32 [old.num_rows, D].
        state: arrays [old.num_rows, ...], or scalars, as ``Table.optimizer_state`` gives.

    Raises:
        ValueError: The arrays do not fit the old map, the new map has fewer ids, or one has narrow rows.
    """
    _check(old, new, weight, state)
    before = weights_of(old)
    trained = np.flatnonzero(np.diff(before[:, np.arange(old.num_rows) != old.unseen_row].indptr))
    who, place = np.nonzero(new.lookup_weights(trained))
    rows = new.rows[trained[who], place]
    source = _same_rows(old, new, trained[who], place)
    kept = source >= 0
    table = np.repeat(weight[old.unseen_row][None], new.num_rows, axis=0)
    table[kept] = weight[source[kept]]
    fitted = ~kept & (np.bincount(rows, minlength=new.num_rows) > 0)
    before, matrix = before[trained], weights_of(new)[trained]
    lacking = before @ weight - matrix[:, np.flatnonzero(kept)] @ table[kept]
    table[fitted] = nearest_table(matrix[:, np.flatnonzero(fitted)], lacking)
    before.data = np.repeat(1 / np.diff(before.indptr), np.diff(before.indptr))
    shares = before[who]
    fresh = {
        name: array.copy() if not array.ndim else _carried_state(array, source, fitted, rows, shares)
        for name, array in state.items()
    }
    return Carried(table, fresh, int(kept.sum()), int(fitted.sum()))


def _same_rows(old: IdMap, new: IdMap, who: IntArray, place: IntArray) -> IntArray:
    """For each new row the old row that had the same known ids, places and weights, or -1; int64 [new.num_rows]."""
    ids = np.arange(old.num_ids, dtype=np.int64)
    old_weights, new_weights = old.lookup_weights(ids), new.lookup_weights(ids)
    shared = np.minimum(place, old.rows_per_id - 1)
    same = (place < old.rows_per_id) & (old_weights[who, shared] == new_weights[who, place])
    before = np.where(same, old.rows[who, shared], -1)
    rows = new.rows[who, place]
    lowest = np.full(new.num_rows, old.num_rows, dtype=np.int64)
    highest = np.full(new.num_rows, -1, dtype=np.int64)
    np.minimum.at(lowest, rows, before)
    np.maximum.at(highest, rows, before)
    size = np.bincount(rows, minlength=new.num_rows)
    old_size = np.bincount(old.rows[old_weights != 0], minlength=old.num_rows)
    one = (lowest == highest) & (highest >= 0)
    one[one] = size[one] == old_size[highest[one]]
    source = np.where(one, highest, -1)
    source[new.unseen_row] = old.unseen_row
    return source


def _carried_state(
    array: npt.NDArray[np.generic], source: IntArray, fitted: BoolArray, rows: IntArray, shares: csr_array
) -> npt.NDArray[np.generic]:
    """State of kept rows, for fitted rows the mean over their ids, zero for rows without a known id.

    ``shares`` has for each use of ``rows`` those of the id's old rows.
    """
    flat = array.reshape(len(array), -1).astype(np.float64)
    uses = csr_array((np.ones(rows.size), (rows, np.arange(rows.size))), shape=(source.size, rows.size))
    total: npt.NDArray[np.float64] = uses @ shares @ flat
    total /= np.maximum(np.bincount(rows, minlength=source.size), 1)[:, None]
    total[~fitted] = 0.0
    carried = total.astype(array.dtype).reshape(source.size, *array.shape[1:])
    carried[source >= 0] = array[source[source >= 0]]
    return carried


def _check(old: IdMap, new: IdMap, weight: FloatArray, state: dict[str, npt.NDArray[np.generic]]) -> None:
    if old.narrow or new.narrow:
        raise ValueError("refresh fits whole rows and cannot carry narrow ones over; train the table again")
    if new.num_ids < old.num_ids:
        raise ValueError(
            f"refresh needs a map of at least the {old.num_ids:,} ids of the old one, got {new.num_ids:,};"
            " append new ids, keep the others"
        )
    for name, array in {"weight": weight, **state}.items():
        if (array.ndim or name == "weight") and len(np.atleast_1d(array)) != old.num_rows:
            raise ValueError(f"{name} must have {old.num_rows:,} rows, as the old map, got shape {list(array.shape)}")
