"""The training stage: build a variant's model, fit it, write its checkpoint. Killed at any moment it goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from scipy.sparse import csr_array

from embeddings.tables import OptimizerSpec, build_table
from pipelines.atomic import write_json
from pipelines.cache import Cache, build_seconds, content_hash
from pipelines.config import Train, Variant
from pipelines.config_models import (
    AdapTau,
    Bsl,
    Bspm,
    ChebyCf,
    Ease,
    GfCf,
    Ials,
    ItemKnn,
    LightGcn,
    Mf,
    Ngcf,
    Popularity,
    Slim,
    UltraGcn,
    is_searched,
)
from pipelines.config_models import Loss as LossConfig
from pipelines.dataset import Dataset, graph_hash
from pipelines.stages import closed_form
from pipelines.stages.compress import Maps
from pipelines.stages.versions import versions
from recsys.checkpoint import save_model
from recsys.losses import Adaptation, Constraints, Loss
from recsys.models import ials, popularity
from recsys.models.lightgcn import LightGcn as LightGcnModel
from recsys.models.mf import MatrixFactorization
from recsys.models.ngcf import Ngcf as NgcfModel
from recsys.rng import generator
from recsys.samplers import NegativeSampling
from recsys.self_supervision import SelfSupervision
from recsys.settings import EpochRecord, FitSettings, Phase, Selection
from recsys.spectral import spectral_vectors, start_from
from recsys.trainer import fit, negatives_file

VERSION = 2
PHASES: tuple[Phase, ...] = ("select", "refit")
TRAINED_ON = "trained_on.json"
"""File of an entry with the hash of the matrix that each phase was fitted on, for the leak audit."""
OnEpoch = Callable[[EpochRecord], None]


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
    cache: Cache, dataset: Dataset, variant: Variant, maps: Maps | None, seed: int, on_epoch: OnEpoch
) -> Trained:
    """Train a variant with one seed, or find it trained."""
    key = _key(dataset, variant, maps, seed)

    def build(directory: Path) -> None:
        train, valid = _matrices(dataset, variant.train)
        union = _union(train, valid, variant.train)
        match variant.model:
            case Popularity():
                fitted = {"fit": union}
                _save(popularity.Popularity.fit(union), directory)
            case Ials() as config:
                fitted = {"fit": union}
                _save(ials.Ials.fit(union, _ials_settings(config), seed=seed), directory)
            case ItemKnn() | Ease() | Slim() | GfCf() | ChebyCf() | Bspm():
                matrices = (train, valid, union)
                model, fitted, chosen = closed_form.train(variant.model, variant.train, matrices)
                _save(model, directory, {} if chosen is None else {"chosen": chosen})
                if chosen is not None:
                    write_json(directory / "checkpoint" / "selection.json", chosen)
            case Mf():
                assert maps is not None
                fitted = {"select": train} | ({"refit": union} if variant.train.refits else {})
                _train_mf(directory, variant.model, variant.train, maps, (train, valid), seed, scratch, on_epoch)
        write_json(directory / TRAINED_ON, {phase: graph_hash(matrix) for phase, matrix in fitted.items()})

    scratch = cache.scratch("train", key)
    entry = cache.stage("train", key, build)
    facts = json.loads((entry / "facts.json").read_bytes())
    history = json.loads((entry / "history.json").read_bytes())
    files = {phase: negatives_file(entry, phase) for phase in PHASES}
    negatives = {phase: load_file(path) for phase, path in files.items() if path.exists()}
    recorded = entry / TRAINED_ON
    trained_on = json.loads(recorded.read_bytes()) if recorded.exists() else None
    return Trained(entry, key, history, facts, facts.get("seconds", build_seconds(entry)), trained_on, negatives)


def _key(dataset: Dataset, variant: Variant, maps: Maps | None, seed: int) -> dict[str, Any]:
    model = variant.model.model_dump(mode="json")
    train = variant.train.model_dump(mode="json", exclude={"checkpoint_minutes"})
    libraries = ["torch", "numpy", "scipy", "numba"]
    if isinstance(variant.model, Mf):
        libraries += ["fbgemm-gpu-cpu"] if variant.model.backend == "fbgemm" else []
    else:
        train, seed = {"sees_valid": variant.train.sees_valid}, seed if isinstance(variant.model, Ials) else 0
        if is_searched(variant.model):
            train |= {"selection": variant.train.selection, "selected_on": variant.train.selected_on}
    return {
        "version": VERSION,
        "dataset": dataset.content_hash,
        "model": model,
        "train": train,
        "maps": maps and content_hash(maps.directory / "user_map.safetensors", maps.directory / "item_map.safetensors"),
        "seed": seed,
        "libraries": versions(libraries),
    }


def _train_mf(
    directory: Path,
    config: Mf,
    train_config: Train,
    maps: Maps,
    matrices: tuple[csr_array, csr_array],
    seed: int,
    scratch: Path,
    on_epoch: OnEpoch,
) -> None:
    model = build_mf(config, maps, seed)
    train, valid = matrices
    if config.init == "spectral":
        vectors = spectral_vectors(train, config.dim, seed=seed)
        start_from(model.users, maps.users, vectors[0], config.init_std)
        start_from(model.items, maps.items, vectors[1], config.init_std)
    result = fit(
        model,
        train,
        valid,
        fit_settings(config, train_config),
        seed=seed,
        checkpoint_dir=scratch,
        on_epoch=on_epoch,
    )
    tables = [table.bytes() for table in (model.users, model.items)]
    peak = max((record.rss_mib for record in result.history), default=0.0)
    facts = {
        "table_rows": maps.users.num_rows + maps.items.num_rows,
        "table_bytes": sum(table.weights for table in tables),
        "optimizer_bytes": sum(table.optimizer for table in tables),
        "epochs": result.best_epoch,
        "epochs_run": result.epochs_run,
        "peak_rss_mib": peak,
        "seconds": result.seconds,
    }
    _save(model, directory, facts, [dataclasses.asdict(record) for record in result.history])
    for phase in PHASES:
        if negatives_file(scratch, phase).exists():
            shutil.copyfile(negatives_file(scratch, phase), negatives_file(directory, phase))


def build_mf(config: Mf, maps: Maps, seed: int) -> MatrixFactorization:
    """A matrix factorisation, or a graph model, with freshly drawn tables."""
    spec = OptimizerSpec(name=config.optimizer.name, lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay)
    users, items = (
        build_table(
            id_map,
            config.dim,
            backend=config.backend,
            optimizer=spec,
            init_std=config.init_std,
            generator=generator(seed, "init", side),
        )
        for side, id_map in (("users", maps.users), ("items", maps.items))
    )
    match config:
        case LightGcn(ssl=term):
            ssl = SelfSupervision(**term.model_dump()) if term else None
            parameters: Any = {"layers": config.layers, "similarity": config.similarity, "l2": config.l2, "ssl": ssl}
            if isinstance(config, Ngcf):
                draws = generator(seed, "init", "mixers")
                return NgcfModel(users, items, dropout=config.dropout, generator=draws, **parameters)
            return LightGcnModel(users, items, **parameters)
        case _:
            return MatrixFactorization(users, items, similarity=config.similarity)


def fit_settings(config: Mf, train: Train) -> FitSettings:
    """The plain arguments of the trainer."""
    negatives = config.negatives
    return FitSettings(
        loss=_loss(config.loss),
        negatives=NegativeSampling(
            alpha=0.0 if negatives.name == "uniform" else 1.0,
            count=negatives.count,
            shared=negatives.shared,
            reject_positives=negatives.reject_positives,
        ),
        batch_size=train.batch_size,
        epochs=train.epochs,
        selection=Selection(
            train.selection, train.eval_every_epochs, train.patience, refit=train.refits, max_minutes=train.max_minutes
        ),
        gradient_clip_norm=train.gradient_clip_norm,
        precision=train.precision,
        checkpoint_minutes=train.checkpoint_minutes,
        lr_decay=train.lr_decay,
    )


def _ials_settings(config: Ials) -> ials.IalsSettings:
    return ials.IalsSettings(**config.model_dump(exclude={"name"}))


def _loss(config: LossConfig) -> Loss:
    """The plain arguments of a loss."""
    match config:
        case Bsl(temperature=temperature, positive_temperature=positive):
            return Loss(**config.model_dump() | {"positive_temperature": positive or temperature})
        case AdapTau(warmup_epochs=warmup, beta=beta, quantile=quantile, user_dropout=dropout):
            return Loss("adap_tau", adaptation=Adaptation(warmup, beta, quantile), user_dropout=dropout)
        case UltraGcn():
            return Loss("ultragcn", constraints=Constraints(**config.model_dump(exclude={"name"})))
        case _:
            return Loss(**config.model_dump())


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
    write_json(directory / "facts.json", facts or {})
    write_json(directory / "history.json", history or [])
