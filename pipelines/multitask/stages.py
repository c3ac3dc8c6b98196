"""The stages of a multi-task experiment after its data: training and evaluation; each is cached."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import Field, build_collection
from pipelines.atomic import finite, write_json
from pipelines.cache import Cache, build_seconds, content_hash
from pipelines.config_multitask import (
    CometGate,
    DenseToSparseGate,
    DSelectKGate,
    ExpertMixture,
    GateConfig,
    HashGate,
    Search,
    SoftmaxGate,
    TaskLabel,
    TaskTrain,
    TaskVariant,
    TopKGate,
)
from pipelines.multitask.data import MultiTaskData
from pipelines.ranking.stages import TrainedRanker
from pipelines.stages.versions import versions
from recsys.rankers.gates.build import GateSpec
from recsys.rankers.gates.dense_to_sparse import Annealing
from recsys.rankers.gates.permuted import PermutationSearch
from recsys.rankers.multi_task import MultiTaskRanker, MultiTaskSpec, Task, build_multi_task
from recsys.rankers.multi_task_checkpoint import load_multi_task, save_multi_task
from recsys.rankers.multi_task_evaluation import evaluate_task
from recsys.rankers.multi_task_training import fit_multi_task
from recsys.rankers.ranker import Tower
from recsys.rankers.training import RankingSettings
from recsys.rng import generator
from recsys.settings import EpochRecord, Selection

VERSION = 1
Maps = tuple[dict[str, IdMap], Path | None]


def train_stage(
    cache: Cache,
    data: MultiTaskData,
    tasks: Sequence[Task],
    variant: TaskVariant,
    maps: Maps,
    seed: int,
    on_epoch: Callable[[EpochRecord], None],
) -> TrainedRanker:
    """Train a variant with one seed, or find it trained."""
    fields, entry = maps
    files = [] if entry is None else [entry / "users.safetensors", entry / "items.safetensors"]
    key = {
        "version": VERSION,
        "data": data.hash,
        "tasks": [dataclasses.asdict(task) for task in tasks],
        "model": variant.model.model_dump(mode="json"),
        "train": variant.train.model_dump(mode="json", exclude={"checkpoint_minutes"}),
        "maps": content_hash(*files) if files else None,
        "seed": seed,
        "libraries": versions(["torch", "numpy", "numba", "scipy", "fbgemm-gpu-cpu", "torchrec"]),
    }
    scratch = cache.scratch("train-multitask", key)

    def build(directory: Path) -> None:
        ranker = build_model(variant.model, data, tasks, fields, seed)
        events = data.events("train"), data.events("valid")
        settings = task_settings(variant.model, variant.train)
        result = fit_multi_task(ranker, *events, settings, seed=seed, checkpoint_dir=scratch, on_epoch=on_epoch)
        save_multi_task(ranker, directory / "checkpoint")
        size = ranker.tables.bytes()
        facts = {
            "table_rows": sum(field.id_map.num_rows for field in ranker.tables.fields),
            "table_bytes": size.weights,
            "optimizer_bytes": size.optimizer,
            "epochs": result.best_epoch,
            "seconds": result.seconds,
            "peak_rss_mib": max(record.rss_mib for record in result.history),
        }
        write_json(directory / "facts.json", facts)
        write_json(directory / "history.json", finite([dataclasses.asdict(record) for record in result.history]))

    found = cache.stage("train-multitask", key, build)
    facts = json.loads((found / "facts.json").read_bytes())
    return TrainedRanker(found, key, json.loads((found / "history.json").read_bytes()), facts)


def tasks_of(labels: Sequence[TaskLabel], data: MultiTaskData) -> tuple[Task, ...]:
    """The plain arguments of the tasks; a regression is standardised by its labels in train."""
    made = []
    for label in labels:
        facts = data.facts["labels"][label.name]
        if label.label == "value":
            made.append(Task(label.name, "regression", label.weight, facts["mean"], facts["deviation"]))
        else:
            made.append(Task(label.name, "binary", label.weight))
    return tuple(made)


def build_model(
    config: ExpertMixture, data: MultiTaskData, tasks: Sequence[Task], maps: dict[str, IdMap], seed: int
) -> MultiTaskRanker:
    """A multi-task ranker with freshly drawn tables and layers."""
    tables = build_collection(
        [Field(name, maps[name], config.dim) for name in data.fields],
        backend=config.backend,
        optimizer=OptimizerSpec(**config.optimizer.model_dump()),
        init_std=config.init_std,
        generator=generator(seed, "init", "tables"),
    )
    spec = MultiTaskSpec(
        tasks=tuple(tasks),
        gate=gate_spec(config.gate),
        experts=config.experts,
        private=config.private,
        expert=Tower(config.hidden, config.dropout),
        head=Tower(config.head),
        key=data.user,
        masked=config.gate.masked if isinstance(config.gate, DenseToSparseGate) else 0.0,
    )
    return build_multi_task(spec, tables, seed=seed)


def gate_spec(config: GateConfig) -> GateSpec:
    """The plain arguments of a gate."""
    search = None if config.search is None else _search(config.search)
    match config:
        case SoftmaxGate():
            return GateSpec(config.name, search=search)
        case TopKGate():
            return GateSpec(config.name, config.k, noisy=config.noisy, search=search)
        case HashGate():
            return GateSpec(config.name, config.k, search=search)
        case DSelectKGate():
            spec = GateSpec(config.name, config.k, gamma=config.gamma, entropy_weight=config.entropy, search=search)
            return dataclasses.replace(spec, per_example=config.per_example)
        case CometGate():
            return GateSpec(config.name, config.k, gamma=config.gamma, entropy_weight=config.entropy, search=search)
        case DenseToSparseGate():
            tau = config.tau_start, config.tau_end
            annealing = Annealing(config.shared_epochs, config.anneal_epochs, tau, config.threshold, config.balance)
            return GateSpec(config.name, config.k, annealing=annealing, search=search)
        case _:
            assert_never(config)


def _search(config: Search) -> PermutationSearch:
    return PermutationSearch(
        epochs=config.epochs,
        tau=(config.tau_start, config.tau_end),
        iterations=(config.iterations_start, config.iterations_end),
        noise=config.noise,
        entropy_weight=config.entropy,
    )


def task_settings(model: ExpertMixture, train: TaskTrain) -> RankingSettings:
    """The plain arguments of the training."""
    return RankingSettings(
        batch_size=train.batch_size,
        epochs=train.epochs,
        lr=train.lr,
        table_lr=model.optimizer.lr,
        weight_decay=train.weight_decay,
        plateau_factor=train.plateau_factor,
        selection=Selection(train.selection, 1, train.patience, refit=False),
        checkpoint_minutes=train.checkpoint_minutes,
    )


@dataclasses.dataclass(frozen=True)
class EvaluatedRanker:
    """A test evaluation and the predictions float32 [E, T] behind it, in the order of the test events.

    Attributes:
        evaluation: {"tasks": by name what :func:`recsys.rankers.multi_task_evaluation.evaluate_task` says,
            "usage": {"weight": mean weight, "events": share of the events, each by task a list over experts}}.
        predictions: log-odds of binary tasks, labels of regressions.
        seconds: that the evaluation took.
    """

    evaluation: dict[str, Any]
    predictions: npt.NDArray[np.float32]
    seconds: float


def evaluate_stage(cache: Cache, data: MultiTaskData, trained: TrainedRanker) -> EvaluatedRanker:
    """Evaluate a trained ranker on test, or find it evaluated."""
    key = {"version": VERSION, "trained": trained.key}

    def build(directory: Path) -> None:
        ranker, events, train = load_multi_task(trained.entry / "checkpoint"), data.events("test"), data.events("train")
        predictions, usage = ranker.predict(events)
        names = [task.name for task in ranker.spec.tasks]
        found = {
            "tasks": {
                task.name: evaluate_task(task, events, predictions[:, place], train, user=data.user, item=data.item)
                for place, task in enumerate(ranker.spec.tasks)
            },
            "usage": {
                kind: dict(zip(names, part.tolist(), strict=True))
                for kind, part in zip(("weight", "events"), usage, strict=True)
            },
        }
        save_file({"predictions": predictions}, directory / "predictions.safetensors")
        write_json(directory / "evaluation.json", finite(found))

    entry = cache.stage("evaluate-multitask", key, build)
    evaluation = json.loads((entry / "evaluation.json").read_bytes())
    predictions = load_file(entry / "predictions.safetensors")["predictions"]
    return EvaluatedRanker(evaluation, predictions, build_seconds(entry))
