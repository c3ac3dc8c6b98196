"""Planted leaks of every kind are caught and named; clean data passes."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_array

from pipelines import config
from pipelines.audit import audit_artifact, audit_negatives, audit_split
from pipelines.dataset import INTERACTIONS, Dataset, graph_hash
from pipelines.errors import LeakError
from pipelines.ingest import ingest
from recsys.samplers import NegativeSampler, NegativeSampling


def make(folder: Path, **settings: Any) -> Dataset:
    rows = [(f"u{u}", f"i{i}", 1000 * i + u) for u in range(6) for i in range(10) if (u + i) % 3]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(folder / "e.parquet")
    return ingest(config.Dataset(name="a", source=str(folder / "e.parquet"), **settings), folder / "out")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make(tmp_path)


def tamper(dataset: Dataset, change: pl.Expr) -> Dataset:
    path = dataset.path / INTERACTIONS
    pl.read_parquet(path).with_columns(change).write_parquet(path)
    return dataset


def test_a_clean_split_passes_and_is_stored(dataset: Dataset) -> None:
    audit = audit_split(dataset)
    audit.raise_if_failed()
    assert audit.passed
    stored = {check["name"]: check for check in dataset.manifest.leak_audit}
    assert stored["pair_overlap"]["passed"] is True
    assert stored["time_order"]["passed"] is True
    assert stored["cold_items"]["passed"] is None
    assert stored["cold_items"]["count"] == 3
    assert "first i7, i8, i9" in stored["cold_items"]["detail"]
    assert stored["cold_users"]["count"] == 0


def test_a_pair_in_two_given_splits_stops_the_ingest(tmp_path: Path) -> None:
    data = pl.DataFrame(
        {"user_id": ["a"] * 4, "item_id": ["x", "x", "y", "z"], "split": ["train", "test", "valid", "train"]}
    )
    data.write_csv(tmp_path / "e.csv")
    with pytest.raises(
        LeakError, match=r"pair_overlap: 1 pairs are in two splits: \(user 'a', item 'x'\) in train and test"
    ):
        ingest(config.Dataset(name="a", source=str(tmp_path / "e.csv")), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["e.csv"]


def test_an_event_after_the_cut_fails(dataset: Dataset) -> None:
    late = (pl.col("split") == 0) & (pl.col("timestamp") == pl.col("timestamp").filter(pl.col("split") == 0).max())
    tamper(dataset, pl.when(late).then(pl.col("timestamp") + 10**6).otherwise("timestamp").alias("timestamp"))
    with pytest.raises(
        LeakError, match=r"time_order: 1 events are on the wrong side of the cuts, first \(user 'u\d', item 'i\d'\) at"
    ):
        audit_split(dataset).raise_if_failed()


def test_a_test_event_before_the_cut_fails(dataset: Dataset) -> None:
    tamper(dataset, pl.when(pl.col("split") == 2).then(0).otherwise("timestamp").alias("timestamp"))
    assert not audit_split(dataset).passed


def test_time_travel_is_a_fact_under_other_protocols(tmp_path: Path) -> None:
    dataset = make(tmp_path, split=config.Split(method="random_ratio"))
    check = next(check for check in audit_split(dataset).checks if check.name == "time_order")
    assert check.passed is None
    frame = dataset.frame()
    first = frame.filter(split=2)["timestamp"].min()
    assert check.count == frame.filter((pl.col("split") == 0) & (pl.col("timestamp") > first)).height > 0


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("name", ["graph", "negatives"])
def test_an_edge_of_a_held_out_split_is_caught(name: str, split: Any, dataset: Dataset) -> None:
    train = dataset.matrix("train")
    assert audit_artifact(name, train, dataset).passed
    user, item = (int(index[0]) for index in dataset.matrix(split).nonzero())
    leaky = csr_array(train + csr_array(([1.0], ([user], [item])), shape=train.shape))
    pair = rf"\(user '{dataset.raw_user_ids()[user]}', item '{dataset.raw_item_ids()[item]}'\)"
    with pytest.raises(LeakError, match=rf"{name}: 1 of {leaky.nnz} pairs are not of train: {pair}"):
        audit_artifact(name, leaky, dataset)


def test_pairs_are_checked_like_edges(dataset: Dataset) -> None:
    pairs = np.stack(dataset.matrix("train").nonzero(), axis=1)
    assert audit_artifact("negatives", np.concatenate([pairs, pairs]), dataset).count == 0
    held_out = np.stack(dataset.matrix("test").nonzero(), axis=1)
    with pytest.raises(LeakError, match=f"{len(held_out)} of {len(pairs) + len(held_out)} pairs are not of train"):
        audit_artifact("negatives", np.concatenate([pairs, held_out]), dataset)


def test_popularity_must_be_of_train(dataset: Dataset) -> None:
    counts = np.bincount(dataset.matrix("train").indices, minlength=dataset.num_items)
    assert audit_artifact("popularity", counts, dataset).passed
    everything = np.bincount(dataset.matrix().indices, minlength=dataset.num_items)
    with pytest.raises(
        LeakError, match=r"popularity: \d+ counts are not those of train: item 'i\d' has \d, train has \d"
    ):
        audit_artifact("popularity", everything, dataset)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_sampler_that_saw_a_held_out_split_is_caught(split: Any, dataset: Dataset) -> None:
    rejecting = NegativeSampling(alpha=1.0, reject_positives=True)
    clean = NegativeSampler(dataset.matrix("train"), rejecting, seed=0).knowledge()
    passed = audit_negatives("mf, select", clean, dataset, ("train",))
    assert [(check.name, check.passed) for check in passed] == [
        ("negatives of mf, select: counts", True),
        ("negatives of mf, select: rejected pairs", True),
    ]
    leaky = NegativeSampler(dataset.matrix("train", split), rejecting, seed=0).knowledge()
    with pytest.raises(LeakError, match=r"negatives of mf, select: counts: \d+ counts are not those of train: item 'i"):
        audit_negatives("mf, select", leaky, dataset, ("train",))
    held_out = int(dataset.matrix(split).nnz)
    with pytest.raises(LeakError, match=rf"mf, select: rejected pairs: {held_out} of \d+ pairs are not of train"):
        audit_negatives("mf, select", {**clean, "known": leaky["known"]}, dataset, ("train",))
    assert all(check.passed for check in audit_negatives("mf, refit", leaky, dataset, ("train", split)))


def test_clusters_must_be_of_the_train_graph(dataset: Dataset) -> None:
    assert audit_artifact("clusters", graph_hash(dataset.matrix("train")), dataset).passed
    refit = graph_hash(dataset.matrix("train", "valid"))
    with pytest.raises(LeakError, match=r"clusters: made from graph \w{12}, but the graph of train is \w{12}"):
        audit_artifact("clusters", refit, dataset)
    assert audit_artifact("clusters", refit, dataset, allowed=("train", "valid")).passed


def test_artifacts_of_another_shape_are_refused(dataset: Dataset) -> None:
    for artifact, message in (
        (csr_array((2, 3), dtype=np.float32), r"graph: shape \[2, 3\] is not the dataset's \[6, 10\]"),
        (np.zeros(4), "graph: 4 counts for 10 items"),
        (np.zeros((4, 3)), r"graph: needs csr_array .* got ndarray of shape \(4, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            audit_artifact("graph", artifact, dataset)
