"""The run directory: the one place that knows its file names and schemas, for who writes a run and for who reads it."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml
from pydantic import BaseModel, ValidationError
from safetensors.numpy import load, save

from pipelines.atomic import copy_tree, finite, write_bytes, write_json, write_text
from pipelines.config import Experiment
from pipelines.config_multitask import MultiTaskExperiment
from pipelines.config_ranking import RankingExperiment
from pipelines.errors import DataError
from pipelines.frozen_settings import FOLDER
from pipelines.run_schema import (
    Compression,
    Curve,
    DatasetFacts,
    Epoch,
    EvaluationSummary,
    Json,
    Metrics,
    VariantResult,
    WorstBucket,
)

__all__ = [
    "Compression",
    "Curve",
    "DatasetFacts",
    "Epoch",
    "EvaluationSummary",
    "Metrics",
    "RunError",
    "RunFiles",
    "VariantResult",
    "WorstBucket",
]

Schema = TypeVar("Schema", bound=BaseModel)
IntArray = npt.NDArray[np.int64]
PER_USER_KEYS = ("user", "raw_id")


class RunError(DataError):
    """A run directory lacks a file, or a file does not have its schema; the message names the file and the cure."""


def _parse(path: Path, schema: type[Schema], payload: Any) -> Schema:
    try:
        return schema.model_validate(payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise RunError(
            f"{path}: {where}: {first['msg']} ({error.error_count()} problems in all);"
            " run `recsys run` again with the same configuration to write it anew"
        ) from error


def validation_metric(variants: Sequence[VariantResult]) -> str | None:
    """The metric that most variants were selected by, as "valid/recall@20"; None where no variant has one."""
    known = Counter(name for variant in variants for name in variant.metrics if name.startswith("valid/"))
    return known.most_common(1)[0][0] if known else None


def best_on_validation(variants: Sequence[VariantResult]) -> VariantResult | None:
    """The best by :func:`validation_metric`; None where there is no such metric."""
    metric = validation_metric(variants)
    if metric is None:
        return None
    return max((v for v in variants if metric in v.metrics), key=lambda variant: variant.metrics[metric])


_FOR_EVENTS = {
    "ctr": "recsys score gives this one's probabilities of events",
    "multitask": "the report of this one has its paired tests",
}


def resolved(config: Experiment | RankingExperiment | MultiTaskExperiment) -> str:
    """An experiment as YAML that ``recsys run`` takes, every default written out.

    Of the dataset only what was set: a column that is null when set is another thing than one that is guessed.
    """
    values = config.model_dump(mode="json")
    values["dataset"] = config.dataset.model_dump(mode="json", exclude_unset=True)
    return yaml.safe_dump(values, sort_keys=False)


class RunFiles:
    """Paths, writers and typed readers of one run directory. Every write is atomic.

    Args:
        directory: ``runs/<experiment>-<hash8>``; created by the first write.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.config_file = self.directory / "config.yaml"
        self.metrics_file = self.directory / "metrics.json"
        self.dataset_file = self.directory / "dataset.json"
        self.compression_file = self.directory / "compression.json"
        self.semantic_ids_file = self.directory / "semantic_ids.json"
        self.log_file = self.directory / "log.txt"
        self.report_file = self.directory / "report.html"
        self.plots = self.directory / "plots"

    def variant_dir(self, name: str, seed: int) -> Path:
        """Directory of one variant with one seed."""
        return self.directory / "variants" / f"{name}-s{seed}"

    def checkpoint_dir(self, name: str, seed: int) -> Path:
        """Directory with the model and its id maps."""
        return self.variant_dir(name, seed) / "checkpoint"

    def _variant_file(self, name: str, seed: int, file: str) -> Path:
        path = self.variant_dir(name, seed) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_config(self, config: Experiment | RankingExperiment | MultiTaskExperiment) -> None:
        """Write the resolved configuration as YAML; ``recsys run`` takes it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_text(self.config_file, resolved(config))

    def write_metrics(self, metrics: Metrics) -> None:
        """Write ``metrics.json``; the last file of a finished run."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.metrics_file, finite(metrics.model_dump()))

    def write_dataset(self, facts: Json) -> None:
        """Write ``dataset.json``: the dataset's manifest, plus ``degrees`` {side: {degree: count}}."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.dataset_file, finite(facts))

    def write_semantic_ids(self, quality: dict[str, Any], frozen: Path) -> None:
        """Write ``semantic_ids.json``, what the gates found, and ``semantic_ids/``, a copy of the frozen codes."""
        copy_tree(frozen, self.directory / FOLDER)
        write_json(self.semantic_ids_file, quality)

    def semantic_ids(self) -> dict[str, Any] | None:
        """``semantic_ids.json``, or None where the experiment has no semantic ids."""
        return self._json(self.semantic_ids_file) if self.semantic_ids_file.exists() else None

    def write_code_paths(self, name: str, seed: int, found: dict[str, Any]) -> None:
        """Write ``code_paths.json`` of a variant: what :func:`pipelines.code_paths.path_accuracy` found."""
        write_json(self._variant_file(name, seed, "code_paths.json"), found)

    def code_paths(self, name: str, seed: int) -> dict[str, Any] | None:
        """``code_paths.json`` of a variant, or None where items have no codes of their own."""
        path = self.variant_dir(name, seed) / "code_paths.json"
        return self._json(path) if path.exists() else None

    def write_compression(self, compression: Compression) -> None:
        """Write ``compression.json``."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.compression_file, finite(compression.model_dump()))

    def write_history(self, name: str, seed: int, epochs: list[Epoch]) -> None:
        """Write ``history.json`` of a variant."""
        write_json(self._variant_file(name, seed, "history.json"), finite([epoch.model_dump() for epoch in epochs]))

    def write_evaluation(self, name: str, seed: int, evaluation: EvaluationSummary) -> None:
        """Write ``evaluation.json`` of a variant."""
        write_json(self._variant_file(name, seed, "evaluation.json"), finite(evaluation.model_dump()))

    def write_per_user(
        self, name: str, seed: int, users: IntArray, raw_ids: list[str], values: dict[str, npt.NDArray[np.float64]]
    ) -> None:
        """Write ``per_user.parquet``: dense user, raw id and one float64 column per metric, all of length [U]."""
        frame = pl.DataFrame({"user": users.astype(np.int32), "raw_id": raw_ids} | values)
        self._write_frame(self._variant_file(name, seed, "per_user.parquet"), frame)

    def write_top_items(self, name: str, seed: int, users: IntArray, items: npt.NDArray[np.integer[Any]]) -> None:
        """Write ``top_items.parquet``: the best items [U, K] of each user, best first, -1 = none."""
        lists = pl.Series(items.astype(np.int32), dtype=pl.Array(pl.Int32, items.shape[1])).cast(pl.List(pl.Int32))
        frame = pl.DataFrame({"user": users.astype(np.int32), "items": lists})
        self._write_frame(self._variant_file(name, seed, "top_items.parquet"), frame)

    def write_test_events(self, labels: npt.NDArray[np.uint8], users: npt.NDArray[np.int32]) -> None:
        """Write ``test_events.safetensors`` of a ranking run: label and user of each test event, [E] each."""
        write_bytes(self.directory / "test_events.safetensors", save({"labels": labels, "users": users}))

    def write_scores(self, name: str, seed: int, scores: npt.NDArray[np.float32]) -> None:
        """Write ``scores.safetensors`` of a ranker: log-odds [E] of the test events, in their order."""
        write_bytes(self._variant_file(name, seed, "scores.safetensors"), save({"scores": scores}))

    def test_events(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """Label and user of each test event of a ranking run."""
        arrays = load(self._bytes(self.directory / "test_events.safetensors"))
        return arrays["labels"], arrays["users"]

    def scores(self, name: str, seed: int) -> npt.NDArray[np.float32]:
        """Log-odds [E] that a ranker gave to the test events."""
        return load(self._bytes(self.variant_dir(name, seed) / "scores.safetensors"))["scores"]

    @staticmethod
    def _write_frame(path: Path, frame: pl.DataFrame) -> None:
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd")
        write_bytes(path, buffer.getvalue())

    def refuse_ranking(self) -> None:
        """Raise RunError if the run is a ranking experiment, for the commands that rank the catalogue for users."""
        config = self.ranking_config() if self.config_file.exists() else None
        if config is not None:
            raise RunError(
                f"{self.directory} is a run with task: {config.task}, which scores events and ranks no catalogue;"
                f" recommend and export take retrieval runs, and {_FOR_EVENTS[config.task]}"
            )

    def config(self) -> Experiment:
        """The resolved configuration of a retrieval experiment."""
        self.refuse_ranking()
        return _parse(self.config_file, Experiment, self._yaml(self.config_file))

    def ranking_config(self) -> RankingExperiment | MultiTaskExperiment | None:
        """The resolved configuration of a ranking or multi-task experiment, None if the run is of another kind."""
        payload = self._yaml(self.config_file)
        match payload.get("task") if isinstance(payload, dict) else None:
            case "ctr":
                return _parse(self.config_file, RankingExperiment, payload)
            case "multitask":
                return _parse(self.config_file, MultiTaskExperiment, payload)
            case _:
                return None

    def _yaml(self, path: Path) -> Any:
        text = self._bytes(path).decode()
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RunError(f"{path}: not YAML: {error}") from error

    def metrics(self) -> Metrics:
        """What the run found."""
        return _parse(self.metrics_file, Metrics, self._json(self.metrics_file))

    def dataset(self) -> Json:
        """Manifest with split facts and leak audit, degree histograms; empty if the run has none."""
        if not self.dataset_file.exists():
            return {}
        facts = self._json(self.dataset_file)
        if not isinstance(facts, dict):
            raise RunError(f"{self.dataset_file}: required is a JSON object, got {type(facts).__name__}")
        return facts

    def compression(self) -> Compression | None:
        """Facts about the id maps, None if the run compressed nothing."""
        if not self.compression_file.exists():
            return None
        return _parse(self.compression_file, Compression, self._json(self.compression_file))

    def history(self, name: str, seed: int) -> list[Epoch]:
        """Epochs of a variant, empty for models that are not trained by epochs."""
        path = self.variant_dir(name, seed) / "history.json"
        if not path.exists():
            return []
        payload = self._json(path)
        if not isinstance(payload, list):
            raise RunError(f"{path}: required is a JSON list of epochs, got {type(payload).__name__}")
        return [_parse(path, Epoch, epoch) for epoch in payload]

    def evaluation(self, name: str, seed: int) -> EvaluationSummary | None:
        """Evaluation of a variant, None if it was not evaluated."""
        path = self.variant_dir(name, seed) / "evaluation.json"
        return _parse(path, EvaluationSummary, self._json(path)) if path.exists() else None

    def per_user(self, name: str, seed: int) -> pl.DataFrame | None:
        """Per-user metrics, None if absent."""
        return self._frame(self.variant_dir(name, seed) / "per_user.parquet", PER_USER_KEYS)

    def top_items(self, name: str, seed: int) -> pl.DataFrame | None:
        """Recommended items, None if absent."""
        return self._frame(self.variant_dir(name, seed) / "top_items.parquet", ("user", "items"))

    @staticmethod
    def _frame(path: Path, required: tuple[str, ...]) -> pl.DataFrame | None:
        if not path.exists():
            return None
        try:
            frame = pl.read_parquet(path, glob=False)
        except pl.exceptions.PolarsError as error:
            raise RunError(f"{path}: not a readable Parquet file ({error}); run `recsys run` again") from error
        missing = [name for name in required if name not in frame.columns]
        if missing:
            raise RunError(f"{path}: columns {list(required)} are required, but {missing} are missing")
        return frame

    @staticmethod
    def _bytes(path: Path) -> bytes:
        if not path.exists():
            raise RunError(f"{path} does not exist; a run directory needs it: finish the run with `recsys run` first")
        return path.read_bytes()

    def _json(self, path: Path) -> Any:
        try:
            return json.loads(self._bytes(path))
        except ValueError as error:
            raise RunError(f"{path}: not JSON ({error}); run `recsys run` again to write it anew") from error
