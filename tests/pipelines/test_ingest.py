"""What ingest makes of well-formed input, in every format."""

import datetime
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines import config
from pipelines.dataset import Dataset, graph_hash
from pipelines.errors import DataError
from pipelines.ingest import ingest, source_fingerprint

ROWS = [(u, i, float((u * i) % 5 + 1), 1_600_000_000 + 10 * u + i) for u in (3, 10, 200) for i in (7, 30, 100, 4)]


def frame(rows: list[tuple[Any, ...]] = ROWS) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")


def run(source: Path, out: Path, **settings: Any) -> Dataset:
    return ingest(config.Dataset(name="t", source=str(source), **settings), out)


def write(path: Path, data: pl.DataFrame) -> Path:
    match path.suffix:
        case ".parquet":
            data.write_parquet(path)
        case ".csv":
            data.write_csv(path)
        case ".tsv":
            data.write_csv(path, separator="\t")
        case ".jsonl":
            data.write_ndjson(path)
        case _:
            types = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}
            data.rename({name: f"{name}:{types[name]}" for name in data.columns}).write_csv(path, separator="\t")
    return path


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl", "inter"])
def test_every_format_gives_the_same_dataset(suffix: str, tmp_path: Path) -> None:
    reference = run(write(tmp_path / "r.parquet", frame()), tmp_path / "reference")
    dataset = run(write(tmp_path / f"e.{suffix}", frame()), tmp_path / "out")
    assert dataset.content_hash == reference.content_hash
    assert dataset.raw_user_ids() == ["3", "10", "200"]
    assert dataset.raw_item_ids() == ["4", "7", "30", "100"]
    assert dataset.manifest.split["method"] == "global_time"
    assert dataset.manifest.counts == {"train": 8, "valid": 2, "test": 2}
    assert dataset.manifest.columns == ["rating", "timestamp"]


def test_lightgcn_files_keep_their_split_and_carve_validation(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("0 1 2 3 4 5\n1 2 3 4 5 6\n\n2 7\n")
    (tmp_path / "test.txt").write_text("0 6 7\n1 1\n2\n")
    dataset = run(tmp_path, tmp_path / "out", split=config.Split(valid=0.2))
    assert dataset.manifest.counts == {"train": 9, "valid": 2, "test": 3}
    assert dataset.manifest.split["valid_from"] == "train"
    assert dataset.matrix("test").toarray()[0].nonzero()[0].tolist() == [5, 6]


def test_recbole_finds_its_user_and_item_files(tmp_path: Path) -> None:
    write(tmp_path / "ml.inter", frame())
    (tmp_path / "ml.item").write_text(
        "item_id:token\tname:token_seq\tyear:float\tgenre:token_seq\n7\tSeven up\t1995\tcrime drama\n"
    )
    dataset = run(tmp_path, tmp_path / "out")
    row = dataset.items.filter(raw_id="7").row(0, named=True)
    assert row["genre"] == ["crime", "drama"]
    assert row["year"] == 1995
    assert dataset.item_titles() == ["4", "Seven up", "30", "100"]
    kinds = {"name": "list", "year": "numeric", "genre": "list"}
    facts = {"file": "ml.item", "without_row": 3, "unused_rows": 0, "features": kinds}
    assert dataset.manifest.entities["items"] == facts


def test_recbole_files_named_by_split(tmp_path: Path) -> None:
    for name, part in (("train", ROWS[:8]), ("valid", ROWS[8:10]), ("test", ROWS[10:])):
        write(tmp_path / f"ml.{name}.inter", frame(part))
    assert run(tmp_path, tmp_path / "out").manifest.counts == {"train": 8, "valid": 2, "test": 2}


def test_order_of_rows_and_files_does_not_matter(tmp_path: Path) -> None:
    rows = [(u, i, 1.0, 5) for u in range(30) for i in range(0, 60, 1 + u % 3)]
    settings = {"split": config.Split(method="random_ratio")}
    first = run(write(tmp_path / "a.csv", frame(rows)), tmp_path / "one", **settings)
    random.Random(1).shuffle(rows)
    (tmp_path / "parts").mkdir()
    for part in range(3):
        write(tmp_path / "parts" / f"{part}.csv", frame(rows[part::3]))
    second = run(tmp_path / "parts" / "*.csv", tmp_path / "two", **settings)
    assert first.content_hash == second.content_hash
    assert first.manifest.train_hash == second.manifest.train_hash == graph_hash(second.matrix("train"))


def test_string_ids_are_sorted_as_text_and_survive(tmp_path: Path) -> None:
    rows = [(u, i, 1.0, 5) for u in ("007", "7", "é", "b") for i in ("x", "10", "9", "a b")]
    for suffix in ("csv", "parquet", "jsonl"):
        dataset = run(
            write(tmp_path / f"s.{suffix}", frame(rows)),
            tmp_path / suffix,
            split={"method": "user_ratio", "valid": 0.25},
        )
        assert dataset.raw_user_ids() == ["007", "7", "b", "é"]
        assert dataset.raw_item_ids() == ["10", "9", "a b", "x"]


def test_strings_in_many_chunks_get_one_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"u{u}", f"i{i * 7 % 41}", 1.0, 100 * u + i) for u in range(40) for i in range(20)]
    path = write(tmp_path / "s.csv", frame(rows))
    whole = run(path, tmp_path / "whole")
    monkeypatch.setattr("pipelines.ingest.text.CHUNK", 700)
    assert run(path, tmp_path / "chunks").content_hash == whole.content_hash
    assert {(u, i) for u, i, *_ in rows} == {
        (whole.raw_user_ids()[u], whole.raw_item_ids()[i]) for u, i in whole.frame().select("user", "item").iter_rows()
    }


