"""CSV, TSV and RecBole atomic files, in chunks of bytes: typed at once where all is well, cell by cell where not."""

from __future__ import annotations

import array
import codecs
import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import polars as pl

from pipelines.errors import DataError
from pipelines.ingest.check import BAD_SCHEMA, PLACE_SCHEMA, BadRows, exact, fast
from pipelines.ingest.plan import MISSING, Plan

CHUNK = 16 << 20
LONGEST_RECORD = 256 << 20
csv.field_size_limit(LONGEST_RECORD)
UNDECODED = re.compile("[\udc80-\udcff]")
FAST_DTYPES: dict[str, type[pl.DataType]] = {
    "integer": pl.Int64,
    "string": pl.String,
    "float": pl.Float64,
    "timestamp": pl.Int64,
    "float_timestamp": pl.Float64,
    "iso": pl.String,
    "position": pl.Int64,
    "split": pl.String,
}
Advance = Callable[[int], None]


class TextFile:
    """A file of separated values whose first line names the columns, unless ``names`` does.

    Attributes:
        name: of the file in messages; ``called``, or the last part of the path.
        columns: ``names``, or the header without RecBole's types.
        start: place of the first event.
        has_header: whether the first line names the columns.
        types: RecBole's types (``token``, ``float``, ``token_seq``, ...) by column.
        separator: between cells.
        quoted: whether cells may be quoted.

    Raises:
        DataError: The file is empty, not UTF-8, has no column names, two columns of one name, or, with ``names``,
            another number of columns.
    """

    def __init__(self, path: Path, kind: str, names: Sequence[str] | None = None, called: str | None = None) -> None:
        self.path = path
        self.name = called or path.name
        self.quoted = kind != "recbole"
        with path.open("rb") as file:
            line = file.readline()
            bom = line.startswith(codecs.BOM_UTF8)
            self.has_header = names is None
            self.start = file.tell() if self.has_header else 3 * bom
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            coding = "utf-32" if line[2:4] == b"\0\0" else "utf-16"
            raise DataError(f"{self.name}: the file is {coding.upper()}; convert it: iconv -f {coding} -t utf-8")
        if b"\0" in line or line.startswith((b"\x1f\x8b", b"PK\3\4", b"PAR1")):
            raise DataError(
                f"{self.name}: not text in UTF-8, the first line has binary data; is it compressed, Parquet, or UTF-16?"
            )
        if b"\r" in line.rstrip(b"\r\n"):
            raise DataError(f"{self.name}: the lines end in a carriage return alone; convert the file: tr '\\r' '\\n'")
        if not line.strip():
            raise DataError(
                f"{self.name}: the {'file is empty' if not line else 'first line is empty'}; it must name the columns"
            )
        header = self._decode(line[3:] if bom else line)
        self.separator = self._separator(header, kind)
        first = next(csv.reader([header], delimiter=self.separator, quoting=self._quoting))
        if names is not None and len(first) != len(names):
            raise DataError(
                f"{self.name}, line 1: {len(first)} cells, but columns_without_header names {len(names)}; name them all"
            )
        names = first if names is None else names
        self.types = {}
        if kind == "recbole":
            self.types = dict(self._atomic(name) for name in names)
            names = [name.rpartition(":")[0] for name in names]
        self.columns = [name.strip() for name in names]
        check_header(self.name, 1, self.columns)

    @property
    def _quoting(self) -> Literal[0, 3]:
        return csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE

    def _decode(self, line: bytes) -> str:
        try:
            return line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.name}, line 1: byte {line[error.start]:#04x} at place {error.start + 1} is not UTF-8;"
                " convert the file: iconv -f latin1 -t utf-8"
            ) from error

    def _atomic(self, name: str) -> tuple[str, str]:
        column, _, kind = name.rpartition(":")
        if kind not in {"token", "token_seq", "float", "float_seq"} or not column:
            raise DataError(
                f"{self.name}, line 1: a RecBole header is `name:type` with type token, token_seq, float or"
                f" float_seq, got {name!r}"
            )
        return column, kind

    @staticmethod
    def _separator(header: str, kind: str) -> str:
        if kind in {"tsv", "recbole"}:
            return "\t"
        return "," if "," in header else next((mark for mark in "\t;|" if mark in header), ",")

    def sample(self, rows: int = 1000) -> pl.DataFrame:
        """First rows as text; rows of a wrong width are passed over here and reported when they are read."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            text = file.read(1 << 20).decode(errors="replace")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self.separator, quoting=self._quoting)
        cells = [row for _, row in zip(range(rows), reader, strict=False) if len(row) == len(self.columns)]
        return pl.DataFrame(cells, schema=dict.fromkeys(self.columns, pl.String), orient="row")

    def whole(self, bad: BadRows) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows as text, for files of entities, and their places.

        Raises:
            DataError: A row has too few or too many cells, or is not UTF-8; with quarantine it goes to ``bad``.
        """
        data = self.path.read_bytes()[self.start :]
        try:
            text = data.decode(errors="surrogateescape" if bad.quarantine else "strict")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1 + self.has_header
            raise DataError(
                f"{self.name}, line {line}: byte {data[error.start]:#04x} is not UTF-8; convert the file:"
                " iconv -f latin1 -t utf-8"
            ) from error
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self.separator, quoting=self._quoting)
        rows: list[list[str]] = []
        places = {name: array.array("q") for name in PLACE_SCHEMA}
        wrong: list[tuple[str | int | None, ...]] = []
        before = 0
        for cells in reader:
            line, before = 1 + self.has_header + before, reader.line_num
            if not cells:
                continue
            row = len(rows) + len(wrong) + 1
            if not bad.quarantine and len(cells) != len(self.columns):
                found, wanted = f"{len(cells)} cells", f"there are {len(self.columns)} columns"
                raise DataError(f"{self.name}, row {row}: {found}, {wanted}: {cells[:5]}")
            problem = column = value = None
            if bad.quarantine:
                problem, column, value = _problem(cells, self.columns, range(len(self.columns)))
            if problem:
                named = dict(zip(self.columns, map(_printable, cells), strict=False))
                raw = json.dumps(named, ensure_ascii=False)
                wrong.append((self.name, row, line, column, value, problem, raw))
            else:
                rows.append(cells)
                places["row"].append(row)
                places["line"].append(line)
        bad.add(pl.DataFrame(wrong, schema=BAD_SCHEMA, orient="row"))
        frame = pl.DataFrame(rows, schema=dict.fromkeys(self.columns, pl.String), orient="row")
        return frame, pl.DataFrame(places, schema=PLACE_SCHEMA)

    def events(self, plan: Plan, bad: BadRows, advance: Advance) -> Iterator[pl.DataFrame]:
        """Canonical frames of the good rows; bad rows go to ``bad``.

        Raises:
            DataError: A column of the plan is missing here, or a quoted cell never ends.
        """
        for column in plan.columns:
            if column not in self.columns:
                raise DataError(f"{self.name}: column {column!r} is missing, other files of the source have it")
        row = 0
        with self.path.open("rb") as file:
            file.seek(self.start)
            for begin, chunk in self._chunks(file):
                frame = self._fast(chunk, plan)
                if frame is None:
                    frame, count = self._exact(chunk, plan, bad, row, begin)
                else:
                    count = frame.height
                row += count
                advance(len(chunk))
                yield frame

    def _chunks(self, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        """Whole records, with the place where they begin."""
        begin, rest = file.tell(), b""
        while True:
            block = file.read(CHUNK)
            data = rest + block
            if not block:
                if data:
                    yield begin, data
                return
            cut = self._cut(data)
            if cut:
                yield begin, data[:cut]
            begin, rest = begin + cut, data[cut:]
            if len(rest) > LONGEST_RECORD:
                raise DataError(
                    f"{self.name}, line {self._line(begin)}: a record that begins here has no end within"
                    f" {LONGEST_RECORD >> 20} MiB; look for a quote that is not closed"
                )

    def _cut(self, data: bytes) -> int:
        """Place after the last newline that is outside quotes; 0 if there is none."""
        cut = data.rfind(b"\n") + 1
        if not self.quoted or b'"' not in data:
            return cut
        inside = data.count(b'"', 0, cut) % 2
        while cut and inside:
            previous = data.rfind(b"\n", 0, cut - 1) + 1
            inside ^= data.count(b'"', previous, cut) % 2
            cut = previous
        return cut

    def _line(self, place: int) -> int:
        """1-based line that begins at a place of the file."""
        line = 1
        with self.path.open("rb") as file:
            while place > 0 and (block := file.read(min(place, CHUNK))):
                line += block.count(b"\n")
                place -= len(block)
        return line

    def _fast(self, chunk: bytes, plan: Plan) -> pl.DataFrame | None:
        dtypes: dict[str, type[pl.DataType]] = {f"column_{i + 1}": pl.String for i in range(len(self.columns))}
        names = {}
        for name, field in plan.fields.items():
            column = f"column_{self.columns.index(field.column) + 1}"
            names[column] = name
            dtypes[column] = FAST_DTYPES[field.kind]
        if self.quoted and _stray_quotes(chunk, self.separator):
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                frame = pl.read_csv(
                    chunk, has_header=False, schema=dtypes, columns=list(names), separator=self.separator,
                    quote_char='"' if self.quoted else None, ignore_errors=True,
                    null_values=_missing_spellings() if pl.String in dtypes.values() else None,
                )  # fmt: skip
        except (pl.exceptions.PolarsError, UserWarning):
            return None
        return fast(frame.rename(names), plan)

    def _exact(self, chunk: bytes, plan: Plan, bad: BadRows, row: int, begin: int) -> tuple[pl.DataFrame, int]:
        text = chunk.decode(errors="surrogateescape")
        places = {name: self.columns.index(field.column) for name, field in plan.fields.items()}
        cells: dict[str, list[str | None]] = {name: [] for name in places}
        where: dict[str, list[int]] = {"row": [], "line": []}
        problems: list[tuple[str | None, str | None, str | None]] = []
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self.separator, quoting=self._quoting)
        base, before = self._line(begin), 0
        for record in reader:
            line, before = base + before, reader.line_num
            if not record:
                continue
            row += 1
            where["row"].append(row)
            where["line"].append(line)
            problem = _problem(record, self.columns, places.values())
            problems.append(problem)
            for name, place in places.items():
                cell = record[place] if place < len(record) else None
                cells[name].append(_printable(cell) if problem[0] and cell is not None else cell)
        frame = pl.DataFrame(
            {**cells, **where}, schema={**dict.fromkeys(cells, pl.String), "row": pl.Int64, "line": pl.Int64}
        ).with_columns(
            pl.Series(name, [problem[i] for problem in problems], dtype=pl.String)
            for i, name in enumerate(("problem", "problem_column", "problem_value"))
        )
        good, wrong = exact(frame, plan, self.name)
        bad.add(wrong)
        return good, frame.height


