"""Experts of a mixture, of which each example meets only those that a gate gave it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys.rankers.ranker import Dropout, Tower


class Experts(nn.Module):
    """E perceptrons of one shape and the weighted sums of their outputs.

    The (example, expert) pairs with a weight in any sum are sorted by expert; each expert is one matrix product over
    its examples, and an expert without one is not computed, forward or backward.

    Args:
        width: D of the inputs.
        num_experts: E.
        tower: hidden widths and dropout of an expert; at least one layer, no batch norm.
        noise: draws the dropout masks.

    Raises:
        ValueError: The tower has no layer, or batch norm, whose statistics would depend on the routing.
    """

    def __init__(self, width: int, num_experts: int, tower: Tower, noise: torch.Generator) -> None:
        super().__init__()
        if not tower.hidden or tower.batch_norm:
            raise ValueError(f"an expert has at least one layer and no batch norm, got {tower}")
        sizes = [width, *tower.hidden]
        shapes = list(itertools.pairwise(sizes))
        self.num_experts = num_experts
        self.weights = nn.ParameterList(torch.zeros(num_experts, *shape) for shape in shapes)
        self.biases = nn.ParameterList(torch.zeros(num_experts, out) for _, out in shapes)
        self.dropout = Dropout(tower.dropout, noise)

    def forward(self, inputs: Tensor, weights: Sequence[Tensor], sources: Tensor | None = None) -> list[Tensor]:
        """Mix the experts' outputs.

        Args:
            inputs: float32 [B, D], or [G, B, D] with ``sources``.
            weights: for each sum float32 [B, E].
            sources: int64 [E], which of G inputs an expert takes; None where all take the same one.

        Returns:
            For each sum float32 [B, H]: ``sum_i weights_i f_i(inputs_i)``.
        """
        used = torch.stack([part.detach() for part in weights]).ne(0).any(dim=0)
        expert, example = used.T.nonzero(as_tuple=True)
        counts = used.sum(dim=0).tolist()
        rows = example if sources is None else sources[expert] * len(used) + example
        hidden = inputs.flatten(end_dim=-2).index_select(0, rows)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            parts = zip(torch.split(hidden, counts), weight.unbind(0), bias.unbind(0), strict=True)
            none = hidden.new_zeros(0, bias.shape[1])
            hidden = torch.cat([none, *(torch.addmm(b, part, w) for part, w, b in parts if len(part))])
            hidden = self.dropout(hidden.relu())
        sums = inputs.new_zeros(len(used), hidden.shape[1])
        return [sums.index_add(0, example, part[example, expert, None] * hidden) for part in weights]

    def draw(self, generator: torch.Generator) -> None:
        """Xavier-normal weights of each expert, zero biases."""
        for weight in self.weights:
            for part in weight:
                nn.init.xavier_normal_(part, generator=generator)

    @torch.no_grad()
    def diversify(self, masked: float, noise: torch.Generator) -> None:
        """Make every other expert a copy of expert 0 with a share of its weights set to 0 (EvoMoE's expert-diversify).

        Args:
            masked: share of the weights, in [0, 1).
            noise: draws the masks.
        """
        for weight, bias in zip(self.weights, self.biases, strict=True):
            weight[1:] = weight[0] * torch.empty_like(weight[1:]).bernoulli_(1 - masked, generator=noise)
            bias[1:] = bias[0]
