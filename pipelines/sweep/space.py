"""The search space of each variant, and a variant with values from it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.config import Experiment, Train, Variant
from pipelines.config_ensemble import Ensemble
from pipelines.config_multitask import MultiTaskExperiment, TaskVariant
from pipelines.config_problems import alternatives, did_you_mean
from pipelines.config_ranking import RankingExperiment, RankingVariant
from pipelines.config_search import Range
from pipelines.config_section import EpochModel, Section

SECTIONS = ("model", "train", "compressor")
"""The sections of a variant that a sweep may change."""
MEASURES = ("train.selection", "train.selected_on")
"""Settings that would change what trials are compared by."""

AnyVariant = Variant | RankingVariant | TaskVariant
V = TypeVar("V", bound=Section)
AnyExperiment = Experiment | RankingExperiment | MultiTaskExperiment
Space = dict[str, Range]
"""Dotted path inside a variant -> its values."""


def spaces(experiment: AnyExperiment) -> dict[str, Space]:
    """The space of every variant that has one, by name, in the order of the experiment.

    ``variants.NAME.model.dim`` wins over ``model.dim``.
    """
    search, found = experiment.search, {}
    keys = sorted(search.parameters, key=lambda key: key.startswith("variants.")) if search else []
    for variant in experiment.variants:
        paths = {path: key for key in keys if (path := _applies(variant, key, experiment)) is not None}
        if search and paths:
            found[variant.name] = {path: search.parameters[key] for path, key in paths.items()}
    return found


def changed(variant: V, values: Mapping[str, Any]) -> V:
    """``variant`` with other values at dotted paths.

    Raises:
        ValidationError: A value is not allowed there.
    """
    settings = variant.model_dump(mode="json")
    for path, value in values.items():
        *parents, last = path.split(".")
        section = settings
        for parent in parents:
            section = section[parent]
        section[last] = value
    return type(variant).model_validate(settings)


def check_search(experiment: AnyExperiment) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield the key and the message of every mistake in ``search``."""
    search = experiment.search
    if search is None:
        return
    for key, values in search.parameters.items():
        where = ("search", "parameters", key)
        applied = [(variant, _applies(variant, key, experiment)) for variant in experiment.variants]
        found = [(variant, path) for variant, path in applied if path is not None]
        if not found and not _exists(key, experiment):
            known = sorted({path for variant in experiment.variants for path in _paths(variant)})
            alike = [path for path in known if path.rpartition(".")[2] == key.rpartition(".")[2]]
            message = f"there is no such setting{did_you_mean(key, alike or known)}"
            yield where, f"{message}; a key begins with model, train or compressor, or with variants.NAME before them"
        for variant, path in found:
            for message in _refused(variant, path, values):
                yield where, message
    searched, variants = spaces(experiment), experiment.variants
    for index in range(len(variants)):
        train = variants[index].train
        if variants[index].name in searched and isinstance(train, Train) and train.selected_on == "test":
            message = "a sweep looks at validation only; use selected_on: valid"
            yield ("variants", index, "train", "selected_on"), message


def unused(experiment: AnyExperiment) -> list[str]:
    """Keys of ``search.parameters`` that no variant has, as when it was left out on the command line."""
    keys = experiment.search.parameters if experiment.search else {}
    return [key for key in keys if all(_applies(variant, key, experiment) is None for variant in experiment.variants)]


def _refused(variant: AnyVariant, path: str, values: Range) -> Iterator[str]:
    """Why a variant cannot have a range, if so; its ends are tried."""
    if path in MEASURES:
        yield "decides what trials are compared by, so that it cannot be searched"
        return
    if isinstance(variant.model, Ensemble):
        yield f"{variant.name} is made of trained variants, which a trial has not; model.grid searches its weight"
        return
    for value in values.ends:
        try:
            changed(variant, {path: value})
        except ValidationError as error:
            yield f"{variant.name} cannot have {value!r}: {error.errors()[0]['msg'].lower()}"


def _applies(variant: AnyVariant, key: str, experiment: AnyExperiment) -> str | None:
    """The path inside ``variant`` that a key of ``search.parameters`` means, if any."""
    path = _own_path(key, variant.name, experiment) or key
    if path.startswith("train.") and isinstance(variant, Variant) and not isinstance(variant.model, EpochModel):
        return None  # a model without epochs
    return path if path in _paths(variant) else None


def _own_path(key: str, name: str, experiment: AnyExperiment) -> str | None:
    """What follows ``variants.NAME.``; of two names that fit, the longer is meant.

    ``mf@16%``, which ``budgets`` made of ``mf``, also has what is said of ``mf``.
    """
    rest = key.removeprefix("variants.")
    if rest == key:
        return None
    names = {full: (full, full.rpartition("@")[0]) for full in (variant.name for variant in experiment.variants)}
    fitting = {known for both in names.values() for known in both if known and rest.startswith(f"{known}.")}
    longest = max(fitting, key=len, default="")
    return rest.removeprefix(f"{longest}.") if longest and longest in names[name] else None


def _paths(variant: AnyVariant) -> Iterator[str]:
    """Dotted paths of every setting in the sections that a sweep may change."""
    settings = variant.model_dump(mode="json", include=set(SECTIONS))
    pending = [("", settings)]
    while pending:
        prefix, section = pending.pop()
        for key, value in section.items():
            if isinstance(value, dict) and value:
                pending.append((f"{prefix}{key}.", value))
            if prefix:
                yield f"{prefix}{key}"


def _exists(key: str, experiment: AnyExperiment) -> bool:
    """Whether any model could have the setting, be it in this experiment or not."""
    known = _settings(type(experiment.variants[0]))
    return key in known or (key.startswith("variants.") and any(key.endswith(f".{path}") for path in known))


@functools.cache
def _settings(section: type[BaseModel], prefix: str = "") -> frozenset[str]:
    """Dotted paths of every setting that a section can have, whatever is chosen in it."""
    found = set()
    for name, field in section.model_fields.items():
        if not prefix and name not in SECTIONS:
            continue
        found.add(f"{prefix}{name}")
        for kind in alternatives(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= _settings(kind, f"{prefix}{name}.")
    return frozenset(found)
