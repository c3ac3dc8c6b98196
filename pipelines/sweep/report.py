"""The page of a sweep: what was tried, what mattered, what was best on validation. It has no test metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.atomic import write_text
from pipelines.report import words
from pipelines.report.figures import Panel
from pipelines.report.render import render
from pipelines.sweep import figures
from pipelines.sweep.results import best_trials
from pipelines.sweep.results import words as setting
from pipelines.sweep.space import AnyExperiment, Space, spaces
from pipelines.sweep.study import IMPORTANCE_TRIALS, Trial


def build_sweep_report(
    directory: Path,
    experiment: AnyExperiment,
    trials: list[Trial],
    metrics: dict[str, str],
    importances: dict[str, dict[str, float]],
) -> Path:
    """Write ``report.html`` of a sweep, atomically.

    Args:
        directory: of the sweep.
        experiment: that was searched.
        trials: of all variants.
        metrics: validation metric by variant.
        importances: by variant, setting -> share; empty where there are too few trials.

    Returns:
        Path of the page.
    """
    best = best_trials(trials)
    found = [
        _section(
            name, space, [t for t in trials if t.variant == name], best.get(name), metrics[name], importances[name]
        )
        for name, space in spaces(experiment).items()
    ]
    page = render(
        "sweep.html",
        experiment=experiment,
        sections=found,
        directory=directory,
        fewest=IMPORTANCE_TRIALS,
        config_yaml=(directory / "config.yaml").read_text(encoding="utf-8"),
    )
    path = directory / "report.html"
    write_text(path, page)
    return path


def _section(
    name: str, space: Space, trials: list[Trial], best: Trial | None, metric: str, importances: dict[str, float]
) -> dict[str, Any]:
    counts = {status: sum(t.status == status for t in trials) for status in ("complete", "pruned", "failed", "running")}
    panels: list[Panel] = []
    if best is not None:
        panels = [figures.history(name, metric, trials), figures.parallel(name, metric, space, trials)]
    order = sorted(trials, key=lambda t: (t.value is None, -(t.value or 0.0), t.number))
    return {
        "name": name,
        "metric": metric,
        "counts": ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "none",
        "best": None if best is None else words.metric(best.value),
        "settings": [] if best is None else [(path, setting(value)) for path, value in best.values.items()],
        "panels": panels,
        "importance": figures.importance(name, importances, counts["complete"]) if importances else None,
        "columns": ("Trial", "Status", f"Valid {metric}", "Epochs", "Time", *space),
        "rows": [_row(trial, space) for trial in order],
        "errors": [(trial.name, trial.error) for trial in trials if trial.error],
    }


def _row(trial: Trial, space: Space) -> list[str]:
    settings = [setting(trial.values[path]) if path in trial.values else "–" for path in space]
    head = [str(trial.number), trial.status, words.metric(trial.value), str(max(trial.epochs, default=0))]
    return [*head, words.duration(trial.seconds), *settings]
