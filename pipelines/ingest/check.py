"""Cells become numbers, or bad rows with a reason: one fast test of typed columns, one exact test of text."""

from __future__ import annotations

import collections
import json

import polars as pl

from pipelines.errors import DataError
from pipelines.ingest.plan import MISSING, Field, Plan

MAX_SECONDS = 9_999_999_999
SPLIT_CODES = {"train": 0, "0": 0, "valid": 1, "val": 1, "validation": 1, "dev": 1, "1": 1, "test": 2, "2": 2}
DTYPES: dict[str, type[pl.DataType]] = {
    "rating": pl.Float32,
    "timestamp": pl.Int64,
    "position": pl.Int32,
    "split": pl.UInt8,
}
ISO_FORMATS = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")
BAD_SCHEMA = {
    "file": pl.String, "row": pl.Int64, "line": pl.Int64, "column": pl.String, "value": pl.String,
    "reason": pl.String, "raw": pl.String,
}  # fmt: skip

PLACE_SCHEMA = {"row": pl.Int64, "line": pl.Int64}
"""Where rows stand in their file, 1-based; line may be null."""


class BadRows:
    """Rows that cannot be used, counted by reason; kept only when they go to quarantine."""

    def __init__(self, *, quarantine: bool) -> None:
        self.quarantine = quarantine
        self.counts: collections.Counter[str] = collections.Counter()
        self.frames: list[pl.DataFrame] = []
        self.first: str | None = None

    def add(self, bad: pl.DataFrame) -> None:
        """Take rows of the columns ``BAD_SCHEMA``, in the order of the file."""
        if not bad.height:
            return
        self.counts.update(bad["reason"].to_list())
        if self.first is None:
            row = bad.row(0, named=True)
            line = f" (line {row['line']})" if row["line"] is not None else ""
            column = f", column {row['column']!r}" if row["column"] is not None else ""
            shown = "" if row["value"] is None else f" {row['value'][:80]!r}"
            self.first = f"{row['file']}, row {row['row']}{line}{column}: value{shown} {row['reason']}"
        if self.quarantine:
            self.frames.append(bad.select(pl.col(name).cast(dtype) for name, dtype in BAD_SCHEMA.items()))

    def raise_if_any(self) -> None:
        """Raise DataError with the first bad cell and the totals by reason, unless rows go to quarantine."""
        if self.first is None or self.quarantine:
            return
        totals = "; ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common())
        raise DataError(
            f"{self.first}. Bad rows in all: {sum(self.counts.values()):,} ({totals})."
            " Mend the file, or set `on_error: quarantine` to set bad rows aside and go on"
            + ("; ids that are not all integers: `id_type: string`" if "is not an integer" in self.counts else "")
        )

    def frame(self) -> pl.DataFrame:
        """All bad rows; empty unless they go to quarantine."""
        return pl.concat(self.frames) if self.frames else pl.DataFrame(schema=BAD_SCHEMA)


def fast(frame: pl.DataFrame, plan: Plan) -> pl.DataFrame | None:
    """Canonical columns of a typed batch whose every cell is good, else None: then :func:`exact` says what is wrong.

    Args:
        frame: one column by canonical name for each field of the plan.
        plan: kinds of the columns.
    """
    columns: list[pl.Series] = []
    for name, field in plan.fields.items():
        series = _fast_column(frame[name], name, field, plan)
        if series is None or series.null_count():
            return None
        columns.append(series)
    return pl.DataFrame(columns)


