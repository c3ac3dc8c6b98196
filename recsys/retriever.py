"""What every retriever offers to the evaluator, the report and ``recsys recommend``."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor


@runtime_checkable
class Retriever(Protocol):
    """A model that scores the whole catalogue for a user."""

    @property
    def num_users(self) -> int:
        """Users that can be scored: ``[0, num_users)``."""
        ...

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        ...

    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Scores float32 [len(users), num_items]; higher is better."""
        ...


@runtime_checkable
class VectorRetriever(Retriever, Protocol):
    """A retriever whose scores are inner products, so that exact top-k needs no score matrix."""

    def user_vectors(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), D]."""
        ...

    def item_vectors(self, items: range) -> Tensor:
        """Float32 [len(items), D]."""
        ...
