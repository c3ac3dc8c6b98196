"""Evaluation of a ranker's scores on labelled events: exact metrics, intervals, slices and curves."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.event_batch import Events
from recsys.metrics.delong import auc_interval
from recsys.metrics.grouped_counts import GroupedCounts
from recsys.metrics.scored_counts import ScoredCounts
from recsys.rankers.intervals import bootstrap_intervals

MAX_CURVE_POINTS = 400
ACTIVITY_BOUNDS = (0, 1, 5, 20, 100)
"""Lower ends of the slices by train events."""
FIFTHS = np.linspace(0, 1, 6)


@dataclasses.dataclass(frozen=True)
class ItemAges:
    """How old the item of each event was.

    Attributes:
        ages: float64 [E] since the item's first train event; NaN where train lacks it or the time is unknown.
        unit: of the ages.
    """

    ages: npt.NDArray[np.float64]
    unit: str


@dataclasses.dataclass(frozen=True)
class RankingEvaluation:
    """What was found on one split.

    Attributes:
        events: scored.
        metrics: auc, gauc, pr_auc, log_loss, normalised_entropy, calibration_slope, calibration_intercept, ece. Those
            that one class leaves undefined are absent.
        ci95: DeLong interval of the AUC, bootstrap intervals over users of log_loss, gauc and pr_auc.
        curves: "roc" {"false", "true"}, "reliability" {"predicted", "observed", "events"}, "scores" {"edges",
            "positives", "negatives"}: histogram of the log-odds.
        slices: by name, lists of {"label", "events", "positives", "auc", "low", "high"}; a slice of one class has no
            AUC.
    """

    events: int
    metrics: dict[str, float]
    ci95: dict[str, tuple[float, float]]
    curves: dict[str, dict[str, list[float]]]
    slices: dict[str, list[dict[str, Any]]]

    def summary(self) -> dict[str, Any]:
        """JSON-able."""
        return dataclasses.asdict(self)


def evaluate_ranker(
    events: Events,
    scores: npt.NDArray[np.float32],
    train: Events,
    *,
    user: str,
    item: str,
    by: tuple[str, ...] = (),
    sizes: Mapping[str, int] | None = None,
    ages: ItemAges | None = None,
    users: npt.NDArray[np.int32] | None = None,
) -> RankingEvaluation:
    """Evaluate log-odds.

    Args:
        events: with labels.
        scores: float32 [E] of these events.
        train: whose counts tell how active a user and how common an item was.
        user: field of the users.
        item: field of the items.
        by: fields whose values are slices, for fields of few values.
        sizes: ids of each field; the values that share the id after the last one are a slice of their own.
        ages: of the items at the events; gives slices by fifths of the ages.
        users: int32 [E], whose event each is, for GAUC and the bootstrap; None where every user has an id in ``user``.
    """
    users = events.column(user) if users is None else users
    parts = {f"{field} value": _values(events, field) for field in by}
    positive = train.labels == 1
    for field in (user, item):
        ids, known, size = events.column(field), train.column(field), (sizes or {}).get(field)
        parts[f"train events of the {field}"] = _activity(ids, known, size)
        parts[f"train positives of the {field}"] = _activity(ids, known[positive], size)
    if ages is not None:
        parts["age of the item"] = _by_age(ages)
    slices = {
        name: [(label, ScoredCounts.of(events.labels[rows], scores[rows])) for label, rows in found]
        for name, found in parts.items()
    }
    return evaluate_counts(GroupedCounts.of(events.labels, scores, users), slices)


def evaluate_counts(
    by_user: GroupedCounts, slices: Mapping[str, Sequence[tuple[str, ScoredCounts]]]
) -> RankingEvaluation:
    """Evaluate counted events, which workers may have counted apart and merged.

    Args:
        by_user: events by user and log-odds, at least one.
        slices: by name, the label and the events of each; one without events is left out.
    """
    counts = by_user.ungrouped()
    metrics = {"log_loss": counts.log_loss(), "ece": counts.reliability().error}
    ci95: dict[str, tuple[float, float]] = {}
    curves: dict[str, dict[str, list[float]]] = {"scores": _histogram(counts), "reliability": _reliability(counts)}
    if counts.num_positives and counts.num_negatives:
        slope, intercept = counts.calibration()
        metrics |= {
            "auc": counts.auc(),
            "pr_auc": counts.average_precision(),
            "normalised_entropy": counts.normalised_entropy(),
            "calibration_slope": slope,
            "calibration_intercept": intercept,
        }
        curves["roc"] = _roc(counts)
        if min(counts.num_positives, counts.num_negatives) > 1:
            found = auc_interval(counts)
            ci95["auc"] = (found.low, found.high)
        ci95 |= bootstrap_intervals(by_user)
        if not np.isnan(by_user.group_aucs()[0]).all():
            metrics["gauc"] = by_user.auc().value
    rows = {name: [_slice(label, part) for label, part in parts if len(part.scores)] for name, parts in slices.items()}
    return RankingEvaluation(counts.num_positives + counts.num_negatives, metrics, ci95, curves, rows)


def _activity(
    ids: npt.NDArray[np.int32], known: npt.NDArray[np.int32], size: int | None
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Events by how often train has their id; values without an id of their own, ``>= size``, are not told apart."""
    seen = np.bincount(known, minlength=int(max(ids.max(initial=0), known.max(initial=0))) + 1)[ids]
    rare = (ids >= size) & (seen > 0) if size is not None else np.zeros(len(ids), np.bool_)
    upper = (*(bound - 1 for bound in ACTIVITY_BOUNDS[1:]), None)
    bins = zip(ACTIVITY_BOUNDS, upper, strict=True)
    parts = [
        (
            "none" if high == 0 else f"{low} or more" if high is None else f"{low} to {high}",
            ~rare & (seen >= low) & (seen <= (seen.max(initial=0) if high is None else high)),
        )
        for low, high in bins
    ]
    return [("too few for an id", rare), *parts]


