"""One execution of an experiment on events: every variant with every seed, their tests, the report."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from embeddings.semantic_id.codes import SemanticCodes
from pipelines.atomic import copy_tree, finite, write_json
from pipelines.config_multitask import MultiTaskExperiment, TaskVariant
from pipelines.config_ranking import RankingExperiment, RankingVariant
from pipelines.events.data import PreparedEvents
from pipelines.events.stages import EvaluatedRanker, FieldMaps, Maps, TrainedRanker
from pipelines.progress import Reporter, duration
from pipelines.run_context import RunContext
from pipelines.run_files import DatasetFacts, VariantResult
from pipelines.tracking import TrackedRun, Tracker, open_tracker
from recsys.settings import EpochRecord
from recsys.significance import holm

V = TypeVar("V", bound=RankingVariant | TaskVariant)
D = TypeVar("D", bound=PreparedEvents)
Found = list[tuple[VariantResult, EvaluatedRanker]]


def announce_data(context: RunContext, data: PreparedEvents, shape: str) -> None:
    """Say of what ``shape`` the events are, and write their facts into the run directory."""
    counts = ", ".join(f"{count:,} {split}" for split, count in data.facts["counts"].items())
    context.report.say(f"data: {data.facts['name']}, {shape}, {counts}")
    context.files.write_dataset(data.facts)


class EventRun(abc.ABC, Generic[V, D]):
    """One execution of an experiment on events in its run directory.

    Args:
        context: where it writes and whom it tells.
        experiment: what is run.
        data: its events.
        headline: test metrics that a variant is told by.
        codes: of the items, where there are semantic ids.
    """

    def __init__(
        self,
        context: RunContext,
        experiment: RankingExperiment | MultiTaskExperiment,
        data: D,
        headline: list[str],
        codes: SemanticCodes | None = None,
    ) -> None:
        self.files, self.cache, self._context = context.files, context.cache, context
        self.experiment, self.data, self.headline = experiment, data, headline
        self._maps = FieldMaps(self.cache, data, experiment.budget, codes)

    @abc.abstractmethod
    def train(self, variant: V, maps: Maps, seed: int, follower: Follower) -> TrainedRanker:
        """Train a variant, or find it trained."""

    @abc.abstractmethod
    def evaluate(self, trained: TrainedRanker) -> EvaluatedRanker:
        """Evaluate it on test, or find it evaluated."""

    @abc.abstractmethod
    def measured(self, variant: V, evaluation: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Name of the model, test metrics and their 95 % intervals by name; None where undefined."""

    @abc.abstractmethod
    def tests(self, found: Found) -> list[dict[str, Any]]:
        """Paired tests of variants; ``p`` is corrected by Holm later."""

    def with_fields(self, variant: V, maps: Maps) -> Maps:
        """``maps`` with those of compressed fields beside user and item: none, unless overridden."""
        return maps

    def compressor(self, variant: V) -> str:
        """How ids share rows, in words."""
        return variant.compressor.name

    def keep(self, tracked: TrackedRun, variant: V, seed: int, evaluated: EvaluatedRanker) -> None:
        """Write and track what only this kind of experiment has of a variant: nothing, unless overridden."""

    def execute(self, variants: Sequence[V], build_report: Callable[[Path], Path]) -> None:
        """Train and evaluate ``variants``, those of the experiment, with every seed, and report."""
        experiment, files = self.experiment, self.files
        with open_tracker(experiment.tracking, experiment.experiment, files.directory) as tracker:
            tracker.params(experiment.model_dump(mode="json", exclude={"variants"}))
            tracker.dataset(self.data.facts | {"content_hash": self.data.hash})
            for variant in variants:
                self._maps_of(variant)  # a budget that cannot be met is told before anything is trained
            found = [self._variant(tracker, variant, seed) for variant in variants for seed in experiment.seeds]
            tests = self.tests(found)
            corrected = holm([test["p"] for test in tests])
            whole = [test | {"p_holm": p} for test, p in zip(tests, corrected, strict=True)]
            write_json(files.directory / "tests.json", finite(whole))
            self._context.write_metrics(experiment.experiment, _facts(self.data), [result for result, _ in found])
            report_file = build_report(files.directory)
            tracker.artifacts([files.config_file, files.metrics_file, files.dataset_file, files.plots, report_file])

    def _maps_of(self, variant: V) -> Maps:
        """The id maps of a variant, made or found made."""
        maps = self._maps.maps(variant.compressor, variant.model.dim, self.experiment.seeds[0])
        return self.with_fields(variant, maps)

    def _variant(self, tracker: Tracker, variant: V, seed: int) -> tuple[VariantResult, EvaluatedRanker]:
        name = f"{variant.name}-s{seed}"
        with tracker.variant(name, variant.model_dump(mode="json") | {"seed": seed}) as tracked:
            maps = self._maps_of(variant)
            follower = Follower(name, variant.train.epochs, self._context.report, tracked)
            trained = self.train(variant, maps, seed, follower)
            for record in trained.history:
                follower.track(EpochRecord(**record))
            evaluated = self.evaluate(trained)
            result = self._result(variant, seed, trained, evaluated)
            directory = self.files.variant_dir(variant.name, seed)
            copy_tree(trained.entry / "checkpoint", self.files.checkpoint_dir(variant.name, seed))
            write_json(directory / "evaluation.json", evaluated.evaluation)
            write_json(directory / "history.json", trained.history)
            if described := maps.described():
                write_json(directory / "maps.json", described)
            tracked.metrics(result.metrics)
            tracked.artifacts(directory / "evaluation.json", directory / "history.json")
            self.keep(tracked, variant, seed, evaluated)
        shown = ", ".join(f"{metric} {result.metrics[f'test/{metric}']:.4f}" for metric in self.headline)
        self._context.report.say(f"{name}: {shown} (trained in {duration(result.seconds['train'])})")
        return result, evaluated

    def _result(self, variant: V, seed: int, trained: TrainedRanker, evaluated: EvaluatedRanker) -> VariantResult:
        facts, selection = trained.facts, variant.train.selection
        model, metrics, ci95 = self.measured(variant, evaluated.evaluation)
        valid = max(record["metrics"][selection] for record in trained.history if selection in record["metrics"])
        return VariantResult(
            name=variant.name,
            model=model,
            compressor=self.compressor(variant),
            table_rows=facts["table_rows"],
            table_bytes=facts["table_bytes"],
            optimizer_bytes=facts["optimizer_bytes"],
            map_bytes=facts.get("map_bytes", 0),
            layer_bytes=facts.get("layer_bytes", 0),
            layer_optimizer_bytes=facts.get("layer_optimizer_bytes", 0),
            metrics={f"test/{name}": value for name, value in metrics.items()} | {f"valid/{selection}": valid},
            ci95={f"test/{name}": interval for name, interval in ci95.items()},
            slices=evaluated.evaluation.get("slices", {}),
            seconds={"train": facts["seconds"], "evaluate": evaluated.seconds},
            epochs=facts["epochs"],
            seed=seed,
            peak_rss_mib=facts["peak_rss_mib"],
        )


