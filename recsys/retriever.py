"""What every retriever offers to the evaluator, the report and ``recsys recommend``."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from recsys.selection import Heaps, Masks


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


@runtime_checkable
class SelectingRetriever(Retriever, Protocol):
    """A retriever that selects while it scores, so that exact top-k needs no score matrix."""

    def select(self, users: npt.NDArray[np.int64], masks: Masks, heaps: Heaps) -> int:
        """Offer the scores of the whole catalogue to the users' heaps; several threads call it at once.

        Args:
            users: int64 [B].
            masks: items of each that are left out.
            heaps: of B users.

        Returns:
            A row with a NaN or infinite score, or -1.
        """
        ...
