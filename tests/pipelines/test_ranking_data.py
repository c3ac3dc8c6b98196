"""Sources of labelled events and their encoding: what is fitted on train, what is missing, unseen, degenerate."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from event_files import criteo_rows

from pipelines.cache import Cache
from pipelines.config_ranking import (
    CriteoData,
    EventSplit,
    FrappeData,
    Join,
    Label,
    LibfmData,
    TableData,
)
from pipelines.errors import DataError
from pipelines.ranking import encode as encoding
from pipelines.ranking.data import RankingData, prepare
from pipelines.ranking.frappe import FIELDS, USERS, read_frappe
from pipelines.ranking.reserved import LABEL


def table(tmp_path: Path, **changes: Any) -> RankingData:
    """Ten events: 1-6 train, 7-8 valid, 9-10 test; the last ones have values that train lacks."""
    columns = {
        "user": [1, 1, 2, 2, 3, 3, 1, 9, 2, 1],
        "item": ["a", "b", "a", None, "a", "b", "a", "z", None, "b"],
        "price": [1.0, 3.0, None, 1.0, 3.0, 1.0, 2.0, None, 1.0, 3.0],
        "label": [1, 0, 1, 0, 1, 0, 1, 0, 1, 0],
        "split": ["train"] * 6 + ["valid"] * 2 + ["test"] * 2,
    }
    pl.DataFrame(columns | changes.pop("columns", {})).write_parquet(tmp_path / "interactions.parquet")
    chosen: dict[str, Any] = {"fields": ("user", "item"), "split": EventSplit(method="given", column="split")}
    config = TableData(name="t", source=str(tmp_path), **chosen | changes)
    return prepare(Cache(tmp_path / "cache"), config)


def test_vocabularies_are_those_of_train_and_a_missing_value_is_a_value(tmp_path: Path) -> None:
    data = table(tmp_path)
    assert data.sizes == {"user": 3, "item": 3}
    assert data.vocabulary("item")["value"].to_list() == ["a", "b", None]
    assert data.events("train").column("item").tolist() == [0, 1, 0, 2, 0, 1]
    assert data.events("valid").ids.tolist() == [[0, 0], [3, 3]]  # 9 and z are not in train
    assert data.events("test").ids.tolist() == [[1, 2], [0, 1]]
    assert data.graph().toarray().tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]


def test_users_of_test_without_an_id_are_told_apart_in_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "BLOCK", 3)
    users = [1, 1, 2, 2, 3, 3, 9, 8, 7, 1, 9, 7, 2, None, 9]
    rows = {"item": ["a"] * 15, "price": [1.0] * 15, "label": [1, 0] * 7 + [1]}
    split = ["train"] * 6 + ["valid"] * 2 + ["test"] * 7
    data = table(tmp_path, columns={"user": users, "split": split, **rows})
    assert data.events("test").column("user").tolist() == [3, 0, 3, 3, 1, 3, 3]
    assert data.test_users().tolist() == [3, 0, 4, 3, 1, 5, 4]  # of 7, 1, 9, 7, 2, None, 9


def test_rare_values_have_no_id_of_their_own(tmp_path: Path) -> None:
    data = table(tmp_path, min_count=2)
    assert data.vocabulary("item")["value"].to_list() == ["a", "b"]
    assert data.events("train").column("item").tolist() == [0, 1, 0, 2, 0, 1]


def test_users_and_items_without_positives_have_no_id_of_their_own(tmp_path: Path) -> None:
    """Of the items only a has train positives; days are neither users nor items."""
    days = ["mon", "tue"] * 5
    data = table(tmp_path, min_positives=1, fields=("user", "item", "day"), columns={"day": days})
    assert data.vocabulary("item").rows() == [("a", 3)]
    assert data.vocabulary("user")["value"].to_list() == [1, 2, 3]
    assert data.vocabulary("day")["value"].to_list() == ["mon", "tue"]
    assert data.events("train").column("item").tolist() == [0, 1, 0, 1, 0, 1]
    assert table(tmp_path, min_positives=2).sizes == {"user": 0, "item": 1}


def test_positives_are_counted_over_blocks_by_the_label_that_the_data_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratings of 4 are positive: of a once, of the missing item twice, of b never."""
    monkeypatch.setattr(encoding, "BLOCK", 2)
    rows = {"label": [4, 1, 1, 5, 4, 3, 5, 1, 5, 1], "item": ["a", "b", "a", None, None, "b", "a", "z", None, "b"]}
    data = table(tmp_path, columns=rows, label=Label(at_least=4.0), min_positives=1)
    assert data.vocabulary("item").rows() == [("a", 2), (None, 2)]
    assert table(tmp_path, columns=rows, label=Label(at_least=4.0), min_positives=2).sizes["item"] == 1


