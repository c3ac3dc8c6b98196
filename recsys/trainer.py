"""Training of a retriever on interactions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import save
from scipy.sparse import csr_array

from embeddings.atomic import write_bytes
from recsys.evaluator import check_validation, quick_metrics
from recsys.kgat_steps import KgatSteps
from recsys.learn_bpr import LearnBpr
from recsys.loop import run_task
from recsys.models.kgat import Kgat
from recsys.models.mf import MatrixFactorization
from recsys.models.neumf import NeuMf
from recsys.neumf_steps import NeuMfSteps
from recsys.objective import Objective
from recsys.settings import EpochRecord, FitResult, FitSettings, Phase
from recsys.ultragcn import UltraGcn

Trained = MatrixFactorization | NeuMf
RetrievalSteps = Objective | LearnBpr | KgatSteps | NeuMfSteps


def fit(
    model: Trained,
    train: csr_array,
    valid: csr_array | None,
    settings: FitSettings,
    *,
    seed: int,
    checkpoint_dir: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> FitResult:
    """Train ``model`` in place.

    With ``valid`` the number of epochs is chosen by early stopping, see :func:`recsys.loop.run_task`, which also says
    how a killed call goes on.

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
        ValueError: Shapes do not fit, train or valid is empty, or the settings exclude each other.
    """
    _check(model, train, valid)
    task = _Retrieval(model, train, valid, settings, seed=seed, directory=checkpoint_dir)
    return run_task(task, settings, seed=seed, checkpoint_dir=checkpoint_dir, on_epoch=on_epoch)


def negatives_file(directory: Path, phase: Phase) -> Path:
    """What the negatives of a phase know of the interactions, see :meth:`recsys.samplers.NegativeSampler.knowledge`."""
    return directory / f"negatives-{phase}.safetensors"


class _Retrieval:
    """The :class:`recsys.loop.Task` of a retriever: interactions as matrices, ranking metrics."""

    def __init__(
        self,
        model: Trained,
        train: csr_array,
        valid: csr_array | None,
        settings: FitSettings,
        *,
        seed: int,
        directory: Path | None,
    ) -> None:
        self.model = model
        self.validates = valid is not None
        self._train, self._valid = train, valid
        self._settings = settings
        self._lr = model.users.optimizer.lr
        self._seed = seed
        self._directory = directory

    def identity(self) -> list[object]:
        matrices = [part for m in (self._train, self._valid) if m is not None for part in (m.indptr, m.indices)]
        knowledge = [self.model.knowledge.graph.triples] if isinstance(self.model, Kgat) else []
        return [list(self._train.shape), *matrices, *knowledge]

    def start(self, phase: Phase) -> RetrievalSteps:
        matrix = self._matrix(phase)
        self.model.use_graph(matrix)
        self.model.set_lr(self._lr)  # selection may have let it fall
        objective = _objective(self.model, matrix, self._settings, self._seed)
        if self._directory is not None:
            write_bytes(negatives_file(self._directory, phase), save(objective.knowledge()))
        return objective

    def show(self, phase: Phase) -> None:
        self.model.use_graph(self._matrix(phase))

    def validate(self) -> dict[str, float]:
        assert self._valid is not None
        return quick_metrics(self.model, self._valid, self._train, (self._settings.selection.metric,))

    def _matrix(self, phase: Phase) -> csr_array:
        if phase == "select" or self._valid is None:
            return self._train
        union = csr_array(self._train + self._valid)
        union.data[:] = 1.0
        return union


def _objective(model: Trained, train: csr_array, settings: FitSettings, seed: int) -> RetrievalSteps:
    if isinstance(model, NeuMf):
        return NeuMfSteps(model, train, settings, seed=seed)
    match settings.loss.name, settings.batch_size:
        case "bpr", 1:
            return LearnBpr(model, train, settings, seed=seed)
        case "ultragcn", _:
            return UltraGcn(model, train, settings, seed=seed)
        case _ if isinstance(model, Kgat):
            return KgatSteps(model, train, settings, seed=seed)
        case _:
            return Objective(model, train, settings, seed=seed)


def _check(model: Trained, train: csr_array, valid: csr_array | None) -> None:
    expected = (model.num_users, model.num_items)
    for name, matrix in (("train", train), ("valid", valid)):
        if matrix is not None and matrix.shape != expected:
            raise ValueError(f"{name} must have the model's shape {expected} (users, items), got {matrix.shape}")
    if train.nnz == 0:
        raise ValueError(f"train must have at least one interaction, got an empty matrix of shape {train.shape}")
    check_validation(valid)
