"""The job that ours and FuxiCTR do: DCN-V2 of one shape on the same events."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import Field, build_collection
from embeddings.tables.spec import OptimizerName
from recsys.event_batch import Events
from recsys.rankers.build import RankerSpec, build_ranker
from recsys.rankers.dcn_v2 import Cross
from recsys.rankers.ranker import Ranker, Tower
from recsys.rankers.training import Precision, RankingSettings
from recsys.rng import generator
from recsys.settings import Selection

FUXICTR = ["torch==2.13.0", "fuxictr==2.3.10", "numpy>=2", "pandas", "pyarrow"]
PEER = "FuxiCTR 2.3.10"
SPLITS = ("train", "valid", "test")
OURS_ONLY = ("table_optimizer", "init_std", "id_dropout")
"""Fields of :class:`Job` that FuxiCTR does not read."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Shape and training of a parallel DCN-V2, the same on both sides.

    Attributes:
        dim: columns of every table.
        layers: cross layers.
        hidden: widths of the tower.
        dropout: of the tower.
        batch_norm: of the tower.
        lr: of Adam, for layers and tables.
        weight_decay: L2 on the tables, on the rows that the optimizer moves.
        batch_size: events of a step.
        table_optimizer: of our tables: "lazy_adam" moves the rows of a batch, "adam" all rows in every step, as
            FuxiCTR's does.
        init_std: of our tables; FuxiCTR's is 1e-4, and it clips gradients, ours does not.
        id_dropout: of user and item in our training; FuxiCTR has none.
        seed: of both trainings.
    """

    dim: int = 16
    layers: int = 3
    hidden: tuple[int, ...] = (400, 400, 400)
    dropout: float = 0.0
    batch_norm: bool = False
    lr: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 4096
    table_optimizer: OptimizerName = "lazy_adam"
    init_std: float = 1e-4
    id_dropout: float = 0.0
    seed: int = 0

    def request(self) -> dict[str, Any]:
        """For the worker."""
        return dataclasses.asdict(self) | {"hidden": list(self.hidden)}

    def ranker(self, sizes: Mapping[str, int]) -> Ranker:
        """Ours, freshly drawn; ``sizes`` are the ids of each field, beside which a table has an unseen row."""
        fields = [Field(name, IdMap.identity(size), self.dim) for name, size in sizes.items()]
        optimizer = OptimizerSpec(self.table_optimizer, lr=self.lr, weight_decay=self.weight_decay)
        draws = generator(self.seed, "init", "tables")
        tables = build_collection(fields, optimizer=optimizer, init_std=self.init_std, generator=draws)
        tower = Tower(self.hidden, self.dropout, self.batch_norm)
        return build_ranker(RankerSpec("dcn_v2", tower, Cross(self.layers)), tables, 0, seed=self.seed)

    def settings(self, epochs: int, precision: Precision = "float32") -> RankingSettings:
        """Of our training; early stopping and its patience are those of FuxiCTR."""
        selection = Selection("auc", 1, patience=2, refit=False)
        drop = dict.fromkeys(("user", "item"), self.id_dropout) if self.id_dropout else {}
        return RankingSettings(
            self.batch_size, epochs, self.lr, self.lr, id_dropout=drop, selection=selection, precision=precision
        )


def write_splits(directory: Path, splits: Mapping[str, Events], sizes: Mapping[str, int]) -> None:
    """Write FuxiCTR's ``feature_map.json`` and an npz for each split, a column for each field; no numeric fields."""
    features = [{name: {"type": "categorical", "vocab_size": size + 1, "source": ""}} for name, size in sizes.items()]
    facts = {"dataset_id": "events", "num_fields": len(sizes), "labels": ["label"], "features": features}
    (directory / "feature_map.json").write_text(json.dumps(facts))
    for split in SPLITS:
        events = splits[split]
        columns = {name: events.column(name) for name in sizes}
        np.savez(directory / f"{split}.npz", **columns, label=events.labels.astype(np.int32))
