"""How alike two clusterings of the same things are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from embeddings.id_map import IntArray

Counts = npt.NDArray[np.float64]


def adjusted_rand(a: IntArray, b: IntArray) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985, eq. 5): 1 for equal partitions, 0 on average for independent ones.

    ``(S - E) / (M - E)`` with S pairs together in both, E their expectation, M the mean of the pairs together in each.

    Args:
        a: labels >= 0, int64 [N].
        b: labels of the same N things.
    """
    cells, rows, columns = _contingency(a, b)
    both, first, second, every = (_pairs(counts) for counts in (cells, rows, columns, np.array([float(len(a))])))
    if both == first == second:
        return 1.0
    expected = first * second / every
    return (both - expected) / ((first + second) / 2 - expected)


def normalised_mutual_information(a: IntArray, b: IntArray) -> float:
    """``I(a; b) / ((H(a) + H(b)) / 2)`` (Vinh et al. 2010, NMI_sum): 1 for equal partitions, 0 for independent ones.

    Args:
        a: labels >= 0, int64 [N].
        b: labels of the same N things.
    """
    cells, rows, columns = _contingency(a, b)
    first, second = _entropy(rows), _entropy(columns)
    if first == second == 0:
        return 1.0
    information = first + second - _entropy(cells)
    return max(0.0, 2 * information / (first + second))


def _contingency(a: IntArray, b: IntArray) -> tuple[Counts, Counts, Counts]:
    """Things in each non-empty pair of clusters, in each cluster of ``a``, and of ``b``."""
    table = sparse.coo_array((np.ones(len(a)), (a, b))).tocsr()
    rows, columns = np.bincount(a).astype(np.float64), np.bincount(b).astype(np.float64)
    return table.data, rows[rows > 0], columns[columns > 0]


def _pairs(counts: Counts) -> float:
    return float((counts * (counts - 1)).sum() / 2)


def _entropy(counts: Counts) -> float:
    """In nats."""
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())
