"""Exact evaluation of a retriever over the whole catalogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from recsys.catalogue_auc import catalogue_auc
from recsys.intervals import bootstrap_means
from recsys.metrics.beyond_accuracy import coverage, gini, novelty
from recsys.metrics.ranking import NAMES, hit_matrix, ndcg_curve, ranking_metrics, recall_curve
from recsys.retriever import Retriever, WeightedRetriever
from recsys.slices import Lists, heat_map, slice_tables
from recsys.topk import exact_top_k, top_k_by_weight

FloatArray = npt.NDArray[np.float64]
UNMASKED = ("recall", "ndcg")
"""Metrics that are also told with the seen items left in the lists."""
_KEPT_ITEMS = 50
_SLICE_K = 20


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found, over the U users with a relevant item.

    Attributes:
        users: int64 [U] user indices, ascending.
        per_user: metric name to float64 [U]; ``auc`` is NaN for users without a negative, and absent
            where nobody has one.
        metrics: metric name to its mean over users (``coverage@k`` and ``gini@k``: over all lists together).
        ci95: metric name to its bootstrap interval, for the metrics in ``per_user``.
        curves: ``{"recall": {"mean", "low", "high"}, "ndcg": ..}``, each a list for k = 1..max_k.
        slices: slice name to ``[{"label", "users" or "items", "metrics", "ci95"}]``.
        heat: ``{"recall@20": 10 x 10, "counts": 10 x 10}``, user-activity decile by item-popularity decile.
        top_items: int32 [U, 50], best first, -1 = none.
    """

    users: npt.NDArray[np.int64]
    per_user: dict[str, FloatArray]
    metrics: dict[str, float]
    ci95: dict[str, tuple[float, float]]
    curves: dict[str, dict[str, list[float]]]
    slices: dict[str, list[dict[str, Any]]]
    heat: dict[str, list[list[float]]]
    top_items: npt.NDArray[np.int32]

    def summary(self) -> dict[str, Any]:
        """JSON-able facts without the per-user arrays and lists."""
        return {
            "users": len(self.users),
            "metrics": self.metrics,
            "ci95": {name: list(interval) for name, interval in self.ci95.items()},
            "curves": self.curves,
            "slices": self.slices,
            "heat": self.heat,
        }


