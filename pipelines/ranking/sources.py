"""Labelled events from files: a lazy frame in a fixed row order, and the split of each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
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
from pipelines.errors import DataError, did_you_mean
from pipelines.ingest.source import base_path
from pipelines.ranking.frappe import FIELDS as FRAPPE_FIELDS
from pipelines.ranking.frappe import read_frappe
from pipelines.ranking.item_age import item_ages
from pipelines.ranking.next_item import Columns, read_next_item
from recsys.event_batch import EventHistories
from recsys.rng import generator

SPLITS = ("train", "valid", "test")
LABEL = "__label"
CRITEO_NUMERIC = tuple(f"I{i}" for i in range(1, 14))
CRITEO_FIELDS = tuple(f"C{i}" for i in range(1, 27))
DataConfig = FrappeData | TableData | LibfmData | CriteoData | NextItemData


@dataclasses.dataclass(frozen=True)
class Source:
    """Events as read.

    Attributes:
        frame: columns ``__label``, the categorical fields and the numeric columns, in a fixed row order.
        splits: uint8 [E], index into ``SPLITS``.
        fields: categorical columns.
        numeric: numeric columns and how they are encoded.
        facts: of the split, for the report.
        catalogue: every item, train's or not, by the sorted column of the item field; None where train's items are all.
        histories: what users had before the events, in indices of the catalogue.
        ages: float64 [E], see :func:`pipelines.ranking.item_age.item_ages`, and their unit; None without a time.
    """

    frame: pl.LazyFrame
    splits: npt.NDArray[np.uint8]
    fields: tuple[str, ...]
    numeric: dict[str, Numeric]
    facts: dict[str, Any]
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


def find_files(source: str, names: list[str]) -> list[Path]:
    """The files that ``names``, which may be globs, mean in the directory ``source``, or that which it is itself.

    Raises:
        DataError: One is missing.
    """
    root = base_path(source)
    if root.is_file():
        return [root]
    found = [sorted(root.glob(name)) for name in names]
    for name, paths in zip(names, found, strict=True):
        if not paths:
            known = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
            raise DataError(f"source {source!r} has no file {name!r} in {root}; {did_you_mean(name, known)}")
    return [path for paths in found for path in paths]


def read_source(config: DataConfig) -> Source:
    """The events of a configuration.

    Raises:
        DataError: A file or column is missing, or a value cannot be used.
    """
    files = files_of(config)
    match config:
        case FrappeData():
            whole, splits, facts = read_frappe(files[0].parent, config.negatives, config.seed)
            fields = tuple(name for name in whole.columns if name != LABEL)
            return Source(whole.lazy(), splits, fields, {}, facts)
        case LibfmData():
            parts = [_libfm(path, config.fields) for path in files]
            splits = np.repeat(np.arange(3, dtype=np.uint8), [len(part) for part in parts])
            return Source(pl.concat(parts).lazy(), splits, config.fields, {}, {"method": "given", "column": "file"})
        case TableData():
            return _table(config, files)
        case CriteoData():
            frame = _criteo(files)
            splits = _splits(frame, config.split, config.user)
            return Source(frame, splits, CRITEO_FIELDS, numeric_kinds(config), config.split.model_dump(mode="json"))
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


def field_names(config: DataConfig) -> tuple[str, ...]:
    """The categorical fields that the events will have, in their order."""
    fields: tuple[str, ...]
    match config:
        case FrappeData():
            fields = FRAPPE_FIELDS
        case TableData() | LibfmData():
            fields = config.fields
        case CriteoData():
            fields = CRITEO_FIELDS
        case NextItemData():
            fields = (config.user, config.item, *config.columns)
        case _:
            assert_never(config)
    return (*fields, *(name for name, kind in numeric_kinds(config).items() if kind == "log_bucket"))


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
        DataError: A file is gone, or the rows have no key.
    """
    for join in _joins(config):
        lacking = [name for name in join.columns if name not in rows.columns]
        path = base_path(config.source) / join.source
        if not lacking:
            continue
        if not path.is_file() or join.key not in rows.columns:
            raise DataError(f"the rows have no column {lacking[0]!r}, and {path} by {join.key!r} cannot give it")
        other = pl.read_parquet(path, columns=[join.key, *lacking], glob=False)
        keys = rows[join.key].cast(other[join.key].dtype, strict=False)
        rows = rows.with_columns(keys).join(other, on=join.key, how="left", maintain_order="left")
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
    described = items.select(config.item, *config.columns)
    frame = drawn.frame.join(described, on=config.item, how="left", maintain_order="left")
    facts = {
        "method": "given",
        "column": config.split,
        "negatives": f"{config.negatives} for each positive, uniform, never an item that the user had until then",
        "seed": config.seed,
    }
    fields = (config.user, config.item, *config.columns)
    return Source(frame.lazy(), drawn.splits, fields, {}, facts, items, drawn.histories)


