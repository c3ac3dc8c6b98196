"""The softmax of a two-tower model over what a batch offers: its own items, and uniformly drawn ones.

Shape suffixes: B positives of a batch, C distinct candidate items, D dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def candidate_softmax(
    user_BD: Tensor,
    candidate_CD: Tensor,
    target_B: Tensor,
    log_q_C: Tensor | None,
    *,
    temperature: Tensor | float,
    hardness: float = 0.0,
) -> Tensor:
    """Mean of ``-ln softmax(s(u, j) / temperature - ln q_j)`` at the target (Yi et al. 2019, eq. 3 and 6).

    The candidates are distinct, so that an item that is the positive of several rows is a candidate once and never its
    own negative: there are no accidental hits. With ``q_j`` the probability that the batch (p_j) or one of M uniform
    draws of N items offers item j, ``1 - (1 - p_j)(1 - 1 / N)^M``, they are mixed negatives (Yang et al. 2020, section
    3.3) that count once each.

    With ``hardness`` > 0 negative j of a row counts ``exp(hardness z_j) / mean_k exp(hardness z_k)`` times, its logit
    being z_j, so that the hardest negatives count most (Robinson et al. 2021, eq. 4); the weights have no gradient.

    Args:
        user_BD: float [B, D].
        candidate_CD: float [C, D], of distinct items.
        target_B: int64 [B], the place of each row's positive among the candidates.
        log_q_C: float [C], or None for no correction.
        temperature: > 0.
        hardness: beta >= 0.
    """
    logits_BC = user_BD @ candidate_CD.T / temperature
    if log_q_C is not None:
        logits_BC = logits_BC - log_q_C
    if hardness > 0 and logits_BC.shape[1] > 1:
        scaled_BC = hardness * logits_BC.detach()
        scaled_BC.scatter_(1, target_B[:, None], -torch.inf)
        negatives = logits_BC.shape[1] - 1
        mean_B1 = scaled_BC.logsumexp(1, keepdim=True) - math.log(negatives)
        logits_BC = logits_BC + (scaled_BC - mean_B1).scatter(1, target_B[:, None], 0.0)
    return functional.cross_entropy(logits_BC, target_B)
