"""SASRec (Kang and McAuley 2018, "Self-attentive sequential recommendation")."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.dropout import Dropout
from recsys.jagged_attention import Block, attend
from recsys.models.sequence_model import Encoder
from recsys.sequences import Batch


class SasRecEncoder(Encoder):
    r"""Causal self-attention with learned positions, counted from the end of the sequence.

    .. math::
        h &= drop(E_i + P) \\
        q &= LN(h), \quad a = q + Attention(q, h, h), \quad b = LN(a) \\
        h &= b + drop(drop(ReLU(b W_1 + b_1)) W_2 + b_2)

    for each layer, and a last LN (section III; the attention has an output matrix, as in public implementations).

    Args:
        dim: D.
        layers: blocks.
        heads: of the attention; must divide D.
        max_length: events that are read.
        dropout: share, for the inputs, the attention weights and both layers of the feed-forward network.
        init_std: of the positions' normal initialisation; matrices are Xavier normal, biases 0.
        generator: draws the parameters.

    Raises:
        ValueError: A parameter is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        layers: int = 2,
        heads: int = 1,
        max_length: int = 50,
        dropout: float = 0.2,
        init_std: float = 0.02,
        generator: np.random.Generator,
    ) -> None:
        super().__init__(dim, layers=layers, heads=heads, max_length=max_length, dropout=dropout)
        self.positions = nn.Parameter(normal((max_length, dim), init_std, generator))
        self.layers = nn.ModuleList(_Layer(dim, heads, generator) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def facts(self) -> dict[str, Any]:
        """See :class:`Encoder`."""
        return {"name": "sasrec", **super().facts()}

    def forward(self, items: Tensor, batch: Batch, parts: list[Block], dropout: Dropout) -> Tensor:
        """See :class:`Encoder`."""
        hidden = dropout(items + self.positions.index_select(0, torch.from_numpy(batch.from_end)))
        for layer in self.layers:
            hidden = layer(hidden, parts, dropout)
        normed: Tensor = self.norm(hidden)
        return normed


class _Layer(nn.Module):
    """One block of the encoder."""

    def __init__(self, dim: int, heads: int, generator: np.random.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value = linear(dim, dim, generator), linear(dim, 2 * dim, generator)
        self.output = linear(dim, dim, generator)
        self.inner, self.outer = linear(dim, dim, generator), linear(dim, dim, generator)

    def forward(self, hidden: Tensor, parts: list[Block], dropout: Dropout) -> Tensor:
        """Float [T, D] to the same shape."""
        query = self.norm_attention(hidden)

        def weigh(scores: Tensor, block: Block) -> Tensor:
            return dropout(scores.masked_fill(block.hidden(), -torch.inf).softmax(-1))

        width = query.shape[1] // self.heads
        split = (len(query), self.heads, width)
        key, value = (part.reshape(split) for part in self.key_value(hidden).chunk(2, 1))
        scaled = self.query(query).view(split) / math.sqrt(width)
        seen = attend(scaled, key, value, parts, weigh)
        fed = self.norm_feed(query + self.output(seen.reshape(query.shape)))
        inner = dropout(torch.relu(self.inner(fed)))
        whole: Tensor = fed + dropout(self.outer(inner))
        return whole


def normal(shape: tuple[int, ...], std: float, generator: np.random.Generator) -> Tensor:
    """Float32 of independent normal numbers, mean 0."""
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32) * np.float32(std))


def linear(inputs: int, outputs: int, generator: np.random.Generator) -> nn.Linear:
    """A linear layer, Xavier normal (Glorot and Bengio 2010) with biases 0."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(normal((outputs, inputs), math.sqrt(2 / (inputs + outputs)), generator))
        layer.bias.zero_()
    return layer
