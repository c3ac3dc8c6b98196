"""AUC of DCN-V2 on Frappe, ours and FuxiCTR's: the same rows, the same grid, the best on validation of each.

``python -m benchmarks.ctr_quality`` trains both on every point of the grid and writes ``results/ctr_quality.json``;
``python -m benchmarks.ctr_quality seeds`` then trains both with eight seeds at the points chosen there.
Ours starts its tables at 1e-3, FuxiCTR at 1e-4 with clipped gradients: batch norm makes the first ones large, which
Adam remembers. In ours users and apps that only drawn negatives have share the unseen id, whose row id dropout teaches;
FuxiCTR, which has no such dropout, gives each an id, as published. Both move all rows of the tables by Adam, stop after
two epochs without a gain in validation AUC, and keep the best weights. Validation alone chooses the point of a side;
the test AUC of the others is kept beside it. Our init_std and id_dropout were set on validation, outside the grid.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import ttest_ind

from benchmarks.ctr import HERE, frappe_events
from benchmarks.ctr_job import FUXICTR, OURS_ONLY, PEER, Job, write_splits
from benchmarks.harness import RESULTS, SMOKE_RESULTS, Peer, peer_python, set_threads, write_json
from recsys.event_batch import Events
from recsys.metrics.delong import auc_difference, auc_interval
from recsys.metrics.scored_counts import ScoredCounts
from recsys.rankers.training import fit_ranker

EPOCHS = 100
SEEDS = 8
START = Job(dim=10, batch_norm=True, table_optimizer="adam", init_std=1e-3, id_dropout=0.02)
GRID = [
    dataclasses.replace(START, dropout=dropout, weight_decay=decay)
    for dropout, decay in itertools.product((0.0, 0.2), (0.005, 0.05))
]
Scores = npt.NDArray[np.float32]
Side = Callable[[Job], tuple[dict[str, Any], Scores]]
"""Trains a job; gives its figures and its scores of the test events."""


def run(scale: float = 1.0, grid: Sequence[Job] = GRID) -> int:
    """Tune both sides; ``scale`` shortens the events."""
    with sides(scale) as (ours, theirs, splits):
        trials = []
        for job in grid:
            trials.append({"job": job.request(), "ours": ours(job)[0], "theirs": theirs(job)[0]})
            print(trials[-1], flush=True)
    chosen = {side: max(trials, key=lambda trial: trial[side]["valid/auc"]) for side in ("ours", "theirs")}
    result: dict[str, Any] = {
        "name": "ctr_quality",
        "peer": PEER,
        "test/auc": {side: trial[side]["test/auc"] for side, trial in chosen.items()},
        "chosen": {
            "ours": chosen["ours"]["job"],
            "theirs": {key: value for key, value in chosen["theirs"]["job"].items() if key not in OURS_ONLY},
        },
        "trials": trials,
        "events": {split: len(events) for split, events in splits.items()},
        "command": "python -m benchmarks.ctr_quality" + ("" if scale == 1.0 else f" {scale:g}"),
    }
    out = RESULTS if scale == 1.0 else SMOKE_RESULTS
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "ctr_quality.json", result)
    return 0


def run_seeds(count: int = SEEDS) -> int:
    """Train both sides at their chosen points with several seeds and write ``results/ctr_quality_seeds.json``."""
    chosen = json.loads((RESULTS / "ctr_quality.json").read_text("utf-8"))["chosen"]
    jobs = {side: Job(**job | {"hidden": tuple(job["hidden"])}) for side, job in chosen.items()}
    trials = []
    with sides() as (ours, theirs, splits):
        for seed in range(count):
            mine, my_scores = ours(dataclasses.replace(jobs["ours"], seed=seed))
            peers, peer_scores = theirs(dataclasses.replace(jobs["theirs"], seed=seed))
            paired = auc_difference(splits["test"].labels, my_scores, peer_scores)
            trials.append({"seed": seed, "ours": mine, "theirs": peers, "difference": dataclasses.asdict(paired)})
            print(trials[-1], flush=True)
    aucs = {side: [trial[side]["test/auc"] for trial in trials] for side in ("ours", "theirs")}
    difference = ttest_ind(aucs["ours"], aucs["theirs"], equal_var=False)
    result = {
        "name": "ctr_quality_seeds",
        "peer": PEER,
        "chosen": chosen,
        "trials": trials,
        "mean test/auc": {side: sum(found) / count for side, found in aucs.items()},
        "difference ci95 (Welch)": list(difference.confidence_interval()),
        "p (Welch)": float(difference.pvalue),
        "command": "python -m benchmarks.ctr_quality seeds",
    }
    write_json(RESULTS / "ctr_quality_seeds.json", result)
    return 0


@contextlib.contextmanager
def sides(scale: float = 1.0) -> Iterator[tuple[Side, Side, Mapping[str, Events]]]:
    """Ours, FuxiCTR's, and the splits; the events have the same order on both sides, whatever their ids."""
    set_threads()
    splits, sizes = frappe_events(scale)
    own, own_sizes = frappe_events(scale, min_positives=1)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_splits(directory, splits, sizes)
        with Peer(peer_python("fuxictr", FUXICTR), HERE / "ctr_fuxictr_worker.py", [name]) as peer:

            def theirs(job: Job) -> tuple[dict[str, Any], Scores]:
                fitted = peer.run("fit", job=job.request(), count=EPOCHS)
                found = peer.run("evaluate", job=job.request()).quality
                out = directory / "test_scores.npy"
                peer.run("save", job=job.request(), out=str(out))
                return found | fitted.quality | {"seconds": fitted.seconds}, np.load(out, allow_pickle=False)

            yield lambda job: fit(job, own, own_sizes, EPOCHS), theirs, splits


def fit(job: Job, splits: Mapping[str, Events], sizes: Mapping[str, int], epochs: int) -> tuple[dict[str, Any], Scores]:
    """Our training of a point of the grid; figures and log-odds of the test events."""
    ranker = job.ranker(sizes)
    fitted = fit_ranker(ranker, splits["train"], splits["valid"], job.settings(epochs), seed=job.seed)
    scores = ranker.scores(splits["test"])
    found = auc_interval(ScoredCounts.of(splits["test"].labels, scores))
    return {
        "valid/auc": max(record.metrics["auc"] for record in fitted.history),
        "test/auc": found.value,
        "test/auc ci95": [found.low, found.high],
        "epochs": fitted.epochs_run,
        "seconds": fitted.seconds,
    }, scores


if __name__ == "__main__":
    sys.exit(run_seeds() if sys.argv[1:] == ["seeds"] else run(*map(float, sys.argv[1:2])))
