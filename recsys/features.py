"""Features of users and items as arrays: what towers and rankers look up, whatever file they came from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Categorical:
    """One value for each row.

    Attributes:
        name: of the feature.
        ids: int64 [N] in ``[0, size]``; ``size`` stands for a missing value or one that training did not see.
        size: values of the vocabulary; a table of the feature has ``size + 1`` rows.

    Raises:
        ValueError: An id is out of range, or shape or dtype are wrong; the message has the first bad row.
    """

    name: str
    ids: IntArray
    size: int

    def __post_init__(self) -> None:
        """Check every id once, so that no lookup has to."""
        _check_ids(self.name, "ids", self.ids, self.size)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.ids)

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """Bool [N]: rows whose value is missing or unseen."""
        missing: npt.NDArray[np.bool_] = self.ids == self.size
        return missing

    def take(self, rows: IntArray) -> Categorical:
        """The feature of some rows, in their order."""
        return Categorical(self.name, self.ids[rows], self.size)


@dataclasses.dataclass(frozen=True)
class MultiCategorical:
    """Any number of values for each row, each with a weight.

    Attributes:
        name: of the feature.
        values: int64 [nnz] in ``[0, size]``; a row without a known value has the one value ``size``, or none.
        offsets: int64 [N + 1] from 0 to nnz; row i has ``values[offsets[i]:offsets[i + 1]]``.
        size: values of the vocabulary; a table of the feature has ``size + 1`` rows.
        weights: float32 [nnz], of a weighted sum; None for the mean.

    Raises:
        ValueError: A value is out of range, the offsets do not rise from 0 to nnz, or shapes or dtypes are wrong.
    """

    name: str
    values: IntArray
    offsets: IntArray
    size: int
    weights: FloatArray | None = None

    def __post_init__(self) -> None:
        """Check values and offsets once."""
        _check_ids(self.name, "values", self.values, self.size)
        offsets = self.offsets
        if offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) < 1:
            raise ValueError(
                f"feature {self.name!r}: offsets must be int64 [N + 1], got {offsets.dtype} {list(offsets.shape)}"
            )
        if offsets[0] != 0 or offsets[-1] != len(self.values) or (np.diff(offsets) < 0).any():
            raise ValueError(
                f"feature {self.name!r}: offsets must rise from 0 to the number of values, {len(self.values)},"
                f" got {offsets[0]} to {offsets[-1]}"
            )
        if self.weights is not None and (self.weights.shape != self.values.shape or self.weights.dtype != np.float32):
            raise ValueError(
                f"feature {self.name!r}: weights must be float32 of the shape of values {list(self.values.shape)},"
                f" got {self.weights.dtype} {list(self.weights.shape)}"
            )

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.offsets) - 1

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """Bool [N]: rows without a known value."""
        known = np.concatenate([[0], np.cumsum(self.values < self.size)])
        missing: npt.NDArray[np.bool_] = known[self.offsets[1:]] == known[self.offsets[:-1]]
        return missing

    @property
    def pooling(self) -> FloatArray:
        """Float32 [nnz]: the weights of the sum that a row's vectors are pooled by."""
        if self.weights is not None:
            return self.weights
        lengths = np.diff(self.offsets)
        return np.repeat((1 / np.maximum(lengths, 1)).astype(np.float32), lengths)

    def take(self, rows: IntArray) -> MultiCategorical:
        """The feature of some rows, in their order."""
        places, offsets = ranges(self.offsets[rows], self.offsets[rows + 1])
        weights = None if self.weights is None else self.weights[places]
        return MultiCategorical(self.name, self.values[places], offsets, self.size, weights)


