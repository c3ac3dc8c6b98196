"""Item-based nearest neighbours (Sarwar et al. 2001, "Item-based collaborative filtering")."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from scipy.sparse import csr_array

from recsys.models.item_graph import ItemGraph
from recsys.random_walk import neighbours as neighbours_of
from recsys.selection import Heaps, Masks, best_first, empty_heaps, offer

_BLOCK_ITEMS = 256


class ItemKnn(ItemGraph):
    r"""Scores an item by its similarity to the user's training items.

    .. math:: s_{ij} = \frac{c_{ij}}{\sqrt{c_i c_j} + \beta}, \qquad score(u, i) = \sum_{j \in N_u} s_{ij}

    with c_ij the users of both items, c_i the users of item i, and beta the shrinkage; each item j gives its
    similarity to its ``neighbours`` most similar items only, the lower index first among equals.
    """

    @classmethod
    def fit(cls, train: csr_array, neighbours: int = 100, shrinkage: float = 10.0) -> ItemKnn:
        """Find the neighbours of every item of ``train`` [users, items]; beside them, memory is one row of counts.

        Raises:
            ValueError: ``neighbours`` < 1 or ``shrinkage`` < 0.
        """
        if neighbours < 1 or not shrinkage >= 0:
            raise ValueError(f"ItemKnn needs neighbours >= 1 and shrinkage >= 0, got {neighbours} and {shrinkage}")
        num_items = train.shape[1]
        history = csr_array((np.ones(train.nnz, np.float32), train.indices, train.indptr), shape=train.shape)
        heaps = empty_heaps(num_items, min(neighbours, max(1, num_items - 1)))
        by_item = history.T.tocsr()
        arguments = (neighbours_of(by_item), neighbours_of(history), np.float32(shrinkage))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            spans = [(first, min(first + _BLOCK_ITEMS, num_items)) for first in range(0, num_items, _BLOCK_ITEMS)]
            list(pool.map(lambda span: _find_neighbours(*arguments, span, heaps), spans))
        found, values = best_first(heaps)
        kept = found >= 0
        indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
        similarity = csr_array((values[kept], found[kept], indptr), shape=(num_items, num_items))
        similarity.sort_indices()
        return cls(history, similarity)


@numba.njit(nogil=True, cache=True)
def _find_neighbours(
    by_item: Masks, history: Masks, shrinkage: np.float32, span: tuple[int, int], heaps: Heaps
) -> None:
    """Offer every item of ``span`` the items that share a user with it."""
    num_items = len(by_item.indptr) - 1
    nothing = Masks(np.zeros(num_items + 1, np.int64), np.zeros(0, np.int32))
    common = np.zeros(num_items, np.int32)
    touched = np.empty(num_items, np.int32)
    for item in range(span[0], span[1]):
        count = 0
        for user in by_item.indices[by_item.indptr[item] : by_item.indptr[item + 1]]:
            for other in history.indices[history.indptr[user] : history.indptr[user + 1]]:
                if common[other] == 0:
                    touched[count] = other
                    count += 1
                common[other] += 1
        users = by_item.indptr[item + 1] - by_item.indptr[item]
        for other in touched[:count]:
            if other != item:
                product = np.float64(users) * (by_item.indptr[other + 1] - by_item.indptr[other])
                similarity = np.float32(common[other] / (np.sqrt(product) + shrinkage))
                offer(heaps, nothing, item, (similarity, other))
            common[other] = 0
