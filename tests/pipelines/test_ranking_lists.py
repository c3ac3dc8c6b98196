"""A list is one value, its sorted set, to ``run``, ``score`` and ``validate`` alike, whatever its entries are."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.cache import Cache
from pipelines.config_ranking import EventSplit, NextItemData, TableData
from pipelines.errors import DataError
from pipelines.ranking.data import prepare
from pipelines.ranking.encode import encode_rows
from pipelines.ranking.lists import lists_as_text
from pipelines.ranking.memory import measure_events

LISTS: dict[str, tuple[Any, list[Any], list[str | None]]] = {
    "text": (pl.List(pl.String), [["b", "a", "b"], ["a", "b"], None, ["c"]], ["a|b", "c", None]),
    "integers": (pl.List(pl.Int64), [[10, 9], [9, 10, 10], None, [9]], ["10|9", "9", None]),
    "numbers": (pl.List(pl.Float64), [[0.5], [0.5, 0.5], None, [1.5]], ["0.5", "1.5", None]),
    "arrays": (pl.Array(pl.Int32, 2), [[1, 2], [2, 1], None, [1, 1]], ["1", "1|2", None]),
}


@pytest.mark.parametrize("kind", LISTS)
def test_run_score_and_the_estimate_take_every_list(tmp_path: Path, kind: str) -> None:
    dtype, values, wanted = LISTS[kind]
    columns = {"user": [1, 2, 3] * 8, "item": [1, 2] * 12, "label": [0, 0, 1, 1] * 6}
    frame = pl.DataFrame(columns).with_columns(tags=pl.Series(values * 6, dtype=dtype))
    frame.write_parquet(tmp_path / "interactions.parquet")
    split = EventSplit(method="order", valid=0.25, test=0.25)
    config = TableData(name="t", source=str(tmp_path), fields=("user", "item", "tags"), split=split)
    assert measure_events(config).ids == 3 + 2 + 3
    data = prepare(Cache(tmp_path / "cache"), config)
    assert data.vocabulary("tags")["value"].to_list() == wanted
    ids = data.events("test").column("tags")
    assert ids[2] == ids[3] and len(set(ids.tolist())) == 3, "rows 20 and 21 have one set"
    again, _ = encode_rows(frame[18:].drop("label"), data.encoding(), config)
    assert again[:, 2].tolist() == ids.tolist()


def test_lists_of_a_catalogue_are_the_same_values(tmp_path: Path) -> None:
    events = {"user_id": [0, 1] * 6, "item_id": [0, 1, 2, 3] * 3, "split": ["train"] * 6 + ["valid"] * 3 + ["test"] * 3}
    pl.DataFrame(events).write_parquet(tmp_path / "interactions.parquet")
    items = pl.DataFrame({"item_id": range(6), "tags": [["b", "a"], ["a", "b"], None, ["c"], ["c", "c"], []]})
    items.write_parquet(tmp_path / "items.parquet")
    config = NextItemData(name="n", source=str(tmp_path), columns=("tags",), negatives=1)
    assert measure_events(config).ids == 2 + 6 + 4
    data = prepare(Cache(tmp_path / "cache"), config)
    assert set(data.vocabulary("tags")["value"]) <= {"a|b", "c", "", None}
    rows = pl.DataFrame({"user_id": [0, 0], "item_id": [0, 1], "tags": [["a", "b"], ["b", "a", "b"]]})
    ids, _ = encode_rows(rows, data.encoding(), config)
    assert ids[0, 2] == ids[1, 2]


def test_two_sets_never_have_the_same_text() -> None:
    entries = ["", "a", "b", "a|b", "\\", "|", "\\|", "\\e", "e", "a|", "|b", "\\\\"]
    sets = [list(found) for size in range(4) for found in combinations(entries, size)]
    text = lists_as_text(pl.LazyFrame({"x": pl.Series(sets, dtype=pl.List(pl.String))}), ["x"]).collect()["x"]
    assert text.n_unique() == len(sets)


def test_a_list_of_lists_is_told() -> None:
    with pytest.raises(DataError, match=r"column 'x' has lists of List\(Int64\); as a field a list must have text"):
        lists_as_text(pl.LazyFrame({"x": [[[1]]]}), ["x"])
