"""From a run directory to ``report.html``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.atomic import write_text
from pipelines.dataset import Dataset
from pipelines.report import compression, figures, heat, semantic, tables, words
from pipelines.report.data import Run
from pipelines.report.explorer import explorer, samples
from pipelines.report.figures import Cell, Panel
from pipelines.report.plots import write_plots
from pipelines.report.render import render
from pipelines.report.stats import Contrast, contrasts
from pipelines.report.verdict import banners, leak_banner, verdicts
from pipelines.run_schema import Compression

Json = dict[str, Any]
Context = dict[str, Any]
SECTIONS = (
    ("verdict", "Verdict"),
    ("leaders", "Leaderboard"),
    ("tradeoff", "Accuracy against bytes"),
    ("depth", "By length of the list"),
    ("tests", "Is the difference real?"),
    ("where", "For whom"),
    ("training", "Training"),
    ("compression", "Compression"),
    ("semantic", "Semantic ids"),
    ("users", "Wins and losses"),
    ("data", "Data and leak audit"),
    ("cost", "Cost"),
    ("metrics", "All metrics"),
    ("reproduce", "Reproduce"),
)


def build_report(run_dir: Path, dataset: Dataset | None = None) -> Path:
    """Write ``report.html`` and ``plots/*.svg`` of a finished run, atomically; the same input gives the same bytes.

    Args:
        run_dir: the run directory.
        dataset: for titles and histories; without it the parts that show users are replaced by a sentence.

    Returns:
        Path of the report.

    Raises:
        RunError: A file of the run is missing or damaged.
        DataError: The dataset cannot be read.
    """
    run = Run(run_dir)
    pairs = contrasts(run)
    manifest = run.files.dataset()
    context = (
        _header(run, pairs)
        | {"banners": leak_banner(manifest) + banners(run, pairs)}
        | _results(run, pairs)
        | _compression(run.files.compression())
        | _semantic(run)
        | _data(run, manifest, dataset)
        | {"explorer": explorer(run, dataset), "samples": samples(run, dataset)}
    )
    write_plots(run.files.plots, _panels(context))
    sections = [section for section in SECTIONS if section[0] != "semantic" or context["semantic"]]
    write_text(run.files.report_file, render("report.html", run=run, sections=sections, **context))
    return run.files.report_file


def _panels(context: Context) -> list[Panel]:
    """Every drawing of the page but the heat map, which needs the page's script."""
    found = [context["pareto"], *context["curves"], *context["learning"], *context["buckets"], context["degrees"]]
    return [panel for panel in found if panel is not None]


def _header(run: Run, pairs: dict[tuple[str, str], Contrast]) -> Context:
    data, seeds = run.results.dataset, run.seeds
    counts = f"{data.users:,} users, {data.items:,} items, {data.train:,} train interactions, {data.test:,} test"
    several = f"Values are means over seeds {', '.join(map(str, seeds))}. " if len(seeds) > 1 else ""
    alone = "" if several else "; with one seed, what another would give is not in it"
    return {
        "title": f"{run.results.experiment}: recsys report",
        "data_line": f"{data.name}: {counts}. {run.results.finished}".strip(),
        "verdicts": verdicts(run, pairs),
        "verdict_note": several
        + f"Brackets: 95 % bootstrap interval over users{alone}. p: sign-flip permutation test on the same users,"
        + f" Holm-corrected over all {len(pairs)} pairs of variants."
        if pairs
        else several + "No paired tests: this run has per-user values of fewer than two variants.",
    }


def _results(run: Run, pairs: dict[tuple[str, str], Contrast]) -> Context:
    columns, rows = tables.leader_table(run, pairs)
    heat_data = heat.heat_data(run)
    names, metric_table, metric_csv = tables.all_metrics(run)
    return {
        "leader_columns": columns,
        "leaders": rows,
        "leader_note": _leader_note(run),
        "pareto": figures.pareto(run),
        "curves": [panel for name in ("recall", "ndcg") if (panel := figures.metric_curves(run, name)) is not None],
        "matrix": tables.pair_matrix(run, pairs),
        "num_tests": len(pairs),
        "num_users": len(run.per_user.users) if run.per_user is not None else 0,
        "test_columns": ("better", "worse", "difference", "low_95", "high_95", "relative", "p", "p_holm", "users"),
        "test_rows": [_test_row(contrast) for contrast in pairs.values()],
        "spreads": tables.spread_rows(run),
        "detectable": _detectable(run, pairs),
        "heat": heat_data,
        "heat_svg": heat.heat_map(heat_data) if heat_data else None,
        "heat_rows": heat.heat_rows(heat_data) if heat_data else [],
        "slices": tables.slice_tables(run),
        "learning": figures.learning_curves(run),
        "costs": tables.cost_table(run),
        "metric_names": names,
        "metric_table": metric_table,
        "metric_csv": metric_csv,
    }


def _leader_note(run: Run) -> str:
    unranked = [v.name for v in run.variants if v not in run.ranking]
    note = "A variant is tied with the best if the paired test does not tell them apart at 5 %."
    return note + (f" Without {run.selection}, so not ranked: {', '.join(unranked)}." if unranked else "")


def _test_row(contrast: Contrast) -> list[Cell]:
    relative = contrast.relative if math.isfinite(contrast.relative) else None
    numbers = (contrast.difference, contrast.low, contrast.high, relative, contrast.p, contrast.p_holm, contrast.users)
    return [contrast.a, contrast.b, *numbers]


def _detectable(run: Run, pairs: dict[tuple[str, str], Contrast]) -> str:
    if not pairs:
        return ""
    smallest = float(np.median([contrast.detectable for contrast in pairs.values()]))
    return (
        f"With these users, a difference of about {smallest:.4f} {run.selection} (median over the pairs) is found with"
        " 80\xa0% power at the 5\xa0% level, before correction."
    )


def _compression(found: Compression | None) -> Context:
    return {
        "compression": found,
        "cluster_facts": compression.cluster_facts(found) if found else [],
        "map_columns": compression.COLUMNS,
        "map_rows": compression.map_rows(found) if found else [],
        "buckets": compression.bucket_sizes(found) if found else [],
    }


def _semantic(run: Run) -> Context:
    quality = run.files.semantic_ids()
    paths = {v.name: run.files.code_paths(v.name, v.first.seed) for v in run.variants}
    return {
        "semantic": quality,
        "semantic_facts": semantic.facts(quality) if quality else [],
        "level_columns": semantic.LEVEL_COLUMNS,
        "level_rows": semantic.level_rows(quality) if quality else [],
        "hierarchy_columns": semantic.HIERARCHY_COLUMNS,
        "hierarchy_rows": semantic.hierarchy_rows(quality) if quality else [],
        "path_columns": semantic.PATH_COLUMNS,
        "path_rows": semantic.path_rows({name: found for name, found in paths.items() if found is not None}),
    }


def _data(run: Run, manifest: Json, dataset: Dataset | None) -> Context:
    data = run.results.dataset
    density = data.train / max(1, data.users * data.items)
    facts = [
        ("Users", f"{data.users:,}"),
        ("Items", f"{data.items:,}"),
        ("Train / validation / test", f"{data.train:,} / {data.valid:,} / {data.test:,}"),
        ("Density of train", f"{100 * density:.3g} %"),
    ]
    facts += [
        (key.replace("_", " ").capitalize(), _flat(manifest[key]))
        for key in ("source", "filters", "quarantine")
        if manifest.get(key)
    ]
    config = run.files.config_file
    return {
        "data_facts": facts,
        "split_facts": [(key.replace("_", " "), _flat(value)) for key, value in manifest.get("split", {}).items()],
        "audit": [_check(check) for check in manifest.get("leak_audit", [])],
        "degrees": figures.degree_distribution(_degrees(manifest, dataset)),
        "provenance": _provenance(run, manifest),
        "config_yaml": config.read_text(encoding="utf-8") if config.exists() else "",
    }


def _flat(value: Any) -> str:
    """JSON as a person writes it: no braces, numbers with thousands."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_flat(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "; ".join(_flat(part) for part in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**8 else str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check(check: Json) -> Json:
    return {
        "name": str(check.get("name", "")).replace("_", " "),
        "result": "fact" if check.get("passed") is None else ("pass" if check["passed"] else "FAIL"),
        "count": _flat(check.get("count", "")),
        "detail": _flat(check.get("detail", "")),
    }


def _degrees(manifest: Json, dataset: Dataset | None) -> dict[str, dict[int, int]]:
    stored = manifest.get("degrees")
    if isinstance(stored, dict):
        return {side: {int(degree): int(n) for degree, n in counts.items()} for side, counts in stored.items()}
    if dataset is None:
        return {}
    train = dataset.matrix("train")
    sides = {"users": np.diff(train.indptr), "items": np.bincount(train.indices, minlength=train.shape[1])}
    return {
        side: dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True))
        for side, values in sides.items()
    }


def _provenance(run: Run, manifest: Json) -> list[tuple[str, str]]:
    results = run.results
    seconds = sum(sum(result.seconds.values()) for result in results.variants)
    facts = [
        ("Seeds", ", ".join(map(str, run.seeds))),
        ("Data hash", results.dataset.hash),
        ("Source hash", str(manifest.get("source_hash", ""))),
        ("Git", results.git),
        ("Finished", results.finished),
        ("Training and evaluation, all variants and seeds", words.duration(seconds)),
        ("Run directory", run.files.directory.name),
    ]
    return [(term, value) for term, value in facts if value]
