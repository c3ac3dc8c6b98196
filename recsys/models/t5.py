"""The encoder-decoder transformer of T5 (Raffel et al. 2020, "Exploring the limits of transfer learning", section 2.1).

Layer norm without mean or bias, before each part; no biases; attention scores without a scale, plus a bias by relative
position that all layers of a stack share; the embedding is also the output matrix.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from recsys.dropout import Dropout
from recsys.models.sasrec import normal

_BUCKETS, _FARTHEST = 32, 128
_EPS = 1e-6
OFF = Dropout(0.0, None)
"""No dropout."""
KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each float [N, H, S, d]."""


@dataclasses.dataclass(frozen=True)
class T5Shape:
    """Sizes; the defaults are those of TIGER (Rajput et al. 2023, section 4).

    Attributes:
        dim: D, of the embedding and between the layers.
        layers: of the encoder, and of the decoder.
        heads: H.
        head_dim: d, numbers of a head; ``heads * head_dim`` need not be D.
        inner: width of the feed-forward networks.

    Raises:
        ValueError: A size is below 1.
    """

    dim: int = 128
    layers: int = 4
    heads: int = 6
    head_dim: int = 64
    inner: int = 1024

    def __post_init__(self) -> None:
        """Refuse empty layers."""
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"T5Shape.{name} must be at least 1, got {value}")


