"""How much memory an experiment will need, told before it starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import psutil

from embeddings.budget import resolve_budget
from pipelines.config import Dataset, Experiment
from pipelines.config_budgets import group_name, group_of, is_compressed
from pipelines.config_section import TableModel
from pipelines.ingest.source import resolve
from pipelines.memory_models import code_widths, fitting_mib

MIB = 2**20
LIBRARIES_MIB = 650.0
"""Resident size of the process with torch, polars, numba and scipy loaded, before any data."""
_INGEST_BYTES_PER_ROW = 60
"""User, item, split codes and a timestamp, sorted once: three copies of 20 bytes."""
_TRAIN_BYTES_PER_ROW = 48
"""CSR of train, valid and their union (12 each), and the permuted batch order."""
_SAMPLE_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Size:
    """Rows of the source and distinct users and items; ``exact`` is False where they are extrapolated."""

    rows: int
    users: int
    items: int
    exact: bool


def measure(settings: Dataset) -> Size:
    """Size of a source: from Parquet metadata and columns, else extrapolated from the first MiB of each text file.

    Raises:
        DataError: The source has no file.
    """
    source = resolve(settings)
    if source.format == "parquet":
        found = _measure_parquet(list(source.files), settings)
        if found is not None:
            return found
    rows = sum(count_lines(path, per_item=source.format == "lightgcn") for path in source.files)
    return Size(rows, max(1, rows // 10), max(1, rows // 10), exact=False)


def _measure_parquet(files: list[Path], settings: Dataset) -> Size | None:
    try:
        scan = pl.scan_parquet(files)
        names = scan.collect_schema().names()
        if settings.columns.user not in names or settings.columns.item not in names:
            rows = int(scan.select(pl.len()).collect().item())
            return Size(rows, max(1, rows // 10), max(1, rows // 10), exact=False)
        user, item = pl.col(settings.columns.user), pl.col(settings.columns.item)
        counts = scan.select(pl.len(), user.n_unique().alias("users"), item.n_unique().alias("items")).collect()
    except (pl.exceptions.PolarsError, OSError):
        return None
    rows, users, items = counts.row(0)
    return Size(rows, users, items, exact=True)


def count_lines(path: Path, *, per_item: bool) -> int:
    """Rows of a text file, from the density of its first MiB; for adjacency text the ids after each first one."""
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    lines = max(1, sample.count(b"\n"))
    rows = max(1, sample.count(b" ")) if per_item else lines
    return int(rows * path.stat().st_size / max(1, len(sample)))


def estimate(experiment: Experiment, size: Size) -> dict[str, float]:
    """Peak MiB by stage: each is on top of the libraries, and only one stage runs at a time."""
    widths = code_widths(experiment.semantic_ids, size.items)
    training = [fitting_mib(v.model, size.rows, size.users, size.items, widths) for v in experiment.variants]
    return {
        "libraries": LIBRARIES_MIB,
        "ingest": size.rows * _INGEST_BYTES_PER_ROW / MIB,
        "cluster": size.rows * 40 / MIB,
        "train": max(training, default=0.0) + size.rows * _TRAIN_BYTES_PER_ROW / MIB,
        "evaluate": _evaluation(experiment, size),
    }


def _evaluation(experiment: Experiment, size: Size) -> float:
    """Lists, hits and two float64 curves per user, twice; vectors; the scores of a block of users."""
    k = experiment.evaluate.max_k
    per_user = k * (4 + 1) + 2 * (2 * k + 40) * 8
    block = 1024 * size.items * 4
    return (size.users * per_user + block) / MIB


def total(parts: dict[str, float]) -> float:
    """Peak MiB of the process: the libraries and the largest stage."""
    return parts["libraries"] + max(value for name, value in parts.items() if name != "libraries")


def compressed_rows(experiment: Experiment, size: Size) -> dict[str, tuple[int, int]]:
    """Rows of the compressed tables by budget, and of how many ids, without those that the resolution decides.

    Raises:
        ValueError: The budget is out of range for this data.
    """
    found: dict[str, tuple[int, int]] = {}
    for variant in experiment.variants:
        if not isinstance(variant.model, TableModel) or not is_compressed(variant):
            continue
        group = group_of(experiment, variant)
        budget, items_only = group
        given = (budget.rows, budget.table_mib, budget.resolution)
        users = 0 if items_only else size.users
        rows = resolve_budget(*given, users, size.items, variant.model.row_bytes).rows
        if rows is not None:
            found.setdefault(group_name(group), (rows, users + size.items))
    return found


def memory_lines(experiment: Experiment) -> list[str]:
    """The memory estimate, with a warning when the machine has less."""
    parts = estimate(experiment, measure(experiment.dataset))
    peak, available = total(parts), psutil.virtual_memory().available / MIB
    stages = ", ".join(f"{name} {value:,.0f}" for name, value in parts.items())
    lines = [f"memory: about {peak:,.0f} MiB at most ({stages}), {available:,.0f} MiB available"]
    if peak > available:
        lines.append("warning: this is more than the machine has free; use a smaller model.dim or fewer interactions")
    return lines
