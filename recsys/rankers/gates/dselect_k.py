"""DSelect-k (Hazimeh et al. 2021): k differentiable selectors, each a binary code of one expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.rankers.gates.gate import SMALLEST, Gate, Routing, check_k, draw_uniform, entropy, smooth_step


class DSelectKGate(Gate):
    """``g(x) = sum_j softmax(w(x))_j r(z_j(x))``, ``r(z)_i`` the product of ``S(z_b)`` or ``1 - S(z_b)`` by bit b of i.

    A selector has ``m = ceil(log2 E)`` codes; where all are at the ends of the smooth step, it chooses one expert.
    Where E is no power of two, ``sum_j 1 / sum_i r(z_j)_i`` keeps codes off the experts that do not exist.

    Args:
        width: D of the inputs.
        num_experts: E.
        k: selectors.
        gamma: width of the smooth step.
        entropy_weight: of the selectors' mean entropy, which drives codes to the ends.
        per_example: codes and weights are linear in the inputs; otherwise they are parameters, one choice for all.
    """

    bits: Tensor

    def __init__(
        self, width: int, num_experts: int, k: int, *, gamma: float, entropy_weight: float, per_example: bool
    ) -> None:
        super().__init__(num_experts)
        self.k, self.gamma, self.entropy_weight = check_k(k, num_experts), gamma, entropy_weight
        self.num_bits = (num_experts - 1).bit_length()
        self.per_example = per_example
        inputs = width if per_example else 1
        self.codes = nn.Linear(inputs, k * self.num_bits) if self.num_bits else None
        self.mix = nn.Linear(inputs, k)
        numbers = torch.arange(num_experts)[:, None] >> torch.arange(self.num_bits)
        self.register_buffer("bits", (numbers & 1).bool(), persistent=False)

    def forward(self, inputs: Tensor, keys: Tensor) -> Routing:
        """See :meth:`Gate.forward`."""
        seen = inputs if self.per_example else inputs.new_zeros(1, 1)
        chosen_NJE = self._select(seen)
        weights = (self.mix(seen).softmax(dim=1)[:, :, None] * chosen_NJE).sum(dim=1)
        penalty = self.entropy_weight * entropy(chosen_NJE).sum(dim=(1, 2)).mean()
        if self.num_experts < 2**self.num_bits:
            penalty = penalty + (1.0 / chosen_NJE.sum(dim=2).clamp_min(SMALLEST)).sum(dim=1).mean()
        return Routing(weights.expand(len(inputs), -1), penalty)

    def _select(self, seen: Tensor) -> Tensor:
        """Float32 [N, k, E]: ``r`` of each selector."""
        if self.codes is None:
            return seen.new_ones(len(seen), self.k, 1)
        ones = smooth_step(self.codes(seen), self.gamma).view(len(seen), self.k, 1, self.num_bits)
        return torch.where(self.bits, ones, 1.0 - ones).prod(dim=3)

    def draw(self, generator: torch.Generator) -> None:
        """Codes uniform in ``[-gamma, gamma] / 100``, selectors' weights in [-0.05, 0.05]."""
        if self.codes is not None:
            draw_uniform(self.codes, self.gamma / 100, generator)
        draw_uniform(self.mix, 0.05, generator)
