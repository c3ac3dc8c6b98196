"""Labelled events from files: a lazy frame in a fixed row order, and the split of each row."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.config_ranking import (
    CriteoData,
    EventSplit,
    FrappeData,
    Join,
    LibfmData,
    NextItemData,
    Numeric,
    TableData,
)
from pipelines.errors import DataError
from pipelines.ingest.source import base_path
from pipelines.ranking.files import (
    PARQUET,
    check_lines,
    find_files,
    line_of,
    readable,
    require_columns,
    row_of,
    scan_files,
)
from pipelines.ranking.frappe import FIELDS as FRAPPE_FIELDS
from pipelines.ranking.frappe import read_frappe
from pipelines.ranking.item_age import item_ages
from pipelines.ranking.joins import join_file, refused_columns
from pipelines.ranking.libfm import read_libfm
from pipelines.ranking.lists import lists_as_text
from pipelines.ranking.next_item import Columns, read_next_item
from pipelines.ranking.numbers import Told, as_numbers
from pipelines.ranking.reserved import LABEL
from recsys.event_batch import EventHistories
from recsys.rng import generator

SPLITS = ("train", "valid", "test")
CRITEO_NUMERIC = tuple(f"I{i}" for i in range(1, 14))
CRITEO_FIELDS = tuple(f"C{i}" for i in range(1, 27))
DataConfig = FrappeData | TableData | LibfmData | CriteoData | NextItemData


@dataclasses.dataclass(frozen=True)
class Source:
    """Events as read.

    Attributes:
        frame: columns ``LABEL``, the categorical fields and the numeric columns, in a fixed row order.
        splits: uint8 [E], index into ``SPLITS``.
        fields: categorical columns.
        numeric: numeric columns and how they are encoded.
        facts: of the split, for the report.
        files: that the frame will be read from; none where it was read.
        at_least: value that the label of a positive reaches; None where labels are 0 and 1.
        remedy: what helps where a label is neither 0 nor 1.
        told: an event by its number from 0, in words for messages.
        label: column of the labels, for messages.
        catalogue: every item, train's or not, by the sorted column of the item field; None where train's items are all.
        histories: what users had before the events, in indices of the catalogue.
        ages: float64 [E], see :func:`pipelines.ranking.item_age.item_ages`, and their unit; None without a time.
    """

    frame: pl.LazyFrame
    splits: npt.NDArray[np.uint8]
    fields: tuple[str, ...]
    numeric: dict[str, Numeric]
    facts: dict[str, Any]
    files: tuple[Path, ...] = ()
    at_least: float | None = None
    remedy: str = "correct it"
    told: Told = "row {}".format
    label: str = "label"
    catalogue: pl.DataFrame | None = None
    histories: EventHistories | None = None
    ages: tuple[npt.NDArray[np.float64], str] | None = None


def files_of(config: DataConfig) -> list[Path]:
    """Every file that the events are read from.

    Raises:
        DataError: One is missing.
    """
    match config:
        case FrappeData():
            names = ["nfm_train_positives.parquet", "nfm_libfm_valid_test.parquet"]
        case LibfmData():
            names = [config.train, config.valid, config.test]
        case TableData():
            names = [config.events, *(join.source for join in config.joins)]
        case CriteoData():
            names = [config.events]
        case NextItemData():
            names = [config.events, config.catalogue]
        case _:
            assert_never(config)
    return find_files(config.source, names)


def read_source(config: DataConfig) -> Source:
    """The events of a configuration.

    Raises:
        DataError: A file or column is missing, or a value cannot be used.
    """
    files = files_of(config)
    with readable(files):
        return _read(config, files)


def _read(config: DataConfig, files: list[Path]) -> Source:
    match config:
        case FrappeData():
            whole, splits, facts = read_frappe(files[0].parent, config.negatives, config.seed)
            fields = tuple(name for name in whole.columns if name != LABEL)
            return Source(whole.lazy(), splits, fields, {}, facts)
        case LibfmData():
            parts = [read_libfm(path, config.fields, LABEL) for path in files]
            splits = np.repeat(np.arange(3, dtype=np.uint8), [len(part) for part in parts])
            return Source(pl.concat(parts).lazy(), splits, config.fields, {}, {"method": "given", "column": "file"})
        case TableData():
            return _table(config, files)
        case CriteoData():
            frame = _criteo(files)
            splits = _splits(frame, config)
            facts, kinds = config.split.model_dump(mode="json"), numeric_kinds(config)
            remedy = "write 1 for a click and 0 for none, criteo has no at_least"
            told = functools.partial(row_of if files[0].suffix in PARQUET else line_of, files)
            return Source(frame, splits, CRITEO_FIELDS, kinds, facts, tuple(files), remedy=remedy, told=told)
        case NextItemData():
            return _next_item(config, *files)
        case _:
            assert_never(config)


def numeric_kinds(config: DataConfig) -> dict[str, Numeric]:
    """Numeric column -> how it is encoded."""
    match config:
        case TableData():
            return dict(config.numeric)
        case CriteoData():
            return dict.fromkeys(CRITEO_NUMERIC, config.numeric)
        case _:
            return {}


def categorical(config: DataConfig) -> tuple[str, ...]:
    """The categorical columns of the events, in their order."""
    match config:
        case FrappeData():
            return FRAPPE_FIELDS
        case TableData() | LibfmData():
            return config.fields
        case CriteoData():
            return CRITEO_FIELDS
        case NextItemData():
            return (config.user, config.item, *config.columns)
        case _:
            assert_never(config)


def field_names(config: DataConfig) -> tuple[str, ...]:
    """The fields that the events will have, in their order: categorical columns, then numbers in buckets."""
    buckets = (name for name, kind in numeric_kinds(config).items() if kind == "log_bucket")
    return (*categorical(config), *buckets)


def joined(config: DataConfig) -> tuple[str, ...]:
    """Columns that come from files beside the events."""
    return tuple(name for join in _joins(config) for name in join.columns)


def _joins(config: DataConfig) -> tuple[Join, ...]:
    match config:
        case TableData():
            return config.joins
        case NextItemData() if config.columns:
            return (Join(source=config.catalogue, key=config.item, columns=config.columns),)
        case _:
            return ()


def join_columns(rows: pl.DataFrame, config: DataConfig) -> pl.DataFrame:
    """``rows`` with the joined columns that they lack, from the files of the data.

    Raises:
        DataError: A file is gone, damaged or has a key twice, or the rows have no key.
    """
    for join in _joins(config):
        lacking = [name for name in join.columns if name not in rows.columns]
        path = base_path(config.source) / join.source
        if not lacking:
            continue
        if not path.is_file() or join.key not in rows.columns:
            raise DataError(f"the rows have no column {lacking[0]!r}, and {path} by {join.key!r} cannot give it")
        with readable([path]):
            rows = join_file(rows.lazy(), path, join.key, lacking).collect()
    return rows


def _next_item(config: NextItemData, events: Path, catalogue: Path) -> Source:
    items = pl.read_parquet(catalogue, glob=False)
    require_columns(items.lazy(), (config.item, *config.columns), config.catalogue)
    items = items.sort(config.item)
    if items[config.item].n_unique() < len(items) or items[config.item].null_count():
        raise DataError(f"{catalogue}: column {config.item!r} must name each item once, but some are missing or twice")
    columns = Columns(config.user, config.item, config.split, config.order)
    drawn = read_next_item(
        events,
        columns,
        items[config.item],
        per_positive=config.negatives,
        seed=config.seed,
        length=config.history,
    )
    described = lists_as_text(items.lazy().select(config.item, *config.columns), config.columns).collect()
    frame = drawn.frame.join(described, on=config.item, how="left", maintain_order="left")
    facts = {
        "method": "given",
        "column": config.split,
        "negatives": f"{config.negatives} for each positive, uniform, never an item that the user had until then",
        "seed": config.seed,
    }
    fields = (config.user, config.item, *config.columns)
    return Source(frame.lazy(), drawn.splits, fields, {}, facts, catalogue=items, histories=drawn.histories)


def _table(config: TableData, files: list[Path]) -> Source:
    joined = {base_path(config.source) / join.source for join in config.joins}
    frame = scan_files([path for path in files if path not in joined])
    for (place, _), message in refused_columns(frame.collect_schema().names(), config.joins)[:1]:
        raise DataError(f"dataset.joins[{place}]: {message}")
    for join in config.joins:
        require_columns(frame, (join.key,), config.events)
        frame = join_file(frame, base_path(config.source) / join.source, join.key, join.columns)
    extra = filter(None, (config.split.column, config.time))
    require_columns(frame, (config.label.column, *config.fields, *config.numeric, *extra), config.events)
    frame = lists_as_text(frame, config.fields)
    splits = _splits(frame, config)
    ages = None if config.time is None else item_ages(frame, config.item, config.time, splits)
    frame = frame.select(pl.col(config.label.column).alias(LABEL), *config.fields, *config.numeric)
    facts, kinds = config.split.model_dump(mode="json"), numeric_kinds(config)
    remedy, at_least = "correct it", config.label.at_least
    if at_least is None:
        remedy += ", or set dataset.label.at_least to the value that a positive reaches"
    label = config.label.column
    return Source(frame, splits, config.fields, kinds, facts, tuple(files), at_least, remedy, label=label, ages=ages)


def _criteo(files: list[Path]) -> pl.LazyFrame:
    names = ("label", *CRITEO_NUMERIC, *CRITEO_FIELDS)
    if files[0].suffix in PARQUET:
        frame = scan_files(files)
        require_columns(frame, names, files[0].name)
    else:
        for path in files:
            check_lines(path, len(names))  # a shorter line would be filled up with missing values
        schema = dict.fromkeys(names, pl.String)
        frame = pl.scan_csv(files, separator="\t", has_header=False, schema=schema, quote_char=None)
    return frame.select(pl.col("label").alias(LABEL), *CRITEO_NUMERIC, *CRITEO_FIELDS)


def _splits(frame: pl.LazyFrame, data: TableData | CriteoData) -> npt.NDArray[np.uint8]:
    """Uint8 [E]: the split of each row."""
    config, user = data.split, data.user
    count = int(frame.select(pl.len()).collect().item())
    if not count:
        raise DataError(f"source {data.source!r} has no events: its files have no rows; give files that have some")
    match config.method:
        case "given":
            return _given(frame.select(pl.col(str(config.column)).cast(pl.String)).collect().to_series(), config)
        case "order":
            place = np.arange(count) / max(count, 1)
        case "random":
            place = generator(config.seed, "event split").random(count)
        case "user_order":
            at = _positions(frame.select(str(config.column)).collect().to_series())
            columns = frame.select(user=pl.col(user)).with_row_index("row").collect().with_columns(at.alias("at"))
            ranked = columns.sort("user", "at", "row")
            shares = ranked.select(pl.int_range(pl.len()).over("user") / pl.len().over("user")).to_series()
            place = np.empty(count)
            place[ranked["row"].to_numpy()] = shares.to_numpy()
            place[(at < 0).to_numpy()] = 0.0
        case _:
            assert_never(config.method)
    bounds = np.array([1 - config.valid - config.test, 1 - config.test])
    return np.searchsorted(bounds, place, side="right").astype(np.uint8)


def _positions(column: pl.Series) -> pl.Series:
    """A column that orders events, as numbers."""
    whole = column.to_physical() if column.dtype.is_temporal() else column
    found = whole if whole.dtype.is_integer() else as_numbers(whole)
    bad = (found.is_null() | found.is_nan().fill_null(value=False)).arg_true()
    if len(bad):
        raise DataError(
            f"dataset.split.column {column.name!r} orders a user's events and must have a number, a date or a time in"
            f" every row, but row {bad[0]} has {column[int(bad[0])]!r}; correct it, or use split.method random"
        )
    return found


def _given(names: pl.Series, config: EventSplit) -> npt.NDArray[np.uint8]:
    out = np.full(len(names), 255, np.uint8)
    for code, split in enumerate(SPLITS):
        out[(names == split).fill_null(value=False).to_numpy()] = code
    bad = np.flatnonzero(out == 255)
    if bad.size:
        raise DataError(
            f"column {config.column!r} must be train, valid or test, but row {bad[0]} has {names[int(bad[0])]!r}"
        )
    return out
