"""Run a ranking experiment from raw events to the report; every stage is cached, so that a killed run goes on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from embeddings.semantic_id.codes import SemanticCodes
from pipelines.atomic import atomic_directory
from pipelines.config_ranking import Din, RankingExperiment, RankingVariant
from pipelines.events.run import EventRun, Follower, Found, announce_data
from pipelines.events.stages import EvaluatedRanker, Maps, TrainedRanker
from pipelines.ranking.catalogue import EventCatalogue
from pipelines.ranking.data import RankingData, prepare
from pipelines.ranking.field_maps import OtherFields
from pipelines.ranking.report import build_ranking_report
from pipelines.ranking.stages import evaluate_stage, train_stage
from pipelines.run_context import RunContext, in_run_directory
from pipelines.stages.semantic import semantic_stage
from pipelines.summary import summary
from pipelines.tracking import TrackedRun
from recsys.metrics.delong import auc_difference


def run_ranking(experiment: RankingExperiment, *, command: str = "", quiet: bool = False) -> Path:
    """Run every stage that is not cached and write the run directory; as :func:`pipelines.runner.run_experiment`.

    Raises:
        DataError: The events cannot be used.
    """
    with in_run_directory(experiment, command=command, quiet=quiet) as context:
        data = prepare(context.cache, experiment.dataset)
        data.require_both_classes()
        others = OtherFields(context.cache, data)
        others.check(experiment.variants)
        announce_data(context, data, f"{len(data.fields)} fields, {data.num_dense} numbers")
        with atomic_directory(context.files.directory / "fields") as fields:
            data.encoding().save(fields)
        context.files.write_test_events(data.events("test").labels, data.test_users())
        codes = _semantic_ids(context, experiment, data)
        run = _RankingRun(context, experiment, data, others, codes)
        run.execute(experiment.variants, build_ranking_report)
    if not quiet:
        summary(context.files, ["auc", "gauc", "log_loss"])
    return context.files.directory


def _semantic_ids(context: RunContext, experiment: RankingExperiment, data: RankingData) -> SemanticCodes | None:
    if experiment.semantic_ids is None:
        return None
    found = semantic_stage(context.cache, EventCatalogue(data), experiment.semantic_ids, experiment.seeds[0])
    context.files.write_semantic_ids(found.quality, found.frozen)
    return found.codes


class _RankingRun(EventRun[RankingVariant, RankingData]):
    def __init__(
        self,
        context: RunContext,
        experiment: RankingExperiment,
        data: RankingData,
        others: OtherFields,
        codes: SemanticCodes | None,
    ) -> None:
        super().__init__(context, experiment, data, ["auc", "log_loss"], codes)
        self._others = others

    def with_fields(self, variant: RankingVariant, maps: Maps) -> Maps:
        return self._others.add(maps, variant.field_compressors, self.experiment.seeds[0])

    def compressor(self, variant: RankingVariant) -> str:
        return variant.compressors

    def train(self, variant: RankingVariant, maps: Maps, seed: int, follower: Follower) -> TrainedRanker:
        return train_stage(self.cache, self.data, variant, maps, seed, follower)

    def evaluate(self, trained: TrainedRanker) -> EvaluatedRanker:
        return evaluate_stage(self.cache, self.data, trained)

    def measured(
        self, variant: RankingVariant, evaluation: dict[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        return variant.model.name, evaluation["metrics"], evaluation["ci95"]

    def keep(self, tracked: TrackedRun, variant: RankingVariant, seed: int, evaluated: EvaluatedRanker) -> None:
        self.files.write_scores(variant.name, seed, evaluated.predictions)
        if not isinstance(variant.model, Din):  # which cannot score rows without their histories
            tracked.ranker(self.files.variant_dir(variant.name, seed))

    def tests(self, found: Found) -> list[dict[str, Any]]:
        """Paired DeLong tests of all pairs of variants with the first seed, best first."""
        labels = self.data.events("test").labels
        first = [(result, evaluated) for result, evaluated in found if result.seed == self.experiment.seeds[0]]
        first.sort(key=lambda pair: -pair[0].metrics["test/auc"])
        return [
            {"a": a[0].name, "b": b[0].name, **vars(auc_difference(labels, a[1].predictions, b[1].predictions))}
            for a, b in itertools.combinations(first, 2)
        ]
