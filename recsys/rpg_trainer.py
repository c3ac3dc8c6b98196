"""Training of RPG: every event predicts all digits of the next item's semantic id, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recsys.loop import run_task
from recsys.models.rpg import Rpg
from recsys.multi_token import multi_token_loss
from recsys.sequence_trainer import Ints, Loss, ReaderSettings, ReaderSteps, ReaderTask, SequenceData
from recsys.sequences import Batch, Sequences
from recsys.settings import EpochRecord, FitResult, Phase


def fit_rpg(
    model: Rpg,
    data: SequenceData,
    settings: ReaderSettings,
    *,
    seed: int,
    checkpoint_dir: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> FitResult:
    """Train ``model`` in place; at the end its histories are ``data.known``.

    As :func:`recsys.sequence_trainer.fit_sequences`, but there are no negatives: all tokens of a digit are in its
    softmax.

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
    task = _RpgTask(model, data, settings, seed=seed)
    return run_task(task, settings, seed=seed, checkpoint_dir=checkpoint_dir, on_epoch=on_epoch)


class _RpgTask(ReaderTask[Rpg, ReaderSettings]):
    """The task of the model."""

    def identity(self) -> list[object]:
        return [*super().identity(), self.model.codes.version, self.model.temperature]

    def steps(self, sequences: Sequences, phase: Phase) -> NextId:
        return NextId(self.model, sequences, self._settings, seed=self._seed)


class NextId(ReaderSteps[Rpg, ReaderSettings]):
    """Steps that predict the semantic id of the next item."""

    def objective(self, inputs: Batch, targets: Ints, *counters: str | int) -> tuple[Ints, Loss]:
        """See :class:`recsys.sequence_trainer.ReaderSteps`: every token once, which is read and predicted."""
        model = self._model
        digits = torch.from_numpy(model.codes.codes[targets].astype(np.int64))

        def loss(tokens: Tensor, rng: np.random.Generator) -> Tensor:
            hidden = model.encode(model.mean_tokens(tokens, torch.from_numpy(inputs.items)), inputs, rng)
            return multi_token_loss(
                hidden, tokens, model.heads, digits, model.codes.widths, temperature=model.temperature
            )

        return np.arange(model.tokens.num_ids), loss
