"""What every gate of a mixture of experts offers, and the pieces that several are made of."""

from __future__ import annotations

import abc
import dataclasses

import torch
from torch import Tensor, nn

SMALLEST = 1e-30
"""A probability below it counts as it where a logarithm is taken, so that gradients stay finite."""


@dataclasses.dataclass(frozen=True)
class Routing:
    """The decision of a gate for B examples and E experts.

    Attributes:
        weights: float32 [B, E], not negative. An expert of weight 0 is not computed.
        penalty: float32 [], what the gate adds to the loss.
    """

    weights: Tensor
    penalty: Tensor


class Gate(nn.Module, abc.ABC):
    """A gate ``g`` of the mixture ``y = sum_i g_i(x) f_i(x)``.

    Args:
        num_experts: E, at least 1.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        if num_experts < 1:
            raise ValueError(f"a gate needs at least one expert, got {num_experts}")
        self.num_experts = num_experts

    @abc.abstractmethod
    def forward(self, inputs: Tensor, keys: Tensor) -> Routing:
        """Route examples.

        Args:
            inputs: float32 [B, D].
            keys: int64 [B], an id of each example, as its user; for gates that route by id.
        """

    @abc.abstractmethod
    def draw(self, generator: torch.Generator) -> None:
        """Draw the initial weights."""

    def advance(self, epochs: float) -> None:
        """Tell the time in epochs since the training began, before each of its steps; it is part of ``state_dict``."""


def check_k(k: int, num_experts: int) -> int:
    """``k`` if a gate of so many experts can choose as many.

    Raises:
        ValueError: It cannot.
    """
    if not 1 <= k <= num_experts:
        raise ValueError(f"k must lie in [1, {num_experts}], the number of experts, got {k}")
    return k


def smooth_step(values: Tensor, gamma: float) -> Tensor:
    """Cubic ``S`` from 0 at ``-gamma / 2`` to 1 at ``gamma / 2``, constant outside (Hazimeh et al. 2020, equation 3).

    Its value and its slope are exactly 0, or 1 and 0, outside, which is what lets a gate leave experts out and learn.

    Example:
        >>> smooth_step(torch.tensor([-1.0, -0.5, 0.0, 0.25, 2.0]), 1.0).tolist()
        [0.0, 0.0, 0.5, 0.84375, 1.0]
    """
    t = (values / gamma).clamp(-0.5, 0.5)
    return 0.5 + t * (1.5 - 2.0 * t * t)


def entropy(probabilities: Tensor) -> Tensor:
    """``-p ln p`` of each entry, 0 with slope 0 at p = 0."""
    found: Tensor = torch.special.entr(probabilities.clamp_min(SMALLEST))
    return found


def gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of the shape of ``like``."""
    return -torch.empty_like(like).exponential_(generator=generator).clamp_min(SMALLEST).log()


def draw_uniform(layer: nn.Linear, bound: float, generator: torch.Generator) -> None:
    """Weights and biases uniform in ``[-bound, bound]``."""
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
