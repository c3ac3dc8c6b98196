"""Events as integer columns: raw ids become dense indices, in the order of the raw ids."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import polars as pl

Array = npt.NDArray[Any]
Int32 = npt.NDArray[np.int32]


@dataclasses.dataclass
class Events:
    """Interactions in columns of one length.

    Attributes:
        user: int32 [n] dense user index.
        item: int32 [n] dense item index.
        columns: rating f32, timestamp i64, position i32, split u8, as far as the source has them.
        users: raw user ids, index i is user i.
        items: raw item ids.
    """

    user: Int32
    item: Int32
    columns: dict[str, Array]
    users: pl.Series
    items: pl.Series

    def __len__(self) -> int:
        return len(self.user)

    def take(self, chosen: Array) -> None:
        """Keep the rows of a boolean mask or of an index array, one column at a time to bound memory."""
        self.user = self.user[chosen]
        self.item = self.item[chosen]
        for name in self.columns:
            self.columns[name] = self.columns[name][chosen]

    def relabel(self) -> None:
        """Drop users and items without an event; the order of the others stays."""
        self.user, self.users = _dense(self.user, self.users)
        self.item, self.items = _dense(self.item, self.items)


def _dense(codes: Int32, raw: pl.Series) -> tuple[Int32, pl.Series]:
    present = np.zeros(len(raw), dtype=np.bool_)
    present[codes] = True
    if present.all():
        return codes, raw
    new = (np.cumsum(present) - 1).astype(np.int32)
    return new[codes], raw.filter(pl.Series(present))


class Collected:
    """Columns that grow batch by batch, ids already as integers: 8 to 24 bytes an event."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Array]] = {}
        self._categories: dict[str, pl.Categories] = {}
        self._alive: dict[str, pl.Series] = {}  # polars forgets categories that no series uses
        self.rows = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Take a canonical frame."""
        self.rows += frame.height
        for series in frame.iter_columns():
            if series.name in {"user", "item"}:
                array = self._codes(series) if series.dtype == pl.String else _narrow(series.to_numpy())
            else:
                array = series.to_numpy()
            self._parts.setdefault(series.name, []).append(array)

    def _codes(self, series: pl.Series) -> Array:
        """Codes of strings in order of appearance, the same in every batch."""
        if series.name not in self._categories:
            self._categories[series.name] = pl.Categories(f"{series.name}-{uuid.uuid4().hex}", "recsys")
        codes = series.cast(pl.Categorical(self._categories[series.name]))
        self._alive.setdefault(series.name, codes.head(0))
        return codes.to_physical().to_numpy()

    def events(self) -> Events:
        """Dense events; the collected parts are given up on the way."""
        user, users = self._dense_ids("user")
        item, items = self._dense_ids("item")
        columns = {name: self._joined(name) for name in list(self._parts)}
        return Events(user, item, columns, users, items)

    def _joined(self, name: str) -> Array:
        parts = self._parts.pop(name)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _dense_ids(self, name: str) -> tuple[Int32, pl.Series]:
        values = self._joined(name)
        if name not in self._categories:
            codes, raw = dense_integers(values)
            return codes, pl.Series("raw_id", raw).cast(pl.String)
        count = int(values.max()) + 1 if len(values) else 0
        kinds = pl.Series("raw_id", np.arange(count, dtype=np.uint32))
        raw_ids = kinds.cat.to(pl.Categorical(self._categories[name])).cast(pl.String)
        order = raw_ids.arg_sort().to_numpy()
        rank = np.empty(count, dtype=np.int32)
        rank[order] = np.arange(count, dtype=np.int32)
        return rank[values], raw_ids.gather(order)


def _narrow(values: Array) -> Array:
    if len(values) and values.min() >= -(2**31) and values.max() < 2**31:
        return values.astype(np.int32)
    return values


def dense_integers(values: Array) -> tuple[Int32, Array]:
    """Index of every value among the sorted distinct values (int32), and those values.

    A table over the range is used where the range is small, a search among the distinct values where not.
    """
    if not len(values):
        return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)
    low, high = int(values.min()), int(values.max())
    if high - low < max(4 * len(values), 1 << 24):
        present = np.zeros(high - low + 1, dtype=np.bool_)
        _mark(values, low, present)
        table = np.cumsum(present, dtype=np.int32)
        return _lookup(values, low, table), np.flatnonzero(present) + low
    distinct = pl.Series(values).unique().sort().to_numpy()
    return np.searchsorted(distinct, values).astype(np.int32), distinct


@numba.njit(cache=True)
def _mark(values: Array, low: int, present: Array) -> None:
    for value in values:
        present[value - low] = True


@numba.njit(cache=True)
def _lookup(values: Array, low: int, table: Array) -> Array:
    codes = np.empty(len(values), dtype=np.int32)
    for i in range(len(values)):
        codes[i] = table[values[i] - low] - 1
    return codes


@numba.njit(cache=True)
def _counting_order(codes: Array, count: int, order: Array) -> Array:
    """Stable order of ``codes[order]`` by counting (int32); an empty ``order`` means the identity."""
    starts = np.zeros(count + 1, dtype=np.int64)
    for code in codes:
        starts[code + 1] += 1
    for code in range(count):
        starts[code + 1] += starts[code]
    result = np.empty(len(codes), dtype=np.int32)
    identity = len(order) == 0
    for place in range(len(codes)):
        row = place if identity else order[place]
        result[starts[codes[row]]] = row
        starts[codes[row]] += 1
    return result


@numba.njit(cache=True)
def degrees(codes: Int32, size: int) -> npt.NDArray[np.int64]:
    """Events of every index: int64 [size]. NumPy's bincount would copy the codes to int64 first."""
    counts = np.zeros(size, dtype=np.int64)
    for code in codes:
        counts[code] += 1
    return counts


def sort_canonically(events: Events) -> None:
    """Sort in place by (user, item), rows of one pair in reading order.

    User, item and row number are packed into one int64 where they fit, so that the sort needs no indirection and the
    ids come out of the keys; else two stable counting sorts give the order.
    """
    item_bits, row_bits = len(events.items).bit_length(), len(events).bit_length()
    if len(events.users).bit_length() + item_bits + row_bits > 63:
        by_item = _counting_order(events.item, len(events.items), np.empty(0, dtype=np.int32))
        events.take(_counting_order(events.user, len(events.users), by_item))
        return
    keys = events.user.astype(np.int64)
    keys <<= item_bits
    keys |= events.item
    keys <<= row_bits
    keys |= np.arange(len(events), dtype=np.int32)
    keys.sort()
    events.user = (keys >> (item_bits + row_bits)).astype(np.int32)
    if events.columns:
        order = (keys & ((1 << row_bits) - 1)).astype(np.int32)
        for name in events.columns:
            events.columns[name] = events.columns[name][order]
    keys >>= row_bits
    keys &= (1 << item_bits) - 1
    events.item = keys.astype(np.int32)
