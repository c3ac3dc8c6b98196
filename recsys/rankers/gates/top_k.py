"""Softmax over the k largest logits (Shazeer et al. 2017); with k = E the dense gate of MMoE (Ma et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.rankers.gates.gate import Gate, Routing, check_k


class TopKGate(Gate):
    """``g = softmax(KeepTopK(H(x), k))``, ``H(x)_i = (x W_g)_i + N(0, 1) softplus((x W_noise)_i)`` (equations 3 to 5).

    Args:
        width: D of the inputs.
        num_experts: E.
        k: experts of an example.
        noise: draws the noise of training steps; None for none.
    """

    def __init__(self, width: int, num_experts: int, k: int, noise: torch.Generator | None = None) -> None:
        super().__init__(num_experts)
        self.k = check_k(k, num_experts)
        self.logits = nn.Linear(width, num_experts, bias=False)
        self.noise = noise
        self.spread = None if noise is None else nn.Linear(width, num_experts, bias=False)

    def forward(self, inputs: Tensor, keys: Tensor) -> Routing:
        """See :meth:`Gate.forward`."""
        logits: Tensor = self.logits(inputs)
        if self.training and self.spread is not None:
            drawn = torch.empty_like(logits).normal_(generator=self.noise)
            logits = logits + drawn * functional.softplus(self.spread(inputs))
        kept, experts = logits.topk(self.k, dim=1)
        return Routing(torch.zeros_like(logits).scatter(1, experts, kept.softmax(dim=1)), logits.new_zeros(()))

    def draw(self, generator: torch.Generator) -> None:
        """Xavier-normal logits; no noise beyond softplus(0) at the start."""
        nn.init.xavier_normal_(self.logits.weight, generator=generator)
        if self.spread is not None:
            nn.init.zeros_(self.spread.weight)
