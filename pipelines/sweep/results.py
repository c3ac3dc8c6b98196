"""What a sweep found: the best trial of each variant, and the experiment that has their settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipelines.sweep.space import AnyExperiment, changed
from pipelines.sweep.study import Trial

BEST = "best.yaml"


def best_trials(trials: list[Trial]) -> dict[str, Trial]:
    """The complete trial of the highest value of each variant that has one; of equal ones the first."""
    complete = [(trial.value, trial) for trial in trials if trial.value is not None]
    names = dict.fromkeys(trial.variant for _, trial in complete)
    return {
        name: max(((v, t) for v, t in complete if t.variant == name), key=lambda pair: pair[0])[1] for name in names
    }


def best_variants(experiment: AnyExperiment, trials: list[Trial]) -> AnyExperiment:
    """The experiment with the best settings of every variant, under the name ``<experiment>-best``, ready to run.

    A variant that was not searched, or has no complete trial, stays as it is.
    """
    best = best_trials(trials)
    variants = tuple(changed(v, best[v.name].values) if v.name in best else v for v in experiment.variants)
    update = {"experiment": f"{experiment.experiment}-best", "variants": variants, "search": None}
    return experiment.model_copy(update=update)


def summary(metrics: dict[str, str], trials: list[Trial], directory: Path) -> Iterator[str]:
    """Lines that tell the result and the next command."""
    best = best_trials(trials)
    for name, metric in metrics.items():
        own = [trial for trial in trials if trial.variant == name]
        counts = {
            status: sum(t.status == status for t in own) for status in ("complete", "pruned", "failed", "running")
        }
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "no trials"
        if name not in best:
            yield f"{name}: no complete trial ({told}); {BEST} keeps its settings"
            continue
        values = ", ".join(f"{path}={words(value)}" for path, value in best[name].values.items())
        yield f"{name}: best valid {metric} {best[name].value:.4f} with {values} ({told})"
    yield f"report: {directory / 'report.html'}"
    yield f"next:   recsys run {directory / BEST}"


def words(value: object) -> str:
    """A setting's value as a reader, and the command line, take it.

    >>> words(0.000123456), words([400, 400]), words("louvain"), words(None)
    ('0.0001235', '[400, 400]', 'louvain', 'null')
    """
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
