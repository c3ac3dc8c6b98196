"""The training of a generative retriever, for the training stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from scipy.sparse import csr_array

from embeddings.semantic_id.codes import SemanticCodes
from embeddings.spectral import Matrix
from embeddings.tables.spec import TableBytes
from pipelines.config import Train
from pipelines.config_semantic import Features, SemanticIds
from pipelines.config_tiger import Tiger as TigerConfig
from pipelines.dataset import Dataset
from pipelines.errors import DataError
from pipelines.item_features import features_hash, item_features
from pipelines.stages.sequence import seen_in, sequence_data
from pipelines.stages.training_facts import records, training_facts
from recsys.dense_adam import layer_bytes
from recsys.mlp import Mlp
from recsys.models.dense_head import DenseHead, DenseSettings
from recsys.models.t5 import T5Shape
from recsys.models.tiger import Reading, Tiger
from recsys.rng import generator
from recsys.sequences import Sequences
from recsys.settings import EpochRecord, Selection
from recsys.tiger_trainer import TigerSettings, fit_tiger


def train(
    config: TigerConfig, settings: Train, codes: SemanticCodes, dataset: Dataset, seed: int, scratch: Path,
    on_epoch: Callable[[EpochRecord], None],
) -> tuple[Tiger, dict[str, Any], list[dict[str, Any]], dict[str, csr_array]]:  # fmt: skip
    """Fit a TIGER.

    Returns:
        The model on the CPU, facts for the report, the epochs as JSON-able mappings, and the interactions that each
        phase saw.

    Raises:
        DataError: Items share their codes, their features cannot be made, or ``model.device`` is not there.
    """
    data = sequence_data(dataset, settings)
    content = None
    if config.dense is not None:
        content = item_features(dataset, _content_features(codes), seed, share_empty=True)
    model = build(config, codes, data.train, seed, content).to(device(config.device))
    result = fit_tiger(
        model, data, fit_settings(config, settings), seed=seed, checkpoint_dir=scratch, on_epoch=on_epoch
    )
    model.to("cpu")
    embedding = model.transformer.embedding
    layers = layer_bytes(model, [embedding])
    frozen = 0 if content is None else content.nbytes
    table = TableBytes(embedding.nbytes + frozen, 2 * embedding.nbytes)
    facts = training_facts(result, rows=len(embedding), tables=table, layers=layers)
    return model, facts, records(result), seen_in(model, data, settings)


def device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Where to compute.

    Raises:
        DataError: There is no GPU and one is wanted.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise DataError("model.device is cuda, but torch finds no GPU; set it to auto or cpu (see `recsys doctor`)")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def content_key(config: TigerConfig, codes: SemanticCodes, dataset: Dataset) -> dict[str, Any]:
    """What a dense head depends on beside the codes, for the key of the training; empty without one."""
    if config.dense is None:
        return {}
    features = _content_features(codes)
    named = [one.model_dump(mode="json") for one in features]
    return {"content": features_hash(dataset.path, features), "features": named}


def _content_features(codes: SemanticCodes) -> tuple[Features, ...]:
    """Of what the codes were made of."""
    return SemanticIds.model_validate({"features": codes.source["features"]}).content_features


def build(
    config: TigerConfig, codes: SemanticCodes, histories: Sequences, seed: int, content: Matrix | None = None
) -> Tiger:
    """A model with freshly drawn parameters; ``content`` float32 [items, F] is for a dense head.

    Raises:
        DataError: Two items share their codes.
    """
    try:
        return Tiger(
            codes,
            histories,
            T5Shape(config.dim, config.layers, config.heads, config.head_dim, config.inner),
            Reading(config.max_items, config.user_tokens),
            beam=config.beam,
            dropout=config.dropout,
            dense=None if content is None else _dense(config, content, seed),
            generator=generator(seed, "init", "tiger"),
        )
    except ValueError as error:
        raise DataError(f"tiger: {error}") from error


def _dense(config: TigerConfig, content: Matrix, seed: int) -> DenseHead:
    assert config.dense is not None
    network = Mlp((content.shape[1], *config.dense.hidden, config.dim), generator(seed, "init", "dense"))
    settings = DenseSettings(config.dense.weight, config.dense.temperature, config.dense.candidates)
    return DenseHead(torch.from_numpy(content), network, settings, max_items=config.max_items)


def fit_settings(config: TigerConfig, train: Train) -> TigerSettings:
    """The plain arguments of the trainer."""
    return TigerSettings(
        **config.optimizer.model_dump(),
        label_smoothing=config.label_smoothing,
        batch_size=train.batch_size,
        epochs=train.epochs,
        selection=Selection(
            train.selection, train.eval_every_epochs, train.patience, refit=train.refits, max_minutes=train.max_minutes
        ),
        validation_users=config.validation_users,
        gradient_clip_norm=train.gradient_clip_norm,
        precision=train.precision,
        checkpoint_minutes=train.checkpoint_minutes,
    )
