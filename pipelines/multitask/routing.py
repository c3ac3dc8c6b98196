"""Whether gates route: which of them send all events to the same experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config_multitask import MultiTaskExperiment
from pipelines.report import words

Json = dict[str, Any]
NEARLY_ALL = 0.99
"""Share of the events, and of the weight, that makes a choice the same for nearly all events."""


def same_experts(usage: Json, task: str, available: int) -> int | None:
    """How many experts a gate has fixed for a task; None of a gate that routes, or that uses all it has.

    A choice is fixed where the experts that are each met by at least 99 % of the events carry together at least 99 %
    of the weight: what others have is the rest of a smooth step.

    Args:
        usage: {"weight": mean weight, "events": share of the events}, by task a list over experts.
        task: whose gate it is.
        available: experts that the gate can choose from, the shared ones and those of the task.
    """
    weights, events = usage["weight"][task], usage["events"][task]
    met = [weight for weight, share in zip(weights, events, strict=True) if share >= NEARLY_ALL]
    fixed = 0 < len(met) < available and sum(met) >= NEARLY_ALL * sum(weights)
    return len(met) if fixed else None


def fixed_choices(usages: Mapping[str, Sequence[Json]], config: MultiTaskExperiment) -> list[str]:
    """Sentences on the gates that do not route, one for all variants of which the same is true.

    Args:
        usages: for each variant the usage of each seed, as :func:`same_experts` takes it.
        config: tells how many experts a gate can choose from.
    """
    alike: dict[str, list[str]] = {}
    for variant in config.variants:
        available, usage = variant.model.experts + variant.model.private, usages.get(variant.name, ())
        fixed: dict[str, tuple[list[str], set[int]]] = {}
        for task in config.tasks:
            found = [same_experts(seed, task.name, available) for seed in usage]
            counts = [count for count in found if count is not None]
            if counts:
                tasks, sizes = fixed.setdefault(_of_seeds(len(counts), len(found)), ([], set()))
                tasks.append(task.name)
                sizes.update(counts)
        parts = [
            f"of {words.listed(tasks)} to the same {_or(sizes)} of {available} experts{where}"
            for where, (tasks, sizes) in fixed.items()
        ]
        if parts:
            alike.setdefault(words.listed(parts), []).append(variant.name)
    return [_sentence(names, told) for told, names in alike.items()]


def _or(sizes: set[int]) -> str:
    return " or ".join(map(str, sorted(sizes)))


def _of_seeds(fixed: int, seeds: int) -> str:
    if seeds == 1:
        return ""
    return f" with each of {seeds} seeds" if fixed == seeds else f" with {fixed} of {seeds} seeds"


def _sentence(names: Sequence[str], told: str) -> str:
    one = len(names) == 1
    end = "its gate has fixed a choice and does" if one else "their gates have fixed a choice and do"
    return f"{words.listed(names)} {'sends' if one else 'send'} nearly all events {told}: {end} not route by example."
