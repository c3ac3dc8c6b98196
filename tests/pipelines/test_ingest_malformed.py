"""Every malformed input ends in one error that says where and what, and leaves nothing behind."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import BAD_ROW, COLUMNS, FILES, Case, all_cases, good_rows, lines, write_rows

from pipelines import config
from pipelines.dataset import Dataset
from pipelines.errors import DataError
from pipelines.ingest import ingest

CASES = all_cases()


def test_the_corpus_is_large_and_named_apart() -> None:
    assert len(CASES) >= 200
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_malformed_input_is_one_error_that_says_where(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path / case.file)
    with pytest.raises(DataError) as caught:
        ingest(config.Dataset(name="bad", source=str(tmp_path / case.file), **case.settings), tmp_path / "out")
    for part in case.parts:
        assert part in str(caught.value), str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [case.file]


@pytest.mark.parametrize("entities", [False, True], ids=["events", "users"])
def test_a_parquet_file_on_which_polars_panics_is_damaged(entities: bool, tmp_path: Path) -> None:
    """Polars 2.1 panics, which is no ``Exception``, where some of these bytes are 0."""
    path, users = tmp_path / "e.parquet", tmp_path / "u.parquet"
    write_rows("parquet", good_rows())(path)
    pl.DataFrame({"id": range(40), "age": range(40)}).write_parquet(users)
    facts = {"users": config.Entities(source=users.name, id="id", features={"age": "numeric"})} if entities else {}
    file, told = users if entities else path, 0
    good = file.read_bytes()
    for place in range(4, 140):
        file.write_bytes(good[:place] + b"\0" + good[place + 1 :])
        try:
            ingest(config.Dataset(name="d", source=str(path), **facts), tmp_path / "out")
        except DataError as error:
            told += "damaged Parquet file" in str(error)
    assert told


@pytest.mark.parametrize("kind", ["csv", "tsv", "recbole", "jsonl"])
def test_quarantine_sets_aside_what_fail_reports(kind: str, tmp_path: Path) -> None:
    rows = good_rows(40)
    rows[BAD_ROW - 1][0] = "abc"
    rows[20][3] = -5
    path = tmp_path / {"csv": "e.csv", "tsv": "e.tsv", "recbole": "e.inter", "jsonl": "e.jsonl"}[kind]
    write_rows(kind, rows)(path)
    dataset = ingest(config.Dataset(name="q", source=str(path), on_error="quarantine"), tmp_path / "out")
    assert dataset.manifest.quarantine == {"is not an integer": 1, "is a negative timestamp (before 1970)": 1}
    assert sum(dataset.manifest.counts.values()) == 38
    aside = pl.read_parquet(tmp_path / "out" / "quarantine.parquet")
    assert aside["row"].to_list() == [BAD_ROW, 21]
    assert aside["column"].to_list() == ["user_id", "timestamp"]
    assert aside["value"].to_list() == ["abc", "-5"]
    assert '"user_id": "abc"' in aside["raw"][0]


@pytest.mark.parametrize("kind", ["csv", "recbole", "jsonl", "parquet", "lightgcn"])
def test_files_of_one_name_are_told_apart_by_their_folders(kind: str, tmp_path: Path) -> None:
    bad = good_rows()
    bad[BAD_ROW - 1][0] = "abc"
    for day, rows in ((1, good_rows()), (2, bad)):
        path = tmp_path / f"day={day}" / {**FILES, "lightgcn": "e.txt"}[kind]
        path.parent.mkdir()
        if kind == "parquet":
            rows = [[str(cell) for cell in row] for row in rows]  # noqa: PLW2901
        if kind == "lightgcn":
            path.write_bytes(b"".join(f"{row[0]} {row[1]}\n".encode() for row in rows))
        else:
            write_rows(kind, rows)(path)
    settings = {
        "name": "q",
        "source": str(tmp_path / "day=*" / path.name),
        "split": {"method": "user_ratio", "valid": 0.4},
    }
    with pytest.raises(DataError, match=rf"^day=2/{path.name}, row {BAD_ROW}\b"):
        ingest(config.Dataset(**settings), tmp_path / "out")
    ingest(config.Dataset(**settings, on_error="quarantine"), tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / "quarantine.parquet")["file"].to_list() == [f"day=2/{path.name}"]


def test_quarantine_of_every_row_says_so(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_bytes(b"user_id,item_id\n,1\n,2\n")
    with pytest.raises(DataError, match=r"all 2 rows are bad: e.csv, row 1"):
        ingest(config.Dataset(name="q", source=str(tmp_path / "e.csv"), on_error="quarantine"), tmp_path / "out")


def test_an_older_dataset_survives_a_failed_ingest(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    write_rows("csv", good_rows())(path)
    before = ingest(config.Dataset(name="a", source=str(path)), tmp_path / "out").content_hash
    path.write_bytes(b"user_id,item_id\nx\n")
    with pytest.raises(DataError):
        ingest(config.Dataset(name="a", source=str(path)), tmp_path / "out")
    assert Dataset.open(tmp_path / "out").content_hash == before


def test_the_bad_row_is_found_in_a_later_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.ingest.text.CHUNK", 512)
    rows = good_rows(500)
    rows[432][1] = "oops"
    write_rows("csv", rows)(tmp_path / "e.csv")
    with pytest.raises(DataError, match=r"e\.csv, row 433 \(line 434\), column 'item_id': value 'oops'"):
        ingest(config.Dataset(name="c", source=str(tmp_path / "e.csv")), tmp_path / "out")


def test_a_cell_longer_than_the_csv_module_allows_by_default(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_bytes(b"user_id,note,item_id\n1," + b"x" * 200_000 + b",2\noops,,3\n1,,4\n1,,5\n1,,6\n")
    with pytest.raises(DataError, match=r"e\.csv, row 2 \(line 3\), column 'user_id': value 'oops'"):
        ingest(config.Dataset(name="c", source=str(tmp_path / "e.csv")), tmp_path / "out")


def test_a_quote_that_never_closes_is_found_before_memory_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.ingest.text.CHUNK", 512)
    monkeypatch.setattr("pipelines.ingest.text.LONGEST_RECORD", 2048)
    data = lines(good_rows(), ",", ",".join(COLUMNS)) + b'"' + b"1,2,3,4\n" * 2000
    (tmp_path / "e.csv").write_bytes(data)
    with pytest.raises(DataError, match=r"e\.csv, line 14: a record that begins here has no end"):
        ingest(config.Dataset(name="c", source=str(tmp_path / "e.csv")), tmp_path / "out")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_is_a_dataset_or_a_data_error(data: st.DataObject, tmp_path: Path) -> None:
    kind, file = data.draw(
        st.sampled_from([("csv", "e.csv"), ("recbole", "e.inter"), ("jsonl", "e.jsonl"), ("parquet", "e.parquet")])
    )
    path = tmp_path / file
    write_rows(kind, good_rows())(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(st.binary(max_size=3))
        content[place : place + data.draw(st.integers(0, 3))] = new
    path.write_bytes(bytes(content))
    try:
        dataset = ingest(config.Dataset(name="m", source=str(path)), tmp_path / "out")
    except DataError as error:
        assert file in str(error) or "interactions are left" in str(error) or "split is empty" in str(error)
    else:
        frame = dataset.frame()
        assert frame["user"].max() < dataset.num_users
        assert frame["item"].max() < dataset.num_items
