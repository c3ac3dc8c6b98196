"""Losses of retrieval models: functions of looked-up vectors, each with its paper and equation.

Shape suffixes: B positives of a batch, M negatives, D dimensions.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from recsys.contrastive_losses import InverseTemperatures, adaptive_softmax, bilateral_softmax, cosine_contrastive
from recsys.softmax_kernel import Hits, shared_softmax

LossName = Literal[
    "bpr", "log_loss", "sampled_softmax", "in_batch_softmax", "directau", "bsl", "adap_tau", "ccl", "ultragcn"
]


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """How the temperatures of Adap-tau are found, see :class:`recsys.adaptive_temperature.AdaptiveTemperature`.

    Attributes:
        warmup_epochs: epochs with the temperature of an assumed gap between positives and the mean score.
        beta: how far a user's temperature follows the user's loss, > 0; None gives every user the same.
        quantile: of the users' losses, where the temperature is the common one; None is their mean.
    """

    warmup_epochs: int = 100
    beta: float | None = None
    quantile: float | None = None


@dataclasses.dataclass(frozen=True)
class Constraints:
    """Weights of UltraGCN's terms, see :class:`recsys.ultragcn.UltraGcn`.

    Attributes:
        weights: w_1 and w_2 of the positives, w_3 and w_4 of the negatives.
        negative_weight: w, of the mean over the negatives.
        neighbours: items per item in the item-item term.
        neighbour_weight: lambda, of that term.
    """

    weights: tuple[float, float, float, float] = (1e-6, 1.0, 1e-6, 1.0)
    negative_weight: float = 300.0
    neighbours: int = 10
    neighbour_weight: float = 5e-4


@dataclasses.dataclass(frozen=True)
class Loss:
    """One of the losses with its parameters.

    Attributes:
        name: which function of this module.
        temperature: divisor of the scores, for the softmax losses.
        logq: correct for the probability with which items are proposed, for the softmax losses.
        gamma: weight of uniformity, for DirectAU.
        positive_temperature: divisor of the positives' scores, for BSL.
        exponent: weight of the negatives, for BSL.
        pooled: whether BSL pools the positives that a user has in the batch.
        margin: score that a negative may have, for CCL.
        negative_weight: weight of the negatives, for CCL.
        adaptation: how Adap-tau's temperatures follow the training.
        constraints: of UltraGCN.
        user_dropout: share of the numbers of the users' raw vectors that a step sets to 0, for any loss.
    """

    name: LossName
    temperature: float = 0.1
    logq: bool = False
    gamma: float = 1.0
    positive_temperature: float = 0.1
    exponent: float = 1.0
    pooled: bool = True
    margin: float = 0.9
    negative_weight: float = 150.0
    adaptation: Adaptation = Adaptation()
    constraints: Constraints = Constraints()
    user_dropout: float = 0.0

    @property
    def needs_negatives(self) -> bool:
        """Whether a sampler must draw negatives; the other losses use the batch itself."""
        return self.name in ("bpr", "log_loss", "sampled_softmax", "bsl", "adap_tau", "ccl", "ultragcn")

    def __call__(
        self,
        user_BD: Tensor,
        positive_BD: Tensor,
        positive_ids_B: Tensor,
        negatives: Negatives | None = None,
        log_q_B: Tensor | None = None,
        *,
        users_B: Tensor | None = None,
        temperatures: InverseTemperatures | None = None,
    ) -> Tensor:
        """Mean loss of a batch.

        Args:
            user_BD: float [B, D].
            positive_BD: float [B, D].
            positive_ids_B: int64 [B], items, for accidental hits in the batch.
            negatives: for the losses that need them.
            log_q_B: float [B], log probability of each positive among the training interactions, for in-batch logQ.
            users_B: int64 [B], for BSL's pooling.
            temperatures: for Adap-tau.

        Raises:
            ValueError: A loss that needs negatives or temperatures got none.
        """
        if negatives is None and self.needs_negatives:
            raise ValueError(f"the {self.name} loss needs sampled negatives, got None; give the trainer a sampler")
        match self.name:
            case "bpr":
                assert negatives is not None
                return bpr(user_BD, positive_BD, negatives)
            case "log_loss":
                assert negatives is not None
                scores_B, others_BM = (user_BD * positive_BD).sum(-1), _negative_scores(user_BD, negatives.vectors)
                return binary_cross_entropy(scores_B, others_BM, negatives.hits)
            case "sampled_softmax":
                assert negatives is not None
                return sampled_softmax(user_BD, positive_BD, negatives, temperature=self.temperature, logq=self.logq)
            case "in_batch_softmax":
                log_q = log_q_B if self.logq else None
                return in_batch_softmax(user_BD, positive_BD, positive_ids_B, log_q, temperature=self.temperature)
            case "directau":
                return directau(user_BD, positive_BD, gamma=self.gamma)
            case "bsl" | "adap_tau" | "ccl":
                assert negatives is not None
                return self._contrast(user_BD, positive_BD, negatives, users_B, temperatures)
            case "ultragcn":
                raise ValueError("the ultragcn loss needs degrees and neighbours; train it by recsys.ultragcn.UltraGcn")

    def _contrast(
        self,
        user_BD: Tensor,
        positive_BD: Tensor,
        negatives: Negatives,
        users_B: Tensor | None,
        temperatures: InverseTemperatures | None,
    ) -> Tensor:
        """The losses of :mod:`recsys.contrastive_losses`."""
        if self.name == "bsl":
            return bilateral_softmax(
                user_BD,
                positive_BD,
                negatives,
                users_B if self.pooled else None,
                temperature=self.temperature,
                positive_temperature=self.positive_temperature,
                exponent=self.exponent,
            )
        if self.name == "ccl":
            return cosine_contrastive(
                user_BD, positive_BD, negatives, margin=self.margin, negative_weight=self.negative_weight
            )
        if temperatures is None:
            raise ValueError("the adap_tau loss needs temperatures, got None; give it AdaptiveTemperature.of(users)")
        return adaptive_softmax(user_BD, positive_BD, negatives, temperatures)


@dataclasses.dataclass(frozen=True)
class Negatives:
    """Vectors of the sampled negatives.

    Attributes:
        vectors: float [M, D] shared by the batch, or [B, M, D].
        log_q: float, log of the proposal probability, [M] or [B, M]; or None if it is not known.
        hits: (row, column) pairs of shared negatives that are known positives of the row's user and do not count.
    """

    vectors: Tensor
    log_q: Tensor | None = None
    hits: Hits | None = None


def bpr(user_BD: Tensor, positive_BD: Tensor, negatives: Negatives) -> Tensor:
    """Bayesian personalised ranking, mean over pairs of ``-ln sigmoid(s_ui - s_uj)`` (Rendle et al. 2009, sec. 4.1).

    Args:
        user_BD: float [B, D].
        positive_BD: float [B, D].
        negatives: shared or per positive; pairs in ``hits`` do not count.
    """
    margin_BM = (user_BD * positive_BD).sum(-1)[:, None] - _negative_scores(user_BD, negatives.vectors)
    losses_BM = functional.softplus(-margin_BM)
    if negatives.hits is None:
        return losses_BM.mean()
    keep_BM = torch.ones_like(losses_BM)
    keep_BM[negatives.hits] = 0.0
    return (losses_BM * keep_BM).sum() / keep_BM.sum().clamp(min=1.0)


def binary_cross_entropy(positive_B: Tensor, negative_BM: Tensor, hits: Hits | None) -> Tensor:
    """Log-loss, mean over pairs of ``-ln sigmoid(s)`` for positives and ``-ln(1 - sigmoid(s))`` for negatives.

    (He et al. 2017, eq. 7, which is the sum.)

    Args:
        positive_B: float [B], scores.
        negative_BM: float [B, M], scores.
        hits: (row, column) pairs of negatives that do not count.
    """
    losses_BM = functional.softplus(negative_BM)
    count = positive_B.numel() + negative_BM.numel()
    if hits is not None:
        keep_BM = torch.ones_like(losses_BM)
        keep_BM[hits] = 0.0
        losses_BM, count = losses_BM * keep_BM, positive_B.numel() + int(keep_BM.sum())
    return (functional.softplus(-positive_B).sum() + losses_BM.sum()) / count


def sampled_softmax(
    user_BD: Tensor, positive_BD: Tensor, negatives: Negatives, *, temperature: float, logq: bool
) -> Tensor:
    """``-s_p + ln(e^{s_p} + sum_j e^{s_j})`` over a positive and its negatives, scores divided by ``temperature``.

    With ``logq`` each negative counts ``1 / (M q_j)`` times, which makes the sum an unbiased estimate of the partition
    function over the items that may be proposed (Bengio & Senecal 2008, eq. 8). The positive is not sampled and gets no
    correction.

    Args:
        user_BD: float [B, D].
        positive_BD: float [B, D].
        negatives: shared or per positive; pairs in ``hits`` do not count.
        temperature: divisor of the scores, > 0.
        logq: correct for the proposal probability.

    Raises:
        ValueError: ``logq`` without ``negatives.log_q``.
    """
    if logq and negatives.log_q is None:
        raise ValueError("sampled_softmax with logq needs negatives.log_q, got None; draw them with NegativeSampler")
    offset = None
    if logq and negatives.log_q is not None:
        offset = -negatives.log_q - math.log(negatives.vectors.shape[-2])
    if negatives.vectors.ndim == 2:
        return shared_softmax(
            user_BD, positive_BD, negatives.vectors, temperature=temperature, offset_M=offset, hits=negatives.hits
        )
    logits_BM = _negative_scores(user_BD, negatives.vectors).float() / temperature
    if offset is not None:
        logits_BM = logits_BM + offset
    if negatives.hits is not None:
        logits_BM = logits_BM.index_put(negatives.hits, logits_BM.new_tensor(-torch.inf))
    positive_B = (user_BD * positive_BD).sum(-1) / temperature
    return (torch.logsumexp(torch.cat([positive_B[:, None], logits_BM], 1), 1) - positive_B).mean()


def in_batch_softmax(
    user_BD: Tensor, positive_BD: Tensor, positive_ids_B: Tensor, log_q_B: Tensor | None, *, temperature: float
) -> Tensor:
    """Softmax over the positives of the batch, logits ``s(u, j) / temperature - log q_j`` (Yi et al. 2019, eq. 3).

    As in the paper every column is corrected, the positive's included. Other rows with the same item are accidental
    hits and are masked.

    Args:
        user_BD: float [B, D].
        positive_BD: float [B, D].
        positive_ids_B: int64 [B], items.
        log_q_B: float [B], log probability of each positive among the training interactions, or None.
        temperature: divisor of the scores, > 0.
    """
    offset_B = None if log_q_B is None else -log_q_B
    rows, columns = (positive_ids_B[:, None] == positive_ids_B).nonzero(as_tuple=True)  # each row's own among them
    return shared_softmax(
        user_BD, positive_BD, positive_BD, temperature=temperature, offset_M=offset_B, positive_offset_B=offset_B,
        hits=(rows, columns),
    )  # fmt: skip


def directau(user_BD: Tensor, positive_BD: Tensor, *, gamma: float) -> Tensor:
    """Alignment plus ``gamma`` times the mean uniformity of users and items (Wang et al. 2022, eq. 5-7).

    Vectors are normalised here. Uniformity is ``ln mean_{i<j} exp(-2 |x_i - x_j|^2)``.

    Args:
        user_BD: float [B, D], B >= 2.
        positive_BD: float [B, D].
        gamma: weight of uniformity.

    Raises:
        ValueError: Fewer than two rows.
    """
    if len(user_BD) < 2:
        raise ValueError(f"directau compares pairs inside a batch and needs at least 2 rows, got {len(user_BD)}")
    user, item = functional.normalize(user_BD), functional.normalize(positive_BD)
    align = (user - item).square().sum(1).mean()
    return align + gamma * (_uniformity(user) + _uniformity(item)) / 2


def _uniformity(unit_BD: Tensor) -> Tensor:
    count = len(unit_BD)
    similarity_BB = (unit_BD @ unit_BD.T).to(unit_BD.dtype)
    kernel_BB = torch.exp(4 * (similarity_BB - 1))
    off_diagonal = kernel_BB.sum() - kernel_BB.diagonal().sum()
    return torch.log(off_diagonal / (count * (count - 1)))


def _negative_scores(user_BD: Tensor, vectors: Tensor) -> Tensor:
    if vectors.ndim == 2:
        return (user_BD @ vectors.T).to(user_BD.dtype)
    return torch.einsum("bd,bmd->bm", user_BD, vectors)
