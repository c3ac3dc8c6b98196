"""Parquet, JSONL and LightGCN adjacency files as canonical frames."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.errors import DataError
from pipelines.ingest.check import BAD_SCHEMA, PLACE_SCHEMA, BadRows, exact, fast
from pipelines.ingest.plan import Plan, decoded

PARQUET_ROWS = 4 << 20
LINES = 500_000
DAMAGED = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What polars raises for a damaged Parquet file; a panic is no ``Exception``."""
Advance = Callable[[int], None]
NO_PROBLEM = [pl.lit(None, dtype=pl.String).alias(name) for name in ("problem", "problem_column", "problem_value")]


def parquet_schema(path: Path, called: str | None = None) -> dict[str, pl.DataType]:
    """Columns and types of a Parquet file; ``called`` is its name for messages.

    Raises:
        DataError: It is not a complete Parquet file.
    """
    try:
        return dict(pl.scan_parquet(path, glob=False).collect_schema())
    except DAMAGED as error:
        raise DataError(
            f"{called or path.name}: not a complete Parquet file ({path.stat().st_size:,} bytes; {_short(error)}); it"
            " may have been cut off while it was copied: fetch it again"
        ) from error


def parquet_sample(path: Path, file: str) -> pl.DataFrame:
    """First rows of a Parquet file, typed; ``file`` is its name for messages."""
    parquet_schema(path, file)
    return collect_parquet(file, pl.scan_parquet(path, glob=False).head(1000))


def collect_parquet(file: str, scan: pl.LazyFrame) -> pl.DataFrame:
    """What a scan of a Parquet file gives; ``file`` is its name for messages.

    Raises:
        DataError: The file is damaged.
    """
    try:
        return scan.collect()
    except DAMAGED as error:
        raise DataError(f"{file}: damaged Parquet file ({_short(error)}); fetch it again") from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


