"""A small TIGER on sequences whose next item is a function of the last one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embeddings.semantic_id.codes import SemanticCodes
from embeddings.semantic_id.indexing import random_codes
from recsys.mlp import Mlp
from recsys.models.dense_head import DenseHead, DenseSettings
from recsys.models.t5 import T5, T5Shape
from recsys.models.tiger import Reading, Tiger
from recsys.rng import generator
from recsys.sequences import Sequences

ITEMS = 30
SMALL = T5Shape(dim=16, layers=2, heads=2, head_dim=8, inner=32)


def codes(items: int = ITEMS) -> SemanticCodes:
    """Three levels, with prefixes that several items share and prefixes that no item has."""
    return random_codes(items, (4, 4, 4), generator(0, "codes"))


def histories(users: int = 9, items: int = ITEMS) -> Sequences:
    """Of 0 to 8 events, repeats among them."""
    rng = np.random.default_rng(1)
    events = np.repeat(np.arange(users), np.arange(users))
    return Sequences.of_events(events, rng.integers(0, items, len(events)), users)


def tiger(
    *, beam: int = ITEMS, reading: Reading | None = None, dropout: float = 0.0, dense: DenseHead | None = None
) -> Tiger:
    draws = generator(0, "init")
    reading = reading or Reading(max_items=4, user_tokens=3)
    return Tiger(codes(), histories(), SMALL, reading, beam=beam, dropout=dropout, dense=dense, generator=draws)


def head(settings: DenseSettings, content: Tensor | None = None, *, dim: int = 16, max_items: int = 4) -> DenseHead:
    """With places that are not 0, over random content of 5 columns."""
    draws = generator(0, "dense")
    if content is None:
        content = torch.from_numpy(draws.standard_normal((ITEMS, 5), dtype=np.float32))
    made = DenseHead(content, Mlp((content.shape[1], dim), draws), settings, max_items=max_items)
    with torch.no_grad():
        made.places.copy_(torch.from_numpy(draws.standard_normal((max_items, dim), dtype=np.float32)))
    return made


def plain_encoder(model: T5, embedded: Tensor) -> Tensor:
    """The encoder by its equations, [S, D] of embedded tokens [S, D]."""
    p, shape, memory = dict(model.named_parameters()), model.shape, embedded
    for layer in range(shape.layers):
        name = f"encoder.layers.{layer}"
        memory = _attend(p, f"{name}.own", memory, _norm(p, f"{name}.norm_own", memory), "encoder", shape)
        memory = _feed(p, name, memory)
    return _norm(p, "encoder.norm", memory)


def plain_logits(model: T5, read: Tensor, written: Tensor) -> Tensor:
    """T5 by its equations, logits [L, V] for tokens [S] and [L], token by token and head by head."""
    return plain_decoder(model, plain_encoder(model, model.embedding[read]), written)


def plain_decoder(model: T5, memory: Tensor, written: Tensor) -> Tensor:
    """The decoder by its equations, logits [L, V] of tokens [L] after an encoder's output [S, D]."""
    p, shape = dict(model.named_parameters()), model.shape
    hidden = p["embedding"][written]
    for layer in range(shape.layers):
        name = f"decoder.layers.{layer}"
        hidden = _attend(p, f"{name}.own", hidden, _norm(p, f"{name}.norm_own", hidden), "decoder", shape)
        hidden = _attend(p, f"{name}.cross", hidden, memory, "", shape)
        hidden = _feed(p, name, hidden)
    return _norm(p, "decoder.norm", hidden) @ p["embedding"].T / shape.dim**0.5


def _attend(p: dict[str, Tensor], name: str, hidden: Tensor, known: Tensor, stack: str, shape: T5Shape) -> Tensor:
    out = []
    normed = _norm(p, name.replace(".own", ".norm_own").replace(".cross", ".norm_cross"), hidden)
    for row in range(len(hidden)):
        heads = []
        last = row + 1 if stack == "decoder" else len(known)
        for head in range(shape.heads):
            part = slice(head * shape.head_dim, (head + 1) * shape.head_dim)
            query = p[f"{name}.query.weight"][part] @ normed[row]
            scores = torch.stack(
                [
                    query @ (p[f"{name}.key.weight"][part] @ known[place])
                    + (p[f"{stack}.positions"][bucket(place - row, causal=stack == "decoder"), head] if stack else 0)
                    for place in range(last)
                ]
            )
            values = known[:last] @ p[f"{name}.value.weight"][part].T
            heads.append(scores.softmax(0) @ values)
        out.append(p[f"{name}.output.weight"] @ torch.cat(heads))
    return hidden + torch.stack(out)


def bucket(distance: int, *, causal: bool) -> int:
    """Raffel et al. 2020, section 2.1: 32 buckets, half of them exact, the rest logarithmic up to 128."""
    half = 32 if causal else 16
    offset = half if not causal and distance > 0 else 0
    far = max(-distance, 0) if causal else abs(distance)
    exact = half // 2
    if far < exact:
        return offset + far
    grown = exact + int(np.log(far / exact) / np.log(128 / exact) * (half - exact) + 1e-6)
    return offset + min(grown, half - 1)


def _feed(p: dict[str, Tensor], name: str, hidden: Tensor) -> Tensor:
    inner = functional.relu(_norm(p, f"{name}.norm_feed", hidden) @ p[f"{name}.inner.weight"].T)
    return hidden + inner @ p[f"{name}.outer.weight"].T


def _norm(p: dict[str, Tensor], name: str, hidden: Tensor) -> Tensor:
    return hidden / (hidden.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"]
