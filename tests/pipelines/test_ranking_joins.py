"""Joins that would repeat or ignore something are errors of ``validate``, ``run`` and ``score``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.cache import Cache
from pipelines.config_ranking import EventSplit, Join, TableData
from pipelines.errors import DataError
from pipelines.ranking.check_columns import check_columns
from pipelines.ranking.data import RankingData, prepare
from pipelines.ranking.sources import join_columns

AGES = Join(source="users.parquet", key="user", columns=("age",))


def config(tmp_path: Path, users: dict[str, Any], *joins: Join) -> TableData:
    columns = {"user": [0, 1, 2, 3] * 5, "item": [0, 1] * 10, "town": ["a", "b"] * 10, "label": [0, 0, 1, 1] * 5}
    pl.DataFrame(columns).write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame(users).write_parquet(tmp_path / "users.parquet")
    split = EventSplit(method="order", valid=0.25, test=0.25)
    return TableData(
        name="t", source=str(tmp_path), fields=("user", "item", "age"), joins=joins or (AGES,), split=split
    )


def prepared(tmp_path: Path, data: TableData) -> RankingData:
    return prepare(Cache(tmp_path / "cache"), data)


def test_a_key_that_is_there_twice_is_an_error_and_not_more_events(tmp_path: Path) -> None:
    data = config(tmp_path, {"user": [0, 1, 2, 1, 0], "age": [10, 11, 12, 13, 14]})
    message = r"users\.parquet: column 'user', the key of a join, must have each value once, but row 3 has 1 again"
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, data)
    with pytest.raises(DataError, match=message):
        join_columns(pl.DataFrame({"user": [0, 1], "item": [0, 1]}), data)


def test_missing_keys_may_be_many_and_match_nothing(tmp_path: Path) -> None:
    data = prepared(tmp_path, config(tmp_path, {"user": [0, None, 1, None], "age": [10, 11, 12, 13]}))
    assert data.facts["counts"] == {"train": 10, "valid": 5, "test": 5}
    assert data.vocabulary("age")["value"].to_list() == [10, 12, None]


def test_a_joined_column_that_scoring_needs_must_be_in_its_file(tmp_path: Path) -> None:
    data = config(tmp_path, {"user": [0, 1], "years": [10, 11]})
    with pytest.raises(DataError, match=r"users\.parquet has no column 'age'; there are: user, years"):
        join_columns(pl.DataFrame({"user": [0, 1]}), data)


@pytest.mark.parametrize(
    ("joins", "place", "message"),
    [
        (
            (AGES, Join(source="users.parquet", key="user", columns=("town",))),
            (1, 0),
            "the events have a column 'town' already, so that the one of users.parquet would be ignored; rename one",
        ),
        (
            (Join(source="users.parquet", key="user", columns=("age", "user")),),
            (0, 1),
            "the events have a column 'user' already",
        ),
        ((AGES, AGES), (1, 0), "the join of users.parquet gives a column 'age' already"),
    ],
)
def test_a_joined_column_whose_name_is_taken_is_an_error(
    tmp_path: Path, joins: tuple[Join, ...], place: tuple[int, int], message: str
) -> None:
    data = config(tmp_path, {"user": [0, 1], "age": [10, 11], "town": ["c", "d"]}, *joins)
    (key, found), *others = check_columns(data)
    assert key == ("joins", place[0], "columns", place[1])
    assert found.startswith(message) and not others
    with pytest.raises(DataError, match=rf"dataset\.joins\[{place[0]}\]: {message}"):
        prepared(tmp_path, data)
