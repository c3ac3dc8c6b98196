"""A sweep in MLflow: one parent run, and a child run for each trial of any process."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.atomic import write_json
from pipelines.sweep.study import Trial
from pipelines.tracking_journal import Event
from pipelines.tracking_run import Status, TrackedRun, Tracker

TRACKED = "tracked.json"
"""Names of the trials whose runs have ended."""
_ENDED: dict[str, Status] = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


def ended(directory: Path) -> set[str]:
    """The trials of a sweep that need not be told to a tracker again."""
    path = directory / TRACKED
    return set(json.loads(path.read_bytes())) if path.exists() else set()


class TrackedSweep:
    """Tells a tracker what no process has told it of the trials yet.

    Args:
        tracker: of the sweep's directory.
        metric: validation metric by variant.
    """

    def __init__(self, tracker: Tracker, metric: dict[str, str]) -> None:
        self._tracker, self._metric = tracker, metric
        self._told: dict[str, set[int]] = {}
        self._ended = ended(tracker.run_dir)

    def sync(self, trials: list[Trial]) -> None:
        """Start the runs of new trials, add their new epochs, end the finished ones."""
        before = len(self._ended)
        for trial in trials:
            if trial.name not in self._ended:
                self._tell(trial)
        if len(self._ended) > before:
            write_json(self._tracker.run_dir / TRACKED, sorted(self._ended))

    def _tell(self, trial: Trial) -> None:
        run, metric = TrackedRun(trial.name, self._tracker), f"valid/{self._metric[trial.variant]}"
        if trial.name not in self._told:
            self._told[trial.name] = set()
            self._tracker.record(Event(trial.name, "start", {"name": trial.name}))
            run.params({"variant": trial.variant, "trial": trial.number} | trial.values)
        for epoch, value in trial.epochs.items():
            if epoch not in self._told[trial.name]:
                self._told[trial.name].add(epoch)
                run.metrics({metric: value}, step=epoch)
        if trial.status == "running":
            return
        self._ended.add(trial.name)
        if trial.value is not None:
            run.metrics({f"best {metric}": trial.value})
        run.params({"status": trial.status} | ({"error": trial.error[:200]} if trial.error else {}))
        self._tracker.record(Event(trial.name, "end", {"status": _ENDED[trial.status]}))
