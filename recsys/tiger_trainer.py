"""Training of TIGER and LIGER: every event after a user's first is a target, and those before it are the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from recsys.adam_state import adam_state, load_adam_state
from recsys.dropout import Dropout
from recsys.evaluator import quick_metrics
from recsys.loop import run_task
from recsys.models.tiger import Tiger
from recsys.rng import generator
from recsys.sequence_trainer import SequenceData
from recsys.sequences import Sequences, epoch_batches
from recsys.settings import EpochRecord, FitResult, Phase, Selection

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class TigerSettings:
    """The training loop.

    Attributes:
        lr: learning rate of AdamW at its highest.
        warmup_steps: steps of a linear rise to ``lr``; after them it falls as ``1 / sqrt(step)``.
        weight_decay: of AdamW, decoupled from the gradient.
        label_smoothing: share of the target that is spread over the vocabulary.
        batch_size: targets per step.
        epochs: at most.
        selection: early stopping, used when there is validation data; the beam gives the lists.
        validation_users: drawn at random to be the users that select; None for all.
        gradient_clip_norm: bound on the norm of a step's gradient.
        precision: of the matrix products in training.
        checkpoint_minutes: between checkpoints.
    """

    lr: float = 1e-3
    warmup_steps: int = 1000
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    batch_size: int = 256
    epochs: int = 100
    selection: Selection = dataclasses.field(default_factory=Selection)
    validation_users: int | None = None
    gradient_clip_norm: float | None = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_minutes: float = 1.0

    @property
    def remedy(self) -> str:
        """What to try against a loss that is not finite."""
        return "a smaller optimizer.lr, train.gradient_clip_norm, or float32"

    def facts(self) -> dict[str, Any]:
        """Everything that the result depends on, JSON-able."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "checkpoint_minutes"}

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 1 (Vaswani et al. 2017, eq. 3, scaled to ``lr`` at its highest)."""
        warmup = max(1, self.warmup_steps)
        return float(self.lr * min(step / warmup, (warmup / step) ** 0.5))


def fit_tiger(
    model: Tiger,
    data: SequenceData,
    settings: TigerSettings,
    *,
    seed: int,
    checkpoint_dir: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> FitResult:
    """Train ``model`` in place, on its device; at the end its histories are ``data.known``.

    With ``data.valid`` the number of epochs is chosen by early stopping, see :func:`recsys.loop.run_task`, which also
    says how a killed call goes on. On a CPU a resumed training gives the same bits.

    Args:
        model: freshly initialised, or the same initial model again when resuming.
        data: of the model's users and items.
        settings: of the loop.
        seed: of the run.
        checkpoint_dir: gets ``training.safetensors``; None for nothing.
        on_epoch: called after each epoch that this process ran.

    Raises:
        TrainingDivergedError: The loss is NaN or infinite.
        CheckpointError: ``checkpoint_dir`` holds the state of another training, or a damaged file.
        ValueError: Users or items do not fit the model, or no sequence has two events.
    """
    data.check(model.num_users, model.num_items)
    task = _TigerTask(model, data, settings, seed=seed)
    return run_task(task, settings, seed=seed, checkpoint_dir=checkpoint_dir, on_epoch=on_epoch)


class _TigerTask:
    """The :class:`recsys.loop.Task` of the model."""

    def __init__(self, model: Tiger, data: SequenceData, settings: TigerSettings, *, seed: int) -> None:
        self.model = model
        self.validates = data.valid is not None
        self._data = data
        self._settings = settings
        self._seed = seed

    def identity(self) -> list[object]:
        model = self.model
        dense = None if model.dense is None else dataclasses.asdict(model.dense.settings)
        facts = [dataclasses.asdict(model.transformer.shape), dataclasses.asdict(model.reading), dense]
        return [*self._data.identity(), model.codes.version, model.dropout, model.beam, *facts]

    def start(self, phase: Phase) -> NextCodes:
        sequences = self._data.train if phase == "select" else self._data.known
        self.model.histories = self._data.train  # what validation reads
        if self.model.dense is not None:
            self.model.dense.set_cold(sequences)
        return NextCodes(self.model, sequences, self._settings, seed=self._seed)

    def show(self, phase: Phase) -> None:
        self.model.histories = self._data.known

    def validate(self) -> dict[str, float]:
        assert self._data.valid is not None
        valid = self._data.valid
        judged = np.flatnonzero(np.diff(valid.indptr))
        most = self._settings.validation_users
        if most is not None and most < len(judged):
            left_out = generator(self._seed, "validation users").permutation(judged)[most:]
            valid = valid.copy()
            for user in left_out:
                valid.data[valid.indptr[user] : valid.indptr[user + 1]] = 0
            valid.eliminate_zeros()
        seen = self._data.train.matrix(self.model.num_items)
        return quick_metrics(self.model, valid, seen, (self._settings.selection.metric,))


class NextCodes:
    """The :class:`recsys.loop.Steps` that write the codes of the next item.

    Attributes:
        count: targets of an epoch.
        steps_per_epoch: batches of an epoch.
    """

    def __init__(self, model: Tiger, sequences: Sequences, settings: TigerSettings, *, seed: int) -> None:
        self._model, self._sequences, self._settings, self._seed = model, sequences, settings, seed
        lengths = sequences.lengths
        self._users = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(self._users))
        self._read = np.minimum(place - sequences.offsets[self._users], model.reading.max_items)
        self._targets = np.flatnonzero(self._read > 0)
        if not self._targets.size:
            raise ValueError(
                f"TIGER learns from users with at least 2 events, but none of {sequences.num_users:,} has; check"
                " columns.position or columns.timestamp, or the split"
            )
        self.count = len(self._targets)
        self.steps_per_epoch = -(-self.count // settings.batch_size)
        self._parameters = dict(model.named_parameters())
        self._adam = torch.optim.AdamW(
            self._parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )

    def state(self) -> dict[str, Tensor]:
        """Adam's state, by parameter."""
        return adam_state(self._adam, self._parameters)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        load_adam_state(self._adam, self._parameters, state)

    def steps(self, phase: str, epoch: int, first_step: int) -> Iterator[tuple[int, int, float]]:
        """See :class:`recsys.loop.Steps`."""
        batches = epoch_batches(
            self._targets, self._read, self._settings.batch_size,
            seed=self._seed, phase=phase, epoch=epoch, first=first_step,
        )  # fmt: skip
        for step, places in enumerate(batches, first_step):
            for group in self._adam.param_groups:
                group["lr"] = self._settings.lr_at(epoch * self.steps_per_epoch + step + 1)
            yield step, len(places), self._step(places, phase, epoch, step)

    def _step(self, places: Ints, *counters: str | int) -> float:
        model, settings = self._model, self._settings
        batch = self._sequences.before(self._users[places], places, model.reading.max_items)
        targets = self._sequences.items[places].astype(np.int64)
        dropout = Dropout(model.dropout, generator(self._seed, "dropout", *counters))
        codes, total = targets.size * model.codes.levels, torch.zeros((), device=model.device)
        projected = None if model.dense is None else model.dense.items()
        contents = None if projected is None else projected.detach().requires_grad_()  # blocks share one projection
        blocks = model.encode(batch, dropout, contents)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            for rows, memory in blocks:
                logits, paths = model.path_logits(memory, targets[rows], dropout)
                loss = functional.cross_entropy(
                    logits.flatten(0, 1).float(), paths.flatten(),
                    label_smoothing=settings.label_smoothing, reduction="sum",
                ) / codes  # fmt: skip
                if model.dense is not None and contents is not None:
                    goals = torch.from_numpy(targets[rows]).to(model.device)
                    loss = loss + model.dense.loss(memory.last, contents, goals) / targets.size
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        if projected is not None and contents is not None:
            projected.backward(contents.grad)  # type: ignore[no-untyped-call]
        if settings.gradient_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters.values(), settings.gradient_clip_norm)
        self._adam.step()
        self._adam.zero_grad()
        return float(total)
