"""The drawings of the report, each with the numbers behind it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from pipelines.report import words
from pipelines.report.data import Run, VariantRun, family_name
from pipelines.report.svg import Figure, Scale, spread, style

Cell = str | int | float | None
_WIDTH = 620


@dataclasses.dataclass(frozen=True)
class Panel:
    """A figure and its data, which the page offers as CSV.

    Attributes:
        key: identifier in the page.
        title: heading.
        svg: the drawing.
        caption: how to read it.
        columns: names of the columns of ``rows``.
        rows: the numbers.
    """

    key: str
    title: str
    svg: Markup
    caption: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]


def short(name: str, length: int = 24) -> str:
    """``name`` cut to what fits beside a figure."""
    return name if len(name) <= length else name[: length - 1] + "…"


def pareto(run: Run) -> Panel | None:
    """Selection metric against bytes of the tables; None if no variant has a table."""
    metric = f"test/{run.selection}"
    points = [
        (v, v.mean("table_bytes") / 2**20, v.metric(metric) or 0.0) for v in run.ranking if v.first.table_bytes > 0
    ]
    if not points:
        return None
    sizes = [mib for _, mib, _ in points]
    values = [run.interval(v, run.selection) or (v.metric(metric) or 0.0,) * 2 for v in run.ranking]
    x = Scale(min(sizes) / 1.5, max(sizes) * 1.5, 58, 720, log=True)
    y = _value_scale([v for pair in values for v in pair], 296, 34)
    figure = Figure(
        f"{run.selection} against table size",
        "; ".join(f"{v.name}: {value:.4f} at {mib:.2f} MiB" for v, mib, value in points),
        900,
        350,
    )
    figure.axes(x, y, ("embedding tables, MiB (log scale)", run.selection), (words.tick, words.tick))
    _front(figure, [(x(mib), y(value)) for _, mib, value in points], x.end)
    _reference_lines(figure, run, x, y)
    _budget_lines(figure, points, x, y)
    _pareto_points(figure, run, points, x, y)
    rows: list[list[Cell]] = [
        [
            v.name,
            v.first.table_rows,
            int(v.mean("table_bytes")),
            v.metric(metric),
            *(run.interval(v, run.selection) or (None, None)),
        ]
        for v in run.ranking
    ]
    columns = ("variant", "table_rows", "table_bytes", run.selection, "low_95", "high_95")
    caption = (
        "Up and to the left is better. The stepped line joins the variants that no smaller one beats; whiskers are 95 %"
        " intervals over users. A line joins the budgets of a variant. Dashed: the full table. Dotted:"
        " models without a table."
    )
    return Panel("pareto", f"{run.selection} against table bytes", figure.render(), caption, columns, rows)


def _front(figure: Figure, points: Sequence[tuple[float, float]], right: float) -> None:
    best: list[tuple[float, float]] = []
    for px, py in sorted(points):
        if not best or py < best[-1][1]:
            best.extend([(px, best[-1][1]), (px, py)] if best else [(px, py)])
    if best:
        figure.line([*best, (right, best[-1][1])], "front")


def _reference_lines(figure: Figure, run: Run, x: Scale, y: Scale) -> None:
    """Lines across the figure at full tables and at models without one, with their names at the right end."""
    labels = []
    several = sum(variant.is_full for variant in run.ranking) > 1
    for variant in run.ranking:
        if not variant.is_full and (variant.is_compressed or variant.first.table_bytes):
            continue
        row = y(variant.metric(f"test/{run.selection}") or 0.0)
        figure.line([(x.start, row), (x.end, row)], f"reference {'full' if variant.is_full else 'baseline'}")
        name = "full table" if variant.is_full and not several else short(variant.name)
        labels.append((row, name, style(variant.style)))
    figure.end_labels(x.end, labels, y.end - 10, y.start)


def _budget_lines(figure: Figure, points: Sequence[tuple[VariantRun, float, float]], x: Scale, y: Scale) -> None:
    """A line through the budgets of a variant."""
    families: dict[str, list[tuple[VariantRun, float, float]]] = {}
    for point in sorted(points, key=lambda point: point[1]):
        families.setdefault(family_name(point[0].name), []).append(point)
    for family in families.values():
        if len(family) > 1:
            figure.line([(x(mib), y(value)) for _, mib, value in family], style(family[0][0].style))


def _pareto_points(
    figure: Figure, run: Run, points: Sequence[tuple[VariantRun, float, float]], x: Scale, y: Scale
) -> None:
    ascending = sorted(points, key=lambda point: point[1])
    named = {family_name(variant.name): variant.name for variant, _, _ in ascending}.values()
    groups: list[list[tuple[VariantRun, float, float]]] = []
    for point in ascending:
        if groups and x(point[1]) - x(groups[-1][0][1]) < 90:
            groups[-1].append(point)
        else:
            groups.append([point])
    for group in groups:
        group.sort(key=lambda point: -point[2])
        gap = min(15.0, (y.start - 6 - y.end) / max(1, len(group) - 1))
        places = spread([y(value) for _, _, value in group], gap, y.end, y.start - 6)
        edge = max(x(mib) for _, mib, _ in group)
        for (variant, mib, value), place in zip(group, places, strict=True):
            px, py, name = x(mib), y(value), style(variant.style)
            low, high = run.interval(variant, run.selection) or (value, value)
            figure.line([(px, y(low)), (px, y(high))], f"whisker {name}")
            tooltip = f"{variant.name}: {run.selection} {value:.4f} {words.interval((low, high))}, {mib:.2f} MiB"
            figure.point(px, py, name, tooltip, hollow=variant.is_full)
            if variant.name not in named:
                continue
            figure.line([(px + 6, py), (edge + 12, place)], f"leader {name}")
            figure.text(edge + 15, place + 4, short(variant.name), style=f"series {name}")


def _value_scale(values: Sequence[float], bottom: float, top: float) -> Scale:
    """Linear from zero where that wastes less than half of the height, else from just under the lowest value."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    low = 0.0 if low < 0.5 * high else low - 0.08 * (high - low)
    return Scale(low, high + 0.06 * (high - low) or 1.0, bottom, top)


