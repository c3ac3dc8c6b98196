"""The report's figures as files of their own: SVG that carries its colours, font and background."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup

from pipelines.atomic import atomic_directory
from pipelines.report.figures import Panel
from pipelines.report.render import source
from pipelines.report.svg import NUM_STYLES

HEADING = 34
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_RULES = """
text {{ font: 12.5px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: {soft}; }}
text.heading {{ font-size: 16px; font-weight: 600; fill: {ink}; }}
text.small {{ font-size: 10px; }}
text.axis-title {{ fill: {ink}; }}
text.series {{ font-weight: 500; paint-order: stroke; stroke: {page}; stroke-width: 4px; stroke-linejoin: round; }}
.grid {{ stroke: {rule}; }}
.axis, .tick {{ stroke: {soft}; }}
.line {{ fill: none; stroke-width: 1.9; stroke-linejoin: round; }}
.line.thin {{ stroke-width: 1.4; }}
.line.front {{ stroke: {soft}; stroke-width: 1.2; opacity: 0.6; }}
.line.reference {{ stroke: {soft}; stroke-width: 1.2; stroke-dasharray: 7 5; }}
.line.baseline {{ stroke-dasharray: 1.5 4; }}
.dashed {{ stroke-dasharray: 6 3; }}
.band {{ opacity: 0.13; }}
.point {{ stroke: {page}; stroke-width: 1.2; }}
.leader {{ fill: none; stroke-width: 0.8; opacity: 0.55; }}
"""
_SERIES = """
.line.{name}, .leader.{name} {{ stroke: {colour}; }}
.band.{name}, .bar.{name}, .dot.{name}, .point.{name}, text.{name} {{ fill: {colour}; }}
.point.hollow.{name} {{ fill: {page}; stroke: {colour}; stroke-width: 2.2; }}
"""


def write_plots(directory: Path, panels: Iterable[Panel]) -> None:
    """Write ``<panel.key>.svg`` for each panel into ``directory``, which is replaced as a whole."""
    style = _style()
    with atomic_directory(directory) as temporary:
        for panel in panels:
            (temporary / f"{panel.key}.svg").write_text(_standalone(panel, style), encoding="utf-8")


def _standalone(panel: Panel, style: str) -> str:
    """The panel's drawing on white under its heading."""
    found = re.match(r'<svg viewBox="0 0 (\d+) (\d+)" width="\d+"', panel.svg)
    assert found is not None, "Figure.render begins with the view box"
    width, height = (int(number) for number in found.groups())
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {top} {width} {height}" width="{width}" height="{height}"'
    ).format(top=-HEADING, width=width, height=height + HEADING)
    start, rest = panel.svg[found.end() :].split(">", 1)
    ground = Markup('<rect x="0" y="{}" width="100%" height="100%" fill="#ffffff"/>').format(-HEADING)
    heading = Markup('<text class="heading" x="12" y="-12">{}</text>').format(panel.title)
    return _NOT_XML.sub("", f"{head}{start}><style>{style}</style>{ground}{heading}{rest}\n")


def _style() -> str:
    """The style sheet's light colours, written out: few programs but browsers know variables and themes."""
    colours = dict(re.findall(r"--(\w+): light-dark\((#\w+),", source("style.css")))
    series = (_SERIES.format(name=f"s{i}", colour=colours[f"s{i}"], page=colours["page"]) for i in range(NUM_STYLES))
    return _RULES.format(**colours) + "".join(series)
