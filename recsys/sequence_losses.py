"""Losses of a sequence model: for every event, the next one against other items."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from recsys.losses import Negatives, sampled_softmax
from recsys.softmax_kernel import Hits, shared_softmax

SequenceLossName = Literal["bce", "gbce", "softmax", "sampled_softmax"]


@dataclasses.dataclass(frozen=True)
class SequenceLoss:
    """One of the losses with its parameters.

    Attributes:
        name: "bce" (Kang and McAuley 2018, eq. 7), "gbce" (Petrov and Macdonald 2023), "softmax" over the whole
            catalogue, "sampled_softmax".
        temperature: divisor of the scores.
        calibration: t of gBCE, in [0, 1]: 0 is BCE, 1 calibrates the scores fully.
    """

    name: SequenceLossName = "sampled_softmax"
    temperature: float = 1.0
    calibration: float = 0.75

    @property
    def needs_negatives(self) -> bool:
        """Whether a sampler must draw negatives."""
        return self.name != "softmax"

    def __call__(self, hidden_TD: Tensor, target_TD: Tensor, others: Negatives, num_items: int) -> Tensor:
        """Mean loss over the T events.

        Args:
            hidden_TD: float [T, D], what the model expects next.
            target_TD: float [T, D], vectors of what came next.
            others: the sampled negatives, or the whole catalogue for "softmax"; ``hits`` are the targets among them.
            num_items: size of the catalogue.
        """
        match self.name:
            case "softmax":
                return shared_softmax(
                    hidden_TD, target_TD, others.vectors, temperature=self.temperature, hits=others.hits
                )
            case "sampled_softmax":
                return sampled_softmax(hidden_TD, target_TD, others, temperature=self.temperature, logq=False)
            case "bce":
                return generalized_bce(hidden_TD, target_TD, others, 1.0, self.temperature)
            case "gbce":
                power = gbce_power(others.vectors.shape[-2], num_items, self.calibration)
                return generalized_bce(hidden_TD, target_TD, others, power, self.temperature)


def gbce_power(negatives: int, num_items: int, calibration: float) -> float:
    """Beta of gBCE, ``alpha (t (1 - 1 / alpha) + 1 / alpha)`` with the sampling rate ``alpha = negatives / (N - 1)``.

    Petrov and Macdonald 2023, eq. 18. A rate of 1 is that of the whole catalogue: more negatives repeat its items.
    """
    alpha = min(1.0, negatives / max(1, num_items - 1))
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)


def generalized_bce(
    hidden_TD: Tensor, target_TD: Tensor, negatives: Negatives, power: float, temperature: float
) -> Tensor:
    """Mean over T of ``-ln sigmoid(s+)^power - sum ln(1 - sigmoid(s-))``; with power 1 it is BCE.

    Args:
        hidden_TD: float [T, D].
        target_TD: float [T, D].
        negatives: shared [M, D] or per event [T, M, D]; ``hits`` do not count.
        power: beta.
        temperature: divisor of the scores.
    """
    positive_T = (hidden_TD * target_TD).sum(-1) / temperature
    vectors = negatives.vectors
    shared = vectors.ndim == 2
    scores_TM = (hidden_TD @ vectors.T if shared else torch.einsum("td,tmd->tm", hidden_TD, vectors)) / temperature
    if negatives.hits is not None:
        scores_TM = scores_TM.index_put(negatives.hits, scores_TM.new_tensor(-torch.inf))
    return (power * functional.softplus(-positive_T) + functional.softplus(scores_TM).sum(1)).mean()


def targets_among(targets_T: Tensor, drawn: Tensor) -> Hits:
    """(row, column) pairs, rows ascending, where a negative is the target of the event.

    Args:
        targets_T: int64 [T].
        drawn: int64 [1, M] shared, or [T, M].
    """
    if len(drawn) > 1:
        rows, columns = (targets_T[:, None] == drawn).nonzero(as_tuple=True)
        return rows, columns
    ordered, order = drawn[0].sort(stable=True)
    first = torch.searchsorted(ordered, targets_T)
    count = torch.searchsorted(ordered, targets_T, right=True) - first
    rows = torch.arange(len(targets_T)).repeat_interleave(count)
    within = torch.arange(len(rows)) - (count.cumsum(0) - count)[rows]
    return rows, order[first[rows] + within]
