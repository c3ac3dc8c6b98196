"""The dense part of a tower."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings.sparsity import Sparsity
from embeddings.tables.sparse_table import SparseTable
from embeddings.tables.sparse_weights import SparseWeights, draw_layer


class Mlp(nn.Module):
    """Linear layers with ReLU between them; the last one has none.

    Args:
        widths: of the input, the hidden layers and the output; at least two.
        generator: draws the weights, normal with variance 2 / fan-in (He et al. 2015, eq. 10; 1 / fan-in for the last
            layer); biases are 0.
        sparsities: how the weights of each layer are stored; None for whole layers.

    Raises:
        ValueError: Fewer than two widths, or one below 1, or not one sparsity for each layer.
    """

    weights: nn.ParameterList | SparseWeights

    def __init__(
        self, widths: Sequence[int], generator: np.random.Generator, sparsities: Sequence[Sparsity] | None = None
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"an Mlp needs at least two widths >= 1, got {list(widths)}")
        if sparsities is not None and len(sparsities) != len(widths) - 1:
            raise ValueError(f"an Mlp of {len(widths) - 1} layers needs a sparsity for each, got {len(sparsities)}")
        self.widths = tuple(widths)
        shapes = layer_shapes(widths)
        gains = [2.0] * (len(shapes) - 1) + [1.0]
        deviations = [math.sqrt(gain / fan_in) for gain, (_, fan_in) in zip(gains, shapes, strict=True)]
        if sparsities is None:
            drawn = (_normal(shape, std, generator) for shape, std in zip(shapes, deviations, strict=True))
            self.weights = nn.ParameterList(drawn)
        else:
            parts = zip(shapes, sparsities, deviations, strict=True)
            self.weights = SparseWeights(
                [draw_layer(*shape, sparsity, std=std, generator=generator) for shape, sparsity, std in parts]
            )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(fan_out)) for fan_out, _ in shapes)

    @property
    def sparse_layers(self) -> list[SparseTable]:
        """The stored weights of each layer, which have an optimizer of their own; none where the layers are whole."""
        return self.weights.tables if isinstance(self.weights, SparseWeights) else []

    def dense_parameters(self) -> dict[str, nn.Parameter]:
        """All that is no :attr:`sparse_layers`, by name."""
        skipped = "weights." if self.sparse_layers else ()
        return {name: part for name, part in self.named_parameters() if not name.startswith(skipped)}

    def layer_weights(self) -> list[Tensor]:
        """The matrix of each layer, float32 [fan_out, fan_in], differentiable."""
        return list(self.weights)

    def use_sparse(self, weights: SparseWeights) -> None:
        """Let these stand for the layers' weights; for a network that is not trained any more."""
        self.weights = weights

    def forward(self, inputs: Tensor) -> Tensor:
        """Float32 [n, widths[0]] to [n, widths[-1]]."""
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True), start=1):
            inputs = functional.linear(inputs, weight, bias)
            if place < len(self.biases):
                inputs = functional.relu(inputs)
        return inputs


def layer_shapes(widths: Sequence[int]) -> list[tuple[int, int]]:
    """Fan-out and fan-in of the layers between these widths."""
    return [(fan_out, fan_in) for fan_in, fan_out in itertools.pairwise(widths)]


def _normal(shape: tuple[int, int], std: float, generator: np.random.Generator) -> nn.Parameter:
    drawn = generator.standard_normal(shape, dtype=np.float32) * np.float32(std)
    return nn.Parameter(torch.from_numpy(drawn))
