"""Small multi-task rankers, and events that they can learn."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import Field, build_collection
from recsys.rankers.gates.build import GateName, GateSpec
from recsys.rankers.gates.dense_to_sparse import Annealing
from recsys.rankers.multi_task import MultiTaskRanker, MultiTaskSpec, Task, build_multi_task
from recsys.rankers.ranker import Tower
from recsys.rankers.training import RankingSettings
from recsys.settings import Selection
from recsys.task_events import TaskEvents

WATCH, RATING = Task("watch", "binary", 0.3), Task("rating", "regression", 0.7, mean=3.0, deviation=2.0)
SPEC = MultiTaskSpec((WATCH, RATING), GateSpec("comet", gamma=0.5), 4, 0, Tower((8,)), Tower((8,)))
NAMES: tuple[GateName, ...] = ("softmax", "top_k", "hash", "dselect_k", "comet", "dense_to_sparse")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def events(count: int, seed: int) -> TaskEvents:
    """Watched where user and item have the same parity; the rating, known for the watched, is 1 or 5 by the user."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 8, (count, 2)).astype(np.int32)
    watched = ids.sum(1) % 2 == 0
    labels = np.stack([watched, np.where(watched, 1.0 + 4.0 * (ids[:, 0] >= 4), np.nan)], axis=1)
    return TaskEvents(ids, labels.astype(np.float32), ("user", "item"), ("watch", "rating"))


def model(spec: MultiTaskSpec = SPEC, seed: int = 0) -> MultiTaskRanker:
    fields = [Field(name, IdMap(np.arange(8)[:, None], 9, 8, "full"), 4) for name in ("user", "item")]
    optimizer = OptimizerSpec("adam", lr=0.01)
    tables = build_collection(fields, optimizer=optimizer, init_std=0.3, generator=np.random.default_rng(seed))
    return build_multi_task(spec, tables, seed=seed)


def gated(name: GateName, **changes: Any) -> MultiTaskSpec:
    return dataclasses.replace(SPEC, gate=GateSpec(name, gamma=0.5, annealing=Annealing(1.0, 2.0)), **changes)


def settings(**changes: Any) -> RankingSettings:
    chosen = {"batch_size": 64, "epochs": 8, "lr": 0.01, "table_lr": 0.01, "checkpoint_minutes": 0.0}
    return RankingSettings(**chosen | {"selection": Selection("neg_loss", 1, 8, refit=False)} | changes)
