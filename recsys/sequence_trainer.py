"""Training of a sequence model: every event of a sequence predicts the next one, in one pass."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save
from scipy.sparse import csr_array
from torch import Tensor

from embeddings.atomic import write_bytes
from recsys.adam_state import adam_state, load_adam_state
from recsys.evaluator import check_validation, quick_metrics
from recsys.loop import run_task
from recsys.losses import Negatives
from recsys.models.sequence_model import SequenceModel, SequenceReader
from recsys.rng import generator
from recsys.samplers import NegativeSampler, NegativeSampling
from recsys.sequence_augmentation import Augmentation
from recsys.sequence_losses import SequenceLoss, targets_among
from recsys.sequences import Batch, Sequences, epoch_batches
from recsys.settings import EpochRecord, FitResult, Phase, Selection
from recsys.trainer import negatives_file

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderSettings:
    """The training loop of a model that reads sequences.

    Attributes:
        lr: learning rate of what is no table, by Adam; the table has its own optimizer.
        batch_size: sequences per step.
        epochs: at most.
        selection: early stopping, used when there is validation data.
        gradient_clip_norm: bound on the norm of a step's gradient by looked-up vectors and parameters together.
        checkpoint_minutes: between checkpoints.
        augmentation: of the sequences of a step.
    """

    lr: float = 1e-3
    batch_size: int = 128
    epochs: int = 100
    selection: Selection = dataclasses.field(default_factory=Selection)
    gradient_clip_norm: float | None = None
    checkpoint_minutes: float = 1.0
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)

    @property
    def remedy(self) -> str:
        """What to try against a loss that is not finite."""
        return "a smaller optimizer.lr, or train.gradient_clip_norm"

    def facts(self) -> dict[str, Any]:
        """Everything that the result depends on, JSON-able."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "checkpoint_minutes"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceSettings(ReaderSettings):
    """The training loop of a sequence model.

    Attributes:
        loss: with its parameters.
        negatives: how they are drawn, for the losses that need them; shared ones serve all events of a batch.
    """

    loss: SequenceLoss = dataclasses.field(default_factory=SequenceLoss)
    negatives: NegativeSampling = dataclasses.field(default_factory=NegativeSampling)


@dataclasses.dataclass(frozen=True)
class SequenceData:
    """What is learned from, and what may be known later.

    Attributes:
        train: sequences that select the epoch.
        valid: csr [users, items] that the epoch is selected on, or None.
        known: what the finished model reads, and what it is trained on anew where ``selection.refit``: train and
            validation in their order.
    """

    train: Sequences
    valid: csr_array | None
    known: Sequences

    def identity(self) -> list[object]:
        """Arrays that tell these data from any other, see :class:`recsys.loop.Task`."""
        parts = [part for s in (self.train, self.known) for part in (s.items, s.offsets, s.times)]
        held_out = [] if self.valid is None else [self.valid.indptr, self.valid.indices]
        return [part for part in [*parts, *held_out] if part is not None]

    def check(self, num_users: int, num_items: int) -> None:
        """Refuse data of other users or items than a model's.

        Raises:
            ValueError: Users or items do not fit, or there is validation without an interaction.
        """
        for name, sequences in (("train", self.train), ("known", self.known)):
            if sequences.num_users != num_users:
                raise ValueError(f"{name} must have the model's {num_users} users, got {sequences.num_users}")
            if sequences.items.max(initial=-1) >= num_items:
                raise ValueError(
                    f"{name} must have items in [0, {num_items}), the model's, got {sequences.items.max()}"
                )
        expected = (num_users, num_items)
        if self.valid is not None and self.valid.shape != expected:
            raise ValueError(f"valid must have the model's shape {expected} (users, items), got {self.valid.shape}")
        check_validation(self.valid)


