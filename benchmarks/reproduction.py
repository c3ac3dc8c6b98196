"""Tables of published numbers, of their best public re-implementation, and of ours, for :mod:`benchmarks.tables`.

``benchmarks/results/published/NAME.json`` has what others report, with its source and whether seen items were masked,
and names the experiment and variant that repeat it; ours is read from the results beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

Json = dict[str, Any]
COLUMNS = ("model", "data", "protocol", "published", "best public re-implementation", "ours, masked", "ours, unmasked")
METRICS = ("recall@10", "ndcg@10")


def cells(row: Json, results: Path) -> tuple[str, ...]:
    """One line of the table: a cell for each of the columns."""
    others = (_reported(row[source]) for source in ("published", "again"))
    return (row["model"], row["data"], row["protocol"], *others, *_ours(row["ours"], results))


def _reported(figures: Json | None) -> str:
    return "-" if figures is None else f"{_pair([figures[name] for name in METRICS])} ({figures['source']})"


def _ours(ours: Json, results: Path) -> tuple[str, str]:
    """Means over the seeds, or the command that measures them."""
    path = results / f"{ours['experiment']}.json"
    runs = json.loads(path.read_text("utf-8"))["variants"] if path.exists() else []
    found = [run["metrics"] for run in runs if run["name"] == ours["variant"]]
    if not found:
        return f"not measured: `{ours['command']}`", "-"
    seeds = f", {len(found)} seeds" if len(found) > 1 else ""
    note = f" ({ours['note']}{seeds})" if "note" in ours else seeds
    masked, unmasked = (
        [_mean(found, f"test/{name.replace('@', f'{kind}@')}") for name in METRICS] for kind in ("", "_unmasked")
    )
    return _pair(masked) + note, _pair(unmasked)


def _mean(found: list[Json], metric: str) -> float | None:
    values = [metrics[metric] for metrics in found if metric in metrics]
    return fmean(values) if values else None


def _pair(values: list[float | None]) -> str:
    return " / ".join("-" if value is None else f"{value:.4f}" for value in values)
