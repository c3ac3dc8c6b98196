"""Paired comparison of several ranking runs on the same test events."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.compare import CHOICE, ComparedPair, Comparison, check_same_data, run_labels
from pipelines.compared_variants import Candidates, best_variant, matched
from pipelines.errors import DataError, did_you_mean
from pipelines.run_files import RunFiles
from recsys.metrics.delong import auc_difference
from recsys.metrics.grouped_counts import GroupedCounts
from recsys.rankers.intervals import METRICS, PairedDifference, bootstrap_difference, resampled_metrics
from recsys.significance import holm

DELONG = "DeLong's paired test"
BOOTSTRAP = "paired bootstrap over users"
FIRST_SEED = "first seed of each variant"
NOTE = (
    "Values are of the first seed of each variant. Difference: the run in the second column minus the reference on"
    " the same test events. Intervals and p of the AUC are DeLong's, those of other metrics come from a bootstrap that"
    " draws users with all their events. p is corrected by Holm. Of the log-loss the lower value is better."
    f" {CHOICE}"
)
Scores = dict[str, npt.NDArray[np.float32]]


def compare_ranking(
    runs: list[Path], metric: str = "auc", out: Path | None = None, variants: Sequence[str] = ()
) -> Comparison:
    """Compare every ranking run with the first: variants of the same name, and the best on validation with the best.

    The predictions of a variant's first seed are compared, as a run's own report compares them; which variant is best
    on validation is decided by the mean of its seeds, so that no seed is chosen.

    Args:
        runs: run directories on the same data, two or more.
        metric: auc, gauc, pr_auc or log_loss.
        out: where to write the table, too (.html or .md); None for nowhere.
        variants: the only ones to compare, see :func:`pipelines.compared_variants.matched`.

    Raises:
        DataError: Fewer than two runs, another task, other data, an unknown metric or variant.
    """
    if len(runs) < 2:
        raise DataError(f"a comparison needs two runs or more, got {len(runs)}")
    known = ("auc", *METRICS)
    if metric not in known:
        raise DataError(f"rankers are compared by {', '.join(known)}, got {metric!r}; {did_you_mean(metric, known)}")
    loaded = [RunFiles(run) for run in runs]
    for files in loaded:
        config = files.ranking_config()
        if config is None:
            raise DataError(f"{files.directory} ranks a catalogue, the other runs score events; compare runs of a kind")
        if config.task != "ctr":
            raise DataError(f"{files.directory} is a run with task: {config.task}; its report has its paired tests")
    check_same_data([(files.directory, files.metrics().dataset) for files in loaded])
    labels, users = loaded[0].test_events()
    scores = [_scores(files) for files in loaded]
    names = run_labels(runs)
    candidates = [
        Candidates(files.directory, tuple(own), best_variant(files.metrics().variants))
        for files, own in zip(loaded, scores, strict=True)
    ]
    found = []
    for place, name, against in matched(candidates, variants):
        test = _difference(metric, labels, users, scores[place][name], scores[0][against])
        value, other = _value(loaded[place], name, metric), _value(loaded[0], against, metric)
        found.append(_pair(names[place], (name, value), (against, other), test, len(labels), metric))
    corrected = holm([pair.p for pair in found])
    pairs = tuple(dataclasses.replace(pair, p=p) for pair, p in zip(found, corrected, strict=True))
    method = DELONG if metric == "auc" else BOOTSTRAP
    comparison = Comparison(names[0], metric, pairs, (), len(runs), "test events", FIRST_SEED, method, NOTE)
    if out is not None:
        comparison.write(out)
    return comparison


def _difference(
    metric: str,
    labels: npt.NDArray[np.uint8],
    users: npt.NDArray[np.int32],
    a: npt.NDArray[np.float32],
    b: npt.NDArray[np.float32],
) -> PairedDifference:
    if metric == "auc":
        found = auc_difference(labels, a, b)
        return PairedDifference(found.low, found.high, found.p)
    mine, theirs = (resampled_metrics(GroupedCounts.of(labels, scores, users))[metric] for scores in (a, b))
    return bootstrap_difference(mine, theirs)


def _pair(
    run: str, mine: tuple[str, float], theirs: tuple[str, float], test: PairedDifference, events: int, metric: str
) -> ComparedPair:
    return ComparedPair(
        run=run,
        name=mine[0],
        value=mine[1],
        against=theirs[0],
        against_value=theirs[1],
        difference=mine[1] - theirs[1],
        low=test.low,
        high=test.high,
        relative=mine[1] / theirs[1] - 1 if theirs[1] else float("nan"),
        p=test.p,
        users=events,
        lower_is_better=metric == "log_loss",
    )


def _scores(files: RunFiles) -> Scores:
    """Log-odds of each variant, of its first seed."""
    found: Scores = {}
    for variant in files.metrics().variants:
        if variant.name not in found:
            found[variant.name] = files.scores(variant.name, variant.seed)
    return found


def _value(files: RunFiles, name: str, metric: str) -> float:
    first = next(variant for variant in files.metrics().variants if variant.name == name)
    if f"test/{metric}" not in first.metrics:
        raise DataError(f"{files.directory}: {metric} of {name} is undefined on this test split, which lacks a class")
    return first.metrics[f"test/{metric}"]