def _facts(data: PreparedEvents) -> DatasetFacts:
    users, items = data.sizes[data.user], data.sizes[data.item]
    return DatasetFacts(name=data.facts["name"], users=users, items=items, hash=data.hash, **data.facts["counts"])


class Follower:
    """Follows the training of a variant: progress for the reader, metrics by epoch for the tracker, each once."""

    def __init__(self, name: str, epochs: int, report: Reporter, tracked: TrackedRun) -> None:
        self._name, self._epochs, self._report, self._tracked = name, epochs, report, tracked
        self._seen: set[int] = set()

    def __call__(self, record: EpochRecord) -> None:
        """Tell the reader and the tracker of an epoch that this process ran."""
        note = ", ".join([f"loss {record.loss:.4f}", *(f"{k} {v:.4f}" for k, v in record.metrics.items())])
        self._report.log(f"{self._name} epoch {record.epoch}: {note}, {record.triples_per_second:,.0f} events/s")
        self._report(f"train {self._name}", record.epoch, self._epochs, note)
        self.track(record)

    def track(self, record: EpochRecord) -> None:
        """Send an epoch to the tracker, unless it was sent before."""
        if record.epoch not in self._seen:
            self._seen.add(record.epoch)
            values = {"select/loss": record.loss, "select/events_per_second": record.triples_per_second}
            values |= {f"valid/{name}": value for name, value in record.metrics.items()}
            self._tracked.metrics(values, step=record.epoch)
