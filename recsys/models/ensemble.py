"""Two retrievers whose scores are added, as an id model and a text model in EnsRec (2025, arXiv 2512.17820)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.retriever import Retriever, VectorRetriever

_ROUNDING = 1e-6
"""Deviation over the largest score that sums of float32 give scores that are all equal."""

Member = TypeVar("Member", bound=Retriever)


class Ensemble(Generic[Member]):
    """What the sums have in common.

    Args:
        first: a trained model.
        second: another, of the same users and items.
        weight: of the second, in [0, 1]; the rest is the first's.

    Raises:
        ValueError: The members have different users or items, or the weight is out of range.
    """

    def __init__(self, first: Member, second: Member, weight: float = 0.5) -> None:
        shapes = [(member.num_users, member.num_items) for member in (first, second)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the members must have the same (users, items), got {shapes[0]} and {shapes[1]}")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight is that of the second member and must lie in [0, 1], got {weight}")
        self.members = (first, second)
        self.weight = weight

    @property
    def num_users(self) -> int:
        """Users of the members."""
        return self.members[0].num_users

    @property
    def num_items(self) -> int:
        """Items of the members."""
        return self.members[0].num_items


class VectorEnsemble(Ensemble[VectorRetriever]):
    """``(1 - w) s_first + w s_second``; a sum of inner products is one, of the vectors side by side."""

    def user_vectors(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), D_first + D_second], weighted."""
        return next(self.by_weight(users, [self.weight]))

    def by_weight(self, users: npt.NDArray[np.int64], weights: Sequence[float]) -> Iterator[Tensor]:
        """The user vectors at each weight, see :class:`recsys.retriever.WeightedRetriever`."""
        first, second = (member.user_vectors(users) for member in self.members)
        for weight in weights:
            yield torch.cat([(1 - weight) * first, weight * second], 1)

    def item_vectors(self, items: range) -> Tensor:
        """Float32 [len(items), D_first + D_second]."""
        return torch.cat([member.item_vectors(items) for member in self.members], 1)

    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]."""
        return self.user_vectors(users) @ self.item_vectors(range(self.num_items)).T


class StandardisedEnsemble(Ensemble[Retriever]):
    """``(1 - w) z_first + w z_second``, where z is a user's scores over their deviation across the catalogue.

    For members of unlike scales, as a graph filter and a model of embeddings. One whose scores of a user are all equal
    says nothing about that user.
    """

    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]."""
        return next(self.by_weight(users, [self.weight]))

    def by_weight(self, users: npt.NDArray[np.int64], weights: Sequence[float]) -> Iterator[Tensor]:
        """The scores at each weight, see :class:`recsys.retriever.WeightedRetriever`."""
        first, second = (member.scores(users) for member in self.members)
        deviations = _deviation(first), _deviation(second)
        for weight in weights:
            scores = first * ((1 - weight) / deviations[0])
            yield scores.add_(second * (weight / deviations[1]))


def _deviation(scores: Tensor) -> Tensor:
    """Float32 [len(scores), 1] of each row; infinite where all are equal, so that nothing is left of them."""
    deviation = (scores - scores.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
    rounding = _ROUNDING * scores.abs().amax(1, keepdim=True)
    return torch.where(deviation > rounding, deviation, torch.inf)
