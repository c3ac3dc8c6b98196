"""Exact area under the ROC curve."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from recsys.retriever import Retriever

FloatArray = npt.NDArray[np.float64]
_BLOCK_USERS = 256


@numba.njit(nogil=True, cache=True)
def _auc_rows(block, relevant_indptr, relevant_indices, seen_indptr, seen_indices, out):
    for row in range(block.shape[0]):
        scores = block[row]
        relevant = relevant_indices[relevant_indptr[row] : relevant_indptr[row + 1]]
        seen = seen_indices[seen_indptr[row] : seen_indptr[row + 1]]
        negatives = len(scores) - len(relevant) - len(seen)
        if negatives == 0 or len(relevant) == 0:
            out[row] = np.nan
            continue
        wins = 0
        for item in relevant:
            score = scores[item]
            below, equal = 0, 0
            for j in range(len(scores)):
                below += scores[j] < score
                equal += scores[j] == score
            for other in seen:
                below -= scores[other] < score
                equal -= scores[other] == score
            for other in relevant:
                below -= scores[other] < score
                equal -= scores[other] == score
            wins += 2 * below + equal
        out[row] = wins / (2.0 * len(relevant) * negatives)


def catalogue_auc(model: Retriever, users: npt.NDArray[np.int64], relevant: csr_array, seen: csr_array) -> FloatArray:
    """Exact AUC of each user over the whole catalogue without the seen items; ties count half.

    Args:
        model: the retriever.
        users: int64 [U].
        relevant: csr [U, num_items], row u = the relevant items of ``users[u]``, none of them seen.
        seen: csr [U, num_items], row u = the masked items of ``users[u]``.

    Returns:
        float64 [U], NaN where a user has no relevant or no negative item.
    """
    out = np.empty(len(users))
    for first in range(0, len(users), _BLOCK_USERS):
        rows = slice(first, min(first + _BLOCK_USERS, len(users)))
        block = model.scores(users[rows]).numpy()
        positive, masked = relevant[rows], seen[rows]
        _auc_rows(block, positive.indptr, positive.indices, masked.indptr, masked.indices, out[rows])
    return out
