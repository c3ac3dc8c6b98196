"""From the run directory of a ranking experiment to ``report.html``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.atomic import write_text
from pipelines.ranking import figures
from pipelines.report import words
from pipelines.report.plots import write_plots
from pipelines.report.render import render
from pipelines.run_files import Metrics, RunFiles, VariantResult

Json = dict[str, Any]
LEADER_COLUMNS = (
    "Variant",
    "Compressor",
    "Rows",
    "Weights",
    "AUC",
    "95 %",
    "GAUC",
    "PR-AUC",
    "Log-loss",
    "NE",
    "Slope",
    "ECE",
)
_SHOWN = ("gauc", "pr_auc", "log_loss", "normalised_entropy", "calibration_slope", "ece")


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
        verdicts=verdicts(metrics, tests),
        data_line=_data_line(files.dataset()),
        leader_columns=LEADER_COLUMNS,
        leaders=[_leader(result) for result in results],
        tests=[_test(test) for test in tests],
        panels=panels,
        scores=scores,
        slices=_slices(shown),
        data_facts=_data_facts(files.dataset()),
        config_yaml=files.config_file.read_text(encoding="utf-8"),
    )
    write_text(files.report_file, page)
    return files.report_file


def verdicts(metrics: Metrics, tests: list[Json]) -> list[str]:
    """Sentences: the best variant, what each compression cost against the full table, and which compressor won."""
    first = metrics.variants[0].seed
    results = {r.name: r for r in metrics.variants if r.seed == first}
    best = max(results.values(), key=lambda result: result.metrics["test/auc"])
    bounds = words.interval(best.ci95.get("test/auc"))
    found = [f"Best is {best.name} with a test AUC of {best.metrics['test/auc']:.4f} {bounds}."]
    for result in results.values():
        full = _full_of(result, results)
        if full is None or result.compressor == "full":
            continue
        pair = _pair(tests, result.name, full.name)
        loss = 1 - result.metrics["test/auc"] / full.metrics["test/auc"]
        share = words.percent(result.table_bytes / full.table_bytes)
        verb = "loses" if loss > 0 else "gains"
        test = f"; {_how_sure(pair)}" if pair else ""
        found.append(
            f"{result.name} has {share} of the bytes of {full.name} and {verb} {100 * abs(loss):.2f}\xa0% of its"
            f" AUC{test}."
        )
    graphhash = [r for r in results.values() if r.compressor == "graphhash"]
    for ours in graphhash:
        others = [r for r in results.values() if r.compressor not in ("full", "graphhash")]
        rivals = [r for r in others if (r.model, r.table_rows) == (ours.model, ours.table_rows)]
        for rival in rivals:
            pair = _pair(tests, ours.name, rival.name)
            verb = "beats" if ours.metrics["test/auc"] > rival.metrics["test/auc"] else "does not beat"
            test = f"; {_how_sure(pair)}" if pair else ""
            found.append(f"{ours.name} {verb} {rival.name} with the same number of rows{test}.")
    return found


def _how_sure(pair: Json) -> str:
    bounds = words.interval((pair["low"], pair["high"]))
    known = "the paired test sees it" if pair["p_holm"] < 0.05 else "the paired test does not tell them apart"
    return f"difference {words.difference(pair['difference'])} {bounds}, {known} ({words.p_value(pair['p_holm'])})"


def _full_of(result: VariantResult, results: dict[str, VariantResult]) -> VariantResult | None:
    same = [r for r in results.values() if r.model == result.model and r.compressor == "full"]
    return same[0] if same else None


def _pair(tests: list[Json], a: str, b: str) -> Json | None:
    """The test of a against b, turned round where it was stored the other way."""
    for test in tests:
        if (test["a"], test["b"]) == (a, b):
            return test
        if (test["a"], test["b"]) == (b, a):
            turned = {"difference": -test["difference"], "low": -test["high"], "high": -test["low"]}
            return test | {"a": a, "b": b} | turned
    return None


def _leader(result: VariantResult) -> list[str]:
    metrics = result.metrics
    values = [
        f"{words.metric(metrics.get(f'test/{name}'))} {words.interval(result.ci95.get(f'test/{name}'))}".strip()
        for name in _SHOWN
    ]
    size = f"{result.table_bytes / 2**10:,.0f} KiB"
    head = [f"{result.name}, seed {result.seed}", str(result.compressor), f"{result.table_rows:,}", size]
    return [*head, words.metric(metrics["test/auc"]), words.interval(result.ci95.get("test/auc")), *values]


def _test(test: Json) -> list[str]:
    bounds = words.interval((test["low"], test["high"]))
    return [test["a"], test["b"], words.difference(test["difference"]), bounds, words.p_value(test["p_holm"])]


def _slices(shown: figures.Shown) -> list[tuple[str, list[str], list[list[str]]]]:
    """By slicing: its name, the columns and a row for each slice; AUC of every variant."""
    tables = []
    names = [f"{result.name}, seed {result.seed}" for result, _ in shown]
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
