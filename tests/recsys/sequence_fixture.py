"""Small sequence models, and an independent encoder of one sequence at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, build_table
from embeddings.tables.table import Table
from recsys.models.hstu import HstuEncoder
from recsys.models.sasrec import SasRecEncoder
from recsys.models.sequence_model import Encoder, SequenceModel
from recsys.rng import generator
from recsys.sequences import Sequences


def full_table(items: int, dim: int, std: float = 0.5, lr: float = 0.01) -> Table:
    id_map = IdMap(np.arange(items)[:, None], items + 1, items, "full")
    return build_table(
        id_map, dim, optimizer=OptimizerSpec("adam", lr=lr), init_std=std, generator=generator(0, "init", "items")
    )


def random_sequences(users: int, items: int, longest: int) -> Sequences:
    """Users 0, 1, 2 have 0, 1 and ``longest`` events, the others any number."""
    draw = np.random.default_rng(3)
    lengths = draw.integers(0, longest + 1, users)
    lengths[:3] = 0, 1, longest
    who = np.repeat(np.arange(users), lengths)
    times = np.sort(draw.integers(0, 10**6, len(who)))
    return Sequences.of_events(who, draw.integers(0, items, len(who)), users, times)


def sasrec(dropout: float = 0.0, max_length: int = 20, heads: int = 2, dim: int = 8) -> SasRecEncoder:
    encoder = SasRecEncoder(
        dim, layers=2, heads=heads, max_length=max_length, dropout=dropout, generator=generator(0, "init", "encoder")
    )
    perturb(encoder)
    return encoder


def hstu(*, timed: bool = True) -> HstuEncoder:
    encoder = HstuEncoder(
        8, layers=2, heads=2, max_length=20, dropout=0.0, timed=timed, init_std=0.5, generator=generator(0, "encoder")
    )
    perturb(encoder)
    return encoder


@torch.no_grad()
def perturb(encoder: Encoder) -> None:
    """Move gains and biases away from 1 and 0, so that a forgotten one shows."""
    for name, parameter in encoder.named_parameters():
        if parameter.ndim == 1:
            noise = torch.from_numpy(generator(1, name).standard_normal(parameter.shape, dtype=np.float32))
            parameter.add_(0.3 * noise)


def toy(encoder: Encoder, users: int = 12, items: int = 25, longest: int = 40) -> SequenceModel:
    return SequenceModel(full_table(items, 8), encoder, random_sequences(users, items, longest))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight + bias


def plain_sasrec(encoder: SasRecEncoder, vectors: Tensor, times: np.ndarray) -> Tensor:
    """The paper's equations for one sequence [L, D], event by event and head by head."""
    p = {name: value.double() for name, value in encoder.state_dict().items()}
    length, dim = vectors.shape
    width = dim // encoder.heads
    hidden = vectors.double() + p["positions"][:length].flip(0)
    for layer in range(len(encoder.layers)):
        own = {name.removeprefix(f"layers.{layer}."): v for name, v in p.items() if name.startswith(f"layers.{layer}.")}
        normed = layer_norm(hidden, own["norm_attention.weight"], own["norm_attention.bias"])
        query = normed @ own["query.weight"].T + own["query.bias"]
        both = hidden @ own["key_value.weight"].T + own["key_value.bias"]
        seen = torch.zeros_like(query)
        for event in range(length):
            for head in range(encoder.heads):
                part = slice(head * width, (head + 1) * width)
                keys, values = both[: event + 1, :dim][:, part], both[: event + 1, dim:][:, part]
                scores = keys @ query[event, part] / math.sqrt(width)
                weights = torch.exp(scores) / torch.exp(scores).sum()
                seen[event, part] = weights @ values
        attended = normed + seen @ own["output.weight"].T + own["output.bias"]
        fed = layer_norm(attended, own["norm_feed.weight"], own["norm_feed.bias"])
        inner = (fed @ own["inner.weight"].T + own["inner.bias"]).clamp(min=0)
        hidden = fed + inner @ own["outer.weight"].T + own["outer.bias"]
    return layer_norm(hidden, p["norm.weight"], p["norm.bias"])


def plain_hstu(encoder: HstuEncoder, vectors: Tensor, times: np.ndarray) -> Tensor:
    """Equations 1 to 3 for one sequence [L, D], pair of events by pair of events and head by head."""
    p = {name: value.double() for name, value in encoder.state_dict().items()}
    length, dim = vectors.shape
    width = dim // encoder.heads
    hidden = vectors.double() * math.sqrt(dim) + p["positions"][:length].flip(0)
    for layer in range(len(encoder.layers)):
        own = {name.removeprefix(f"layers.{layer}."): v for name, v in p.items() if name.startswith(f"layers.{layer}.")}
        normed = layer_norm(hidden, own["norm_input.weight"], own["norm_input.bias"])
        mixed = normed @ own["mixed.weight"].T + own["mixed.bias"]
        gate, value, query, key = (mixed / (1 + torch.exp(-mixed))).split(dim, 1)
        attended = torch.zeros_like(hidden)
        for late in range(length):
            for early in range(late + 1):
                bias = p["position_bias"][layer, late - early]
                if encoder.timed:
                    elapsed = max(1, int(times[late]) - int(times[early]))
                    bias = bias + p["time_bias"][layer, min(127, int(math.log(elapsed) / 0.301))]
                for head in range(encoder.heads):
                    part = slice(head * width, (head + 1) * width)
                    score = query[late, part] @ key[early, part] + bias
                    attended[late, part] += score / (1 + torch.exp(-score)) / encoder.max_length * value[early, part]
        gated = gate * layer_norm(attended, own["norm_attended.weight"], own["norm_attended.bias"])
        hidden = hidden + gated @ own["output.weight"].T + own["output.bias"]
    return layer_norm(hidden, p["norm.weight"], p["norm.bias"])