def evaluate(
    model: Retriever,
    *,
    relevant: csr_array,
    seen: csr_array,
    train: csr_array,
    ks: Sequence[int] = (5, 10, 20, 50),
    max_k: int = 200,
    bootstrap: int = 1000,
    seed: int = 0,
    auc: bool = True,
    unmasked: bool = False,
) -> Evaluation:
    """Rank the whole catalogue for every user with a relevant item and compute every metric.

    Args:
        model: the retriever.
        relevant: csr [num_users, num_items], the held-out interactions.
        seen: csr [num_users, num_items], items that are not recommended (train, and valid at test).
        train: csr [num_users, num_items], for popularity and activity.
        ks: lengths of the metrics.
        max_k: length of the curves, at most the catalogue.
        bootstrap: resamples of the intervals.
        seed: of the bootstrap.
        auc: whether to compute ``auc``: the mean over users of the AUC over the catalogue (GAUC with equal weights).
        unmasked: also rank with the seen items left in, for ``recall_unmasked@k`` and ``ndcg_unmasked@k``.

    Raises:
        ValueError: Shapes differ from the model's, nobody has a relevant item, a relevant item is masked, or a score
            is NaN or infinite.
    """
    users, positives = _judged(model, relevant, seen, train)
    max_k = min(max(max_k, *ks), model.num_items)
    ks = sorted({min(k, max_k) for k in ks})
    items = exact_top_k(model, users, max(max_k, min(_KEPT_ITEMS, model.num_items)), seen).items
    counts = np.diff(positives.indptr).astype(np.int64)
    item_counts = np.bincount(train.indices, minlength=model.num_items).astype(np.int64)
    hits = hit_matrix(items[:, :max_k], positives)
    k = min(_SLICE_K, max_k)
    per_user = ranking_metrics(hits, counts, sorted({*ks, k}))
    lengths = (k, *(length for length in ks if length != k))
    by_length = {name: per_user[name] for n in lengths for name in (f"recall@{n}", f"ndcg@{n}")}
    per_user = {name: values for name, values in per_user.items() if int(name.partition("@")[2]) in ks}
    for length in ks:
        per_user[f"novelty@{length}"] = novelty(items[:, :length], item_counts, model.num_users)
    if unmasked:
        per_user |= _unmasked(model, users, positives, ks)
    if auc:
        per_user |= _auc(model, users, relevant, seen)
    metrics = {name: float(np.nanmean(values)) for name, values in per_user.items()}
    for length in ks:
        metrics[f"coverage@{length}"] = coverage(items[:, :length], model.num_items)
        metrics[f"gini@{length}"] = gini(items[:, :length], model.num_items)
    curves, ci95 = _intervals(per_user, recall_curve(hits, counts), ndcg_curve(hits, counts), bootstrap, seed)
    user_counts = np.diff(train.indptr)[users].astype(np.int64)
    lists = Lists(items[:, :max_k], hits, positives, by_length, lengths, user_counts, item_counts)
    heat, pairs = heat_map(lists)
    return Evaluation(
        users=users,
        per_user=per_user,
        metrics=metrics,
        ci95=ci95,
        curves=curves,
        slices=slice_tables(lists, bootstrap, seed),
        heat={f"recall@{k}": heat.tolist(), "counts": pairs.tolist()},
        top_items=_padded(items[:, :_KEPT_ITEMS]),
    )


def _auc(model: Retriever, users: npt.NDArray[np.int64], relevant: csr_array, seen: csr_array) -> dict[str, FloatArray]:
    """Nothing where no user has a negative."""
    values = catalogue_auc(model, users, relevant, seen)
    return {} if np.isnan(values).all() else {"auc": values}


def _unmasked(
    model: Retriever, users: npt.NDArray[np.int64], positives: csr_array, ks: list[int]
) -> dict[str, npt.NDArray[np.float64]]:
    """Metrics of lists that seen items may be in."""
    top = exact_top_k(model, users, max(ks), None).items
    found = _values(top, positives, ks)
    return {f"{name}_unmasked@{k}": found[f"{name}@{k}"] for name in UNMASKED for k in ks}


def check_validation(valid: csr_array | None) -> None:
    """Refuse, before a training, what it could not select on.

    Raises:
        ValueError: A matrix without an interaction.
    """
    if valid is not None and valid.nnz == 0:
        raise ValueError(
            f"valid must have at least one interaction, got an empty matrix of shape {valid.shape};"
            " pass None to train without validation"
        )


def quick_metrics(
    model: Retriever, relevant: csr_array, seen: csr_array, names: Sequence[str] = ("recall@20", "ndcg@20")
) -> dict[str, float]:
    """Means over users of ranking metrics such as ``"recall@20"``, for selection during training.

    Raises:
        ValueError: As :func:`evaluate`, or a name is not ``metric@k`` with a metric of :mod:`recsys.metrics.ranking`.
    """
    lengths = sorted({_length(name) for name in names})
    users, positives = _judged(model, relevant, seen, seen)
    values = _values(exact_top_k(model, users, lengths[-1], seen).items, positives, lengths)
    return {name: float(values[name].mean()) for name in names}


