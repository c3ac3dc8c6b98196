"""The stages of a multi-task experiment after its data: training and evaluation; each is cached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import assert_never

from safetensors.numpy import save_file

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import Field, build_collection
from pipelines.atomic import finite, write_json
from pipelines.cache import Cache
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
    TaskVariant,
    TopKGate,
)
from pipelines.events.stages import EvaluatedRanker, Maps, TrainedRanker, ranking_settings, train_in_cache, training_key
from pipelines.multitask.data import MultiTaskData
from pipelines.stages.versions import versions
from recsys.rankers.gates.build import GateSpec
from recsys.rankers.gates.dense_to_sparse import Annealing
from recsys.rankers.gates.permuted import PermutationSearch
from recsys.rankers.multi_task import MultiTaskRanker, MultiTaskSpec, Task, build_multi_task
from recsys.rankers.multi_task_checkpoint import load_multi_task, save_multi_task
from recsys.rankers.multi_task_evaluation import evaluate_task
from recsys.rankers.multi_task_training import fit_multi_task
from recsys.rankers.ranker import Tower
from recsys.rng import generator
from recsys.settings import EpochRecord, FitResult

VERSION = 3


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
    key = {
        "version": VERSION,
        "tasks": [dataclasses.asdict(task) for task in tasks],
        "libraries": versions(["torch", "numpy", "numba", "scipy", "fbgemm-gpu-cpu", "torchrec"]),
        **training_key(data, variant, maps, seed),
    }

    def fit(scratch: Path, checkpoint: Path) -> tuple[MultiTaskRanker, FitResult]:
        ranker = build_model(variant.model, data, tasks, maps.fields, seed)
        events = data.events("train"), data.events("valid")
        settings = ranking_settings(variant)
        result = fit_multi_task(ranker, *events, settings, seed=seed, checkpoint_dir=scratch, on_epoch=on_epoch)
        save_multi_task(ranker, checkpoint)
        return ranker, result

    return train_in_cache(cache, "train-multitask", key, fit)


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
        levels=config.levels,
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


def evaluate_stage(cache: Cache, data: MultiTaskData, trained: TrainedRanker) -> EvaluatedRanker:
    """Evaluate a trained ranker on test, or find it evaluated.

    The evaluation is {"tasks": by name what :func:`recsys.rankers.multi_task_evaluation.evaluate_task` says, "usage":
    {"weight": mean weight, "events": share of the events, each by task a list over experts}}.
    """
    key = {"version": VERSION, "trained": trained.key}

    def build(directory: Path) -> None:
        ranker, events, train = load_multi_task(trained.entry / "checkpoint"), data.events("test"), data.events("train")
        predictions, usage = ranker.predict(events)
        names = [task.name for task in ranker.spec.tasks]
        found = {
            "tasks": {
                task.name: evaluate_task(
                    task, events, predictions[:, place], train, user=data.user, item=data.item, users=data.test_users()
                )
                for place, task in enumerate(ranker.spec.tasks)
            },
            "usage": {
                kind: dict(zip(names, part.tolist(), strict=True))
                for kind, part in zip(("weight", "events"), usage, strict=True)
            },
        }
        save_file({"predictions": predictions}, directory / "predictions.safetensors")
        write_json(directory / "evaluation.json", finite(found))

    return EvaluatedRanker.read(cache.stage("evaluate-multitask", key, build), "predictions")
