"""Scoring by a sparse item-item matrix, the common half of ItemKNN and SLIM."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numba
import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from recsys.random_walk import neighbours
from recsys.selection import Masks

_BLOCK_USERS = 64


class ItemGraph:
    r"""Scores an item by what the user's training items give it, :math:`score(u, i) = \sum_{j \in N_u} s_{ji}`.

    Args:
        history: float32 csr [num_users, num_items], the training interactions.
        similarity: float32 csr [num_items, num_items]; row j has what item j gives to others.
    """

    def __init__(self, history: csr_array, similarity: csr_array) -> None:
        self.num_users, self.num_items = history.shape
        self.history = history
        self.similarity = similarity

    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]; the same bits on any number of threads."""
        out = np.zeros((len(users), self.num_items), dtype=np.float32)
        rows, similarity = neighbours(self.history[users]), neighbours(self.similarity)
        starts = range(0, len(users), _BLOCK_USERS)

        def block(first: int) -> None:
            part = Masks(rows.indptr[first : first + _BLOCK_USERS + 1], rows.indices)
            _add_scores(part, similarity, self.similarity.data, out[first : first + _BLOCK_USERS])

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(block, starts))
        return torch.from_numpy(out)

    def state(self) -> dict[str, Tensor]:
        """Tensors for a safetensors file, see :meth:`from_state`."""
        return {
            f"{name}.{part}": torch.from_numpy(np.ascontiguousarray(getattr(matrix, part)))
            for name, matrix in (("history", self.history), ("similarity", self.similarity))
            for part in ("indptr", "indices", "data")
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The model whose :meth:`state` this is."""
        parts = {name: tensor.numpy() for name, tensor in state.items()}
        num_users, num_items = len(parts["history.indptr"]) - 1, len(parts["similarity.indptr"]) - 1

        def matrix(name: str, rows: int) -> csr_array:
            arrays = (parts[f"{name}.data"], parts[f"{name}.indices"], parts[f"{name}.indptr"])
            return csr_array(arrays, shape=(rows, num_items))

        return cls(matrix("history", num_users), matrix("similarity", num_items))


@numba.njit(nogil=True, cache=True)
def _add_scores(
    history: Masks, similarity: Masks, values: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> None:
    for row in range(len(out)):
        for item in history.indices[history.indptr[row] : history.indptr[row + 1]]:
            for j in range(similarity.indptr[item], similarity.indptr[item + 1]):
                out[row, similarity.indices[j]] += values[j]
