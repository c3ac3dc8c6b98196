"""The drawings of a multi-task report, each with the numbers behind it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from pipelines.report import words
from pipelines.report.figures import Cell, Panel, short
from pipelines.report.svg import Figure, Scale, style
from pipelines.run_files import VariantResult

Groups = Mapping[str, Sequence[VariantResult]]
"""Variants by name, each with its seeds."""


def by_seed(groups: Groups, task: str, metric: str) -> Panel:
    """A row for each variant: a point for each seed, and their mean."""
    key, step = f"test/{task}/{metric}", 26
    values = {name: [result.metrics[key] for result in results] for name, results in groups.items()}
    everything = [value for found in values.values() for value in found]
    low, high = min(everything), max(everything)
    margin = 0.06 * (high - low) or 0.01
    bottom = 40 + step * len(values)
    x, y = Scale(low - margin, high + margin, 190, 590), Scale(len(values), 0, bottom, 40)
    told = "; ".join(f"{name}: {statistics.fmean(found):.4f}" for name, found in values.items())
    better = "higher is better" if metric == "auc" else "lower is better"
    figure = Figure(f"Test {metric} of {task}", told, 620, bottom + 50)
    figure.axes(x, Scale(0, 0, bottom, 40), (f"test {metric} of {task}, {better}", ""), (words.tick, lambda _: ""))
    for place, (name, found) in enumerate(values.items()):
        row, mean = y(place + 0.5), statistics.fmean(found)
        figure.text(180, row + 4, short(name), anchor="end")
        for result, value in zip(groups[name], found, strict=True):
            figure.point(x(value), row, style(place), f"{name}, seed {result.seed}: {value:.4f}", hollow=True)
        figure.line([(x(mean), row - 10), (x(mean), row + 10)], style(place))
    rows: list[list[Cell]] = [
        [name, result.seed, result.metrics[key]] for name, results in groups.items() for result in results
    ]
    caption = "A circle is a seed, a stroke the mean of the seeds."
    return Panel(f"seeds-{task}", f"{task}: test {metric}", figure.render(), caption, ("variant", "seed", metric), rows)


def shares(groups: Groups, usage: Mapping[str, Sequence[float]], task: str) -> Panel:
    """Which experts a task uses: a row of bars for each variant, the first seed's mean weights.

    Args:
        groups: the variants.
        usage: for each variant the mean weight of each expert.
        task: whose gate it is.
    """
    step, bottom = 34, 34 + 34 * len(usage)
    count = max(len(weights) for weights in usage.values())
    x, tallest = Scale(0, count, 190, 590), max(max(weights) for weights in usage.values()) or 1.0
    told = "; ".join(f"{name}: largest share {max(weights):.2f}" for name, weights in usage.items())
    figure = Figure(f"Experts of {task}", told, 620, bottom + 44)
    for place, (name, weights) in enumerate(usage.items()):
        floor = 34 + step * (place + 1) - 4
        figure.text(180, floor - 8, short(name), anchor="end")
        for expert, weight in enumerate(weights):
            height = (step - 8) * weight / tallest
            title = f"{name}, expert {expert}: {weight:.3f}"
            figure.bar(x(expert) + 1, floor - height, (x(1) - x(0) - 2, height), style(place), title)
    figure.text(390, bottom + 30, "experts, shared ones first", anchor="middle", style="axis-title")
    rows: list[list[Cell]] = [[n, expert, w] for n, weights in usage.items() for expert, w in enumerate(weights)]
    caption = f"Mean weight over the test events, seed {next(iter(groups.values()))[0].seed}; all bars have one scale."
    columns = ("variant", "expert", "mean_weight")
    return Panel(f"experts-{task}", f"{task}: use of the experts", figure.render(), caption, columns, rows)
