"""Rows of users and items files that cannot be used: an error, or put aside where rows go to quarantine."""

from __future__ import annotations

import dataclasses
import json

import polars as pl

from pipelines import config
from pipelines.errors import DataError
from pipelines.ingest.check import BAD_SCHEMA, BadRows


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a file: the columns in use, the places (``PLACE_SCHEMA``), and the raw ids in column ``key`` as text."""

    file: str
    key: str
    frame: pl.DataFrame
    places: pl.DataFrame
    ids: pl.Series


def usable(rows: Rows, features: dict[str, config.FeatureKind], bad: BadRows) -> Rows:
    """The rows with numbers in numeric features and an id that no earlier row has; the others go to ``bad``.

    Raises:
        DataError: There are others, and rows do not go to quarantine.
    """
    numeric = [name for name, kind in features.items() if kind == "numeric"]
    if not bad.quarantine:
        for name in numeric:
            _check_numbers(rows.file, rows.frame[name])
        _check_ids(rows.file, rows.key, rows.ids)
        return rows
    faults: dict[int, tuple[str, str]] = {}
    for name in numeric:
        for row in _no_numbers(rows.frame[name]):
            faults.setdefault(row, (name, "is not a number"))
    for row in _missing(rows.ids):
        faults.setdefault(row, (rows.key, "is missing"))
    good = pl.Series([row not in faults for row in range(len(rows.ids))], dtype=pl.Boolean)
    again = rows.ids.to_frame("id").with_row_index("row").filter(good).filter(~pl.col("id").is_first_distinct())
    for row in again["row"]:
        faults[row] = (rows.key, "was described in an earlier row already")
    if not faults:
        return rows
    _put_aside(rows, faults, bad)
    good = pl.Series([row not in faults for row in range(len(rows.ids))], dtype=pl.Boolean)
    return dataclasses.replace(
        rows, frame=rows.frame.filter(good), places=rows.places.filter(good), ids=rows.ids.filter(good)
    )


def _put_aside(rows: Rows, faults: dict[int, tuple[str, str]], bad: BadRows) -> None:
    """Give ``bad`` the rows of ``faults`` (column and reason by index), in the order of the file."""
    wrong: list[tuple[str | int | None, ...]] = []
    for index in sorted(faults):
        column, reason = faults[index]
        row, line = rows.places.row(index)
        cells = rows.frame.row(index, named=True)
        value = None if cells[column] is None else str(cells[column])
        wrong.append((rows.file, row, line, column, value, reason, json.dumps(cells, ensure_ascii=False, default=str)))
    bad.add(pl.DataFrame(wrong, schema=BAD_SCHEMA, orient="row"))


def _no_numbers(column: pl.Series) -> pl.Series:
    """Indices of cells that are neither empty nor a number."""
    number = column.cast(pl.Float64, strict=False)
    return (number.is_null() & column.is_not_null() & (column.cast(pl.String) != "")).arg_true()


def _check_numbers(file: str, column: pl.Series) -> None:
    bad = _no_numbers(column)
    if len(bad):
        raise DataError(
            f"{file}, row {bad[0] + 1}, column {column.name!r}: value {column[bad[0]]!r} is not a number"
            f" ({len(bad):,} such rows); make the feature categorical or text, or mend the file"
        )


def _missing(ids: pl.Series) -> pl.Series:
    return (ids.is_null() | (ids == "")).fill_null(value=True).arg_true()


def _check_ids(file: str, key: str, ids: pl.Series) -> None:
    missing = _missing(ids)
    if len(missing):
        raise DataError(f"{file}, row {missing[0] + 1}, column {key!r}: the id is missing ({len(missing):,} such rows)")
    if ids.n_unique() < len(ids):
        again = (~ids.is_first_distinct()).arg_true()
        row = int(again[0])
        first = int((ids == ids[row]).arg_true()[0])
        raise DataError(
            f"{file}, row {row + 1}, column {key!r}: value {ids[row]!r} was described in row {first + 1} already"
            f" ({len(again):,} duplicate rows); keep one row for each id"
        )
