"""Run a multi-task experiment from raw interactions to the report; every stage is cached, so a killed run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.config_multitask import MultiTaskExperiment, TaskVariant
from pipelines.events.run import EventRun, Follower, Found, announce_data
from pipelines.events.stages import EvaluatedRanker, Maps, TrainedRanker
from pipelines.multitask.data import MultiTaskData, prepare_tasks
from pipelines.multitask.report import build_multitask_report
from pipelines.multitask.stages import evaluate_stage, tasks_of, train_stage
from pipelines.run_context import RunContext, in_run_directory
from pipelines.summary import summary
from recsys.rankers.multi_task import Task
from recsys.rankers.multi_task_evaluation import headline, seed_difference, task_difference


def run_multitask(experiment: MultiTaskExperiment, *, command: str = "", quiet: bool = False) -> Path:
    """Run every stage that is not cached and write the run directory; as :func:`pipelines.runner.run_experiment`.

    Raises:
        DataError: The interactions cannot be used.
    """
    with in_run_directory(experiment, command=command, quiet=quiet) as context:
        data = prepare_tasks(context.cache, experiment.dataset, experiment.tasks)
        tasks = tasks_of(experiment.tasks, data)
        announce_data(context, data, f"{len(tasks)} tasks")
        run = _MultiTaskRun(context, experiment, data, tasks)
        run.execute(experiment.variants, build_multitask_report)
    if not quiet:
        summary(context.files, run.headline)
    return context.files.directory


class _MultiTaskRun(EventRun[TaskVariant, MultiTaskData]):
    def __init__(
        self, context: RunContext, experiment: MultiTaskExperiment, data: MultiTaskData, tasks: Sequence[Task]
    ) -> None:
        super().__init__(context, experiment, data, [f"{task.name}/{headline(task)}" for task in tasks])
        self._tasks, self._reference = tasks, experiment.reference or experiment.variants[0].name

    def train(self, variant: TaskVariant, maps: Maps, seed: int, follower: Follower) -> TrainedRanker:
        return train_stage(self.cache, self.data, self._tasks, variant, maps, seed, follower)

    def evaluate(self, trained: TrainedRanker) -> EvaluatedRanker:
        return evaluate_stage(self.cache, self.data, trained)

    def measured(self, variant: TaskVariant, evaluation: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
        tasks, used = evaluation["tasks"], evaluation["usage"]["events"]
        metrics = {f"{task}/{k}": v for task, found in tasks.items() for k, v in found["metrics"].items()}
        metrics |= {f"{task}/experts": sum(shares) for task, shares in used.items()}
        ci95 = {f"{task}/{k}": v for task, found in tasks.items() for k, v in found["ci95"].items()}
        return variant.model.gate.name, metrics, ci95

    def tests(self, found: Found) -> list[dict[str, Any]]:
        """The reference against every other variant, task by task: on the events of the first seed, and over seeds."""
        events, seeds = self.data.events("test"), self.experiment.seeds
        by_variant: dict[str, Found] = {}
        for result, evaluated in found:
            by_variant.setdefault(result.name, []).append((result, evaluated))
        tests: list[dict[str, Any]] = []
        for place, task in enumerate(self._tasks):
            metric = f"test/{self.headline[place]}"
            for rival in [name for name in by_variant if name != self._reference]:
                first = [by_variant[name][0][1].predictions[:, place] for name in (self._reference, rival)]
                over = [[result.metrics[metric] for result, _ in by_variant[name]] for name in (self._reference, rival)]
                by_seed = seed_difference(*over)
                tests.append(
                    {"task": task.name, "metric": headline(task), "a": self._reference, "b": rival}
                    | vars(task_difference(task, events, *first))
                    | {"seeds": len(seeds), "over_seeds": by_seed and vars(by_seed)}
                )
        return tests