def fit_sequences(
    model: SequenceModel,
    data: SequenceData,
    settings: SequenceSettings,
    *,
    seed: int,
    checkpoint_dir: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> FitResult:
    """Train ``model`` in place; at the end its histories are ``data.known``.

    With ``data.valid`` the number of epochs is chosen by early stopping, see :func:`recsys.loop.run_task`, which also
    says how a killed call goes on.

    Args:
        model: freshly initialised, or the same initial model again when resuming.
        data: of the model's users and items.
        settings: of the loop.
        seed: of the run.
        checkpoint_dir: gets ``training.safetensors`` and, for each phase, the
            :func:`recsys.trainer.negatives_file`; None for neither.
        on_epoch: called after each epoch that this process ran.

    Raises:
        TrainingDivergedError: The loss is NaN or infinite.
        CheckpointError: ``checkpoint_dir`` holds the state of another training, or a damaged file.
        ValueError: Users or items do not fit the model, or no sequence has two events.
    """
    data.check(model.num_users, model.num_items)
    task = _SequenceTask(model, data, settings, seed=seed, directory=checkpoint_dir)
    return run_task(task, settings, seed=seed, checkpoint_dir=checkpoint_dir, on_epoch=on_epoch)


ReaderT = TypeVar("ReaderT", bound=SequenceReader)
Settings = TypeVar("Settings", bound=ReaderSettings)
Loss = Callable[[Tensor, np.random.Generator], Tensor]
"""From looked-up vectors float32 [n, D], and what draws the dropout, to the mean loss of a step's events."""


class ReaderTask(abc.ABC, Generic[ReaderT, Settings]):
    """The :class:`recsys.loop.Task` of a model that reads sequences."""

    def __init__(self, model: ReaderT, data: SequenceData, settings: Settings, *, seed: int) -> None:
        self.model = model
        self.validates = data.valid is not None
        self._data = data
        self._settings = settings
        self._seed = seed

    def identity(self) -> list[object]:
        """See :class:`recsys.loop.Task`."""
        return [*self._data.identity(), self.model.encoder.facts()]

    def start(self, phase: Phase) -> ReaderSteps[ReaderT, Settings]:
        """See :class:`recsys.loop.Task`."""
        sequences = self._data.train if phase == "select" else self._data.known
        self.model.histories = self._data.train  # what validation reads
        return self.steps(sequences, phase)

    @abc.abstractmethod
    def steps(self, sequences: Sequences, phase: Phase) -> ReaderSteps[ReaderT, Settings]:
        """Steps over the sequences of a phase."""

    def show(self, phase: Phase) -> None:
        """See :class:`recsys.loop.Task`."""
        self.model.histories = self._data.known

    def validate(self) -> dict[str, float]:
        """See :class:`recsys.loop.Task`."""
        assert self._data.valid is not None
        seen = self._data.train.matrix(self.model.num_items)
        return quick_metrics(self.model, self._data.valid, seen, (self._settings.selection.metric,))


class _SequenceTask(ReaderTask[SequenceModel, SequenceSettings]):
    """The task of a sequence model, which keeps what its negatives know."""

    def __init__(
        self, model: SequenceModel, data: SequenceData, settings: SequenceSettings, *, seed: int, directory: Path | None
    ) -> None:
        super().__init__(model, data, settings, seed=seed)
        self._directory = directory

    def identity(self) -> list[object]:
        return [*super().identity(), self.model.similarity]

    def steps(self, sequences: Sequences, phase: Phase) -> NextItem:
        steps = NextItem(self.model, sequences, self._settings, seed=self._seed)
        if self._directory is not None:
            write_bytes(negatives_file(self._directory, phase), save(steps.knowledge()))
        return steps


class ReaderSteps(abc.ABC, Generic[ReaderT, Settings]):
    """The :class:`recsys.loop.Steps` in which every event of a sequence predicts the next one.

    Attributes:
        count: events of an epoch that are predicted.
        steps_per_epoch: batches of an epoch.
    """

    def __init__(self, model: ReaderT, sequences: Sequences, settings: Settings, *, seed: int) -> None:
        self._model = model
        self._sequences = sequences
        self._settings = settings
        self._seed = seed
        self._lengths = np.minimum(sequences.lengths, model.encoder.max_length + 1)
        self._users = np.flatnonzero(self._lengths > 1).astype(np.int64)
        if not self._users.size:
            raise ValueError(
                f"a sequence model learns from users with at least 2 events, but none of {sequences.num_users:,} has;"
                " check columns.position or columns.timestamp, or the split"
            )
        self.count = int((self._lengths - 1)[self._users].sum())
        self.steps_per_epoch = -(-len(self._users) // settings.batch_size)
        self._parameters = model.dense_parameters()
        self._adam = torch.optim.Adam(self._parameters.values(), lr=settings.lr, fused=True)

    def state(self) -> dict[str, Tensor]:
        """Adam's state of the dense parameters, by their names."""
        return adam_state(self._adam, self._parameters)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        load_adam_state(self._adam, self._parameters, state)

    def steps(self, phase: str, epoch: int, first_step: int) -> Iterator[tuple[int, int, float]]:
        """See :class:`recsys.loop.Steps`; an example of a step is an event of the sequences before they are varied."""
        settings = self._settings
        batches = epoch_batches(
            self._users, self._lengths, settings.batch_size,
            seed=self._seed, phase=phase, epoch=epoch, first=first_step,
        )  # fmt: skip
        for step, users in enumerate(batches, first_step):
            batch = self._sequences.last(users, self._model.encoder.max_length + 1)
            varied = settings.augmentation(batch, generator(self._seed, "augmentation", phase, epoch, step))
            yield step, len(batch.items) - len(users), self._step(*varied.shifted(), phase, epoch, step)

    @abc.abstractmethod
    def objective(self, inputs: Batch, targets: Ints, *counters: str | int) -> tuple[Ints, Loss]:
        """What a step looks up in the table, int64 [n], and the loss of what was looked up.

        Args:
            inputs: the events that are read.
            targets: int64 [T], the item after each of them.
            counters: that name the draws of the step.
        """

    def _step(self, inputs: Batch, targets: Ints, *counters: str | int) -> float:
        model, settings = self._model, self._settings
        ids, loss = self.objective(inputs, targets, *counters)
        looked_up = model.table(torch.from_numpy(ids))
        # The loss sees a leaf: its gradient is whole, and may be clipped, before it is kept for the step.
        leaf = looked_up.detach().requires_grad_()
        value = loss(leaf, generator(self._seed, "dropout", *counters))
        value.backward()  # type: ignore[no-untyped-call]
        if settings.gradient_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([leaf, *self._parameters.values()], settings.gradient_clip_norm)
        torch.autograd.backward([looked_up], [leaf.grad])
        model.table.step()
        self._adam.step()
        self._adam.zero_grad()
        return float(value.detach())


class NextItem(ReaderSteps[SequenceModel, SequenceSettings]):
    """Steps that tell the next item from others."""

    def __init__(self, model: SequenceModel, sequences: Sequences, settings: SequenceSettings, *, seed: int) -> None:
        super().__init__(model, sequences, settings, seed=seed)
        matrix = sequences.matrix(model.num_items)
        self._counts = np.bincount(matrix.indices, minlength=model.num_items).astype(np.int64)
        self._sampler = (
            NegativeSampler(matrix, settings.negatives, seed=seed) if settings.loss.needs_negatives else None
        )

    def knowledge(self) -> dict[str, Ints]:
        """What the negatives know of the interactions, see :meth:`recsys.samplers.NegativeSampler.knowledge`."""
        return {"counts": self._counts} if self._sampler is None else self._sampler.knowledge()

    def objective(self, inputs: Batch, targets: Ints, *counters: str | int) -> tuple[Ints, Loss]:
        """See :class:`ReaderSteps`: the items read, the targets, and what they are told from."""
        model, settings = self._model, self._settings
        others, hits = self._others(inputs, targets, *counters)

        def loss(vectors: Tensor, rng: np.random.Generator) -> Tensor:
            read, target, other = vectors.split_with_sizes([len(targets), len(targets), others.size])
            hidden = model.represent(model.encode(read, inputs, rng))
            negatives = Negatives(model.represent(other).view(*others.shape, -1), hits=hits)
            return settings.loss(hidden, model.represent(target), negatives, model.num_items)

        return np.concatenate([inputs.items, targets, others.reshape(-1)]), loss

    def _others(self, inputs: Batch, targets: Ints, *counters: str | int) -> tuple[Ints, Any]:
        """Items [M] or [T, M] that the targets are told from, and where the targets are among them."""
        asked = torch.from_numpy(targets)
        if self._sampler is None:
            return np.arange(self._model.num_items), (torch.arange(len(targets)), asked)
        draw = self._sampler.draw(np.repeat(inputs.users, inputs.lengths), *counters)
        if draw.hits is not None:
            return draw.items, (torch.from_numpy(draw.hits[0]), torch.from_numpy(draw.hits[1]))
        drawn = torch.from_numpy(draw.items)
        return draw.items, targets_among(asked, drawn if drawn.ndim == 2 else drawn[None, :])