def _table(config: TableData, files: list[Path]) -> Source:
    joined = {base_path(config.source) / join.source for join in config.joins}
    frame = scan_files([path for path in files if path not in joined])
    for join in config.joins:
        other = pl.scan_parquet(base_path(config.source) / join.source)
        require_columns(other, (join.key, *join.columns), join.source)
        require_columns(frame, (join.key,), config.events)
        frame = frame.join(other.select(join.key, *join.columns), on=join.key, how="left", maintain_order="left")
    extra = filter(None, (config.split.column, config.time))
    require_columns(frame, (config.label.column, *config.fields, *config.numeric, *extra), config.events)
    label = pl.col(config.label.column)
    if config.label.at_least is not None:
        label = (label >= config.label.at_least).cast(pl.Int8)
    splits = _splits(frame, config.split, config.user)
    ages = None if config.time is None else item_ages(frame, config.item, config.time, splits)
    schema = frame.collect_schema()
    lists = [name for name in config.fields if isinstance(schema[name], pl.List)]
    frame = frame.with_columns(pl.col(name).list.sort().list.join("|") for name in lists)
    frame = frame.select(label.alias(LABEL), *config.fields, *config.numeric)
    facts = config.split.model_dump(mode="json")
    return Source(frame, splits, config.fields, numeric_kinds(config), facts, ages=ages)


def scan_files(files: list[Path]) -> pl.LazyFrame:
    """Parquet, CSV or TSV files of one layout, one after the other.

    Raises:
        DataError: They are of another format.
    """
    suffix = files[0].suffix
    if suffix in (".parquet", ".pq"):
        return pl.scan_parquet(files)
    if suffix in (".csv", ".tsv"):
        return pl.scan_csv(files, separator="\t" if suffix == ".tsv" else ",")
    raise DataError(f"{files[0]}: events must be .parquet, .csv or .tsv, got {suffix!r}")


def _criteo(files: list[Path]) -> pl.LazyFrame:
    names = ("label", *CRITEO_NUMERIC, *CRITEO_FIELDS)
    if files[0].suffix in (".parquet", ".pq"):
        frame = pl.scan_parquet(files)
        require_columns(frame, names, files[0].name)
    else:
        kinds = [pl.Int8, *[pl.Float64] * len(CRITEO_NUMERIC), *[pl.String] * len(CRITEO_FIELDS)]
        schema = dict(zip(names, kinds, strict=True))
        frame = pl.scan_csv(files, separator="\t", has_header=False, schema=schema, quote_char=None)
    return frame.select(pl.col("label").alias(LABEL), *CRITEO_NUMERIC, *CRITEO_FIELDS)


def _libfm(path: Path, fields: tuple[str, ...]) -> pl.DataFrame:
    labels, rows = [], []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            label, *tokens = line.split()
            if len(tokens) != len(fields) or not all(token.endswith(":1") for token in tokens):
                raise DataError(
                    f"{path}, line {number}: required are a label and {len(fields)} features `index:1`, one for each of"
                    f" the fields {', '.join(fields)}, got {line.strip()[:80]!r}"
                )
            labels.append("0" if label == "-1" else label)
            rows.append([token[:-2] for token in tokens])
    values = {LABEL: labels} | {name: [row[place] for row in rows] for place, name in enumerate(fields)}
    return pl.DataFrame(values, schema={LABEL: pl.String} | dict.fromkeys(fields, pl.String))


def _splits(frame: pl.LazyFrame, config: EventSplit, user: str) -> npt.NDArray[np.uint8]:
    """Uint8 [E]: the split of each row."""
    count = int(frame.select(pl.len()).collect().item())
    match config.method:
        case "given":
            return _given(frame.select(pl.col(str(config.column)).cast(pl.String)).collect().to_series(), config)
        case "order":
            place = np.arange(count) / max(count, 1)
        case "random":
            place = generator(config.seed, "event split").random(count)
        case "user_order":
            columns = frame.select(user, str(config.column)).with_row_index("row").collect()
            ranked = columns.sort(user, str(config.column), "row")
            shares = ranked.select(pl.int_range(pl.len()).over(user) / pl.len().over(user)).to_series()
            place = np.empty(count)
            place[ranked["row"].to_numpy()] = shares.to_numpy()
            place[(columns[str(config.column)] < 0).to_numpy()] = 0.0
        case _:
            assert_never(config.method)
    bounds = np.array([1 - config.valid - config.test, 1 - config.test])
    return np.searchsorted(bounds, place, side="right").astype(np.uint8)


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


def require_columns(frame: pl.LazyFrame, names: Iterable[str], file: str) -> None:
    """Raise DataError unless a frame, read from ``file``, has the columns."""
    known = frame.collect_schema().names()
    for name in names:
        if name not in known:
            raise DataError(f"{file} has no column {name!r}; {did_you_mean(name, known)}")
