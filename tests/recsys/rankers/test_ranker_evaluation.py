"""Evaluation of a ranker's scores, and rankers on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import Field, build_collection
from recsys.event_batch import Events
from recsys.rankers.build import RankerSpec, build_ranker
from recsys.rankers.checkpoint import load_ranker, save_ranker
from recsys.rankers.dcn_v2 import Cross
from recsys.rankers.evaluation import ItemAges, evaluate_ranker
from recsys.rankers.final_mlp import Streams
from recsys.rankers.ranker import Ranker, Tower
from recsys.training_state import CheckpointError


def events(count: int, seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, 12, count), rng.zipf(1.6, count) % 30, rng.integers(0, 3, count)], 1)
    labels = rng.integers(0, 2, count).astype(np.uint8)
    return Events(ids.astype(np.int32), np.zeros((count, 0), np.float32), labels, ("user", "item", "day"))


def test_slices_and_groups_are_those_of_a_plain_loop() -> None:
    train, test = events(120), events(900, 1)
    scores = (np.random.default_rng(2).normal(size=900) + test.labels).astype(np.float32)
    found = evaluate_ranker(test, scores, train, user="user", item="item", by=("day",))
    assert found.metrics["auc"] == pytest.approx(roc_auc_score(test.labels, scores), abs=1e-12)
    by_user = [(test.column("user") == u) for u in range(12)]
    aucs = [roc_auc_score(test.labels[rows], scores[rows]) for rows in by_user]
    assert found.metrics["gauc"] == pytest.approx(np.average(aucs, weights=[rows.sum() for rows in by_user]))
    for row in found.slices["day value"]:
        rows = test.column("day") == int(row["label"])
        assert row["events"] == rows.sum()
        assert row["auc"] == pytest.approx(roc_auc_score(test.labels[rows], scores[rows]), abs=1e-12)
    seen = np.array([(train.column("item") == item).sum() for item in test.column("item")])
    bounds = {"none": (0, 0), "1 to 4": (1, 4), "5 to 19": (5, 19), "20 to 99": (20, 99), "100 or more": (100, 10**9)}
    slices = {row["label"]: row["events"] for row in found.slices["train events of the item"]}
    expected = {label: int(((seen >= low) & (seen <= high)).sum()) for label, (low, high) in bounds.items()}
    assert slices == {label: count for label, count in expected.items() if count}
    assert slices["none"] > 0
    low, high = found.ci95["auc"]
    assert low < found.metrics["auc"] < high
    assert sum(found.curves["scores"]["positives"]) == test.labels.sum()
    roc = found.curves["roc"]
    assert (roc["false"][0], roc["true"][0], roc["false"][-1], roc["true"][-1]) == (0.0, 0.0, 1.0, 1.0)
    assert np.trapezoid(roc["true"], roc["false"]) == pytest.approx(found.metrics["auc"], abs=1e-3)
    json.dumps(found.summary(), allow_nan=False)


def test_users_who_share_the_unseen_id_are_no_group() -> None:
    """Users 8 to 11 have no id of their own; each is one with his events, to GAUC and to the bootstrap."""
    apart, train = events(900, 1), events(120)
    scores = (np.random.default_rng(2).normal(size=900) + apart.labels + apart.column("user")).astype(np.float32)
    expected = evaluate_ranker(apart, scores, train, user="user", item="item")
    users, shared = apart.column("user"), events(900, 1)
    shared.ids[:, 0] = np.minimum(shared.ids[:, 0], 8)
    found = evaluate_ranker(shared, scores, train, user="user", item="item", users=users)
    assert (found.metrics, found.ci95) == (expected.metrics, expected.ci95)
    merged = evaluate_ranker(shared, scores, train, user="user", item="item")
    assert abs(merged.metrics["gauc"] - expected.metrics["gauc"]) > 0.01


def test_values_that_share_the_unseen_id_are_not_taken_for_a_frequent_one() -> None:
    """Items 20 to 29 were too rare for ids of their own, so that train has the id 20 for all of them."""
    train, test = events(400), events(300, 1)
    for split in (train, test):
        split.ids[:, 1] = np.minimum(split.ids[:, 1], 20)
    scores = np.random.default_rng(2).normal(size=300).astype(np.float32)
    found = evaluate_ranker(test, scores, train, user="user", item="item", sizes={"user": 12, "item": 20})
    rows = found.slices["train events of the item"]
    assert rows[0]["label"] == "too few for an id"
    assert rows[0]["events"] == (test.column("item") == 20).sum() > 0
    assert sum(row["events"] for row in rows) == 300
    assert all(row["label"] != "too few for an id" for row in found.slices["train events of the user"])


def test_slices_of_a_count_are_disjoint_and_have_every_event() -> None:
    """Each event is in one slice of each count, here found by scoring it alone; what has no event has no positive."""
    train, test = events(60), events(200, 1)
    for split in (train, test):
        split.ids[:, 1] = np.minimum(split.ids[:, 1], 20)
    seen: dict[str, list[list[str]]] = {}
    for row in range(len(test)):
        alone = Events(*(array[row : row + 1] for array in (test.ids, test.dense, test.labels)), test.fields)
        found = evaluate_ranker(
            alone, np.zeros(1, np.float32), train, user="user", item="item", sizes={"user": 12, "item": 20}
        )
        for name, parts in found.slices.items():
            seen.setdefault(name, []).append([part["label"] for part in parts])
    assert len(seen) == 4
    assert all(len(labels) == 1 for rows in seen.values() for labels in rows)
    by_events, by_positives = (seen[f"train {kind} of the item"] for kind in ("events", "positives"))
    pairs = set(zip((row[0] for row in by_events), (row[0] for row in by_positives), strict=True))
    assert {pair for pair in pairs if pair[0] == "none"} == {("none", "none")}
    assert ("1 to 4", "none") in pairs, "drawn or shown, but never clicked"


def test_slices_by_age_are_fifths_of_the_known_ages() -> None:
    train, test = events(120), events(300, 1)
    ages = np.arange(300.0) % 100
    ages[:20] = np.nan
    scores = np.random.default_rng(2).normal(size=300).astype(np.float32)
    found = evaluate_ranker(test, scores, train, user="user", item="item", ages=ItemAges(ages, "days"))
    unknown, *fifths = found.slices["age of the item"]
    assert (unknown["label"], unknown["events"]) == ("first train event unknown", 20)
    assert len(fifths) == 5
    low, high = np.nanquantile(ages, [0.2, 0.4], method="inverted_cdf")
    rows = (ages > low) & (ages <= high)
    assert fifths[1]["label"] == f"{low:.10g} to {high:.10g} days"
    assert fifths[1]["events"] == rows.sum()
    assert fifths[1]["auc"] == pytest.approx(roc_auc_score(test.labels[rows], scores[rows]), abs=1e-12)
    assert sum(row["events"] for row in fifths) == 280


@pytest.mark.parametrize("age", [3.0, np.nan])
def test_ages_that_are_all_the_same_or_unknown_are_one_slice(age: float) -> None:
    test = events(50)
    ages = ItemAges(np.full(50, age), "days")
    (row,) = evaluate_ranker(test, np.zeros(50, np.float32), test, user="user", item="item", ages=ages).slices[
        "age of the item"
    ]
    assert row["events"] == 50


def test_one_class_leaves_what_is_undefined_out() -> None:
    test = events(50)
    ones = Events(test.ids, test.dense, np.ones(50, np.uint8), test.fields)
    found = evaluate_ranker(ones, np.zeros(50, np.float32), test, user="user", item="item")
    assert set(found.metrics) == {"log_loss", "ece"}
    assert found.metrics["log_loss"] == pytest.approx(np.log(2))
    assert not found.ci95
    assert "roc" not in found.curves


def ranker(spec: RankerSpec) -> Ranker:
    double = IdMap(np.arange(24).reshape(12, 2) % 5, 6, 5, "double_hash")
    maps = {"user": double, "item": IdMap(np.arange(30)[:, None], 31, 30, "full")}
    maps["day"] = IdMap(np.arange(3)[:, None], 4, 3, "full")
    fields = [Field(name, id_map, 4) for name, id_map in maps.items()]
    draws = np.random.default_rng(0)
    tables = build_collection(fields, optimizer=OptimizerSpec("adam"), init_std=0.5, generator=draws)
    return build_ranker(spec, tables, 0, seed=1)


SPECS: dict[str, RankerSpec] = {
    "dcn": RankerSpec("dcn_v2", Tower((5,), 0.1, batch_norm=True), Cross(2, "stacked", 3, 2)),
    "dlrm": RankerSpec("dlrm", Tower((5,)), bottom=(4,)),
    "fm": RankerSpec("deep_fm", Tower((5,))),
    "final": RankerSpec("final_mlp", Tower((4,)), streams=Streams(Tower((6,)), 2, ((), ("day",)), (5,))),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_saved_ranker_scores_the_same_bits(tmp_path: Path, name: str) -> None:
    model, data = ranker(SPECS[name]), events(200)
    with torch.no_grad():
        model.train()
        model.logits(data.batch(slice(0, 64)))  # moves the statistics of the batch norm
    save_ranker(model, SPECS[name], tmp_path / "saved")
    again = load_ranker(tmp_path / "saved")
    assert np.array_equal(model.scores(data), again.scores(data))
    unseen = Events(data.ids + 1000, data.dense, data.labels, data.fields)
    assert len(set(again.scores(unseen).tolist())) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "ranker.json").write_text("{}"), "must say format recsys-ranker, version 2"),
        (lambda d: (d / "ranker.safetensors").write_bytes(b"x"), "is not a whole saved ranker"),
        (lambda d: (d / "map-1.safetensors").unlink(), "is not a whole saved ranker"),
    ],
)
def test_a_damaged_ranker_is_told(tmp_path: Path, damage: Any, message: str) -> None:
    save_ranker(ranker(SPECS["fm"]), SPECS["fm"], tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=message):
        load_ranker(tmp_path / "saved")


def test_layers_that_do_not_fit_are_told(tmp_path: Path) -> None:
    save_ranker(ranker(SPECS["fm"]), SPECS["fm"], tmp_path / "saved")
    path = tmp_path / "saved" / "ranker.json"
    facts = json.loads(path.read_text())
    facts["spec"]["tower"]["hidden"] = []
    path.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="saved"):
        load_ranker(tmp_path / "saved")
