"""Item-based nearest neighbours (Sarwar et al. 2001, "Item-based collaborative filtering recommendation algorithms")."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

_BLOCK_ITEMS = 1024


class ItemKnn:
    r"""Scores an item by its similarity to the user's training items.

    .. math:: s_{ij} = \frac{c_{ij}}{\sqrt{c_i c_j} + \beta}, \qquad score(u, i) = \sum_{j \in N_u} s_{ij}

    with c_ij the users of both items, c_i the users of item i, and beta the shrinkage; each item j gives its
    similarity to its ``neighbours`` most similar items only, the lower index first among equals.

    Args:
        history: float32 csr [num_users, num_items], the training interactions.
        similarity: float32 csr [num_items, num_items], row j has the neighbours of item j.
    """

    def __init__(self, history: csr_array, similarity: csr_array) -> None:
        self.num_users, self.num_items = history.shape
        self.history = history
        self.similarity = similarity

    @classmethod
    def fit(cls, train: csr_array, neighbours: int = 100, shrinkage: float = 10.0) -> ItemKnn:
        """Find the neighbours of every item of ``train`` [users, items]; memory is one block of similarities."""
        binary = csr_array((np.ones(train.nnz, np.float32), train.indices, train.indptr), shape=train.shape)
        items = binary.T.tocsr()
        norms = np.sqrt(np.diff(items.indptr)).astype(np.float32)
        blocks = [
            _neighbour_block(items, binary, norms, first, neighbours, shrinkage)
            for first in range(0, train.shape[1], _BLOCK_ITEMS)
        ]
        counts, columns, values = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        indptr = np.concatenate([[0], np.cumsum(counts)])
        similarity = csr_array((values, columns, indptr), shape=(train.shape[1], train.shape[1]))
        similarity.sort_indices()
        return cls(binary, similarity)

    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]."""
        return torch.from_numpy((self.history[users] @ self.similarity).toarray())

    def state(self) -> dict[str, Tensor]:
        """Tensors for a safetensors file, see :meth:`from_state`."""
        return {
            f"{name}.{part}": torch.from_numpy(np.ascontiguousarray(getattr(matrix, part)))
            for name, matrix in (("history", self.history), ("similarity", self.similarity))
            for part in ("indptr", "indices", "data")
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> ItemKnn:
        """The model whose :meth:`state` this is."""
        parts = {name: tensor.numpy() for name, tensor in state.items()}
        num_users, num_items = len(parts["history.indptr"]) - 1, len(parts["similarity.indptr"]) - 1

        def matrix(name: str, rows: int) -> csr_array:
            arrays = (parts[f"{name}.data"], parts[f"{name}.indices"], parts[f"{name}.indptr"])
            return csr_array(arrays, shape=(rows, num_items))

        return cls(matrix("history", num_users), matrix("similarity", num_items))


def _neighbour_block(
    items: csr_array,
    train: csr_array,
    norms: npt.NDArray[np.float32],
    first: int,
    neighbours: int,
    shrinkage: float,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Counts, columns and values of the best ``neighbours`` similarities of items ``[first, first + block)``."""
    block = (items[first : first + _BLOCK_ITEMS] @ train).tocoo()
    keep = block.row + first != block.col
    row, column = block.row[keep], block.col[keep].astype(np.int32)
    value = block.data[keep] / (norms[row + first] * norms[column] + np.float32(shrinkage))
    order = np.lexsort((column, -value, row))
    row, column, value = row[order], column[order], value[order]
    counts = np.bincount(row, minlength=block.shape[0])
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    best = rank < neighbours
    return np.minimum(counts, neighbours), column[best], value[best]