@dataclasses.dataclass(frozen=True)
class Numeric:
    """One number for each row.

    Attributes:
        name: of the feature.
        values: float32 [N], finite; 0 where missing.
        missing: bool [N].

    Raises:
        ValueError: A value is not finite, or shapes or dtypes are wrong; the message has the first bad row.
    """

    name: str
    values: FloatArray
    missing: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Check every number once: one NaN would spoil all weights of a model."""
        if self.values.dtype != np.float32 or self.missing.dtype != np.bool_ or self.values.ndim != 1:
            raise ValueError(
                f"feature {self.name!r}: values must be float32 [N] and missing bool [N], got {self.values.dtype}"
                f" {list(self.values.shape)} and {self.missing.dtype}"
            )
        if self.values.shape != self.missing.shape:
            raise ValueError(
                f"feature {self.name!r}: values and missing must have one shape, got {list(self.values.shape)} and"
                f" {list(self.missing.shape)}"
            )
        bad = np.flatnonzero(~np.isfinite(self.values))
        if bad.size:
            raise ValueError(
                f"feature {self.name!r}: row {bad[0]} is {self.values[bad[0]]}; mark it missing with value 0"
                f" ({bad.size:,} such rows)"
            )

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.values)

    def take(self, rows: IntArray) -> Numeric:
        """The feature of some rows, in their order."""
        return Numeric(self.name, self.values[rows], self.missing[rows])


Column = Categorical | MultiCategorical | Numeric


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of all users or of all items.

    Attributes:
        num_rows: N, of every column.
        columns: in a fixed order, with names of their own.

    Raises:
        ValueError: Columns have different lengths, or two have one name.
    """

    num_rows: int
    columns: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        """Check lengths and names."""
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise ValueError(f"features must have names of their own, got {', '.join(names)}")
        for column in self.columns:
            if column.num_rows != self.num_rows:
                raise ValueError(f"feature {column.name!r} must have {self.num_rows:,} rows, got {column.num_rows:,}")

    def take(self, rows: IntArray) -> Features:
        """The features of some rows.

        Args:
            rows: int64 [n], each in ``[0, num_rows)``.
        """
        return Features(len(rows), tuple(column.take(rows) for column in self.columns))

    def facts(self) -> list[dict[str, Any]]:
        """What a file says beside :meth:`arrays`: kind, name and size of every column."""
        return [
            {"kind": type(column).__name__, "name": column.name, "size": getattr(column, "size", 0)}
            for column in self.columns
        ]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Every array under ``<column>.<attribute>``, for a safetensors file."""
        fields = ("ids", "values", "offsets", "weights", "missing")
        return {
            f"{column.name}.{field}": array
            for column in self.columns
            for field in fields
            if isinstance(array := vars(column).get(field), np.ndarray)
        }

    @classmethod
    def from_arrays(cls, num_rows: int, facts: list[dict[str, Any]], arrays: dict[str, npt.NDArray[Any]]) -> Features:
        """What :meth:`facts` and :meth:`arrays` describe; a missing array is a KeyError."""
        columns: list[Column] = []
        for fact in facts:
            name, size = fact["name"], fact["size"]
            match fact["kind"]:
                case "Categorical":
                    columns.append(Categorical(name, arrays[f"{name}.ids"], size))
                case "MultiCategorical":
                    values, offsets = arrays[f"{name}.values"], arrays[f"{name}.offsets"]
                    columns.append(MultiCategorical(name, values, offsets, size, arrays.get(f"{name}.weights")))
                case "Numeric":
                    columns.append(Numeric(name, arrays[f"{name}.values"], arrays[f"{name}.missing"]))
                case kind:
                    raise ValueError(f"feature {name!r} has the unknown kind {kind!r}; write the file again")
        return cls(num_rows, tuple(columns))


def ranges(starts: IntArray, stops: IntArray) -> tuple[IntArray, IntArray]:
    """The places of several slices, one after the other.

    Args:
        starts: int64 [B].
        stops: int64 [B], none below its start.

    Returns:
        int64 [sum of lengths] and offsets int64 [B + 1].

    Example:
        >>> places, offsets = ranges(np.array([4, 0]), np.array([6, 1]))
        >>> places.tolist(), offsets.tolist()
        ([4, 5, 0], [0, 2, 3])
    """
    lengths = stops - starts
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    places = np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], lengths)
    return places, offsets


def _check_ids(name: str, what: str, ids: IntArray, size: int) -> None:
    if ids.dtype != np.int64 or ids.ndim != 1:
        raise ValueError(f"feature {name!r}: {what} must be int64 [n], got {ids.dtype} {list(ids.shape)}")
    bad = np.flatnonzero((ids < 0) | (ids > size))
    if bad.size:
        raise ValueError(
            f"feature {name!r}: {what} must lie in [0, {size}], but place {bad[0]} has {ids[bad[0]]}"
            f" ({bad.size:,} such places)"
        )
