"""Run a ranking experiment from raw events to the report; every stage is cached, so that a killed run goes on."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import numpy as np

from embeddings.semantic_id.codes import SemanticCodes
from pipelines.atomic import atomic_directory, finite, write_json
from pipelines.cache import Cache, locked
from pipelines.config_loader import config_hash
from pipelines.config_ranking import Din, RankingExperiment, RankingVariant
from pipelines.progress import Reporter, duration
from pipelines.ranking.catalogue import EventCatalogue
from pipelines.ranking.data import RankingData, prepare
from pipelines.ranking.report import build_ranking_report
from pipelines.ranking.stages import EvaluatedRanker, FieldMaps, TrainedRanker, evaluate_stage, train_stage
from pipelines.run_directory import cache_root
from pipelines.run_files import DatasetFacts, RunFiles, VariantResult
from pipelines.runner import copy_tree, finished_metrics
from pipelines.stages.semantic import semantic_stage
from pipelines.summary import summary
from pipelines.tracking import TrackedRun, Tracker, open_tracker
from recsys.metrics.delong import auc_difference
from recsys.settings import EpochRecord
from recsys.significance import holm


def run_ranking(experiment: RankingExperiment, *, command: str = "", quiet: bool = False) -> Path:
    """Run every stage that is not cached and write the run directory.

    Args:
        experiment: What to run.
        command: The command line, for the report.
        quiet: Print nothing (``log.txt`` has everything).

    Returns:
        The run directory ``<output>/<experiment>-<hash of the configuration>``.

    Raises:
        DataError: The events cannot be used.
    """
    files = RunFiles(Path(experiment.output) / f"{experiment.experiment}-{config_hash(experiment)}")
    files.directory.mkdir(parents=True, exist_ok=True)
    with Reporter(files.log_file, quiet=quiet) as report:
        waiting = f"waiting for another `recsys run` that writes {files.directory}"
        with locked(files.directory / ".lock", lambda: report.say(waiting)):
            _RankingRun(experiment, files, report, command).execute()
    if not quiet:
        summary(files, ["auc", "gauc", "log_loss"])
    return files.directory


class _RankingRun:
    """One execution of a ranking experiment in its run directory."""

    def __init__(self, experiment: RankingExperiment, files: RunFiles, report: Reporter, command: str) -> None:
        self.experiment, self.files, self.report, self.command = experiment, files, report, command
        self.cache = Cache(cache_root(), on_wait=report.say)
        self.maps: dict[int, FieldMaps] = {}

    def execute(self) -> None:
        started = time.perf_counter()
        self.report.log(f"command: {self.command}")
        self.files.write_config(self.experiment)
        data = prepare(self.cache, self.experiment.dataset)
        data.require_both_classes()
        counts = ", ".join(f"{count:,} {split}" for split, count in data.facts["counts"].items())
        self.report.say(f"data: {data.facts['name']}, {len(data.fields)} fields, {data.num_dense} numbers, {counts}")
        self.files.write_dataset(data.facts)
        with atomic_directory(self.files.directory / "fields") as fields:
            data.encoding().save(fields)
        self.files.write_test_events(data.events("test").labels, data.events("test").column(data.user))
        codes = self._semantic_ids(data)
        with open_tracker(self.experiment.tracking, self.experiment.experiment, self.files.directory) as tracker:
            tracker.params(self.experiment.model_dump(mode="json", exclude={"variants"}))
            tracker.dataset(data.facts | {"content_hash": data.hash})
            found = [
                self._variant(tracker, data, variant, seed, codes)
                for variant in self.experiment.variants
                for seed in self.experiment.seeds
            ]
            self._write_tests(data, found)
            self._write_metrics(data, [result for _, result, _ in found])
            report_file = build_ranking_report(self.files.directory)
            kept = (self.files.config_file, self.files.metrics_file, self.files.dataset_file, self.files.plots)
            tracker.artifacts([*kept, report_file])
        if tracker.message:
            self.report.say(tracker.message)
        self.report.say(f"finished in {duration(time.perf_counter() - started)}")

    def _variant(
        self, tracker: Tracker, data: RankingData, variant: RankingVariant, seed: int, codes: SemanticCodes | None
    ) -> tuple[RankingVariant, VariantResult, EvaluatedRanker]:
        name = f"{variant.name}-s{seed}"
        with tracker.variant(name, variant.model_dump(mode="json") | {"seed": seed}) as tracked:
            dim = variant.model.dim
            if dim not in self.maps:
                self.maps[dim] = FieldMaps(self.cache, data, self.experiment.budget, dim, codes)
            fields = self.maps[dim].maps(variant.compressor, self.experiment.seeds[0])
            follower = Follower(name, variant.train.epochs, self.report, tracked)
            trained = train_stage(self.cache, data, variant, fields, seed, follower)
            for record in trained.history:
                follower.track(EpochRecord(**record))
            evaluated = evaluate_stage(self.cache, data, trained)
            result = _result(variant, seed, trained, evaluated)
            directory = self.files.variant_dir(variant.name, seed)
            copy_tree(trained.entry / "checkpoint", self.files.checkpoint_dir(variant.name, seed))
            write_json(directory / "evaluation.json", finite(evaluated.evaluation.summary()))
            self.files.write_scores(variant.name, seed, evaluated.scores)
            write_json(directory / "history.json", trained.history)
            if fields[1] is not None:
                write_json(directory / "maps.json", json.loads((fields[1] / "maps.json").read_bytes()))
            tracked.metrics(result.metrics)
            tracked.artifacts(directory / "evaluation.json", directory / "history.json")
            if not isinstance(variant.model, Din):  # which cannot score rows without their histories
                tracked.ranker(directory)
        shown = ", ".join(f"{k} {result.metrics[f'test/{k}']:.4f}" for k in ("auc", "log_loss"))
        self.report.say(f"{name}: {shown} (trained in {duration(result.seconds['train'])})")
        return variant, result, evaluated

    def _semantic_ids(self, data: RankingData) -> SemanticCodes | None:
        settings = self.experiment.semantic_ids
        if settings is None:
            return None
        found = semantic_stage(self.cache, EventCatalogue(data), settings, self.experiment.seeds[0])
        self.files.write_semantic_ids(found.quality)
        return found.codes

    def _write_tests(
        self, data: RankingData, found: list[tuple[RankingVariant, VariantResult, EvaluatedRanker]]
    ) -> None:
        """Paired DeLong tests of all pairs of variants with the first seed, Holm-corrected, best first."""
        labels = data.events("test").labels
        first = [(result, evaluated) for _, result, evaluated in found if result.seed == self.experiment.seeds[0]]
        first.sort(key=lambda pair: -pair[0].metrics["test/auc"])
        pairs = [
            {"a": a[0].name, "b": b[0].name, **vars(auc_difference(labels, a[1].scores, b[1].scores))}
            for a, b in itertools.combinations(first, 2)
        ]
        corrected = holm([pair["p"] for pair in pairs])
        tests = [pair | {"p_holm": p} for pair, p in zip(pairs, corrected, strict=True)]
        write_json(self.files.directory / "tests.json", finite(tests))

    def _write_metrics(self, data: RankingData, results: list[VariantResult]) -> None:
        facts = DatasetFacts(
            name=data.facts["name"],
            users=data.sizes[data.user],
            items=data.sizes[data.item],
            hash=data.hash,
            **data.facts["counts"],
        )
        self.files.write_metrics(finished_metrics(self.experiment.experiment, facts, results, self.command))


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


def _result(variant: RankingVariant, seed: int, trained: TrainedRanker, evaluated: EvaluatedRanker) -> VariantResult:
    evaluation, facts, selection = evaluated.evaluation, trained.facts, variant.train.selection
    metrics = {f"test/{name}": value for name, value in evaluation.metrics.items() if value is not None}
    valid = [record["metrics"][selection] for record in trained.history if selection in record["metrics"]]
    return VariantResult(
        name=variant.name,
        model=variant.model.name,
        compressor=variant.compressor.name,
        table_rows=facts["table_rows"],
        table_bytes=facts["table_bytes"],
        optimizer_bytes=facts["optimizer_bytes"],
        metrics={name: value for name, value in metrics.items() if np.isfinite(value)}
        | {f"valid/{selection}": max(valid)},
        ci95={f"test/{name}": (low, high) for name, (low, high) in evaluation.ci95.items()},
        seconds={"train": facts["seconds"], "evaluate": evaluated.seconds},
        epochs=facts["epochs"],
        seed=seed,
        peak_rss_mib=facts["peak_rss_mib"],
    )
