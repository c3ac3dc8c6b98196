"""Exact AUC of each user over the whole catalogue, without a score matrix."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from recsys.microkernel import ITEMS, USERS, multiply_add, score_tile, tile_wins
from recsys.retriever import Retriever, VectorRetriever
from recsys.selection import Masks
from recsys.topk import (
    BLOCK_SCORES,
    BLOCK_USERS,
    USERS_AT_ONCE,
    blocks,
    catalogue_of,
    finite_vectors,
    floats_of,
    masks_of,
)

FloatArray = npt.NDArray[np.float64]
_Float = npt.NDArray[np.float32]
_Users = npt.NDArray[np.int64]


@torch.no_grad()
def catalogue_auc(model: Retriever, users: _Users, relevant: csr_array, seen: csr_array) -> FloatArray:
    """Exact AUC of each user over the catalogue without the seen items; ties count half.

    Every relevant item is compared with every other item: U * I * D multiply-adds, and one comparison per relevant
    pair and item.

    Args:
        model: the retriever; its scores must be finite (:func:`recsys.topk.exact_top_k` says whose are not).
        users: int64 [U].
        relevant: csr [num_users, num_items] with sorted indices, none of them seen.
        seen: csr [num_users, num_items] with sorted indices.

    Returns:
        float64 [U], NaN where a user has no relevant or no negative item.
    """
    out = np.full(len(users), np.nan)
    if not isinstance(model, VectorRetriever):
        for rows in blocks(len(users), max(1, BLOCK_SCORES // max(1, model.num_items))):
            block = floats_of(model.scores(users[rows]))
            _from_scores(block, masks_of(relevant, users[rows]), masks_of(seen, users[rows]), out[rows])
        return out
    catalogue = catalogue_of(model)
    place = np.empty(model.num_items, np.int64)
    place[catalogue.items[: model.num_items]] = np.arange(model.num_items)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for some in blocks(len(users), USERS_AT_ONCE):
            vectors = finite_vectors(model.user_vectors(users[some]), users[some], catalogue)

            def score(rows: slice, vectors: _Float = vectors, first: int = some.start) -> None:
                chosen = users[first : first + len(vectors)][rows]
                positives, masked = masks_of(relevant, chosen), masks_of(seen, chosen)
                _from_vectors(vectors[rows], (catalogue.panels, place), positives, masked, out[first:][rows])

            list(pool.map(score, blocks(len(vectors), BLOCK_USERS)))
    return out


@numba.njit(nogil=True, cache=True)
def _wins(scores: _Float, score: np.float32) -> int:
    """Twice the scores below ``score`` plus those equal to it."""
    whole = len(scores) - len(scores) % ITEMS
    wins = 0
    for first in range(0, whole, ITEMS):
        wins += tile_wins(scores[first:], score)
    for j in range(whole, len(scores)):
        wins += int(scores[j] < score) + int(scores[j] <= score)
    return wins


@numba.njit(nogil=True, cache=True)
def _auc(wins: npt.NDArray[np.int64], positives: _Float, masked: _Float, num_items: int) -> float:
    """AUC of one user from the wins of its positives against all items, less those against no negatives."""
    negatives = num_items - len(positives) - len(masked)
    total = 0
    for j in range(len(positives)):
        total += wins[j] - _wins(positives, positives[j]) - _wins(masked, positives[j])
    return total / (2.0 * len(positives) * negatives) if negatives > 0 and len(positives) > 0 else np.nan


@numba.njit(nogil=True, cache=True)
def _from_scores(block: _Float, relevant: Masks, seen: Masks, out: FloatArray) -> None:
    for row in range(len(block)):
        positives = block[row][relevant.indices[relevant.indptr[row] : relevant.indptr[row + 1]]]
        masked = block[row][seen.indices[seen.indptr[row] : seen.indptr[row + 1]]]
        wins = np.empty(len(positives), np.int64)
        for j in range(len(positives)):
            wins[j] = _wins(block[row], positives[j])
        out[row] = _auc(wins, positives, masked, block.shape[1])


@numba.njit(nogil=True, cache=True)
def _scores_of(vector: _Float, items: npt.NDArray[np.int32], catalogue: Any) -> _Float:
    """Scores of one user for some items, with the rounding of the tiles."""
    panels, place = catalogue
    scores = np.zeros(len(items), dtype=np.float32)
    for j, item in enumerate(items):
        panel = panels[place[item] // ITEMS]
        for d in range(len(vector)):
            scores[j] = multiply_add(vector[d], panel[d, place[item] % ITEMS], scores[j])
    return scores


@numba.njit(nogil=True, cache=True)
def _from_vectors(vectors: _Float, catalogue: Any, relevant: Masks, seen: Masks, out: FloatArray) -> None:
    panels, place = catalogue
    positives = np.empty(len(relevant.indices), dtype=np.float32)
    wins = np.zeros(len(positives), dtype=np.int64)
    for row in range(len(vectors)):
        start, stop = relevant.indptr[row], relevant.indptr[row + 1]
        positives[start:stop] = _scores_of(vectors[row], relevant.indices[start:stop], catalogue)
        for j in range(start, stop):  # the zeros behind the last item
            wins[j] = -(np.int64(positives[j] > 0) + np.int64(positives[j] >= 0)) * (len(panels) * ITEMS - len(place))
    for first in range(0, len(panels), 8):
        for start in range(0, len(vectors), USERS):
            _add_wins(
                vectors[start : start + USERS], panels[first : first + 8], relevant.indptr[start:], positives, wins
            )
    for row in range(len(vectors)):
        start, stop = relevant.indptr[row], relevant.indptr[row + 1]
        masked = _scores_of(vectors[row], seen.indices[seen.indptr[row] : seen.indptr[row + 1]], catalogue)
        out[row] = _auc(wins[start:stop], positives[start:stop], masked, len(place))


@numba.njit(nogil=True, cache=True)
def _add_wins(
    vectors: _Float, panels: _Float, indptr: npt.NDArray[np.int64], positives: _Float, wins: npt.NDArray[np.int64]
) -> None:
    packed = np.zeros((panels.shape[1], USERS), dtype=np.float32)
    never = np.full(USERS, np.inf, dtype=np.float32)
    scores = np.empty((USERS, ITEMS), dtype=np.float32)
    passing = np.empty(USERS, dtype=np.uint64)
    packed[:, : len(vectors)] = vectors.T
    for p in range(len(panels)):
        score_tile(packed, panels[p], never, scores, passing)
        for i in range(len(vectors)):
            for j in range(indptr[i], indptr[i + 1]):
                wins[j] += tile_wins(scores[i], positives[j])
