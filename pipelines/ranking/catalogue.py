"""The items of a ranking experiment with all their columns, as the semantic-id stage wants them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from scipy.sparse import csr_array

from pipelines.dataset import ITEMS
from pipelines.errors import DataError
from pipelines.ranking.data import RankingData
from recsys.sequences import Sequences


class EventCatalogue:
    """A :class:`pipelines.item_features.Catalogue` of prepared events.

    Args:
        data: whose source has a catalogue.

    Raises:
        DataError: It has none.
    """

    def __init__(self, data: RankingData) -> None:
        if not (data.path / ITEMS).is_file():
            raise DataError(
                "semantic_ids need all items with their columns: use dataset.format next_item, which has a catalogue,"
                " or remove the section"
            )
        self._data = data
        self.path: Path = data.path
        self.content_hash = data.hash
        self.num_items = data.sizes[data.item]

    @functools.cached_property
    def items(self) -> pl.DataFrame:
        """``raw_id`` and the columns of the catalogue; row i is id i."""
        return pl.read_parquet(self.path / ITEMS, glob=False)

    def raw_item_ids(self) -> list[str]:
        """As the source writes them."""
        return self.items["raw_id"].to_list()

    def matrix(self, split: Literal["train"]) -> csr_array:
        """The graph of the positive train events."""
        return self._data.graph()

    def sequences(self, split: Literal["train"]) -> Sequences:
        """The positive train events of each user, in order."""
        train = self._data.events(split)
        users, items = (
            train.column(name)[train.labels == 1].astype(np.int64) for name in (self._data.user, self._data.item)
        )
        return Sequences.of_events(users, items, self._data.sizes[self._data.user])
