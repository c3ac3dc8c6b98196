from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from recsys.multi_token import Heads, multi_token_loss, token_log_probabilities

EVENTS, DIM, WIDTHS = 300, 6, (5, 3, 7)
"""More events than a block has."""


def drawn(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Heads, Tensor]:
    torch.manual_seed(3)
    heads = Heads(len(WIDTHS), DIM).to(dtype)
    for part in heads.parameters():
        torch.nn.init.normal_(part, std=0.7)
    hidden = torch.randn(EVENTS, DIM, dtype=dtype, requires_grad=True)
    tokens = torch.randn(sum(WIDTHS), DIM, dtype=dtype, requires_grad=True)
    targets = torch.stack([torch.randint(width, (EVENTS,)) for width in WIDTHS], 1)
    return hidden, tokens, heads, targets


def plain_logits(hidden: Tensor, tokens: Tensor, heads: Heads, temperature: float) -> list[Tensor]:
    """The equations of the paper, digit by digit."""
    found, first = [], 0
    for digit, width in enumerate(WIDTHS):
        inner = hidden @ heads.weights[digit].T + heads.biases[digit]
        head = hidden + inner / (1 + torch.exp(-inner))
        own = tokens[first : first + width]
        cosines = (head @ own.T) / head.norm(dim=1)[:, None] / own.norm(dim=1)
        found.append(cosines / temperature)
        first += width
    return found


@pytest.mark.parametrize("temperature", [0.2, 0.004])
def test_loss_and_gradients_are_those_of_the_equation(temperature: float) -> None:
    hidden, tokens, heads, targets = drawn()
    parts = [hidden, tokens, *heads.parameters()]
    logits = plain_logits(hidden, tokens, heads, temperature)
    expected = torch.stack([functional.cross_entropy(own, targets[:, d]) for d, own in enumerate(logits)]).mean()
    wanted = torch.autograd.grad(expected, parts)
    loss = multi_token_loss(hidden, tokens, heads, targets, WIDTHS, temperature=temperature)
    torch.testing.assert_close(loss, expected)
    for found, gradient in zip(torch.autograd.grad(3 * loss, parts), wanted, strict=True):
        torch.testing.assert_close(found, 3 * gradient)


def test_the_log_probabilities_are_those_of_the_equation() -> None:
    hidden, tokens, heads, _ = drawn()
    logits = plain_logits(hidden, tokens, heads, 0.1)
    expected = torch.cat([own - torch.log(torch.exp(own).sum(1, keepdim=True)) for own in logits], 1)
    torch.testing.assert_close(token_log_probabilities(hidden, tokens, heads, WIDTHS, 0.1), expected)


def test_new_heads_hand_the_history_on() -> None:
    hidden, tokens, _, _ = drawn(torch.float32)
    found = token_log_probabilities(hidden, tokens, Heads(3, DIM), WIDTHS, 0.5)
    cosines = functional.cosine_similarity(hidden[:, None], tokens[None, :5], dim=2)
    torch.testing.assert_close(found[:, :5], (cosines / 0.5).log_softmax(1))
