"""Find a run directory, its best variant and its dataset, for the commands that read a finished run."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from pipelines.config_models import is_searched
from pipelines.config_problems import did_you_mean
from pipelines.config_section import EpochModel
from pipelines.dataset import Dataset
from pipelines.errors import DataError
from pipelines.run_files import RunFiles, VariantResult, best_on_validation

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
    places = (run, Path("runs") / run)
    for place in places:
        if RunFiles(place).metrics_file.is_file():
            return place
    for place in places:
        if (place / "best.yaml").is_file():
            next_step = f"recsys run {place / 'best.yaml'}"
            raise DataError(f"{place} is a sweep, see its report.html; train what it found with: {next_step}")
        if RunFiles(place).config_file.is_file():
            raise DataError(f"{place} is not finished; go on with the command that started it (see {place}/log.txt)")
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


def selection_metric(files: RunFiles) -> str:
    """The metric that selected the epochs of most variants, e.g. "recall@20", if test was evaluated by it."""
    variants = files.metrics().variants
    wanted: Counter[str] = Counter()
    if files.config_file.exists():
        selected = (v for v in files.config().variants if isinstance(v.model, EpochModel) or is_searched(v.model))
        wanted.update(variant.train.selection for variant in selected)
    names = [name for name, _ in wanted.most_common()] + ["recall@20"]
    names += [name.removeprefix("test/") for variant in variants for name in variant.metrics]
    known = {name for variant in variants for name in variant.metrics}
    return next((name for name in names if f"test/{name}" in known), "recall@20")


def headline_metrics(selection: str) -> list[str]:
    """The metrics that a result is told by: the one that selected, and NDCG at its cut-off.

    >>> headline_metrics("recall@10")
    ['recall@10', 'ndcg@10']
    """
    return list(dict.fromkeys([selection, f"ndcg@{selection.partition('@')[2]}"]))


def unmasked(metrics: list[str]) -> list[str]:
    """The same metrics with the seen items left in the lists; a run has them with ``evaluate.unmasked``.

    >>> unmasked(["recall@10"])
    ['recall_unmasked@10']
    """
    return ["_unmasked@".join(name.split("@")) for name in metrics]


def default_variant(files: RunFiles) -> VariantResult:
    """What a command takes where no variant is named: the best on validation, for the best on test owes some to luck.

    Where no variant has a validation metric, a run that selected on test has the best by it, and any other run, whose
    models had nothing to select, the first of its configuration.
    """
    results = files.metrics()
    found = best_on_validation(results.variants)
    if found is None and results.selected_on == "test":
        metric = f"test/{selection_metric(files)}"
        return max(results.variants, key=lambda variant: variant.metrics.get(metric, float("-inf")))
    return found or results.variants[0]


def find_variant(run_dir: Path, name: str | None) -> VariantResult:
    """A variant by name (its first seed), or the one of :func:`default_variant`.

    Raises:
        DataError: No variant has that name, or the run is a ranking experiment.
    """
    files = RunFiles(run_dir)
    files.refuse_ranking()
    if name is None:
        return default_variant(files)
    variants = files.metrics().variants
    for variant in variants:
        if name in (variant.name, f"{variant.name}-s{variant.seed}"):
            return variant
    names = list(dict.fromkeys(variant.name for variant in variants))
    raise DataError(f"{run_dir} has no variant {name!r}{did_you_mean(name, names)} (there are {', '.join(names)})")
