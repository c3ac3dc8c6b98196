"""A gate whose experts are put in an order that is learned: the local search of COMET (Ibrahim et al. 2023)."""

from __future__ import annotations

import dataclasses

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from recsys.rankers.gates.gate import Gate, Routing, entropy, gumbel


@dataclasses.dataclass(frozen=True)
class PermutationSearch:
    """How the permutation is learned.

    Attributes:
        epochs: how long; afterwards it is fixed.
        tau: temperature at the start and at the end, in between log-linear.
        iterations: of Sinkhorn's normalisation at the start and at the end, in between linear.
        noise: times the Gumbel noise.
        entropy_weight: of the entropy of the doubly stochastic matrix.
    """

    epochs: float = 3.0
    tau: tuple[float, float] = (1e-3, 1e-7)
    iterations: tuple[int, int] = (20, 150)
    noise: float = 0.01
    entropy_weight: float = 1e-4

    def __post_init__(self) -> None:
        """Check what the schedule divides by and takes logarithms of."""
        if self.epochs <= 0 or min(self.tau) <= 0 or min(self.iterations) < 1:
            raise ValueError(f"a permutation search needs epochs > 0, tau > 0 and iterations >= 1, got {self}")


class PermutedGate(Gate):
    """``g P`` for the gate ``g`` and a permutation ``P`` of its experts.

    For the first epochs a training step takes ``P = Sinkhorn((Theta + noise) / tau)``, doubly stochastic and all but
    hard (Mena et al. 2018, Gumbel-Sinkhorn). Afterwards, and always in evaluation, P is the permutation that
    maximises ``sum P Theta``, the limit of tau = 0. Theta has no gradient then, so that it stays.

    Args:
        gate: the gate.
        search: how P is learned.
        noise: draws the Gumbel noise.
    """

    epochs: Tensor

    def __init__(self, gate: Gate, search: PermutationSearch, noise: torch.Generator) -> None:
        super().__init__(gate.num_experts)
        self.gate, self.search, self.noise = gate, search, noise
        self.theta = nn.Parameter(torch.zeros(gate.num_experts, gate.num_experts))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: Tensor, keys: Tensor) -> Routing:
        """See :meth:`Gate.forward`."""
        found = self.gate(inputs, keys)
        done = float(self.epochs) / self.search.epochs
        if not self.training or done >= 1.0:
            return Routing(found.weights[:, self.order().argsort()], found.penalty)
        soft = self.doubly_stochastic(done)
        return Routing(found.weights @ soft, found.penalty + self.search.entropy_weight * entropy(soft).sum())

    def order(self) -> Tensor:
        """Int64 [E]: the expert that each place of the gate stands for."""
        _, columns = linear_sum_assignment(self.theta.detach().numpy(), maximize=True)
        return torch.from_numpy(columns)

    def doubly_stochastic(self, done: float) -> Tensor:
        """Float32 [E, E] after the share ``done`` of the search, with fresh noise."""
        start, end = self.search.tau
        first, last = self.search.iterations
        noisy = self.theta + self.search.noise * gumbel(self.theta, self.noise)
        scaled = noisy / (start * (end / start) ** done)
        return sinkhorn(scaled, round(first + (last - first) * done))

    def draw(self, generator: torch.Generator) -> None:
        """The gate's weights, and Theta uniform in [-0.05, 0.05]."""
        self.gate.draw(generator)
        nn.init.uniform_(self.theta, -0.05, 0.05, generator=generator)

    def advance(self, epochs: float) -> None:
        """See :meth:`Gate.advance`."""
        self.epochs.fill_(epochs)
        self.gate.advance(epochs)


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Rows and columns of ``exp(logits)`` [E, E] normalised in turn, in logarithms (Sinkhorn and Knopp 1967).

    Example:
        >>> sinkhorn(torch.tensor([[0.0, 100.0], [0.0, 0.0]]), 20).round().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    for _ in range(iterations):
        logits = logits.log_softmax(dim=1).log_softmax(dim=0)
    return logits.exp()
