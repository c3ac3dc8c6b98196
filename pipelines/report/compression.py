"""The panel on compressed tables: bucket sizes, balance, collisions, stability of the clusters."""

from __future__ import annotations

from typing import Any

from pipelines.report import words
from pipelines.report.data import COMPRESSOR_NAMES
from pipelines.report.figures import Cell, Panel
from pipelines.report.svg import Figure, Scale
from pipelines.run_schema import Compression

Json = dict[str, Any]
LABEL_WIDTH = 54
"""Of the longest labels of a bin, as 128–255, with a gap."""
COLUMNS = (
    "map",
    "side",
    "rows",
    "used",
    "ids per row: median",
    "max",
    "Gini",
    "ids that share an embedding",
    "interactions",
)


def map_rows(compression: Compression) -> list[list[str]]:
    """One row for each map and side: the numbers of ``describe()``, a dash for what it lacks."""
    return [
        [
            COMPRESSOR_NAMES.get(name, name),
            side,
            _count(facts.get("rows")),
            _count(facts.get("rows_used")),
            _plain(facts.get("bucket", {}).get("median")),
            _count(facts.get("bucket", {}).get("max")),
            _plain(facts.get("bucket", {}).get("gini"), 3),
            _share(facts.get("colliding_ids"), facts.get("seen_ids")),
            words.percent(facts["shared_interactions"]) if facts.get("shared_interactions") is not None else "–",
        ]
        for name, sides in compression.maps.items()
        for side, facts in sides.items()
    ]


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def _plain(value: Any, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "–"


def _share(part: Any, whole: Any) -> str:
    return f"{part:,} ({words.percent(part / whole)})" if isinstance(part, int) and whole else "–"


def cluster_facts(compression: Compression) -> list[tuple[str, str]]:
    """Modularity, resolution, rows and stability, each with what it means."""
    if compression.budgets:
        return [
            (f"{key} ({name})", value)
            for name, found in compression.budgets.items()
            for key, value in _facts(found["clustering"], found["stability"], _own(found))
        ]
    return _facts(compression.clustering, compression.stability, compression.budget)


def _own(found: Json) -> Json:
    return {key: value for key, value in found.items() if key not in ("clustering", "stability")}


def _facts(clustering: Json, stability: Json, budget: Json) -> list[tuple[str, str]]:
    facts = []
    if budget:
        facts.append(("Budget", ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in budget.items())))
    for key in (
        "algorithm",
        "resolution",
        "modularity",
        "num_user_clusters",
        "num_item_clusters",
        "fits",
        "adjusted",
        "seconds",
    ):
        if key in clustering:
            facts.append((key.replace("num_", "").replace("_", " ").capitalize(), _value(clustering[key])))
    for side in ("users", "items"):
        found = stability.get(side)
        if isinstance(found, dict) and "ari" in found:
            orders = stability.get("orders", "several")
            text = f"ARI {_value(found['ari'])}, NMI {_value(found.get('nmi'))} over {orders} node orders"
            facts.append((f"Stability of {side}", text))
    return facts


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def bucket_sizes(compression: Compression) -> list[Panel]:
    """One small histogram of ids per row for each compressed map and side, on common axes per side."""
    panels = []
    for side in ("users", "items"):
        histograms = {
            name: sides[side]["histogram"]
            for name, sides in compression.maps.items()
            if name != "full" and sides.get(side, {}).get("histogram", {}).get("counts")
        }
        if histograms:
            panels.append(_histograms(side, histograms))
    return panels


def _histograms(side: str, histograms: dict[str, Json]) -> Panel:
    bins = max(len(h["counts"]) for h in histograms.values())
    edges = max((h["edges"] for h in histograms.values()), key=len)
    labels = [_bin(edges[i], edges[i + 1]) for i in range(bins)]
    row_height, left, right = 46, 132, 600
    figure = Figure(
        f"Bucket sizes, {side}",
        f"Number of table rows by how many {side} share them, one histogram per map: " + ", ".join(histograms),
        620,
        row_height * len(histograms) + 46,
    )
    width = (right - left) / bins
    for place, (name, histogram) in enumerate(histograms.items()):
        base = row_height * (place + 1)
        counts = histogram["counts"]
        y = Scale(0, max(1, *counts), base, base - row_height + 18)
        figure.add('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', left, right, base, base)
        figure.text(left - 10, base - 4, COMPRESSOR_NAMES.get(name, name), anchor="end")
        for i, count in enumerate(counts):
            if count:
                top = min(y(count), base - 1.5)
                title = f"{name}: {count:,} rows with {labels[i]} {side}"
                figure.bar(left + i * width + 2, top, (width - 4, base - top), "s0", title)
                figure.text(left + (i + 0.5) * width, top - 3, _compact(count), anchor="middle", style="small")
    bottom = row_height * len(histograms)
    every = 1 if width >= LABEL_WIDTH else 2  # labels that would touch; the title of a bar has its own
    for i, label in list(enumerate(labels))[::-every]:
        figure.text(left + (i + 0.5) * width, bottom + 17, label, anchor="middle")
    figure.text((left + right) / 2, bottom + 36, f"{side} per row", anchor="middle", style="axis-title")
    rows: list[list[Cell]] = [
        [name, label, count]
        for name, h in histograms.items()
        for label, count in zip(labels, h["counts"], strict=False)
    ]
    caption = f"Rows of the table by the number of {side} that use them. A bar far to the right is a crowd in one row."
    return Panel(
        f"buckets-{side}", f"Bucket sizes, {side}", figure.render(), caption, ("map", f"{side}_per_row", "rows"), rows
    )


def _bin(low: int, high: int) -> str:
    return str(low) if high - low <= 1 else f"{low}–{high - 1}"


def _compact(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{count / 1000:.0f}k"
