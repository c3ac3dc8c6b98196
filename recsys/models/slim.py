"""Sparse linear item-item weights.

Ning and Karypis 2011, "SLIM: sparse linear methods for top-N recommender systems".
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from recsys.models.graph_filter import ones
from recsys.models.item_graph import ItemGraph
from recsys.random_walk import Bipartite, bipartite
from recsys.selection import Masks

_BLOCK_ITEMS = 64
Floats = npt.NDArray[np.float32]


class Slim(ItemGraph):
    r"""Each item as a sparse non-negative combination of the others.

    .. math:: \min_{w_j \ge 0,\; w_{jj} = 0} \tfrac12 \lVert x_j - X w_j \rVert^2 + \tfrac{\lambda_2}{2}
        \lVert w_j \rVert^2 + \lambda_1 \lVert w_j \rVert_1

    with X the training interactions and x_j its column j (eq. 2 and 3); ``similarity`` has W.
    """

    @classmethod
    def fit(
        cls, train: csr_array, l1: float = 1.0, l2: float = 10.0, sweeps: int = 30, tolerance: float = 1e-3
    ) -> Slim:
        """Solve for every item by cyclic coordinate descent on the residual (Friedman et al. 2010, eq. 5).

        Only the items i with more than ``l1`` users in common with j can get a weight, as weights and residuals of
        ones and zeros only take away from ``x_i . x_j``; the rest is never looked at. Beside the result, memory is
        a few rows per thread.

        Args:
            train: csr [users, items].
            l1: weight of the sum of the weights, in users.
            l2: weight of half the sum of their squares, in users.
            sweeps: at most, over the items of one problem.
            tolerance: stop when no weight moved by more.

        Raises:
            ValueError: ``l1`` or ``l2`` < 0, both zero, ``sweeps`` < 1 or ``tolerance`` < 0.
        """
        if not (l1 >= 0 and l2 >= 0 and l1 + l2 > 0 and sweeps >= 1 and tolerance >= 0):
            raise ValueError(
                f"SLIM needs l1, l2 and tolerance >= 0, not both l1 and l2 zero, and sweeps >= 1, got l1 {l1}, l2 {l2},"
                f" tolerance {tolerance}, sweeps {sweeps}"
            )
        history = ones(train)
        num_users, num_items = history.shape
        graph = bipartite(history)
        penalties = np.array([l1, l2, tolerance], np.float64)

        def solve(first: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], Floats]:
            span = (first, min(first + _BLOCK_ITEMS, num_items))
            return _solve(graph, span, num_users, penalties, sweeps)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            parts = list(pool.map(solve, range(0, num_items, _BLOCK_ITEMS)))
        counts, indices, values = (np.concatenate([part[k] for part in parts]) for k in range(3))
        indptr = np.concatenate([[0], np.cumsum(counts)])
        weights = csr_array((values, indices, indptr), shape=(num_items, num_items)).T.tocsr()
        weights.sort_indices()
        return cls(history, weights)


@numba.njit(nogil=True, cache=True)
def _solve(
    graph: Bipartite, span: tuple[int, int], num_users: int, penalties: npt.NDArray[np.float64], sweeps: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], Floats]:
    """Weights of the problems of a span: how many each has, their items and values."""
    num_items = len(graph.by_item.indptr) - 1
    common = np.zeros(num_items, np.int64)
    residual = np.zeros(num_users, np.float32)
    weights = np.zeros(num_items, np.float64)
    counts = np.zeros(span[1] - span[0], np.int64)
    indices, values = [np.int32(0) for _ in range(0)], [np.float32(0) for _ in range(0)]
    for target in range(span[0], span[1]):
        candidates = _candidates(graph, target, penalties[0], common)
        residual[:] = 0
        for user in graph.by_item.indices[graph.by_item.indptr[target] : graph.by_item.indptr[target + 1]]:
            residual[user] = 1
        _descend(graph.by_item, candidates, residual, weights, penalties, sweeps)
        for item in candidates:
            if weights[item] > 0:
                indices.append(item)
                values.append(np.float32(weights[item]))
                counts[target - span[0]] += 1
            weights[item] = 0
    return counts, np.array(indices, np.int32), np.array(values, np.float32)


@numba.njit(nogil=True, cache=True)
def _candidates(graph: Bipartite, target: int, l1: float, common: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Items with more than ``l1`` users in common with ``target``, ascending; ``common`` is zero before and after."""
    touched = np.empty(len(common), np.int32)
    count = 0
    for user in graph.by_item.indices[graph.by_item.indptr[target] : graph.by_item.indptr[target + 1]]:
        for other in graph.by_user.indices[graph.by_user.indptr[user] : graph.by_user.indptr[user + 1]]:
            if common[other] == 0:
                touched[count] = other
                count += 1
            common[other] += 1
    kept = 0
    for other in touched[:count]:
        if common[other] > l1 and other != target:
            touched[kept] = other
            kept += 1
        common[other] = 0
    return np.sort(touched[:kept])


@numba.njit(nogil=True, cache=True)
def _descend(
    users_of: Masks,
    candidates: npt.NDArray[np.int32],
    residual: Floats,
    weights: npt.NDArray[np.float64],
    penalties: npt.NDArray[np.float64],
    sweeps: int,
) -> None:
    """Cyclic descent; between sweeps over all candidates those with a weight are swept alone until they rest."""
    l1, l2, tolerance = penalties
    everything = True
    for _ in range(sweeps):
        moved = 0.0
        for item in candidates:
            old = weights[item]
            if not everything and old == 0:
                continue
            first, last = users_of.indptr[item], users_of.indptr[item + 1]
            total = 0.0
            for user in users_of.indices[first:last]:
                total += residual[user]
            new = max(0.0, total + (last - first) * old - l1) / (last - first + l2)
            if new != old:
                weights[item] = new
                change = np.float32(old - new)
                for user in users_of.indices[first:last]:
                    residual[user] += change
                moved = max(moved, abs(new - old))
        if moved <= tolerance:
            if everything:
                return
            everything = True
        else:
            everything = False