class T5(nn.Module):
    """Reads tokens and writes tokens of one vocabulary.

    Args:
        vocabulary: V, tokens.
        shape: sizes.
        generator: draws the parameters as T5 does.
    """

    def __init__(self, vocabulary: int, shape: T5Shape, generator: np.random.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(normal((vocabulary, shape.dim), 1.0, generator))
        self.encoder = _Stack(shape, generator, cross=False)
        self.decoder = _Stack(shape, generator, cross=True)

    def encode(self, tokens: Tensor, mask: Tensor, dropout: Dropout, beside: Tensor | None = None) -> Memory:
        """Read sequences.

        Args:
            tokens: int64 [B, S].
            mask: bool [B, S], True where there is a token; at least one in each row, and what follows is padding.
            dropout: switched off outside of training.
            beside: float [B, S, D] that is added to the tokens' embeddings.
        """
        embedded = self.embedding[tokens]
        hidden = dropout(embedded if beside is None else embedded + beside)
        apart = _hide(~mask[:, None, None, :], hidden.dtype)
        bias = self.encoder.bias(tokens.shape[1], causal=False) + apart
        for layer in self.encoder.each():
            hidden, _ = layer(hidden, bias, dropout)
        read = dropout(self.encoder.norm(hidden))
        last = read[torch.arange(len(read), device=read.device), mask.sum(1) - 1]
        return Memory([layer.cross.keys_values(read) for layer in self.decoder.each()], apart, last)

    def decode(self, tokens: Tensor, memory: Memory, dropout: Dropout) -> Tensor:
        """Logits float [B, L, V] of what follows each token, given those before it.

        Args:
            tokens: int64 [B, L], the start token first.
            memory: of the B sequences.
            dropout: switched off outside of training.
        """
        length = tokens.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        bias = self.decoder.bias(length, causal=True) + _hide(later, self.embedding.dtype)
        hidden = dropout(self.embedding[tokens])
        for layer, read in zip(self.decoder.each(), memory.layers, strict=True):
            hidden, _ = layer(hidden, bias, dropout, memory=(read, memory.bias))
        return self.logits(dropout(self.decoder.norm(hidden)))

    def logits(self, hidden: Tensor) -> Tensor:
        """Float [..., D] to [..., V], by the embedding."""
        return hidden / math.sqrt(self.shape.dim) @ self.embedding.T


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the decoder reads of B encoded sequences.

    Attributes:
        layers: keys and values of each decoder layer's cross-attention, float [B, H, S, d].
        bias: float [B, 1, 1, S], -inf where there is no token.
        last: float [B, D], the encoder's output at the last token.
    """

    layers: list[KeysValues]
    bias: Tensor
    last: Tensor


class Decoding:
    """Decoding one token at a time for several beams of each sequence, which share what was encoded.

    Args:
        model: the transformer.
        memory: of B sequences.
        length: tokens that will be written.
    """

    def __init__(self, model: T5, memory: Memory, length: int) -> None:
        self._model, self._memory = model, memory
        self._bias = model.decoder.bias(length, causal=True)
        self._past: list[KeysValues | None] = [None] * model.shape.layers
        self._written = 0

    def write(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Write one token for each beam.

        Args:
            tokens: int64 [B * W].
            parents: int64 [B * W], for each beam the one of the step before that it continues.

        Returns:
            Logits float32 [B * W, V] of the next token.
        """
        bias = self._bias[:, :, self._written : self._written + 1, : self._written + 1]
        hidden = self._model.embedding[tokens][:, None]
        for place, layer in enumerate(self._model.decoder.each()):
            past = self._past[place]
            kept = None if past is None else (past[0][parents], past[1][parents])
            read = (self._memory.layers[place], self._memory.bias)
            hidden, self._past[place] = layer(hidden, bias, OFF, memory=read, past=kept)
        self._written += 1
        return self._model.logits(self._model.decoder.norm(hidden[:, 0]))


class _Stack(nn.Module):
    """Layers with their bias by relative position."""

    def __init__(self, shape: T5Shape, generator: np.random.Generator, *, cross: bool) -> None:
        super().__init__()
        self.positions = nn.Parameter(normal((_BUCKETS, shape.heads), shape.dim**-0.5, generator))
        self.layers = nn.ModuleList(_Layer(shape, generator, cross=cross) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim, eps=_EPS)

    def each(self) -> Iterator[_Layer]:
        """The layers, the first one first."""
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            yield layer

    def bias(self, length: int, *, causal: bool) -> Tensor:
        """Float [1, H, length, length] by where the column stands from the row."""
        place = torch.arange(length, device=self.positions.device)
        buckets = relative_buckets(place[None, :] - place[:, None], causal=causal)
        return self.positions[buckets].permute(2, 0, 1)[None]


class _Layer(nn.Module):
    """Self-attention, cross-attention in a decoder, and a feed-forward network, each added to what came in."""

    def __init__(self, shape: T5Shape, generator: np.random.Generator, *, cross: bool) -> None:
        super().__init__()
        self.norm_own, self.own = nn.RMSNorm(shape.dim, eps=_EPS), _Attention(shape, generator)
        if cross:
            self.norm_cross, self.cross = nn.RMSNorm(shape.dim, eps=_EPS), _Attention(shape, generator)
        self.norm_feed = nn.RMSNorm(shape.dim, eps=_EPS)
        self.inner = matrix(shape.dim, shape.inner, shape.dim**-0.5, generator)
        self.outer = matrix(shape.inner, shape.dim, shape.inner**-0.5, generator)

    def forward(
        self, hidden: Tensor, bias: Tensor, dropout: Dropout, *,
        memory: tuple[KeysValues, Tensor] | None = None, past: KeysValues | None = None,
    ) -> tuple[Tensor, KeysValues]:  # fmt: skip
        """One layer.

        Args:
            hidden: float [N, T, D].
            bias: of the self-attention, float [1 or N, H, T, tokens].
            dropout: of each part's output and within.
            memory: keys and values float [B, H, S, d] with their bias; N / B rows of ``hidden`` share each.
            past: keys and values of the N rows' tokens before these.

        Returns:
            Float [N, T, D], and the keys and values of all tokens until now.
        """
        normed = self.norm_own(hidden)
        known = self.own.keys_values(normed)
        if past is not None:
            known = torch.cat([past[0], known[0]], 2), torch.cat([past[1], known[1]], 2)
        hidden = hidden + dropout(self.own(normed, known, bias, dropout))
        if memory is not None:
            read, apart = memory
            shared = self.norm_cross(hidden).view(len(read[0]), -1, hidden.shape[2])
            hidden = hidden + dropout(self.cross(shared, read, apart, dropout)).view(hidden.shape)
        inner = dropout(torch.relu(self.inner(self.norm_feed(hidden))))
        return hidden + dropout(self.outer(inner)), known


class _Attention(nn.Module):
    """Multi-head attention without biases and without a scale."""

    def __init__(self, shape: T5Shape, generator: np.random.Generator) -> None:
        super().__init__()
        self.heads, wide = shape.heads, shape.heads * shape.head_dim
        self.query = matrix(shape.dim, wide, (shape.dim * shape.head_dim) ** -0.5, generator)
        self.key = matrix(shape.dim, wide, shape.dim**-0.5, generator)
        self.value = matrix(shape.dim, wide, shape.dim**-0.5, generator)
        self.output = matrix(wide, shape.dim, wide**-0.5, generator)

    def keys_values(self, hidden: Tensor) -> KeysValues:
        """Of float [N, S, D]."""
        return self._split(self.key(hidden)), self._split(self.value(hidden))

    def forward(self, hidden: Tensor, known: KeysValues, bias: Tensor, dropout: Dropout) -> Tensor:
        """Float [N, T, D] to the same shape; ``bias`` broadcasts to [N, H, T, S]."""
        keys, values = known
        scores = self._split(self.query(hidden)) @ keys.transpose(2, 3) + bias
        mixed = dropout(scores.softmax(-1)) @ values
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output

    def _split(self, wide: Tensor) -> Tensor:
        return wide.view(*wide.shape[:2], self.heads, -1).transpose(1, 2)


def relative_buckets(distance: Tensor, *, causal: bool) -> Tensor:
    """Bucket int64 of a signed distance, key minus query: exact when near, logarithmic to 128, then the last one.

    Args:
        distance: int64 of any shape.
        causal: what comes later has no buckets, and shares that of distance 0; otherwise half of them.
    """
    half = _BUCKETS if causal else _BUCKETS // 2
    offset = torch.zeros_like(distance) if causal else (distance > 0) * half
    far = -distance.clamp(max=0) if causal else distance.abs()
    exact = half // 2
    grown = torch.log(far.clamp(min=1).float() / exact) / math.log(_FARTHEST / exact) * (half - exact)
    return offset + torch.where(far < exact, far, (exact + grown.long()).clamp(max=half - 1))


def matrix(inputs: int, outputs: int, std: float, generator: np.random.Generator) -> nn.Linear:
    """A linear map without bias, normal with this standard deviation."""
    layer = nn.Linear(inputs, outputs, bias=False, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(normal((outputs, inputs), std, generator))
    return layer


def _hide(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where shown and -inf where hidden."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, -torch.inf)
