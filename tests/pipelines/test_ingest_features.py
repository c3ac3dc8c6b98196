"""What ingest makes of the feature files of users and items."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines import config
from pipelines.dataset import Dataset
from pipelines.errors import DataError
from pipelines.ingest import ingest
from pipelines.stages.ingest import source_files

EVENTS = pl.DataFrame(
    [(u, i, float((u * i) % 5 + 1), 1_600_000_000 + 10 * u + i) for u in (3, 10, 200) for i in (7, 30, 100, 4)],
    schema=["user_id", "item_id", "rating", "timestamp"],
    orient="row",
)


def run(source: Path, out: Path, **settings: Any) -> Dataset:
    return ingest(config.Dataset(name="t", source=str(source), **settings), out)


def test_features_of_every_kind(tmp_path: Path) -> None:
    EVENTS.write_parquet(tmp_path / "interactions.parquet")
    (tmp_path / "i.csv").write_text(
        "id,label,year,tags,blurb\n7,Seven,1995,a|b,\n30,Thirty,,,long text\n999,Unused,1,x,\n"
    )
    items = {
        "source": "i.csv",
        "id": "id",
        "title": "label",
        "features": {"year": "numeric", "tags": "list", "blurb": "text"},
    }
    dataset = run(tmp_path, tmp_path / "out", items=items)
    assert dataset.item_titles() == ["4", "Seven", "Thirty", "100"]
    assert dataset.items["tags"].to_list() == [None, ["a", "b"], [], None]
    assert dataset.items["year"].to_list() == [None, 1995.0, None, None]
    facts = {"file": "i.csv", "without_row": 2, "unused_rows": 1, "features": items["features"]}
    assert dataset.manifest.entities["items"] == facts


@pytest.mark.parametrize(
    ("parts", "source", "interactions"),
    [
        (("days/e0.csv", "days/e1.csv"), "days/e*.csv", None),
        (("days/e0.csv", "days/e1.csv"), "days/*.csv", None),  # which finds the items too, first of all
        (("days/e0.csv", "days/e1.csv"), "days", "*.csv"),
        (("days/day=0/e.csv", "days/day=1/e.csv"), "days/day=*/e.csv", None),
        (("days/day=0/e.csv", "days/day=1/e.csv"), "days/**/*.csv", None),
    ],
)
def test_a_glob_of_events_has_its_items_in_the_folder_above_the_wildcards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[str, ...], source: str, interactions: str | None
) -> None:
    for place, part in enumerate(parts):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        EVENTS[place :: len(parts)].write_csv(tmp_path / part)
    (tmp_path / "days" / "at_items.csv").write_text("id,title\n7,Seven\n30,Thirty\n")
    settings: dict[str, Any] = {"items": {"source": "at_items.csv", "id": "id"}}
    settings |= {"interactions": interactions} if interactions else {}
    expected = [*parts, "days/at_items.csv"]
    monkeypatch.chdir(tmp_path)
    for given in (Path(source), tmp_path / source):
        files = source_files(config.Dataset(name="t", source=str(given), **settings))
        assert [path.resolve().relative_to(tmp_path).as_posix() for path in files] == expected
        dataset = run(given, tmp_path / "out" / str(given.is_absolute()), **settings)
        assert sum(dataset.manifest.counts.values()) == EVENTS.height
        assert dataset.item_titles() == ["4", "Seven", "Thirty", "100"]


def test_items_that_no_folder_of_a_glob_has_are_missed_by_name(tmp_path: Path) -> None:
    (tmp_path / "days" / "day=0").mkdir(parents=True)
    EVENTS.write_csv(tmp_path / "days" / "day=0" / "e.csv")
    with pytest.raises(DataError, match=r"items.source 'i.csv' is not in \S*days; there are: day=0"):
        run(tmp_path / "days" / "day=*" / "*.csv", tmp_path / "out", items={"source": "i.csv", "id": "id"})


def test_one_file_can_have_both_events_and_items(tmp_path: Path) -> None:
    rows = "".join(f"{i % 3},{i},t{i}\n" for i in range(30))
    (tmp_path / "e.csv").write_text("user_id,item_id,title\n" + rows)
    dataset = run(tmp_path / "e.csv", tmp_path / "out", items={"source": "e.csv", "id": "item_id"})
    assert dataset.item_titles() == [f"t{i}" for i in range(30)]


def test_feature_ids_are_read_without_blanks_where_events_have_none(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("user_id,item_id\n" + "".join(f"{u}, {i}\n" for u in range(4) for i in range(9)))
    (tmp_path / "i.csv").write_text("id,title\n" + "".join(f" {i} ,t{i}\n" for i in range(8)))
    dataset = run(tmp_path / "e.csv", tmp_path / "out", items={"source": "i.csv", "id": "id"})
    assert dataset.manifest.entities["items"] == {"file": "i.csv", "without_row": 1, "unused_rows": 0, "features": {}}
    assert dataset.item_titles()[:2] == ["t0", "t1"]


def test_a_feature_file_of_other_ids_names_both_sides(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("user_id,item_id\n" + "".join(f"{u},{i}\n" for u in range(4) for i in range(9)))
    (tmp_path / "i.csv").write_text("id,title\ntt1,a\ntt2,b\n")
    with pytest.raises(
        DataError,
        match=r"i.csv, column 'id': no id is that of any item .* ids are 'tt1', 'tt2', .* first are '0', '1', '2'",
    ):
        run(tmp_path / "e.csv", tmp_path / "out", items={"source": "i.csv", "id": "id"})


@pytest.mark.parametrize(
    ("text", "entity", "message"),
    [
        (
            "id,t\n7,a\n7,b\n",
            {},
            r"i.csv, row 2, column 'id': value '7' was described in row 1 already \(1 duplicate rows\)",
        ),
        ("id,t\n7,a\n,b\n", {}, r"i.csv, row 2, column 'id': the id is missing"),
        ("id,t\n7,a\n8\n", {}, r"i.csv, row 2: 1 cells, there are 2"),
        ("id,t\n7,a\n", {"id": "idd"}, r"i.csv: there is no column 'idd' for items.id; did you mean id"),
        ("id,t\n7,a\n", {"title": "tt"}, r"no column 'tt' for items.title; did you mean t"),
        ("id,t\n7,a\n", {"features": {"t": "numeric"}}, r"i.csv, row 1, column 't': value 'a' is not a number"),
        ("id,t\n7,a\n", {"features": {"z": "text"}}, r"no column 'z' for items.features"),
        (
            "id,t,title\n7,a,b\n",
            {"features": {"title": "text"}},
            r"items.features: 'title' is a column that every table has",
        ),
        ("id,t\n7,a\n", {"source": "j.csv"}, r"items.source 'j.csv' is not in .*did you mean i.csv"),
        ("", {}, r"i.csv: the file is empty"),
    ],
)
def test_bad_feature_files(text: str, entity: dict[str, Any], message: str, tmp_path: Path) -> None:
    EVENTS.write_parquet(tmp_path / "interactions.parquet")
    (tmp_path / "i.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        run(tmp_path, tmp_path / "out", items={"source": "i.csv", "id": "id"} | entity)
    assert not (tmp_path / "out").exists()


def test_bad_feature_files_of_other_formats(tmp_path: Path) -> None:
    EVENTS.write_parquet(tmp_path / "interactions.parquet")
    (tmp_path / "i.csv").write_bytes(b"id,t\n7,caf\xe9\n")
    (tmp_path / "i.jsonl").write_text('{"id": 1\n')
    (tmp_path / "mixed.jsonl").write_text('{"id": 1}\n{"id": [1]}\n')
    (tmp_path / "i.xml").write_text("<a/>")
    (tmp_path / "i.parquet").write_bytes(b"PAR1")
    pl.DataFrame({"id": [7], "v": [[1]], "w": [1]}).write_parquet(tmp_path / "ok.parquet")
    for source, features, message in (
        ("i.csv", {}, "i.csv, line 2: byte 0xe9 is not UTF-8"),
        ("i.jsonl", {}, r"i.jsonl, row 1 \(line 1\): value '{\"id\": 1' is not JSON \(Expecting"),
        ("mixed.jsonl", {}, "mixed.jsonl: not JSON, one object a line with values of one kind in a column"),
        ("i.xml", {}, "users and items files are parquet, csv"),
        ("i.parquet", {}, "i.parquet: not a complete Parquet file"),
        ("ok.parquet", {"v": "text"}, "the text feature needs one value a row"),
        ("ok.parquet", {"w": "list"}, "a list feature needs lists"),
    ):
        with pytest.raises(DataError, match=message):
            run(tmp_path, tmp_path / "out", items={"source": source, "id": "id", "features": features})


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("id", [[7], [8]], r"i.parquet, column 'id': the id needs one value a row, got List\(Int64\)"),
        ("id", [b"7", b"\xff"], r"i.parquet, row 2, column 'id': value b'\\xff' is binary and not UTF-8"),
        ("title", [{"en": "a"}, {"en": "b"}], r"i.parquet, column 'title': the title needs one value .* got Struct"),
        ("size", [[1.0], [2.0]], r"i.parquet, column 'size': the numeric feature needs one value a row, got List"),
        ("size", [b"1", b"\xff"], r"i.parquet, row 2, column 'size': value b'\\xff' is binary and not UTF-8"),
    ],
)
def test_feature_columns_of_odd_types(column: str, cells: list[Any], message: str, tmp_path: Path) -> None:
    EVENTS.write_parquet(tmp_path / "interactions.parquet")
    table = {"id": [7, 8], "title": ["a", "b"], "size": [1, 2]} | {column: cells}
    pl.DataFrame(table).write_parquet(tmp_path / "i.parquet")
    items = {"source": "i.parquet", "id": "id", "features": {"size": "numeric"}}
    with pytest.raises(DataError, match=message):
        run(tmp_path, tmp_path / "out", items=items)


@pytest.mark.parametrize("side", ["user", "item"])
def test_a_recbole_column_title_is_the_title(side: str, tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\n"
    (tmp_path / "ml.inter").write_text(header + "".join(f"{u}\t{i}\n" for u in range(4) for i in range(9)))
    columns = f"{side}_id:token\ttitle:token_seq\traw_id:token\tyear:float\n"
    (tmp_path / f"ml.{side}").write_text(columns + "0\tNought nil\tx\t1995\n")
    dataset = run(tmp_path, tmp_path / "out")
    table = {"user": dataset.users, "item": dataset.items}[side]
    assert table.row(0, named=True) == {"raw_id": "0", "title": "Nought nil", "year": 1995.0}
    assert dataset.manifest.entities[f"{side}s"]["features"] == {"year": "numeric"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": 30', r"value '{\"id\": 30' is not JSON \(Expecting ',' delimiter\)"),
        (b"{'id': 30}", r"value \"{'id': 30}\" is not JSON"),
        (b"[30]", r"value '\[30\]' is not a JSON object"),
        (b'{"id": "caf\xe9"}', r"has byte 0xe9, which is not UTF-8"),
    ],
)
def test_a_bad_line_of_a_jsonl_feature_file_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    EVENTS.write_parquet(tmp_path / "interactions.parquet")
    (tmp_path / "i.jsonl").write_bytes(b'{"id": 7}\n\n' + line + b'\n{"id": 100}\n')
    with pytest.raises(DataError, match=r"^i.jsonl, row 2 \(line 3\): .*" + message):
        run(tmp_path, tmp_path / "out", items={"source": "i.jsonl", "id": "id"})


def test_a_jsonl_feature_file_may_begin_with_a_mark(tmp_path: Path) -> None:
    EVENTS.write_parquet(tmp_path / "interactions.parquet")
    (tmp_path / "i.jsonl").write_bytes(b'\xef\xbb\xbf{"id": 7, "title": "Seven"}\n{"id": 30}')
    dataset = run(tmp_path, tmp_path / "out", items={"source": "i.jsonl", "id": "id"})
    assert dataset.item_titles() == ["4", "Seven", "30", "100"]
