"""The training stage: build a variant's model, fit it, write its checkpoint. Killed at any moment it goes on."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.semantic_id.codes import SemanticCodes
from embeddings.tables.spec import TableBytes, total_bytes
from pipelines.atomic import write_json
from pipelines.cache import Cache, build_seconds, content_hash
from pipelines.config import Train, Variant
from pipelines.config_ensemble import Ensemble
from pipelines.config_models import (
    Bspm,
    ChebyCf,
    Ease,
    GfCf,
    Ials,
    ItemKnn,
    Kgat,
    Mf,
    NeuMf,
    Popularity,
    Slim,
    is_searched,
)
from pipelines.config_rpg import Rpg
from pipelines.config_section import EpochModel, TableModel
from pipelines.config_sequence import Sasrec
from pipelines.config_tiger import Tiger
from pipelines.config_two_tower import TwoTower
from pipelines.dataset import Dataset, graph_hash
from pipelines.item_features import features_hash
from pipelines.knowledge import open_knowledge
from pipelines.stages import closed_form, ensemble, generative, rpg, sequence, two_tower
from pipelines.stages.build import build_mf, fit_settings
from pipelines.stages.compress import Maps
from pipelines.stages.sparse import dim_search, prune_networks, prune_tables, window_bytes
from pipelines.stages.training_facts import records, training_facts
from pipelines.stages.versions import versions
from recsys.checkpoint import Reader, save_model
from recsys.dense_adam import layer_bytes
from recsys.mixed_dims import search_dims
from recsys.models import popularity
from recsys.models.mf import MatrixFactorization
from recsys.models.neumf import NeuMf as NeuMfModel
from recsys.settings import EpochRecord, Phase
from recsys.trainer import fit, negatives_file

VERSION = 6
PHASES: tuple[Phase, ...] = ("select", "refit")
TRAINED_ON = "trained_on.json"
"""File of an entry with the hash of the matrix that each phase was fitted on, for the leak audit."""
OnEpoch = Callable[[EpochRecord], None]
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained variant in the cache.

    Attributes:
        entry: Directory with ``checkpoint/``, ``history.json`` and ``facts.json``.
        key: What it was trained from; the key of everything computed from it.
        history: Epoch records as JSON-able mappings.
        facts: Rows and bytes of the tables, epochs, peak memory.
        seconds: Of the whole stage, whenever it ran.
        trained_on: Phase ("fit" without epochs) -> hash of the matrix fitted; None where an older program trained.
        negatives: Phase -> what the negatives knew, see :meth:`recsys.samplers.NegativeSampler.knowledge`.
    """

    entry: Path
    key: dict[str, Any]
    history: list[dict[str, Any]]
    facts: dict[str, Any]
    seconds: float
    trained_on: dict[str, str] | None
    negatives: dict[Phase, dict[str, npt.NDArray[np.int64]]]