def check_header(file: str, line: int, columns: Sequence[str]) -> None:
    """Raise DataError if the header of a file, in a line of it, names a column twice."""
    for position, name in enumerate(columns):
        if name in columns[:position]:
            raise DataError(
                f"{file}, line {line}: column {name!r} occurs twice (places {columns.index(name) + 1} and"
                f" {position + 1}); rename one"
            )


def _stray_quotes(chunk: bytes, separator: str) -> bool:
    """Whether a quote neither begins nor ends a cell, as in ``5" disk``; Polars would join the lines in between."""
    if b'"' not in chunk:
        return False
    data = np.frombuffer(chunk, dtype=np.uint8)
    quotes = np.flatnonzero(data == ord('"'))
    opening, closing = quotes[::2], quotes[1::2]
    before, after = data[opening[opening > 0] - 1], data[closing[closing < len(data) - 1] + 1]
    begins, ends = np.isin(before, list(f'{separator}\n"'.encode())), np.isin(after, list(f'{separator}\r\n"'.encode()))
    return len(quotes) % 2 == 1 or not (begins.all() and ends.all())


def _problem(record: list[str], columns: list[str], used: Iterable[int]) -> tuple[str | None, str | None, str | None]:
    """What keeps a record from being cells, with column and value: its width, or bytes that are not UTF-8."""
    if len(record) != len(columns):
        shown = _printable(",".join(record))
        return f"is a row of {len(record)} cells, there are {len(columns)} columns", None, shown
    for place in used:
        cell = record[place]
        if not cell.isascii() and (found := UNDECODED.search(cell)):
            return f"has byte {ord(found[0]) - 0xDC00:#04x}, which is not UTF-8", columns[place], _printable(cell)
    return None, None, None


def _printable(cell: str) -> str:
    return cell.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _missing_spellings() -> list[str]:
    return sorted({form for word in MISSING if word for form in (word, word.upper(), word.title(), "NaN", "N/A")})
