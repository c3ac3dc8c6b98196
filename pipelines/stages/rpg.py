"""The training of RPG, for the training stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.semantic_id.codes import SemanticCodes
from embeddings.tables import OptimizerSpec, build_table
from pipelines.config import Train
from pipelines.config_rpg import Rpg as RpgConfig
from pipelines.dataset import Dataset
from pipelines.stages.sequence import reading, seen_in, sequence_data
from pipelines.stages.training_facts import records, training_facts
from recsys.dense_adam import layer_bytes
from recsys.models.rpg import Rpg
from recsys.models.sasrec import SasRecEncoder
from recsys.rng import generator
from recsys.rpg_trainer import fit_rpg
from recsys.sequence_trainer import ReaderSettings
from recsys.sequences import Sequences
from recsys.settings import EpochRecord


def train(
    config: RpgConfig, settings: Train, codes: SemanticCodes, dataset: Dataset, seed: int, scratch: Path,
    on_epoch: Callable[[EpochRecord], None],
) -> tuple[Rpg, dict[str, Any], list[dict[str, Any]], dict[str, csr_array]]:  # fmt: skip
    """Fit an RPG.

    Returns:
        The model, facts for the report, the epochs as JSON-able mappings, and the interactions that each phase saw.
    """
    data = sequence_data(dataset, settings)
    model = build(config, codes, data.train, seed)
    loop = ReaderSettings(**reading(settings, config.optimizer.lr, config.augmentation))
    result = fit_rpg(model, data, loop, seed=seed, checkpoint_dir=scratch, on_epoch=on_epoch)
    table, layers = model.tokens.bytes(), layer_bytes(model, model.tokens.parameters())
    facts = training_facts(result, rows=model.tokens.num_rows, tables=table, layers=layers)
    return model, facts, records(result), seen_in(model, data, settings)


def build(config: RpgConfig, codes: SemanticCodes, histories: Sequences, seed: int) -> Rpg:
    """A model with freshly drawn parameters."""
    tokens = build_table(
        IdMap.identity(sum(codes.widths)),
        config.dim,
        optimizer=OptimizerSpec(**config.optimizer.model_dump()),
        init_std=config.init_std,
        generator=generator(seed, "init", "tokens"),
    )
    encoder = SasRecEncoder(
        config.dim,
        layers=config.layers,
        heads=config.heads,
        max_length=config.max_length,
        dropout=config.dropout,
        init_std=config.init_std,
        generator=generator(seed, "init", "encoder"),
    )
    return Rpg(codes, tokens, encoder, histories, temperature=config.temperature)
