import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_array

from pipelines import config
from pipelines.dataset import INTERACTIONS, ITEMS, MANIFEST, Dataset, graph_hash
from pipelines.errors import DataError, did_you_mean
from pipelines.ingest import ingest


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    rows = [(u, i, ("train", "train", "valid", "test")[(u + i) % 4]) for u in range(5) for i in range(8)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "split"], orient="row").write_parquet(
        tmp_path / "interactions.parquet"
    )
    pl.DataFrame({"item_id": [0, 1], "title": ["Zero", None]}).write_parquet(tmp_path / "items.parquet")
    items = config.Entities(source="items.parquet", id="item_id")
    return ingest(config.Dataset(name="d", source=str(tmp_path), items=items), tmp_path / "out")


def test_matrices_are_canonical_and_add_up(dataset: Dataset) -> None:
    train, valid, test = (dataset.matrix(name) for name in ("train", "valid", "test"))
    assert train.dtype == np.float32
    assert train.has_sorted_indices
    assert train.has_canonical_format
    np.testing.assert_array_equal((train + valid + test).toarray(), np.ones((5, 8)))
    np.testing.assert_array_equal(dataset.matrix("train", "valid").toarray(), (train + valid).toarray())
    np.testing.assert_array_equal(dataset.matrix().toarray(), np.ones((5, 8)))
    assert train[1, 0] == 1
    assert valid[1, 1] == 1
    assert test[1, 2] == 1


def test_frames_titles_and_indices(dataset: Dataset) -> None:
    assert dataset.frame("train").columns == ["user", "item", "split"]
    assert dataset.frame("valid", "test").height == 20
    assert dataset.item_titles() == ["Zero", "1", "2", "3", "4", "5", "6", "7"]
    assert dataset.user_titles() == dataset.raw_user_ids() == ["0", "1", "2", "3", "4"]
    assert dataset.user_index("3") == 3
    assert dataset.item_index("7") == 7


def test_unknown_names_offer_the_near_ones(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="unknown user '33' among 5; did you mean 3"):
        dataset.user_index("33")
    with pytest.raises(DataError, match="unknown item 'zz' among 8; there are: 0, 1"):
        dataset.item_index("zz")
    wrong: Any = "validation"
    with pytest.raises(DataError, match="unknown split 'validation'; did you mean valid"):
        dataset.matrix(wrong)


def test_did_you_mean_lists_when_nothing_is_near() -> None:
    assert did_you_mean("zzz", [str(n) for n in range(9)]) == "there are: 0, 1, 2, 3, 4, 5, 6, 7, ..."
    assert did_you_mean("zzz", []) == "there are: none"


def test_graph_hash_sees_edges_and_shape_only() -> None:
    graph = csr_array(np.array([[0, 1, 1], [1, 0, 0]], dtype=np.float32))
    unsorted = csr_array(
        (np.array([5.0, 5.0, 5.0]), np.array([2, 1, 0], dtype=np.int64), np.array([0, 2, 3])), shape=(2, 3)
    )
    assert graph_hash(graph) == graph_hash(unsorted)
    assert unsorted.indices.tolist() == [2, 1, 0]
    assert graph_hash(graph) != graph_hash(csr_array(graph.T))
    assert graph_hash(graph) != graph_hash(csr_array(np.array([[0, 1, 1], [0, 1, 0]], dtype=np.float32)))


def test_a_directory_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"is not a dataset: manifest.json, interactions.parquet, users.parquet, items.parquet missing"
    ):
        Dataset.open(tmp_path)


def test_damage_is_named(dataset: Dataset) -> None:
    manifest = dataset.path / MANIFEST
    good = manifest.read_text()
    for text, message in (
        ("{", "manifest.json is damaged"),
        ("[]", "has schema_version None, this program reads 1"),
        (json.dumps(json.loads(good) | {"schema_version": 99}), "has schema_version 99, this program reads 1"),
        (json.dumps(json.loads(good) | {"num_users": "x"}), "(?s)manifest.json is damaged .*num_users"),
    ):
        manifest.write_text(text)
        with pytest.raises(DataError, match=message):
            Dataset.open(dataset.path)
    manifest.write_text(good)
    (dataset.path / INTERACTIONS).write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"cannot read .*interactions.parquet"):
        Dataset.open(dataset.path).frame()
    pl.DataFrame({"raw_id": ["0"]}).write_parquet(dataset.path / ITEMS)
    with pytest.raises(DataError, match=r"items.parquet has 1 rows, the manifest says 8; ingest again"):
        Dataset.open(dataset.path).item_titles()
    (dataset.path / ITEMS).write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot read .*items.parquet"):
        Dataset.open(dataset.path).raw_item_ids()


def test_titles_do_not_change_the_pairs_but_the_content(dataset: Dataset, tmp_path: Path) -> None:
    plain = ingest(config.Dataset(name="d", source=str(tmp_path)), tmp_path / "plain")
    assert plain.manifest.train_hash == dataset.manifest.train_hash == graph_hash(dataset.matrix("train"))
    assert plain.content_hash != dataset.content_hash
