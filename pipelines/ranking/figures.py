"""The drawings of a ranking report, each with the numbers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.report import words
from pipelines.report.figures import Cell, Panel, short
from pipelines.report.svg import Figure, Scale, style
from pipelines.run_files import VariantResult

Json = dict[str, Any]
Shown = Sequence[tuple[VariantResult, Json]]
"""Variants, best first, with their evaluation.json."""


def auc_against_bytes(shown: Shown) -> Panel:
    """Test AUC with its interval against the bytes of all tables."""
    sizes = [result.table_bytes / 2**20 for result, _ in shown]
    bounds = [_interval(result) for result, _ in shown]
    low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
    x = Scale(min(sizes) / 1.5, max(sizes) * 1.8, 70, 560, log=True)
    y = Scale(low - 0.05 * (high - low), high + 0.05 * (high - low) or 1.0, 296, 34)
    told = "; ".join(
        f"{r.name}: {r.metrics['test/auc']:.4f} at {mib:.3f} MiB" for (r, _), mib in zip(shown, sizes, strict=True)
    )
    figure = Figure("AUC against table size", told, 760, 350)
    figure.axes(x, y, ("embedding tables, MiB (log scale)", "test AUC"), (words.tick, words.tick))
    labels = []
    for place, ((result, _), mib, (start, end)) in enumerate(zip(shown, sizes, bounds, strict=True)):
        column, name = x(mib) + 5 * (place - len(shown) / 2), style(place)
        figure.line([(column, y(start)), (column, y(end))], f"whisker {name}")
        value = result.metrics["test/auc"]
        figure.point(column, y(value), name, f"{result.name}: {value:.4f} {words.interval((start, end))}")
        labels.append((y(value), short(result.name), name))
    figure.end_labels(x.end, labels, 34, 300)
    rows: list[list[Cell]] = [
        [r.name, r.seed, r.table_rows, r.table_bytes, r.metrics["test/auc"], *bound]
        for (r, _), bound in zip(shown, bounds, strict=True)
    ]
    columns = ("variant", "seed", "table_rows", "table_bytes", "auc", "low_95", "high_95")
    caption = "Up and to the left is better; whiskers are 95 % DeLong intervals. Points of one size are drawn apart."
    return Panel("auc-bytes", "AUC against table bytes", figure.render(), caption, columns, rows)


def roc(shown: Shown) -> Panel:
    """ROC curves on a logarithmic axis of false positives, where ranking matters."""
    x, y = Scale(1e-3, 1.0, 58, 450, log=True), Scale(0.0, 1.0, 296, 34)
    curves = [(r, e["curves"]["roc"]) for r, e in shown if "roc" in e["curves"]]
    told = "; ".join(f"{r.name}: AUC {r.metrics['test/auc']:.4f}" for r, _ in curves)
    figure = Figure("ROC curve", told, 620, 350)
    figure.axes(x, y, ("false positive rate (log scale)", "true positive rate"), (words.tick, words.tick))
    rows: list[list[Cell]] = []
    labels = []
    for place, (result, curve) in enumerate(curves):
        points = [(f, t) for f, t in zip(curve["false"], curve["true"], strict=True) if f >= 1e-3]
        figure.line([(x(f), y(t)) for f, t in points], style(place))
        labels.append((y(1.0), short(result.name, 20), style(place)))
        rows += [[result.name, f, t] for f, t in zip(curve["false"], curve["true"], strict=True)]
    figure.end_labels(450, labels, 30, 300)
    caption = "Exact steps, thinned for drawing. The axis of false positives is logarithmic."
    return Panel("roc", "ROC curve", figure.render(), caption, ("variant", "false_positive", "true_positive"), rows)


def calibration(shown: Shown) -> Panel:
    """Observed against predicted rates in bins of equally many events."""
    x, y = Scale(0.0, 1.0, 58, 450), Scale(0.0, 1.0, 296, 34)
    told = "; ".join(f"{r.name}: ECE {r.metrics['test/ece']:.4f}" for r, _ in shown)
    figure = Figure("Calibration", told, 620, 350)
    figure.axes(x, y, ("predicted probability", "observed rate"), (words.tick, words.tick))
    figure.line([(x(0), y(0)), (x(1), y(1))], "reference")
    rows: list[list[Cell]] = []
    labels = []
    for place, (result, evaluation) in enumerate(shown):
        bins = evaluation["curves"]["reliability"]
        points = list(zip(bins["predicted"], bins["observed"], strict=True))
        figure.line([(x(p), y(o)) for p, o in points], style(place))
        labels.append((y(points[-1][1]), short(result.name, 20), style(place)))
        rows += [[result.name, p, o, n] for (p, o), n in zip(points, bins["events"], strict=True)]
    figure.end_labels(450, labels, 30, 300)
    caption = "20 bins of equally many events. Under the dashed line the model promises too much, above it too little."
    columns = ("variant", "predicted", "observed", "events")
    return Panel("calibration", "Calibration", figure.render(), caption, columns, rows)


def scores(result: VariantResult, evaluation: Json, place: int) -> Panel:
    """Distribution of the log-odds by label."""
    found = evaluation["curves"]["scores"]
    edges = found["edges"]
    sides = {name: [n / (sum(found[name]) or 1) for n in found[name]] for name in ("positives", "negatives")}
    x = Scale(edges[0], edges[-1], 58, 540)
    y = Scale(0.0, 1.05 * max(max(shares) for shares in sides.values()), 256, 34)
    figure = Figure(f"Scores of {result.name}", "Share of positives and of negatives by log-odds", 620, 310)
    figure.axes(x, y, ("log-odds", "share of the class"), (words.tick, words.tick))
    for colour, (name, shares) in enumerate(sides.items()):
        steps = [point for i, s in enumerate(shares) for point in ((x(edges[i]), y(s)), (x(edges[i + 1]), y(s)))]
        figure.line(steps, style(2 * colour))
        figure.text(x.end - 60, 52 + 18 * colour, name, style=f"series {style(2 * colour)}")
    rows: list[list[Cell]] = [
        [edges[i], edges[i + 1], found["positives"][i], found["negatives"][i]] for i in range(len(edges) - 1)
    ]
    title = f"Scores of {result.name}"
    caption = "The outermost bins hold what lies beyond them."
    return Panel(f"scores-{place}", title, figure.render(), caption, ("from", "to", "positives", "negatives"), rows)


def learning(histories: Sequence[tuple[VariantResult, list[Json]]], metric: str) -> Panel:
    """Validation metric by epoch."""
    lines = [
        (result, [(e["epoch"], e["metrics"][metric]) for e in history if metric in e["metrics"]])
        for result, history in histories
    ]
    values = [value for _, points in lines for _, value in points]
    x = Scale(0, max(epoch for _, points in lines for epoch, _ in points), 58, 450)
    y = Scale(min(values), max(values) if max(values) > min(values) else min(values) + 1, 256, 34)
    figure = Figure(f"Validation {metric} by epoch", "; ".join(f"{r.name} {p[-1][1]:.4f}" for r, p in lines), 620, 310)
    figure.axes(x, y, ("epoch", f"validation {metric}"), (words.tick, words.tick))
    for place, (_, points) in enumerate(lines):
        figure.line([(x(epoch), y(value)) for epoch, value in points], f"thin {style(place)}")
        figure.dot(x(points[-1][0]), y(points[-1][1]), style(place))
    labels = [(y(p[-1][1]), short(r.name, 20), style(place)) for place, (r, p) in enumerate(lines)]
    figure.end_labels(450, labels, 30, 262)
    rows: list[list[Cell]] = [[r.name, epoch, value] for r, points in lines for epoch, value in points]
    caption = "A line ends where early stopping ended the training."
    title = f"Validation {metric} by epoch"
    return Panel("learning", title, figure.render(), caption, ("variant", "epoch", metric), rows)


def _interval(result: VariantResult) -> tuple[float, float]:
    value = result.metrics["test/auc"]
    return result.ci95.get("test/auc", (value, value))
