"""Events that cannot be used: each is one error that names the file, or the column, the row and the value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tiny_experiment import recsys

from pipelines.cache import Cache
from pipelines.config_ranking import CriteoData, EventSplit, Join, Label, NextItemData, TableData
from pipelines.errors import DataError
from pipelines.ranking.check_columns import check_columns
from pipelines.ranking.data import RankingData, prepare
from pipelines.ranking.numbers import as_numbers

ROWS = 20
CONFIG = """\
task: ctr
experiment: wrong
dataset: {{format: table, name: wrong, source: {source}, fields: [user, item]}}
tracking: {{enabled: false}}
variants: [{{name: full, model: {{name: dcn_v2, dim: 4, hidden: [8]}}}}]
"""


def events(**changes: Any) -> pl.DataFrame:
    columns = {
        "user": [row % 3 for row in range(ROWS)],
        "item": [row % 4 for row in range(ROWS)],
        "price": [float(row % 5) for row in range(ROWS)],
        "at": list(range(ROWS)),
        "label": [row % 2 for row in range(ROWS)],
    }
    return pl.DataFrame(columns | changes)


def prepared(tmp_path: Path, frame: pl.DataFrame, suffix: str = ".parquet", **settings: Any) -> RankingData:
    """The events as a file of the suffix, prepared; the last 4 rows are test."""
    path = tmp_path / f"events{suffix}"
    frame.write_parquet(path) if suffix == ".parquet" else frame.write_csv(path)
    chosen: dict[str, Any] = {"fields": ("user", "item"), "split": EventSplit(method="order", valid=0.2, test=0.2)}
    return prepare(Cache(tmp_path / "cache"), TableData(name="t", source=str(path), **chosen | settings))


def replaced(row: int, value: Any, values: list[Any]) -> list[Any]:
    return [*values[:row], value, *values[row + 1 :]]


PRICES = [str(row % 5) for row in range(ROWS)]
BY_TIME: dict[str, Any] = {"split": EventSplit(method="user_order", column="at")}
NUMERIC: dict[str, Any] = {"numeric": {"price": "standardise"}}


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"price": replaced(7, "cheap", PRICES)}, NUMERIC, "'price' must have finite numbers, but row 7 has 'cheap'"),
        (
            {"price": replaced(7, "cheap", PRICES)},
            {"numeric": {"price": "log_bucket"}},
            "'price' must have finite numbers, but row 7 has 'cheap'",
        ),
        (
            {"label": replaced(3, "good", ["5"] * ROWS)},
            {"label": Label(at_least=4)},
            "labels must be numbers, but row 3 has 'good' in column 'label'; correct it$",
        ),
        ({"label": replaced(3, "yes", ["0", "1"] * 10)}, {}, "labels must be 0 or 1, but row 3 has 'yes'"),
        ({"label": replaced(3, None, [5, 1] * 10)}, {"label": Label(at_least=4)}, "numbers, but row 3 has None"),
        (
            {"at": replaced(5, None, list(range(ROWS)))},
            BY_TIME,
            r"dataset\.split\.column 'at' orders a user's events and must have a number, .* but row 5 has None",
        ),
        ({"at": replaced(5, "noon", PRICES)}, BY_TIME, "in every row, but row 5 has 'noon'; correct it"),
    ],
)
def test_a_value_is_told_with_its_column_and_row(
    tmp_path: Path, suffix: str, columns: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, events(**columns), suffix, **settings)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("kind", ["standardise", "log_standardise", "log_bucket"])
@pytest.mark.parametrize("row", [2, 13, 18])
def test_an_infinite_number_is_an_error_in_every_split(tmp_path: Path, suffix: str, kind: str, row: int) -> None:
    prices = replaced(row, float("-inf"), [float(place % 5) for place in range(ROWS)])
    with pytest.raises(DataError, match=f"'price' must have finite numbers, but row {row} has '?-inf'?; correct it"):
        prepared(tmp_path, events(price=prices), suffix, numeric={"price": kind})


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_not_a_number_is_missing(tmp_path: Path, suffix: str) -> None:
    values = [float(place % 5) for place in range(ROWS)]
    found = [
        prepared(tmp_path, events(price=replaced(2, lacking, values)), suffix, **NUMERIC)
        for lacking in (float("nan"), None)
    ]
    assert found[0].hash == found[1].hash
    assert found[0].events("train").dense[2].tolist() == [0.0, 1.0]


def test_numbers_too_far_from_train_are_errors(tmp_path: Path) -> None:
    values = [float(place % 5) for place in range(ROWS)]
    with pytest.raises(
        DataError, match=r"'price' is 7.\d*e\+299 standard deviations .* mean in row 18; the most is 1e\+06"
    ):
        prepared(tmp_path, events(price=replaced(18, 1e300, values)), **NUMERIC)
    with pytest.raises(
        DataError, match="'price' has values beyond 1e150 in train; leave it out, or use log_standardise"
    ):
        prepared(tmp_path, events(price=replaced(2, 1e300, values)), **NUMERIC)
    logarithm = prepared(tmp_path, events(price=replaced(2, 1e300, values)), numeric={"price": "log_standardise"})
    assert logarithm.events("train").dense[2, 0] > 1
    buckets = prepared(tmp_path, events(price=replaced(2, -1e300, values)), numeric={"price": "log_bucket"})
    assert buckets.vocabulary("price")["value"].to_list() == [-(2**31), 0, 1, 2]


def test_a_list_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'price' must have finite numbers, but row 0 has"):
        prepared(tmp_path, events(price=[[1.0]] * ROWS), **NUMERIC)


def test_numbers_may_be_text_truth_or_categories() -> None:
    for values in (["1", "0", None, "x"], ["true", " FALSE", None, "x"]):
        assert as_numbers(pl.Series(values)).to_list() == [1.0, 0.0, None, None]
    assert as_numbers(pl.Series(["1", "x"], dtype=pl.Categorical)).to_list() == [1.0, None]
    assert as_numbers(pl.Series([True, None])).to_list() == [1.0, None]


def test_events_may_be_ordered_by_dates(tmp_path: Path) -> None:
    days = pl.datetime_range(pl.datetime(2026, 1, 1), pl.datetime(2026, 1, ROWS), eager=True)
    split: dict[str, Any] = {"split": EventSplit(method="user_order", column="at", valid=0.2, test=0.2)}
    dated, numbered = (prepared(tmp_path, frame, **split) for frame in (events(at=days), events()))
    assert dated.hash == numbered.hash


def test_ids_of_text_that_are_integers_are_those_of_integers(tmp_path: Path) -> None:
    users = [-1 if row == 4 else row * 7 % 13 for row in range(ROWS)]
    first, second = (prepared(tmp_path, events(user=users), suffix, **NUMERIC) for suffix in (".parquet", ".csv"))
    assert first.hash == second.hash
    assert second.vocabulary("user").equals(first.vocabulary("user"))


def test_the_whole_file_decides_whether_ids_are_integers(tmp_path: Path) -> None:
    count = 300
    for last in ("x", "012", "12.0", "1" * 19):
        frame = pl.DataFrame({"user": ["12"] * 120 + [last, "7"] * 90, "item": [1, 2] * 150, "label": [1, 1, 0] * 100})
        data = prepared(tmp_path, frame)
        text = prepared(tmp_path, frame, ".csv")
        assert text.vocabulary("user")["value"].to_list() == sorted(["12", last, "7"]), "three users, as text"
        assert text.hash == data.hash and sum(text.facts["counts"].values()) == count


def damage(path: Path) -> None:
    """Overwrite what is between the head and the schema."""
    content = bytearray(path.read_bytes())
    content[8 : len(content) // 2] = b"\xff" * (len(content) // 2 - 8)
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["pages", "tail"])
def test_damaged_events_are_told_by_run_and_validate(tmp_path: Path, part: str) -> None:
    path = tmp_path / "interactions.parquet"
    pl.concat([events()] * 500).write_parquet(path)
    damage(path) if part == "pages" else path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "wrong.yaml").write_text(CONFIG.format(source=tmp_path))
    for command in ("run", "validate"):
        done = recsys(tmp_path, command, "wrong.yaml")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        told = [line for line in done.stderr.splitlines() if "interactions.parquet" in line]
        assert len(told) == 1 and "fetch it again" in told[0]


def test_a_damaged_joined_file_is_told(tmp_path: Path) -> None:
    events().write_parquet(tmp_path / "interactions.parquet")
    (tmp_path / "items.parquet").write_bytes(b"PAR1 and no more")
    join = Join(source="items.parquet", key="item", columns=("kind",))
    config = TableData(name="t", source=str(tmp_path), fields=("user", "item", "kind"), joins=(join,))
    with pytest.raises(DataError, match=r"items\.parquet: not a complete Parquet file"):
        prepare(Cache(tmp_path / "cache"), config)


def test_a_joined_file_may_have_keys_of_another_type(tmp_path: Path) -> None:
    events(item=[["1", "2", "x", None][row % 4] for row in range(ROWS)]).write_parquet(
        tmp_path / "interactions.parquet"
    )
    pl.DataFrame({"item": [1, 2], "kind": ["a", "b"]}).write_parquet(tmp_path / "items.parquet")
    join = Join(source="items.parquet", key="item", columns=("kind",))
    config = TableData(name="t", source=str(tmp_path), fields=("user", "item", "kind"), joins=(join,))
    data = prepare(Cache(tmp_path / "cache"), config)
    assert data.vocabulary("item")["value"].to_list() == ["1", "2", "x", None]
    assert data.vocabulary("kind")["value"].to_list() == ["a", "b", None]


@pytest.mark.parametrize(
    ("head", "line", "suffix"),
    [
        ("user,item,label,item", 1, ".csv"),
        ("\ufeffuser,item,label,item", 1, ".csv"),
        ('\n\nuser,"item",label,item', 3, ".csv"),
        ("user\titem\tlabel\titem", 1, ".tsv"),
    ],
)
def test_a_column_that_a_header_names_twice_is_told(tmp_path: Path, head: str, line: int, suffix: str) -> None:
    rows = ["1,1,0,1".replace(",", "\t" if suffix == ".tsv" else ",")] * ROWS
    good = events().select("user", "item", "label", pl.lit(1).alias("more"))
    good.write_csv(tmp_path / f"events-0{suffix}", separator="\t" if suffix == ".tsv" else ",")
    (tmp_path / f"events-1{suffix}").write_text("\n".join([head, *rows]))
    config = TableData(name="t", source=str(tmp_path), events=f"events-*{suffix}", fields=("user", "item"))
    told = rf"events-1\{suffix}, line {line}: column 'item' occurs twice \(places 2 and 4\); rename one"
    with pytest.raises(DataError, match=told):
        prepare(Cache(tmp_path / "cache"), config)
    ((place, message),) = check_columns(config)
    assert place == ("source",)
    assert re.search(told, message)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("method", ["order", "random", "user_order"])
def test_a_file_without_events_is_told(tmp_path: Path, suffix: str, method: Any) -> None:
    split = EventSplit(method=method, column="at")
    with pytest.raises(DataError, match=r"source '.*events.*' has no events: its files have no rows; give files"):
        prepared(tmp_path, events()[:0], suffix, time="at", split=split, **NUMERIC)


def test_columns_of_every_format_are_checked_by_the_schemas(tmp_path: Path) -> None:
    events().write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame({"item": range(4), "kind": ["a"] * 4}).write_parquet(tmp_path / "items.parquet")
    (tmp_path / "train.txt").write_text("a TSV has no names")
    given: dict[str, Any] = {"name": "t", "source": str(tmp_path), "user": "user", "item": "item"}
    found = dict(check_columns(NextItemData(**given, columns=("kind", "knd"), order="time")))
    assert found == {
        ("split",): "interactions.parquet has no column 'split'; there are: user, item, price, at, label",
        ("order",): "interactions.parquet has no column 'time'; did you mean item?",
        ("columns", 1): "items.parquet has no column 'knd'; did you mean kind?",
    }
    places = dict.fromkeys(("user", "item"), "C1")
    assert not list(check_columns(CriteoData(**given | places)))
    assert len(list(check_columns(CriteoData(**given | places, events="interactions.parquet")))) == 39
    joined = TableData(
        **given, fields=("user", "item", "kind"), joins=(Join(source="items.parquet", key="user", columns=("kind",)),)
    )
    assert dict(check_columns(joined)) == {
        ("joins", 0, "key"): "items.parquet has no column 'user'; there are: item, kind"
    }
    events().write_csv(tmp_path / "events.csv", include_header=True)
    text = TableData(**given, events="events.csv", fields=("user", "item", "pric"))
    assert dict(check_columns(text)) == {("fields", 2): "events.csv has no column 'pric'; did you mean price?"}
    one = NextItemData(**given | {"source": str(tmp_path / "items.parquet")})
    assert (
        "is one file; give the directory that has interactions.parquet, items.parquet"
        in dict(check_columns(one))[("source",)]
    )


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("name", ["__label", "__key", "row", "at", "user", "value", "id", "label", "key"])
def test_a_column_may_have_any_name(tmp_path: Path, suffix: str, name: str) -> None:
    """As the user, as a field, as a number, and in order of time: the events are those of other names."""
    plain = events().rename({"user": "who", "price": "cost", "at": "when", "label": "good"})
    split = EventSplit(method="user_order", column="when", valid=0.2, test=0.2)
    shared: dict[str, Any] = {"label": Label(column="good"), "fields": ("who", "item"), "user": "who", "split": split}
    shared |= {"numeric": {"cost": "standardise"}}
    changes: dict[str, dict[str, Any]] = {
        "who": {"fields": (name, "item"), "user": name},
        "cost": {"numeric": {name: "standardise"}},
        "when": {"split": split.model_copy(update={"column": name})},
        "good": {"label": Label(column=name)},
    }
    wanted = prepared(tmp_path, plain, suffix, **shared)
    for column, change in changes.items():
        found = prepared(tmp_path, plain.rename({column: name}), suffix, **shared | change)
        for part in ("train", "valid", "test"):
            ours, theirs = found.events(part), wanted.events(part)  # type: ignore[arg-type]
            for array in ("ids", "dense", "labels"):
                assert (getattr(ours, array) == getattr(theirs, array)).all()


def test_users_may_be_what_orders_their_events(tmp_path: Path) -> None:
    split = EventSplit(method="user_order", column="user", valid=0.2, test=0.2)
    assert sum(prepared(tmp_path, events(), split=split).facts["counts"].values()) == ROWS


def test_rows_are_joined_by_a_key_of_any_name(tmp_path: Path) -> None:
    events().rename({"item": "__key"}).write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame({"__key": range(4), "__label": list("abcd")}).write_parquet(tmp_path / "items.parquet")
    join = Join(source="items.parquet", key="__key", columns=("__label",))
    fields = ("user", "__key", "__label")
    config = TableData(name="t", source=str(tmp_path), item="__key", fields=fields, joins=(join,))
    assert prepare(Cache(tmp_path / "cache"), config).vocabulary("__label")["value"].to_list() == list("abcd")
