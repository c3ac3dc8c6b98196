"""New users and items on MovieLens-1M: recall before and after the clusters of a compressed model are refreshed.

The data set knows each user's order (``chrono_pos``). A model is trained on the first part of nine tenths of the users.
Then the rest of the users and later ratings arrive, and every user's last tenth is to be predicted. Compared are the
old model whose clusters new ids join; the same rows carried over to clusters of all that is known; these trained on
for half of the epochs; and a model from scratch for as many epochs.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from scipy.sparse import csr_array

from benchmarks.harness import Row, finish, set_threads
from benchmarks.peer import ROOT
from embeddings.assign import assign
from embeddings.compress import compress
from embeddings.id_map import IdMap
from embeddings.refresh import refresh
from embeddings.tables import OptimizerSpec, build_table
from embeddings.tables.table import Table
from recsys.evaluator import quick_metrics
from recsys.losses import Loss
from recsys.models.mf import MatrixFactorization
from recsys.rng import generator
from recsys.samplers import NegativeSampling
from recsys.settings import FitSettings
from recsys.trainer import fit

DIM, EPOCHS, SHARE = 64, 20, 0.25
METRIC = "recall@20"
OLD, LATER = 0.6, 0.9
"""Of a user's ratings: where the first model's part ends, and where the part to predict begins."""
Longs = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Periods:
    """Interactions [users, items], the ids of the first period before those that arrived later.

    Attributes:
        old: what the first model knows, [old users, old items].
        known: what is known when the clusters are refreshed, all ids.
        future: what is to be predicted.
    """

    old: csr_array
    known: csr_array
    future: csr_array


def run(scale: float = 1.0) -> int:
    """Train, refresh and train on; ``scale`` is the share of the users and of the epochs."""
    set_threads()
    periods = split(*_ratings(scale))
    found = compare(periods, max(2, round(EPOCHS * scale)))
    case = (
        f"ML-1M, {periods.known.shape[0] - periods.old.shape[0]:,} new users, "
        f"{periods.known.shape[1] - periods.old.shape[1]:,} new items, multi_graphhash at {SHARE:.0%}"
    )
    stale, scratch = found["joined"], found["scratch"]
    rows = [
        Row(f"{case}, {name}", "old model", found[name], stale, METRIC, ratio, ratio, ratio, quality=found)
        for name, ratio in ((name, found[name] / max(stale, 1e-9)) for name in ("carried", "trained_on"))
    ]
    ratio = found["trained_on"] / max(scratch, 1e-9)
    case = f"{case}, trained_on for half of the epochs"
    rows.append(Row(case, "from scratch", found["trained_on"], scratch, METRIC, ratio, ratio, ratio, quality=found))
    return finish("refresh", rows, scale=scale)


def _ratings(scale: float) -> tuple[Longs, Longs, Longs]:
    data = Path(os.environ.get("RECSYS_DATA", ROOT.parent / "shared" / "data"))
    frame = pl.read_parquet(data / "ml1m" / "interactions.parquet").filter(pl.col("chrono_pos") >= 0)
    users, items, order = (frame[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id", "chrono_pos"))
    some = users <= np.quantile(users, scale)
    return users[some], items[some], order[some]


def split(users: Longs, items: Longs, order: Longs) -> Periods:
    """Divide ratings by each user's own order; every tenth user is new, and so is an item that only they or later have.

    Args:
        users: int64 [E], any numbers.
        items: int64 [E].
        order: int64 [E], falling never behind in a user's time.
    """
    users, items = np.unique(users, return_inverse=True)[1], np.unique(items, return_inverse=True)[1]
    by_time = np.lexsort((order, users))
    users, items = users[by_time], items[by_time]
    counts = np.bincount(users)
    place = (np.arange(users.size) - (np.cumsum(counts) - counts)[users] + 0.5) / counts[users]
    first = (place < OLD) & (users % 10 != 9)
    users, old_users = _old_first(users, first)
    items, old_items = _old_first(items, first)
    shape = (users.max() + 1, items.max() + 1)

    def matrix(some: npt.NDArray[np.bool_], shape: tuple[int, int]) -> csr_array:
        made = csr_array((np.ones(int(some.sum()), np.float32), (users[some], items[some])), shape=shape)
        made.sort_indices()
        return made

    later = place >= LATER
    return Periods(matrix(first, (old_users, old_items)), matrix(~later, shape), matrix(later, shape))


def _old_first(ids: Longs, first: npt.NDArray[np.bool_]) -> tuple[Longs, int]:
    """Ids numbered anew, those of the first period before the others, and how many these are."""
    old = np.bincount(ids[first], minlength=ids.max() + 1) > 0
    number = np.empty(old.size, np.int64)
    number[np.argsort(~old, kind="stable")] = np.arange(old.size)
    return number[ids], int(old.sum())


def compare(periods: Periods, epochs: int) -> dict[str, float]:
    """Recall of the future: ``joined``, ``carried``, ``trained_on`` and ``scratch``."""
    old_maps, maps = _maps(periods.old), _maps(periods.known)
    model = _model(old_maps)
    _train(model, periods.old, epochs)
    users, items = periods.old.shape
    new_users, new_items = periods.known[users:, :items], periods.known[:users, items:].T.tocsr()
    joined = (
        assign(new_users, periods.old, old_maps[0]),
        assign(new_items, periods.old.T.tocsr(), old_maps[1]),
    )
    result = {"joined": _recall(_carried(model, joined), periods)}
    fresh = _carried(model, maps)
    result["carried"] = _recall(fresh, periods)
    _train(fresh, periods.known, epochs // 2)
    result["trained_on"] = _recall(fresh, periods)
    scratch = _model(maps)
    _train(scratch, periods.known, epochs)
    return result | {"scratch": _recall(scratch, periods)}


def _maps(train: csr_array) -> tuple[IdMap, IdMap]:
    users, items = (max(1, round(SHARE * count)) for count in train.shape)
    return compress("multi_graphhash", train, users, items)


def _model(maps: tuple[IdMap, IdMap]) -> MatrixFactorization:
    users, items = (
        build_table(
            one, DIM, optimizer=OptimizerSpec("adagrad", lr=0.1), init_std=0.1, generator=generator(0, "init", side)
        )
        for side, one in zip(("users", "items"), maps, strict=True)
    )
    return MatrixFactorization(users, items, similarity="cosine")


def _carried(model: MatrixFactorization, maps: tuple[IdMap, IdMap]) -> MatrixFactorization:
    """The model over other maps of the same ids, its rows and optimizer state carried over."""
    fresh = _model(maps)
    for old, new in zip(model.tables, fresh.tables, strict=True):
        _carry(old, new)
    return fresh


def _carry(old: Table, new: Table) -> None:
    state = {name: view.numpy(force=True) for name, view in old.optimizer_state().items()}
    carried = refresh(old.id_map, new.id_map, old.weight().numpy(force=True), state)
    with torch.no_grad():
        new.weight().copy_(torch.from_numpy(carried.weight))
        for name, view in new.optimizer_state().items():
            view.copy_(torch.from_numpy(carried.state[name]))


def _train(model: MatrixFactorization, train: csr_array, epochs: int) -> None:
    loss = Loss("sampled_softmax", temperature=0.1, logq=True)
    fit(model, train, None, FitSettings(loss, NegativeSampling(count=256), batch_size=4096, epochs=epochs), seed=0)


def _recall(model: MatrixFactorization, periods: Periods) -> float:
    return quick_metrics(model, periods.future, periods.known, (METRIC,))[METRIC]