def quick_metrics_by_weight(
    model: WeightedRetriever,
    weights: Sequence[float],
    relevant: csr_array,
    seen: csr_array,
    names: Sequence[str] = ("recall@20", "ndcg@20"),
    on_users: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[dict[str, float]]:
    """:func:`quick_metrics` at each weight, in one pass over the users.

    Args:
        model: what is weighed; its own weight does not matter.
        weights: to rank at.
        relevant: csr [num_users, num_items], the held-out interactions.
        seen: csr [num_users, num_items], items that are not recommended.
        names: of the metrics.
        on_users: called with the users that are ranked, and all of them; first with none.

    Raises:
        ValueError: As :func:`quick_metrics`.
    """
    lengths = sorted({_length(name) for name in names})
    users, positives = _judged(model, relevant, seen, seen)
    values = np.empty((len(weights), len(names), len(users)))
    on_users(0, len(users))
    for rows, tops in top_k_by_weight(model, weights, users, lengths[-1], seen):
        for own, top in zip(values, tops, strict=True):
            found = _values(top.items, positives[rows], lengths)
            own[:, rows] = [found[name] for name in names]
        on_users(rows.stop, len(users))
    return [dict(zip(names, means, strict=True)) for means in values.mean(axis=2).tolist()]


def _values(items: npt.NDArray[np.int32], positives: csr_array, lengths: list[int]) -> dict[str, FloatArray]:
    """Every ranking metric, float64 [U], of lists [U, K]."""
    return ranking_metrics(hit_matrix(items, positives), np.diff(positives.indptr).astype(np.int64), lengths)


def _length(name: str) -> int:
    metric, _, k = name.partition("@")
    if metric not in NAMES or not k.isdecimal() or int(k) < 1:
        raise ValueError(f"a selection metric is one of {', '.join(NAMES)} at a length, as recall@20; got {name!r}")
    return int(k)


def _judged(
    model: Retriever, relevant: csr_array, seen: csr_array, train: csr_array
) -> tuple[npt.NDArray[np.int64], csr_array]:
    """Users with a relevant item and their rows of ``relevant``, after checking that all fit."""
    shape = (model.num_users, model.num_items)
    for name, matrix in (("relevant", relevant), ("seen", seen), ("train", train)):
        if matrix.shape != shape:
            raise ValueError(f"{name} must have the model's shape {list(shape)}, got {list(matrix.shape)}")
    users = np.flatnonzero(np.diff(relevant.indptr)).astype(np.int64)
    if not users.size:
        raise ValueError("no user has a relevant item: the split to evaluate is empty")
    positives = relevant[users]
    positives.sort_indices()  # hit_matrix searches them
    both = positives.multiply(seen[users]).tocoo()
    if both.nnz:
        raise ValueError(
            f"a relevant item must not be masked, but {both.nnz:,} pairs are both, first: user {users[both.row[0]]},"
            f" item {both.col[0]}; the splits overlap"
        )
    return users, positives


def _intervals(
    per_user: dict[str, FloatArray], recall: FloatArray, ndcg: FloatArray, resamples: int, seed: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, tuple[float, float]]]:
    """Curves with bands, and the interval of every per-user metric, from the same resamples of users.

    A metric that some users do not have is resampled among those who have it.
    """
    max_k = recall.shape[1]
    values = np.concatenate([recall, ndcg, np.stack(list(per_user.values()), axis=1)], axis=1)
    low, high = bootstrap_means(values.astype(np.float32), resamples, seed)
    curves = {}
    for place, name in enumerate(("recall", "ndcg")):
        part = slice(place * max_k, (place + 1) * max_k)
        curves[name] = {
            "mean": values[:, part].mean(axis=0).tolist(),
            "low": low[part].tolist(),
            "high": high[part].tolist(),
        }
    ci95 = {name: (float(low[2 * max_k + i]), float(high[2 * max_k + i])) for i, name in enumerate(per_user)}
    for name, column in per_user.items():
        known = ~np.isnan(column)
        if not known.all():
            ends = bootstrap_means(column[known, None].astype(np.float32), resamples, seed)
            ci95[name] = float(ends[0][0]), float(ends[1][0])
    return curves, ci95


def _padded(items: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Lists of exactly 50 places."""
    return np.pad(items, ((0, 0), (0, _KEPT_ITEMS - items.shape[1])), constant_values=-1)
