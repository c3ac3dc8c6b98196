"""Histories as labelled events with drawn negatives, and semantic ids on the item field."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.cache import Cache
from pipelines.config import Budget, Compressor
from pipelines.config_ranking import NextItemData, RankingExperiment
from pipelines.config_semantic import RqKmeans, SemanticIds, SemanticRows, TextFeatures
from pipelines.errors import DataError
from pipelines.events.stages import FieldMaps
from pipelines.frozen_ids import FrozenIds
from pipelines.ranking.catalogue import EventCatalogue
from pipelines.ranking.check import check_ranking
from pipelines.ranking.data import RankingData, prepare
from pipelines.ranking.runner import run_ranking
from pipelines.ranking.scoring import Scorer
from pipelines.run_files import RunFiles
from pipelines.stages.semantic import semantic_stage
from recsys.rankers.checkpoint import load_ranker

ITEMS, USERS = 24, 30


def source(directory: Path, **interactions: Any) -> Path:
    """A user likes the items of the own kind; items 0 to 2 occur in no train split."""
    draws = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        liked = [3 * i + user % 3 for i in range(ITEMS // 3)]
        chosen = [int(i) for i in draws.permutation([i for i in liked if i > 2])[:5]]
        rows += [(user, item, "train") for item in chosen[:4]]
        rows += [(user, chosen[4], "valid"), (user, user % 3, "test")]
    columns = dict(zip(("user_id", "item_id", "split"), map(list, zip(*rows, strict=True)), strict=True))
    pl.DataFrame(columns | interactions).write_parquet(directory / "interactions.parquet")
    kinds = [f"kind{i % 3} word{i % 3}" for i in range(ITEMS)]
    items = pl.DataFrame({"item_id": range(ITEMS), "title": kinds, "brand": [f"b{i % 2}" for i in range(ITEMS)]})
    items.sample(fraction=1.0, shuffle=True, seed=0).write_parquet(directory / "items.parquet")
    return directory


def prepared(tmp_path: Path, **changes: Any) -> RankingData:
    config = NextItemData(name="t", source=str(source(tmp_path)), columns=("brand",), **changes)
    return prepare(Cache(tmp_path / "cache"), config)


def test_every_positive_has_its_negatives_and_none_of_them_was_had_before(tmp_path: Path) -> None:
    data = prepared(tmp_path, negatives=3)
    raw = pl.read_parquet(tmp_path / "interactions.parquet")
    had: set[tuple[int, int]] = set()
    for split in ("train", "valid", "test"):
        events = data.events(split)  # type: ignore[arg-type]
        positives = raw.filter(pl.col("split") == split).select("user_id", "item_id").rows()
        had |= set(positives)
        pairs = [(int(u), int(i)) for u, i in zip(events.column("user_id"), events.column("item_id"), strict=True)]
        assert [pair for pair, label in zip(pairs, events.labels, strict=True) if label] == positives
        negatives = [pair for pair, label in zip(pairs, events.labels, strict=True) if not label]
        assert [user for user, _ in negatives] == np.repeat([user for user, _ in positives], 3).tolist()
        assert not had & set(negatives)
        assert (min(item for _, item in negatives) < 3) == (split != "train")  # train's negatives are items of train
        assert (events.column("brand") == events.column("item_id") % 2).all()
    assert prepared(tmp_path, negatives=3).hash == data.hash
    assert prepared(tmp_path, negatives=3, seed=1).hash != data.hash


def test_all_items_of_the_catalogue_have_ids(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    assert data.sizes["item_id"] == ITEMS
    vocabulary = data.vocabulary("item_id")
    assert vocabulary["value"].to_list() == list(range(ITEMS))
    assert vocabulary["count"].to_list()[:3] == [0, 0, 0]
    assert EventCatalogue(data).items["brand"].to_list() == [f"b{i % 2}" for i in range(ITEMS)]


def test_a_history_is_what_the_user_had_before_and_negatives_share_it(tmp_path: Path) -> None:
    data = prepared(tmp_path, history=3, negatives=2)
    by_user = pl.read_parquet(tmp_path / "interactions.parquet").group_by("user_id", maintain_order=True)
    expected = {int(key[0]): frame["item_id"].to_list() for key, frame in by_user}  # type: ignore[call-overload]
    for split, places in (("train", range(4)), ("valid", [4]), ("test", [5])):
        events = data.events(split)  # type: ignore[arg-type]
        batch = events.batch(slice(0, len(events)))
        assert batch.history is not None
        ids, offsets = batch.history.ids.tolist(), batch.history.offsets.tolist()
        found = [ids[a:b] for a, b in itertools.pairwise(offsets)]
        wanted = [expected[user][max(0, place - 3) : place] for user in range(USERS) for place in places]
        assert found == wanted + [history for history in wanted for _ in range(2)]
    assert prepared(tmp_path).events("train").history is None


def test_semantic_codes_give_an_item_without_train_events_the_rows_of_its_like(tmp_path: Path) -> None:
    data, cache = prepared(tmp_path), Cache(tmp_path / "cache")
    settings = SemanticIds(
        features=(TextFeatures(columns=("title",), dim=3),),
        tokeniser=RqKmeans(widths=(3,)),
        gates={"max_colliding": 1.0, "max_prefix_share": 1.0},  # type: ignore[arg-type]
    )
    codes = semantic_stage(cache, EventCatalogue(data), settings, 0).codes
    maps = FieldMaps(cache, data, Budget(rows="40%"), codes)
    made = maps.maps(Compressor(name="semantic_ngram", semantic=SemanticRows(users="frequency")), 4, 0)
    semantic, entry = made.fields, made.entry
    items = semantic["item_id"]
    weights = items.lookup_weights(np.arange(ITEMS))
    summed = [set(rows[used > 0].tolist()) for rows, used in zip(items.rows, weights, strict=True)]
    for item in range(3):
        assert all(summed[item] <= summed[other] for other in range(item, ITEMS, 3))
        assert len(summed[item]) == 1 and items.unseen_row not in summed[item]
    assert len({tuple(rows) for rows in summed[:3]}) == 3
    assert semantic["user_id"].compressor == "frequency" and semantic["brand"].compressor == "full"
    assert entry is not None and (entry / "maps.json").is_file()
    hashed = maps.maps(Compressor(name="double_hash"), 4, 0).fields["item_id"]
    assert (hashed.rows[:3] == hashed.unseen_row).all() and hashed.num_rows == items.num_rows


def test_rows_get_the_scores_of_a_run_with_semantic_ids_and_din_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    model = {"name": "dcn_v2", "dim": 4, "hidden": [8], "init_std": 0.1}
    variants = [
        {"name": "ids", "model": model, "compressor": {"name": "semantic_ngram", "semantic": {"users": "frequency"}}},
        {
            "name": "attentive",
            "model": model | {"name": "din"},
            "field_compressors": {"brand": {"name": "semantic_ngram", "rows": 1}},
        },
    ]
    settings = {
        "experiment": "t",
        "dataset": {
            "format": "next_item",
            "name": "t",
            "source": str(source(tmp_path)),
            "columns": ["brand"],
            "history": 2,
        },
        "semantic_ids": {
            "features": [{"name": "text", "columns": ["title"], "dim": 3}],
            "tokeniser": {"name": "rq_kmeans", "widths": [3]},
            "gates": {"max_colliding": 1.0, "max_prefix_share": 1.0},
        },
        "variants": [variant | {"train": {"epochs": 1, "batch_size": 64}} for variant in variants],
        "tracking": {"enabled": False},
        "output": str(tmp_path / "runs"),
    }
    run = run_ranking(RankingExperiment.model_validate(settings), quiet=True)
    assert FrozenIds.load(run / "semantic_ids").codes.num_items == ITEMS
    tables = load_ranker(run / "variants" / "attentive-s0" / "checkpoint").tables
    assert [field.id_map.num_rows for field in tables.fields] == [USERS + 1, ITEMS + 1, 2]
    data = prepared(tmp_path, history=2)
    events = data.events("test")
    ids = {name: data.vocabulary(name)["value"].gather(events.column(name)) for name in ("user_id", "item_id")}
    found = Scorer.open(run, "ids").log_odds(pl.DataFrame(ids))
    np.testing.assert_array_equal(found, RunFiles(run).scores("ids", 0))
    with pytest.raises(DataError, match=r"attentive of .* is a din, .* choose another variant with --variant"):
        Scorer.open(run, "attentive")


def test_items_of_a_catalogue_need_no_positives(tmp_path: Path) -> None:
    data = {"name": "t", "source": str(source(tmp_path)), "format": "next_item", "columns": ["brand"]}
    config = {
        "task": "ctr",
        "experiment": "t",
        "dataset": data,
        "variants": [{"name": "a", "model": {"name": "dcn_v2"}}],
    }
    check = list(check_ranking(RankingExperiment.model_validate(config)))
    assert not check
    config["dataset"] = data | {"min_positives": 1}
    (found,) = check_ranking(RankingExperiment.model_validate(config))
    assert found == (
        ("dataset", "min_positives"),
        "every interaction is positive and the items of a catalogue all have ids; remove it",
    )


def test_a_source_without_a_catalogue_has_no_semantic_ids(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    (data.path / "items.parquet").unlink()
    with pytest.raises(DataError, match="semantic_ids need all items with their columns"):
        EventCatalogue(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "part"}, r"interactions\.parquet has no column 'part'"),
        ({"columns": ("colour",)}, r"items\.parquet has no column 'colour'"),
        ({"catalogue": "few.parquet"}, "has the item 12, which is not in the catalogue"),
        ({"split": "item_id"}, "column 'item_id' must be train, valid or test, got '"),
        ({"events": "late.parquet", "history": 2}, "but a user has a train item after a valid one; set dataset.order"),
        ({"catalogue": "twice.parquet"}, "column 'item_id' must name each item once, but some are missing or twice"),
        ({"events": "greedy.parquet"}, "a user of the train split has had all 24 items, so that none is left"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    directory = source(tmp_path)
    first = pl.read_parquet(tmp_path / "interactions.parquet")["item_id"][0]
    pl.DataFrame({"item_id": [i for i in range(ITEMS) if i != first]}).write_parquet(tmp_path / "few.parquet")
    pl.DataFrame({"item_id": [1, 1]}).write_parquet(tmp_path / "twice.parquet")
    late = {"user_id": [1, 1, 2], "item_id": [1, 2, 3], "split": ["valid", "train", "test"]}
    pl.DataFrame(late).write_parquet(tmp_path / "late.parquet")
    everything = {"user_id": [7] * ITEMS, "item_id": list(range(ITEMS)), "split": ["train"] * ITEMS}
    pl.DataFrame(everything).write_parquet(tmp_path / "greedy.parquet")
    with pytest.raises(DataError, match=message.replace("12", str(first))):
        prepare(Cache(tmp_path / "cache"), NextItemData(name="t", source=str(directory), **change))
