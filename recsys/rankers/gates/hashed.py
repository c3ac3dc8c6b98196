"""Experts by a fixed random assignment of ids (Roller et al. 2021), as COMET's peers have it: by the user's id."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.rankers.gates.gate import Gate, Routing, check_k


class HashGate(Gate):
    """Every key has k experts of its own, drawn once, each with the weight ``1 / k``. Nothing is learned.

    Args:
        num_keys: N; a key outside ``[0, N)`` has the experts of an entry N, which no other key has.
        num_experts: E.
        k: experts of an example.
    """

    experts: Tensor

    def __init__(self, num_keys: int, num_experts: int, k: int) -> None:
        super().__init__(num_experts)
        self.k = check_k(k, num_experts)
        self.num_keys = num_keys
        self.register_buffer("experts", torch.zeros(num_keys + 1, k, dtype=torch.int64))

    def forward(self, inputs: Tensor, keys: Tensor) -> Routing:
        """See :meth:`Gate.forward`."""
        known = torch.where((keys >= 0) & (keys < self.num_keys), keys, self.num_keys)
        weights = inputs.new_zeros(len(keys), self.num_experts).scatter(1, self.experts[known], 1.0 / self.k)
        return Routing(weights, inputs.new_zeros(()))

    def draw(self, generator: torch.Generator) -> None:
        """Each key's experts without replacement."""
        ranks = torch.rand(self.num_keys + 1, self.num_experts, generator=generator).argsort(dim=1)
        self.experts.copy_(ranks[:, : self.k])
