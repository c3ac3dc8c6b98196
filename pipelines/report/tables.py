"""The tables of the report as plain rows, which the templates only lay out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pipelines.report import words
from pipelines.report.data import Run, VariantRun
from pipelines.report.figures import Cell
from pipelines.report.stats import Contrast, Spread, spreads, tied_with_best
from pipelines.report.svg import style
from pipelines.run_directory import unmasked

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LeaderRow:
    """A line of the leader table; ``bars`` is the score as a share of the best, for the bar behind it."""

    rank: int
    name: str
    style: str
    method: str
    baseline: bool
    mark: str
    values: list[tuple[str, str]]
    table: str
    share: str
    rows: str
    train: str
    share_of_best: float


def second_metric(run: Run) -> str | None:
    """NDCG at the length of the selection metric, if it is another metric and known."""
    name = f"ndcg@{run.selection.partition('@')[2]}"
    known = any(name in {m.removeprefix("test/") for m in v.first.metrics} for v in run.ranking)
    return name if known and name != run.selection else None


def leader_table(run: Run, pairs: dict[tuple[str, str], Contrast]) -> tuple[list[str], list[LeaderRow]]:
    """Names of the metric columns and one row per variant, best first."""
    columns = [run.selection, *filter(None, [second_metric(run)])]
    columns += [
        name for name in (*unmasked(columns), "auc") if all(f"test/{name}" in v.first.metrics for v in run.ranking)
    ]
    tied = tied_with_best(run, pairs)
    full: dict[str, float] = {}  # bytes of the largest full table, by model
    for variant in run.ranking:
        if variant.is_full:
            model = variant.first.model
            full[model] = max(full.get(model, 0.0), variant.mean("table_bytes"))
    best = (run.ranking[0].metric(f"test/{run.selection}") or 0.0) if run.ranking else 0.0
    rows = []
    for rank, variant in enumerate(run.ranking, start=1):
        size = variant.mean("table_bytes")
        rows.append(
            LeaderRow(
                rank=rank,
                name=variant.name,
                style=style(variant.style),
                method=variant.method,
                baseline=variant.is_baseline,
                mark="best" if rank == 1 else ("tied with best" if variant.name in tied else ""),
                values=[
                    (words.metric(variant.metric(f"test/{c}")), words.interval(run.interval(variant, c)))
                    for c in columns
                ],
                table=words.size(size) if size else "none",
                share=words.percent(size / full[variant.first.model]) if size and full.get(variant.first.model) else "",
                rows=f"{variant.first.table_rows:,}" if variant.first.table_rows else "none",
                train=words.duration(variant.seconds("train")),
                share_of_best=max(0.0, (variant.metric(f"test/{run.selection}") or 0.0) / best) if best else 0.0,
            )
        )
    return columns, rows


@dataclasses.dataclass(frozen=True)
class MatrixCell:
    """How the variant of the row compares with that of the column; ``tone`` is "win", "loss", "tie" or "self"."""

    tone: str
    text: str
    p: str
    title: str


def pair_matrix(run: Run, pairs: dict[tuple[str, str], Contrast]) -> list[tuple[str, list[MatrixCell]]]:
    """Every variant (row) against every other (column); empty without tests."""
    names = [v.name for v in run.ranking if any(v.name in pair for pair in pairs)]
    return [(row, [_matrix_cell(pairs, row, column, run.selection) for column in names]) for row in names]


def _matrix_cell(pairs: dict[tuple[str, str], Contrast], row: str, column: str, metric: str) -> MatrixCell:
    if row == column:
        return MatrixCell("self", "", "", "")
    wins = (row, column) in pairs
    contrast = pairs[row, column] if wins else pairs[column, row]
    sign = 1.0 if wins else -1.0
    difference = sign * contrast.difference
    low, high = sorted((sign * contrast.low, sign * contrast.high))
    tone = ("win" if wins else "loss") if contrast.is_significant else "tie"
    title = (
        f"{row} - {column}: {words.difference(difference)} {metric} [{low:.4f}, {high:.4f}],"
        f" Holm {words.p_value(contrast.p_holm)}, {contrast.users:,} users"
    )
    return MatrixCell(tone, words.difference(difference), words.p_value(contrast.p_holm), title)


def spread_rows(run: Run) -> list[tuple[Spread, str]]:
    """User and seed standard errors of each variant with its colour."""
    return [(spread, style(run.variant(spread.name).style)) for spread in spreads(run)]


def slice_tables(run: Run) -> list[Json]:
    """One table per slice with two groups or more: metric by group and variant, for the first metric of the slice.

    A slice of which one group only has any pairs (no cold items, say) gives ``{"sentence": ...}``.
    """
    with_slices = [v for v in run.ranking if v.evaluation is not None and v.evaluation.slices]
    if not with_slices:
        return []
    first = with_slices[0].evaluation
    assert first is not None
    tables: list[Json] = []
    for name, groups in first.slices.items():
        metric = next((m for group in groups for m in group.get("metrics", {})), None)
        filled = [group for group in groups if group.get("metrics", {}).get(metric) is not None]
        if metric is not None and len(filled) > 1:
            tables.append(_slice_table(name, metric, filled, with_slices))
        elif filled:
            title = name.replace("_", " ").capitalize()
            tables.append({"sentence": f"{title}: everything held out {filled[0]['label']}."})
    return tables


def _slice_table(name: str, metric: str, groups: list[Json], variants: list[VariantRun]) -> Json:
    labels = [str(group["label"]) for group in groups]
    found = [(v, _mean_over_seeds(v, name, metric)) for v in variants]
    best = [max((values[label] for _, values in found if label in values), default=None) for label in labels]
    return {
        "key": f"slice-{name}",
        "name": name.replace("_", " "),
        "metric": metric,
        "heads": [(label, _group_size(group)) for label, group in zip(labels, groups, strict=True)],
        "rows": [
            (
                v.name,
                style(v.style),
                [_marked(values.get(label), top) for label, top in zip(labels, best, strict=True)],
            )
            for v, values in found
        ],
        "columns": ("variant", "group", metric),
        "csv": [[v.name, label, values.get(label)] for v, values in found for label in labels],
    }


def _marked(value: float | None, best: float | None) -> tuple[str, bool]:
    return words.metric(value), value is not None and value == best


def _mean_over_seeds(variant: VariantRun, name: str, metric: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for evaluation in variant.evaluations:
        for group in evaluation.slices.get(name, []) if evaluation is not None else []:
            value = group.get("metrics", {}).get(metric)
            if value is not None:
                found.setdefault(str(group["label"]), []).append(float(value))
    return {label: float(np.mean(values)) for label, values in found.items()}


def _group_size(group: Json) -> str:
    parts = [f"{group[unit]:,} {unit}" for unit in ("users", "items", "pairs") if unit in group]
    return ", ".join(parts[:2])


def cost_table(run: Run) -> list[tuple[str, str, list[str]]]:
    """Name, style and cells: seconds, epochs, throughput, memory, bytes of tables, layers, optimizers, id maps."""
    rows = []
    for variant in run.ranking:
        speeds = [e.triples_per_second for h in variant.histories for e in h if e.triples_per_second]
        memory = [e.rss_mib for h in variant.histories for e in h if e.rss_mib]
        memory += [r.peak_rss_mib for r in variant.results if r.peak_rss_mib]
        sizes = [variant.mean(f"{part}_bytes") for part in ("table", "layer")]
        sizes.append(variant.mean("optimizer_bytes") + variant.mean("layer_optimizer_bytes"))
        sizes.append(variant.mean("map_bytes"))
        rows.append(
            (
                variant.name,
                style(variant.style),
                [
                    words.duration(variant.seconds("train")),
                    words.duration(variant.seconds("evaluate")),
                    f"{variant.mean('epochs'):g}" if variant.mean("epochs") else "–",
                    f"{np.median(speeds):,.0f}" if speeds else "–",
                    f"{max(memory):,.0f}" if memory else "–",
                    *(words.size(size) if size else "none" for size in (*sizes, sum(sizes))),
                ],
            )
        )
    return rows


def all_metrics(run: Run) -> tuple[list[str], list[tuple[str, str, list[str]]], list[list[Cell]]]:
    """Every test metric of every variant: column names, formatted rows and CSV rows."""
    names = sorted({m for v in run.ranking for r in v.results for m in r.metrics if m.startswith("test/")}, key=_order)
    rows = [(v.name, style(v.style), [words.metric(v.metric(m)) for m in names]) for v in run.ranking]
    csv: list[list[Cell]] = [[v.name, m.removeprefix("test/"), v.metric(m)] for v in run.ranking for m in names]
    return [name.removeprefix("test/") for name in names], rows, csv


def _order(name: str) -> tuple[str, int]:
    metric, _, k = name.partition("@")
    return metric, int(k) if k.isdecimal() else 0
