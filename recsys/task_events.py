"""Events with a label for each of several tasks, some of them unknown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class TaskEvents:
    """A split of events with several labels; the arrays may be memory-mapped.

    Attributes:
        ids: int32 [E, F], one id of each categorical field.
        labels: float32 [E, T], NaN where unknown.
        fields: names of the columns of ``ids``.
        tasks: names of the columns of ``labels``.

    Raises:
        ValueError: The arrays differ in length, or the names in number.
    """

    ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.float32]
    fields: tuple[str, ...]
    tasks: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check shapes once."""
        wanted = [(len(self.ids), len(self.fields)), (len(self.ids), len(self.tasks))]
        if [self.ids.shape, self.labels.shape] != wanted:
            raise ValueError(
                f"events need ids [E, {len(self.fields)}] and labels [E, {len(self.tasks)}], got"
                f" {list(self.ids.shape)} and {list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def known(self, task: str) -> npt.NDArray[np.bool_]:
        """Bool [E]: where the label of a task is known."""
        known: npt.NDArray[np.bool_] = ~np.isnan(self.labels[:, self.tasks.index(task)])
        return known


def join_task_events(splits: Sequence[TaskEvents]) -> TaskEvents:
    """The events of several splits, one after the other."""
    ids = np.concatenate([split.ids for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    return TaskEvents(ids, labels, splits[0].fields, splits[0].tasks)
