"""The dense part of a tower."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Mlp(nn.Module):
    """Linear layers with ReLU between them; the last one has none.

    Args:
        widths: of the input, the hidden layers and the output; at least two.
        generator: draws the weights, normal with variance 2 / fan-in (He et al. 2015, eq. 10; 1 / fan-in for the last
            layer); biases are 0.

    Raises:
        ValueError: Fewer than two widths, or one below 1.
    """

    def __init__(self, widths: Sequence[int], generator: np.random.Generator) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"an Mlp needs at least two widths >= 1, got {list(widths)}")
        self.widths = tuple(widths)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for place, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=2):
            deviation = math.sqrt((1 if place == len(widths) else 2) / fan_in)
            drawn = generator.standard_normal((fan_out, fan_in), dtype=np.float32) * np.float32(deviation)
            self.weights.append(nn.Parameter(torch.from_numpy(drawn)))
            self.biases.append(nn.Parameter(torch.zeros(fan_out)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Float32 [n, widths[0]] to [n, widths[-1]]."""
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True), start=1):
            inputs = functional.linear(inputs, weight, bias)
            if place < len(self.weights):
                inputs = functional.relu(inputs)
        return inputs
