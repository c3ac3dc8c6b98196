"""The training loop: steps, selection on validation, refit, and a state that survives ``kill -9``."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
from torch import Tensor, nn

from recsys.settings import EpochRecord, FitResult, Phase, Selection, TrainingDivergedError
from recsys.training_state import fingerprint, model_parts, read_state, write_state

_FILE = "training.safetensors"


class Steps(Protocol):
    """What is trained on in one phase, batch by batch."""

    @property
    def count(self) -> int:
        """Examples of an epoch."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        ...

    def steps(self, phase: str, epoch: int, first_step: int) -> Iterator[tuple[int, int, float]]:
        """Train on the batches of an epoch (0-based) from ``first_step`` on.

        Yields:
            (step, examples in the batch, mean loss before the update).
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """What a resume in the middle of an epoch needs beside the model."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        ...


class LoopSettings(Protocol):
    """The part of the settings that the loop reads; :class:`recsys.settings.FitSettings` for retrievers."""

    @property
    def epochs(self) -> int:
        """At most."""
        ...

    @property
    def selection(self) -> Selection:
        """Early stopping, used when the task has validation data."""
        ...

    @property
    def checkpoint_minutes(self) -> float:
        """Between checkpoints."""
        ...

    @property
    def remedy(self) -> str:
        """What to try against a loss that is not finite: settings, by the names that a configuration has for them."""
        ...

    def facts(self) -> dict[str, Any]:
        """Everything that the result depends on, JSON-able."""
        ...


class Task(Protocol):
    """A model, what it learns from in each phase, and how it is validated."""

    @property
    def model(self) -> nn.Module:
        """Trained in place. Its ``state_dict`` has all that a resume needs, optimizer state included."""
        ...

    @property
    def validates(self) -> bool:
        """Whether there is validation data."""
        ...

    def identity(self) -> list[object]:
        """Arrays, tensors and JSON-able values that tell this task's data from any other's."""
        ...

    def start(self, phase: Phase) -> Steps:
        """The steps of a phase: "select" learns from train, "refit" from train and validation."""
        ...

    def show(self, phase: Phase) -> None:
        """Give a trained model the context in which it serves, where it has one: the graph, the histories."""
        ...

    def validate(self) -> dict[str, float]:
        """Metrics on validation; higher is better for the one that selects."""
        ...


@dataclasses.dataclass
class _Progress:
    """Where the training stands; with the tensors of the model all that a resume needs."""

    phase: Phase = "select"
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_value: float = -math.inf
    epochs_run: int = 0
    finished: bool = False
    history: list[EpochRecord] = dataclasses.field(default_factory=list)

    def facts(self) -> dict[str, object]:
        return dataclasses.asdict(self)

    @classmethod
    def from_facts(cls, facts: dict[str, object]) -> _Progress:
        history = facts.pop("history")
        assert isinstance(history, list)
        return cls(**facts, history=[EpochRecord(**record) for record in history])  # type: ignore[arg-type]