def train_stage(
    cache: Cache,
    dataset: Dataset,
    variant: Variant,
    maps: Maps | None,
    seed: int,
    on_epoch: OnEpoch,
    codes: SemanticCodes | None = None,
    members: tuple[Trained, ...] = (),
    progress: Progress = lambda *_: None,
) -> Trained:
    """Train a variant with one seed, or find it trained.

    ``codes`` are for generative retrievers; an ensemble is made of its ``members``. The search of a grid tells
    ``progress`` how many of its points were tried, or for an ensemble how many users were ranked at all of them.
    """
    key = _key(dataset, variant, maps, seed, codes)
    key |= {"members": [member.key for member in members]} if members else {}
    encoded = two_tower.encode(dataset, variant.model) if isinstance(variant.model, TwoTower) else {}
    if isinstance(variant.model, TwoTower):
        key |= two_tower.training_key(variant.model, encoded)

    search = functools.partial(progress, f"grid of {variant.name}-s{seed}")

    def build(directory: Path) -> None:
        train, valid = _matrices(dataset, variant.train)
        union = _union(train, valid, variant.train)
        match variant.model:
            case Popularity():
                fitted = {"fit": union}
                _save(popularity.Popularity.fit(union), directory)
            case Ials() | ItemKnn() | Ease() | Slim() | GfCf() | ChebyCf() | Bspm():
                matrices = (train, valid, union)
                model, fitted, chosen = closed_form.train(variant.model, variant.train, matrices, seed, search)
                _save(model, directory, {} if chosen is None else {"chosen": chosen})
            case Ensemble() as config:
                fitted = {"fit": union}
                parts = [(member.entry / "checkpoint", member.facts) for member in members]
                model, facts = ensemble.combine(config, variant.train, parts, dataset, (train, valid), search)
                _save(model, directory, facts)
            case Sasrec() | Tiger() | Rpg():
                rows = codes if maps is None else maps.items
                reader, facts, epochs, fitted = _train_reader(variant, rows, dataset, seed, scratch, on_epoch)
                _save(reader, directory, facts, epochs)
                _keep_negatives(scratch, directory)
            case Mf():
                assert maps is not None
                fitted = {"select": train} | ({"refit": union} if variant.train.refits else {})
                knowledge = open_knowledge(dataset).graph if isinstance(variant.model, Kgat) else None
                model = build_mf(variant.model, maps, seed, train, _steps(variant.train, train), knowledge)
                _train_mf(directory, model, variant, (train, valid), seed, scratch, on_epoch)
            case TwoTower() as config:
                assert maps is not None
                towers = two_tower.fit(
                    cache, dataset, config, variant.train, encoded, maps, seed=seed, scratch=scratch, on_epoch=on_epoch
                )
                fitted = {phase: part.matrix() for phase, part in towers.histories.items()}
                history = [dataclasses.asdict(record) for record in towers.result.history]
                _save(towers.model, directory, two_tower.facts(towers), history)
                for side, part in encoded.items():
                    part.encoder.save(directory / "checkpoint" / f"{side}_features.json")
                _keep_negatives(scratch, directory)
        write_json(directory / TRAINED_ON, {phase: graph_hash(matrix) for phase, matrix in fitted.items()})

    scratch = cache.scratch("train", key)
    return _read(cache.stage("train", key, build), key)


def _read(entry: Path, key: dict[str, Any]) -> Trained:
    facts = json.loads((entry / "facts.json").read_bytes())
    history = json.loads((entry / "history.json").read_bytes())
    files = {phase: negatives_file(entry, phase) for phase in PHASES}
    negatives = {phase: load_file(path) for phase, path in files.items() if path.exists()}
    recorded = entry / TRAINED_ON
    trained_on = json.loads(recorded.read_bytes()) if recorded.exists() else None
    return Trained(entry, key, history, facts, facts.get("seconds", build_seconds(entry)), trained_on, negatives)


def _key(
    dataset: Dataset, variant: Variant, maps: Maps | None, seed: int, codes: SemanticCodes | None
) -> dict[str, Any]:
    model = variant.model.model_dump(mode="json")
    train = variant.train.model_dump(mode="json", exclude={"checkpoint_minutes"})
    libraries = ["torch", "numpy", "scipy", "numba"]
    if isinstance(variant.model, TableModel):
        if variant.model.backend == "fbgemm":
            libraries += ["fbgemm-gpu-cpu"] + (["torchrec"] if isinstance(variant.model, TwoTower) else [])
    elif not isinstance(variant.model, EpochModel):
        train, seed = {"sees_valid": variant.train.sees_valid}, seed if isinstance(variant.model, Ials) else 0
        if is_searched(variant.model):
            train |= {"selection": variant.train.selection, "selected_on": variant.train.selected_on}
    content = variant.model.content if isinstance(variant.model, Sasrec) else None
    return ({} if content is None else {"content": features_hash(dataset.path, content.features)}) | {
        "version": VERSION,
        "dataset": dataset.content_hash,
        "model": model,
        "train": train,
        "maps": maps and content_hash(maps.directory / "user_map.safetensors", maps.directory / "item_map.safetensors"),
        "seed": seed,
        "libraries": versions(libraries),
        **({"start": "least squares"} if isinstance(variant.model, Mf) and variant.model.init == "spectral" else {}),
        **_codes_key(variant, codes, dataset),
    }


def _codes_key(variant: Variant, codes: SemanticCodes | None, dataset: Dataset) -> dict[str, Any]:
    match variant.model:
        case Tiger() as config if codes is not None:
            return {"codes": codes.version} | generative.content_key(config, codes, dataset)
        case Rpg() if codes is not None:
            return {"codes": codes.version}
        case _:
            return {}