def test_sparse_64_bit_ids(tmp_path: Path) -> None:
    rows = [(u, i, 1.0, 5) for u in (-(2**62), 5, 2**62) for i in (2**40, 1, 2**41, 0)]
    dataset = run(
        write(tmp_path / "e.csv", frame(rows)), tmp_path / "out", split={"method": "user_ratio", "valid": 0.25}
    )
    assert dataset.raw_user_ids() == [str(-(2**62)), "5", str(2**62)]
    assert dataset.raw_item_ids() == ["0", "1", str(2**40), str(2**41)]


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
@pytest.mark.parametrize("given", [True, False])
def test_time_units(unit: str, factor: int, given: bool, tmp_path: Path) -> None:
    rows = [(u, i, r, t * factor) for u, i, r, t in ROWS]
    extra = {"timestamp_unit": unit} if given else {}
    dataset = run(write(tmp_path / "e.csv", frame(rows)), tmp_path / "out", **extra)
    assert sorted(dataset.frame()["timestamp"].to_list()) == sorted(t for *_, t in ROWS)


@pytest.mark.parametrize(
    "form", ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.250+00:00"]
)
def test_iso_times(form: str, tmp_path: Path) -> None:
    rows = [(u, i, r, datetime.datetime.fromtimestamp(t, datetime.UTC).strftime(form)) for u, i, r, t in ROWS]
    dataset = run(write(tmp_path / "e.csv", frame(rows)), tmp_path / "out")
    assert sorted(dataset.frame()["timestamp"].to_list()) == sorted(t for *_, t in ROWS)


def test_dates_and_parquet_datetimes(tmp_path: Path) -> None:
    days = [datetime.date(2020, 1, 1 + n) for n in range(len(ROWS))]
    data = frame().with_columns(pl.Series("timestamp", days))
    from_text = run(write(tmp_path / "e.csv", data), tmp_path / "a")
    typed = run(write(tmp_path / "e.parquet", data.cast({"timestamp": pl.Datetime("ms")})), tmp_path / "b")
    assert from_text.content_hash == typed.content_hash
    assert from_text.frame()["timestamp"].min() == 1_577_836_800