def _fast_column(series: pl.Series, name: str, field: Field, plan: Plan) -> pl.Series | None:
    """Canonical values of a typed column; None, or a series with nulls, where a cell is bad."""
    dtype, good = series.dtype, None
    match field.kind:
        case "integer" if dtype.is_integer():
            good = series.cast(pl.Int64, strict=False)
        case "string" if not dtype.is_float():
            good = series.cast(pl.String)
        case "float" if dtype.is_numeric() and (number := series.cast(pl.Float32)).is_finite().all():
            good = number
        case "timestamp" | "float_timestamp" if dtype.is_temporal():
            good = _in_range(series.cast(pl.Datetime("us")).dt.epoch("s"), MAX_SECONDS)
        case "timestamp" | "float_timestamp" if dtype.is_float():
            good = _in_range((series / plan.divisor).floor().cast(pl.Int64, strict=False), MAX_SECONDS, plan.earliest)
        case "timestamp" | "float_timestamp" if dtype.is_integer():
            whole = series.cast(pl.Int64, strict=False)
            good = _in_range(whole if plan.divisor == 1 else whole // plan.divisor, MAX_SECONDS, plan.earliest)
        case "position" if dtype.is_integer():
            good = _in_range(series.cast(pl.Int64, strict=False), 2**31 - 1)
        case "iso" | "split":
            value = pl.select(_value(pl.lit(series.cast(pl.String)), field, plan.divisor)).to_series()
            good = _in_range(value.cast(pl.Int64), MAX_SECONDS)
    return None if good is None else good.cast(DTYPES.get(name, good.dtype)).alias(name)


def _in_range(series: pl.Series, high: int, earliest: int = 0) -> pl.Series | None:
    good = series.is_between(earliest, high)
    return series if (good | (series == 0) if earliest else good).all() else None


def exact(text: pl.DataFrame, plan: Plan, file: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Good rows in canonical types, and bad rows with the first bad cell of each.

    Args:
        text: a String column by canonical name for each field; ``row`` and ``line`` (1-based; line may be null); and
            ``problem``, ``problem_column``, ``problem_value`` of rows that could not even be cut into cells, or null.
        plan: kinds of the columns.
        file: name for messages.
    """
    values = text.with_columns(
        _value(pl.col(name), field, plan.divisor).alias(f"{name}!") for name, field in plan.fields.items()
    )
    reasons = {
        name: _reason(pl.col(name), pl.col(f"{name}!"), field, plan.earliest) for name, field in plan.fields.items()
    }
    values = values.with_columns(expression.alias(f"{name}?") for name, expression in reasons.items())
    found = pl.coalesce("problem", *(f"{name}?" for name in plan.fields))
    column = value = pl.lit(None, dtype=pl.String)
    for name, field in reversed(plan.fields.items()):
        column = pl.when(pl.col(f"{name}?").is_not_null()).then(pl.lit(field.column)).otherwise(column)
        value = pl.when(pl.col(f"{name}?").is_not_null()).then(pl.col(name)).otherwise(value)
    column = pl.when(pl.col("problem").is_not_null()).then(pl.col("problem_column")).otherwise(column)
    value = pl.when(pl.col("problem").is_not_null()).then(pl.col("problem_value")).otherwise(value)
    values = values.with_columns(found.alias("reason"), column.alias("column"), value.alias("value"))
    good = values.filter(pl.col("reason").is_null()).select(
        pl.col(f"{name}!").cast(DTYPES.get(name, pl.Int64 if field.kind == "integer" else pl.String)).alias(name)
        for name, field in plan.fields.items()
    )
    bad = values.filter(pl.col("reason").is_not_null())
    raw = [
        json.dumps(dict(zip(plan.columns, cells, strict=True)), ensure_ascii=False)
        for cells in bad.select(list(plan.fields)).iter_rows()
    ]
    return good, bad.with_columns(pl.lit(file).alias("file"), pl.Series("raw", raw, dtype=pl.String)).select(
        list(BAD_SCHEMA)
    )


def _value(text: pl.Expr, field: Field, divisor: int) -> pl.Expr:
    """Value of a text cell, null where it is bad."""
    bare = text.str.strip_chars()
    match field.kind:
        case "integer" | "position":
            return bare.cast(pl.Int64, strict=False)
        case "string":
            return text
        case "float":
            return bare.cast(pl.Float64, strict=False).cast(pl.Float32)
        case "timestamp" | "float_timestamp":
            whole = bare.cast(pl.Int64, strict=False) // divisor
            number = bare.cast(pl.Float64, strict=False)
            real = (number / divisor).floor().cast(pl.Int64, strict=False)
            return pl.coalesce(whole, pl.when(number.is_finite()).then(real))
        case "iso":
            local = [bare.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("s") for form in ISO_FORMATS]
            zoned = [
                bare.str.replace(" ", "T", literal=True)
                .str.to_datetime(form + "%#z", strict=False, time_unit="us", time_zone="UTC")
                .dt.epoch("s")
                for form in ISO_FORMATS[::2]
            ]
            day = bare.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")).dt.epoch("s")
            return pl.coalesce(*local, day, *zoned)
        case "split":
            return bare.str.to_lowercase().replace_strict(SPLIT_CODES, default=None, return_dtype=pl.UInt8)


def _reason(text: pl.Expr, value: pl.Expr, field: Field, earliest: int) -> pl.Expr:
    """Why a text cell is bad, null where it is good."""
    bare = text.str.strip_chars()
    missing = pl.when(text.is_null() | bare.str.to_lowercase().is_in(MISSING)).then(pl.lit("is missing"))
    number = bare.str.contains(r"^[+-]?[0-9]+$")
    match field.kind:
        case "integer":
            far = missing.when(value.is_null() & number).then(pl.lit("is outside the 64-bit integers"))
            return far.when(value.is_null()).then(pl.lit("is not an integer"))
        case "string":
            return missing.otherwise(pl.lit(None, dtype=pl.String))
        case "float":
            unread = missing.when(value.is_null()).then(pl.lit("is not a number"))
            return unread.when(value.is_infinite() | value.is_nan()).then(pl.lit("is not a finite number"))
        case "position":
            unread = missing.when(value.is_null()).then(pl.lit("is not an integer"))
            return unread.when((value < 0) | (value >= 2**31)).then(pl.lit("is not a position in 0..2^31-1"))
        case "split":
            return missing.when(value.is_null()).then(pl.lit("is not a split (train, valid or test)"))
        case "timestamp" | "float_timestamp" | "iso":
            what = "an ISO 8601 time" if field.kind == "iso" else "a timestamp"
            late = value.is_null() & bare.cast(pl.Float64, strict=False).is_not_null()
            unread = missing.when(late & pl.lit(field.kind != "iso")).then(pl.lit("is a timestamp out of range"))
            unread = unread.when(value.is_null()).then(pl.lit(f"is not {what}"))
            early = unread.when(value < 0).then(pl.lit("is a negative timestamp (before 1970)"))
            if earliest and field.kind != "iso":
                other = "is a timestamp in another unit than the others (if not, set `timestamp_unit`)"
                early = early.when((value > 0) & (value < earliest)).then(pl.lit(other))
            return early.when(value > MAX_SECONDS).then(pl.lit("is a timestamp out of range (after 2286; wrong unit?)"))
