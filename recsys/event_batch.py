"""Labelled events with categorical and numeric fields, whole and in batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class HistoryBatch:
    """What the users of a batch had before, jagged.

    Attributes:
        ids: int64 [T], ids of the item field, event by event, oldest first.
        offsets: int64 [B + 1], where each event's ids start.
    """

    ids: Tensor
    offsets: Tensor


@dataclasses.dataclass(frozen=True)
class EventBatch:
    """What a ranker scores.

    Attributes:
        ids: int64 [B, F], one id of each categorical field; ``num_ids`` of the field, or any id outside, is unseen.
        dense: float32 [B, N] of numeric fields, N may be 0.
        labels: float32 [B], 0 or 1; empty where there are none.
        history: items before each event, for rankers that look at them.
    """

    ids: Tensor
    dense: Tensor
    labels: Tensor
    history: HistoryBatch | None = None


@dataclasses.dataclass(frozen=True)
class EventHistories:
    """What the user had before each event: a stretch of a list in which users follow each other, oldest item first.

    Attributes:
        items: int32 [T], ids of the item field; events share it.
        bounds: int64 [E, 2], start and end of each event's stretch.

    Raises:
        ValueError: A stretch does not lie in the list.
    """

    items: npt.NDArray[np.int32]
    bounds: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check the bounds once."""
        starts, ends = self.bounds.reshape(-1, 2).T
        bad = np.flatnonzero((starts < 0) | (ends < starts) | (ends > len(self.items)))
        if bad.size:
            raise ValueError(
                f"the history of an event must be a stretch of {len(self.items):,} items, but event {bad[0]} has"
                f" {self.bounds[bad[0]].tolist()}"
            )

    def batch(self, rows: npt.NDArray[Any] | slice) -> HistoryBatch:
        """The histories of the events at ``rows``."""
        starts, ends = self.bounds[rows].T
        offsets = np.concatenate([[0], np.cumsum(ends - starts)])
        places = np.repeat(starts - offsets[:-1], ends - starts) + np.arange(offsets[-1])
        return HistoryBatch(torch.from_numpy(self.items[places].astype(np.int64)), torch.from_numpy(offsets))


@dataclasses.dataclass(frozen=True)
class Events:
    """A split of labelled events; the arrays may be memory-mapped, so that a split may be larger than memory.

    Attributes:
        ids: int32 [E, F].
        dense: float32 [E, N].
        labels: uint8 [E], 0 or 1.
        fields: names of the columns of ``ids``.
        history: of each event, or None.

    Raises:
        ValueError: The arrays differ in length, the names in number, or a label is not 0 or 1.
    """

    ids: npt.NDArray[np.int32]
    dense: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    fields: tuple[str, ...]
    history: EventHistories | None = None

    def __post_init__(self) -> None:
        """Check shapes and labels once."""
        lengths = [len(self.ids), len(self.dense), len(self.labels)]
        if len(set(lengths)) > 1 or self.ids.ndim != 2 or self.ids.shape[1] != len(self.fields):
            raise ValueError(
                f"events need ids [E, {len(self.fields)}], dense [E, N] and labels [E], got {list(self.ids.shape)},"
                f" {list(self.dense.shape)} and {list(self.labels.shape)}"
            )
        if self.history is not None and len(self.history.bounds) != len(self.labels):
            raise ValueError(f"{len(self.labels):,} events need as many histories, got {len(self.history.bounds):,}")
        bad = np.flatnonzero(self.labels > 1)
        if bad.size:
            raise ValueError(f"labels must be 0 or 1, but labels[{bad[0]}] is {self.labels[bad[0]]}")

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: npt.NDArray[Any] | slice) -> EventBatch:
        """The events at ``rows``, copied."""
        return EventBatch(
            torch.from_numpy(self.ids[rows].astype(np.int64)),
            torch.from_numpy(np.array(self.dense[rows], dtype=np.float32)),
            torch.from_numpy(self.labels[rows].astype(np.float32)),
            None if self.history is None else self.history.batch(rows),
        )

    def column(self, field: str) -> npt.NDArray[np.int32]:
        """Ids int32 [E] of one field.

        Raises:
            ValueError: There is no such field.
        """
        if field not in self.fields:
            raise ValueError(f"there is no field {field!r}; the events have {', '.join(self.fields)}")
        return np.ascontiguousarray(self.ids[:, self.fields.index(field)])


def join(splits: Sequence[Events]) -> Events:
    """The events of several splits, one after the other; all of them have histories, or none."""
    histories = [split.history for split in splits if split.history is not None]
    starts = np.cumsum([0, *(len(history.items) for history in histories)])
    history = EventHistories(
        np.concatenate([history.items for history in histories]),
        np.concatenate([history.bounds + start for history, start in zip(histories, starts, strict=False)]),
    ) if histories else None  # fmt: skip
    return Events(
        np.concatenate([split.ids for split in splits]),
        np.concatenate([split.dense for split in splits]),
        np.concatenate([split.labels for split in splits]),
        splits[0].fields,
        history,
    )
