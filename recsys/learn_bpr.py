"""LearnBPR as an objective of the trainer: an epoch is one call of the fused kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from embeddings.tables.sparse_table import SparseTable
from embeddings.tables.table import Table
from embeddings.tables.torch_table import TorchTable
from recsys.bpr_kernel import BprStep, BprTable, bpr_epoch
from recsys.models.mf import MatrixFactorization
from recsys.rng import generator
from recsys.samplers import IntArray
from recsys.settings import FitSettings


class LearnBpr:
    """Stochastic gradient descent on one triple at a time (Rendle et al. 2009, fig. 4), several million a second.

    The same interface as :class:`recsys.objective.Objective`; an epoch is a single step.

    Args:
        model: with tables of the torch back end and one row per id.
        train: csr [users, items].
        settings: BPR, batch size 1, one uniform negative per positive.
        seed: of the run.

    Raises:
        ValueError: The kernel cannot do what the settings or the tables ask for; the message lists all of it.
    """

    steps_per_epoch = 1

    def __init__(self, model: MatrixFactorization, train: csr_array, settings: FitSettings, *, seed: int) -> None:
        problems = _problems(model, settings)
        if problems:
            raise ValueError(
                "train.batch_size 1 with the bpr loss runs LearnBPR, which does not take "
                + ", ".join(problems)
                + "; change that, or set a larger train.batch_size"
            )
        self.count = int(train.nnz)
        self._seed = seed
        self._users, self._items = _bpr_table(model.users), _bpr_table(model.items)
        self._indptr, self._indices = train.indptr.astype(np.int32), train.indices.astype(np.int32)
        spec = model.users.optimizer
        assert spec.name != "adam"
        assert spec.name != "lazy_adam"
        self._step = BprStep(spec.name, spec.lr, spec.weight_decay, spec.eps)
        self._settings = settings

    def knowledge(self) -> dict[str, IntArray]:
        """What the negatives know of the interactions: they are uniform, so that is what the positives show."""
        return {"counts": np.bincount(self._indices, minlength=len(self._items.rows)).astype(np.int64)}

    def state(self) -> dict[str, Tensor]:
        """Nothing beside the model."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing to go on from."""

    def steps(self, phase: str, epoch: int, first_step: int) -> Iterator[tuple[int, int, float]]:
        """Train one epoch, unless it is done; yields (0, interactions, mean loss)."""
        if first_step == 0:
            rng = generator(self._seed, "learn_bpr", phase, epoch)
            step = dataclasses.replace(self._step, lr=self._step.lr * self._settings.lr_share(epoch))
            loss = bpr_epoch(self._users, self._items, self._indptr, self._indices, step, rng)
            yield 0, self.count, loss


def _bpr_table(table: Table) -> BprTable:
    """Views of a table's tensors, so that the kernel trains the table itself."""
    rows = np.arange(table.num_ids) if table.map_rows is None else table.map_rows[: table.num_ids, 0].numpy()
    state = table.optimizer_state().get("sum")
    weight = table.weight().detach().numpy()
    sums = np.zeros((1, 1), np.float32) if state is None else state.detach().numpy().reshape(len(weight), -1)
    return BprTable(rows.astype(np.int32), weight, sums)


def _problems(model: MatrixFactorization, settings: FitSettings) -> list[str]:
    negatives = settings.negatives
    tables = (model.users, model.items)
    checks = {
        f"the model {type(model).__name__}": type(model) is not MatrixFactorization,
        "similarity: cosine": model.similarity != "dot",
        "gradient_clip_norm": settings.gradient_clip_norm is not None,
        "user_dropout": settings.loss.user_dropout != 0,
        "precision: bfloat16": settings.precision != "float32",
        "negatives other than uniform": negatives.alpha != 0,
        "positives: users": settings.positives != "interactions",
        f"negatives.count {negatives.count} (only 1)": negatives.count != 1,
        "negatives.shared": negatives.shared,
        "negatives.group": negatives.group is not None,
        "negatives.reject_positives": negatives.reject_positives,
        "table_dtype below float32": any(isinstance(table, TorchTable) and table.rounded for table in tables),
        "optimizer adam or lazy_adam": any(table.optimizer.name in ("adam", "lazy_adam") for table in tables),
        "tables with several rows or weights per id": any(
            table.rows_per_id > 1 or table.id_map.weights is not None for table in tables
        ),
        "sparse tables": any(isinstance(table, SparseTable) for table in tables),
    }
    return [name for name, wrong in checks.items() if wrong]
