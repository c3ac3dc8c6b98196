"""Evaluation of multi-task predictions: each task's metrics with intervals, and paired tests of two models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from scipy.stats import t as student_t

from recsys.event_batch import Events
from recsys.metrics.delong import auc_difference
from recsys.rankers.evaluation import evaluate_ranker
from recsys.rankers.multi_task import Task
from recsys.task_events import TaskEvents

FloatArray = npt.NDArray[np.floating[Any]]
_Z95 = 1.959963984540054
_ROUNDING = 1e-12
"""Share of the values up to which differences between them are equal: no more than float64 arithmetic leaves."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A metric of model a minus that of model b, with its 95 % interval and a two-sided p.

    Where the pairs differ, but all by the same amount, as a single pair does, there is no spread to hold the difference
    against: as :func:`recsys.metrics.delong.auc_difference` does, the test says nothing, by a p of 1 and an interval of
    every value, from -inf to inf for other metrics than DeLong's AUC.
    """

    difference: float
    low: float
    high: float
    p: float


def headline(task: Task) -> str:
    """The metric by which models are compared on a task: "auc", higher is better, or "rmse", lower is better."""
    return "auc" if task.kind == "binary" else "rmse"


def evaluate_task(
    task: Task, events: TaskEvents, predictions: FloatArray, train: TaskEvents, *, user: str, item: str,
    users: npt.NDArray[np.int32] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate the predictions of one task on the events whose label is known.

    Args:
        task: what is predicted.
        events: E of them.
        predictions: [E], log-odds of a binary task, labels of a regression.
        train: whose counts tell how active a user and how common an item was.
        user: field of the users.
        item: field of the items.
        users: as :func:`recsys.rankers.evaluation.evaluate_ranker` takes them.

    Returns:
        A binary task has what :class:`recsys.rankers.evaluation.RankingEvaluation` has; a regression "events",
        "metrics" (rmse, mae, r2) and "ci95" (of the rmse). JSON-able.
    """
    known, place = events.known(task.name), events.tasks.index(task.name)
    labels = events.labels[known, place]
    if task.kind == "regression":
        return _regression(labels.astype(np.float64), predictions[known].astype(np.float64))

    def of(split: TaskEvents, rows: npt.NDArray[np.bool_]) -> Events:
        none = np.zeros((int(rows.sum()), 0), np.float32)
        return Events(split.ids[rows], none, split.labels[rows, place].astype(np.uint8), split.fields)

    scores = np.ascontiguousarray(predictions[known], dtype=np.float32)
    found = evaluate_ranker(
        of(events, known), scores, of(train, train.known(task.name)), user=user, item=item,
        users=None if users is None else users[known],
    )  # fmt: skip
    return found.summary()


def _regression(labels: npt.NDArray[np.float64], predictions: npt.NDArray[np.float64]) -> dict[str, Any]:
    squares = np.square(predictions - labels)
    mse, spread = float(squares.mean()), float(labels.var())
    metrics = {"rmse": math.sqrt(mse), "mae": float(np.abs(predictions - labels).mean())}
    if spread > 0:
        metrics["r2"] = 1.0 - mse / spread
    error = _Z95 * _standard_error(squares)
    ci95 = {"rmse": (math.sqrt(max(0.0, mse - error)), math.sqrt(mse + error))} if len(squares) > 1 else {}
    return {"events": len(labels), "metrics": metrics, "ci95": ci95}


def task_difference(task: Task, events: TaskEvents, a: FloatArray, b: FloatArray) -> Difference:
    """Paired test of two models' predictions [E] of the same events.

    AUC by DeLong; RMSE by the paired squared errors, for ``rmse_a - rmse_b = (mse_a - mse_b) / (rmse_a + rmse_b)``,
    whose numerator is a mean over events and asymptotically normal.

    Raises:
        ValueError: A binary task has fewer than two known labels of a class.
    """
    known = events.known(task.name)
    labels = events.labels[known, events.tasks.index(task.name)].astype(np.float64)
    a, b = a[known].astype(np.float64), b[known].astype(np.float64)
    if task.kind == "binary":
        return Difference(**vars(auc_difference(labels, a, b)))
    squares_a, squares_b = np.square(a - labels), np.square(b - labels)
    scale = math.sqrt(squares_a.mean()) + math.sqrt(squares_b.mean())
    if scale == 0:
        return Difference(0.0, 0.0, 0.0, 1.0)
    return _paired(squares_a / scale, squares_b / scale, norm)


def seed_difference(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """Paired t-test of a metric of two models over the same seeds; None for fewer than two seeds.

    Example:
        >>> found = seed_difference([0.82, 0.83, 0.81], [0.80, 0.80, 0.80])
        >>> round(found.difference, 3), round(found.low, 3), round(found.high, 3), round(found.p, 3)
        (0.02, -0.005, 0.045, 0.074)
    """
    if len(a) < 2:
        return None
    return _paired(np.asarray(a), np.asarray(b), student_t(len(a) - 1))


def _paired(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], law: Any) -> Difference:
    """Test of the mean of ``a - b`` [n], whose ratio to its standard error has the distribution ``law``."""
    differences, rounding = a - b, _ROUNDING * float(max(np.abs(a).max(), np.abs(b).max()))
    mean = float(differences.mean())
    if np.ptp(differences) <= rounding:
        return Difference(mean, -math.inf, math.inf, 1.0) if abs(mean) > rounding else Difference(0.0, 0.0, 0.0, 1.0)
    error = _standard_error(differences)
    reach = float(law.ppf(0.975)) * error
    return Difference(mean, mean - reach, mean + reach, 2 * float(law.sf(abs(mean) / error)))


def _standard_error(values: npt.NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
