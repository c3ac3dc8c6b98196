"""Multi-token prediction (Hou et al. 2025, RPG): heads that tell the digits of an id, and their loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_EVENTS_AT_ONCE = 256
_LEAST_NORM = 1e-12
_SAFE_EXPONENT = 60.0


class Heads(nn.Module):
    r"""For each of m digits :math:`g_j(h) = h + SiLU(h W_j^T + b_j)`, which starts as the identity.

    Args:
        digits: m.
        dim: D.
    """

    def __init__(self, digits: int, dim: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(digits, dim, dim))
        self.biases = nn.Parameter(torch.zeros(digits, dim))


def multi_token_loss(
    hidden_TD: Tensor, tokens_VD: Tensor, heads: Heads, targets_Tm: Tensor, widths: Sequence[int], *, temperature: float
) -> Tensor:
    """Mean over events and digits of the cross-entropy of each digit's softmax (the multi-token prediction loss).

    The logits of a digit are the cosines of its head with its tokens over the temperature. The gradient is made in the
    forward pass, digit by digit, for blocks of events that a cache holds.

    Args:
        hidden_TD: float [T, D], the encoded histories.
        tokens_VD: float [V, D], the tokens of all digits, digit by digit.
        heads: of the m digits.
        targets_Tm: int64 [T, m], each digit in ``[0, widths[j])``.
        widths: m numbers of tokens, V in all.
        temperature: tau > 0.

    Returns:
        Scalar.
    """
    arguments = (hidden_TD, tokens_VD, heads.weights, heads.biases, targets_Tm, tuple(widths), temperature)
    loss: Tensor = _MultiToken.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


def token_log_probabilities(
    hidden_BD: Tensor, tokens_VD: Tensor, heads: Heads, widths: Sequence[int], temperature: float
) -> Tensor:
    """Log-probability float [B, V] of every token as its digit; arguments as in :func:`multi_token_loss`."""
    found = []
    for digit, tokens in enumerate(tokens_VD.split_with_sizes(widths)):
        raised = hidden_BD + functional.silu(functional.linear(hidden_BD, heads.weights[digit], heads.biases[digit]))
        logits = functional.normalize(raised) @ functional.normalize(tokens).T / temperature
        found.append(logits.log_softmax(1))
    return torch.cat(found, 1)


class _MultiToken(torch.autograd.Function):
    """The autograd node of :func:`multi_token_loss`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        tokens: Tensor,
        weights: Tensor,
        biases: Tensor,
        targets: Tensor,
        widths: tuple[int, ...],
        temperature: float,
    ) -> Tensor:
        """Compute the loss and keep the four gradients."""
        grad_hidden, grad_tokens = torch.zeros_like(hidden), torch.empty_like(tokens)
        grad_weights, grad_biases = torch.zeros_like(weights), torch.zeros_like(biases)
        loss = hidden.new_zeros(())
        parts = zip(tokens.split_with_sizes(widths), grad_tokens.split_with_sizes(widths), strict=True)
        for digit, (own, grad_own) in enumerate(parts):
            unit, norms = _unit(own)
            summed = torch.zeros_like(own)
            goals = targets[:, digit].contiguous()
            for first in range(0, len(hidden), _EVENTS_AT_ONCE):
                block = slice(first, first + _EVENTS_AT_ONCE)
                read = hidden[block]
                inner = torch.addmm(biases[digit], read, weights[digit].T)
                gate = inner.sigmoid()
                head, head_norms = _unit(torch.addcmul(read, inner, gate))
                value, weight = _softmax(head, unit, goals[block], temperature, targets.numel())
                loss += value
                summed.addmm_(weight.T, head)
                pull = _through_unit(weight @ unit, head, head_norms)
                grad_hidden[block] += pull
                pull *= gate * (1 + inner * (1 - gate))
                grad_hidden[block].addmm_(pull, weights[digit])
                grad_weights[digit].addmm_(pull.T, read)
                grad_biases[digit] += pull.sum(0)
            grad_own.copy_(_through_unit(summed, unit, norms))
        ctx.save_for_backward(grad_hidden, grad_tokens, grad_weights, grad_biases)
        return loss / targets.numel()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the kept gradients."""
        return (*(kept * grad for kept in ctx.saved_tensors), None, None, None)


def _softmax(head: Tensor, token: Tensor, goals: Tensor, temperature: float, count: int) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of events [t, D] and tokens [M, D], and the gradient [t, M] of its mean by the cosines."""
    logits = (head / temperature) @ token.T
    if 1 / temperature > _SAFE_EXPONENT:
        logits -= logits.amax(1, keepdim=True)
    own = goals[:, None]
    chosen = logits.gather(1, own)
    weight = logits.exp_()
    sums = weight.sum(1, keepdim=True)
    scale = 1 / (temperature * count)
    weight *= scale / sums
    weight.scatter_add_(1, own, torch.full_like(sums, -scale))
    return (sums.log() - chosen).sum(), weight


def _unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, D] of length one, and their lengths [n, 1]."""
    norms = vectors.norm(dim=1, keepdim=True).clamp_(min=_LEAST_NORM)
    return vectors / norms, norms


def _through_unit(grad: Tensor, unit: Tensor, norms: Tensor) -> Tensor:
    """Gradient of rows [n, D] from that of the rows of length one."""
    return (grad - unit * (grad * unit).sum(1, keepdim=True)) / norms
