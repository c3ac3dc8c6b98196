"""The ingest stage: raw events to a dataset whose split has passed the leak audit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipelines import config
from pipelines.cache import Cache, content_hash
from pipelines.dataset import SCHEMA_VERSION, Dataset
from pipelines.ingest import ingest
from pipelines.ingest.source import resolve
from pipelines.stages.versions import versions

VERSION = 3


def ingest_stage(cache: Cache, settings: config.Dataset, progress: Callable[[str, int, int | None], None]) -> Dataset:
    """The dataset of a configuration, made anew only when the bytes of its files or its settings changed.

    Raises:
        DataError: The source cannot be used.
        LeakError: The split fails its audit.
    """
    key = {
        "version": VERSION,
        "schema": SCHEMA_VERSION,
        "files": content_hash(*source_files(settings)),
        "settings": settings.model_dump(mode="json", exclude_unset=True, exclude={"source"}),
        "libraries": versions(["polars", "numpy"]),
    }
    entry = cache.stage("dataset", key, lambda directory: _build(settings, directory, progress))
    return Dataset.open(entry / "dataset")


def source_files(settings: config.Dataset) -> list[Path]:
    """Every file that the dataset is read from, interactions first."""
    source = resolve(settings)
    return [*source.files, *source.beside(settings)]


def _build(settings: config.Dataset, directory: Path, progress: Callable[[str, int, int | None], None]) -> None:
    ingest(settings, directory / "dataset", progress)
