"""Most popular items: the baseline that every retriever must beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor


class Popularity:
    """Scores an item by its number of training interactions, the same for every user.

    As an inner product: each user's vector is ``[1]`` and an item's is ``[count]``.

    Args:
        num_users: users of the dataset.
        counts: float32 [num_items] training interactions per item.
    """

    def __init__(self, num_users: int, counts: Tensor) -> None:
        self.num_users = num_users
        self.num_items = len(counts)
        self.counts = counts

    @classmethod
    def fit(cls, train: csr_array) -> Popularity:
        """Count the interactions of ``train`` [users, items]."""
        counts = np.bincount(train.indices, minlength=train.shape[1]).astype(np.float32)
        return cls(train.shape[0], torch.from_numpy(counts))

    def user_vectors(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Ones, float32 [len(users), 1]."""
        return torch.ones(len(users), 1)

    def item_vectors(self, items: range) -> Tensor:
        """Counts, float32 [len(items), 1]."""
        return self.counts[items.start : items.stop : items.step].unsqueeze(1)

    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items], equal rows."""
        return self.counts.repeat(len(users), 1)

    def state(self) -> dict[str, Tensor]:
        """Tensors for a safetensors file, see :meth:`from_state`."""
        return {"counts": self.counts, "num_users": torch.tensor([self.num_users])}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Popularity:
        """The model whose :meth:`state` this is."""
        return cls(int(state["num_users"][0]), state["counts"])
