"""What every retriever offers to the evaluator, the report and ``recsys recommend``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
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


class WeightedRetriever(Retriever, Protocol):
    """A sum whose parts are the same at every weight."""

    def by_weight(self, users: npt.NDArray[np.int64], weights: Sequence[float]) -> Iterator[Tensor]:
        """What ranks the users at each weight in turn, from parts that are computed once.

        Returns:
            User vectors float32 [len(users), D] of a :class:`VectorRetriever`, of another one scores float32
            [len(users), num_items].
        """
        ...


@runtime_checkable
class GeneratingRetriever(Retriever, Protocol):
    """A retriever that writes its lists, and does not score the whole catalogue for it."""

    def generate(
        self, users: npt.NDArray[np.int64], k: int, seen: csr_array
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The best unseen items that its search finds.

        Args:
            users: int64 [U].
            k: length of the lists.
            seen: csr [num_users, num_items] of items to leave out, with sorted indices.

        Returns:
            Items int32 [U, k] best first, equal scores in the order of the items, -1 where fewer were found, and
            scores float32 [U, k], -inf there.
        """
        ...
