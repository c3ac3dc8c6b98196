"""Histories as labelled events: each interaction is a positive, items that the user has not had are its negatives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.errors import DataError, did_you_mean
from pipelines.ranking.reserved import LABEL
from recsys.event_batch import EventHistories
from recsys.rng import generator

SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of the interactions; ``order`` None is the order of the rows."""

    user: str
    item: str
    split: str
    order: str | None = None


@dataclasses.dataclass(frozen=True)
class NextItemEvents:
    """Frame (label, user, item), the split uint8 [E] of each event, and its history if wanted."""

    frame: pl.DataFrame
    splits: npt.NDArray[np.uint8]
    histories: EventHistories | None


def read_next_item(
    path: Path, columns: Columns, catalogue: pl.Series, *, per_positive: int, seed: int, length: int
) -> NextItemEvents:
    """Positives and drawn negatives of each split.

    A train negative is drawn uniformly from the items that occur in train, a held-out one from the whole catalogue. It
    is never an item that the user has in the same split or an earlier one; nothing of a later split is looked at. A
    negative has the history of its positive.

    Args:
        path: Parquet with these columns.
        columns: of the interactions.
        catalogue: every item, sorted and distinct.
        per_positive: negatives for each positive.
        seed: of the draw.
        length: items of a history; 0 for none.

    Raises:
        DataError: A column is missing, an item is not in the catalogue, a user leaves no item to draw, or histories are
            wanted but a user has a train item after a held-out one.
    """
    frame, splits = _read(path, columns)
    users = frame[columns.user].rank("dense").to_numpy().astype(np.int64) - 1
    items = _indices(path, frame[columns.item], catalogue)
    bounds = _bounds(path, users, splits, length) if length else None
    had = np.empty(0, np.int64)
    parts, stretches = [], []
    for code, name in enumerate(SPLITS):
        rows = np.flatnonzero(splits == code)
        had = np.union1d(had, users[rows] * len(catalogue) + items[rows])
        pool = np.unique(items[rows]) if code == 0 else np.arange(len(catalogue))
        copies = np.concatenate([rows, np.repeat(rows, per_positive)])
        drawn = _negatives(users[copies[len(rows) :]], had, pool, len(catalogue), (seed, name))
        labels = np.repeat(np.array([1, 0], np.int8), [len(rows), len(drawn)])
        chosen = catalogue[np.concatenate([items[rows], drawn])]
        parts.append(pl.DataFrame({LABEL: labels, columns.user: frame[columns.user][copies], columns.item: chosen}))
        stretches += [] if bounds is None else [bounds[copies]]
    histories = EventHistories(items.astype(np.int32), np.concatenate(stretches)) if stretches else None
    return NextItemEvents(pl.concat(parts), np.repeat(np.arange(3, dtype=np.uint8), list(map(len, parts))), histories)


def _read(path: Path, columns: Columns) -> tuple[pl.DataFrame, npt.NDArray[np.uint8]]:
    """The interactions, one user after the other and in order, and their splits."""
    frame = pl.read_parquet(path, glob=False)
    for name in (columns.user, columns.item, columns.split, *filter(None, [columns.order])):
        if name not in frame.columns:
            raise DataError(f"{path} has no column {name!r}; {did_you_mean(name, frame.columns)}")
    frame = frame.sort(columns.user, *filter(None, [columns.order]), maintain_order=True)
    names = frame[columns.split].cast(pl.String)
    bad = names.is_null() | ~names.is_in(SPLITS)
    if bad.any():
        raise DataError(f"{path}: column {columns.split!r} must be train, valid or test, got {names.filter(bad)[0]!r}")
    return frame, names.replace_strict(dict(zip(SPLITS, range(3), strict=True)), return_dtype=pl.UInt8).to_numpy()


def _indices(path: Path, items: pl.Series, catalogue: pl.Series) -> npt.NDArray[np.int64]:
    """Index in the catalogue of each item."""
    places = catalogue.alias("value").to_frame().with_row_index("id")
    found = items.alias("value").to_frame().join(places, on="value", how="left", maintain_order="left")["id"]
    if found.null_count():
        raise DataError(f"{path} has the item {items.filter(found.is_null())[0]!r}, which is not in the catalogue")
    return found.to_numpy().astype(np.int64)


def _bounds(
    path: Path, users: npt.NDArray[np.int64], splits: npt.NDArray[np.uint8], length: int
) -> npt.NDArray[np.int64]:
    """Int64 [rows, 2]: up to ``length`` rows of the user before each row."""
    back = np.flatnonzero((np.diff(users) == 0) & (np.diff(splits.astype(np.int8)) < 0))
    if back.size:
        raise DataError(
            f"{path}: a history must not reach into a later split, but a user has a {SPLITS[splits[back[0] + 1]]} item"
            f" after a {SPLITS[splits[back[0]]]} one; set dataset.order to the time's column, or dataset.history to 0"
        )
    places = np.arange(len(users))
    first = np.searchsorted(users, users)
    return np.stack([np.maximum(first, places - length), places], axis=1)


def _negatives(
    users: npt.NDArray[np.int64],
    had: npt.NDArray[np.int64],
    pool: npt.NDArray[np.int64],
    num_items: int,
    stream: tuple[int, str],
) -> npt.NDArray[np.int64]:
    """Int64 [len(users)]: an item of ``pool`` for each user whose pair is not in ``had``, drawn again until it fits."""
    taken = np.bincount(had // num_items, np.isin(had % num_items, pool))
    if (taken[users] >= len(pool)).any():
        raise DataError(
            f"a user of the {stream[1]} split has had all {len(pool):,} items, so that none is left for a negative;"
            " remove the user, or give more items in dataset.catalogue"
        )
    draws = generator(stream[0], "next-item negatives", stream[1])
    found = np.empty(len(users), np.int64)
    left = np.arange(len(users))
    while len(left):
        found[left] = draws.choice(pool, len(left))
        left = left[np.isin(users[left] * num_items + found[left], had)]
    return found
