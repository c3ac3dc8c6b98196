"""Raw ids, titles and seen items beside a model's weights: what turns dense indices into recommendations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from pipelines.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The people's side of a dataset.

    Attributes:
        user_ids: raw id of user index i.
        item_ids: raw id of item index i.
        titles: title of item index i, else its raw id.
        seen: float32 [users, items], the items that are not recommended again.
    """

    user_ids: list[str]
    item_ids: list[str]
    titles: list[str]
    seen: csr_array

    @classmethod
    def of(cls, dataset: Dataset) -> Catalogue:
        """The catalogue of a dataset; every split counts as seen."""
        return cls(
            dataset.raw_user_ids(),
            dataset.raw_item_ids(),
            dataset.item_titles(),
            dataset.matrix("train", "valid", "test"),
        )

    def save(self, directory: Path) -> None:
        """Write ``users.parquet``, ``items.parquet`` and ``seen.safetensors`` into a new directory."""
        directory.mkdir(parents=True)
        pl.DataFrame({"raw_id": self.user_ids}).write_parquet(directory / "users.parquet")
        pl.DataFrame({"raw_id": self.item_ids, "title": self.titles}).write_parquet(directory / "items.parquet")
        arrays = {"indptr": self.seen.indptr.astype(np.int64), "indices": self.seen.indices.astype(np.int64)}
        save_file(arrays, directory / "seen.safetensors")

    @classmethod
    def load(cls, directory: Path) -> Catalogue:
        """Read what :meth:`save` wrote."""
        users = pl.read_parquet(directory / "users.parquet")["raw_id"].to_list()
        items = pl.read_parquet(directory / "items.parquet")
        arrays = load_file(directory / "seen.safetensors")
        ones = np.ones(len(arrays["indices"]), dtype=np.float32)
        seen = csr_array((ones, arrays["indices"], arrays["indptr"]), shape=(len(users), len(items)))
        return cls(users, items["raw_id"].to_list(), items["title"].to_list(), seen)
