"""Events of several tasks: labels and where they are unknown, negatives, the stratified split, unseen ids, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.cache import Cache
from pipelines.config_multitask import TaskData, TaskLabel
from pipelines.errors import DataError
from pipelines.multitask.data import SPLITS, MultiTaskData, draw_negatives, prepare_tasks

SEEN = TaskLabel(name="watch", label="seen")
VALUE = TaskLabel(name="rating", label="value", column="rating", known_from=1)
LIKED = TaskLabel(name="liked", label="at_least", column="rating", at_least=7, known_from=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """40 users and 30 items with raw ids of their own; every fourth interaction is not rated (-1)."""
    rng = np.random.default_rng(0)
    codes = rng.choice(1200, 400, replace=False)
    ratings = np.where(np.arange(400) % 4 == 0, -1, rng.integers(1, 11, 400))
    frame = {"user_id": 100 + codes // 30, "item_id": 1000 + 7 * (codes % 30), "rating": ratings}
    pl.DataFrame(frame).write_parquet(tmp_path / "interactions.parquet")
    return tmp_path


def prepared(source: Path, *tasks: TaskLabel, **settings: Any) -> MultiTaskData:
    config = TaskData(name="tiny", source=str(source), **settings)
    return prepare_tasks(Cache(source / "cache"), config, tasks or (SEEN, VALUE, LIKED))


def raw(data: MultiTaskData, split: str) -> pl.DataFrame:
    """The events of a split with raw ids, None for the unseen."""
    events = data.events(split)  # type: ignore[arg-type]
    columns: dict[str, Any] = {}
    for side, field in enumerate(data.fields):
        values = [*pl.read_parquet(data.path / f"{field}.parquet")["value"].to_list(), None]
        columns[field] = [values[place] for place in events.ids[:, side]]
    return pl.DataFrame(columns | dict(zip(events.tasks, events.labels.T, strict=True)))


def test_labels_are_the_file_s_and_unknown_where_it_has_none(source: Path) -> None:
    data = prepared(source)
    truth = {(u, i): r for u, i, r in pl.read_parquet(source / "interactions.parquet").iter_rows()}
    rows = pl.concat([raw(data, split) for split in SPLITS])
    positives = rows.filter(pl.col("watch") == 1)
    assert len(positives) == 400
    assert len(rows) == 800
    for user, item, _, rating, liked in positives.drop_nulls(["user_id", "item_id"]).iter_rows():
        expected = truth[user, item]
        if expected < 1:
            assert np.isnan(rating)
            assert np.isnan(liked)
        else:
            assert (rating, liked) == (expected, float(expected >= 7))
    negatives = rows.filter(pl.col("watch") == 0)
    assert negatives.select(pl.col("rating", "liked").is_nan().all()).row(0) == (True, True)
    pairs = set(negatives.select("user_id", "item_id").drop_nulls().iter_rows())
    assert not pairs & set(truth)
    assert len(pairs) == len(negatives.drop_nulls(["user_id", "item_id"]))


def test_the_split_is_exact_and_stratified_and_its_facts_are_right(source: Path) -> None:
    data = prepared(source, valid=0.2, test=0.1)
    shares = {"train": 280, "valid": 80, "test": 40}
    assert data.facts["counts"] == {split: 2 * count for split, count in shares.items()}
    for split, count in shares.items():
        labels = data.events(split).labels  # type: ignore[arg-type]
        assert labels[:, 0].sum() == count
        assert data.facts["labels"]["rating"]["known"][split] == (~np.isnan(labels[:, 1])).sum()
    train = data.events("train").labels[:, 1].astype(np.float64)
    assert data.facts["labels"]["rating"]["mean"] == pytest.approx(np.nanmean(train))
    assert data.facts["labels"]["rating"]["deviation"] == pytest.approx(np.nanstd(train))
    graph = data.graph()
    assert graph.sum() == 280
    assert graph.data.max() == 1.0
    assert graph.shape == (data.sizes["user_id"], data.sizes["item_id"])
    positive = data.events("train").ids[data.events("train").labels[:, 0] == 1]
    assert all(graph[user, item] == 1 for user, item in positive)


def test_an_id_without_a_train_event_is_unseen(source: Path) -> None:
    frame = pl.read_parquet(source / "interactions.parquet")
    rare = pl.DataFrame({"user_id": range(5000, 5200), "item_id": [1000] * 200, "rating": [5] * 200})
    pl.concat([frame, rare]).write_parquet(source / "interactions.parquet")
    data = prepared(source, negatives=0.1)
    train, test = data.events("train"), data.events("test")
    assert set(train.ids[:, 0]) == set(range(data.sizes["user_id"])), "every known user has a train event"
    unseen = test.ids[:, 0] == data.sizes["user_id"]
    users = data.test_users()
    assert np.array_equal(users[~unseen], test.ids[~unseen, 0])
    assert unseen.sum() > 1 and users[unseen].min() >= data.sizes["user_id"]
    interactions = unseen & (test.labels[:, 0] == 1)
    assert len(set(users[interactions])) == interactions.sum(), "each has one interaction"


def test_negatives_are_free_pairs_each_once() -> None:
    rng = np.random.default_rng(0)
    codes = rng.choice(2000, 300, replace=False)
    pairs = np.stack([codes // 40, codes % 40], axis=1)
    for share, count in ((0.5, 150), (5.0, 1500), ("all", 1700)):
        found = draw_negatives(pairs, (50, 40), share, np.random.default_rng(1))  # type: ignore[arg-type]
        drawn = {(int(u), int(i)) for u, i in found}
        assert len(found) == len(drawn) == count
        assert not drawn & {(int(u), int(i)) for u, i in pairs}
        assert found.max(axis=0).tolist() <= [49, 39]
        again = draw_negatives(pairs, (50, 40), share, np.random.default_rng(1))  # type: ignore[arg-type]
        assert np.array_equal(found, again)
    few = draw_negatives(pairs, (50, 40), 2.0, np.random.default_rng(2))
    spread = np.bincount(few[:, 0], minlength=50)
    assert spread.max() < 30, "about 12 of 600 for each of 50 users"
    with pytest.raises(DataError, match="3,000 negatives are wanted, but only 1,700 pairs are free; lower dataset"):
        draw_negatives(pairs, (50, 40), 10.0, np.random.default_rng(0))


def test_fewer_users_are_the_same_users_every_time(source: Path) -> None:
    data = prepared(source, SEEN, VALUE, max_users=10)
    assert data.sizes["user_id"] == 10
    assert prepared(source, SEEN, VALUE, max_users=10).hash == data.hash
    assert prepared(source, SEEN, VALUE, max_users=10, seed=1).hash != data.hash


def test_mistakes_are_told(source: Path) -> None:
    with pytest.raises(DataError, match=r"has no file 'events\.parquet' in "):
        prepared(source, events="events.parquet")
    with pytest.raises(DataError, match=r"interactions\.parquet has no column 'rate'; did you mean rating"):
        prepared(source, TaskLabel(name="rating", label="value", column="rate"))
    with pytest.raises(DataError, match="task 'rating' has no known label in train; check column and known_from"):
        prepared(source, TaskLabel(name="rating", label="value", column="rating", known_from=99))
    with pytest.raises(
        DataError, match=r"task 'liked' needs two labels of each class in train, got 320 zeros and 0 ones"
    ):
        prepared(source, TaskLabel(name="liked", label="at_least", column="rating", at_least=99))
    frame = pl.read_parquet(source / "interactions.parquet")
    frame.with_columns(rating=pl.lit(3)).write_parquet(source / "threes.parquet")
    with pytest.raises(DataError, match="every label of task 'rating' in train is 3; there is nothing to learn"):
        prepared(source, VALUE, events="threes.parquet")
    frame.head(5).write_parquet(source / "few.parquet")
    with pytest.raises(DataError, match="has 5 interactions; a split needs at least 10"):
        prepared(source, events="few.parquet")
    frame.with_columns(rating=pl.lit("good")).write_parquet(source / "words.parquet")
    with pytest.raises(DataError, match="'rating' must hold numbers, but row 0 has 'good'; correct it, or leave it"):
        prepared(source, events="words.parquet")
    frame.with_columns(item_id=pl.when(pl.col("rating") > 9).then(None).otherwise("item_id")).write_parquet(
        source / "holes.parquet"
    )
    row = int((frame["rating"] > 9).arg_true()[0])
    with pytest.raises(DataError, match=rf"column 'item_id' has no value in row {row}; every interaction needs a user"):
        prepared(source, events="holes.parquet")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300, -3.5e38])
def test_a_label_that_float32_cannot_hold_is_told_with_its_row(source: Path, suffix: str, value: float) -> None:
    frame = pl.read_parquet(source / "interactions.parquet").cast({"rating": pl.Float64})
    frame[17, "rating"] = value
    path = source / f"far{suffix}"
    frame.write_parquet(path) if suffix == ".parquet" else frame.write_csv(path)
    every = TaskLabel(name="rating", label="value", column="rating")
    with pytest.raises(
        DataError, match=r"'rating' must hold finite numbers up to 3.4e\+38, but row 17 has '?-?(inf|1|3)"
    ):
        prepared(source, every, events=path.name)
    liked = np.concatenate([prepared(source, LIKED, events=path.name).events(split).labels for split in SPLITS])
    assert np.nansum(liked) == (frame["rating"] >= 7).sum(), "a threshold is reached, or the label is unknown"
    if value < 0:
        assert prepared(source, VALUE, events=path.name).facts["labels"]["rating"]["mean"] > 0, "below known_from"
