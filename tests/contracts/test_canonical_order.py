"""Ingest numbers ids by sorted raw id, so that the order of a file cannot change the clusters."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from embeddings.clustering import co_cluster
from pipelines.config import Columns, Dataset, Split
from pipelines.ingest import ingest


def test_gowalla_in_reverse_has_the_known_clusters(shared_data: Path, tmp_path: Path) -> None:
    source = tmp_path / "reversed.parquet"
    pl.read_parquet(shared_data / "gowalla" / "interactions.parquet").reverse().write_parquet(source)
    columns = Columns(user="user_id", item="item_id", split="split")
    config = Dataset(name="reversed", source=str(source), columns=columns, split=Split(method="given"))
    dataset = ingest(config, tmp_path / "dataset", None)
    found = co_cluster(dataset.matrix("train", "valid"), 200.0)
    assert (found.num_user_clusters, found.num_item_clusters) == (5652, 5669)