def _train_reader(
    variant: Variant, rows: IdMap | SemanticCodes | None, dataset: Dataset, seed: int, scratch: Path, on_epoch: OnEpoch
) -> tuple[Reader, dict[str, Any], list[dict[str, Any]], dict[str, csr_array]]:
    """A model that reads histories in their order; see ``train`` of the modules."""
    match variant.model:
        case Tiger() as config:
            assert isinstance(rows, SemanticCodes)
            return generative.train(config, variant.train, rows, dataset, seed, scratch, on_epoch)
        case Rpg() as config:
            assert isinstance(rows, SemanticCodes)
            return rpg.train(config, variant.train, rows, dataset, seed, scratch, on_epoch)
        case Sasrec() as config:
            assert isinstance(rows, IdMap)
            return sequence.train(config, variant.train, rows, dataset, seed, scratch, on_epoch)
        case other:
            raise AssertionError(other.name)


def _train_mf(
    directory: Path,
    model: MatrixFactorization | NeuMfModel,
    variant: Variant,
    matrices: tuple[csr_array, csr_array],
    seed: int,
    scratch: Path,
    on_epoch: OnEpoch,
) -> None:
    config, (train, valid) = variant.model, matrices
    assert isinstance(config, Mf)
    settings = fit_settings(config, variant.train)
    drawn = total_bytes(*(table.bytes() for table in model.tables))  # a search for dimensions has full tables
    if config.mixed_dims is not None:
        assert isinstance(model, MatrixFactorization)
        search = dim_search(config.mixed_dims)
        search_dims(model, train, settings, search, seed=seed, checkpoint_dir=scratch / "search")
    result = fit(
        model,
        train,
        valid,
        settings,
        seed=seed,
        checkpoint_dir=scratch,
        on_epoch=on_epoch,
    )
    trained = total_bytes(*(table.bytes() for table in model.tables))
    layers = _prune_layers(config, model) if isinstance(model, NeuMfModel) else _layers(model)
    if config.sparse is not None and config.sparse.method == "prune":
        prune_tables(model, config.sparse.density)
    tables = [table.bytes() for table in model.tables]
    rows = sum(table.num_rows for table in model.tables)
    sizes = dataclasses.replace(total_bytes(*tables), optimizer=max(drawn.optimizer, trained.optimizer))
    facts = training_facts(result, rows=rows, tables=sizes, layers=layers, window=window_bytes(model.tables))
    _save(model, directory, facts, records(result))
    _keep_negatives(scratch, directory)


def _layers(model: MatrixFactorization) -> TableBytes:
    return layer_bytes(model, (parameter for table in model.tables for parameter in table.parameters()))


def _prune_layers(config: Mf, model: NeuMfModel) -> TableBytes:
    """Prune the layers where the configuration says so; the bytes of the layers, and of their optimizer before."""
    assert isinstance(config, NeuMf)
    optimizer = model.layer_bytes().optimizer
    if config.sparse_layers is not None and config.sparse_layers.method == "prune":
        prune_networks(model, config.sparse_layers)
    return TableBytes(model.layer_bytes().weights, optimizer)


def _keep_negatives(scratch: Path, directory: Path) -> None:
    """Copy what the negatives of each phase knew, for the leak audit."""
    for phase in PHASES:
        if negatives_file(scratch, phase).exists():
            shutil.copyfile(negatives_file(scratch, phase), negatives_file(directory, phase))


def _steps(config: Train, train: csr_array) -> int:
    """Of one phase of a training at most."""
    return config.epochs * -(-int(train.nnz) // config.batch_size)


def _matrices(dataset: Dataset, config: Train) -> tuple[csr_array, csr_array]:
    """What is trained on, and what selects the epoch."""
    if config.selected_on == "test":
        return dataset.matrix("train", "valid"), dataset.matrix("test")
    return dataset.matrix("train"), dataset.matrix("valid")


def _union(train: csr_array, valid: csr_array, config: Train) -> csr_array:
    """What a model without epochs learns from: train, and validation too when the others are refitted on both."""
    union = csr_array(train + valid) if config.refits else train
    union.data[:] = 1.0
    return union


def _save(
    model: Any, directory: Path, facts: dict[str, Any] | None = None, history: list[dict[str, Any]] | None = None
) -> None:
    save_model(model, directory / "checkpoint")
    if facts and "chosen" in facts:
        write_json(directory / "checkpoint" / "selection.json", facts["chosen"])
    write_json(directory / "facts.json", facts or {})
    write_json(directory / "history.json", history or [])
