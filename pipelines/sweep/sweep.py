"""``recsys sweep``: trials of an experiment's variants, by any number of processes, until there are enough of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pipelines.atomic import finite, write_json, write_text
from pipelines.cache import Cache, try_locked
from pipelines.config_loader import config_hash
from pipelines.progress import Reporter, duration
from pipelines.run_directory import cache_root
from pipelines.run_files import RunFiles, resolved
from pipelines.sweep.objective import Objective, open_objective
from pipelines.sweep.report import build_sweep_report
from pipelines.sweep.results import BEST, best_trials, best_variants, summary, words
from pipelines.sweep.space import AnyExperiment, spaces, unused
from pipelines.sweep.study import OwnTrial, PrunedError, Studies, Trial
from pipelines.sweep.tracked import TrackedSweep, ended
from pipelines.tracking import open_tracker
from recsys.settings import EpochRecord

FAILURES = 3
"""A variant whose first so many trials all fail stops the sweep."""


class SweepError(ValueError):
    """A sweep that cannot go on; the message says what to change."""


def run_sweep(
    experiment: AnyExperiment, *, trials: int, minutes: float | None = None, command: str = "", quiet: bool = False
) -> Path:
    """Search the settings of an experiment on validation.

    Several processes may run the same sweep: they share its directory and its trials. A killed one loses nothing, for
    the next goes on with its trial from the last checkpoint.

    Args:
        experiment: with a section ``search``.
        trials: of each variant in all, those of earlier calls and other processes included.
        minutes: after which no trial is begun; None for no end.
        command: the command line, for the log.
        quiet: print nothing (``log.txt`` has everything).

    Returns:
        The experiment with the best settings, ``<output>/<experiment>-sweep-<hash>/best.yaml``.

    Raises:
        SweepError: There is nothing to search, or a variant's first trials all fail.
        DataError: The data cannot be used, or has no validation split.
    """
    if experiment.search is None:
        raise SweepError(
            f"{experiment.experiment} has no section `search`, which says what a sweep tries; add one, as"
            " `search: {parameters: {model.dim: {type: int, low: 8, high: 64, log: true}}}`"
        )
    if not spaces(experiment):
        names = ", ".join(variant.name for variant in experiment.variants)
        raise SweepError(f"none of the variants {names} has a setting of search.parameters; change one or the other")
    facts = [config_hash(experiment), experiment.search.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    directory = Path(experiment.output) / f"{experiment.experiment}-sweep-{digest}"
    directory.mkdir(parents=True, exist_ok=True)
    with Reporter(directory / "log.txt", quiet=quiet) as report:
        report.log(f"command: {command}")
        RunFiles(directory).write_config(experiment)
        _Sweep(experiment, directory, report).run(trials, minutes)
    return directory / BEST


class _Sweep:
    """The part of a sweep that one process does."""

    def __init__(self, experiment: AnyExperiment, directory: Path, report: Reporter) -> None:
        assert experiment.search is not None
        self._experiment, self._directory, self._report = experiment, directory, report
        found = spaces(experiment)
        self._metrics = {v.name: v.train.selection for v in experiment.variants if v.name in found}
        self._epochs = {v.name: v.train.epochs for v in experiment.variants}
        self._studies = Studies(directory, found, experiment.search)
        self._tracked: TrackedSweep | None = None

    def run(self, limit: int, minutes: float | None) -> None:
        """Work until every variant has its trials or time is up, then write what was found."""
        started = time.monotonic()
        for key in unused(self._experiment):
            self._report.say(f"search.parameters.{key}: no variant of this sweep has it")
        objective = open_objective(self._experiment, Cache(cache_root(), on_wait=self._report.say), self._report)
        with self._leading(objective):
            self._work(objective, limit, started + 60 * minutes if minutes is not None else math.inf)
            self._publish()
        while self._untold() and self._experiment.tracking.enabled:
            with self._leading(objective) as leads:
                if not leads:
                    break
        self._report.say(f"finished in {duration(time.monotonic() - started)}")
        for line in summary(self._metrics, self._studies.trials(), self._directory):
            self._report.say(line)

    @contextlib.contextmanager
    def _leading(self, objective: Objective) -> Iterator[bool]:
        """Be the one process that tells MLflow of all trials, if no other is."""
        with contextlib.ExitStack() as stack:
            leads = stack.enter_context(try_locked(self._directory / ".lock"))
            if leads:
                settings, name = self._experiment.tracking, self._experiment.experiment
                tracker = stack.enter_context(open_tracker(settings, name, self._directory))
                tracker.params(self._experiment.model_dump(mode="json", exclude={"variants"}))
                tracker.dataset(objective.data)
                self._tracked = TrackedSweep(tracker, self._metrics)
            yield leads
            self._tell()
            if leads:
                files = (path for path in self._directory.iterdir() if path.suffix in (".yaml", ".html"))
                tracker.artifacts(sorted(files))
            self._tracked = None

    def _work(self, objective: Objective, limit: int, deadline: float) -> None:
        total = limit * len(self._metrics)
        before = sum(trial.status != "running" for trial in self._studies.trials())
        while time.monotonic() < deadline:
            with self._studies.claim(limit) as own:
                if own is None:
                    break
                self._try(objective, own)
            self._tell()
            trials = self._studies.trials()
            done = sum(trial.status != "running" for trial in trials)
            best = ", ".join(f"{t.variant} {t.value:.4f}" for t in best_trials(trials).values())
            self._report("sweep", done - before, total - before, f"best {best or 'none yet'}")
            self._stop_if_hopeless(trials)

    def _try(self, objective: Objective, own: OwnTrial) -> None:
        trial, metric = own.facts, self._metrics[own.facts.variant]

        def on_epoch(record: EpochRecord) -> None:
            note = ", ".join([f"loss {record.loss:.4f}", *(f"{k} {v:.4f}" for k, v in record.metrics.items())])
            self._report.log(f"{trial.name} epoch {record.epoch}: {note}")
            self._report(f"trial {trial.name}", record.epoch, self._epochs[trial.variant], note)
            if metric in record.metrics:
                own.report(record.epoch, record.metrics[metric])
            self._tell()

        started = time.monotonic()
        try:
            found = objective(trial.variant, trial.values, own.directory, on_epoch)
        except PrunedError:
            own.prune()
            said = "pruned"
        except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
            said = f"failed: {error}"
            own.fail(str(error))
        else:
            for epoch, value in found.items():
                own.record(epoch, value)
            said = f"{metric} {max(found.values()):.4f}"
            own.complete(max(found.values()))
        shutil.rmtree(own.directory, ignore_errors=True)
        values = ", ".join(f"{path} {words(value)}" for path, value in trial.values.items())
        self._report.say(f"{trial.name}: {said} ({values}; {duration(time.monotonic() - started)})")

    def _stop_if_hopeless(self, trials: list[Trial]) -> None:
        for name in self._metrics:
            own = [trial for trial in trials if trial.variant == name and trial.status != "running"]
            if len(own) >= FAILURES and all(trial.status == "failed" for trial in own):
                self._publish()
                raise SweepError(
                    f"all {len(own)} trials of {name} failed, the last with: {own[-1].error}; change search.parameters"
                )

    def _publish(self) -> None:
        """Write the trials, the best settings and the report."""
        trials = self._studies.trials()
        importances = {name: self._studies.importances(name) for name in self._metrics}
        write_json(self._directory / "trials.json", finite([vars(trial) for trial in trials]))
        write_text(self._directory / BEST, resolved(best_variants(self._experiment, trials)))
        build_sweep_report(self._directory, self._experiment, trials, self._metrics, importances)

    def _tell(self) -> None:
        if self._tracked is not None:
            self._tracked.sync(self._studies.trials())

    def _untold(self) -> set[str]:
        """Finished trials that MLflow was not told of: their process found another one leading."""
        finished = {trial.name for trial in self._studies.trials() if trial.status != "running"}
        return finished - ended(self._directory)
