"""The heat map of user activity by item popularity: one drawing that the page's script repaints."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from pipelines.report.data import Run, VariantRun
from pipelines.report.figures import Cell
from pipelines.report.svg import Figure

Json = dict[str, Any]
NUM_SHADES = 9
_CELL_WIDTH, _CELL_HEIGHT, _LEFT, _TOP = 52, 30, 78, 20


def heat_data(run: Run) -> Json | None:
    """Values 10 x 10 of each variant (mean over seeds) and the number of pairs per cell; None without evaluations."""
    variants = []
    metric, counts = "", None
    for variant in run.ranking:
        grids = _grids(variant)
        if grids is None:
            continue
        metric, values, counts = grids
        variants.append({"name": variant.name, "values": values})
    if not variants:
        return None
    top = max((value for v in variants for row in v["values"] for value in row if value is not None), default=0.0)
    return {"metric": metric, "top": top, "variants": variants, "counts": counts}


def _grids(variant: VariantRun) -> tuple[str, list[list[float | None]], list[list[float | None]]] | None:
    heats = [evaluation.heat for evaluation in variant.evaluations if evaluation is not None]
    metric = next((name for heat in heats for name in heat if name != "counts"), None)
    if metric is None or any(metric not in heat for heat in heats):
        return None
    stack = np.array([heat[metric] for heat in heats], dtype=np.float64)
    mean = stack.mean(axis=0)
    values = [[None if math.isnan(value) else round(float(value), 4) for value in row] for row in mean]
    return metric, values, heats[0].get("counts", [])


def shade(value: float | None, top: float) -> str:
    """Class of a cell: ``q0`` (nothing) to ``q8`` (``top``), or ``none``."""
    if value is None:
        return "none"
    return f"q{min(NUM_SHADES - 1, int(NUM_SHADES * value / top)) if top else 0}"


def heat_map(data: Json) -> Markup:
    """The drawing for the best variant; rows are activity deciles with the most active users at the top."""
    variant, counts = data["variants"][0], data["counts"]
    grid = variant["values"]
    height, width = len(grid), len(grid[0])
    figure = Figure(
        f"Heat map of {data['metric']}",
        f"{variant['name']}: share of the held-out pairs found, by decile of user activity and of item popularity."
        " The numbers are in the data to download.",
        _LEFT + width * _CELL_WIDTH + 12,
        _TOP + height * _CELL_HEIGHT + 48,
    )
    for i in range(height):
        row = height - 1 - i
        y = _TOP + i * _CELL_HEIGHT
        figure.text(_LEFT - 8, y + 20, _decile(row, height, ("least", "most")), anchor="end")
        for column in range(width):
            pairs = counts[row][column] if counts else None
            _cell(figure, (row, column), y, grid[row][column], data["top"], pairs)
    bottom = _TOP + height * _CELL_HEIGHT
    for column in range(width):
        label = _decile(column, width, ("rarest", "top"))
        figure.text(_LEFT + (column + 0.5) * _CELL_WIDTH, bottom + 17, label, anchor="middle")
    figure.text(
        _LEFT + width * _CELL_WIDTH / 2, bottom + 38, "item popularity, decile", anchor="middle", style="axis-title"
    )
    figure.text(4, 12, "user activity, decile", style="axis-title")
    return figure.render()


def _decile(place: int, size: int, ends: tuple[str, str]) -> str:
    if place == 0:
        return f"{ends[0]} 1"
    return f"{ends[1]} {size}" if place == size - 1 else str(place + 1)


def _cell(
    figure: Figure, place: tuple[int, int], y: float, value: float | None, top: float, pairs: float | None
) -> None:
    x = _LEFT + place[1] * _CELL_WIDTH
    text = "" if value is None else f"{100 * value:.1f}"
    figure.add(
        '<g class="cell {}" data-row="{}" data-column="{}"><rect x="{}" y="{}" width="{}" height="{}"/>'
        '<text x="{}" y="{}" text-anchor="middle">{}</text><title>{}</title></g>',
        shade(value, top),
        place[0],
        place[1],
        x,
        y,
        _CELL_WIDTH - 2,
        _CELL_HEIGHT - 2,
        x + (_CELL_WIDTH - 2) / 2,
        y + 19,
        text,
        "" if pairs is None else f"{pairs:,.0f} held-out pairs",
    )


def heat_rows(data: Json) -> list[list[Cell]]:
    """One row per variant and cell, for the CSV."""
    counts = data["counts"]
    return [
        [v["name"], i + 1, j + 1, value, counts[i][j] if counts else None]
        for v in data["variants"]
        for i, row in enumerate(v["values"])
        for j, value in enumerate(row)
    ]