def metric_curves(run: Run, name: str) -> Panel | None:
    """Metric ``name`` ("recall", "ndcg") for k = 1..max_k with 95 % bands; None if no variant has it."""
    drawn = [(v, curve) for v in run.ranking if (curve := run.curve(v, name)) is not None and curve.mean]
    if not drawn:
        return None
    max_k = max(len(curve.mean) for _, curve in drawn)
    x = Scale(1, max(2, max_k), 58, 450, log=True)
    y = _value_scale([0.0, *(value for _, curve in drawn for value in curve.high)], 296, 34)
    title = {"recall": "Recall", "ndcg": "NDCG"}.get(name, name)
    ends = "; ".join(f"{v.name} {curve.mean[-1]:.4f}" for v, curve in drawn)
    figure = Figure(f"{title}@k for k = 1 to {max_k}", f"At k = {max_k}: {ends}", _WIDTH, 350)
    figure.axes(x, y, ("k, length of the list (log scale)", f"{title}@k"), (words.tick, words.tick))
    for variant, curve in drawn:
        xs = [x(k + 1) for k in range(len(curve.mean))]
        figure.band(xs, [y(v) for v in curve.low], [y(v) for v in curve.high], style(variant.style))
    for variant, curve in drawn:
        figure.line([(x(k + 1), y(value)) for k, value in enumerate(curve.mean)], style(variant.style))
    labels = [(y(curve.mean[-1]), short(v.name, 20), style(v.style)) for v, curve in drawn]
    figure.end_labels(450, labels, 30, 300)
    rows: list[list[Cell]] = [
        [v.name, k + 1, curve.mean[k], curve.low[k], curve.high[k]]
        for v, curve in drawn
        for k in range(len(curve.mean))
    ]
    columns = ("variant", "k", f"{name}@k", "low_95", "high_95")
    return Panel(f"curve-{name}", f"{title}@k", figure.render(), "Bands: 95 % intervals over users.", columns, rows)


