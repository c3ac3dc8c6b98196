"""The training of a sequence model, for the training stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.spectral import Matrix
from embeddings.tables import Table, build_table
from pipelines.config import Train
from pipelines.config_sequence import Augmentation as AugmentationConfig
from pipelines.config_sequence import Hstu, Sasrec
from pipelines.dataset import Dataset
from pipelines.item_features import item_features
from pipelines.stages.build import sampling
from pipelines.stages.sparse import optimizer_spec
from pipelines.stages.training_facts import records, training_facts
from recsys.checkpoint import Reader
from recsys.dense_adam import layer_bytes
from recsys.mlp import Mlp
from recsys.models.content_items import ContentItems
from recsys.models.hstu import HstuEncoder
from recsys.models.sasrec import SasRecEncoder
from recsys.models.sequence_model import Encoder, SequenceModel
from recsys.rng import generator
from recsys.sequence_augmentation import Augmentation
from recsys.sequence_losses import SequenceLoss
from recsys.sequence_trainer import SequenceData, SequenceSettings, fit_sequences
from recsys.sequences import Sequences
from recsys.settings import EpochRecord, Selection


def train(
    config: Sasrec, settings: Train, item_map: IdMap, dataset: Dataset, seed: int, scratch: Path,
    on_epoch: Callable[[EpochRecord], None],
) -> tuple[SequenceModel, dict[str, Any], list[dict[str, Any]], dict[str, csr_array]]:  # fmt: skip
    """Fit a sequence model.

    Returns:
        The model, facts for the report, the epochs as JSON-able mappings, and the interactions that each phase saw.
    """
    data = sequence_data(dataset, settings)
    content = None
    if config.content is not None:
        content = item_features(dataset, config.content.features, seed, share_empty=True)
    model = build(config, item_map, data.train, seed, content)
    result = fit_sequences(
        model, data, fit_settings(config, settings), seed=seed, checkpoint_dir=scratch, on_epoch=on_epoch
    )
    table, layers = model.items.bytes(), layer_bytes(model, model.items.parameters())
    facts = training_facts(result, rows=model.items.num_rows, tables=table, layers=layers)
    return model, facts, records(result), seen_in(model, data, settings)


def seen_in(model: Reader, data: SequenceData, settings: Train) -> dict[str, csr_array]:
    """The interactions that each phase of a finished training saw."""
    fitted = {"select": data.train.matrix(model.num_items)}
    if settings.refits:
        fitted["refit"] = model.histories.matrix(model.num_items)
    return fitted


def sequence_data(dataset: Dataset, settings: Train) -> SequenceData:
    """What is trained on, and what selects the epoch; the finished model reads train and validation."""
    known = dataset.sequences("train", "valid")
    if settings.selected_on == "test":
        return SequenceData(known, dataset.matrix("test"), known)
    return SequenceData(dataset.sequences("train"), dataset.matrix("valid"), known)


def build(
    config: Sasrec, item_map: IdMap, histories: Sequences, seed: int, content: Matrix | None = None
) -> SequenceModel:
    """A sequence model with freshly drawn parameters, over a table, or over ``content`` float32 [items, F]."""
    items = _items(config, item_map, seed, content)
    shape: Any = {"layers": config.layers, "heads": config.heads, "max_length": config.max_length}
    draws: Any = {"init_std": config.init_std, "generator": generator(seed, "init", "encoder")}
    match config:
        case Hstu():
            timed = histories.times is not None
            encoder: Encoder = HstuEncoder(config.dim, **shape, dropout=config.dropout, timed=timed, **draws)
        case _:
            encoder = SasRecEncoder(config.dim, **shape, dropout=config.dropout, **draws)
    return SequenceModel(items, encoder, histories, similarity=config.similarity)


def _items(config: Sasrec, item_map: IdMap, seed: int, content: Matrix | None) -> Table | ContentItems:
    draws = generator(seed, "init", "items")
    if content is not None:
        assert config.content is not None
        network = Mlp((content.shape[1], *config.content.hidden, config.dim), draws)
        return ContentItems(torch.from_numpy(content), network, lr=config.optimizer.lr)
    return build_table(
        item_map,
        config.dim,
        backend=config.backend,
        optimizer=optimizer_spec(config),
        init_std=config.init_std,
        generator=draws,
        dtype=config.table_dtype,
    )


def fit_settings(config: Sasrec, train: Train) -> SequenceSettings:
    """The plain arguments of the trainer."""
    return SequenceSettings(
        loss=SequenceLoss(**config.loss.model_dump()),
        negatives=sampling(config.negatives),
        **reading(train, config.dense_lr or config.optimizer.lr, config.augmentation),
    )


def reading(train: Train, lr: float, augmentation: AugmentationConfig) -> dict[str, Any]:
    """The arguments of :class:`recsys.sequence_trainer.ReaderSettings`."""
    return {
        "lr": lr,
        "batch_size": train.batch_size,
        "epochs": train.epochs,
        "selection": Selection(
            train.selection, train.eval_every_epochs, train.patience, refit=train.refits, max_minutes=train.max_minutes
        ),
        "gradient_clip_norm": train.gradient_clip_norm,
        "checkpoint_minutes": train.checkpoint_minutes,
        "augmentation": Augmentation(**augmentation.model_dump()),
    }
