"""A dataset on disk: dense ids, splits, features and the manifest that says where they come from."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.sparse import csr_array

from pipelines.errors import DataError, did_you_mean
from recsys.sequences import Sequences

SCHEMA_VERSION = 1
SPLITS: tuple[Literal["train", "valid", "test"], ...] = ("train", "valid", "test")
SplitName = Literal["train", "valid", "test"]
Side = Literal["user", "item"]
INTERACTIONS, USERS, ITEMS, MANIFEST = "interactions.parquet", "users.parquet", "items.parquet", "manifest.json"


class Manifest(BaseModel):
    """What ``manifest.json`` says of a dataset.

    Attributes:
        counts: interactions by split name.
        source: the files, as given in the configuration.
        source_hash: of the bytes of the interaction files.
        content_hash: of everything a model may see: pairs, splits, values and raw ids.
        train_hash: of the training pairs alone, see :func:`graph_hash`.
        columns: optional columns of the interactions (rating, timestamp, position).
        filters: rows, users and items before and after each filter.
        split: protocol and facts (method, cut times, shares, users without test interactions, ...).
        quarantine: bad rows by reason, when they were set aside.
        leak_audit: the checks of :func:`pipelines.audit.audit_split`.
        knowledge_graph: counts of triples, entities and links, see :mod:`pipelines.ingest.knowledge`; empty for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    name: str
    num_users: int
    num_items: int
    counts: dict[SplitName, int]
    source: str
    source_hash: str
    content_hash: str
    train_hash: str
    columns: list[str]
    filters: list[dict[str, Any]]
    split: dict[str, Any]
    quarantine: dict[str, int]
    leak_audit: list[dict[str, Any]]
    entities: dict[str, dict[str, Any]]
    knowledge_graph: dict[str, int] = {}


def graph_hash(graph: csr_array) -> str:
    """SHA-256 of a binary bipartite graph: shape and sorted edges, whatever the index type or the values."""
    graph = csr_array(graph).sorted_indices()
    digest = hashlib.sha256(f"{graph.shape[0]}x{graph.shape[1]}".encode())
    digest.update(np.ascontiguousarray(graph.indptr, dtype=np.int64).data)
    digest.update(np.ascontiguousarray(graph.indices, dtype=np.int32).data)
    return digest.hexdigest()


