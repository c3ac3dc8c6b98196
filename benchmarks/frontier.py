"""Recall against bytes of every committed way to make MF's tables on Gowalla smaller, as one figure.

The runs are those of ``recsys run frontier_gowalla``, ``dynamic_sparse`` and ``mixed_dims``; the bytes are of weights
and optimizer state after training, and for growth by a window those of the window too, where a run has measured them.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.peer import ROOT
from pipelines.report import words
from pipelines.report.figures import Panel
from pipelines.report.plots import write_plots
from pipelines.report.svg import Figure, Scale, style

RESULTS = ROOT / "benchmarks" / "results"
METRIC = "test/recall@20"
KINDS = {
    "full table": ("full", "mf-full"),
    "fewer bits": ("mf-full-bf16", "mf-full-int8"),
    "shared rows": ("mf-graphhash@25%", "mf-multi-graphhash@25%", "mf-neighbour-codes-"),
    "dynamic mask": ("dynamic-",),
    "static mask": ("static-",),
    "pruned": ("pruned-",),
    "mixed dimensions": ("mixed-",),
    "fewer columns": ("narrow-",),
}


def panel(runs: list[dict[str, Any]]) -> Panel:
    """Every variant with tables a point, labelled with its name; whiskers are 95 % intervals over users."""
    found = [(kind(v["name"]), v) for run in runs for v in run["variants"] if v["table_bytes"]]
    variants = {v["name"]: (group, v) for group, v in found}
    sizes = [_mib(v) for _, v in variants.values()]
    bounds = [bound for _, v in variants.values() for bound in v["ci95"][METRIC]]
    x = Scale(min(sizes) / 1.4, max(sizes) * 1.4, 58, 720, log=True)
    y = Scale(min(bounds) - 0.004, max(bounds) + 0.004, 396, 24)
    title = "Recall@20 against bytes, MF on Gowalla"
    told = "; ".join(f"{name}: {v['metrics'][METRIC]:.4f} at {_mib(v):.2f} MiB" for name, (_, v) in variants.items())
    figure = Figure(title, told, 900, 450)
    figure.axes(x, y, ("tables and optimizer state, MiB (log scale)", "test recall@20"), (words.tick, words.tick))
    labels = []
    for number, group in enumerate(KINDS):
        points = sorted(
            ((_mib(v), v["name"], v) for own, v in variants.values() if own == group), key=lambda point: point[:2]
        )
        for mib, name, v in points:
            recall, (low, high) = v["metrics"][METRIC], v["ci95"][METRIC]
            figure.line([(x(mib), y(low)), (x(mib), y(high))], f"whisker {style(number)}")
            figure.point(x(mib), y(recall), style(number), f"{name}: {recall:.4f} at {mib:.2f} MiB")
        if points:
            labels.append((y(points[-1][2]["metrics"][METRIC]), group, style(number)))
    figure.end_labels(725, labels, 24, 396)
    rows = [[group, name, _mib(v), v["metrics"][METRIC], *v["ci95"][METRIC]] for name, (group, v) in variants.items()]
    columns = ("kind", "variant", "mib", "recall@20", "low_95", "high_95")
    return Panel("frontier", title, figure.render(), "Up and to the left is better.", columns, rows)


def kind(variant: str) -> str:
    """Which of :data:`KINDS` a variant is of.

    Raises:
        ValueError: None.
    """
    for name, starts in KINDS.items():
        if variant in starts or any(start.endswith("-") and variant.startswith(start) for start in starts):
            return name
    raise ValueError(f"{variant!r} is of no known kind; add it to KINDS")


def _mib(variant: dict[str, Any]) -> float:
    stored = variant["table_bytes"] + variant["optimizer_bytes"] + variant.get("window_bytes", 0)
    return float(stored) / 2**20


def main() -> None:
    """Draw what has been measured."""
    names = ("frontier_gowalla", "frontier_gowalla_int8", "dynamic_sparse", "mixed_dims")
    paths = [RESULTS / f"{name}.json" for name in names]
    runs = [json.loads(path.read_bytes()) for path in paths if path.exists()]
    write_plots(ROOT / "docs" / "images" / "frontier", [panel(runs)])


if __name__ == "__main__":
    main()