def run_task(
    task: Task,
    settings: LoopSettings,
    *,
    seed: int,
    checkpoint_dir: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> FitResult:
    """Train the task's model in place.

    With validation data the number of epochs is chosen by early stopping, then the model is trained again from its
    initial weights on train + validation (``settings.selection.refit``) or put back to its best weights. Without
    validation data it runs all epochs.

    A call that finds the state of a killed one in ``checkpoint_dir`` goes on from there and ends with the same bits:
    every random choice is a function of the seed and counters, see :func:`recsys.rng.generator`.

    Args:
        task: its model is freshly initialised, or the same initial model again when resuming.
        settings: of the loop.
        seed: of the run.
        checkpoint_dir: gets ``training.safetensors``; None for nothing.
        on_epoch: called after each epoch that this process ran.

    Raises:
        TrainingDivergedError: The loss, or the selecting metric, is NaN or infinite.
        CheckpointError: ``checkpoint_dir`` holds the state of another training, or a damaged file.
    """
    return _Training(task, settings, seed=seed, directory=checkpoint_dir, on_epoch=on_epoch).run()


class _Training:
    """One call of :func:`run_task`."""

    def __init__(
        self,
        task: Task,
        settings: LoopSettings,
        *,
        seed: int,
        directory: Path | None,
        on_epoch: Callable[[EpochRecord], None] | None,
    ) -> None:
        self.task = task
        self.model = task.model
        self.settings = settings
        self.seed = seed
        self.path = None if directory is None else directory / _FILE
        self.on_epoch = on_epoch
        refits = task.validates and settings.selection.refit
        self.initial = self._tensors() if refits else {}
        self.fingerprint = "" if self.path is None else self._fingerprint()
        self.best: dict[str, Tensor] = {}
        self.progress = _Progress()
        self.steps: Steps | None = None
        self.resumed: dict[str, Tensor] = {}

    def run(self) -> FitResult:
        """Both phases, or what is left of them."""
        self._resume()
        progress = self.progress
        if not progress.finished and progress.phase == "select":
            self._select()
            if self.task.validates and self.settings.selection.refit:
                self._load(self.initial)
                self.steps = None
                progress.phase, progress.epoch, progress.step, self.best = "refit", 0, 0, {}
            else:
                if self.best:
                    self._load(self.best)
                progress.finished = True
            self._save()
        if not progress.finished:
            self._refit()
        self.task.show(progress.phase)
        return FitResult(progress.best_epoch, progress.epochs_run, list(progress.history), progress.seconds)

    def _select(self) -> None:
        progress, selection = self.progress, self.settings.selection
        steps = self._start()
        while progress.epoch < self.settings.epochs and not self._stops():
            record = self._epoch(steps)
            if not self.task.validates:
                progress.best_epoch = progress.epoch
            elif progress.epoch % selection.every_epochs == 0 or progress.epoch == self.settings.epochs:
                start = time.perf_counter()
                metrics = self.task.validate()
                progress.seconds += time.perf_counter() - start
                record = dataclasses.replace(record, metrics=metrics)
                if not math.isfinite(metrics[selection.metric]):
                    raise TrainingDivergedError(
                        f"validation {selection.metric} is {metrics[selection.metric]} after epoch {progress.epoch};"
                        f" try {self.settings.remedy}; or select by another metric"
                    )
                if metrics[selection.metric] > progress.best_value:
                    progress.best_value, progress.best_epoch = metrics[selection.metric], progress.epoch
                    self.best = {} if selection.refit else self._tensors()
            progress.epochs_run = progress.epoch
            self._record(record)

    def _stops(self) -> bool:
        """Whether early stopping has decided, from the recorded evaluations only, so that a resume agrees."""
        progress, selection = self.progress, self.settings.selection
        values = [record.metrics[selection.metric] for record in progress.history if record.metrics]
        if not values:
            return False
        since = len(values) - 1 - max(range(len(values)), key=lambda place: values[place])
        late = selection.max_minutes is not None and progress.seconds > 60 * selection.max_minutes
        return since >= selection.patience or late

    def _refit(self) -> None:
        steps = self._start()
        while self.progress.epoch < self.progress.best_epoch:
            self._record(self._epoch(steps))
        self.progress.finished = True
        self._save()

    def _start(self) -> Steps:
        self.steps = self.task.start(self.progress.phase)
        if self.resumed:
            self.steps.load_state(self.resumed)
            self.resumed = {}
        return self.steps

    def _epoch(self, steps: Steps) -> EpochRecord:
        progress = self.progress
        start = time.perf_counter()
        for step, size, loss in steps.steps(progress.phase, progress.epoch, progress.step):
            if not math.isfinite(loss):
                raise TrainingDivergedError(
                    f"the loss is {loss} in epoch {progress.epoch + 1}, step {step + 1} ({progress.phase});"
                    f" try {self.settings.remedy}"
                )
            progress.loss_sum += loss * size
            progress.step = step + 1
            now = time.perf_counter()
            progress.epoch_seconds += now - start
            progress.seconds += now - start
            start = now
            self._save_if_due()
        seconds = progress.epoch_seconds
        record = EpochRecord(
            epoch=progress.epoch + 1,
            step=progress.epoch * steps.steps_per_epoch + progress.step,
            seconds=seconds,
            loss=progress.loss_sum / steps.count,
            triples_per_second=steps.count / max(seconds, 1e-9),
            rss_mib=psutil.Process().memory_info().rss / 2**20,
            phase=progress.phase,
        )
        progress.epoch, progress.step, progress.loss_sum, progress.epoch_seconds = progress.epoch + 1, 0, 0.0, 0.0
        return record

    def _record(self, record: EpochRecord) -> None:
        self.progress.history.append(record)
        self._save_if_due()
        if self.on_epoch is not None:
            self.on_epoch(record)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self.model.load_state_dict(tensors)

    def _fingerprint(self) -> str:
        return fingerprint(self.settings.facts(), self.seed, *self.task.identity(), *model_parts(self.model))

    def _save_if_due(self) -> None:
        if self.path is not None and time.monotonic() - self.saved_at >= 60 * self.settings.checkpoint_minutes:
            self._save()

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if self.path is None:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        if self.steps is not None:
            tensors |= {f"objective.{name}": tensor for name, tensor in self.steps.state().items()}
        write_state(self.path, tensors, {"fingerprint": self.fingerprint, "progress": self.progress.facts()})

    def _resume(self) -> None:
        self.saved_at = time.monotonic()
        if self.path is None or not self.path.exists():
            return
        tensors, facts = read_state(self.path, self.fingerprint)
        self._load({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
        self.best = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("best.")}
        self.resumed = {name[10:]: tensor for name, tensor in tensors.items() if name.startswith("objective.")}
        self.progress = _Progress.from_facts(facts["progress"])
