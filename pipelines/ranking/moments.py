"""Mean and standard deviation of a numeric column, block by block."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from pipelines.errors import DataError


@dataclasses.dataclass
class Moments:
    """What is known of a column so far.

    Squares are summed around the mean of a block and merged as by Chan, Golub and LeVeque (1979), of distances from the
    first value: the difference of E[x^2] and E[x]^2 has no digit left where the mean is large beside the deviation.

    Attributes:
        rows: values, missing ones too.
        known: values that are not missing.
        first: value that is known.
        mean: of the known ones' distances from the first.
        squares: sum of their squared distances from the mean.
        least: the smallest of them.
        most: the largest.
    """

    rows: int = 0
    known: int = 0
    first: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Add a block, float64 [n], in which NaN is missing."""
        self.rows += len(values)
        known = values[~np.isnan(values)]
        if not known.size:
            return
        self.first = self.first if self.known else float(known[0])
        self.least, self.most = min(self.least, float(known.min())), max(self.most, float(known.max()))
        with np.errstate(over="ignore", invalid="ignore"):  # told by scale
            known = known - self.first
            mean = known.mean()
            far = known - mean
            squares = np.square(far).sum() - np.square(far.sum()) / known.size
            gap, total = mean - self.mean, self.known + known.size
            self.squares = float(self.squares + squares + np.square(gap) * (self.known / total) * known.size)
            self.mean = float(self.mean + gap * (known.size / total))
        self.known = total

    def scale(self, name: str) -> tuple[float, float, bool]:
        """Mean, standard deviation, exactly 0 where all values are one, and whether some are missing.

        Raises:
            DataError: The column ``name`` has no value, or squares of its values leave float64.
        """
        if not self.known:
            raise DataError(f"numeric column {name!r} has no value in train; leave it out, or use log_bucket")
        lacks = self.known < self.rows
        if self.least == self.most:
            return self.least, 0.0, lacks
        if not math.isfinite(self.squares):
            raise DataError(
                f"numeric column {name!r} has values beyond 1e150 in train; leave it out, or use log_standardise"
            )
        return self.first + self.mean, math.sqrt(max(self.squares, 0.0) / self.known), lacks
