"""Files of a dataset and the hashes in its manifest."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.dataset import INTERACTIONS, ITEMS, USERS
from pipelines.ingest.events import Events, degrees

ROW_GROUP = 1 << 20


def write_events(
    directory: Path, events: Events, split: npt.NDArray[np.uint8], users: pl.DataFrame, items: pl.DataFrame
) -> None:
    """Write the three Parquet files into ``directory``."""
    columns = {name: array for name, array in events.columns.items() if name != "split"}
    frame = pl.DataFrame({"user": events.user, "item": events.item, **columns, "split": split})
    frame.write_parquet(directory / INTERACTIONS, compression="lz4", statistics=False, row_group_size=ROW_GROUP)
    users.write_parquet(directory / USERS, compression="zstd")
    items.write_parquet(directory / ITEMS, compression="zstd")


def content_hashes(
    events: Events, split: npt.NDArray[np.uint8], users: pl.DataFrame, items: pl.DataFrame
) -> tuple[str, str]:
    """Hash of the training graph, as :func:`pipelines.dataset.graph_hash` makes it, and hash of everything."""
    train = split == 0
    user, item = events.user[train], events.item[train]
    repeats = np.flatnonzero((np.diff(user) == 0) & (np.diff(item) == 0)) + 1
    user, item = np.delete(user, repeats), np.delete(item, repeats)
    counts = degrees(user, len(users))
    graph = hashlib.sha256(f"{len(users)}x{len(items)}".encode())
    graph.update(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64).data)
    graph.update(np.ascontiguousarray(item).data)
    whole = hashlib.blake2b(digest_size=32)
    for name, array in {"user": events.user, "item": events.item, **events.columns, "split": split}.items():
        whole.update(name.encode())
        whole.update(np.ascontiguousarray(array).data)
    for table in (users, items):
        for part in table.iter_slices(ROW_GROUP):
            whole.update(part.write_ndjson().encode())
    return graph.hexdigest(), whole.hexdigest()


class FileHash:
    """BLAKE2 of the bytes of files, made in a thread while they are read."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._digest = hashlib.blake2b(digest_size=32)
        self._thread = threading.Thread(target=self._run, args=(files,), daemon=True)
        self._thread.start()

    def _run(self, files: Sequence[Path]) -> None:
        for path in files:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    self._digest.update(block)

    def result(self) -> str:
        """Hexadecimal digest, when the thread is through."""
        self._thread.join()
        return self._digest.hexdigest()
