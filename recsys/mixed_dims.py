"""The search for mixed dimensions: rows learn from training batches, their selection from held-out ones in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from embeddings.mixed_dims import SoftSelection
from embeddings.tables.sparse_table import prune
from recsys.loop import run_task
from recsys.models.mf import MatrixFactorization
from recsys.objective import Objective
from recsys.rng import generator
from recsys.settings import FitSettings, Phase


@dataclasses.dataclass(frozen=True)
class DimSearch:
    """How dimensions are searched.

    Attributes:
        density: share of the entries that is kept of each table.
        epochs: of the search, the warm-up included.
        warmup_epochs: epochs that train the rows alone.
        held_out: share of the training interactions that the selection learns from.
    """

    density: float
    epochs: int = 30
    warmup_epochs: int = 10
    held_out: float = 0.1


def search_dims(
    model: MatrixFactorization,
    train: csr_array,
    settings: FitSettings,
    search: DimSearch,
    *,
    seed: int,
    checkpoint_dir: Path | None = None,
) -> None:
    """Replace the two :class:`SoftSelection` tables of a model by tables of the entries with the largest products.

    The new tables start from the products, and keep their mask when they are trained again, as the papers advise. A
    call that finds the state of a killed one goes on from there, see :func:`recsys.loop.run_task`.

    Args:
        model: with freshly initialised tables.
        train: csr float32 [users, items]; a part of it is held out from the rows.
        settings: of the training; its epochs and selection are not used.
        search: of the search.
        seed: of the run.
        checkpoint_dir: gets the state of the search; None for nothing.

    Raises:
        ValueError: The tables are not for a search, the loss has a memory, or nothing can be held out.
    """
    tables = (model.users, model.items)
    if not all(isinstance(table, SoftSelection) for table in tables):
        kinds = ", ".join(type(table).__name__ for table in tables)
        raise ValueError(f"a search for dimensions needs SoftSelection tables, got {kinds}")
    if settings.loss.name in ("adap_tau", "ultragcn") or settings.batch_size == 1:
        raise ValueError(
            "a search for dimensions takes losses whose steps do not depend on earlier ones, got"
            f" {settings.loss.name} with batch_size {settings.batch_size}"
        )
    settings = dataclasses.replace(settings, epochs=search.epochs, lr_decay=1.0)
    run_task(_Search(model, train, settings, search, seed), settings, seed=seed, checkpoint_dir=checkpoint_dir)
    model.users, model.items = (prune(table, search.density, table.optimizer) for table in tables)


def hold_out(train: csr_array, share: float, *, seed: int) -> tuple[csr_array, csr_array]:
    """Divide interactions at random, the second part having ``share`` of them.

    Raises:
        ValueError: A part would be empty.
    """
    count = round(share * train.nnz)
    if not 0 < count < train.nnz:
        raise ValueError(f"held_out {share} of {train.nnz} interactions leaves {count} in one part; both need some")
    chosen = np.zeros(train.nnz, np.bool_)
    chosen[generator(seed, "mixed_dims").permutation(train.nnz)[:count]] = True
    parts = []
    for keep in (~chosen, chosen):
        part = train.copy()
        part.data = keep.astype(np.float32)
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1]


class _Search:
    """The :class:`recsys.loop.Task` of a search."""

    validates = False

    def __init__(
        self, model: MatrixFactorization, train: csr_array, settings: FitSettings, search: DimSearch, seed: int
    ) -> None:
        self.model = model
        self._train, self._settings, self._search, self._seed = train, settings, search, seed

    def identity(self) -> list[object]:
        return [self._train.indptr, self._train.indices, dataclasses.asdict(self._search)]

    def start(self, phase: Phase) -> _Bilevel:
        inner, outer = hold_out(self._train, self._search.held_out, seed=self._seed)
        self.model.use_graph(inner)
        parts = [Objective(self.model, part, self._settings, seed=self._seed) for part in (inner, outer)]
        return _Bilevel(self.model, parts[0], parts[1], self._search.warmup_epochs)

    def show(self, phase: Phase) -> None:
        """There is nothing to show."""

    def validate(self) -> dict[str, float]:
        raise AssertionError("a search has no validation data of its own")


class _Bilevel:
    """Steps on the rows, each followed by one on the selection once the rows are warm."""

    def __init__(self, model: MatrixFactorization, inner: Objective, outer: Objective, warmup_epochs: int) -> None:
        self.count = inner.count
        self.steps_per_epoch = inner.steps_per_epoch
        self._model, self._inner, self._outer, self._warmup = model, inner, outer, warmup_epochs

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """There is nothing to load."""

    def steps(self, phase: str, epoch: int, first_step: int) -> Iterator[tuple[int, int, float]]:
        held_out: Iterator[object] = iter(())
        for done in self._inner.steps(phase, epoch, first_step):
            if epoch >= self._warmup:
                turn = (epoch - self._warmup) * self.steps_per_epoch + done[0]
                if turn % self._outer.steps_per_epoch == 0 or done[0] == first_step:
                    held_out = self._outer.steps("held_out", *divmod(turn, self._outer.steps_per_epoch))
                self._learn("alpha")
                next(held_out)
                self._learn("rows")
            yield done

    def _learn(self, what: str) -> None:
        for table in (self._model.users, self._model.items):
            assert isinstance(table, SoftSelection)
            table.learns = "alpha" if what == "alpha" else "rows"
