"""How much features tell about each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from recsys.features import Categorical, Column, Features, IntArray, MultiCategorical, Numeric
from recsys.models.tower import ID

_BINS = 16


def normalised_mutual_information(features: Features) -> npt.NDArray[np.float64]:
    """``I(V_i; V_j) / sqrt(H(V_i) H(V_j))`` for every two features (Yao et al. 2021, section 3.3, normalised).

    Without the normalisation a feature with many values tells most about every other one. A missing value is a value
    too; a row with several values has each of them with its share of the weights; numbers are put into 16 quantiles.
    The id tells everything about everything, and has 0 here, as a constant feature has.

    Args:
        features: k columns.

    Returns:
        Float64 [k, k], symmetric.
    """
    matrices = [None if column.name == ID else _shares(column) for column in features.columns]
    found = np.zeros((len(matrices), len(matrices)))
    entropies = [0.0 if matrix is None else _entropy(matrix) for matrix in matrices]
    for i, first in enumerate(matrices):
        for j, second in enumerate(matrices[: i + 1]):
            if first is not None and second is not None and entropies[i] > 0 and entropies[j] > 0:
                found[i, j] = _information(first, second) / np.sqrt(entropies[i] * entropies[j])
                found[j, i] = found[i, j]
    return found


def _shares(column: Column) -> csr_array:
    """[N, values]: how much of a row each value is; rows sum to 1."""
    match column:
        case Categorical():
            return _one_hot(column.ids, column.size + 1)
        case Numeric():
            known = column.values[~column.missing]
            edges = np.unique(np.quantile(known, np.arange(1, _BINS) / _BINS)) if len(known) else np.empty(0)
            bins = np.searchsorted(edges, column.values, side="left")
            return _one_hot(np.where(column.missing, len(edges) + 1, bins), len(edges) + 2)
        case MultiCategorical():
            weights = np.abs(column.pooling).astype(np.float64)
            shape = (column.num_rows, column.size + 1)
            shares = csr_array((weights, column.values.copy(), column.offsets.copy()), shape=shape)  # sorted in place
            totals: npt.NDArray[np.float64] = shares.sum(axis=1)
            shares.data = weights / np.repeat(np.where(totals > 0, totals, 1.0), np.diff(column.offsets))
            shares.sum_duplicates()
            return shares


def _one_hot(values: IntArray, size: int) -> csr_array:
    rows = len(values)
    return csr_array((np.ones(rows), values, np.arange(rows + 1)), shape=(rows, size))


def _entropy(shares: csr_array) -> float:
    p = shares.sum(axis=0) / shares.shape[0]
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _information(first: csr_array, second: csr_array) -> float:
    joint = (first.T @ second / first.shape[0]).tocoo()
    one, two = first.sum(axis=0) / first.shape[0], second.sum(axis=0) / first.shape[0]
    kept = joint.data > 0
    p, row, column = joint.data[kept], joint.row[kept], joint.col[kept]
    return max(0.0, float((p * np.log(p / (one[row] * two[column]))).sum()))
