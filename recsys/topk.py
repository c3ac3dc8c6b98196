"""Exact top-k of the whole catalogue with seen items masked."""

from __future__ import annotations

import dataclasses

import numba
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from recsys.retriever import Retriever
from recsys.selection import offer_tile, sort_heap

EMPTY_ITEM = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class TopK:
    """Best items of U users.

    Attributes:
        items: int32 [U, K], best first; -1 where fewer than K items were left.
        scores: float32 [U, K]; -inf where ``items`` is -1.
    """

    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]


@numba.njit(nogil=True, cache=True)
def _select_dense(block, item_ids, indptr, indices, scores, items):
    for row in range(block.shape[0]):
        offer_tile(block[row], item_ids, indices, indptr[row], indptr[row + 1], scores[row], items[row])
        sort_heap(scores[row], items[row])


def exact_top_k(model: Retriever, users: npt.NDArray[np.int64], k: int, seen: csr_array | None) -> TopK:
    """The k best unseen items of each user."""
    scores = np.full((len(users), k), -np.inf, dtype=np.float32)
    items = np.full((len(users), k), EMPTY_ITEM, dtype=np.int32)
    item_ids = np.arange(model.num_items, dtype=np.int32)
    if seen is None:
        seen = csr_array((model.num_users, model.num_items), dtype=np.float32)
    for first in range(0, len(users), 256):
        rows = slice(first, min(first + 256, len(users)))
        block = model.scores(users[rows]).numpy()
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if bad.size:
            user = users[rows][bad[0]]
            raise ValueError(f"scores must be finite, but user {user} has NaN or infinite scores")
        mask = seen[users[rows]]
        _select_dense(block, item_ids, mask.indptr, mask.indices, scores[rows], items[rows])
    return TopK(items, scores)
