"""Training of a ranker on labelled events: the ranking case of :mod:`recsys.loop`."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from recsys.event_batch import EventBatch, Events, join
from recsys.loop import run_task
from recsys.metrics.auc import roc_auc
from recsys.rankers.ranker import FieldModel, Ranker
from recsys.rng import generator, torch_generator
from recsys.settings import EpochRecord, FitResult, Phase, Selection

Rows = npt.NDArray[np.int64]
Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class RankingSettings:
    """How a ranker is trained.

    Attributes:
        batch_size: events of a step.
        epochs: at most.
        lr: learning rate of Adam for the layers; the tables have their own, see ``table_lr``.
        table_lr: learning rate of the tables at the start.
        weight_decay: L2 penalty on the layers' weights, added to the gradient.
        plateau_factor: all learning rates are multiplied by it after a validation without a gain; 1 for never.
        id_dropout: field -> share of the events of a step that show its id as unseen, in [0, 1), as DropoutNet does
            (Volkovs et al. 2017). Without it the unseen row learns from the ids alone that have no row of their own.
        selection: early stopping, used when there is validation data; by "auc" or "neg_log_loss".
        precision: "bfloat16" trains the layers of a single-task ranker under autocast; it pays on CPUs with AMX or
            AVX512-BF16 only. Tables, Adam and evaluation stay float32.
        checkpoint_minutes: between checkpoints.
    """

    batch_size: int = 4096
    epochs: int = 100
    lr: float = 1e-3
    table_lr: float = 1e-3
    weight_decay: float = 0.0
    plateau_factor: float = 0.1
    id_dropout: Mapping[str, float] = dataclasses.field(default_factory=dict)
    selection: Selection = dataclasses.field(default_factory=lambda: Selection("auc", 1, patience=2, refit=False))
    precision: Precision = "float32"
    checkpoint_minutes: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        for field, share in self.id_dropout.items():
            if not 0 <= share < 1:
                raise ValueError(f"id_dropout of {field} must lie in [0, 1), got {share}")

    @property
    def remedy(self) -> str:
        """What to try against a loss that is not finite."""
        rates = "a smaller train.lr, or a smaller optimizer.lr of the model"
        return rates if self.precision == "float32" else f"{rates}, or train.precision float32"

    def facts(self) -> dict[str, Any]:
        """Everything that the result depends on, JSON-able."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "checkpoint_minutes"}


