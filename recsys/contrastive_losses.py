"""Losses that set positives against a mean over negatives: BSL, Adap-tau, cosine contrastive.

Shape suffixes: B positives of a batch, M negatives, D dimensions.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recsys.negative_kernel import shared_log_mean_exp

if TYPE_CHECKING:
    from recsys.losses import Negatives


@dataclasses.dataclass(frozen=True)
class InverseTemperatures:
    """What :func:`adaptive_softmax` multiplies scores by, see :class:`recsys.adaptive_temperature.AdaptiveTemperature`.

    Attributes:
        positive: of all positives.
        negatives: float [B], of the negatives of each row.
    """

    positive: float
    negatives: Tensor


def bilateral_softmax(
    user_BD: Tensor,
    positive_BD: Tensor,
    negatives: Negatives,
    users_B: Tensor | None = None,
    *,
    temperature: float,
    positive_temperature: float,
    exponent: float,
) -> Tensor:
    r"""BSL (Wu et al. 2024, "BSL: Understanding and improving softmax loss for recommendation", the loss of sec. IV).

    .. math:: -\ln E_{i \in P_u} e^{s_{ui} / \tau_1} + w \ln E_{j} e^{s_{uj} / \tau_2}

    The paper's equation divided by tau_1, so that there w = tau_2 / tau_1. The authors' runs keep tau_1 = tau_2 and set
    w alone. The expectation over positives is over the rows of the batch that have the same user, that over negatives
    over the sampled ones.

    Args:
        user_BD: float [B, D].
        positive_BD: float [B, D].
        negatives: shared or per positive; pairs in ``hits`` do not count.
        users_B: int64 [B], whose positives are pooled; None leaves every row on its own, where tau_1 only scales.
        temperature: tau_2, of the negatives, > 0.
        positive_temperature: tau_1, > 0.
        exponent: w, how much the negatives weigh.
    """
    rows_B = (user_BD * positive_BD).sum(-1) / positive_temperature
    if users_B is not None:
        rows_B = _log_mean_exp_by_group(rows_B, users_B)
    scale_B = torch.full((len(user_BD),), 1.0 / temperature, dtype=user_BD.dtype)
    return exponent * _log_mean_exp(user_BD, negatives, scale_B) - rows_B.mean()


def adaptive_softmax(
    user_BD: Tensor, positive_BD: Tensor, negatives: Negatives, temperatures: InverseTemperatures
) -> Tensor:
    r"""Adap-tau (Chen et al. 2023, "Adap-tau: Adaptively modulating embedding magnitude for recommendation").

    .. math:: -s_{ui} / \tau_0 + \ln E_j e^{s_{uj} / \tau_u}

    Args:
        user_BD: float [B, D].
        positive_BD: float [B, D].
        negatives: shared or per positive; pairs in ``hits`` do not count.
        temperatures: one over tau_0 and tau_u.
    """
    positive_B = (user_BD * positive_BD).sum(-1) * temperatures.positive
    return _log_mean_exp(user_BD, negatives, temperatures.negatives.to(user_BD.dtype)) - positive_B.mean()


def cosine_contrastive(
    user_BD: Tensor, positive_BD: Tensor, negatives: Negatives, *, margin: float, negative_weight: float
) -> Tensor:
    r"""CCL (Mao et al. 2021, "SimpleX: A simple and strong baseline for collaborative filtering", eq. 1).

    .. math:: (1 - s_{ui})_+ + \frac{w}{M} \sum_j (s_{uj} - m)_+

    Args:
        user_BD: float [B, D], of length one.
        positive_BD: float [B, D], of length one.
        negatives: shared or per positive, of length one; pairs in ``hits`` do not count.
        margin: m, the score that a negative may have.
        negative_weight: w.
    """
    positive_B = torch.relu(1.0 - (user_BD * positive_BD).sum(-1))
    above_BM = torch.relu(_scores(user_BD, negatives.vectors) - margin)
    if negatives.hits is None:
        return positive_B.mean() + negative_weight * above_BM.mean()
    keep_BM = torch.ones_like(above_BM)
    keep_BM[negatives.hits] = 0.0
    means_B = (above_BM * keep_BM).sum(1) / keep_BM.sum(1).clamp(min=1.0)
    return positive_B.mean() + negative_weight * means_B.mean()


@torch.no_grad()
def plain_softmax_rows(user_BD: Tensor, positive_BD: Tensor, negatives: Negatives) -> Tensor:
    """``-s_p + ln sum_j e^{s_j}`` of each row without a temperature, float [B], for Adap-tau's user-wise part.

    A row that loses all its negatives has -inf.
    """
    scores_BM = _scores(user_BD, negatives.vectors)
    if negatives.hits is not None:
        scores_BM[negatives.hits] = -torch.inf
    rows_B: Tensor = torch.logsumexp(scores_BM, 1) - (user_BD * positive_BD).sum(-1)
    return rows_B


def _scores(user_BD: Tensor, vectors: Tensor) -> Tensor:
    if vectors.ndim == 2:
        return (user_BD @ vectors.T).to(user_BD.dtype)
    return torch.einsum("bd,bmd->bm", user_BD, vectors).to(user_BD.dtype)


def _log_mean_exp(user_BD: Tensor, negatives: Negatives, scale_B: Tensor) -> Tensor:
    """Mean over the rows of ``ln mean_m e^{scale_b s_bm}``."""
    if negatives.vectors.ndim == 2:
        return shared_log_mean_exp(user_BD, negatives.vectors, scale_B, hits=negatives.hits)
    logits_BM = _scores(user_BD, negatives.vectors) * scale_B[:, None]
    return (torch.logsumexp(logits_BM, 1) - math.log(logits_BM.shape[1])).mean()


def _log_mean_exp_by_group(values_B: Tensor, groups_B: Tensor) -> Tensor:
    """Each row's ``ln mean e^value`` over the rows of its group, float [B]."""
    _, group_B, counts = torch.unique(groups_B, return_inverse=True, return_counts=True)
    peaks = torch.full((len(counts),), -torch.inf, dtype=values_B.dtype)
    peaks = peaks.scatter_reduce(0, group_B, values_B.detach(), "amax")
    sums = torch.zeros_like(peaks).index_add(0, group_B, torch.exp(values_B - peaks[group_B]))
    return (torch.log(sums / counts) + peaks).index_select(0, group_B)
