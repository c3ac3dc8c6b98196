"""What a training needs to be told, and what it tells."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from recsys.losses import Loss
from recsys.samplers import NegativeSampling

Phase = Literal["select", "refit"]


@dataclasses.dataclass(frozen=True)
class Selection:
    """How the number of epochs is chosen on validation.

    Attributes:
        metric: name that :func:`recsys.evaluator.quick_metrics` knows; higher is better.
        every_epochs: epochs between evaluations.
        patience: evaluations without a gain before stopping.
        refit: start again from the initial weights, on train and validation, for the chosen number of epochs; otherwise
            the best weights are kept.
        max_minutes: stop choosing after this long. It depends on the machine, so it gives up repeatable results.
    """

    metric: str = "recall@20"
    every_epochs: int = 5
    patience: int = 3
    refit: bool = True
    max_minutes: float | None = None


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """The training loop.

    Attributes:
        loss: with its parameters.
        negatives: how they are drawn, for the losses that need them.
        batch_size: positives per step; 1 with BPR is LearnBPR, run by :mod:`recsys.bpr_kernel`.
        epochs: at most.
        selection: early stopping, used when there is a validation matrix.
        gradient_clip_norm: bound on the norm of a step's gradient by the looked-up vectors, all of them together.
        precision: "bfloat16" runs the score products under autocast; it pays on CPUs with AMX or AVX512-BF16 only.
        checkpoint_minutes: between checkpoints.
        lr_decay: share of the learning rate that is left in epoch ``epochs``, see :meth:`lr_share`.
        positives: of an epoch: every one of the "interactions" once, or as many by "users", see
            :func:`recsys.samplers.user_order`.
    """

    loss: Loss = dataclasses.field(default_factory=lambda: Loss("sampled_softmax"))
    negatives: NegativeSampling = dataclasses.field(default_factory=NegativeSampling)
    batch_size: int = 2048
    epochs: int = 100
    selection: Selection = dataclasses.field(default_factory=Selection)
    gradient_clip_norm: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_minutes: float = 1.0
    lr_decay: float = 1.0
    positives: Literal["interactions", "users"] = "interactions"

    @property
    def remedy(self) -> str:
        """What to try against a loss that is not finite."""
        return "a smaller optimizer.lr, train.gradient_clip_norm, a higher loss.temperature, or float32"

    def facts(self) -> dict[str, Any]:
        """Everything that the result depends on, JSON-able."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "checkpoint_minutes"}

    def lr_share(self, epoch: int) -> float:
        """Share of the learning rate in an epoch, 0-based: falls linearly from 1 to ``lr_decay``."""
        return 1.0 - (1.0 - self.lr_decay) * epoch / max(self.epochs - 1, 1)


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: 1-based, within its phase.
        step: steps done in the phase.
        seconds: of training, evaluation not counted.
        loss: mean over the positives.
        triples_per_second: positives per second of training.
        rss_mib: resident memory of the process.
        metrics: validation metrics, where the epoch was evaluated.
        phase: "select", or "refit" on train and validation.
    """

    epoch: int
    step: int
    seconds: float
    loss: float
    triples_per_second: float
    rss_mib: float
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    phase: Phase = "select"


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a training did.

    Attributes:
        best_epoch: the epoch chosen on validation, or the last one without validation.
        epochs_run: epochs of the selection phase.
        history: of both phases, in order.
        seconds: of training and selection, over all processes that took part.
    """

    best_epoch: int
    epochs_run: int
    history: list[EpochRecord]
    seconds: float


class TrainingDivergedError(RuntimeError):
    """The loss is not finite; the message says where and what to try."""
