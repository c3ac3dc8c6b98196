"""HSTU (Zhai et al. 2024, "Actions speak louder than words"), as a retriever."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.dropout import Dropout
from recsys.jagged_attention import Block, attend
from recsys.models.sasrec import linear, normal
from recsys.models.sequence_model import Encoder
from recsys.sequences import Batch

TIME_BUCKETS = 128
_BUCKET_LOG = 0.301


class HstuEncoder(Encoder):
    r"""Pointwise attention with a bias by relative position and by elapsed time, gated.

    .. math::
        U, V, Q, K &= SiLU(LN(x) W) \\
        A &= SiLU(Q K^T + b_{position} + b_{time}) / n \\
        x &= x + drop(U \odot LN(A V)) W_o + b_o

    for each layer, with A causal and n = ``max_length``; the elapsed time t between two events has the bucket
    ``floor(ln(max(1, t)) / 0.301)`` of 128 (equations 1 to 3, public implementation). The time is that between
    the events themselves, so that nothing of the request need be known. Without times there is no time bias.

    Args:
        dim: D.
        layers: blocks.
        heads: of the attention; must divide D.
        max_length: events that are read.
        dropout: share, for the inputs and the gated values.
        timed: whether the sequences have times.
        init_std: of the normal initialisation of positions and biases; matrices are Xavier normal.
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
        timed: bool = False,
        init_std: float = 0.02,
        generator: np.random.Generator,
    ) -> None:
        super().__init__(dim, layers=layers, heads=heads, max_length=max_length, dropout=dropout)
        self.timed = timed
        self.positions = nn.Parameter(normal((max_length, dim), init_std, generator))
        self.position_bias = nn.Parameter(normal((layers, max_length), init_std, generator))
        self.time_bias = nn.Parameter(normal((layers, TIME_BUCKETS if timed else 0), init_std, generator))
        self.layers = nn.ModuleList(_Layer(dim, heads, max_length, generator) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def facts(self) -> dict[str, Any]:
        """See :class:`Encoder`."""
        return {"name": "hstu", **super().facts(), "timed": self.timed}

    def forward(self, items: Tensor, batch: Batch, parts: list[Block], dropout: Dropout) -> Tensor:
        """See :class:`Encoder`.

        Raises:
            ValueError: The encoder knows times and the batch has none.
        """
        if self.timed and batch.times is None:
            raise ValueError("this HSTU reads the times of events, but the sequences have none; build it timed=False")
        hidden = dropout(
            items * math.sqrt(items.shape[1]) + self.positions.index_select(0, torch.from_numpy(batch.from_end))
        )
        apart = {block.tokens.start: self._apart(block, batch) for block in parts}
        for number, layer in enumerate(self.layers):

            def bias(block: Block, number: int = number) -> Tensor:
                steps, buckets = apart[block.tokens.start]
                found = _at(self.position_bias[number], steps)
                return found if buckets is None else found + _at(self.time_bias[number], buckets)[:, None]

            hidden = layer(hidden, parts, bias, dropout)
        normed: Tensor = self.norm(hidden)
        return normed

    def _apart(self, block: Block, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """How many events [L, L], and which bucket of time [count, L, L] or None, lie between two events."""
        places = torch.arange(block.length)
        steps = (places[:, None] - places[None, :]).clamp(min=0)
        if not self.timed:
            return steps, None
        assert batch.times is not None
        times = block.pad(torch.from_numpy(batch.times[block.tokens]))
        elapsed = (times[:, :, None] - times[:, None, :]).clamp(min=1).double()
        buckets = (elapsed.log() / _BUCKET_LOG).long().clamp(max=TIME_BUCKETS - 1)
        return steps, buckets


def _at(values: Tensor, places: Tensor) -> Tensor:
    """``values[places]``, whose backward on several threads adds in any order; that of ``index_select`` does not."""
    return values.index_select(0, places.reshape(-1)).view(places.shape)


class _Layer(nn.Module):
    """One block of the encoder."""

    def __init__(self, dim: int, heads: int, max_length: int, generator: np.random.Generator) -> None:
        super().__init__()
        self.heads, self.max_length = heads, max_length
        self.norm_input, self.norm_attended = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixed, self.output = linear(dim, 4 * dim, generator), linear(dim, dim, generator)

    def forward(self, hidden: Tensor, parts: list[Block], bias: Callable[[Block], Tensor], dropout: Dropout) -> Tensor:
        """Float [T, D] to the same shape; ``bias`` gives a block's [L, L] or [count, 1, L, L]."""

        def weigh(scores: Tensor, block: Block) -> Tensor:
            weights = functional.silu(scores + bias(block)) / self.max_length
            return weights.masked_fill(block.hidden(), 0.0)

        gate, value, query, key = functional.silu(self.mixed(self.norm_input(hidden))).chunk(4, 1)
        split = (len(hidden), self.heads, -1)
        attended = attend(query.reshape(split), key.reshape(split), value.reshape(split), parts, weigh)
        gated = dropout(gate * self.norm_attended(attended.reshape(hidden.shape)))
        whole: Tensor = hidden + self.output(gated)
        return whole