def test_text_quirks_are_read_right(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_bytes(
        b'\xef\xbb\xbfuser_id,note,item_id\r\n1,"a, b\r\n""q""",2\r\n\r\n 1 ,caf\xc3\xa9,3\r\n1,,+4\r\n1,"x",5'
    )
    dataset = run(tmp_path / "e.csv", tmp_path / "out", split={"method": "user_ratio", "valid": 0.25})
    assert dataset.raw_item_ids() == ["2", "3", "4", "5"]
    (tmp_path / "s.csv").write_bytes(b"user_id;item_id\n1;2\n1;3\n1;4\n")
    assert (
        run(tmp_path / "s.csv", tmp_path / "s", split={"method": "user_ratio", "valid": 0.3, "test": 0.3}).num_items
        == 3
    )


def test_a_quote_inside_a_cell_hides_no_rows(tmp_path: Path) -> None:
    rows = [f'{k % 7},{k},5" disk {k}' for k in range(60)]
    (tmp_path / "e.csv").write_text("\n".join(["user_id,item_id,note", *rows]) + "\n")
    assert sum(run(tmp_path / "e.csv", tmp_path / "out").manifest.counts.values()) == 60
    rows[30] = '3,30,"two\nlines, and ""more"""'
    (tmp_path / "e.csv").write_text("\n".join(["user_id,item_id,note", *rows]) + "\n")
    assert sum(run(tmp_path / "e.csv", tmp_path / "out").manifest.counts.values()) == 60


def test_blanks_around_times_and_a_marked_adjacency_file(tmp_path: Path) -> None:
    rows = [f"{k % 7} , {k} , {1_600_000_000 + k}" for k in range(60)]
    (tmp_path / "e.csv").write_text("\n".join(["user_id, item_id, timestamp", *rows]) + "\n")
    assert run(tmp_path / "e.csv", tmp_path / "out").frame()["timestamp"].min() == 1_600_000_000
    lists = "".join(f"{user} {' '.join(map(str, range(user, user + 9)))}\n" for user in range(5))
    (tmp_path / "e.txt").write_bytes(b"\xef\xbb\xbf" + lists.encode())
    assert run(tmp_path / "e.txt", tmp_path / "out").num_users == 5


def test_usual_column_names_are_found_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = frame().rename({"user_id": "userId", "item_id": "movieId"})
    with caplog.at_level("INFO"):
        run(write(tmp_path / "ratings.csv", data), tmp_path / "out")
    assert "ratings.csv: column 'movieId' is taken as item" in caplog.text


def filtered(tmp_path: Path, rows: list[tuple[Any, ...]], **filters: Any) -> tuple[set[tuple[str, str]], Dataset]:
    split = {"method": "user_ratio", "valid": 0.34, "test": 0.34}
    dataset = run(write(tmp_path / "e.csv", frame(rows)), tmp_path / "out", filters=filters, split=split)
    users, items = dataset.raw_user_ids(), dataset.raw_item_ids()
    return {(users[u], items[i]) for u, i in dataset.frame().select("user", "item").iter_rows()}, dataset


def test_threshold_keeps_what_is_liked(tmp_path: Path) -> None:
    pairs, dataset = filtered(
        tmp_path, [(u, i, float(i), 5) for u in (1, 2) for i in range(1, 6)], min_rating=3, max_rating=5
    )
    assert pairs == {(str(u), str(i)) for u in (1, 2) for i in (3, 4, 5)}
    assert [step["events"] for step in dataset.manifest.filters] == [10, 6, 6]


@pytest.mark.parametrize(("which", "rating"), [("last", 9.0), ("first", 1.0)])
def test_duplicates_keep_one_by_time(which: str, rating: float, tmp_path: Path) -> None:
    rows = [(1, 1, 5.0, 20), (1, 1, 9.0, 30), (1, 1, 1.0, 10), (1, 2, 3.0, 1), (1, 3, 3.0, 1)]
    _, dataset = filtered(tmp_path, rows, deduplicate=which)
    assert dataset.frame().height == 3
    assert dataset.frame()["rating"][0] == rating


def test_repeats_stay_in_the_earliest_split_when_they_are_kept(tmp_path: Path) -> None:
    rows = [(1, 1, 1.0, t) for t in (1, 2, 9)] + [(1, i, 1.0, i) for i in range(2, 11)]
    dataset = run(write(tmp_path / "e.csv", frame(rows)), tmp_path / "out", filters={"deduplicate": "none"})
    assert dataset.manifest.split["repeats_dropped"] == 1
    assert dataset.frame().filter(item=0)["split"].to_list() == [0, 0]
    assert dataset.matrix("train").max() == 1


def test_core_is_the_largest_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = sorted(
        {(int(u), int(i), 1.0, 5) for u, i in zip(rng.zipf(1.4, 900) % 97, rng.zipf(1.3, 900) % 89, strict=True)}
    )
    expected = {(u, i) for u, i, *_ in rows}
    while True:
        users = {u for u, _ in expected if sum(pair[0] == u for pair in expected) >= 4}
        items = {i for _, i in expected if sum(pair[1] == i for pair in expected) >= 3}
        kept = {(u, i) for u, i in expected if u in users and i in items}
        if kept == expected:
            break
        expected = kept
    assert 0 < len(expected) < len(rows)
    pairs, _ = filtered(tmp_path, rows, user_core=4, item_core=3)
    assert pairs == {(str(u), str(i)) for u, i in expected}


def test_crowds_are_dropped_before_the_core(tmp_path: Path) -> None:
    rows = [(1, i, 1.0, 5) for i in range(20)] + [(u, i, 1.0, 5) for u in (2, 3) for i in range(4)]
    pairs, _ = filtered(tmp_path, rows, max_user_interactions=10, item_core=2)
    assert {user for user, _ in pairs} == {"2", "3"}


def test_a_crowded_item_is_dropped(tmp_path: Path) -> None:
    rows = [(u, i, 1.0, 5) for u in range(4) for i in (0, u + 1, u + 10, u + 20)]
    pairs, _ = filtered(tmp_path, rows, max_item_interactions=3)
    assert "0" not in {item for _, item in pairs}


def test_rating_filter_needs_ratings(tmp_path: Path) -> None:
    write(tmp_path / "e.csv", frame().drop("rating"))
    with pytest.raises(DataError, match=r"min_rating and max_rating need a rating column; set `columns.rating`"):
        run(tmp_path / "e.csv", tmp_path / "out", filters={"min_rating": 3})


def test_binary_ids_are_text_or_an_error_and_later_files_are_checked(tmp_path: Path) -> None:
    good = frame().with_columns(pl.col("user_id").cast(pl.String).cast(pl.Binary), pl.lit(b"\xff").alias("picture"))
    good.write_parquet(tmp_path / "a.parquet")
    assert run(tmp_path / "a.parquet", tmp_path / "out").num_users == frame()["user_id"].n_unique()
    rows = pl.int_range(pl.len())
    good.with_columns(user_id=pl.when(rows == 2).then(pl.lit(b"\xfe")).otherwise("user_id")).write_parquet(
        tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match=r"a.parquet, row 3, column 'user_id': value b'\\xfe' is binary and not UTF-8"):
        run(tmp_path / "a.parquet", tmp_path / "out")
    (tmp_path / "parts").mkdir()
    frame().write_parquet(tmp_path / "parts" / "a.parquet")
    nested = frame().with_columns(pl.concat_list("user_id").alias("user_id"))
    nested.write_parquet(tmp_path / "parts" / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet, column 'user_id': needs one value a row, the column is List"):
        run(tmp_path / "parts" / "*.parquet", tmp_path / "out")


def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "e.csv", frame())
    (tmp_path / "e.bin").write_bytes(b"1")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "x.csv").write_bytes(b"")
    (tmp_path / "link.csv").symlink_to(tmp_path / "absent.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    for source, message in (
        (str(tmp_path / "f.csv"), "has no file: nothing is at .*did you mean e.csv"),
        (str(tmp_path / "no" / "f.csv"), "the directory .*no does not exist"),
        (str(tmp_path / "e.bin"), "cannot tell the format from the ending '.bin'; set `format`"),
        (str(tmp_path / "e.*"), "cannot tell the format"),
        (str(tmp_path / "dir"), "the directory .*dir has no file 'interactions.parquet'; there are: x.csv. Set `inter"),
        (str(tmp_path / "link.csv"), "link.csv is a link to a file that is not there"),
        (str(tmp_path / "pipe.csv"), "pipe.csv is not a regular file"),
        ("sample:anim", "unknown sample 'anim'; did you mean anime"),
        ("data:nothing", "set RECSYS_DATA to the directory"),
    ):
        with pytest.raises(DataError, match=message):
            run(source, tmp_path / "out")  # type: ignore[arg-type]
    write(tmp_path / "e.tsv", frame())
    with pytest.raises(DataError, match=r"mixes formats \(csv, tsv\); narrow the glob"):
        run(tmp_path / "e.?sv", tmp_path / "out")