def fit_ranker(
    ranker: Ranker,
    train: Events,
    valid: Events | None,
    settings: RankingSettings,
    *,
    seed: int,
    checkpoint_dir: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> FitResult:
    """Train ``ranker`` in place by the mean log-loss, see :func:`recsys.loop.run_task`.

    Args:
        ranker: freshly initialised, or the same initial ranker again when resuming.
        train: at least one event.
        valid: events of both classes that select the epoch, or None.
        settings: of the training.
        seed: of the run.
        checkpoint_dir: gets the state that a killed call goes on from.
        on_epoch: called after each epoch that this process ran.

    Raises:
        TrainingDivergedError: The loss is NaN or infinite.
        CheckpointError: ``checkpoint_dir`` holds the state of another training, or a damaged file.
        ValueError: There is no event, validation has one class only, or ``id_dropout`` names a field that is none.
    """
    unknown = sorted(set(settings.id_dropout) - set(train.fields))
    if unknown:
        raise ValueError(f"id_dropout names the field {unknown[0]!r}; the fields are {', '.join(train.fields)}")
    if not len(train):
        raise ValueError("a ranker needs at least one train event, got none")
    if valid is not None and len({0, 1} & set(valid.labels.tolist())) < 2:
        raise ValueError(f"validation needs events with label 0 and with label 1, got {len(valid):,} of one class")
    task = _Ranking(ranker, train, valid, settings, seed)
    return run_task(task, settings, seed=seed, checkpoint_dir=checkpoint_dir, on_epoch=on_epoch)


class _Ranking:
    """The :class:`recsys.loop.Task` of a ranker."""

    def __init__(
        self, ranker: Ranker, train: Events, valid: Events | None, settings: RankingSettings, seed: int
    ) -> None:
        self.model = ranker
        self.validates = valid is not None
        self._train, self._valid = train, valid
        self._settings, self._seed = settings, seed
        self._steps: LayerSteps | None = None

    def identity(self) -> list[object]:
        splits = [split for split in (self._train, self._valid) if split is not None]
        return [part for split in splits for part in (list(split.fields), *_digests(split))]

    def start(self, phase: Phase) -> LayerSteps:
        both = phase == "refit" and self._valid is not None
        events = join([self._train, self._valid]) if both and self._valid is not None else self._train

        def loss(rows: Rows, epochs: float) -> Tensor:
            batch = events.batch(rows)
            self._drop_ids(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._settings.precision == "bfloat16"):
                logits = self.model.logits(batch)
            return functional.binary_cross_entropy_with_logits(logits.float(), batch.labels)

        self._steps = LayerSteps(self.model, len(events), loss, self._settings, self._seed)
        return self._steps

    def _drop_ids(self, batch: EventBatch) -> None:
        """Make some ids of a batch unseen, in place."""
        for place, field in enumerate(self.model.tables.fields):
            if share := self._settings.id_dropout.get(field.name, 0.0):
                dropped = torch.rand(len(batch.ids), generator=self.model.noise) < share
                batch.ids[dropped, place] = field.id_map.num_ids

    def show(self, phase: Phase) -> None:
        self.model.eval()

    def validate(self) -> dict[str, float]:
        assert self._valid is not None
        assert self._steps is not None
        logits = self.model.scores(self._valid)
        labels = torch.from_numpy(self._valid.labels.astype(np.float64))
        loss = functional.binary_cross_entropy_with_logits(torch.from_numpy(logits).double(), labels)
        if not np.isfinite(logits).all():
            return {"auc": math.nan, "neg_log_loss": math.nan}
        found = {"auc": roc_auc(self._valid.labels, logits), "neg_log_loss": -float(loss)}
        self._steps.schedule(found[self._settings.selection.metric])
        return found


class LayerSteps:
    """The :class:`recsys.loop.Steps` of a phase: shuffled batches, Adam for the layers, the tables' own optimizer.

    An event that would be alone in the last batch, of which batch norm has no variance, joins the batch before it.

    Args:
        model: trained in place.
        count: events.
        loss: from the rows of a batch, int64 [B], and the epochs since the training began, to the loss [].
        settings: of the training.
        seed: of the run.
    """

    def __init__(
        self, model: FieldModel, count: int, loss: Callable[[Rows, float], Tensor], settings: RankingSettings, seed: int
    ) -> None:
        self.count = count
        alone = count % settings.batch_size == 1 < min(count, settings.batch_size)
        self.steps_per_epoch = -(-count // settings.batch_size) - alone
        self._model, self._loss, self._settings, self._seed = model, loss, settings, seed
        self._parameters = [p for name, p in model.named_parameters() if not name.startswith("tables.")]
        self._adam = torch.optim.Adam(self._parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        self._scale, self._best = 1.0, float("-inf")
        self._set_lr()

    def steps(self, phase: str, epoch: int, first_step: int) -> Iterator[tuple[int, int, float]]:
        """See :meth:`recsys.loop.Steps.steps`."""
        order = generator(self._seed, "shuffle", phase, epoch).permutation(self.count)
        size, model = self._settings.batch_size, self._model
        model.train()
        for step in range(first_step, self.steps_per_epoch):
            rows = order[step * size : (step + 1) * size if step + 1 < self.steps_per_epoch else None]
            model.noise.manual_seed(torch_generator(self._seed, "dropout", phase, epoch, step).initial_seed())
            loss = self._loss(rows, epoch + step / self.steps_per_epoch)
            self._adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._adam.step()
            model.tables.step()
            yield step, len(rows), loss.item()

    def schedule(self, value: float) -> None:
        """Lower the learning rates after a validation that was no better than the best before it."""
        if value > self._best:
            self._best = value
        else:
            self._scale *= self._settings.plateau_factor
            self._set_lr()

    def state(self) -> dict[str, Tensor]:
        """See :meth:`recsys.loop.Steps.state`."""
        states = self._adam.state_dict()["state"]
        tensors = {f"adam.{place}.{name}": value for place, parts in states.items() for name, value in parts.items()}
        return tensors | {"schedule": torch.tensor([self._scale, self._best], dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See :meth:`recsys.loop.Steps.load_state`."""
        self._scale, self._best = state["schedule"].tolist()
        self._set_lr()
        parts: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("adam."):
                _, place, key = name.split(".")
                parts.setdefault(int(place), {})[key] = value
        self._adam.load_state_dict({"state": parts, "param_groups": self._adam.state_dict()["param_groups"]})

    def _set_lr(self) -> None:
        for group in self._adam.param_groups:
            group["lr"] = self._settings.lr * self._scale
        self._model.tables.set_lr(self._settings.table_lr * self._scale)


def _digests(events: Events) -> list[str]:
    """SHA-256 of the arrays, which are read page by page where they are memory-mapped."""
    arrays: list[npt.NDArray[Any]] = [events.ids, events.dense, events.labels]
    arrays += [] if events.history is None else [events.history.items, events.history.bounds]
    shapes = [f"{array.shape}:" for array in arrays]
    return shapes + [hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for array in arrays if array.size]
