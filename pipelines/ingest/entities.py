"""Users and items files: titles and features of the entities that have interactions, in index order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from pipelines import config
from pipelines.errors import DataError, did_you_mean
from pipelines.ingest.check import BadRows
from pipelines.ingest.entity_rows import Rows, usable
from pipelines.ingest.plan import decoded
from pipelines.ingest.readers import collect_parquet, jsonl_whole, parquet_schema, places_of
from pipelines.ingest.source import SUFFIXES, Source
from pipelines.ingest.text import TextFile

LOG = logging.getLogger(__name__)
Side = Literal["user", "item"]
RECBOLE_KINDS: dict[str, config.FeatureKind] = {
    "token": "categorical", "token_seq": "list", "float": "numeric", "float_seq": "list",
}  # fmt: skip
TITLES = ("title", "name")
TAKEN = ("raw_id", "title")


def entity_table(
    side: Side, raw_ids: pl.Series, settings: config.Entities | None, source: Source, bad: BadRows
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Row i describes entity i.

    Args:
        side: for messages.
        raw_ids: raw id by index.
        settings: the file and its columns; None makes a table of ids alone (a RecBole source finds its own file).
        source: directory of the file.
        bad: takes malformed rows where they go to quarantine; such an entity is as one that the file lacks.

    Returns:
        ``raw_id``, ``title`` if there is one, the features; and facts: file, entities without a row, unused rows, the
        kind of each feature.

    Raises:
        DataError: The file or a column is missing, a cell is of the wrong type, or two rows describe one entity.
    """
    ids = raw_ids.alias("raw_id").to_frame()
    settings = settings or _recbole(side, source)
    if settings is None:
        return ids, {}
    path = source.root / settings.source
    if not path.is_file():
        near = did_you_mean(settings.source, sorted(p.name for p in source.root.iterdir()))
        raise DataError(f"{side}s.source {settings.source!r} is not in {source.root}; {near}")
    own = BadRows(quarantine=bad.quarantine)
    frame, places = read_whole(path, settings.columns_without_header, own)
    key = _column(path, f"{side}s.id", settings.id, frame.columns)
    title = settings.title or next((name for name in TITLES if name in frame.columns), None)
    if title is not None:
        _column(path, f"{side}s.title", title, frame.columns)
    for name, what in ((key, "id"), (title, "title")):
        if name is not None:
            _single(path, frame, name, what)
    used = list(dict.fromkeys(name for name in (key, title, *settings.features) if name in frame.columns))
    frame = decoded(path.name, frame, used)
    if taken := settings.features.keys() & set(TAKEN):
        raise DataError(f"{side}s.features: {min(taken)!r} is a column that every table has; leave it out")
    for name, kind in settings.features.items():
        _column(path, f"{side}s.features", name, frame.columns)
        if kind != "list":
            _single(path, frame, name, f"{kind} feature")
    ids_text = frame.select(_id_text(frame, key, raw_ids).alias("raw_id")).to_series()
    rows = usable(Rows(path.name, key, frame.select(used), places, ids_text), settings.features, own)
    table = rows.frame.select(
        rows.ids,
        *([pl.col(title).cast(pl.String).alias("title")] if title is not None else []),
        *(_feature(path, frame, name, kind) for name, kind in settings.features.items()),
    )
    joined = ids.join(table, on="raw_id", how="left", maintain_order="left")
    without = int(ids.join(table, on="raw_id", how="anti").height)
    if without == ids.height:
        first, theirs = (", ".join(map(repr, column.head(3).to_list())) for column in (table["raw_id"], raw_ids))
        raise DataError(
            f"{path.name}, column {key!r}: no id is that of any {side} with interactions; the file's first ids are"
            f" {first or 'none'}, the interactions' first are {theirs}; set `{side}s.id` to the column of the same ids"
            + (f"; {sum(own.counts.values()):,} rows are bad: {own.first}" if own.first else "")
        )
    bad.add(own.frame())
    unused = table.height - (ids.height - without)
    return joined, {"file": path.name, "without_row": without, "unused_rows": unused, "features": settings.features}


def _recbole(side: Side, source: Source) -> config.Entities | None:
    if source.format != "recbole":
        return None
    files = sorted(source.root.glob(f"*.{side}"))
    if not files:
        return None
    types = TextFile(files[0], "recbole").types
    key = next(iter(types))
    features = {name: RECBOLE_KINDS[kind] for name, kind in types.items() if name not in {key, *TAKEN}}
    return config.Entities(source=files[0].name, id=key, features=features)


def read_whole(path: Path, names: Sequence[str] | None, bad: BadRows) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of a file, typed for Parquet and JSONL and as text for the others, and their places in it.

    Raises:
        DataError: The file is damaged or of an unknown kind, or has a row that is none (with quarantine: for ``bad``).
    """
    suffix = path.suffix.lower()
    kind = "recbole" if suffix in {".user", ".item"} else SUFFIXES.get(suffix)
    match kind:
        case "parquet":
            parquet_schema(path)
            frame = collect_parquet(path.name, pl.scan_parquet(path, glob=False))
            return frame, places_of(frame)
        case "jsonl":
            return jsonl_whole(path, bad)
        case "csv" | "tsv" | "recbole":
            return TextFile(path, kind, names).whole(bad)
        case _:
            raise DataError(f"{path.name}: users and items files are parquet, csv, tsv, jsonl, .user or .item")


def _column(path: Path, setting: str, name: str, columns: Sequence[str]) -> str:
    if name not in columns:
        raise DataError(f"{path.name}: there is no column {name!r} for {setting}; {did_you_mean(name, columns)}")
    return name


def _id_text(frame: pl.DataFrame, key: str, known: pl.Series) -> pl.Expr:
    """Ids as text; one that no event has as it stands is read without the blanks around it, as integer ids are."""
    text = pl.col(key).cast(pl.String)
    if frame.schema[key].is_float():
        text = text.str.replace(r"\.0$", "")
    return pl.when(text.is_in(known.implode())).then(text).otherwise(text.str.strip_chars())


def _feature(path: Path, frame: pl.DataFrame, name: str, kind: config.FeatureKind) -> pl.Expr:
    column, dtype = pl.col(name), frame.schema[name]
    match kind:
        case "numeric":
            return column.cast(pl.Float64, strict=False)
        case "list":
            if dtype == pl.String:
                separator = " " if path.suffix in {".user", ".item"} else "|"
                return column.str.split(separator).list.eval(pl.element().filter(pl.element() != ""))
            if not isinstance(dtype, pl.List):
                raise DataError(
                    f"{path.name}, column {name!r}: a list feature needs lists, or text with | between, got {dtype}"
                )
            return column
        case "categorical" | "text":
            return column.cast(pl.String)


def _single(path: Path, frame: pl.DataFrame, name: str, what: str) -> None:
    if frame.schema[name].is_nested():
        raise DataError(f"{path.name}, column {name!r}: the {what} needs one value a row, got {frame.schema[name]}")