def test_the_age_of_an_item_is_the_time_since_its_first_train_event(tmp_path: Path) -> None:
    times = [5, 2, 3, 4, 9, 9, 1, 1, 10, None]
    ages = table(tmp_path, time="at", columns={"at": times}).test_ages()
    assert ages is not None
    assert (ages.unit, ages.ages[0]) == ("at", 10 - 4)  # a missing item is an item
    assert np.isnan(ages.ages[1])
    days = [datetime(2026, 1, day or 1) for day in times]
    ages = table(tmp_path, time="at", columns={"at": days}).test_ages()
    assert ages is not None
    assert (ages.unit, ages.ages.tolist()) == ("days", [6.0, -1.0])
    assert table(tmp_path).test_ages() is None
    with pytest.raises(
        DataError, match=r"dataset\.time needs numbers, dates or times: column 'at' .* but row 0 has 'x'"
    ):
        table(tmp_path, time="at", columns={"at": ["x"] * 10})
    with pytest.raises(DataError, match=r"dates or times: column 'at' must have finite numbers, but row 1 has inf"):
        table(tmp_path, time="at", columns={"at": [0.0, float("inf")] * 5})
    with pytest.raises(DataError, match="the column 'at' has Duration"):
        table(tmp_path, time="at", columns={"at": [timedelta(days=1)] * 10})
    with pytest.raises(DataError, match="has no column 'when'"):
        table(tmp_path, time="when")


def test_numbers_are_scaled_by_train_and_say_where_they_are_missing(tmp_path: Path) -> None:
    data = table(tmp_path, numeric={"price": "standardise"})
    assert data.facts["dense"] == ["price", "price is missing"]
    mean, deviation = 9 / 5, np.std([1, 3, 1, 3, 1])
    np.testing.assert_allclose(data.events("train").dense[:3, 0], [(1 - mean) / deviation, (3 - mean) / deviation, 0])
    assert data.events("valid").dense[:, 1].tolist() == [0.0, 1.0]


def test_numbers_in_buckets_become_a_field(tmp_path: Path) -> None:
    data = table(tmp_path, numeric={"price": "log_bucket"})
    assert data.fields == ("user", "item", "price")
    assert data.vocabulary("price")["value"].to_list() == [1, None]  # 1 and floor(ln(3)^2) are one bucket
    assert data.events("valid").column("price").tolist() == [2, 1]  # 2 has a bucket that train lacks


def test_log_standardise_is_the_logarithm_standardised(tmp_path: Path) -> None:
    data = table(tmp_path, numeric={"price": "log_standardise"})
    logs = np.log1p([1, 3, 1, 3, 1])
    np.testing.assert_allclose(data.events("train").dense[0, 0], (logs[0] - logs.mean()) / logs.std(), rtol=1e-5)


def test_a_constant_number_is_zero_and_one_without_a_value_is_an_error(tmp_path: Path) -> None:
    constant = table(tmp_path, columns={"price": [5.0] * 10}, numeric={"price": "standardise"})
    assert not constant.events("test").dense.any()
    with pytest.raises(DataError, match="numeric column 'price' has no value in train; leave it out"):
        table(tmp_path, columns={"price": [None] * 6 + [1.0] * 4}, numeric={"price": "standardise"})
    bucketed = table(tmp_path, columns={"price": [None] * 6 + [1.0] * 4}, numeric={"price": "log_bucket"})
    assert bucketed.sizes["price"] == 1


