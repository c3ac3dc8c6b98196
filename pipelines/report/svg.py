"""Just enough SVG for the report: scales, axes, lines, bands, bars and points, with every text escaped.

Colours come from the style sheet by class (``s0`` .. ``s9`` for series), so that a figure follows the page's theme.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

Format = Callable[[float], str]
NUM_STYLES = 10


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps data in [low, high] to pixels in [start, end], linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of ``value``."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value))
            if self.log
            else (
                self.low,
                self.high,
                value,
            )
        )
        return self.start + (self.end - self.start) * ((value - low) / ((high - low) or 1.0))

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers inside the scale: about ``count`` of them, or 1-2-5 steps (10 steps if many) by logarithm."""
        if not self.log:
            return linear_ticks(self.low, self.high, count)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            ticks = [
                step * 10.0**d for d in decades for step in steps if self.low <= step * 10.0**d <= self.high * 1.0001
            ]
            if len(ticks) <= count + 3:
                break
        return ticks


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in [low, high].

    Example:
        >>> linear_ticks(0.0, 0.17, 5)
        [0.0, 0.05, 0.1, 0.15]
    """
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(s * power for s in (1, 2, 5, 10) if span / (s * power) <= count + 0.5)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Short coordinate."""
    return f"{value:.1f}".removesuffix(".0")


class Figure:
    """One SVG drawing with a title and a description for those who cannot see it.

    Args:
        title: short name.
        description: what the figure shows, in words and numbers.
        width: of the view box, pixels.
        height: of the view box, pixels.
    """

    def __init__(self, title: str, description: str, width: int = 620, height: int = 340) -> None:
        self.title, self.description = title, description
        self.width, self.height = width, height
        self._parts: list[Markup] = []

    def add(self, template: str, *values: object) -> None:
        """Append markup; ``values`` are escaped."""
        self._parts.append(Markup(template).format(*values))

    def axes(self, x: Scale, y: Scale, labels: tuple[str, str], formats: tuple[Format, Format]) -> None:
        """Grid lines, tick labels and axis titles; the y title stands above the axis, to be read without turning."""
        left, right, bottom, top = x.start, x.end, y.start, y.end
        for tick in y.ticks():
            row = number(y(tick))
            self.add('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', number(left), number(right), row, row)
            self.text(left - 8, y(tick) + 4, formats[1](tick), anchor="end")
        for tick in x.ticks(6):
            column = number(x(tick))
            self.add(
                '<line class="tick" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>', column, number(bottom), number(bottom + 5)
            )
            self.text(x(tick), bottom + 19, formats[0](tick), anchor="middle")
        self.add(
            '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>',
            number(left),
            number(right),
            number(bottom),
            number(bottom),
        )
        self.text((left + right) / 2, bottom + 38, labels[0], anchor="middle", style="axis-title")
        self.text(left - 8, top - 12, labels[1], style="axis-title")

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", style: str = "") -> None:
        """A line of text with its baseline at ``y``."""
        self.add('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>', number(x), number(y), anchor, style, text)

    def line(self, points: Iterable[tuple[float, float]], style: str) -> None:
        """A polyline through pixel positions."""
        path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self.add('<polyline class="line {}" points="{}"/>', style, path)

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], style: str) -> None:
        """The area between two lines over the same pixel columns."""
        points = [*zip(xs, high, strict=True), *zip(reversed(xs), reversed(low), strict=True)]
        path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self.add('<polygon class="band {}" points="{}"/>', style, path)

    def bar(self, x: float, y: float, size: tuple[float, float], style: str, title: str) -> None:
        """A rectangle of ``size`` (width, height) with its upper left corner at (x, y)."""
        self.add(
            '<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>',
            style,
            number(x),
            number(y),
            number(size[0]),
            number(size[1]),
            title,
        )

    def dot(self, x: float, y: float, style: str) -> None:
        """The end of a line, which may have one point only."""
        self.add('<circle class="dot {}" cx="{}" cy="{}" r="2.5"/>', style, number(x), number(y))

    def point(self, x: float, y: float, style: str, title: str, *, hollow: bool = False) -> None:
        """A marker with a tooltip."""
        self.add(
            '<circle class="point {}{}" cx="{}" cy="{}" r="5.5"><title>{}</title></circle>',
            style,
            " hollow" if hollow else "",
            number(x),
            number(y),
            title,
        )

    def end_labels(self, x: float, labels: Sequence[tuple[float, str, str]], low: float, high: float) -> None:
        """Names beside the ends of lines: (y, text, style) each, pushed apart so that none covers another."""
        order = sorted(range(len(labels)), key=lambda i: labels[i][0])
        places = spread([labels[i][0] for i in order], 14.0, low, high)
        for index, place in zip(order, places, strict=True):
            y, text, style = labels[index]
            self.add(
                '<line class="leader {}" x1="{}" y1="{}" x2="{}" y2="{}"/>',
                style,
                number(x + 2),
                number(y),
                number(x + 12),
                number(place),
            )
            self.text(x + 15, place + 4, text, style=f"series {style}")

    def render(self) -> Markup:
        """The ``<svg>`` element."""
        head = Markup('<svg viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}. {}">').format(
            self.width, self.height, self.width, self.title, self.description
        )
        return head + Markup("").join(self._parts) + Markup("</svg>")


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending ``places`` moved as little as needed to be ``gap`` apart and, where they all fit, in [low, high].

    Example:
        >>> spread([5.0, 6.0, 50.0], 10.0, 0.0, 100.0)
        [5.0, 15.0, 50.0]
    """
    moved = list(places)
    for i, j in itertools.pairwise(range(len(moved))):
        moved[j] = max(moved[j], moved[i] + gap)
    if moved and moved[-1] > high:
        moved[-1] = high
        for j, i in itertools.pairwise(range(len(moved) - 1, -1, -1)):
            moved[i] = min(moved[i], moved[j] - gap)
    if moved and moved[0] < low:
        moved = [place + low - moved[0] for place in moved]
    return moved


def style(index: int) -> str:
    """Class of the series with that number; the dash pattern changes when colours repeat."""
    return f"s{index % NUM_STYLES}" + (" dashed" if index >= NUM_STYLES else "")
