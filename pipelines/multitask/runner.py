"""Run a multi-task experiment from raw interactions to the report; every stage is cached, so a killed run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.atomic import finite, write_json
from pipelines.cache import Cache, locked
from pipelines.config_loader import config_hash
from pipelines.config_multitask import MultiTaskExperiment, TaskVariant
from pipelines.multitask.data import MultiTaskData, prepare_tasks
from pipelines.multitask.report import build_multitask_report
from pipelines.multitask.stages import EvaluatedRanker, evaluate_stage, tasks_of, train_stage
from pipelines.progress import Reporter, duration
from pipelines.ranking.runner import Follower
from pipelines.ranking.stages import FieldMaps, TrainedRanker
from pipelines.run_directory import cache_root
from pipelines.run_files import DatasetFacts, RunFiles, VariantResult
from pipelines.runner import copy_tree, finished_metrics
from pipelines.summary import summary
from pipelines.tracking import Tracker, open_tracker
from recsys.rankers.multi_task import Task
from recsys.rankers.multi_task_evaluation import headline, seed_difference, task_difference
from recsys.settings import EpochRecord
from recsys.significance import holm

Found = list[tuple[VariantResult, EvaluatedRanker]]


def run_multitask(experiment: MultiTaskExperiment, *, command: str = "", quiet: bool = False) -> Path:
    """Run every stage that is not cached and write the run directory.

    Args:
        experiment: What to run.
        command: The command line, for the report.
        quiet: Print nothing (``log.txt`` has everything).

    Returns:
        The run directory ``<output>/<experiment>-<hash of the configuration>``.

    Raises:
        DataError: The interactions cannot be used.
    """
    files = RunFiles(Path(experiment.output) / f"{experiment.experiment}-{config_hash(experiment)}")
    files.directory.mkdir(parents=True, exist_ok=True)
    with Reporter(files.log_file, quiet=quiet) as report:
        waiting = f"waiting for another `recsys run` that writes {files.directory}"
        with locked(files.directory / ".lock", lambda: report.say(waiting)):
            shown = _MultiTaskRun(experiment, files, report, command).execute()
    if not quiet:
        summary(files, shown)
    return files.directory


class _MultiTaskRun:
    """One execution of a multi-task experiment in its run directory."""

    def __init__(self, experiment: MultiTaskExperiment, files: RunFiles, report: Reporter, command: str) -> None:
        self.experiment, self.files, self.report, self.command = experiment, files, report, command
        self.cache = Cache(cache_root(), on_wait=report.say)
        self.maps: dict[int, FieldMaps] = {}

    def execute(self) -> list[str]:
        """Do it; returns the headline metrics."""
        started = time.perf_counter()
        self.report.log(f"command: {self.command}")
        self.files.write_config(self.experiment)
        data = prepare_tasks(self.cache, self.experiment.dataset, self.experiment.tasks)
        tasks = tasks_of(self.experiment.tasks, data)
        counts = ", ".join(f"{count:,} {split}" for split, count in data.facts["counts"].items())
        self.report.say(f"data: {data.facts['name']}, {len(tasks)} tasks, {counts}")
        self.files.write_dataset(data.facts)
        with open_tracker(self.experiment.tracking, self.experiment.experiment, self.files.directory) as tracker:
            tracker.params(self.experiment.model_dump(mode="json", exclude={"variants"}))
            tracker.dataset(data.facts | {"content_hash": data.hash})
            found = [
                self._variant(tracker, data, tasks, variant, seed)
                for variant in self.experiment.variants
                for seed in self.experiment.seeds
            ]
            self._write_tests(data, tasks, found)
            self._write_metrics(data, [result for result, _ in found])
            report_file = build_multitask_report(self.files.directory)
            kept = (self.files.config_file, self.files.metrics_file, self.files.dataset_file, self.files.plots)
            tracker.artifacts([*kept, report_file])
        if tracker.message:
            self.report.say(tracker.message)
        self.report.say(f"finished in {duration(time.perf_counter() - started)}")
        return [f"{task.name}/{headline(task)}" for task in tasks]

    def _variant(
        self, tracker: Tracker, data: MultiTaskData, tasks: Sequence[Task], variant: TaskVariant, seed: int
    ) -> tuple[VariantResult, EvaluatedRanker]:
        name, dim = f"{variant.name}-s{seed}", variant.model.dim
        with tracker.variant(name, variant.model_dump(mode="json") | {"seed": seed}) as tracked:
            if dim not in self.maps:
                self.maps[dim] = FieldMaps(self.cache, data, self.experiment.budget, dim)
            maps = self.maps[dim].maps(variant.compressor, self.experiment.seeds[0])
            follower = Follower(name, variant.train.epochs, self.report, tracked)
            trained = train_stage(self.cache, data, tasks, variant, maps, seed, follower)
            for record in trained.history:
                follower.track(EpochRecord(**record))
            evaluated = evaluate_stage(self.cache, data, trained)
            result = _result(variant, seed, trained, evaluated)
            directory = self.files.variant_dir(variant.name, seed)
            copy_tree(trained.entry / "checkpoint", self.files.checkpoint_dir(variant.name, seed))
            write_json(directory / "evaluation.json", evaluated.evaluation)
            write_json(directory / "history.json", trained.history)
            if maps[1] is not None:
                write_json(directory / "maps.json", json.loads((maps[1] / "maps.json").read_bytes()))
            tracked.metrics(result.metrics)
            tracked.artifacts(directory / "evaluation.json", directory / "history.json")
        shown = [f"{task.name}/{headline(task)}" for task in tasks]
        values = ", ".join(f"{metric} {result.metrics[f'test/{metric}']:.4f}" for metric in shown)
        self.report.say(f"{name}: {values} (trained in {duration(result.seconds['train'])})")
        return result, evaluated

    def _write_tests(self, data: MultiTaskData, tasks: Sequence[Task], found: Found) -> None:
        """The reference against every other variant, task by task: on the events of the first seed, and over seeds."""
        events, seeds = data.events("test"), self.experiment.seeds
        by_variant: dict[str, Found] = {}
        for result, evaluated in found:
            by_variant.setdefault(result.name, []).append((result, evaluated))
        ours = self.experiment.reference or self.experiment.variants[0].name
        tests: list[dict[str, Any]] = []
        for place, task in enumerate(tasks):
            metric = f"test/{task.name}/{headline(task)}"
            for rival in [name for name in by_variant if name != ours]:
                first = [by_variant[name][0][1].predictions[:, place] for name in (ours, rival)]
                over = [[result.metrics[metric] for result, _ in by_variant[name]] for name in (ours, rival)]
                by_seed = seed_difference(*over)
                tests.append(
                    {"task": task.name, "metric": headline(task), "a": ours, "b": rival}
                    | vars(task_difference(task, events, *first))
                    | {"seeds": len(seeds), "over_seeds": by_seed and vars(by_seed)}
                )
        corrected = holm([test["p"] for test in tests])
        whole = [test | {"p_holm": p} for test, p in zip(tests, corrected, strict=True)]
        write_json(self.files.directory / "tests.json", finite(whole))

    def _write_metrics(self, data: MultiTaskData, results: list[VariantResult]) -> None:
        facts = DatasetFacts(
            name=data.facts["name"],
            users=data.sizes[data.user],
            items=data.sizes[data.item],
            hash=data.hash,
            **data.facts["counts"],
        )
        self.files.write_metrics(finished_metrics(self.experiment.experiment, facts, results, self.command))


def _result(variant: TaskVariant, seed: int, trained: TrainedRanker, evaluated: EvaluatedRanker) -> VariantResult:
    facts, tasks, selection = trained.facts, evaluated.evaluation["tasks"], variant.train.selection
    metrics = {f"test/{task}/{k}": v for task, found in tasks.items() for k, v in found["metrics"].items()}
    used = evaluated.evaluation["usage"]["events"]
    metrics |= {f"test/{task}/experts": sum(shares) for task, shares in used.items()}
    ci95 = {f"test/{task}/{k}": v for task, found in tasks.items() for k, v in found["ci95"].items()}
    return VariantResult(
        name=variant.name,
        model=variant.model.gate.name,
        compressor=variant.compressor.name,
        table_rows=facts["table_rows"],
        table_bytes=facts["table_bytes"],
        optimizer_bytes=facts["optimizer_bytes"],
        metrics=metrics | {f"valid/{selection}": max(record["metrics"][selection] for record in trained.history)},
        ci95=ci95,
        seconds={"train": facts["seconds"], "evaluate": evaluated.seconds},
        epochs=facts["epochs"],
        seed=seed,
        peak_rss_mib=facts["peak_rss_mib"],
    )
