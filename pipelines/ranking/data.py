"""Prepared events: the arrays of each split, the vocabularies behind the ids, and the facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_array

from pipelines.atomic import write_json
from pipelines.cache import Cache, content_hash, key_hash
from pipelines.dataset import ITEMS
from pipelines.errors import DataError
from pipelines.events.data import PreparedEvents
from pipelines.ranking.encode import Encoding, encode
from pipelines.ranking.sources import SPLITS, DataConfig, files_of, read_source
from pipelines.stages.versions import versions
from recsys.event_batch import EventHistories, Events
from recsys.rankers.evaluation import ItemAges

VERSION = 7
Split = Literal["train", "valid", "test"]
_OTHER_LABELS = {
    "frappe": "fetch its files again",
    "table": "change dataset.split or dataset.label.at_least",
    "libfm": "give other files as dataset.train, dataset.valid and dataset.test",
    "criteo": "change dataset.split",
    "next_item": "give other interactions",
}
"""Format -> what gives a split both labels."""


class RankingData(PreparedEvents):
    """What :func:`prepare` wrote; the arrays are memory-mapped."""

    @property
    def num_dense(self) -> int:
        """Columns of the numeric array."""
        return len(self.facts["dense"])

    def events(self, split: Split) -> Events:
        """The events of a split."""
        names = ("ids", "dense", "labels")
        ids, dense, labels = (self._array(f"{split}-{name}.npy") for name in names)
        return Events(ids, dense, labels, self.fields, self._history(split))

    def _history(self, split: Split) -> EventHistories | None:
        if not (self.path / "history.npy").is_file():
            return None
        return EventHistories(self._array("history.npy"), self._array(f"{split}-history.npy"))

    def test_ages(self) -> ItemAges | None:
        """How old the items of the test events were; None without ``dataset.time``."""
        unit = self.facts["age_unit"]
        return None if unit is None else ItemAges(self._array("test-ages.npy"), unit)

    def test_users(self) -> npt.NDArray[np.int32]:
        """Whose each test event is, int32 [E]: an id, or a number after the ids for each user without one."""
        users: npt.NDArray[np.int32] = self._array("test-users.npy")
        return users

    def vocabulary(self, field: str) -> pl.DataFrame:
        """Frame (value, count) of a field; row i is id i."""
        return pl.read_parquet(self.path / f"vocabulary-{self.fields.index(field)}.parquet", glob=False)

    def encoding(self) -> Encoding:
        """Vocabularies and scales, to encode other rows by."""
        return Encoding.load(self.path)

    def require_both_classes(self) -> None:
        """Raise DataError where a split has too few of a class.

        AUC needs one event of each; test needs two, for DeLong's variance of what is compared there.
        """
        for split, positives in self.facts["positives"].items():
            events = self.facts["counts"][split]
            least = 2 if split == "test" else 1
            if min(positives, events - positives) < least:
                raise DataError(
                    f"the {split} split of {self.facts['name']} has {positives:,} events with label 1 and"
                    f" {events - positives:,} with label 0; a ranker needs {least} of each in {split},"
                    f" {_OTHER_LABELS[self.facts['format']]}"
                )

    def graph(self, left: str | None = None, right: str | None = None) -> csr_array:
        """Float32 [left, right]: ones at the pairs of positive train events; unseen ids have none.

        Args:
            left: field of the rows; None for the user's.
            right: field of the columns; None for the item's.
        """
        fields = (left or self.user, right or self.item)
        train = self.events("train")
        positive = train.labels == 1
        rows, columns = (train.column(field)[positive] for field in fields)
        shape = (self.sizes[fields[0]], self.sizes[fields[1]])
        known = (rows < shape[0]) & (columns < shape[1])
        pairs = csr_array((np.ones(int(known.sum()), np.float32), (rows[known], columns[known])), shape=shape)
        pairs.sum_duplicates()
        pairs.data[:] = 1.0
        return pairs

    def _array(self, name: str) -> Any:
        path = self.path / name
        if 0 in np.lib.format.open_memmap(path, "r").shape:
            return np.load(path, allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)


def prepare(cache: Cache, config: DataConfig) -> RankingData:
    """Read, split and encode the events, or find them prepared.

    Raises:
        DataError: The source cannot be used; the message names file, column and value.
    """
    files = content_hash(*files_of(config))
    settings = config.model_dump(mode="json", exclude={"source"})
    key = {"version": VERSION, "files": files, "settings": settings, "libraries": versions(["polars", "numpy"])}
    entry = cache.stage("events", key, lambda directory: _build(config, directory))
    return RankingData(entry)


def _build(config: DataConfig, directory: Path) -> None:
    source = read_source(config)
    fields = (*source.fields, *source.numeric)
    for role, name in (("user", config.user), ("item", config.item)):
        if name not in source.fields:
            raise DataError(f"dataset.{role} is {name!r}, but the fields are {', '.join(source.fields)}")
    if len(set(fields)) < len(fields):
        raise DataError(f"a column is in fields and in numeric, or twice: {', '.join(fields)}")
    encoding = encode(
        source, config.min_count, directory, user=config.user, item=config.item, min_positives=config.min_positives
    )
    encoding.save(directory)
    if source.catalogue is not None:
        names = pl.col(config.item).cast(pl.String).alias("raw_id")
        source.catalogue.select(names, pl.exclude(config.item)).write_parquet(directory / ITEMS, compression="zstd")
    if source.histories is not None:
        _write(directory / "history.npy", source.histories.items)
        for code, split in enumerate(SPLITS):
            _write(directory / f"{split}-history.npy", source.histories.bounds[source.splits == code])
    if source.ages is not None:
        _write(directory / "test-ages.npy", source.ages[0][source.splits == SPLITS.index("test")])
    counts = np.bincount(source.splits, minlength=3).tolist()
    arrays = [directory / f"{split}-{name}.npy" for split in SPLITS for name in ("ids", "dense", "labels")]
    optional = sorted(path for name in ("history", "ages", "users") for path in directory.glob(f"*{name}.npy"))
    sizes = {name: len(vocabulary) for name, vocabulary in encoding.vocabularies.items()}
    roles = {"user": config.user, "item": config.item, "fields": list(sizes.items()), "dense": list(encoding.dense)}
    positives = [
        int(np.load(directory / f"{split}-labels.npy", mmap_mode="r", allow_pickle=False).sum()) for split in SPLITS
    ]
    write_json(
        directory / "facts.json",
        {
            "name": config.name,
            "format": config.format,
            "source": config.source,
            "user": config.user,
            "item": config.item,
            "fields": sizes,
            "dense": list(encoding.dense),
            "scales": encoding.scales,
            "min_count": config.min_count,
            "min_positives": config.min_positives,
            "counts": dict(zip(SPLITS, counts, strict=True)),
            "positives": dict(zip(SPLITS, positives, strict=True)),
            "split": source.facts,
            "age_unit": source.ages and source.ages[1],
            "hash": key_hash(content_hash(*arrays, *optional), roles),
        },
    )


def _write(path: Path, array: npt.NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
