"""Where a retriever is good: user activity, item popularity, cold users and items."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from recsys.intervals import bootstrap_ratios

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_HEAD, _TORSO = 0.5, 0.8
_FEW = 5


@dataclasses.dataclass(frozen=True)
class Lists:
    """The lists of U users and what they are judged by.

    Attributes:
        items: int32 [U, k] recommended items, -1 = none.
        hits: bool [U, k] whether they are relevant.
        relevant: csr [U, num_items].
        per_user: metric name (``recall@k``, ``ndcg@k``) to float64 [U].
        lengths: of the lists that items are sought in, each at most k; the heat map has the first.
        user_counts: int64 [U] training interactions of each user.
        item_counts: int64 [num_items] training interactions of each item.
    """

    items: npt.NDArray[np.int32]
    hits: npt.NDArray[np.bool_]
    relevant: csr_array
    per_user: dict[str, FloatArray]
    lengths: tuple[int, ...]
    user_counts: IntArray
    item_counts: IntArray


def slice_tables(lists: Lists, resamples: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Metrics of groups of users (means) and of groups of items (recovered share of the relevant pairs).

    Returns:
        ``user_activity``, ``cold_users``, ``item_popularity``, ``cold_items``: lists of ``{"label", "users" | "items",
        "pairs", "metrics", "ci95"}``; a group without users or pairs has no metrics.
    """
    activity, activity_labels = activity_groups(lists.user_counts)
    popularity, popularity_labels = popularity_groups(lists.item_counts)
    cold_users = (lists.user_counts > 0).astype(np.int64)
    cold_items = np.searchsorted([0, _FEW], lists.item_counts, side="left")
    cold_labels = ["no train users", f"1-{_FEW} train users", f"more than {_FEW} train users"]
    return {
        "user_activity": _user_slice(lists, activity, activity_labels, resamples, seed),
        "cold_users": _user_slice(lists, cold_users, ["no train items", "has train items"], resamples, seed),
        "item_popularity": _item_slice(lists, popularity, popularity_labels, resamples, seed),
        "cold_items": _item_slice(lists, cold_items, cold_labels, resamples, seed),
    }


def activity_groups(counts: IntArray, groups: int = 5) -> tuple[IntArray, list[str]]:
    """Quantile bins of the users' training counts, int64 [U], and labels such as ``"6-10 train items"``.

    Equal counts share a bin, so there may be fewer than ``groups`` bins.
    """
    edges = np.unique(np.quantile(counts, np.arange(1, groups) / groups, method="inverted_cdf"))
    bins = np.searchsorted(edges, counts, side="left")
    used, bins = np.unique(bins, return_inverse=True)
    labels = []
    for group in range(len(used)):
        low, high = counts[bins == group].min(), counts[bins == group].max()
        labels.append(f"{low} train items" if low == high else f"{low}-{high} train items")
    return bins.astype(np.int64), labels


def popularity_groups(counts: IntArray) -> tuple[IntArray, list[str]]:
    """Head, torso and tail: the most popular items with 50 %, 30 % and 20 % of the training interactions.

    Returns:
        int64 [num_items] 0, 1 or 2, and the labels. Items are ordered by count, then by index.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    total = counts.sum()
    groups = np.empty(len(counts), dtype=np.int64)
    groups[order] = np.searchsorted([_HEAD * total, _TORSO * total], before, side="right")
    labels = ["head (50 % of train)", "torso (next 30 %)", "tail (last 20 %)"]
    return groups, labels


def deciles(counts: IntArray) -> IntArray:
    """Decile 0 (least) to 9 (most) of each entry by rank of ``counts``, ties by index; int64, same length."""
    ranks = np.empty(len(counts), dtype=np.int64)
    ranks[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    return ranks * 10 // max(1, len(counts))


def heat_map(lists: Lists) -> tuple[FloatArray, IntArray]:
    """Recovered share and number of the relevant pairs by user-activity decile (rows) and item-popularity decile.

    Returns:
        float64 [10, 10], NaN in cells without pairs, and int64 [10, 10].
    """
    users, items, k = deciles(lists.user_counts), deciles(lists.item_counts), lists.lengths[0]
    pairs = _pair_counts(users, items[lists.relevant.indices], np.diff(lists.relevant.indptr), (10, 10))
    top, hits = lists.items[:, :k], lists.hits[:, :k]
    found = _pair_counts(users, items[top[hits]], hits.sum(axis=1), (10, 10))
    with np.errstate(invalid="ignore"):
        return found / pairs, pairs


def _pair_counts(
    row_group: IntArray, pair_column: IntArray, pairs_per_row: IntArray, shape: tuple[int, int]
) -> IntArray:
    """Counts pairs by (group of their row, group of their column); pairs are ordered by row."""
    cells = np.repeat(row_group, pairs_per_row) * shape[1] + pair_column
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)


def _user_slice(lists: Lists, groups: IntArray, labels: list[str], resamples: int, seed: int) -> list[dict[str, Any]]:
    member = (groups[:, None] == np.arange(len(labels))).astype(np.float64)
    pairs = member.T @ np.diff(lists.relevant.indptr)
    columns = {name: (member * values[:, None], member) for name, values in lists.per_user.items()}
    rows = _rows(columns, labels, resamples, seed)
    for group, row in enumerate(rows):
        row |= {"users": int(member[:, group].sum()), "pairs": int(pairs[group])}
    return rows


def _item_slice(lists: Lists, groups: IntArray, labels: list[str], resamples: int, seed: int) -> list[dict[str, Any]]:
    num_users, shape = len(lists.items), (len(lists.items), len(labels))
    every = np.arange(num_users)
    pairs = _pair_counts(every, groups[lists.relevant.indices], np.diff(lists.relevant.indptr), shape).astype(
        np.float64
    )
    columns = {}
    for k in lists.lengths:
        items, hits = lists.items[:, :k], lists.hits[:, :k]
        found = _pair_counts(every, groups[items[hits]], hits.sum(axis=1), shape).astype(np.float64)
        columns[f"recall@{k}"] = found, pairs
    rows = _rows(columns, labels, resamples, seed)
    for group, row in enumerate(rows):
        row |= {"items": int((groups == group).sum()), "pairs": int(pairs[:, group].sum())}
    return rows


def _rows(
    columns: dict[str, tuple[FloatArray, FloatArray]], labels: list[str], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """One row per label; each metric is a ratio of sums over users, [U, labels] over [U, labels]."""
    numerators = np.concatenate([numerator for numerator, _ in columns.values()], axis=1)
    denominators = np.concatenate([denominator for _, denominator in columns.values()], axis=1)
    low, high = bootstrap_ratios(numerators, denominators, resamples, seed)
    total, weight = numerators.sum(axis=0), denominators.sum(axis=0)
    rows = []
    for group, label in enumerate(labels):
        places = {name: i * len(labels) + group for i, name in enumerate(columns)}
        places = {name: place for name, place in places.items() if weight[place] > 0}
        rows.append(
            {
                "label": label,
                "metrics": {name: float(total[place] / weight[place]) for name, place in places.items()},
                "ci95": {name: [float(low[place]), float(high[place])] for name, place in places.items()},
            }
        )
    return rows