def _by_age(found: ItemAges) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Events by fifths of the known ages; equal ages are in one slice."""
    known = np.isfinite(found.ages)
    edges = np.unique(np.quantile(found.ages[known], FIFTHS, method="inverted_cdf")) if known.any() else np.empty(0)
    place = np.searchsorted(edges[1:-1], found.ages, side="left")
    bounds = list(itertools.pairwise(edges)) or [(edge, edge) for edge in edges]
    parts = [(f"{low:.10g} to {high:.10g} {found.unit}", known & (place == i)) for i, (low, high) in enumerate(bounds)]
    return [("first train event unknown", ~known), *parts]


def _values(events: Events, field: str) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Events by the id of the field; the caller knows what the ids stand for."""
    ids = events.column(field)
    return [(str(value), ids == value) for value in np.unique(ids)]


def _slice(label: str, counts: ScoredCounts) -> dict[str, Any]:
    positives, negatives = counts.num_positives, counts.num_negatives
    row: dict[str, Any] = {"label": label, "events": positives + negatives, "positives": positives}
    if min(positives, negatives) > 1:
        interval = auc_interval(counts)
        row |= {"auc": interval.value, "low": interval.low, "high": interval.high}
    return row


def _roc(counts: ScoredCounts) -> dict[str, list[float]]:
    """The exact curve at points that are evenly spread over its steps."""
    false, true = counts.roc()
    steps = np.arange(len(false))
    if len(steps) > MAX_CURVE_POINTS:
        length = false + true
        steps = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MAX_CURVE_POINTS)))
    return {"false": false[steps].tolist(), "true": true[steps].tolist()}


def _reliability(counts: ScoredCounts) -> dict[str, list[float]]:
    found = counts.reliability()
    return {
        "predicted": found.predicted.tolist(),
        "observed": found.observed.tolist(),
        "events": found.events.astype(float).tolist(),
    }


def _histogram(counts: ScoredCounts, bins: int = 60) -> dict[str, list[float]]:
    """Events by log-odds between the 0.1 % and 99.9 % quantiles; the outer bins hold what lies beyond."""
    totals = np.cumsum(counts.positives + counts.negatives)
    low, high = (float(counts.scores[np.searchsorted(totals, share * totals[-1])]) for share in (0.001, 0.999))
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    places = np.clip(np.searchsorted(edges, counts.scores, side="right") - 1, 0, bins - 1)
    return {
        "edges": edges.tolist(),
        "positives": np.bincount(places, counts.positives, bins).tolist(),
        "negatives": np.bincount(places, counts.negatives, bins).tolist(),
    }
