"""What a finished run prints on stdout: the table of results and the next command to try."""

from __future__ import annotations

import shlex

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.progress import duration
from pipelines.run_directory import headline_metrics, selection_metric, unmasked
from pipelines.run_files import RunFiles, VariantResult


def summary(files: RunFiles, headline: list[str] | None = None) -> None:
    """Print the results of a run, the best variant by the first metric of ``headline`` first; none: what selected."""
    found = files.metrics()
    headline = headline or headline_metrics(selection_metric(files))
    metrics = list(dict.fromkeys([*headline, *unmasked(headline)]))
    shown = [name for name in metrics if any(f"test/{name}" in v.metrics for v in found.variants)]
    title = escape(f"{found.experiment}: {found.dataset.name}, test split{_selected(found.selected_on)}")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("variant", no_wrap=True)
    for place, name in enumerate(shown):
        table.add_column(name if place else f"{name} [95 %]", justify="right", no_wrap=True)
    for name in ("rows", "MiB", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    first = f"test/{shown[0]}" if shown else ""
    sign = 1 if first.endswith(("rmse", "log_loss")) else -1
    order = sorted(found.variants, key=lambda variant: sign * variant.metrics.get(first, 0.0))
    for variant in order:
        table.add_row(*_row(variant, shown))
    console = Console()
    whole = console.measure(table, options=console.options.update(max_width=500)).maximum  # a narrow one hides figures
    Console(width=max(whole, console.width)).print(table)
    run = shlex.quote(str(files.directory))
    console.print(f"report: {files.report_file}", highlight=False, markup=False, soft_wrap=True)
    user = _some_user(files, order)
    if user is not None:
        hint = f"next:   recsys recommend {run} --user {shlex.quote(user)}"
        console.print(hint, highlight=False, markup=False, soft_wrap=True)


def _selected(on: str) -> str:
    return ", epochs SELECTED ON TEST" if on == "test" else ""


def _row(variant: VariantResult, shown: list[str]) -> list[str]:
    cells = [f"{variant.name} (seed {variant.seed})" if variant.seed else variant.name]
    for name in shown:
        value, interval = variant.metrics.get(f"test/{name}"), variant.ci95.get(f"test/{name}")
        band = f" \\[{interval[0]:.3f}, {interval[1]:.3f}]" if interval and name == shown[0] else ""
        cells.append("-" if value is None else f"{value:.4f}{band}")
    rows = f"{variant.table_rows:,}" if variant.table_rows else "-"
    mib = f"{variant.table_bytes / 2**20:.2f}" if variant.table_bytes else "-"
    return [*cells, rows, mib, duration(variant.seconds.get("train", 0.0))]


def _some_user(files: RunFiles, variants: list[VariantResult]) -> str | None:
    frame = files.per_user(variants[0].name, variants[0].seed)
    return None if frame is None or frame.is_empty() else str(frame["raw_id"][0])