def test_later_files_must_have_the_columns(tmp_path: Path) -> None:
    for suffix in ("csv", "parquet"):
        write(tmp_path / f"a.{suffix}", frame())
        write(tmp_path / f"b.{suffix}", frame().drop("rating"))
        with pytest.raises(
            DataError, match=rf"b.{suffix}: column 'rating' is missing, other files of the source have it"
        ):
            run(tmp_path / f"*.{suffix}", tmp_path / "out")


def test_progress_tells_stages_and_bytes(tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    path = write(tmp_path / "e.csv", frame())
    ingest(config.Dataset(name="t", source=str(path)), tmp_path / "out", lambda *args: told.append(args))
    assert list(dict.fromkeys(stage for stage, *_ in told)) == [
        "read",
        "index",
        "filter",
        "split",
        "write",
        "audit",
        "done",
    ]
    assert max(done for stage, done, _ in told if stage == "read") > 0.8 * path.stat().st_size


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    settings = config.Dataset(name="t", source=str(write(tmp_path / "e.csv", frame())))
    before = source_fingerprint(settings)
    assert source_fingerprint(settings) == before
    write(tmp_path / "e.csv", frame(ROWS[:-1]))
    assert source_fingerprint(settings) != before


def test_the_sample_and_gowalla_have_their_published_counts(tmp_path: Path, shared_data: Path) -> None:
    anime = run("sample:anime", tmp_path / "anime")  # type: ignore[arg-type]
    assert (anime.num_users, anime.num_items, sum(anime.manifest.counts.values())) == (5000, 7390, 520_609)
    gowalla = run(shared_data / "gowalla", tmp_path / "gowalla")
    assert (gowalla.num_users, gowalla.num_items) == (29_858, 40_981)
    assert gowalla.manifest.counts["train"] + gowalla.manifest.counts["valid"] == 810_128
    assert gowalla.manifest.counts["test"] == 217_242
