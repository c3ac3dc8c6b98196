"""Dynamic sparse training: how many entries a table keeps, and how many of them move when.

Sparse from scratch at a constant number of entries: every so many steps the smallest in magnitude are dropped and as
many others grow, by random (SET, Mocanu et al. 2018), gradient (RigL, Evci et al. 2020; DSL, Wang et al. 2024) or
momentum (Dettmers and Zettlemoyer 2019).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Growth = Literal["gradient", "random", "momentum"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When entries move, and which share of them.

    The share after t steps is ``end + (start - end) / 2 * (1 + cos(pi t / T))`` with ``T = stop * steps``: DSL's with
    ``stop`` 1 and ``end`` 0.005, RigL's with ``stop`` 0.75 and ``end`` 0 (``start`` is its alpha).

    Attributes:
        every: steps between two updates, Delta T.
        steps: of the whole training.
        start: share of the entries at step 0.
        end: share at the end.
        stop: share of the training after which nothing moves.

    Raises:
        ValueError: A parameter is out of range.
    """

    every: int
    steps: int
    start: float = 0.5
    end: float = 0.005
    stop: float = 1.0

    def __post_init__(self) -> None:
        if self.every < 1 or self.steps < 1:
            raise ValueError(f"a schedule needs every >= 1 and steps >= 1, got {self.every} and {self.steps}")
        if not 0 <= self.end <= self.start <= 1 or not 0 < self.stop <= 1:
            raise ValueError(
                f"a schedule needs 0 <= end <= start <= 1 and 0 < stop <= 1, got end {self.end}, start {self.start},"
                f" stop {self.stop}"
            )

    def share(self, step: int) -> float:
        """Share of the entries that moves after ``step`` steps (from 1); 0 where there is no update."""
        if step % self.every or not 0 < step <= self.stop * self.steps:
            return 0.0
        turn = math.cos(math.pi * step / (self.stop * self.steps))
        return self.end + (self.start - self.end) / 2 * (1 + turn)

    def to_update(self, step: int) -> int | None:
        """Steps from ``step`` (the last one done) to the next update; None where none is left."""
        left = self.every - step % self.every
        return left if step + left <= self.stop * self.steps else None


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """How many entries of a table are stored, and how they are found.

    Attributes:
        density: stored share of the entries, rounded to whole entries.
        schedule: None for a random mask that stays.
        growth: by the largest gradient, by the largest decayed sum of gradients, or at random.
        window: steps before an update whose gradients count, for growth by gradient (sum of magnitudes; 1 is RigL's and
            DSL's rule) or momentum. The gradients of the rows that they touch are kept until the update.
        momentum: decay by step, for growth by momentum.

    Raises:
        ValueError: A parameter is out of range.
    """

    density: float
    schedule: Schedule | None = None
    growth: Growth = "gradient"
    window: int = 1
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"a sparse table needs 0 < density <= 1, got {self.density}")
        if self.window < 1 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"growth needs window >= 1 and 0 <= momentum < 1, got window {self.window}, momentum {self.momentum}"
            )

    def observes(self, step: int) -> bool:
        """Whether the gradient of step ``step`` (from 1) counts for an update."""
        if self.schedule is None or self.growth == "random":
            return False
        left = self.schedule.to_update(step - 1)
        return left is not None and left <= self.window


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """Rows that start with the same columns.

    Attributes:
        of_row: int64 [num_rows], the group of each row, in ``[0, G)``.
        draws: int64 [G, D], random numbers >= 0 that shuffle the columns of each group; a row takes the first ones.
    """

    of_row: npt.NDArray[np.int64]
    draws: npt.NDArray[np.int64]


def entries(density: float, rows: int, dim: int) -> int:
    """Stored entries of a table: the density in whole entries, one at least."""
    return max(1, round(density * rows * dim))


def erk_densities(shapes: Sequence[tuple[int, int]], density: float) -> list[float]:
    """Densities of several matrices by the Erdos-Renyi rule (Mocanu et al. 2018; Evci et al. 2020, section 3).

    A matrix [n, m] gets a density in proportion to ``(n + m) / (n m)``, so that small ones stay denser; one that would
    pass 1 is dense, and the others share the rest. Together they store ``density`` of all entries.

    Raises:
        ValueError: The density is out of range, or a shape is empty.

    Example:
        >>> [round(density, 3) for density in erk_densities([(100, 10), (1000, 10)], 0.1)]
        [0.108, 0.099]
    """
    if not 0 < density <= 1 or any(min(shape) < 1 for shape in shapes):
        raise ValueError(f"ERK needs 0 < density <= 1 and shapes of at least one entry, got {density} and {shapes}")
    sizes, raw = [n * m for n, m in shapes], [(n + m) / (n * m) for n, m in shapes]
    dense: set[int] = set()
    while True:
        free = [i for i in range(len(shapes)) if i not in dense]
        if not free:
            return [1.0] * len(shapes)
        left = density * sum(sizes) - sum(sizes[i] for i in dense)
        scale = left / sum(raw[i] * sizes[i] for i in free)
        full = {i for i in free if raw[i] * scale > 1}
        if not full:
            return [1.0 if i in dense else raw[i] * scale for i in range(len(shapes))]
        dense |= full
