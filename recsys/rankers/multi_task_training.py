"""Training of a multi-task ranker: the multi-task case of :mod:`recsys.loop`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recsys.loop import run_task
from recsys.metrics.auc import roc_auc
from recsys.rankers.multi_task import MultiTaskRanker, Outputs
from recsys.rankers.training import LayerSteps, RankingSettings, Rows
from recsys.settings import EpochRecord, FitResult, Phase
from recsys.task_events import TaskEvents, join_task_events


def fit_multi_task(
    ranker: MultiTaskRanker,
    train: TaskEvents,
    valid: TaskEvents | None,
    settings: RankingSettings,
    *,
    seed: int,
    checkpoint_dir: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> FitResult:
    """Train ``ranker`` in place by the weighted sum of the tasks' mean losses, see :func:`recsys.loop.run_task`.

    Args:
        ranker: freshly initialised, or the same initial ranker again when resuming.
        train: at least one known label of every task.
        valid: as ``train``, and both classes of every binary task; they select the epoch. Or None.
        settings: of the training; ``selection.metric`` is "neg_loss" or "TASK/auc".
        seed: of the run.
        checkpoint_dir: gets the state that a killed call goes on from.
        on_epoch: called after each epoch that this process ran.

    Raises:
        TrainingDivergedError: The loss is NaN or infinite.
        CheckpointError: ``checkpoint_dir`` holds the state of another training, or a damaged file.
        ValueError: A task has no label in train or valid, a label that is none, or one class only in valid; or
            ``id_dropout`` is set, which rankers of one task have.
    """
    if settings.id_dropout:
        raise ValueError(f"id_dropout is for rankers of one task, got {dict(settings.id_dropout)}")
    for name, events in (("train", train), ("valid", valid)):
        if events is not None:
            _check(ranker, name, events)
    metric = settings.selection.metric
    binary = [f"{task.name}/auc" for task in ranker.spec.tasks if task.kind == "binary"]
    if metric not in ("neg_loss", *binary):
        raise ValueError(f"selection by {metric!r} is not possible; it is one of {', '.join(['neg_loss', *binary])}")
    task = _MultiTask(ranker, train, valid, settings, seed)
    return run_task(task, settings, seed=seed, checkpoint_dir=checkpoint_dir, on_epoch=on_epoch)


def _check(ranker: MultiTaskRanker, split: str, events: TaskEvents) -> None:
    names = tuple(task.name for task in ranker.spec.tasks)
    if events.tasks != names:
        raise ValueError(f"the ranker has the tasks {', '.join(names)}, but {split} has {', '.join(events.tasks)}")
    for place, task in enumerate(ranker.spec.tasks):
        labels = events.labels[events.known(task.name), place]
        if not len(labels):
            raise ValueError(f"task {task.name!r} has no known label in {split}; leave it out, or change the split")
        if task.kind == "regression":
            continue
        wrong = labels[(labels != 0) & (labels != 1)]
        if len(wrong):
            raise ValueError(f"labels of the binary task {task.name!r} must be 0 or 1, but {split} has {wrong[0]}")
        if split == "valid" and labels.min() == labels.max():
            raise ValueError(f"task {task.name!r} needs labels 0 and 1 in valid, got {len(labels):,} of one class")


class _MultiTask:
    """The :class:`recsys.loop.Task` of a multi-task ranker."""

    def __init__(
        self,
        ranker: MultiTaskRanker,
        train: TaskEvents,
        valid: TaskEvents | None,
        settings: RankingSettings,
        seed: int,
    ) -> None:
        self.model = ranker
        self.validates = valid is not None
        self._train, self._valid = train, valid
        self._settings, self._seed = settings, seed
        self._steps: LayerSteps | None = None

    def identity(self) -> list[object]:
        splits = [split for split in (self._train, self._valid) if split is not None]
        arrays = [np.ascontiguousarray(array) for split in splits for array in (split.ids, split.labels)]
        return [list(self._train.fields), *arrays]

    def start(self, phase: Phase) -> LayerSteps:
        both = phase == "refit" and self._valid is not None
        events = join_task_events([self._train, self._valid]) if both and self._valid is not None else self._train

        def loss(rows: Rows, epochs: float) -> Tensor:
            self.model.advance(epochs)
            found: Outputs = self.model(torch.from_numpy(events.ids[rows].astype(np.int64)))
            losses = self.model.losses(found.values, torch.from_numpy(events.labels[rows]))
            return self.model.total(losses) + found.penalty

        self._steps = LayerSteps(self.model, len(events), loss, self._settings, self._seed)
        return self._steps

    def show(self, phase: Phase) -> None:
        self.model.eval()

    def validate(self) -> dict[str, float]:
        assert self._valid is not None
        assert self._steps is not None
        found = validation_metrics(self.model, self._valid)
        self._steps.schedule(found[self._settings.selection.metric])
        return found


def validation_metrics(ranker: MultiTaskRanker, events: TaskEvents) -> dict[str, float]:
    """``neg_loss``, and of each task ``NAME/auc`` and ``NAME/log_loss`` or ``NAME/rmse``, and ``NAME/experts``.

    ``NAME/experts`` is how many experts an event meets, on average.
    """
    predictions, usage = ranker.predict(events)
    tasks = ranker.spec.tasks
    scale = np.array([1.0 if task.kind == "binary" else task.deviation for task in tasks])
    shift = np.array([0.0 if task.kind == "binary" else task.mean for task in tasks])
    values = torch.from_numpy((predictions - shift) / scale)
    losses = ranker.losses(values, torch.from_numpy(events.labels.astype(np.float64)))
    found = {"neg_loss": -float(ranker.total(losses))}
    for place, task in enumerate(tasks):
        loss = float(losses[place])
        if task.kind == "binary":
            known = events.known(task.name)
            scores = predictions[known, place]
            finite = bool(np.isfinite(scores).all())
            found[f"{task.name}/auc"] = roc_auc(events.labels[known, place], scores) if finite else math.nan
            found[f"{task.name}/log_loss"] = loss
        else:
            found[f"{task.name}/rmse"] = loss**0.5 * task.deviation
        found[f"{task.name}/experts"] = float(usage[1, place].sum())
    return found