def test_labels_from_ratings_and_features_from_another_file(tmp_path: Path) -> None:
    items = {"item": ["a", "b"], "genres": [["x", "y"], ["x"]]}
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    data = table(
        tmp_path,
        columns={"label": [5, 3, 4, 2, 4, 1, 5, 2, 4, 3]},
        label=Label(at_least=4),
        joins=(Join(source="items.parquet", key="item", columns=("genres",)),),
        fields=("user", "item", "genres"),
    )
    assert data.events("train").labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert data.vocabulary("genres")["value"].to_list() == ["x", "x|y", None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"columns": {"label": [1, 0, 2] + [0] * 7}},
            "labels must be 0 or 1, but row 2 has 2 in column 'label'; correct it, or set",
        ),
        ({"columns": {"label": [1, None] + [0] * 8}}, "labels must be 0 or 1, but row 1 has None"),
        ({"fields": ("user", "town"), "item": "town"}, "has no column 'town'"),
        ({"item": "town"}, "dataset.item is 'town', but the fields are user, item"),
        ({"columns": {"split": ["train"] * 10}}, r"the valid split has no event \(train, valid, test: \[10, 0, 0\]\)"),
        ({"columns": {"split": ["train"] * 9 + ["dev"]}}, "must be train, valid or test, but row 9 has 'dev'"),
        ({"numeric": {"user": "standardise"}}, "a column is in fields and in numeric, or twice: user, item, user"),
        ({"events": "other.parquet"}, "has no file 'other.parquet'"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        table(tmp_path, **changes)


def test_events_of_another_suffix_are_told(tmp_path: Path) -> None:
    (tmp_path / "events.json").write_text("{}")
    config = TableData(name="t", source=str(tmp_path / "events.json"), fields=("user", "item"))
    with pytest.raises(DataError, match=r"must be .parquet, .csv or .tsv, got '.json'"):
        prepare(Cache(tmp_path / "cache"), config)


def test_splits_by_order_of_the_user_and_of_the_file(tmp_path: Path) -> None:
    columns = {
        "user": [1] * 10 + [2] * 10,
        "item": ["a"] * 20,
        "price": [0.0] * 20,
        "label": [0, 1] * 10,
        "split": ["train"] * 20,
    }
    position = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1, *range(1, 10)]
    by_user = EventSplit(method="user_order", column="position")
    data = table(tmp_path, columns=columns | {"position": position}, split=by_user)
    assert data.facts["counts"] == {"train": 16, "valid": 2, "test": 2}
    assert data.events("test").column("user").tolist() == [0, 1]
    assert data.events("test").labels.tolist() == [0, 1]  # position 9 of user 1 is row 0, of user 2 row 19
    by_file = table(tmp_path, columns=columns | {"position": position}, split=EventSplit(method="order"))
    assert by_file.events("test").column("user").tolist() == [1, 1]
    random = [table(tmp_path, columns=columns | {"position": position}, split=EventSplit(seed=s)) for s in (0, 0, 1)]
    assert random[0].hash == random[1].hash
    assert random[0].hash != random[2].hash


def test_events_grouped_by_another_field_are_other_events_to_every_later_stage(tmp_path: Path) -> None:
    plain, swapped = table(tmp_path), table(tmp_path, user="item", item="user")
    np.testing.assert_array_equal(plain.events("test").ids, swapped.events("test").ids)
    assert plain.hash != swapped.hash


