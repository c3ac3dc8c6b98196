"""The training loop: steps, selection on validation, refit, and a state that survives ``kill -9``."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from safetensors.numpy import save
from scipy.sparse import csr_array
from torch import Tensor

from embeddings.atomic import write_bytes
from recsys.evaluator import quick_metrics
from recsys.learn_bpr import LearnBpr
from recsys.models.mf import MatrixFactorization
from recsys.objective import Objective
from recsys.settings import EpochRecord, FitResult, FitSettings, Phase, TrainingDivergedError
from recsys.training_state import fingerprint, read_state, write_state
from recsys.ultragcn import UltraGcn

_FILE = "training.safetensors"


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


def fit(
    model: MatrixFactorization,
    train: csr_array,
    valid: csr_array | None,
    settings: FitSettings,
    *,
    seed: int,
    checkpoint_dir: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> FitResult:
    """Train ``model`` in place.

    With ``valid`` the number of epochs is chosen by early stopping, then the model is trained again from its initial
    weights on train + valid (``settings.selection.refit``) or put back to its best weights. Without ``valid`` it runs
    all epochs.

    A call that finds the state of a killed one in ``checkpoint_dir`` goes on from there and ends with the same bits:
    every random choice is a function of the seed and counters, see :func:`recsys.rng.generator`.

    Args:
        model: freshly initialised, or the same initial model again when resuming.
        train: csr float32 [users, items], sorted indices.
        valid: csr of the same shape, or None.
        settings: of the loop.
        seed: of the run.
        checkpoint_dir: gets ``training.safetensors`` and, for each phase, the :func:`negatives_file`; None for neither.
        on_epoch: called after each epoch that this process ran.

    Raises:
        TrainingDivergedError: The loss is NaN or infinite.
        CheckpointError: ``checkpoint_dir`` holds the state of another training, or a damaged file.
        ValueError: Shapes do not fit, train is empty, or the settings exclude each other.
    """
    _check(model, train, valid)
    return _Training(model, settings, seed=seed, directory=checkpoint_dir, on_epoch=on_epoch).run(train, valid)


def negatives_file(directory: Path, phase: Phase) -> Path:
    """What the negatives of a phase know of the interactions, see :meth:`recsys.samplers.NegativeSampler.knowledge`."""
    return directory / f"negatives-{phase}.safetensors"


class _Training:
    """One call of :func:`fit`."""

    def __init__(
        self,
        model: MatrixFactorization,
        settings: FitSettings,
        *,
        seed: int,
        directory: Path | None,
        on_epoch: Callable[[EpochRecord], None] | None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.seed = seed
        self.path = None if directory is None else directory / _FILE
        self.on_epoch = on_epoch
        self.initial = self._tensors()
        self.best: dict[str, Tensor] = {}
        self.progress = _Progress()
        self.objective: Objective | LearnBpr | None = None
        self.resumed: dict[str, Tensor] = {}

    def run(self, train: csr_array, valid: csr_array | None) -> FitResult:
        """Both phases, or what is left of them."""
        self.fingerprint = self._fingerprint(train, valid)
        self._resume()
        progress, selection = self.progress, self.settings.selection
        if not progress.finished and progress.phase == "select":
            self._select(train, valid)
            if valid is not None and selection.refit:
                self._load(self.initial)
                self.objective = None
                progress.phase, progress.epoch, progress.step, self.best = "refit", 0, 0, {}
            else:
                self._load(self.best or self._tensors())
                progress.finished = True
            self._save()
        if not progress.finished:
            assert valid is not None
            self._refit((train + valid).tocsr())
        elif progress.phase == "refit":
            assert valid is not None
            self.model.use_graph((train + valid).tocsr())
        else:
            self.model.use_graph(train)
        return FitResult(progress.best_epoch, progress.epochs_run, list(progress.history), progress.seconds)

    def _select(self, train: csr_array, valid: csr_array | None) -> None:
        progress, selection = self.progress, self.settings.selection
        objective = self._objective(train)
        while progress.epoch < self.settings.epochs and not self._stops():
            record = self._epoch(objective)
            if valid is None:
                progress.best_epoch = progress.epoch
            elif progress.epoch % selection.every_epochs == 0 or progress.epoch == self.settings.epochs:
                start = time.perf_counter()
                metrics = quick_metrics(self.model, valid, train, (selection.metric,))
                progress.seconds += time.perf_counter() - start
                record = dataclasses.replace(record, metrics=metrics)
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

    def _refit(self, union: csr_array) -> None:
        union.data[:] = 1.0
        objective = self._objective(union)
        while self.progress.epoch < self.progress.best_epoch:
            self._record(self._epoch(objective))
        self.progress.finished = True
        self._save()

    def _objective(self, train: csr_array) -> Objective | LearnBpr:
        self.model.use_graph(train)
        objective = self._kind()(self.model, train, self.settings, seed=self.seed)
        if self.path is not None:
            write_bytes(negatives_file(self.path.parent, self.progress.phase), save(objective.knowledge()))
        if self.resumed:
            objective.load_state(self.resumed)
            self.resumed = {}
        self.objective = objective
        return objective

    def _kind(self) -> type[Objective | LearnBpr]:
        match self.settings.loss.name, self.settings.batch_size:
            case "bpr", 1:
                return LearnBpr
            case "ultragcn", _:
                return UltraGcn
            case _:
                return Objective

    def _epoch(self, objective: Objective | LearnBpr) -> EpochRecord:
        progress = self.progress
        start = time.perf_counter()
        for step, size, loss in objective.steps(progress.phase, progress.epoch, progress.step):
            if not math.isfinite(loss):
                raise TrainingDivergedError(
                    f"the loss is {loss} in epoch {progress.epoch + 1}, step {step + 1} ({progress.phase});"
                    " try a smaller optimizer.lr, train.gradient_clip_norm, a higher loss.temperature, or float32"
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
            step=progress.epoch * objective.steps_per_epoch + progress.step,
            seconds=seconds,
            loss=progress.loss_sum / objective.count,
            triples_per_second=objective.count / max(seconds, 1e-9),
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

    def _fingerprint(self, train: csr_array, valid: csr_array | None) -> str:
        matrices = [part for m in (train, valid) if m is not None for part in (m.indptr, m.indices)]
        initial = [part for name in sorted(self.initial) for part in (name, self.initial[name])]
        return fingerprint(self.settings.facts(), self.seed, list(train.shape), *matrices, *initial)

    def _save_if_due(self) -> None:
        if self.path is not None and time.monotonic() - self.saved_at >= 60 * self.settings.checkpoint_minutes:
            self._save()

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if self.path is None:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        if self.objective is not None:
            tensors |= {f"objective.{name}": tensor for name, tensor in self.objective.state().items()}
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


def _check(model: MatrixFactorization, train: csr_array, valid: csr_array | None) -> None:
    expected = (model.num_users, model.num_items)
    for name, matrix in (("train", train), ("valid", valid)):
        if matrix is not None and matrix.shape != expected:
            raise ValueError(f"{name} must have the model's shape {expected} (users, items), got {matrix.shape}")
    if train.nnz == 0:
        raise ValueError(f"train must have at least one interaction, got an empty matrix of shape {train.shape}")
