"""How much features tell about each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from recsys.features import Categorical, Column, Features, IntArray, MultiCategorical, Numeric
from recsys.models.tower import ID
from recsys.rng import generator

_BINS = 16
_SHUFFLED_ROWS = 200_000
"""Rows that the shuffles of a feature have together: few of a large catalogue, whose mean varies little."""


def adjusted_mutual_information(features: Features) -> npt.NDArray[np.float64]:
    """How much features tell about each other (Yao et al. 2021, section 3.3): 0 for unrelated ones, 1 for equal ones.

    ``(I(V_i; V_j) - E) / (sqrt(H(V_i) H(V_j)) - E)`` with E the expectation of I for unrelated features of these values
    (Vinh et al. 2010), here the mean over shuffles of the rows. Without E and the entropies a feature with many values
    tells most about every other one: a few rows of each value always agree by chance. A missing value is a value too; a
    row with several values has each of them with its share of the weights; numbers are put into 16 quantiles. The id
    tells everything about everything, and has 0 here, as a constant feature has.

    Args:
        features: k columns.

    Returns:
        Float64 [k, k], symmetric, at most 1; of unrelated features a little below or above 0.
    """
    matrices = [None if column.name == ID else _shares(column) for column in features.columns]
    entropies = [0.0 if matrix is None else _entropy(matrix) for matrix in matrices]
    rng, count = generator(0, "mutual information"), np.clip(_SHUFFLED_ROWS // max(1, features.num_rows), 1, 16)
    orders = [rng.permutation(features.num_rows) for _ in range(count)]
    found = np.diag((np.array(entropies) > 0).astype(np.float64))
    for i, first in enumerate(matrices):
        if first is None or not entropies[i]:
            continue
        shuffled = [first[order] for order in orders]
        for j, second in enumerate(matrices[:i]):
            if second is None or not entropies[j]:
                continue
            expected = float(np.mean([_information(rows, second) for rows in shuffled]))
            most = np.sqrt(entropies[i] * entropies[j]) - expected
            if most > 1e-9:  # else no two rows share a value, as ids
                found[i, j] = found[j, i] = (_information(first, second) - expected) / most
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
