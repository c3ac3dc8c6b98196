"""A small RPG, digits of different widths, with heads that are not the identity."""

from __future__ import annotations

import numpy as np
import torch

from embeddings.id_map import IdMap
from embeddings.semantic_id.codes import SemanticCodes
from embeddings.tables import OptimizerSpec, build_table
from recsys.models.rpg import Rpg
from recsys.rng import generator
from recsys.sequences import Sequences
from tests.recsys.sequence_fixture import random_sequences, sasrec

WIDTHS = (4, 3, 5)


def codes(items: int) -> SemanticCodes:
    """Random; the last two items have equal ones."""
    drawn = np.random.default_rng(4).integers(0, WIDTHS, (items, 3)).astype(np.int32)
    drawn[-1] = drawn[-2]
    return SemanticCodes(drawn, WIDTHS)


def rpg(
    histories: Sequences | None = None, items: int = 25, *, dropout: float = 0.0, std: float = 0.5, heads: float = 0.3,
    lr: float = 0.02, temperature: float = 0.2,
) -> Rpg:  # fmt: skip
    histories = random_sequences(12, items, 40) if histories is None else histories
    tokens = build_table(
        IdMap.identity(sum(WIDTHS)), 8, optimizer=OptimizerSpec("adam", lr=lr), init_std=std,
        generator=generator(0, "init", "tokens"),
    )  # fmt: skip
    model = Rpg(codes(items), tokens, sasrec(dropout), histories, temperature=temperature)
    with torch.no_grad():
        for name, part in model.heads.named_parameters():
            part.copy_(heads * torch.from_numpy(generator(1, name).standard_normal(part.shape, dtype=np.float32)))
    return model
