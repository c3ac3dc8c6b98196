"""Which source column is what, and of which kind, decided once from the first rows."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import Literal

import polars as pl

from pipelines import config
from pipelines.errors import DataError, did_you_mean

LOG = logging.getLogger(__name__)
Kind = Literal["integer", "string", "float", "timestamp", "float_timestamp", "iso", "position", "split"]
NAMES = ("user", "item", "rating", "timestamp", "position", "split")
ALIASES: dict[str, tuple[str, ...]] = {
    "user": ("user_id", "user", "userid", "uid", "user_idx", "visitorid", "customer_id", "reviewerid", "session_id"),
    "item": (
        "item_id", "item", "itemid", "iid", "item_idx", "movie_id", "movieid", "product_id", "business_id", "asin",
        "parent_asin", "artist_id", "track_id", "book_id", "location_id",
    ),
    "rating": ("rating", "ratings"),
    "timestamp": ("timestamp", "unixreviewtime"),
    "position": ("position", "pos"),
    "split": ("split",),
}  # fmt: skip
MISSING = ("", "nan", "null", "none", "na", "n/a")
INTEGER = re.compile(r"^-?(0|[1-9][0-9]*)$")
ZEROS = re.compile(r"^0[0-9]+$")
EARLIEST = 10**7
"""Seconds; where the unit is told from the values, a time in the first months of 1970 is one of a coarser unit."""
DIVISORS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclasses.dataclass(frozen=True)
class Field:
    """A source column and how its cells are read."""

    column: str
    kind: Kind


@dataclasses.dataclass(frozen=True)
class Plan:
    """Canonical name -> field.

    ``divisor`` turns numeric timestamps into seconds. Those in (0, ``earliest``) were written in another unit.
    """

    fields: dict[str, Field]
    divisor: int = 1
    earliest: int = 0

    @property
    def columns(self) -> list[str]:
        """Source columns, in canonical order."""
        return [field.column for field in self.fields.values()]


def make_plan(file: str, sample: pl.DataFrame, settings: config.Dataset) -> Plan:
    """Match columns by the configured names, else by usual ones, and tell kinds from the first rows.

    Args:
        file: name for messages.
        sample: first rows of the first file, as text or typed.
        settings: the dataset's section of the configuration.

    Raises:
        DataError: A column is missing or cannot be used.
    """
    fields: dict[str, Field] = {}
    divisor = 1
    for name in NAMES:
        column = _column(file, name, sample.columns, settings)
        if column is None:
            continue
        values = decoded(file, sample, [column])[column]
        if name not in {"user", "item"} and (values.dtype.is_nested() or values.dtype in (pl.Time, pl.Duration)):
            raise DataError(f"{file}, column {column!r}: a {name} is a single value, the column is {values.dtype}")
        match name:
            case "user" | "item":
                kind: Kind = _id_kind(file, column, values, settings.id_type)
            case "rating":
                kind = "float"
            case "timestamp":
                kind, divisor = _timestamp_kind(values, settings.timestamp_unit)
            case "position":
                kind = "position"
            case _:
                kind = "split"
        fields[name] = Field(column, kind)
    guessed = settings.timestamp_unit == "auto" and divisor > 1
    return Plan(fields, divisor, EARLIEST if guessed else 0)


def decoded(file: str, frame: pl.DataFrame, columns: Sequence[str], first_row: int = 1) -> pl.DataFrame:
    """The frame with the binary ones of some columns as text.

    Raises:
        DataError: The bytes of a cell are not UTF-8.
    """
    for name in columns:
        if frame.schema[name] == pl.Binary:
            try:
                frame = frame.with_columns(pl.col(name).cast(pl.String))
            except pl.exceptions.ComputeError as error:
                bad = next(row for row, cell in enumerate(frame[name]) if not _is_text(cell))
                raise DataError(
                    f"{file}, row {first_row + bad}, column {name!r}: value {frame[name][bad][:20]!r} is binary and not"
                    " UTF-8; write the column as text or numbers"
                ) from error
    return frame


def _is_text(cell: bytes | None) -> bool:
    try:
        (cell or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _column(file: str, name: str, columns: Sequence[str], settings: config.Dataset) -> str | None:
    wanted: str | None = getattr(settings.columns, name)
    if wanted in columns:
        return wanted
    default = config.Columns.model_fields[name].default
    if wanted == default:
        folded = {column.lower(): column for column in reversed(columns)}
        for alias in ALIASES[name]:
            if alias in folded:
                LOG.info("%s: column %r is taken as %s", file, folded[alias], name)
                return folded[alias]
    if wanted is not None:
        known, near = ", ".join(columns[:20]), did_you_mean(str(wanted), columns)
        raise DataError(
            f"{file}: there is no column {wanted!r} for the {name}{f'; {near}' if near.endswith('?') else '.'}"
            f" Set `columns.{name}` to one of the file's columns: {known}{_headless(columns, settings)}"
        )
    return None


def _headless(columns: Sequence[str], settings: config.Dataset) -> str:
    """Advice where the first line looks like an event, or like cells that were not cut."""
    if len(columns) == 1 and (mark := next((mark for mark in "\t,;|" if mark in columns[0]), None)):
        return f". Its only column has {mark!r} in its name; is `format` (csv, tsv) the right one?"
    if settings.columns_without_header is not None or not any(INTEGER.match(column) for column in columns):
        return ""
    return ". If the first line is an event, name the columns: columns_without_header: [user_id, item_id, ...]"


def _id_kind(file: str, column: str, values: pl.Series, wanted: str) -> Kind:
    if values.dtype.is_nested() or values.dtype == pl.Boolean:
        raise DataError(f"{file}, column {column!r}: ids must be integers or strings, the column is {values.dtype}")
    if wanted != "auto":
        return "integer" if wanted == "integer" else "string"
    if values.dtype.is_integer() or values.dtype.is_float():
        return "integer"
    present = [text for text in values.cast(pl.String).to_list() if text is not None and text.lower() not in MISSING]
    whole = sum(bool(INTEGER.match(text.strip())) for text in present)
    if values.dtype == pl.String and whole < len(present) and whole > 0.5 * len(present):
        zeros = any(ZEROS.match(text) for text in present)
        return "string" if zeros else "integer"
    return "integer" if present and whole == len(present) else "string"


def _timestamp_kind(values: pl.Series, unit: str) -> tuple[Kind, int]:
    if values.dtype.is_temporal():
        return "timestamp", 1
    present = (values.str.strip_chars() if values.dtype == pl.String else values).drop_nulls()
    numbers = present.cast(pl.Float64, strict=False).drop_nulls().abs()
    if unit == "iso" or (unit == "auto" and values.dtype == pl.String and 2 * len(numbers) < len(present)):
        return "iso", 1
    whole = values.dtype.is_integer() or 2 * present.cast(pl.Int64, strict=False).count() >= len(present)
    kind: Kind = "timestamp" if whole and not values.dtype.is_float() else "float_timestamp"
    if unit != "auto":
        return kind, DIVISORS[unit]
    middle = numbers.filter(numbers.is_finite()).median()
    size = float(middle) if isinstance(middle, (int, float)) else 0.0
    return kind, next((10**power for power in (0, 3, 6) if size < 10 ** (10 + power)), 10**9)
