"""Malformed rows of users and items files go to quarantine, as those of the events do."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines import config
from pipelines.dataset import Dataset
from pipelines.errors import DataError
from pipelines.ingest import ingest

COLUMNS = ("id", "title", "year")
ROWS: list[list[Any]] = [[k, f"t{k}", str(1990 + k)] for k in range(9)]
ITEMS = {"source": "", "id": "id", "features": {"year": "numeric"}}
FILES = {"csv": "i.csv", "tsv": "i.tsv", "jsonl": "i.jsonl", "parquet": "i.parquet"}


def run(folder: Path, source: str, side: str = "items", **settings: Any) -> Dataset:
    events = "user_id,item_id\n" + "".join(f"{u},{i}\n" for u in range(9) for i in range(9))
    (folder / "interactions.csv").write_text(events)
    settings = {"on_error": "quarantine", side: ITEMS | {"source": source}} | settings
    return ingest(config.Dataset(name="q", source=str(folder), **settings), folder / "out")


def aside(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "out" / "quarantine.parquet")


def write(kind: str, folder: Path, rows: list[list[Any]]) -> str:
    path = folder / FILES[kind]
    match kind:
        case "jsonl":
            path.write_text("".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in rows))
        case "parquet":
            pl.DataFrame(rows, schema=COLUMNS, orient="row").write_parquet(path)
        case _:
            pl.DataFrame(rows, schema=COLUMNS, orient="row").write_csv(path, separator=",\t"[kind == "tsv"])
    return path.name


@pytest.mark.parametrize("side", ["users", "items"])
@pytest.mark.parametrize("kind", FILES)
def test_duplicates_and_cells_that_are_no_numbers_are_put_aside(kind: str, side: str, tmp_path: Path) -> None:
    rows = [*ROWS, [2, "again", "1"], [None, "nobody", "1"], [4, "again", "soon"]]
    rows[3] = [3, "t3", "old"]
    source = write(kind, tmp_path, rows)
    dataset = run(tmp_path, source, side)
    table = dataset.users if side == "users" else dataset.items
    assert table["title"].to_list() == ["t0", "t1", "t2", None, *(f"t{k}" for k in range(4, 9))]
    assert table["year"].to_list() == [1990.0, 1991.0, 1992.0, None, *(1990.0 + k for k in range(4, 9))]
    again = "was described in an earlier row already"
    assert dataset.manifest.quarantine == {"is not a number": 2, again: 1, "is missing": 1}
    facts = dataset.manifest.entities[side]
    assert (facts["without_row"], facts["unused_rows"]) == (1, 0)
    found = aside(tmp_path)
    assert found["file"].to_list() == [source] * 4
    assert found["row"].to_list() == [4, 10, 11, 12]
    assert found["column"].to_list() == ["year", "id", "id", "year"]
    assert found["value"].to_list()[::3] == ["old", "soon"]
    assert found["value"][1] == "2"
    assert found["reason"].to_list() == ["is not a number", again, "is missing", "is not a number"]
    assert json.loads(found["raw"][0])["title"] == "t3"
    with pytest.raises(DataError, match=rf"^{source}, row 4, column 'year': value 'old' is not a number \(2 such"):
        run(tmp_path, source, side, on_error="fail")


def test_rows_that_are_no_cells_are_put_aside_and_the_next_keep_their_numbers(tmp_path: Path) -> None:
    text = "id,title,year\n0,t0,1\n1\n\n2,caf\xe9,3\n3,t3,old\n3,t3,5\n"
    (tmp_path / "i.csv").write_bytes(text.encode("latin1"))
    dataset = run(tmp_path, "i.csv")
    assert dataset.items["title"].to_list() == ["t0", None, None, "t3", *[None] * 5]
    found = aside(tmp_path)
    assert found["row"].to_list() == [2, 3, 4]
    assert found["line"].to_list() == [3, 5, 6]
    assert found["reason"].to_list() == [
        "is a row of 1 cells, there are 3 columns", "has byte 0xe9, which is not UTF-8", "is not a number"
    ]  # fmt: skip
    assert found["value"].to_list() == ["1", "caf\\xe9", "old"]


def test_lines_that_are_no_objects_are_put_aside_and_the_next_keep_their_numbers(tmp_path: Path) -> None:
    lines = ['{"id": 0, "title": "t0", "year": 1}', "[1]", "", '{"id": 2, "title"', '{"id": 3, "year": "old"}']
    (tmp_path / "i.jsonl").write_text("\n".join(lines))
    dataset = run(tmp_path, "i.jsonl")
    assert dataset.items["title"].to_list() == ["t0", *[None] * 8]
    found = aside(tmp_path)
    assert found["row"].to_list() == [2, 3, 4]
    assert found["line"].to_list() == [2, 4, 5]
    assert found["value"].to_list() == ["[1]", '{"id": 2, "title"', "old"]
    assert found["reason"][0] == "is not a JSON object"
    assert "is not JSON" in found["reason"][1]


def test_a_file_without_a_good_row_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("id,year\n0,old\n1,new\n")
    message = r"no id is that of any item .* 2 rows are bad: i.csv, row 1 \(line 2\), column 'year': value 'old' is not"
    with pytest.raises(DataError, match=message):
        run(tmp_path, "i.csv")
    (tmp_path / "i.jsonl").write_text("id,year\n0,old\n")
    with pytest.raises(
        DataError, match=r"i.jsonl: no JSON object, one a line; i.jsonl, row 1 \(line 1\): value 'id,year'"
    ):
        run(tmp_path, "i.jsonl")
    assert not (tmp_path / "out").exists()
