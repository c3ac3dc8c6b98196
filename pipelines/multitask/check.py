"""Rules of a multi-task experiment that no single field can tell, and what ``recsys validate`` says of one."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.config_checks import check_budget, check_levels, check_names, check_optimizer
from pipelines.config_loader import run_path
from pipelines.config_multitask import MultiTaskExperiment, SparseGate, TaskVariant
from pipelines.config_narrow import refuse_narrow
from pipelines.config_problems import Finding
from pipelines.errors import DataError, did_you_mean
from pipelines.sweep.space import check_search


def check_multitask(experiment: MultiTaskExperiment) -> Iterator[Finding]:
    """Yield the key and the message of every rule that ``experiment`` breaks."""
    from pipelines.multitask.data import files_of  # imports polars

    yield from check_budget(experiment.budget)
    yield from check_search(experiment)
    try:
        files_of(experiment.dataset)
    except DataError as error:
        yield ("dataset", "source"), str(error)
    yield from check_names(experiment)
    yield from _check_columns(experiment)
    tasks = [task.name for task in experiment.tasks]
    for index, name in enumerate(tasks):
        if name in tasks[:index]:
            yield ("tasks", index, "name"), f"{name!r} is the name of two tasks"
    names = [variant.name for variant in experiment.variants]
    if experiment.reference is not None and experiment.reference not in names:
        hint = did_you_mean(experiment.reference, names)
        yield ("reference",), f"there is no variant {experiment.reference!r}; {hint}"
    selections = ["neg_loss", *(f"{task.name}/auc" for task in experiment.tasks if task.label != "value")]
    for index, variant in enumerate(experiment.variants):
        for key, message in _check_variant(variant, selections):
            yield ("variants", index, *key), message


def _check_columns(experiment: MultiTaskExperiment) -> Iterator[Finding]:
    """A column is one thing: the user, the item, or what tasks learn."""
    user, item = experiment.dataset.user, experiment.dataset.item
    if user == item:
        yield ("dataset", "item"), f"{item!r} is dataset.user too; name the column of the items"
    for index, task in enumerate(experiment.tasks):
        if task.column is not None and task.column in (user, item):
            role = "user" if task.column == user else "item"
            yield ("tasks", index, "column"), f"{task.column!r} is dataset.{role}, whose ids are no label; name another"


def _check_variant(variant: TaskVariant, selections: list[str]) -> Iterator[Finding]:
    model, chosen = variant.model, variant.train.selection
    if chosen not in selections:
        yield ("train", "selection"), f"must be one of {', '.join(selections)}, got {chosen!r}"
    seen = model.experts + model.private
    if isinstance(model.gate, SparseGate) and model.gate.k > seen:
        yield ("model", "gate", "k"), f"a gate chooses among {seen} experts, got {model.gate.k}"
    yield from check_optimizer(model)
    yield from check_levels(variant.compressor)
    yield from refuse_narrow(variant.compressor)
    if variant.compressor.semantic is not None:
        yield ("compressor", "semantic"), "codes of such an experiment are made from the graph, n-grams have one code"


def describe_multitask(experiment: MultiTaskExperiment) -> str:
    """The plan of a multi-task experiment without mistakes."""
    lines = [f"{experiment.experiment}: no mistakes found"]
    lines.append(f"run directory: {run_path(experiment)}")
    lines.append(f"source: {experiment.dataset.source}")
    lines.append(f"tasks: {', '.join(f'{task.name} (weight {task.weight:g})' for task in experiment.tasks)}")
    lines.append(f"variants, each with seeds {', '.join(map(str, experiment.seeds))}:")
    lines += [f"  {v.name}: {v.model.gate.name} gate, {v.model.experts} experts" for v in experiment.variants]
    return "\n".join(lines)
