"""Run an experiment from raw events to the report. Every stage is cached, so that a killed run goes on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from embeddings.semantic_id.codes import SemanticCodes
from pipelines.atomic import copy_tree, write_text
from pipelines.audit import Check, audit_artifact, audit_negatives
from pipelines.code_paths import path_accuracy
from pipelines.config import Experiment, Variant
from pipelines.config_ensemble import Ensemble
from pipelines.config_models import ItemKnn, Popularity, is_searched
from pipelines.config_section import TableModel
from pipelines.dataset import Dataset, SplitName
from pipelines.memory import memory_lines
from pipelines.progress import Reporter, duration
from pipelines.report import build_report
from pipelines.run_context import RunContext, in_run_directory
from pipelines.run_directory import DATASET_LINK, headline_metrics, unmasked
from pipelines.run_files import DatasetFacts, Epoch, EvaluationSummary, RunError, VariantResult
from pipelines.stages.budgets import CompressionStages
from pipelines.stages.compress import compressor_of, label, recorded_graph
from pipelines.stages.evaluate import Evaluated, evaluate_stage
from pipelines.stages.graph import graph_stage
from pipelines.stages.ingest import ingest_stage
from pipelines.stages.semantic import Tokenised, semantic_stage
from pipelines.stages.train import PHASES, Trained, train_stage
from pipelines.summary import summary
from pipelines.tracking import TrackedRun, Tracker, open_tracker
from recsys.checkpoint import load_model
from recsys.models import popularity
from recsys.settings import EpochRecord, Phase


def run_experiment(experiment: Experiment, *, command: str = "", quiet: bool = False) -> Path:
    """Run every stage that is not cached and write the run directory.

    Args:
        experiment: What to run.
        command: The command line, for the report.
        quiet: Print nothing (``log.txt`` has everything).

    Returns:
        The run directory ``<output>/<experiment>-<hash of the configuration>``; the same experiment has the same one.

    Raises:
        DataError: The data cannot be used, or a split leaks.
    """
    with in_run_directory(experiment, command=command, quiet=quiet) as context:
        _Run(experiment, context).execute()
    if not quiet:
        summary(context.files)
    return context.files.directory


class _Run:
    """One execution of an experiment in its run directory."""

    def __init__(self, experiment: Experiment, context: RunContext) -> None:
        self.experiment = experiment
        self.context = context
        self.files = context.files
        self.report = context.report
        self.cache = context.cache
        self.checks: list[Check] = []
        self.codes: SemanticCodes | None = None
        self.trained: dict[tuple[str, int], Trained] = {}

    def execute(self) -> None:
        for line in memory_lines(self.experiment):
            self.report.say(line)
        dataset = ingest_stage(self.cache, self.experiment.dataset, self.report)
        counts = ", ".join(f"{count:,} {split}" for split, count in dataset.manifest.counts.items())
        shape = f"{dataset.num_users:,} users, {dataset.num_items:,} items"
        self.report.say(f"data: {dataset.manifest.name}, {shape}, {counts}")
        graph = graph_stage(self.cache, dataset)
        self.checks.append(audit_artifact("graph", graph, dataset))
        self._forget_other_data(dataset)
        self._write_dataset(dataset)
        tokenised = self._semantic_ids(dataset)
        self.codes = tokenised.codes if tokenised else None
        compression = CompressionStages(self.cache, self.experiment, graph, dataset.manifest.train_hash, self.codes)
        self.checks += [audit_artifact(name, found, dataset) for name, found in compression.graphs().items()]
        self._write_compression(compression, dataset)
        with open_tracker(self.experiment.tracking, self.experiment.experiment, self.files.directory) as tracker:
            tracker.params(self.experiment.model_dump(mode="json", exclude={"variants"}))
            tracker.dataset(dataset.manifest.model_dump(mode="json"))
            results = [
                self._variant(tracker, dataset, compression, variant, seed)
                for variant in self.experiment.variants
                for seed in self.experiment.seeds
            ]
            self._write_dataset(dataset)
            self._write_metrics(dataset, results)
            report_file = build_report(self.files.directory, dataset)
            self._track_files(tracker, report_file)

    def _semantic_ids(self, dataset: Dataset) -> Tokenised | None:
        if self.experiment.semantic_ids is None:
            return None
        found = semantic_stage(self.cache, dataset, self.experiment.semantic_ids, self.experiment.seeds[0])
        self.checks.append(audit_artifact("semantic ids", recorded_graph("semantic ids", found.directory), dataset))
        self.files.write_semantic_ids(found.quality, found.frozen)
        codes = found.codes
        shared = f"{codes.colliding.size:,} of {codes.num_items:,} items share theirs"
        kept = found.quality.get("frozen")
        added = f"; {kept['kept']:,} were frozen, {kept['added']:,} added" if kept else ""
        self.report.say(f"semantic ids: {codes.distinct:,} codes of {codes.levels} levels, {shared}{added}")
        return found

    def _forget_other_data(self, dataset: Dataset) -> None:
        """Results of a source that has changed since must not be read beside what this run writes."""
        with contextlib.suppress(RunError):
            if self.files.metrics().dataset.hash == dataset.content_hash:
                return
        self.files.metrics_file.unlink(missing_ok=True)

    def _write_dataset(self, dataset: Dataset) -> None:
        train = dataset.matrix("train")
        sides = {"users": np.diff(train.indptr), "items": np.bincount(train.indices, minlength=train.shape[1])}
        degrees = {side: _histogram(values) for side, values in sides.items()}
        facts = dataset.manifest.model_dump(mode="json")
        facts["leak_audit"] += [check.as_dict() for check in self.checks]
        self.files.write_dataset({**facts, "degrees": degrees})
        place = os.path.relpath(dataset.path.resolve(), self.files.directory.resolve())
        write_text(self.files.directory / DATASET_LINK, f"{place}\n")

    def _write_compression(self, compression: CompressionStages, dataset: Dataset) -> None:
        found = compression.facts(dataset.user_titles(), dataset.item_titles())
        if found is None:
            return
        self.files.write_compression(found)
        one = {"": {**found.budget, "clustering": found.clustering}}
        for name, rows in (found.budgets or one).items():
            self.report.say(
                f"compress{f' ({name})' if name else ''}: {rows['user_rows']:,} user rows and"
                f" {rows['item_rows']:,} item rows"
                f" for {dataset.num_users:,} users and {dataset.num_items:,} items,"
                f" modularity {rows['clustering']['modularity']:.3f}"
            )

    def _variant(
        self, tracker: Tracker, dataset: Dataset, compression: CompressionStages, variant: Variant, seed: int
    ) -> VariantResult:
        name = f"{variant.name}-s{seed}"
        with tracker.variant(name, variant.model_dump(mode="json") | {"seed": seed}) as tracked:
            maps = compression.maps(variant) if isinstance(variant.model, TableModel) else None
            follow = _Follower(name, variant, self.report, tracked)
            names = variant.model.members if isinstance(variant.model, Ensemble) else ()
            members = tuple(self.trained[member, seed] for member in names)
            trained = train_stage(self.cache, dataset, variant, maps, seed, follow, self.codes, members, self.report)
            self.trained[variant.name, seed] = trained
            follow.rest(trained)
            self._audit(dataset, variant, trained)
            evaluated = evaluate_stage(self.cache, dataset, trained, self.experiment.evaluate, seed)
            result = _result(variant, seed, trained, evaluated)
            self._write_variant(dataset, variant, seed, trained, evaluated)
            tracked.metrics(result.metrics)
            directory = self.files.variant_dir(variant.name, seed)
            tracked.artifacts(directory / "evaluation.json", directory / "history.json")
            tracked.model(directory, dataset.path)
        shown = ", ".join(f"{metric} {result.metrics[f'test/{metric}']:.4f}" for metric in _headline(result, variant))
        self.report.say(f"{name}: {shown} (trained in {duration(result.seconds['train'])})")
        return result

    def _audit(self, dataset: Dataset, variant: Variant, trained: Trained) -> None:
        """What was fitted, popularity counts and negatives must be made from the splits that they may see."""
        both: tuple[SplitName, ...] = ("train", "valid")
        found = _audit_trained_on(dataset, variant, trained)
        if isinstance(variant.model, Popularity):
            model = load_model(trained.entry / "checkpoint")
            assert isinstance(model, popularity.Popularity)
            allowed = both if variant.train.sees_valid else both[:1]
            counts = model.counts.numpy().astype(np.int64)
            found.append(audit_artifact(f"counts of {variant.name}", counts, dataset, allowed))
        phases: tuple[Phase, ...] = PHASES if variant.train.refits else PHASES[:1]
        for phase in phases if isinstance(variant.model, TableModel) else ():
            allowed = both[:1] if phase == "select" and variant.train.selected_on == "valid" else both
            found += audit_negatives(f"{variant.name}, {phase}", trained.negatives[phase], dataset, allowed)
        known = {check.name for check in self.checks}
        self.checks += [check for check in found if check.name not in known]  # one line for all seeds of a variant

    def _write_variant(
        self, dataset: Dataset, variant: Variant, seed: int, trained: Trained, evaluated: Evaluated
    ) -> None:
        files, evaluation = self.files, evaluated.evaluation
        copy_tree(trained.entry / "checkpoint", files.checkpoint_dir(variant.name, seed))
        files.write_history(variant.name, seed, [Epoch.model_validate(record) for record in trained.history])
        files.write_evaluation(variant.name, seed, EvaluationSummary.model_validate(evaluation.summary()))
        ids = dataset.raw_user_ids()
        raw_ids = [ids[user] for user in evaluation.users]
        files.write_per_user(variant.name, seed, evaluation.users, raw_ids, evaluation.per_user)
        files.write_top_items(variant.name, seed, evaluation.users, evaluation.top_items)
        if self.codes is not None and self.codes.unique:
            relevant = dataset.matrix("test")[evaluation.users]
            files.write_code_paths(variant.name, seed, path_accuracy(self.codes, evaluation.top_items, relevant))

    def _write_metrics(self, dataset: Dataset, results: list[VariantResult]) -> None:
        manifest = dataset.manifest
        facts = DatasetFacts(
            name=manifest.name,
            users=dataset.num_users,
            items=dataset.num_items,
            hash=dataset.content_hash,
            **{str(split): count for split, count in manifest.counts.items()},
        )
        self.context.write_metrics(self.experiment.experiment, facts, results, self._selected_on())

    def _selected_on(self) -> Literal["valid", "test"]:
        simple = (Popularity, ItemKnn)
        trained = [v.train for v in self.experiment.variants if not isinstance(v.model, simple) or is_searched(v.model)]
        return "test" if any(train.selected_on == "test" for train in trained) else "valid"

    def _track_files(self, tracker: Tracker, report_file: Path) -> None:
        files = self.files
        facts = (files.config_file, files.metrics_file, files.dataset_file, files.compression_file)
        kept = (*facts, files.plots, report_file)
        tracker.artifacts([path for path in kept if path.exists()])


class _Follower:
    """Follows the training of a variant: progress for the reader, metrics by step for the tracker."""

    def __init__(self, name: str, variant: Variant, report: Reporter, tracked: TrackedRun) -> None:
        self._name = name
        self._epochs = variant.train.epochs
        self._selected_on = "valid" if variant.train.selected_on == "valid" else "selected_on_test"
        self._report = report
        self._tracked = tracked
        self._seen: set[tuple[str, int]] = set()

    def __call__(self, record: EpochRecord) -> None:
        phase = "train" if record.phase == "select" else "refit"
        note = ", ".join([f"loss {record.loss:.4f}", *(f"{k} {v:.4f}" for k, v in record.metrics.items())])
        pace = f"{record.triples_per_second:,.0f}/s, {record.rss_mib:,.0f} MiB"
        self._report.log(f"{self._name} {phase} epoch {record.epoch}: {note}, {pace}")
        self._report(f"{phase} {self._name}", record.epoch, self._epochs if phase == "train" else None, note)
        self._track(record)

    def rest(self, trained: Trained) -> None:
        """Track the epochs that an earlier process ran."""
        for record in trained.history:
            self._track(EpochRecord(**record))

    def _track(self, record: EpochRecord) -> None:
        if (record.phase, record.epoch) in self._seen:
            return
        self._seen.add((record.phase, record.epoch))
        measured = {"loss": record.loss, "triples_per_second": record.triples_per_second, "rss_mib": record.rss_mib}
        values = {f"{record.phase}/{name}": value for name, value in measured.items()}
        values |= {f"{self._selected_on}/{name}": value for name, value in record.metrics.items()}
        self._tracked.metrics(values, step=record.epoch)


def _audit_trained_on(dataset: Dataset, variant: Variant, trained: Trained) -> list[Check]:
    """The matrix of every phase must be that of the splits that it may see."""
    if trained.trained_on is None:
        detail = "trained before this check existed; remove it from the stage cache to have it checked"
        return [Check(f"training data of {variant.name}", passed=True, count=0, detail=detail)]
    allowed: dict[str, tuple[SplitName, ...]] = {
        "fit": ("train", "valid") if variant.train.sees_valid else ("train",),
        "select": ("train",) if variant.train.selected_on == "valid" else ("train", "valid"),
        "refit": ("train", "valid"),
    }
    return [
        audit_artifact(f"training data of {variant.name}, {phase}", found, dataset, allowed[phase])
        for phase, found in trained.trained_on.items()
    ]


def _result(variant: Variant, seed: int, trained: Trained, evaluated: Evaluated) -> VariantResult:
    evaluation, facts = evaluated.evaluation, trained.facts
    selection = variant.train.selection
    valid = [record["metrics"][selection] for record in trained.history if selection in record["metrics"]]
    valid += [facts["chosen"][selection]] if "chosen" in facts else []
    return VariantResult(
        name=variant.name,
        model=variant.model.name,
        compressor=label(compressor_of(variant.compressor)) if isinstance(variant.model, TableModel) else None,
        table_rows=facts.get("table_rows", 0),
        table_bytes=facts.get("table_bytes", 0),
        optimizer_bytes=facts.get("optimizer_bytes", 0),
        window_bytes=facts.get("window_bytes", 0),
        map_bytes=facts.get("map_bytes", 0),
        layer_bytes=facts.get("layer_bytes", 0),
        layer_optimizer_bytes=facts.get("layer_optimizer_bytes", 0),
        metrics={f"test/{name}": value for name, value in _defined(evaluation.metrics)}
        | ({f"valid/{selection}": max(valid)} if valid and variant.train.selected_on == "valid" else {}),
        ci95={f"test/{name}": interval for name, interval in evaluation.ci95.items() if np.isfinite(interval).all()},
        seconds={"train": trained.seconds, "evaluate": evaluated.seconds},
        epochs=facts.get("epochs", 0),
        seed=seed,
        peak_rss_mib=facts.get("peak_rss_mib"),
    )


def _defined(metrics: dict[str, float]) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in metrics.items() if np.isfinite(value))


def _headline(result: VariantResult, variant: Variant) -> list[str]:
    headline = headline_metrics(variant.train.selection)
    return [name for name in (*headline, *unmasked(headline)) if f"test/{name}" in result.metrics]


def _histogram(degrees: np.ndarray) -> dict[str, int]:
    values, counts = np.unique(degrees, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}
