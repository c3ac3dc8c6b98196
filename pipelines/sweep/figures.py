"""The drawings of a sweep's report, each with the numbers behind it."""

from __future__ import annotations

import math
from typing import Any

from pipelines.config_search import Range
from pipelines.report import words
from pipelines.report.figures import Cell, Panel, short
from pipelines.report.svg import Figure, Scale
from pipelines.sweep.results import words as setting
from pipelines.sweep.space import Space
from pipelines.sweep.study import Trial

COLOUR = "s0"
TOP_SHARE = 0.1
"""The best so many trials are drawn in colour."""
TOP_TRIALS = 5
"""Trials among the best that importances are to be trusted from, as Optuna advises."""


def history(name: str, metric: str, trials: list[Trial]) -> Panel:
    """Validation metric by trial, and the best so far; a pruned trial is a ring at its last epoch."""
    points = [(t.number, value, t.status) for t in trials if (value := _last(t)) is not None]
    values = [value for _, value, _ in points]
    x = Scale(0, max(1, *(number for number, _, _ in points)), 70, 560)
    y = _scale(values, 296, 34)
    best = [t.value for t in trials if t.value is not None]
    told = f"{len(best)} complete trials, the best at {max(best):.4f}" if best else "no complete trial"
    figure = Figure(f"Trials of {name}", told, 620, 350)
    figure.axes(x, y, ("trial", f"validation {metric}"), (words.tick, words.tick))
    line, reached = [], -math.inf
    for number, value, status in points:
        reached = max(reached, value if status == "complete" else -math.inf)
        if reached > -math.inf:
            line.append((x(number), y(reached)))
    figure.line(line, f"thin {COLOUR}")
    for number, value, status in points:
        figure.point(x(number), y(value), COLOUR, f"trial {number}: {value:.4f}, {status}", hollow=status != "complete")
    rows: list[list[Cell]] = [[number, value, status] for number, value, status in points]
    caption = "The line is the best so far. A ring is a pruned or running trial, at its best epoch."
    return Panel(f"history-{name}", "Trials", figure.render(), caption, ("trial", metric, "status"), rows)


def importance(name: str, importances: dict[str, float], complete: int) -> Panel:
    """Share of each setting in reaching the best of so many ``complete`` trials."""
    ordered = sorted(importances.items(), key=lambda pair: -pair[1])
    height = 60 + 30 * len(ordered)
    figure = Figure(f"Importance for {name}", "; ".join(f"{p} {v:.2f}" for p, v in ordered), 620, height)
    x = Scale(0.0, 1.0, 240, 580)
    for place, (path, share) in enumerate(ordered):
        top = 20 + 30 * place
        figure.text(230, top + 15, short(path, 32), anchor="end")
        figure.bar(x.start, top, (max(1.0, x(share) - x.start), 20), COLOUR, f"{path}: {share:.3f}")
        figure.text(x(share) + 6, top + 15, f"{share:.2f}")
    caption = "How much a setting decides whether a trial is among the best tenth (PED-ANOVA, Watanabe et al. 2023)."
    best = math.ceil(TOP_SHARE * complete)
    caption += f" It rests on {complete} complete trials, of which that is {best}"
    caption += "." if best >= TOP_TRIALS else f": with fewer than {TOP_TRIALS} such trials take it for a hint."
    rows: list[list[Cell]] = [[path, share] for path, share in ordered]
    return Panel(f"importance-{name}", "Importance", figure.render(), caption, ("setting", "importance"), rows)


def parallel(name: str, metric: str, space: Space, trials: list[Trial]) -> Panel:
    """One axis for each setting and one for the validation metric; a line for each complete trial."""
    complete = sorted((t for t in trials if t.value is not None), key=lambda trial: trial.value or 0.0)
    values = [trial.value or 0.0 for trial in complete]
    width = max(620, 170 * (len(space) + 1))
    places = [60 + index * (width - 140) / len(space) for index in range(len(space) + 1)]
    figure = Figure(f"Settings of {name}", f"{len(complete)} complete trials", width, 350)
    result = _scale(values, 296, 50)
    top = max(1, round(TOP_SHARE * len(complete)))
    for rank, trial in enumerate(complete):
        heights = [_height(values_of, trial.values[path]) for path, values_of in space.items()]
        style = COLOUR if rank >= len(complete) - top else "front"
        figure.line([*zip(places, [*heights, result(values[rank])], strict=True)], style)
    for place, (path, values_of) in zip(places, space.items(), strict=False):
        _axis(figure, place, short(path, 22), [(setting(v), _height(values_of, v)) for v in _ticks(values_of)])
    _axis(figure, places[-1], metric, [(words.tick(tick), result(tick)) for tick in result.ticks()])
    rows: list[list[Cell]] = [
        [t.number, *(setting(t.values[path]) for path in space), t.value] for t in sorted(complete, key=_number)
    ]
    caption = "A line is a trial; the best tenth is in colour. Axes are logarithmic where the search is."
    columns = ("trial", *space, metric)
    return Panel(f"parallel-{name}", "Settings and result", figure.render(), caption, columns, rows)


def _axis(figure: Figure, x: float, title: str, ticks: list[tuple[str, float]]) -> None:
    figure.line([(x, 50), (x, 296)], "reference")
    figure.text(x, 30, title, anchor="middle", style="axis-title")
    for text, y in ticks:
        figure.text(x + 6, y + 4, short(text, 16), style="small")


def _height(values: Range, value: Any) -> float:
    """Pixel of a value on its axis."""
    if values.choices is not None:
        return Scale(0, max(1, len(values.choices) - 1), 296, 50)(
            list(map(setting, values.choices)).index(setting(value))
        )
    low, high = values.ends
    return Scale(low, high, 296, 50, log=values.log)(value)


def _ticks(values: Range) -> list[Any]:
    if values.choices is not None:
        return list(values.choices)
    low, high = values.ends
    return list(dict.fromkeys([low, *Scale(low, high, 296, 50, log=values.log).ticks(4)[1:-1], high]))


def _scale(values: list[float], start: float, end: float) -> Scale:
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - margin, high + margin, start, end)


def _last(trial: Trial) -> float | None:
    return trial.value if trial.value is not None else max(trial.epochs.values(), default=None)


def _number(trial: Trial) -> int:
    return trial.number
