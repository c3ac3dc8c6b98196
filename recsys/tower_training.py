"""Training of a two-tower model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save
from scipy.sparse import csr_array

from embeddings.atomic import write_bytes
from recsys.evaluator import check_validation, quick_metrics
from recsys.features import Features
from recsys.histories import Histories
from recsys.loop import run_task
from recsys.models.two_tower import TwoTower
from recsys.settings import EpochRecord, FitResult, Phase
from recsys.tower_objective import TowerObjective, TowerSettings
from recsys.trainer import negatives_file


@dataclasses.dataclass(frozen=True)
class TowerData:
    """What a two-tower model learns from.

    Attributes:
        train: events of the selection phase, and the histories that validation is ranked from.
        valid: csr float32 [users, items] that selects the epoch, or None.
        union: events of train and validation, for the refit.
        affinity: of the item features, for correlated feature masking; see
            :func:`recsys.mutual_information.adjusted_mutual_information`.
    """

    train: Histories
    valid: csr_array | None = None
    union: Histories | None = None
    affinity: npt.NDArray[np.float64] | None = None


def fit_two_tower(
    model: TwoTower,
    data: TowerData,
    settings: TowerSettings,
    *,
    seed: int,
    checkpoint_dir: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> FitResult:
    """Train ``model`` in place, see :func:`recsys.loop.run_task`.

    Args:
        model: freshly initialised, or the same initial model again when resuming.
        data: of the same users and items.
        settings: of the objective and the loop.
        seed: of the run.
        checkpoint_dir: gets ``training.safetensors`` and, for each phase, the
            :func:`recsys.trainer.negatives_file`; None for neither.
        on_epoch: called after each epoch that this process ran.

    Raises:
        TrainingDivergedError: The loss is NaN or infinite.
        CheckpointError: ``checkpoint_dir`` holds the state of another training, or a damaged file.
        ValueError: Shapes do not fit, there are no events, none of validation, or a refit lacks its events.
    """
    if not len(data.train.items):
        raise ValueError("train must have at least one event, got none")
    check_validation(data.valid)
    if data.valid is not None and settings.selection.refit and data.union is None:
        raise ValueError("selection.refit needs the events of train and validation together; give TowerData.union")
    task = _Retrieval(model, data, settings, seed=seed, directory=checkpoint_dir)
    return run_task(task, settings, seed=seed, checkpoint_dir=checkpoint_dir, on_epoch=on_epoch)


class _Retrieval:
    """The :class:`recsys.loop.Task` of a two-tower model."""

    def __init__(
        self, model: TwoTower, data: TowerData, settings: TowerSettings, *, seed: int, directory: Path | None
    ) -> None:
        self.model = model
        self.validates = data.valid is not None
        self._data = data
        self._settings = settings
        self._seed = seed
        self._directory = directory

    def identity(self) -> list[object]:
        data = self._data
        histories = [part for h in (data.train, data.union) if h is not None for part in (h.items, h.offsets)]
        valid = [] if data.valid is None else [data.valid.indptr, data.valid.indices]
        features = [part for tower in (self.model.users, self.model.items) for part in _parts(tower.features)]
        return [*histories, *valid, *features, *([] if data.affinity is None else [data.affinity])]

    def start(self, phase: Phase) -> TowerObjective:
        self.show(phase)
        objective = TowerObjective(
            self.model, self._histories(phase), self._settings, affinity=self._data.affinity, seed=self._seed
        )
        if self._directory is not None:
            write_bytes(negatives_file(self._directory, phase), save(objective.knowledge()))
        return objective

    def show(self, phase: Phase) -> None:
        self.model.use_histories(self._histories(phase))

    def validate(self) -> dict[str, float]:
        assert self._data.valid is not None
        seen = self._data.train.matrix()
        return quick_metrics(self.model, self._data.valid, seen, (self._settings.selection.metric,))

    def _histories(self, phase: Phase) -> Histories:
        if phase == "select" or self._data.union is None:
            return self._data.train
        return self._data.union


def _parts(features: Features) -> list[object]:
    return [part for name, array in sorted(features.arrays().items()) for part in (name, array)]
