"""Columns as numbers, whatever they are written as; what is none is told with its column, row and value."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from pipelines.errors import DataError

Told = Callable[[int], str]
"""Row or event, by its number -> where it is, in words for messages."""
_WORDS = {"true": "1", "false": "0"}


def as_numbers(column: pl.Series) -> pl.Series:
    """Float64, null where a value is no number; ``true`` and ``false`` are 1 and 0."""
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        return pl.Series(column.name, [None] * len(column), pl.Float64)
    found = column.cast(pl.Float64, strict=False)
    if column.dtype == pl.String and found.null_count() > column.null_count():
        found = column.str.strip_chars().str.to_lowercase().replace(_WORDS).cast(pl.Float64, strict=False)
    return found


def finite_numbers(column: pl.Series, told: Told = "row {}".format) -> pl.Series:
    """Float64 of a column; missing values are null or NaN. ``told`` puts the place of a row into words.

    Raises:
        DataError: A value is no number, or infinite.
    """
    found = as_numbers(column)
    bad = ((found.is_null() & column.is_not_null()) | found.is_infinite().fill_null(value=False)).arg_true()
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"column {column.name!r} must have finite numbers, but {told(row)} has {column[row]!r}; correct it,"
            " or leave it empty"
        )
    return found
