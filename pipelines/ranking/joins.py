"""Columns of a Parquet file beside the events, by a key that it names once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipelines.config_ranking import Join
from pipelines.errors import DataError
from pipelines.ingest.readers import parquet_schema
from pipelines.ranking.files import require_columns
from pipelines.ranking.reserved import KEY


def join_file(rows: pl.LazyFrame, path: Path, key: str, columns: Sequence[str]) -> pl.LazyFrame:
    """``rows`` with the ``columns`` of the file by ``key``, which keeps in the rows the type that it has there.

    Raises:
        DataError: The file is damaged, lacks a column, or has a key twice; missing keys match nothing.
    """
    schema = parquet_schema(path, str(path))
    other = pl.scan_parquet(path, glob=False)
    require_columns(other, (key, *columns), str(path))
    _require_once(other, path, key)
    found = rows.with_columns(pl.col(key).cast(schema[key], strict=False).alias(KEY)).join(
        other.select(pl.col(key).alias(KEY), *columns), on=KEY, how="left", maintain_order="left"
    )
    return found.drop(KEY)


def _require_once(other: pl.LazyFrame, path: Path, key: str) -> None:
    keys = other.select(pl.col(key).alias(KEY)).with_row_index()
    again = keys.filter(pl.col(KEY).is_not_null() & ~pl.col(KEY).is_first_distinct()).head(1).collect()
    if len(again):
        row, value = again.row(0)
        raise DataError(
            f"{path}: column {key!r}, the key of a join, must have each value once, but row {row} has {value!r} again;"
            " keep one row of each, or events would be repeated"
        )


def refused_columns(known: Sequence[str], joins: Sequence[Join]) -> list[tuple[tuple[int, int], str]]:
    """Joined columns whose name is taken, by ``known`` of the events or an earlier join: their places, and messages."""
    owners, found = dict.fromkeys(known, "the events have"), []
    for place, join in enumerate(joins):
        for index, name in enumerate(join.columns):
            if name in owners:
                told = f"{owners[name]} a column {name!r} already, so that the one of {join.source} would be ignored"
                found.append(((place, index), f"{told}; rename one of them, or remove it from the join"))
            owners.setdefault(name, f"the join of {join.source} gives")
    return found
