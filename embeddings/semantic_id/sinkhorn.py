"""Balanced soft assignment by Sinkhorn's iteration, as the last level of LC-Rec's tokeniser has it."""

from __future__ import annotations

from torch import Tensor

ITERATIONS = 50


def balanced_assignment(distance: Tensor, epsilon: float) -> Tensor:
    """The largest entry of each row of the plan that spends every code alike (Cuturi 2013; Zheng et al. 2024).

    The plan minimises ``<P, D'> - epsilon H(P)`` with uniform marginals, D' being the distances scaled to [-1, 1].
    In log space, so that a small epsilon does not underflow.

    Args:
        distance: float32 [B, K].
        epsilon: > 0.

    Returns:
        int64 [B].
    """
    middle = (distance.max() + distance.min()) / 2
    amplitude = (distance.max() - middle).clamp(min=1e-12)
    plan = -(distance.double() - middle) / amplitude / epsilon
    for _ in range(ITERATIONS):
        plan = plan - plan.logsumexp(dim=0, keepdim=True)
        plan = plan - plan.logsumexp(dim=1, keepdim=True)
    return plan.argmax(1)
