"""The gate of EvoMoE (Nie et al. 2021): dense at first, sparser as its temperature falls, k experts at last."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.rankers.gates.gate import Gate, Routing, check_k, gumbel


@dataclasses.dataclass(frozen=True)
class Annealing:
    """From one expert to all, and from all to k.

    Attributes:
        shared_epochs: for so long every example meets expert 0 alone; then the others become diversified copies of it.
        anneal_epochs: for so long the temperature falls; afterwards the k largest are kept.
        tau: temperature at the start and at the end, in between log-linear.
        threshold: experts of a smaller weight are left out.
        balance_weight: of ``E sum_e f_e p_e``, where f_e is the share of examples whose first choice is e and p_e its
            mean probability (equation 6).
    """

    shared_epochs: float = 1.0
    anneal_epochs: float = 10.0
    tau: tuple[float, float] = (1.0, 0.5)
    threshold: float = 1e-3
    balance_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check what the schedule divides by and takes logarithms of."""
        if self.shared_epochs < 0 or self.anneal_epochs <= 0 or min(self.tau) <= 0 or not 0 <= self.threshold < 1:
            raise ValueError(
                f"annealing needs shared_epochs >= 0, anneal_epochs > 0, tau > 0 and a threshold in [0, 1), got {self}"
            )


class DenseToSparseGate(Gate):
    """``G = softmax((x W + Gumbel noise) / tau)``, weights ``G`` where it exceeds a threshold, 0 elsewhere.

    Evaluation has no noise. After the annealing only the k largest of ``softmax(x W)`` are kept.

    Args:
        width: D of the inputs.
        num_experts: E.
        k: experts of an example at last.
        annealing: the schedule.
        noise: draws the Gumbel noise.
    """

    epochs: Tensor

    def __init__(self, width: int, num_experts: int, k: int, annealing: Annealing, noise: torch.Generator) -> None:
        super().__init__(num_experts)
        self.k, self.annealing, self.noise = check_k(k, num_experts), annealing, noise
        self.logits = nn.Linear(width, num_experts, bias=False)
        self.register_buffer("epochs", torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: Tensor, keys: Tensor) -> Routing:
        """See :meth:`Gate.forward`."""
        done = (float(self.epochs) - self.annealing.shared_epochs) / self.annealing.anneal_epochs
        if done < 0:
            only_first = functional.one_hot(torch.zeros_like(keys), self.num_experts).to(inputs.dtype)
            return Routing(only_first, inputs.new_zeros(()))
        logits: Tensor = self.logits(inputs)
        probabilities = logits.softmax(dim=1)
        penalty = self.annealing.balance_weight * balance(probabilities)
        if done >= 1:
            kept, experts = probabilities.topk(self.k, dim=1)
            return Routing(torch.zeros_like(logits).scatter(1, experts, kept), penalty)
        if self.training:
            logits = logits + gumbel(logits, self.noise)
        start, end = self.annealing.tau
        weights = (logits / (start * (end / start) ** done)).softmax(dim=1)
        return Routing(weights * (weights > self.annealing.threshold), penalty)

    def draw(self, generator: torch.Generator) -> None:
        """Xavier-normal logits."""
        nn.init.xavier_normal_(self.logits.weight, generator=generator)

    def advance(self, epochs: float) -> None:
        """See :meth:`Gate.advance`."""
        self.epochs.fill_(epochs)


def balance(probabilities: Tensor) -> Tensor:
    """``E sum_e f_e p_e`` of probabilities [B, E] (Fedus et al. 2021, equation 4): 1 where experts are used alike.

    Example:
        >>> round(float(balance(torch.tensor([[0.9, 0.1], [0.1, 0.9]]))), 6)
        1.0
    """
    num_experts = probabilities.shape[1]
    first = functional.one_hot(probabilities.argmax(dim=1), num_experts).to(probabilities.dtype)
    return num_experts * (first.mean(dim=0) * probabilities.mean(dim=0)).sum()