def learning_curves(run: Run) -> list[Panel]:
    """Validation metric and training loss by epoch; a panel is left out if no history has the value."""
    names = {name for v in run.variants for history in v.histories for epoch in history for name in epoch.metrics}
    wanted = next((name for name in sorted(names) if name.split("/")[-1] == run.selection), min(names, default=None))
    panels = []
    if wanted is not None:
        split = "test (parity)" if run.results.selected_on == "test" else "validation"
        label = f"{split} {run.selection}" if wanted.split("/")[-1] == run.selection else wanted
        panels.append(_by_epoch(run, "learning-metric", label, lambda epoch: epoch.metrics.get(wanted)))
    panels.append(_by_epoch(run, "learning-loss", "training loss", lambda epoch: epoch.loss))
    return [panel for panel in panels if panel is not None]


def _by_epoch(run: Run, key: str, label: str, value: Callable[..., float | None]) -> Panel | None:
    lines = [
        (
            v,
            v.results[i].seed,
            [
                (e.epoch, got)
                for e in history
                if e.phase == "select" and (got := value(e)) is not None and math.isfinite(got)
            ],
        )
        for v in run.variants
        for i, history in enumerate(v.histories)
    ]
    lines = [line for line in lines if line[2]]
    if not lines:
        return None
    last = max(epoch for _, _, points in lines for epoch, _ in points)
    x = Scale(0, max(1, last), 58, 450)
    y = _value_scale([got for _, _, points in lines for _, got in points], 256, 34)
    ends = "; ".join(f"{v.name}, seed {seed}: {points[-1][1]:.4f}" for v, seed, points in lines)
    figure = Figure(f"{label} by epoch", f"Last values: {ends}", _WIDTH, 310)
    figure.axes(x, y, ("epoch", label), (words.tick, words.tick))
    for variant, _, points in lines:
        figure.line([(x(epoch), y(got)) for epoch, got in points], f"thin {style(variant.style)}")
        figure.dot(x(points[-1][0]), y(points[-1][1]), style(variant.style))
    first = {v.name: (v, points) for v, _, points in reversed(lines)}
    labels = [(y(points[-1][1]), short(v.name, 20), style(v.style)) for v, points in first.values()]
    figure.end_labels(450, labels, 30, 262)
    rows: list[list[Cell]] = [[v.name, seed, epoch, got] for v, seed, points in lines for epoch, got in points]
    caption = "One line per seed. A line ends where early stopping ended the training."
    return Panel(key, label[0].upper() + label[1:], figure.render(), caption, ("variant", "seed", "epoch", label), rows)


def degree_distribution(degrees: dict[str, dict[int, int]]) -> Panel | None:
    """Number of users and of items by training interactions, both axes logarithmic; None without data."""
    series = [(side, sorted((d, n) for d, n in counts.items() if d > 0 and n > 0)) for side, counts in degrees.items()]
    series = [(side, points) for side, points in series if points]
    if not series:
        return None
    x = Scale(1, max(2, *(points[-1][0] for _, points in series)), 58, 540, log=True)
    y = Scale(0.8, max(2, *(n for _, points in series for _, n in points)), 296, 34, log=True)
    words_of = "; ".join(
        f"{side}: {sum(n for _, n in points):,}, at most {points[-1][0]:,} interactions" for side, points in series
    )
    figure = Figure("Degree distributions", words_of, _WIDTH, 350)
    figure.axes(
        x, y, ("train interactions (log scale)", "number of users, items (log scale)"), (words.tick, words.tick)
    )
    for place, (side, points) in enumerate(series):
        for degree, count in points:
            figure.add('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="2.2"/>', place, x(degree), y(count))
        figure.text(x.end - 60, 52 + 18 * place, side, style=f"series s{place}")
    rows: list[list[Cell]] = [[side, degree, count] for side, points in series for degree, count in points]
    return Panel(
        "degrees",
        "Degree distributions",
        figure.render(),
        "Train interactions of users and of items.",
        ("side", "degree", "count"),
        rows,
    )