class Dataset:
    """Interactions of users with items, split into train, validation and test.

    Dense indices are int32 in ``[0, num_users)`` and ``[0, num_items)`` in the order of the raw ids (numbers by value,
    text by code point), so that they do not depend on the order of the source files.

    Attributes:
        path: directory of the dataset.
        manifest: facts about it.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Use :meth:`open`."""
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path | str) -> Dataset:
        """Open a directory that :func:`pipelines.ingest.ingest` wrote.

        Raises:
            DataError: The directory, a file or a field is missing, or another version wrote it.
        """
        path = Path(path)
        missing = [name for name in (MANIFEST, INTERACTIONS, USERS, ITEMS) if not (path / name).is_file()]
        if missing:
            raise DataError(f"{path} is not a dataset: {', '.join(missing)} missing; make it with `recsys run`")
        try:
            raw = json.loads((path / MANIFEST).read_text())
            version = raw.get("schema_version") if isinstance(raw, dict) else None
            if version != SCHEMA_VERSION:
                raise DataError(
                    f"{path / MANIFEST} has schema_version {version}, this program reads {SCHEMA_VERSION};"
                    " remove the directory and ingest again"
                )
            manifest = Manifest.model_validate(raw)
        except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
            raise DataError(f"{path / MANIFEST} is damaged ({error}); remove the directory and ingest again") from error
        return cls(path, manifest)

    @property
    def num_users(self) -> int:
        """Number of users."""
        return self.manifest.num_users

    @property
    def num_items(self) -> int:
        """Number of items."""
        return self.manifest.num_items

    @property
    def content_hash(self) -> str:
        """Hash of pairs, splits, values and raw ids."""
        return self.manifest.content_hash

    def matrix(self, *splits: SplitName) -> csr_array:
        """Binary matrix float32 [num_users, num_items] of the pairs of one or more splits; sorted, no duplicates."""
        frame = self.frame(*splits, columns=("user", "item"))
        users, items = frame["user"].to_numpy(), frame["item"].to_numpy()
        matrix = csr_array(
            (np.ones(len(users), dtype=np.float32), (users, items)), shape=(self.num_users, self.num_items)
        )
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix

    def sequences(self, *splits: SplitName) -> Sequences:
        """The events of one or more splits by user, oldest first: by timestamp, then position, then item.

        Raises:
            DataError: The dataset has neither a timestamp nor a position column.
        """
        frame = self.frame(*splits)
        order = [name for name in ("timestamp", "position") if name in frame.columns]
        if not order:
            raise DataError(
                f"{self.path / INTERACTIONS} has no timestamp and no position, so that it has no sequences; set"
                " columns.timestamp or columns.position of the dataset, or use a model that needs no order"
            )
        frame = frame.sort("user", *order, "item")
        times = frame["timestamp"].to_numpy().astype(np.int64) if "timestamp" in frame.columns else None
        users, items = (frame[name].to_numpy().astype(np.int64) for name in ("user", "item"))
        return Sequences.of_events(users, items, self.num_users, times)

    def frame(self, *splits: SplitName, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Interactions of the splits (all when none is named), by user then item, with ``columns`` or all stored.

        Raises:
            DataError: A name is not a split, or the file cannot be read.
        """
        for name in splits:
            if name not in SPLITS:
                raise DataError(f"unknown split {name!r}; {did_you_mean(name, SPLITS)}")
        scan = pl.scan_parquet(self.path / INTERACTIONS, glob=False)
        if splits:
            scan = scan.filter(pl.col("split").is_in([SPLITS.index(name) for name in splits]))
        try:
            return (scan if columns is None else scan.select(columns)).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"cannot read {self.path / INTERACTIONS} ({error}); ingest again") from error

    @functools.cached_property
    def users(self) -> pl.DataFrame:
        """Row i is user i: ``raw_id``, then ``title`` and features where the source has them."""
        return self._entities(USERS, self.num_users)

    @functools.cached_property
    def items(self) -> pl.DataFrame:
        """Row i is item i: ``raw_id``, then ``title`` and features where the source has them."""
        return self._entities(ITEMS, self.num_items)

    def _entities(self, name: str, expected: int) -> pl.DataFrame:
        try:
            frame = pl.read_parquet(self.path / name, glob=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"cannot read {self.path / name} ({error}); ingest again") from error
        if frame.height != expected:
            raise DataError(f"{self.path / name} has {frame.height} rows, the manifest says {expected}; ingest again")
        return frame

    def raw_user_ids(self) -> list[str]:
        """Raw id of every user, in index order."""
        return self.users["raw_id"].to_list()

    def raw_item_ids(self) -> list[str]:
        """Raw id of every item, in index order."""
        return self.items["raw_id"].to_list()

    def user_titles(self) -> list[str]:
        """Title of every user, or the raw id where there is none."""
        return _titles(self.users)

    def item_titles(self) -> list[str]:
        """Title of every item, or the raw id where there is none."""
        return _titles(self.items)

    def user_index(self, raw_id: str) -> int:
        """Index of a raw user id.

        Raises:
            DataError: There is no such user; similar ids are offered.
        """
        return self._index(raw_id, "user")

    def item_index(self, raw_id: str) -> int:
        """Index of a raw item id; raises like :meth:`user_index`."""
        return self._index(raw_id, "item")

    def _index(self, raw_id: str, side: Side) -> int:
        ids = (self.users if side == "user" else self.items)["raw_id"]
        found: npt.NDArray[np.uint32] = (ids == str(raw_id)).arg_true().to_numpy()
        if not found.size:
            raise DataError(f"unknown {side} {raw_id!r} among {len(ids):,}; {did_you_mean(str(raw_id), ids.to_list())}")
        return int(found[0])


def _titles(frame: pl.DataFrame) -> list[str]:
    if "title" not in frame.columns:
        return frame["raw_id"].to_list()
    named = pl.when(pl.col("title") != "").then("title")  # an empty cell of a text file is no title
    return frame.select(pl.coalesce(named, "raw_id").alias("title"))["title"].to_list()
