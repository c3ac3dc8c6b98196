r"""Per-user metrics of ranked lists.

With :math:`R_u` the relevant items of a user and :math:`h_{uj} \in \{0, 1\}` whether the item at position j is one:

.. math::
    recall@k &= \sum_{j \le k} h_{uj} / |R_u| \\
    recall\_capped@k &= \sum_{j \le k} h_{uj} / \min(k, |R_u|) \\
    precision@k &= \sum_{j \le k} h_{uj} / k \\
    hit@k &= [\sum_{j \le k} h_{uj} > 0] \\
    mrr@k &= 1 / \min \{ j \le k : h_{uj} = 1 \}, \text{ or } 0 \\
    map@k &= \sum_{j \le k} h_{uj} \, precision@j / |R_u| \\
    ndcg@k &= \sum_{j \le k} \frac{h_{uj}}{\log_2(j + 1)} \Big/ \sum_{j \le \min(k, |R_u|)} \frac{1}{\log_2(j + 1)}

The denominators are those of ranx and, for recall and NDCG, of LightGCN (He et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

FloatArray = npt.NDArray[np.float64]
NAMES = ("recall", "recall_capped", "ndcg", "map", "mrr", "hit", "precision")


@numba.njit(nogil=True, cache=True)
def _mark_hits(
    items: npt.NDArray[np.int32],
    indptr: npt.NDArray[np.int32],
    indices: npt.NDArray[np.int32],
    hits: npt.NDArray[np.bool_],
) -> None:
    for row in range(items.shape[0]):
        relevant = indices[indptr[row] : indptr[row + 1]]
        for j in range(items.shape[1]):
            place = np.searchsorted(relevant, items[row, j])
            hits[row, j] = place < len(relevant) and relevant[place] == items[row, j]


def hit_matrix(items: npt.NDArray[np.int32], relevant: csr_array) -> npt.NDArray[np.bool_]:
    """Whether each recommended item is relevant.

    Args:
        items: int32 [U, K] lists, -1 = none.
        relevant: csr [U, num_items] with sorted indices, row u = the relevant items of list u.

    Returns:
        bool [U, K].

    Raises:
        ValueError: The numbers of rows differ.
    """
    if items.shape[0] != relevant.shape[0]:
        raise ValueError(
            f"lists and relevant items must have one row per user, got {items.shape[0]} and {relevant.shape[0]} rows"
        )
    hits = np.zeros(items.shape, dtype=np.bool_)
    _mark_hits(items, relevant.indptr, relevant.indices, hits)
    return hits


def recall_curve(hits: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64]) -> FloatArray:
    """recall@k for k = 1..K, float64 [U, K]; ``counts`` int64 [U] is the number of relevant items, at least 1."""
    return np.cumsum(hits, axis=1) / counts[:, None]


def ndcg_curve(hits: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64]) -> FloatArray:
    """ndcg@k for k = 1..K, float64 [U, K]; ``counts`` as in :func:`recall_curve`."""
    discounts = 1.0 / np.log2(np.arange(2, hits.shape[1] + 2))
    ideal = np.cumsum(discounts)
    places = np.minimum(np.arange(1, hits.shape[1] + 1), counts[:, None])
    curve: FloatArray = np.cumsum(hits * discounts, axis=1) / ideal[places - 1]
    return curve


def ranking_metrics(
    hits: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64], ks: Sequence[int]
) -> dict[str, FloatArray]:
    """Every metric of this module at every k.

    Args:
        hits: bool [U, K], see :func:`hit_matrix`.
        counts: int64 [U] relevant items per user, at least 1.
        ks: lengths, each in ``[1, K]``.

    Returns:
        ``"recall@20"`` etc. to float64 [U].

    Raises:
        ValueError: A user has no relevant item, or a k is out of range.
    """
    if counts.min(initial=1) < 1:
        raise ValueError(f"every user needs a relevant item, but row {int(counts.argmin())} has none; drop such users")
    bad = [k for k in ks if not 1 <= k <= hits.shape[1]]
    if bad:
        raise ValueError(f"k must lie in [1, {hits.shape[1]}], the length of the lists, got {bad[0]}")
    positions = np.arange(1, hits.shape[1] + 1)
    found = np.cumsum(hits, axis=1)
    ndcg = ndcg_curve(hits, counts)
    precision_sum = np.cumsum(hits * (found / positions), axis=1)
    first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, np.iinfo(np.int64).max)
    metrics: dict[str, FloatArray] = {}
    for k in ks:
        count = found[:, k - 1]
        metrics[f"recall@{k}"] = count / counts
        metrics[f"recall_capped@{k}"] = count / np.minimum(k, counts)
        metrics[f"ndcg@{k}"] = ndcg[:, k - 1]
        metrics[f"map@{k}"] = precision_sum[:, k - 1] / counts
        metrics[f"mrr@{k}"] = np.where(first <= k, 1.0 / first, 0.0)
        metrics[f"hit@{k}"] = (count > 0).astype(np.float64)
        metrics[f"precision@{k}"] = count / k
    return metrics
