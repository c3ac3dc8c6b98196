"""Corpus of malformed inputs: format x defect, each with what its message must say."""

import dataclasses
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

ROWS = 12
BAD_ROW = 7
COLUMNS = ("user_id", "item_id", "rating", "timestamp")


@dataclasses.dataclass(frozen=True)
class Case:
    """One broken file: how to write it, which settings, and the parts its message must have."""

    name: str
    file: str
    write: Callable[[Path], None]
    parts: tuple[str, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def good_rows(rows: int = ROWS) -> list[list[Any]]:
    return [[i % 4 + 1, i + 10, float(i % 5 + 1), 1_600_000_000 + i] for i in range(rows)]


def lines(rows: list[list[Any]], separator: str, header: str) -> bytes:
    body = [separator.join("" if cell is None else str(cell) for cell in row) for row in rows]
    return ("\n".join([header, *body]) + "\n").encode()


def write_rows(kind: str, rows: list[list[Any]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        match kind:
            case "csv":
                path.write_bytes(lines(rows, ",", ",".join(COLUMNS)))
            case "tsv":
                path.write_bytes(lines(rows, "\t", "\t".join(COLUMNS)))
            case "recbole":
                header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
                path.write_bytes(lines(rows, "\t", header))
            case "jsonl":
                records = [json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows]
                path.write_text("\n".join(records) + "\n")
            case _:
                pl.DataFrame(
                    {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}, strict=False
                ).with_columns(pl.col(pl.Object).cast(pl.String)).write_parquet(path)

    return write


FILES = {"csv": "e.csv", "tsv": "e.tsv", "recbole": "e.inter", "jsonl": "e.jsonl", "parquet": "e.parquet"}

# column, bad cell, reason
CELLS: tuple[tuple[int, Any, str], ...] = (
    (0, "abc", "is not an integer"), (0, "1.5", "is not an integer"), (0, "12x", "is not an integer"),
    (0, None, "is missing"), (0, "NaN", "is missing"), (0, "null", "is missing"), (0, "N/A", "is missing"),
    (0, "99999999999999999999", "is outside the 64-bit integers"),
    (1, "x7", "is not an integer"), (1, "0x1F", "is not an integer"), (1, "1e3", "is not an integer"),
    (1, None, "is missing"), (1, "nan", "is missing"), (1, "None", "is missing"),
    (1, "-99999999999999999999", "is outside the 64-bit integers"),
    (2, "good", "is not a number"), (2, "4,5", "is not a number"), (2, None, "is missing"), (2, "nan", "is missing"),
    (2, "inf", "is not a finite number"), (2, "-inf", "is not a finite number"), (2, "5 stars", "is not a number"),
    (3, -5, "is a negative timestamp"), (3, -1_600_000_000, "is a negative timestamp"),
    (3, "yesterday", "is not a timestamp"), (3, "2020-13-01", "is not a timestamp"), (3, None, "is missing"),
    (3, 1_600_000_000_000, "is a timestamp out of range"), (3, 10_000_000_000, "is a timestamp out of range"),
    (3, "NaN", "is missing"), (3, 99999999999999999999, "is a timestamp out of range"),
)  # fmt: skip


def cell_cases() -> Iterator[Case]:
    for kind, file in FILES.items():
        for column, cell, reason in CELLS:
            if kind == "csv" and cell == "4,5":
                cell = '"4,5"'  # noqa: PLW2901
            rows = good_rows()
            rows[BAD_ROW - 1][column] = cell
            if kind == "parquet":  # a column has one type: text when one cell is text
                for row in rows:
                    row[column] = None if row[column] is None else str(row[column]).removesuffix(".0")
            shown = "" if cell is None or (cell in {"", None}) else str(cell).strip('"')
            where = f"{file}, row {BAD_ROW}"
            parts = (where, f"column '{COLUMNS[column]}'", shown, reason, "quarantine")
            if kind != "parquet":
                parts += (f"(line {BAD_ROW + (kind != 'jsonl')})",)
            yield Case(f"{kind}-{COLUMNS[column]}-{cell!r}", file, write_rows(kind, rows), parts)


def raw(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None  # type: ignore[func-returns-value]


def text_cases() -> Iterator[Case]:
    for kind, mark in (("csv", ","), ("tsv", "\t"), ("recbole", "\t")):
        file = FILES[kind]
        names = (
            [f"{c}:{'float' if i > 1 else 'token'}" for i, c in enumerate(COLUMNS)] if kind == "recbole" else COLUMNS
        )
        header = mark.join(names)
        good = lines(good_rows(), mark, header)
        row = mark.join(map(str, good_rows()[0])).encode()

        def case(name: str, data: bytes, *parts: str, kind: str = kind, file: str = file, **settings: Any) -> Case:
            return Case(f"{kind}-{name}", file, raw(data), (file, *parts), settings)

        yield case("empty", b"", "the file is empty")
        yield case("blank_first_line", b"\n" + good, "first line is empty")
        yield case("header_only", header.encode() + b"\n", "no interactions")
        yield case("header_without_newline", header.encode(), "no interactions")
        yield case("bom_then_bad", b"\xef\xbb\xbf" + good + f"x{mark}1{mark}1{mark}1\n".encode(), "row 13", "'x'")
        yield case(
            "crlf_then_bad", (good + f"x{mark}1{mark}1{mark}1\n".encode()).replace(b"\n", b"\r\n"), "row 13", "'x'"
        )
        yield case("row_too_long", good + row + mark.encode() + b"9\n", "row 13 (line 14)", "5 cells, there are 4")
        yield case("row_too_short", good + row.rsplit(mark.encode(), 1)[0] + b"\n", "row 13 (line 14)", "3 cells")
        yield case("cut_off", good + b"1" + mark.encode() + b"2", "row 13 (line 14)", "2 cells")
        yield case("latin1_header", good.replace(b"rating", b"rati\xe9", 1), "line 1", "0xe9", "iconv")
        yield case("utf16", good.decode().encode("utf-16"), "UTF-16", "iconv")
        yield case("utf16_without_mark", good.decode().encode("utf-16-le"), "binary data", "UTF-16")
        yield case("utf32", good.decode().encode("utf-32"), "UTF-32", "iconv -f utf-32")
        yield case("gzip", gzip.compress(good), "binary data", "compressed")
        yield case("carriage_returns", good.replace(b"\n", b"\r"), "carriage return alone", "tr")
        yield case(
            "arabic_digit", good + row.replace(b"1", "\u0661".encode(), 1) + b"\n", "row 13", "is not an integer"
        )
        yield case(
"mixed_units", lines([[*r[:3], r[3] * 1000] for r in good_rows()], mark, header) + row + b"\n",
            "row 13 (line 14), column 'timestamp'", "'1600000000'", "another unit than the others", "timestamp_unit",
        )  # fmt: skip
        latin = good + b"caf\xe9" + mark.encode() + b"1" + mark.encode() + b"1" + mark.encode() + b"1\n"
        yield case("latin1_id", latin, "row 13 (line 14)", "column 'user_id'", "0xe9", "\\xe9", id_type="string")
        yield case(
            "duplicate_header", good.replace(b"timestamp", b"rating", 1), "'rating' occurs twice", "places 3 and 4"
        )
        yield case(
            "missing_user", good.replace(b"user_id", b"usre_id", 1), "no column 'user_id'", "did you mean usre_id"
        )
        yield case("missing_item", good.replace(b"item_id", b"thing", 1), "no column 'item_id'", "columns.item")
        yield case("missing_rating", good, "no column 'ratting'", "did you mean rating", columns={"rating": "ratting"})
        yield case("missing_split", good, "no column 'fold'", "columns.split", columns={"split": "fold"})
        yield Case(
            f"{kind}-filtered_away", file, raw(good), ("no interactions are left", "read: 12 left", "0 left"),
            {"filters": {"min_rating": 9}},
        )  # fmt: skip
        yield Case(
            f"{kind}-no_core", file, raw(good), ("user core 9, item core 9", "0 left", "loosen"),
            {"filters": {"user_core": 9, "item_core": 9}},
        )  # fmt: skip
    yield Case(
        "csv-unclosed_quote", "e.csv", raw(lines(good_rows(), ",", ",".join(COLUMNS)) + b'"1,2,3,4\n5,6,7,8\n'),
        ("e.csv", "row 13 (line 14)", "cells"),
    )  # fmt: skip
    yield Case(
        "csv-as_tsv",
        "e.tsv",
        raw(lines(good_rows(), ",", ",".join(COLUMNS))),
        ("no column 'user_id'", "','", "`format`"),
    )
    yield Case("csv-packed", "e.csv.gz", raw(gzip.compress(b"user_id,item_id\n")), ("e.csv.gz", "unpack it"))
    unknown = raw(b"user_id:id\titem_id:token\n1\t2\n")
    yield Case("recbole-bad_type", "e.inter", unknown, ("line 1", "user_id:id", "token"))
    yield Case("recbole-no_type", "e.inter", raw(b"user_id\titem_id\n1\t2\n"), ("line 1", "name:type", "user_id"))


def json_cases() -> Iterator[Case]:
    good = [json.dumps(dict(zip(COLUMNS, row, strict=True))).encode() for row in good_rows()]

    def case(name: str, bad: bytes, *parts: str) -> Case:
        return Case(
            f"jsonl-{name}", "e.jsonl", raw(b"\n".join([*good, bad]) + b"\n"), ("e.jsonl, row 13 (line 13)", *parts)
        )

    yield case("cut_off", b'{"user_id": 1, "item_', "is not JSON")
    yield case("no_colon", b'{"user_id" 1}', "is not JSON", "user_id")
    yield case("list", b"[1, 2]", "is not a JSON object")
    yield case("number", b"17", "is not a JSON object")
    yield case("single_quotes", b"{'user_id': 1}", "is not JSON")
    yield case("latin1", b'{"user_id": "caf\xe9"}', "0xe9", "not UTF-8")
    yield case("no_user", b'{"item_id": 1, "rating": 1, "timestamp": 1}', "column 'user_id'", "is missing")
    yield case(
        "nested_id", b'{"user_id": [1], "item_id": 1, "rating": 1, "timestamp": 1}', "user_id", "no single value"
    )
    yield case("bool_id", b'{"user_id": true, "item_id": 1, "rating": 1, "timestamp": 1}', "user_id", "no single value")
    yield case(
        "object_id", b'{"user_id": 1, "item_id": {"$oid": 1}, "rating": 1, "timestamp": 1}', "item_id", "no single"
    )
    yield case("surrogate", rb'{"user_id": "\ud800", "item_id": 1}', "half of a surrogate pair")
    yield case("long_number", b'{"user_id": 1' + b"0" * 5000 + b"}", "is not JSON (a number is too long)")
    yield Case(
        "jsonl-array", "e.jsonl", raw(b"[\n" + b",\n".join(good) + b"\n]\n"), ("row 1 (line 1)", "'['", "is not")
    )
    yield Case("jsonl-utf16", "e.jsonl", raw(good[0].decode().encode("utf-16")), ("no JSON object", "0xff", "UTF-8"))
    yield Case("jsonl-empty", "e.jsonl", raw(b""), ("e.jsonl", "no JSON object"))
    yield Case("jsonl-csv", "e.jsonl", raw(b"a,b\n1,2\n"), ("e.jsonl", "no JSON object"))
    yield Case("jsonl-no_column", "e.jsonl", raw(b'{"usr": 1, "item_id": 2}\n'), ("no column 'user_id'",))


def parquet_cases() -> Iterator[Case]:
    def cut(share: float) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            write_rows("parquet", good_rows())(path)
            data = path.read_bytes()
            path.write_bytes(data[: int(len(data) * share)])

        return write

    for share in (0.0, 0.1, 0.5, 0.9, 0.99):
        yield Case(
            f"parquet-cut_{share}", "e.parquet", cut(share), ("e.parquet", "not a complete Parquet file", "bytes")
        )
    yield Case("parquet-csv", "e.parquet", raw(b"user_id,item_id\n1,2\n"), ("e.parquet", "not a complete Parquet file"))

    def frame(**columns: Any) -> Callable[[Path], None]:
        return lambda path: pl.DataFrame(columns).write_parquet(path)

    yield Case("parquet-empty", "e.parquet", frame(user_id=[], item_id=[]), ("e.parquet", "no interactions"))
    yield Case(
        "parquet-list_id", "e.parquet", frame(user_id=[[1]], item_id=[1]), ("'user_id'", "List", "integers or strings")
    )
    yield Case("parquet-bool_id", "e.parquet", frame(user_id=[True], item_id=[1]), ("'user_id'", "Boolean"))
    yield Case("parquet-no_user", "e.parquet", frame(user=[1, 2], item_idx=[1, 2], x=[1, 2]), ("is empty",))
    yield Case("parquet-no_item", "e.parquet", frame(user_id=[1], itm=[1]), ("no column 'item_id'", "itm"))
    yield Case(
        "parquet-nan_id", "e.parquet", frame(user_id=[1.0, float("nan")], item_id=[1, 2]), ("row 2", "is missing")
    )
    yield Case(
        "parquet-half_id", "e.parquet", frame(user_id=[1.0, 2.5], item_id=[1, 2]), ("row 2", "'2.5'", "not an integer")
    )
    yield Case(
        "parquet-null_id", "e.parquet", frame(user_id=[1, None], item_id=[1, 2]), ("row 2", "'user_id'", "is missing")
    )
    yield Case(
        "parquet-bad_split", "e.parquet", frame(user_id=[1, 2], item_id=[1, 2], split=["train", "holdout"]),
        ("row 2", "'split'", "'holdout'", "train, valid or test"),
    )  # fmt: skip
    yield Case(
        "parquet-negative_position", "e.parquet", frame(user_id=[1, 2], item_id=[1, 2], position=[0, -3]),
        ("row 2", "'position'", "'-3'"),
    )  # fmt: skip
    yield Case(
        "parquet-time_with_unit", "e.parquet", frame(user_id=[1], item_id=[1], timestamp=[1_600_000_000_000]),
        ("row 1", "'1600000000000'", "out of range"), {"timestamp_unit": "s"},
    )  # fmt: skip


def lightgcn_cases() -> Iterator[Case]:
    for word in ("x", "1.5", "--2", "99999999999999999999", "nan"):
        yield Case(
            f"lightgcn-item-{word}", "e.txt", raw(f"0 1 2 3\n1 4 {word} 5\n".encode()),
            ("e.txt, row 2 (line 2), column 'item'", repr(word), "is not an integer"),
        )  # fmt: skip
        yield Case(
            f"lightgcn-user-{word}", "e.txt", raw(f"0 1 2 3\n{word} 4 5\n".encode()),
            ("e.txt, row 2 (line 2), column 'user'", repr(word), "is not an integer"),
        )  # fmt: skip
    yield Case("lightgcn-empty", "e.txt", raw(b""), ("e.txt", "no interactions"))
    yield Case("lightgcn-users_only", "e.txt", raw(b"0\n1\n2\n"), ("e.txt", "no interactions"))
    yield Case("lightgcn-latin1", "e.txt", raw(b"0 1 2\n1 \xe9\n"), ("row 2", "\\xe9", "is not an integer"))


def all_cases() -> list[Case]:
    return [*cell_cases(), *text_cases(), *json_cases(), *parquet_cases(), *lightgcn_cases()]
