"""Sampled softmax over shared negatives with its gradient in one cache-sized sweep of matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Hits = tuple[Tensor, Tensor]
"""Excluded (row, column) pairs, int64 each, rows ascending."""

_BLOCK_ELEMENTS = 1 << 18
_SAFE_EXPONENT = 60.0


def shared_softmax(
    user_BD: Tensor,
    positive_BD: Tensor,
    negative_MD: Tensor,
    *,
    temperature: float,
    offset_M: Tensor | None = None,
    positive_offset_B: Tensor | None = None,
    hits: Hits | None = None,
) -> Tensor:
    """Mean over B of ``-s_p + ln(e^{s_p} + sum_m e^{s_m + offset_m})`` with scores divided by ``temperature``.

    The gradient is made in the forward pass, block by block, while a block of exponentials is still in cache: no
    [B, M] matrix outlives its block. Equal to ``logsumexp`` over concatenated logits up to rounding.

    Args:
        user_BD: float [B, D].
        positive_BD: float [B, D].
        negative_MD: float [M, D].
        temperature: divisor of the scores, > 0.
        offset_M: float [M] added to the divided scores of the negatives, without gradient.
        positive_offset_B: float [B] added to those of the positives, likewise.
        hits: (row, column) pairs that do not count, rows ascending.

    Returns:
        Scalar.
    """
    offset = negative_MD.new_zeros(len(negative_MD)) if offset_M is None else offset_M
    rows, columns = hits if hits is not None else (torch.empty(0, dtype=torch.int64),) * 2
    own = positive_BD.new_zeros(len(positive_BD)) if positive_offset_B is None else positive_offset_B
    arguments = (user_BD, positive_BD, negative_MD, offset, own, rows, columns, 1.0 / temperature)
    loss: Tensor = _SharedSoftmax.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


class _SharedSoftmax(torch.autograd.Function):
    """The autograd node of :func:`shared_softmax`."""

    @staticmethod
    def forward(
        ctx: Any,
        user: Tensor,
        positive: Tensor,
        negative: Tensor,
        offset: Tensor,
        positive_offset: Tensor,
        hit_rows: Tensor,
        hit_columns: Tensor,
        scale: float,
    ) -> Tensor:
        """Compute the loss and keep the three gradients."""
        (batch, dim), count = user.shape, len(negative)
        scaled = user * scale
        positive_score = (scaled * positive).sum(1) + positive_offset
        # Without a shift the exponentials are exact enough while every |logit| stays below the bound.
        bound = float(scaled.norm(dim=1).max() * negative.norm(dim=1).max() + offset.abs().max())
        bound = max(bound, float(positive_score.abs().max()))
        shifted = not bound < _SAFE_EXPONENT
        plain = not shifted and not bool(offset.any())
        summing = torch.cat([negative, negative.new_ones(count, 1)], 1)
        grad_user, grad_negative = torch.empty_like(user), torch.zeros_like(negative)
        probability = torch.empty_like(positive_score)
        loss = positive_score.new_zeros(())
        size = max(1, _BLOCK_ELEMENTS // count)
        for start in range(0, batch, size):
            block = slice(start, min(start + size, batch))
            logits = (scaled[block] @ negative.T).to(user.dtype)
            if not plain:
                logits += offset
            if len(hit_rows):  # before the peak, which may not be that of an excluded pair
                first, last = torch.searchsorted(hit_rows, torch.tensor([block.start, block.stop])).tolist()
                logits[hit_rows[first:last] - block.start, hit_columns[first:last]] = -torch.inf
            peak = torch.maximum(logits.amax(1), positive_score[block]) if shifted else positive_score.new_zeros(1)
            if shifted:
                logits -= peak[:, None]
            weight = logits.exp_()
            sums = (weight @ summing).to(user.dtype)
            own = torch.exp(positive_score[block] - peak)
            total = sums[:, dim] + own
            loss += (torch.log(total) + peak - positive_score[block]).sum()
            factor = (scale / batch) / total
            probability[block] = own / total
            grad_user[block] = sums[:, :dim] * factor[:, None]
            grad_negative += (weight.T @ (user[block] * factor[:, None])).to(user.dtype)
        pull = ((probability - 1) * (scale / batch))[:, None]
        grad_user += pull * positive
        ctx.save_for_backward(grad_user, pull * user, grad_negative)
        return loss / batch

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the kept gradients."""
        user, positive, negative = ctx.saved_tensors
        return user * grad, positive * grad, negative * grad, None, None, None, None, None
