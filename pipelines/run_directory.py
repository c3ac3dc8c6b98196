"""Find a run directory, its best variant and its dataset, for the commands that read a finished run."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.config_problems import did_you_mean
from pipelines.dataset import Dataset
from pipelines.errors import DataError
from pipelines.run_files import RunFiles, VariantResult

DATASET_LINK = "dataset.path"
"""File of a run directory with the place of its dataset in the stage cache."""


def cache_root() -> Path:
    """The stage cache: ``$RECSYS_CACHE``, else ``.recsys`` in the working directory."""
    return Path(os.environ.get("RECSYS_CACHE", ".recsys"))


def find_run(run: Path) -> Path:
    """The run directory that a path, or a name under ``runs/``, means.

    Raises:
        DataError: There is none; similar names are offered.
    """
    for candidate in (run, Path("runs") / run):
        if RunFiles(candidate).metrics_file.is_file():
            return candidate
    if RunFiles(run).config_file.is_file():
        raise DataError(f"{run} is not finished; go on with the command that started it (see {run / 'log.txt'})")
    parent = run.parent if run.parent.is_dir() and str(run.parent) != "." else Path("runs")
    known = sorted(path.parent.name for path in parent.glob("*/metrics.json"))
    hint = did_you_mean(run.name, known) or (
        f"; there are {', '.join(known[:8])}" if known else "; make one: recsys run"
    )
    raise DataError(f"{run} is not a run directory (it has no metrics.json){hint}")


def open_dataset(run_dir: Path) -> Dataset:
    """The dataset of a run, from the stage cache.

    Raises:
        DataError: It is gone; running the experiment again makes it anew.
    """
    link = run_dir / DATASET_LINK
    place = run_dir.resolve() / link.read_text().strip() if link.is_file() else None
    if place is None or not place.is_dir():
        command = RunFiles(run_dir).metrics().command
        raise DataError(f"the dataset of {run_dir} is no longer in the stage cache; make it anew with: {command}")
    return Dataset.open(place)


def find_variant(run_dir: Path, name: str | None, metric: str = "test/recall@20") -> VariantResult:
    """A variant by name (its first seed), or the best one by a metric.

    Raises:
        DataError: No variant has that name.
    """
    variants = RunFiles(run_dir).metrics().variants
    if name is None:
        if not any(metric in variant.metrics for variant in variants):  # evaluated at other cut-offs
            metric = next((found for variant in variants for found in variant.metrics), metric)
        return max(variants, key=lambda variant: variant.metrics.get(metric, float("-inf")))
    for variant in variants:
        if name in (variant.name, f"{variant.name}-s{variant.seed}"):
            return variant
    names = list(dict.fromkeys(variant.name for variant in variants))
    raise DataError(f"{run_dir} has no variant {name!r}{did_you_mean(name, names)} (there are {', '.join(names)})")