def test_libfm_text(tmp_path: Path) -> None:
    for name, lines in {"train": "1 0:1 5:1\n-1 1:1 6:1\n", "valid": "0 0:1 6:1\n", "test": "1 2:1 5:1\n"}.items():
        (tmp_path / f"{name}.libfm").write_text(lines)
    config = LibfmData(name="l", source=str(tmp_path), fields=("user", "item"))
    data = prepare(Cache(tmp_path / "cache"), config)
    assert data.events("train").labels.tolist() == [1, 0]
    assert data.events("test").ids.tolist() == [[2, 0]]
    (tmp_path / "train.libfm").write_text("1 0:1 5:1\n1 0:1 5:0.5\n")
    with pytest.raises(DataError, match=r"line 2: required are a label and 2 features `index:1`.* got '1 0:1 5:0.5'"):
        prepare(Cache(tmp_path / "cache"), config)


def test_frappe_negatives_are_apps_that_the_user_has_not_in_train(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    positives = np.stack([rng.integers(0, 5, 40), USERS + rng.integers(0, 4000, 40), *([np.arange(40) % 3] * 8)], 1)
    codes = [f"f{i}" for i in range(10)]
    pl.DataFrame(dict(zip(codes, positives.T.astype(np.int32), strict=True))).write_parquet(
        tmp_path / "nfm_train_positives.parquet"
    )
    held = dict(zip(codes, positives[:4].T.astype(np.int32), strict=True))
    pl.DataFrame({"label": [1, 0, 1, 0], **held, "split": ["valid", "valid", "test", "test"]}).write_parquet(
        tmp_path / "nfm_libfm_valid_test.parquet"
    )
    frames = []
    for seed in (0, 0, 1):
        frame, splits, _ = read_frappe(tmp_path, 2, seed)
        frames.append(frame)
    assert frames[0].equals(frames[1])
    assert not frames[0].equals(frames[2])
    assert splits.tolist() == [0] * 120 + [1] * 2 + [2] * 2
    known = set(map(tuple, positives[:, :2].tolist()))
    negatives = frames[0].filter(pl.Series(splits == 0) & (pl.col(LABEL) == 0)).select(FIELDS).to_numpy()
    assert len(negatives) == 80
    assert not known & set(map(tuple, negatives[:, :2].tolist()))
    assert np.array_equal(negatives[:, 2:], np.repeat(positives[:, 2:], 2, 0))
    data = prepare(Cache(tmp_path / "cache"), FrappeData(name="f", source=str(tmp_path)))
    assert data.facts["positives"] == {"train": 40, "valid": 1, "test": 1}


def test_criteo_text_and_parquet_give_the_same_arrays_whatever_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = criteo_rows(500)
    frame.write_csv(tmp_path / "train.txt", separator="\t", include_header=False)
    frame.write_parquet(tmp_path / "train.parquet")
    found = []
    for events, block in (("train.txt", 1 << 17), ("train.parquet", 1 << 17), ("train.txt", 64)):
        monkeypatch.setattr(encoding, "BLOCK", block)
        config = CriteoData(name="c", source=str(tmp_path), events=events, min_count=3)
        found.append(prepare(Cache(tmp_path / f"cache-{events}-{block}"), config))
    assert len({data.hash for data in found}) == 1
    assert found[0].events("train").ids.shape == (found[0].facts["counts"]["train"], 39)
    assert 370 < found[0].facts["counts"]["train"] < 430
    assert found[0].sizes["C1"] < 200
    standard = CriteoData(name="c", source=str(tmp_path), events="train.txt", numeric="log_standardise")
    assert prepare(Cache(tmp_path / "cache"), standard).num_dense == 26


@pytest.mark.quality
def test_criteo_of_20_million_rows_is_read_in_little_memory(tmp_path: Path) -> None:
    """The file is 5.5 GB; what is resident grows by less than 2 GiB."""
    import psutil

    part = criteo_rows(200_000).write_csv(separator="\t", include_header=False).encode()
    with (tmp_path / "train.txt").open("wb") as file:
        for _ in range(100):
            file.write(part)
    before = psutil.Process().memory_full_info().uss
    data = prepare(Cache(tmp_path / "cache"), CriteoData(name="c", source=str(tmp_path)))
    assert sum(data.facts["counts"].values()) == 20_000_000
    assert psutil.Process().memory_full_info().uss - before < 2 * 2**30
