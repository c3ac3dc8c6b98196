"""Metrics of what is recommended to everybody together, and of how well known it is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embeddings import graph


def coverage(items: npt.NDArray[np.int32], num_items: int) -> float:
    """Share of the catalogue that is in at least one list; ``items`` int32 [U, k], -1 = none."""
    return len(np.unique(items[items >= 0])) / num_items


def gini(items: npt.NDArray[np.int32], num_items: int) -> float:
    r"""Gini index of how often each item of the catalogue is recommended: 0 = equally often, near 1 = always the same.

    .. math:: G = \frac{\sum_i (2 i - n - 1) x_{(i)}}{n \sum_i x_i}, \qquad x_{(1)} \le \dots \le x_{(n)}

    Args:
        items: int32 [U, k] lists, -1 = none.
        num_items: n, items never recommended count with x = 0.
    """
    return graph.gini(np.bincount(items[items >= 0], minlength=num_items))


def novelty(
    items: npt.NDArray[np.int32], train_counts: npt.NDArray[np.int64], num_users: int
) -> npt.NDArray[np.float64]:
    r"""Mean self-information of each list (Zhou et al. 2010), in bits.

    .. math:: novelty_u = \frac{1}{k} \sum_j -\log_2 p(i_j), \qquad p(i) = \max(1, c_i) / |U|

    Args:
        items: int32 [U, k] lists, -1 = none (left out of the mean).
        train_counts: int64 [num_items] training interactions c_i.
        num_users: users of the data set, \|U\|.

    Returns:
        float64 [U], 0 for an empty list.
    """
    information = -np.log2(np.maximum(1, train_counts) / num_users)
    listed = items >= 0
    means: npt.NDArray[np.float64] = np.where(listed, information[items], 0.0).sum(axis=1) / np.maximum(
        1, listed.sum(axis=1)
    )
    return means
