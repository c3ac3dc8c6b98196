"""From the run directory of a multi-task experiment to ``report.html``."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.atomic import write_text
from pipelines.config_multitask import MultiTaskExperiment
from pipelines.multitask import figures
from pipelines.multitask.routing import fixed_choices
from pipelines.ranking.figures import learning
from pipelines.report import words
from pipelines.report.plots import write_plots
from pipelines.report.render import render
from pipelines.run_files import RunFiles, VariantResult

Json = dict[str, Any]
TEST_COLUMNS = ("Task", "Against", "Metric", "Difference", "95 %, events", "p", "Over seeds", "95 %, seeds")
_METRICS = {
    "auc": ("auc", "gauc", "pr_auc", "log_loss", "normalised_entropy", "ece"),
    "rmse": ("rmse", "mae", "r2"),
}
_TITLES = {
    "auc": "AUC",
    "gauc": "GAUC",
    "pr_auc": "PR-AUC",
    "log_loss": "Log-loss",
    "normalised_entropy": "NE",
    "ece": "ECE",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
}


def build_multitask_report(run_dir: Path) -> Path:
    """Write ``report.html`` and ``plots/*.svg`` of a finished multi-task run, atomically.

    Returns:
        Path of the report.

    Raises:
        RunError: A file of the run is missing or damaged.
    """
    files = RunFiles(run_dir)
    metrics, config, tests = files.metrics(), files.ranking_config(), _json(run_dir / "tests.json")
    groups: dict[str, list[VariantResult]] = {}
    for result in metrics.variants:
        groups.setdefault(result.name, []).append(result)
    first = {name: files.variant_dir(name, results[0].seed) for name, results in groups.items()}
    usages = {
        name: [_json(files.variant_dir(name, result.seed) / "evaluation.json")["usage"] for result in results]
        for name, results in groups.items()
    }
    usage = {name: seeds[0]["weight"] for name, seeds in usages.items()}
    histories = [(results[0], _json(first[name] / "history.json")) for name, results in groups.items()]
    sections = []
    for task, metric in headlines(metrics.variants[0]).items():
        panels = [
            figures.by_seed(groups, task, metric),
            figures.shares(groups, {name: found[task] for name, found in usage.items()}, task),
            dataclasses.replace(learning(histories, f"{task}/{metric}"), key=f"learning-{task}"),
        ]
        sections.append({"task": task, "panels": panels, **_leaderboard(groups, task, metric)})
    write_plots(files.plots, [panel for section in sections for panel in section["panels"]])
    page = render(
        "multitask.html",
        metrics=metrics,
        description=config.description if config else "",
        verdicts=[
            *verdicts(groups, tests),
            *(fixed_choices(usages, config) if isinstance(config, MultiTaskExperiment) else ()),
        ],
        data_line=_data_line(files.dataset()),
        sections=sections,
        test_columns=TEST_COLUMNS,
        tests=[_test(test) for test in tests],
        reference=tests[0]["a"] if tests else "",
        size_columns=("Variant", "Gate", "Rows", "Weights", "Epochs", "Training", "RSS"),
        sizes=[_size(results) for results in groups.values()],
        data_facts=_data_facts(files.dataset()),
        config_yaml=files.config_file.read_text(encoding="utf-8"),
    )
    write_text(files.report_file, page)
    return files.report_file


def headlines(result: VariantResult) -> dict[str, str]:
    """For each task its headline metric, "auc" or "rmse", in the order of the experiment."""
    parts = [name.split("/") for name in result.metrics if name.startswith("test/")]
    return {task: metric for _, task, metric in parts if metric in _METRICS}


def verdicts(groups: figures.Groups, tests: list[Json]) -> list[str]:
    """Sentences: the best variant of each task, and what the paired tests of the reference say."""
    found = []
    for task, metric in headlines(next(iter(groups.values()))[0]).items():
        means = {name: _mean(results, task, metric) for name, results in groups.items()}
        best = (max if metric == "auc" else min)(means, key=lambda name: means[name])
        found.append(f"{task}: best is {best} with a mean test {_TITLES[metric]} of {means[best]:.4f}.")
    for test in tests:
        verb = "is behind" if (test["difference"] > 0) == (test["metric"] == "rmse") else "is ahead of"
        bounds, p = words.interval((test["low"], test["high"])), words.p_value(test["p_holm"])
        sure = "" if test["p_holm"] < 0.05 else ", which the paired test does not tell from 0"
        by = f"{_TITLES[test['metric']]} {words.difference(test['difference'])} {bounds}".rstrip()
        found.append(f"{test['task']}: {test['a']} {verb} {test['b']}; {by}{sure} ({p}).")
    return found


def _mean(results: Sequence[VariantResult], task: str, metric: str) -> float:
    return statistics.fmean(result.metrics[f"test/{task}/{metric}"] for result in results)


def _leaderboard(groups: figures.Groups, task: str, metric: str) -> Json:
    """Columns and rows, best mean first; a row is the mean over the seeds."""
    shown = [
        name for name in _METRICS[metric] if all(f"test/{task}/{name}" in r.metrics for g in groups.values() for r in g)
    ]
    order = sorted(groups, key=lambda name: _mean(groups[name], task, metric), reverse=metric == "auc")
    rows = []
    for name in order:
        results = groups[name]
        values = [result.metrics[f"test/{task}/{metric}"] for result in results]
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "–"
        bounds = words.interval(results[0].ci95.get(f"test/{task}/{metric}"))
        means = [words.metric(_mean(results, task, shown_metric)) for shown_metric in shown]
        experts = f"{_mean(results, task, 'experts'):.2f}"
        rows.append([name, results[0].model, means[0], spread, bounds, *means[1:], experts])
    titles = [_TITLES[name] for name in shown]
    columns = ["Variant", "Gate", titles[0], "Deviation", "95 %, first seed", *titles[1:], "Experts per event"]
    return {"columns": columns, "rows": rows}


def _test(test: Json) -> list[str]:
    seeds = test["over_seeds"]
    over = (
        [words.difference(seeds["difference"]), words.interval((seeds["low"], seeds["high"]))] if seeds else ["–", ""]
    )
    bounds = words.interval((test["low"], test["high"]))
    head = [test["task"], test["b"], _TITLES[test["metric"]], words.difference(test["difference"]), bounds]
    return [*head, words.p_value(test["p_holm"]), *over]


def _size(results: Sequence[VariantResult]) -> list[str]:
    first = results[0]
    seconds = statistics.fmean(result.seconds["train"] for result in results)
    memory = f"{first.peak_rss_mib:,.0f} MiB" if first.peak_rss_mib else "–"
    epochs = ", ".join(str(result.epochs) for result in results)
    size = words.size(first.table_bytes)
    return [first.name, first.model, f"{first.table_rows:,}", size, epochs, words.duration(seconds), memory]


def _data_line(facts: Json) -> str:
    counts = ", ".join(f"{count:,} {split}" for split, count in facts["counts"].items())
    return f"{facts['name']}: {facts['interactions']:,} interactions and {facts['negatives']:,} negatives; {counts}."


def _data_facts(facts: Json) -> list[tuple[str, str]]:
    found = [("Values in train", ", ".join(f"{name} {size:,}" for name, size in facts["fields"].items()))]
    for task, labels in facts["labels"].items():
        known = ", ".join(f"{count:,} {split}" for split, count in labels["known"].items())
        found.append((f"Labels of {task}", f"{known}; mean {labels['mean']:.4g} in train"))
    return found


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())
