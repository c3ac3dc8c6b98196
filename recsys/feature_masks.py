"""Features with parts left out: whole features of some rows, or single values of lists."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys.features import Categorical, Column, Features, MultiCategorical, Numeric

Mask = npt.NDArray[np.bool_]


def mask_features(features: Features, masked: Mask) -> Features:
    """Put the value that stands for "missing" in the place of masked features.

    Args:
        features: of n rows and k columns.
        masked: bool [n, k], or [k] for all rows alike.
    """
    whole = np.broadcast_to(masked, (features.num_rows, len(features.columns)))
    columns = (_masked(column, whole[:, place]) for place, column in enumerate(features.columns))
    return Features(features.num_rows, tuple(columns))


def drop_features(features: Features, share: float, rng: np.random.Generator) -> Features:
    """Mask every feature of every row with probability ``share``; a row that would lose all keeps all.

    So a feature that is alone is never masked.

    Args:
        features: of n rows and k columns.
        share: in [0, 1).
        rng: draws [n, k] numbers.
    """
    if share == 0.0:
        return features
    masked = rng.random((features.num_rows, len(features.columns))) < share
    masked[masked.all(1)] = False
    return mask_features(features, masked)


def drop_values(features: Features, share: float, rng: np.random.Generator) -> Features:
    """Drop every value of a list with probability ``share``; a list that loses all is missing.

    Args:
        features: any; only the multi-valued columns change.
        share: in [0, 1).
        rng: draws one number for each value.
    """
    if share == 0.0:
        return features
    columns = (
        _kept(column, rng.random(len(column.values)) >= share) if isinstance(column, MultiCategorical) else column
        for column in features.columns
    )
    return Features(features.num_rows, tuple(columns))


def _masked(column: Column, masked: Mask) -> Column:
    if not masked.any():
        return column
    match column:
        case Categorical():
            return Categorical(column.name, np.where(masked, column.size, column.ids), column.size)
        case Numeric():
            values = np.where(masked, np.float32(0), column.values)
            return Numeric(column.name, values, column.missing | masked)
        case MultiCategorical():
            return _kept(column, np.repeat(~masked, np.diff(column.offsets)))


def _kept(column: MultiCategorical, kept: Mask) -> MultiCategorical:
    """Only some values, bool [nnz]; rows without any have the unseen value."""
    rows = np.repeat(np.arange(column.num_rows), np.diff(column.offsets))[kept]
    empty = np.setdiff1d(np.arange(column.num_rows), rows)
    order = np.argsort(np.concatenate([rows, empty]), kind="stable")
    values = np.concatenate([column.values[kept], np.full(len(empty), column.size, np.int64)])[order]
    weights = None
    if column.weights is not None:
        weights = np.concatenate([column.weights[kept], np.ones(len(empty), np.float32)])[order]
    counts = np.bincount(rows, minlength=column.num_rows)
    counts[empty] = 1
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    return MultiCategorical(column.name, values, offsets, column.size, weights)
