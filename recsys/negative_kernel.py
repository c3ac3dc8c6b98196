"""Log-sum-exp over shared negatives with its gradient in one cache-sized sweep of matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recsys.softmax_kernel import Hits

_BLOCK_ELEMENTS = 1 << 18
_SAFE_EXPONENT = 60.0


def shared_log_mean_exp(user_BD: Tensor, negative_MD: Tensor, scale_B: Tensor, *, hits: Hits | None = None) -> Tensor:
    """Mean over B of ``ln mean_m e^{scale_b <u_b, n_m>}``, the positive not among the exponentials.

    The gradient by users and negatives is made in the forward pass, block by block, as in
    :func:`recsys.softmax_kernel.shared_softmax`: no [B, M] matrix outlives its block.

    Args:
        user_BD: float [B, D].
        negative_MD: float [M, D].
        scale_B: float [B], one over the temperature of each row, without gradient.
        hits: (row, column) pairs that do not count, rows ascending; a row that loses all its negatives adds 0.

    Returns:
        Scalar.
    """
    rows, columns = hits if hits is not None else (torch.empty(0, dtype=torch.int64),) * 2
    value: Tensor = _SharedLogMeanExp.apply(user_BD, negative_MD, scale_B, rows, columns)  # type: ignore[no-untyped-call]
    return value


class _SharedLogMeanExp(torch.autograd.Function):
    """The autograd node of :func:`shared_log_mean_exp`."""

    @staticmethod
    def forward(
        ctx: Any, user: Tensor, negative: Tensor, scale: Tensor, hit_rows: Tensor, hit_columns: Tensor
    ) -> Tensor:
        """Compute the value and keep the two gradients."""
        (batch, dim), count = user.shape, len(negative)
        scaled = user * scale[:, None]
        # Without a shift the exponentials are exact enough while every |logit| stays below the bound.
        bound = float(scaled.norm(dim=1).max() * negative.norm(dim=1).max())
        shifted = not bound < _SAFE_EXPONENT
        summing = torch.cat([negative, negative.new_ones(count, 1)], 1)
        grad_user, grad_negative = torch.empty_like(user), torch.zeros_like(negative)
        counted = torch.full((batch,), float(count), dtype=user.dtype)
        counted -= torch.bincount(hit_rows, minlength=batch)
        value = user.new_zeros(())
        size = max(1, _BLOCK_ELEMENTS // count)
        for start in range(0, batch, size):
            block = slice(start, min(start + size, batch))
            logits = (scaled[block] @ negative.T).to(user.dtype)
            if len(hit_rows):
                first, last = torch.searchsorted(hit_rows, torch.tensor([block.start, block.stop])).tolist()
                logits[hit_rows[first:last] - block.start, hit_columns[first:last]] = -torch.inf
            peak = logits.amax(1).clamp(min=-1e30) if shifted else user.new_zeros(1)
            if shifted:
                logits -= peak[:, None]
            weight = logits.exp_()
            sums = (weight @ summing).to(user.dtype)
            some = counted[block] > 0
            total = torch.where(some, sums[:, dim], 1.0)
            value += torch.where(some, torch.log(total / counted[block].clamp(min=1.0)) + peak, 0.0).sum()
            factor = torch.where(some, scale[block] / (batch * total), 0.0)
            grad_user[block] = sums[:, :dim] * factor[:, None]
            grad_negative += (weight.T @ (user[block] * factor[:, None])).to(user.dtype)
        ctx.save_for_backward(grad_user, grad_negative)
        return value / batch

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the kept gradients."""
        user, negative = ctx.saved_tensors
        return user * grad, negative * grad, None, None, None
