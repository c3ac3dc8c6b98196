"""One level of a multi-task mixture: experts that all tasks share and experts of each task, mixed by gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.rankers.experts import Experts
from recsys.rankers.gates.gate import Gate
from recsys.rng import torch_generator


@dataclasses.dataclass(frozen=True)
class Extracted:
    """What a level gives for B examples.

    Attributes:
        mixed: float32 [B, H] by gate: of each task, then the shared one where there is a level above.
        weights: float32 [B, E] by gate over all experts, shared ones first, then those of each task.
        penalty: float32 [], of all gates.
    """

    mixed: list[Tensor]
    weights: list[Tensor]
    penalty: Tensor


class Extraction(nn.Module):
    """An extraction network of PLE ("Progressive layered extraction", Tang et al. 2020, section 4.2).

    The experts and the gate of a task look at that task's input, the shared experts at the shared input. The gate of a
    task mixes the shared experts and its own; the gate after those of the tasks, which all levels but the last have,
    looks at the shared input and mixes all experts into the shared input of the level above.

    Args:
        mixture: the shared experts first, then those of each task.
        gates: of each of T tasks, and the shared one if there are T + 1.
        tasks: T.
        private: experts of each task.
    """

    sources: Tensor

    def __init__(self, mixture: Experts, gates: Sequence[Gate], tasks: int, private: int) -> None:
        super().__init__()
        self.mixture = mixture
        self.gates = nn.ModuleList(gates)
        self._gates = list(gates)
        self.tasks, self.private = tasks, private
        self.shared = mixture.num_experts - tasks * private
        sources = [tasks] * self.shared + [task for task in range(tasks) for _ in range(private)]
        self.register_buffer("sources", torch.tensor(sources), persistent=False)

    def forward(self, inputs: Tensor, keys: Tensor) -> Extracted:
        """Mix the experts.

        Args:
            inputs: float32 [B, D] for all alike, or [T + 1, B, D] of each task and, last, the shared one.
            keys: int64 [B], see :meth:`Gate.forward`.
        """
        apart = inputs.ndim == 3
        own = inputs.unbind(0) if apart else [inputs] * len(self._gates)
        routings = [gate(part, keys) for gate, part in zip(self._gates, own, strict=False)]
        weights = [self._placed(routing.weights, place) for place, routing in enumerate(routings)]
        mixed = self.mixture(inputs, weights, self.sources if apart else None)
        return Extracted(mixed, weights, torch.stack([routing.penalty for routing in routings]).sum())

    def _placed(self, weights: Tensor, task: int) -> Tensor:
        """Weights of the shared and the task's own experts among those of all experts."""
        if not self.private or task == self.tasks:
            return weights
        before, after = task * self.private, (self.tasks - 1 - task) * self.private
        shared, own = torch.split(weights, [self.shared, self.private], dim=1)
        return torch.cat([shared, functional.pad(own, (before, after))], dim=1)

    def draw(self, seed: int, *name: int) -> None:
        """Draw the initial weights of experts and gates; ``name`` tells levels apart."""
        self.mixture.draw(torch_generator(seed, "init", "experts", *name))
        for place, gate in enumerate(self._gates):
            gate.draw(torch_generator(seed, "init", "gate", place, *name))

    def advance(self, epochs: float) -> None:
        """See :meth:`Gate.advance`."""
        for gate in self._gates:
            gate.advance(epochs)