def read_parquet(path: Path, file: str, plan: Plan, bad: BadRows, advance: Advance) -> Iterator[pl.DataFrame]:
    """Canonical frames of the good rows of a Parquet file, named ``file`` in messages; bad rows go to ``bad``.

    Raises:
        DataError: The file is damaged, or lacks a column of the plan.
    """
    schema = parquet_schema(path, file)
    for column in plan.columns:
        if column not in schema:
            raise DataError(f"{file}: column {column!r} is missing, other files of the source have it")
        if schema[column].is_nested():
            raise DataError(f"{file}, column {column!r}: needs one value a row, the column is {schema[column]}")
    names = {field.column: name for name, field in plan.fields.items()}
    scan = pl.scan_parquet(path, glob=False).select(plan.columns)
    rows = collect_parquet(file, pl.scan_parquet(path, glob=False).select(pl.len())).item()
    size = path.stat().st_size
    for start in range(0, rows, PARQUET_ROWS):
        batch = collect_parquet(file, scan.slice(start, PARQUET_ROWS))
        batch = decoded(file, batch, plan.columns, start + 1).rename(names)
        frame = fast(batch, plan)
        if frame is None:
            text = batch.select(_as_text(name, dtype) for name, dtype in batch.schema.items())
            text = text.with_row_index("row", start + 1).with_columns(
                pl.lit(None, dtype=pl.Int64).alias("line"), *NO_PROBLEM
            )
            frame, wrong = exact(text.with_columns(pl.col("row").cast(pl.Int64)), plan, file)
            bad.add(wrong)
        advance(size * batch.height // rows)
        yield frame


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if dtype.is_temporal():
        return column.cast(pl.Datetime("us")).dt.epoch("s").cast(pl.String)
    if dtype.is_float():
        return column.cast(pl.String).str.replace(r"\.0$", "")
    return column.cast(pl.String, strict=False)


def jsonl_sample(path: Path, file: str) -> pl.DataFrame:
    """First rows of a JSONL file as text, named ``file`` in messages; the columns are the keys of the first objects."""
    rows: list[dict[str, str | None]] = []
    problem = None
    with path.open("rb") as stream:
        for number, line in zip(range(1000), stream, strict=False):
            record, wrong = _record(line)
            if number == 0:
                problem = wrong
            if record is not None:
                rows.append({key: _text(value) for key, value in record.items()})
    if not rows:
        raise DataError(
            f"{file}: no JSON object in the first 1,000 lines; JSONL has one object a line, in UTF-8"
            + (f", but line 1 {problem}" if problem else "")
        )
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return pl.DataFrame(
        [[row.get(key) for key in keys] for row in rows], schema=dict.fromkeys(keys, pl.String), orient="row"
    )


def read_jsonl(path: Path, file: str, plan: Plan, bad: BadRows, advance: Advance) -> Iterator[pl.DataFrame]:
    """Canonical frames of the good rows of a JSONL file, named ``file`` in messages; bad rows go to ``bad``.

    Blank lines are passed over.
    """
    row = 0
    with path.open("rb") as stream:
        numbered = enumerate(stream, start=1)
        while lines := [pair for _, pair in zip(range(LINES), numbered, strict=False)]:
            cells: dict[str, list[str | None]] = {name: [] for name in plan.fields}
            places: list[tuple[int, int]] = []
            problems: list[str | None] = []
            shown: list[str | None] = []
            for number, line in lines:
                if not line.strip():
                    continue
                row += 1
                record, problem = _record(line)
                problem = problem or _nested(record, plan)
                places.append((row, number))
                problems.append(problem)
                shown.append(_shown(line) if problem else None)
                for name, field in plan.fields.items():
                    cells[name].append(_text((record or {}).get(field.column)))
            text = pl.DataFrame(cells, schema=dict.fromkeys(cells, pl.String)).with_columns(
                pl.Series("row", [place[0] for place in places], dtype=pl.Int64),
                pl.Series("line", [place[1] for place in places], dtype=pl.Int64),
                pl.Series("problem", problems, dtype=pl.String),
                pl.lit(None, dtype=pl.String).alias("problem_column"),
                pl.Series("problem_value", shown, dtype=pl.String),
            )
            good, wrong = exact(text, plan, file)
            bad.add(wrong)
            advance(sum(len(line) for _, line in lines))
            yield good


def jsonl_whole(path: Path, bad: BadRows) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of a JSONL file, typed, for files of entities, and their places. Blank lines are passed over.

    Raises:
        DataError: A line is not a JSON object (with quarantine it goes to ``bad``), or the values of a column do not
            go together.
    """
    try:
        frame = pl.read_ndjson(path, infer_schema_length=None)
    except pl.exceptions.PolarsError:
        lines, places = _good_lines(path, bad)
    else:
        return frame, places_of(frame)
    if not lines and bad.first:
        raise DataError(f"{path.name}: no JSON object, one a line; {bad.first}")
    try:
        return pl.read_ndjson(b"\n".join(lines), infer_schema_length=None), places
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{path.name}: not JSON, one object a line with values of one kind in a column ({_short(error)})"
        ) from error


def places_of(frame: pl.DataFrame) -> pl.DataFrame:
    """Places of rows that follow each other from the first."""
    rows = pl.int_range(1, frame.height + 1, dtype=pl.Int64, eager=True)
    return pl.DataFrame({"row": rows, "line": None}, schema=PLACE_SCHEMA)


def _good_lines(path: Path, bad: BadRows) -> tuple[list[bytes], pl.DataFrame]:
    """Lines with a JSON object, without a byte order mark, and their places."""
    lines: list[bytes] = []
    places: list[tuple[int, int]] = []
    wrong: list[tuple[str | int | None, ...]] = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            bare = line.removeprefix(codecs.BOM_UTF8).strip()
            if not bare:
                continue
            _, problem = _record(bare)
            row = len(lines) + len(wrong) + 1
            if problem and not bad.quarantine:
                raise DataError(f"{path.name}, row {row} (line {number}): value {_shown(bare)!r} {problem}")
            if problem:
                raw = bare.decode(errors="backslashreplace")
                wrong.append((path.name, row, number, None, _shown(bare), problem, raw))
            else:
                lines.append(bare)
                places.append((row, number))
    bad.add(pl.DataFrame(wrong, schema=BAD_SCHEMA, orient="row"))
    return lines, pl.DataFrame(places, schema=PLACE_SCHEMA, orient="row")


def _shown(line: bytes) -> str:
    return line[:80].decode(errors="backslashreplace").strip()


def _record(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return None, f"has byte {line[error.start]:#04x}, which is not UTF-8"
    except json.JSONDecodeError as error:
        return None, f"is not JSON ({error.msg})"
    except RecursionError:
        return None, "is not JSON (nested too deep)"
    except ValueError:
        return None, "is not JSON (a number is too long)"
    if b"\\ud" in line.lower() and any("\ud800" <= mark <= "\udfff" for mark in json.dumps(value, ensure_ascii=False)):
        return None, "has half of a surrogate pair (\\ud800 to \\udfff alone), which is no character"
    return (value, None) if isinstance(value, dict) else (None, "is not a JSON object")


def _nested(record: dict[str, Any] | None, plan: Plan) -> str | None:
    values = ((column, (record or {}).get(column)) for column in plan.columns)
    return next(
        (f"has {column!r} that is no single value" for column, v in values if isinstance(v, list | dict | bool)), None
    )


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return str(int(value))
    return json.dumps(value)


def read_lightgcn(path: Path, file: str, bad: BadRows, advance: Advance) -> Iterator[pl.DataFrame]:
    """Pairs of an adjacency file, ``user item item ...`` a line; a file named train, valid or test gives their split.

    Messages name ``file``; their row and line are those of the line. A bad item drops itself, a bad user its line.
    """
    split = split_of(path)
    with path.open("rb") as stream:
        numbered = enumerate(stream, start=1)
        while lines := [pair for _, pair in zip(range(LINES), numbered, strict=False)]:
            users: list[int] = []
            items: list[int] = []
            wrong: list[tuple[str | int, ...]] = []
            for number, line in lines:
                bare = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                for place, word in _adjacency(bare, users, items):
                    column, shown = "item" if place else "user", word.decode(errors="backslashreplace")
                    raw = line[:200].decode(errors="backslashreplace").strip()
                    wrong.append((file, number, number, column, shown, "is not an integer", raw))
            bad.add(pl.DataFrame(wrong, schema=BAD_SCHEMA, orient="row"))
            advance(sum(len(line) for _, line in lines))
            frame = pl.DataFrame({"user": users, "item": items}, schema={"user": pl.Int64, "item": pl.Int64})
            yield frame if split is None else frame.with_columns(pl.lit(split, dtype=pl.UInt8).alias("split"))


def _adjacency(line: bytes, users: list[int], items: list[int]) -> list[tuple[int, bytes]]:
    """Append the pairs of one line; returns place and word of those that are no 64-bit integers."""
    words = line.split()
    values = [_integer(word) for word in words]
    if values and values[0] is not None:
        good = [value for value in values[1:] if value is not None]
        users.extend([values[0]] * len(good))
        items.extend(good)
    return [(place, words[place]) for place, value in enumerate(values) if value is None]


def _integer(word: bytes) -> int | None:
    if not word.removeprefix(b"-").isdigit() or len(word) > 20:
        return None
    value = int(word)
    return value if -(2**63) <= value < 2**63 else None


def split_of(path: Path) -> int | None:
    """Split code that a file name says: ``train.txt``, ``ml.valid.inter``; None if it says none."""
    names = {"train": 0, "valid": 1, "val": 1, "test": 2}
    return next((names[word] for word in path.name.lower().split(".")[:-1] if word in names), None)
