"""From the run directory of a ranking experiment to ``report.html``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.atomic import write_text
from pipelines.ranking import figures
from pipelines.ranking.verdict import verdicts
from pipelines.report import words
from pipelines.report.plots import write_plots
from pipelines.report.render import render
from pipelines.run_files import RunFiles, VariantResult

Json = dict[str, Any]
LEADER_COLUMNS = (
    "Variant",
    "Compressor",
    "Rows",
    "Weights",
    "AUC",
    "GAUC",
    "PR-AUC",
    "Log-loss",
    "NE",
    "Slope",
    "ECE",
)
_SHOWN = ("auc", "gauc", "pr_auc", "log_loss", "normalised_entropy", "calibration_slope", "ece")


def build_ranking_report(run_dir: Path) -> Path:
    """Write ``report.html`` and ``plots/*.svg`` of a finished ranking run, atomically.

    Returns:
        Path of the report.

    Raises:
        RunError: A file of the run is missing or damaged.
    """
    files = RunFiles(run_dir)
    metrics, config, tests = files.metrics(), files.ranking_config(), _json(run_dir / "tests.json")
    results = sorted(metrics.variants, key=lambda result: -result.metrics["test/auc"])
    shown = [(r, _json(files.variant_dir(r.name, r.seed) / "evaluation.json")) for r in results]
    histories = [(r, _json(files.variant_dir(r.name, r.seed) / "history.json")) for r in results]
    selections = {name for _, history in histories for record in history for name in record["metrics"]}
    panels = {
        "bytes": figures.auc_against_bytes(shown),
        "roc": figures.roc(shown),
        "calibration": figures.calibration(shown),
        "learning": figures.learning(histories, "auc" if "auc" in selections else min(selections)),
    }
    scores = [figures.scores(result, evaluation, place) for place, (result, evaluation) in enumerate(shown)]
    write_plots(files.plots, [*panels.values(), *scores])
    page = render(
        "ranking.html",
        metrics=metrics,
        description=config.description if config else "",
        verdicts=verdicts(metrics, tests, config),
        data_line=_data_line(files.dataset()),
        leader_columns=LEADER_COLUMNS,
        leaders=[[name, *_leader(result)] for name, result in zip(_names(results), results, strict=True)],
        tests=[_test(test) for test in tests],
        panels=panels,
        scores=scores,
        slices=_slices(shown),
        data_facts=_data_facts(files.dataset()),
        config_yaml=files.config_file.read_text(encoding="utf-8"),
    )
    write_text(files.report_file, page)
    return files.report_file


def _names(results: list[VariantResult]) -> list[str]:
    """Of the variants, with their seeds where there are several."""
    several = len({result.seed for result in results}) > 1
    return [f"{result.name}, seed {result.seed}" if several else result.name for result in results]


def _leader(result: VariantResult) -> list[str]:
    """Cells of a line after the name."""
    metrics = result.metrics
    values = [
        f"{words.metric(metrics.get(f'test/{name}'))} {_unbroken(result.ci95.get(f'test/{name}'))}".strip()
        for name in _SHOWN
    ]
    size = f"{result.table_bytes / 2**10:,.0f}\N{NO-BREAK SPACE}KiB"
    return [str(result.compressor), f"{result.table_rows:,}", size, *values]


def _unbroken(interval: tuple[float, float] | None) -> str:
    return words.interval(interval).replace(" ", "\N{NO-BREAK SPACE}")


def _test(test: Json) -> list[str]:
    bounds = words.interval((test["low"], test["high"]))
    return [test["a"], test["b"], words.difference(test["difference"]), bounds, words.p_value(test["p_holm"])]


def _slices(shown: figures.Shown) -> list[tuple[str, list[str], list[list[str]]]]:
    """By slicing: its name, the columns and a row for each slice; AUC of every variant."""
    tables = []
    names = _names([result for result, _ in shown])
    for title, first in shown[0][1]["slices"].items():
        rows = []
        for place, row in enumerate(first):
            aucs = [words.metric(evaluation["slices"][title][place].get("auc")) for _, evaluation in shown]
            rows.append([row["label"], f"{row['events']:,}", f"{row['positives']:,}", *aucs])
        tables.append((title, ["Slice", "Events", "Positives", *names], rows))
    return tables


def _data_line(facts: Json) -> str:
    counts = ", ".join(f"{count:,} {split}" for split, count in facts["counts"].items())
    return (
        f"{facts['name']}: {len(facts['fields'])} categorical fields, {len(facts['dense'])} numbers; {counts} events."
    )


def _data_facts(facts: Json) -> list[tuple[str, str]]:
    values = ", ".join(f"{name} {size:,}" for name, size in facts["fields"].items())
    shares = (f"{s} {facts['positives'][s] / facts['counts'][s]:.1%}" for s in facts["counts"])
    split = ", ".join(f"{key}: {value}" for key, value in facts["split"].items() if value is not None)
    return [("Values in train", values), ("Positives", ", ".join(shares)), ("Split", split)]


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())
