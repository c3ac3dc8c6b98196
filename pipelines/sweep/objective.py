"""What a sweep maximises: the validation metric of a variant trained on train. The test split is never read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pipelines.cache import Cache
from pipelines.config import Experiment, Train, Variant
from pipelines.config_multitask import MultiTaskExperiment, TaskVariant
from pipelines.config_ranking import RankingExperiment, RankingVariant
from pipelines.config_section import TableModel
from pipelines.errors import DataError
from pipelines.events.stages import FieldMaps, Maps, TrainedRanker
from pipelines.multitask import stages as multitask
from pipelines.multitask.data import prepare_tasks
from pipelines.progress import Reporter
from pipelines.ranking import stages as ranking
from pipelines.ranking.catalogue import EventCatalogue
from pipelines.ranking.data import prepare
from pipelines.ranking.field_maps import OtherFields
from pipelines.stages.budgets import CompressionStages
from pipelines.stages.compress import Maps as CompressedMaps
from pipelines.stages.graph import graph_stage
from pipelines.stages.ingest import ingest_stage
from pipelines.stages.semantic import semantic_stage
from pipelines.stages.train import train_stage
from pipelines.sweep.space import AnyExperiment, changed
from recsys.checkpoint import load_model
from recsys.evaluator import quick_metrics
from recsys.settings import EpochRecord

OnEpoch = Callable[[EpochRecord], None]


class Objective(Protocol):
    """Trains a variant of one experiment, whose data it has opened once."""

    data: dict[str, Any]
    """Facts of the data for the tracker: name, source, content_hash, ..."""

    def __call__(self, name: str, values: dict[str, Any], directory: Path, on_epoch: OnEpoch) -> dict[int, float]:
        """Train variant ``name`` with other ``values`` and the first seed.

        Args:
            name: of the variant.
            values: dotted path -> value.
            directory: of the training, which goes on from what a killed process left there.
            on_epoch: called after each epoch that this process ran; what it raises ends the training.

        Returns:
            The selection metric on validation by epoch; {0: value} of a model without epochs.

        Raises:
            ValueError: The values do not go together.
        """
        ...


def open_objective(experiment: AnyExperiment, cache: Cache, report: Reporter) -> Objective:
    """Make or find the data, the graph and the semantic ids of an experiment.

    Raises:
        DataError: The data cannot be used, or has no validation split.
        ValueError: The budget of a variant as it is written is out of range.
    """
    match experiment:
        case RankingExperiment():
            return _Ranking(experiment, cache)
        case MultiTaskExperiment():
            return _MultiTask(experiment, cache)
        case Experiment():
            return _Retrieval(experiment, cache, report)


class _Retrieval:
    """Every model that ranks the catalogue: matrix factorisation, sequences, two towers, closed forms."""

    def __init__(self, experiment: Experiment, cache: Cache, report: Reporter) -> None:
        self._experiment, self._cache = experiment, cache
        self._dataset = ingest_stage(cache, experiment.dataset, report)
        self.data = self._dataset.manifest.model_dump(mode="json")
        self._train, self._valid = self._dataset.matrix("train"), self._dataset.matrix("valid")
        if not self._valid.nnz:
            raise DataError(
                f"a sweep chooses on validation, but {self._dataset.manifest.name} has no valid interactions;"
                " give the split a validation share"
            )
        self._graph = graph_stage(cache, self._dataset)
        codes = experiment.semantic_ids
        self._codes = None if codes is None else semantic_stage(cache, self._dataset, codes, experiment.seeds[0]).codes
        for variant in experiment.variants:
            self._maps(variant)

    def __call__(self, name: str, values: dict[str, Any], directory: Path, on_epoch: OnEpoch) -> dict[int, float]:
        variant = next(variant for variant in self._experiment.variants if variant.name == name)
        tried = _without_refit(changed(variant, values))
        seed, selection = self._experiment.seeds[0], tried.train.selection
        trained = train_stage(Cache(directory), self._dataset, tried, self._maps(tried), seed, on_epoch, self._codes)
        found = {record["epoch"]: record["metrics"][selection] for record in trained.history if record["metrics"]}
        if found:
            return found
        model = load_model(trained.entry / "checkpoint")
        return {0: quick_metrics(model, self._valid, self._train, [selection])[selection]}

    def _maps(self, tried: Variant) -> CompressedMaps | None:
        """The id maps as a run has them in which ``tried`` takes the place of its variant; None without tables."""
        if not isinstance(tried.model, TableModel):
            return None
        variants = tuple(tried if old.name == tried.name else old for old in self._experiment.variants)
        experiment = self._experiment.model_copy(update={"variants": variants})
        train_hash = self._dataset.manifest.train_hash
        return CompressionStages(self._cache, experiment, self._graph, train_hash, self._codes).maps(tried)


class _Ranking:
    """Rankers of labelled events."""

    def __init__(self, experiment: RankingExperiment, cache: Cache) -> None:
        self._experiment = experiment
        self._data = prepare(cache, experiment.dataset)
        self._data.require_both_classes()
        self._others = OtherFields(cache, self._data)
        self._others.check(experiment.variants)
        self.data = self._data.facts | {"content_hash": self._data.hash}
        settings, codes = experiment.semantic_ids, None
        if settings is not None:
            codes = semantic_stage(cache, EventCatalogue(self._data), settings, experiment.seeds[0]).codes
        self._fields = FieldMaps(cache, self._data, experiment.budget, codes)
        for variant in experiment.variants:
            self._maps(variant)

    def __call__(self, name: str, values: dict[str, Any], directory: Path, on_epoch: OnEpoch) -> dict[int, float]:
        variant = next(variant for variant in self._experiment.variants if variant.name == name)
        tried: RankingVariant = changed(variant, values)
        seed = self._experiment.seeds[0]
        trained = ranking.train_stage(Cache(directory), self._data, tried, self._maps(tried), seed, on_epoch)
        return _by_epoch(trained, tried.train.selection)

    def _maps(self, variant: RankingVariant) -> Maps:
        seed = self._experiment.seeds[0]
        maps = self._fields.maps(variant.compressor, variant.model.dim, seed)
        return self._others.add(maps, variant.field_compressors, seed)


class _MultiTask:
    """Mixtures of experts for several tasks."""

    def __init__(self, experiment: MultiTaskExperiment, cache: Cache) -> None:
        self._experiment = experiment
        self._data = prepare_tasks(cache, experiment.dataset, experiment.tasks)
        self._tasks = multitask.tasks_of(experiment.tasks, self._data)
        self.data = self._data.facts | {"content_hash": self._data.hash}
        self._fields = FieldMaps(cache, self._data, experiment.budget)
        for variant in experiment.variants:
            self._maps(variant)

    def __call__(self, name: str, values: dict[str, Any], directory: Path, on_epoch: OnEpoch) -> dict[int, float]:
        variant = next(variant for variant in self._experiment.variants if variant.name == name)
        tried: TaskVariant = changed(variant, values)
        maps, seed = self._maps(tried), self._experiment.seeds[0]
        trained = multitask.train_stage(Cache(directory), self._data, self._tasks, tried, maps, seed, on_epoch)
        return _by_epoch(trained, tried.train.selection)

    def _maps(self, variant: TaskVariant) -> Maps:
        return self._fields.maps(variant.compressor, variant.model.dim, self._experiment.seeds[0])


def _by_epoch(trained: TrainedRanker, selection: str) -> dict[int, float]:
    """The selection metric by epoch."""
    return {record["epoch"]: record["metrics"][selection] for record in trained.history if record["metrics"]}


def _without_refit(variant: Variant) -> Variant:
    """A trial ends with the epoch that validation chose; training again on validation would tell nothing more."""
    train: Train = variant.train.model_copy(update={"refit": False})
    return variant.model_copy(update={"train": train})
