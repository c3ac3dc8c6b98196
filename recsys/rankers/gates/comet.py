"""COMET (Ibrahim et al. 2023): k soft trees, each of which routes an example to one expert at its leaves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.rankers.gates.gate import SMALLEST, Gate, Routing, check_k, draw_uniform, entropy, smooth_step


class CometGate(Gate):
    """``g = sum_j softmax_{j,l}(a_jl(x) + ln v_jl(x))``, ``v_jl`` the probability that tree j brings x to its leaf l.

    A tree has E leaves and E - 1 inner nodes in heap order, any E; an inner node sends x to the left with probability
    ``S(w . x + b)``. Leaves of probability 0 take no part in the softmax, so that at most k experts remain where
    every tree has decided, which the entropy drives them to.

    Args:
        width: D of the inputs.
        num_experts: E, leaves of a tree.
        k: trees.
        gamma: width of the smooth step.
        entropy_weight: of ``mean_x sum_j sum_l -v_jl ln v_jl``.
    """

    def __init__(self, width: int, num_experts: int, k: int, *, gamma: float, entropy_weight: float) -> None:
        super().__init__(num_experts)
        self.k, self.gamma, self.entropy_weight = check_k(k, num_experts), gamma, entropy_weight
        self.nodes = nn.Linear(width, k * (num_experts - 1)) if num_experts > 1 else None
        self.leaves = nn.Linear(width, k * num_experts)

    def forward(self, inputs: Tensor, keys: Tensor) -> Routing:
        """See :meth:`Gate.forward`."""
        reached_BKE = self._reach(inputs)
        logits = self.leaves(inputs).view(reached_BKE.shape) + reached_BKE.clamp_min(SMALLEST).log()
        logits = logits.masked_fill(reached_BKE == 0, -torch.inf)
        weights = logits.flatten(1).softmax(dim=1).view(reached_BKE.shape).sum(dim=1)
        return Routing(weights, self.entropy_weight * entropy(reached_BKE).sum(dim=(1, 2)).mean())

    def _reach(self, inputs: Tensor) -> Tensor:
        """Float32 [B, k, E]: probability of each leaf, level by level; the shallower leaves come first."""
        reached = inputs.new_ones(len(inputs), self.k, 1)
        if self.nodes is None:
            return reached
        left = smooth_step(self.nodes(inputs), self.gamma).view(len(inputs), self.k, -1)
        done, first = [], 1
        while first < self.num_experts:
            inner = min(first, self.num_experts - first)
            done.append(reached[:, :, inner:])
            to_left = left[:, :, first - 1 : first - 1 + inner]
            parents = reached[:, :, :inner]
            reached = torch.stack((parents * to_left, parents * (1.0 - to_left)), dim=3).flatten(2)
            first *= 2
        return torch.cat([*done, reached], dim=2)

    def draw(self, generator: torch.Generator) -> None:
        """Nodes uniform in ``[-gamma, gamma] / 100``, so that every tree starts undecided; leaves in [-0.05, 0.05]."""
        if self.nodes is not None:
            draw_uniform(self.nodes, self.gamma / 100, generator)
        draw_uniform(self.leaves, 0.05, generator)
