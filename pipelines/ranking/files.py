"""Files of labelled events as lazy frames; what is wrong with a file is a DataError that names it."""

from __future__ import annotations

import contextlib
import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.errors import DataError, did_you_mean
from pipelines.ingest.readers import DAMAGED, parquet_schema
from pipelines.ingest.source import base_path
from pipelines.ingest.text import check_header

PARQUET = (".parquet", ".pq")
TEXT = {".csv": ",", ".tsv": "\t"}
"""Suffix of text with named columns -> its separator."""
_WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"


def find_files(source: str, names: list[str]) -> list[Path]:
    """The files that ``names``, which may be globs, mean in the directory ``source``, or that which it is itself.

    Raises:
        DataError: One is missing, or several are meant and ``source`` is a file.
    """
    root = base_path(source)
    if root.is_file() and len(names) == 1:
        return [root]
    if root.is_file():
        raise DataError(f"source {source!r} is one file; give the directory that has {', '.join(names)}")
    found = [sorted(root.glob(name)) for name in names]
    for name, paths in zip(names, found, strict=True):
        if not paths:
            known = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
            raise DataError(f"source {source!r} has no file {name!r} in {root}; {did_you_mean(name, known)}")
    return [path for paths in found for path in paths]


@contextlib.contextmanager
def readable(files: Sequence[Path]) -> Iterator[None]:
    """Raise DataError where polars cannot read ``files`` inside the block."""
    try:
        yield
    except DAMAGED as error:
        names = ", ".join(map(str, files[:3])) + (", ..." if len(files) > 3 else "")
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(f"{names}: cannot be read ({reason}); correct the file, or fetch it again") from error


def scan_files(files: list[Path]) -> pl.LazyFrame:
    """Parquet, CSV or TSV files of one layout, one after the other.

    A column of CSV or TSV is of integers where every value is written as one, else it is text: ``012`` and ``1.0`` are
    the text that they are. The whole file decides, not its first rows.

    Raises:
        DataError: They are of another format, name a column twice, or cannot be read.
    """
    frame = _scan(files)
    if files[0].suffix in PARQUET:
        return frame
    with readable(files):
        whole = frame.select(pl.all().str.contains(_WHOLE).all()).collect(engine="streaming").row(0, named=True)
    return frame.with_columns(pl.col(name).cast(pl.Int64) for name, integers in whole.items() if integers)


def _scan(files: list[Path]) -> pl.LazyFrame:
    """Parquet as it is, CSV and TSV as text."""
    suffix = files[0].suffix
    if suffix in PARQUET:
        for path in files:
            parquet_schema(path, str(path))
        return pl.scan_parquet(files)
    if suffix in TEXT:
        return scan_text(files)
    raise DataError(f"{files[0]}: events must be .parquet, .csv or .tsv, got {suffix!r}")


def scan_text(files: list[Path]) -> pl.LazyFrame:
    """CSV or TSV files of one layout, one after the other; every column is the text that it is.

    Raises:
        DataError: A header names a column twice, of which polars would rename one.
    """
    separator = TEXT[files[0].suffix]
    for path in files:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            reader = csv.reader(lines, delimiter=separator)
            header = next((cells for cells in reader if cells), [])
            check_header(str(path), reader.line_num, header)
    return pl.scan_csv(files, separator=separator, infer_schema=False)


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a Parquet, CSV or TSV file.

    Raises:
        DataError: It is of another format, names a column twice, or cannot be read.
    """
    with readable([path]):
        return _scan([path]).collect_schema().names()


def require_columns(frame: pl.LazyFrame, names: Iterable[str], file: str) -> None:
    """Raise DataError unless a frame, read from ``file``, has the columns."""
    known = frame.collect_schema().names()
    for name in names:
        if name not in known:
            raise DataError(f"{file} has no column {name!r}; {did_you_mean(name, known)}")


def check_lines(path: Path, columns: int) -> None:
    """Raise DataError at the first line that has not so many columns, separated by tabs; reads line by line."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            found = line.count(b"\t") + 1
            if found != columns:
                shown = line[:80].decode(errors="backslashreplace").strip()
                raise DataError(
                    f"{path}, line {number}: required are {columns} columns separated by tabs, got {found}: {shown!r};"
                    " correct the line, or fetch the file again if it was cut off"
                )


def line_of(files: Sequence[Path], number: int) -> str:
    """The line, in words, with an event of files that have an event in every line, numbered through from 0."""
    path, line = next(itertools.islice(_lines(files), number, None))
    return f"line {line} of {path}"


def row_of(files: Sequence[Path], number: int) -> str:
    """The row, in words and counted from 1 in its file, with an event of Parquet files, numbered through from 0."""
    counts = [pl.scan_parquet(path, glob=False).select(pl.len()).collect().item() for path in files]
    firsts = np.cumsum([0, *counts])
    place = int(np.searchsorted(firsts, number, side="right")) - 1
    return f"row {number - firsts[place] + 1} (counted from 1) of {files[place]}"


def _lines(files: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    for path in files:
        with path.open("rb") as lines:
            yield from ((path, number) for number, _ in enumerate(lines, 1))
