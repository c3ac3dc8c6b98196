"""From a YAML file and ``key=value`` overrides to an :class:`~pipelines.config.Experiment`, or all mistakes at once."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipelines.config import Dataset, Experiment
from pipelines.config_budgets import crossed
from pipelines.config_checks import check, check_source
from pipelines.config_multitask import MultiTaskExperiment
from pipelines.config_problems import IGNORED, ConfigError, Finding, Problem, did_you_mean, explain, section_at
from pipelines.config_problems import Path as KeyPath
from pipelines.config_ranking import RankingExperiment
from pipelines.sweep.space import AnyExperiment

E = TypeVar("E", RankingExperiment, MultiTaskExperiment)
_DEFAULTS = ("model", "train")
"""Sections at the top of a file that are merged into every variant."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A configuration as read: raw values, and where each key was set (``file:line`` or ``command line``)."""

    path: Path
    values: dict[str, Any]
    origins: dict[KeyPath, str]


def config_root() -> Path:
    """The directory of the packaged configurations: ``configs/`` of a checkout, ``pipelines/_configs`` of a wheel."""
    packaged = Path(__file__).parent / "_configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def list_configs(kind: str = "experiments") -> list[Path]:
    """The packaged configurations of a kind (``experiments`` or ``datasets``) and of the folders in it, sorted."""
    return sorted((config_root() / kind).rglob("*.yaml"))


def find_config(name: str, kind: str = "experiments", beside: Path | None = None) -> Path:
    """The file that ``name`` means: a path (also relative to ``beside``), else the name of a packaged configuration.

    Raises:
        ConfigError: There is no such file; the message has the nearest packaged name.
    """
    for candidate in [Path(name), *([beside / name] if beside else [])]:
        if candidate.is_file():
            return candidate
    known = {path.stem: path for path in list_configs(kind)}
    stem = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    if stem in known and (stem == name or Path(name).parent.name in ("", kind)):
        return known[stem]
    hint = did_you_mean(stem, known)
    raise ConfigError(
        [Problem(name, "", f"no such file or packaged configuration{hint} (packaged: {', '.join(known)})")]
    )


def load_experiment(name: str, overrides: Sequence[str] = ()) -> AnyExperiment:
    """Read, merge and check an experiment; ``task: ctr`` makes it a ranking, ``task: multitask`` a multi-task one.

    Args:
        name: Path of a YAML file or name of a packaged experiment.
        overrides: ``dotted.key=value`` in YAML notation. ``train.*`` and ``model.*`` hold for every variant,
            ``variants.NAME.*`` for one; ``variants=[a, b]`` keeps only these.

    Raises:
        ConfigError: Every mistake found, each with its file and line (or "command line").
    """
    path = find_config(name)
    source = read_yaml(path)
    values, origins = copy.deepcopy(source.values), dict(source.origins)
    problems = _apply_overrides(values, origins, overrides)
    no_base = _merge_base(values, origins, path)
    problems += no_base
    merged = _merge_variants(values)
    match values.get("task"):
        case "ctr":
            from pipelines.ranking.check import check_ranking

            return _checked(RankingExperiment, check_ranking, merged, problems, (values, origins, path))
        case "multitask":
            from pipelines.multitask.check import check_multitask

            return _checked(MultiTaskExperiment, check_multitask, merged, problems, (values, origins, path))
    experiment: Experiment | None = None
    findings: list[Finding] = []
    try:
        experiment = Experiment.model_validate(merged)
        findings = list(check(experiment))
        findings = [finding for finding in findings if not _for_others(finding, origins, overrides)]
    except ValidationError as invalid:
        errors = [e for e in invalid.errors() if e["type"] != "too_short" or not e["input"]]
        problems += [_located(error, values, origins, path) for error in errors]
        if not any(error["loc"][0] == "dataset" for error in errors):
            findings = list(check_source(Dataset.model_validate(merged["dataset"])))
    if no_base:
        findings = [finding for finding in findings if finding[0] != ("dataset", "source")]
    problems += [_at(key, message, values, origins, path) for key, message in findings]
    if problems or experiment is None:
        raise ConfigError(problems)
    return crossed(experiment)


def _for_others(finding: Finding, origins: dict[KeyPath, str], overrides: Sequence[str]) -> bool:
    """Whether what nothing reads is the file's, for variants or a tokeniser that the overrides have put aside."""
    key, message = finding
    named = {override.partition("=")[0] for override in overrides}
    if key in (("semantic_ids", "features"), ("semantic_ids", "without_content")):
        return any(name.startswith("semantic_ids.tokeniser") for name in named)
    given = any(path[: len(key)] == key for path in origins)
    return "variants" in named and message.endswith(IGNORED) and not given


def _checked(
    kind: type[E],
    check_rules: Callable[[E], Iterable[Finding]],
    merged: dict[str, Any],
    problems: list[Problem],
    told: tuple[dict[str, Any], dict[KeyPath, str], Path],
) -> E:
    """An experiment of a task of its own, without mistakes; ``told`` is what :func:`_at` needs to locate them."""
    experiment: E | None = None
    try:
        experiment = kind.model_validate(merged)
        problems += [_at(key, message, *told) for key, message in check_rules(experiment)]
    except ValidationError as invalid:
        errors = [e for e in invalid.errors() if e["type"] != "too_short" or not e["input"]]
        problems += [_located(error, *told, kind) for error in errors]
    if problems or experiment is None:
        raise ConfigError(problems)
    return experiment


def config_hash(experiment: AnyExperiment) -> str:
    """Eight hex digits of what determines the results: all but description, tracking, output and search."""
    facts = experiment.model_dump(mode="json", exclude={"description", "tracking", "output", "search", "dataset"})
    facts["dataset"] = experiment.dataset.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def run_path(experiment: AnyExperiment) -> Path:
    """The run directory ``<output>/<experiment>-<hash of the configuration>``."""
    return Path(experiment.output) / f"{experiment.experiment}-{config_hash(experiment)}"


def read_yaml(path: Path) -> Source:
    """Read a YAML mapping with the line of every key.

    Raises:
        ConfigError: Not UTF-8, not YAML, not a mapping, or a key occurs twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), "", f"is not UTF-8 (byte {error.start})")]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError([Problem(where, "", f"is not YAML: {getattr(error, 'problem', error)}")]) from None
    origins: dict[KeyPath, str] = {}
    problems: list[Problem] = []
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError([Problem(str(path), "", "must be a mapping of keys to values")])
    _note_lines(node, (), path, origins, problems)
    if problems:
        raise ConfigError(problems)
    try:
        values = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError([Problem(str(path), "", f"is not plain YAML: {getattr(error, 'problem', error)}")]) from None
    return Source(path, values, origins)


def _note_lines(
    node: yaml.Node, prefix: KeyPath, path: Path, origins: dict[KeyPath, str], problems: list[Problem]
) -> None:
    where = f"{path}:{node.start_mark.line + 1}"
    origins.setdefault(prefix, where)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = f"{path}:{key.start_mark.line + 1}"
            place = (*prefix, str(key.value))
            if place in origins:
                problems.append(Problem(here, _dotted(place), f"is set twice, first at {origins[place]}"))
            origins[place] = here
            _note_lines(value, place, path, origins, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*prefix, index), path, origins, problems)


def _apply_overrides(values: dict[str, Any], origins: dict[KeyPath, str], overrides: Sequence[str]) -> list[Problem]:
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip("."):
            problems.append(Problem("command line", override, "an override is written key=value, as train.epochs=3"))
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problems.append(Problem("command line", key, f"{text!r} is not YAML: {getattr(error, 'problem', error)}"))
            continue
        problems += _override(values, origins, key, value)
    return problems


def _override(values: dict[str, Any], origins: dict[KeyPath, str], key: str, value: Any) -> list[Problem]:
    parts = tuple(key.split("."))
    variants = [v for v in values.get("variants") or [] if isinstance(v, dict)]
    if parts == ("variants",) and isinstance(value, list) and all(isinstance(name, str) for name in value):
        return _select_variants(values, origins, variants, value)
    if parts[0] == "variants":
        rest = key.removeprefix("variants.")
        named = [(i, v) for i, v in enumerate(variants) if rest.startswith(f"{v.get('name')}.")]
        if not named:
            names = [str(v.get("name")) for v in variants]
            hint = did_you_mean(rest.split(".")[0], names)
            return [Problem("command line", key, f"no such variant{hint} (there are {', '.join(names)})")]
        index, variant = max(named, key=lambda pair: len(str(pair[1]["name"])))
        inner = tuple(rest.removeprefix(f"{variant['name']}.").split("."))
        return _set(variant, inner, value, origins, ("variants", index))
    if parts[0] == "budget" and len(parts) > 1:
        values["budget"] = {}
    if parts[0] in _DEFAULTS and len(parts) > 1:
        for index, variant in enumerate(variants):
            if _contains(variant, parts):
                _set(variant, parts, value, origins, ("variants", index))
    return _set(values, parts, value, origins, ())


def _select_variants(
    values: dict[str, Any], origins: dict[KeyPath, str], variants: list[dict[str, Any]], names: list[str]
) -> list[Problem]:
    known = {str(variant.get("name")): index for index, variant in enumerate(variants)}
    unknown = [name for name in names if name not in known]
    if unknown:
        hints = (f"no variant {name!r}{did_you_mean(name, known)} (there are {', '.join(known)})" for name in unknown)
        return [Problem("command line", "variants", hint) for hint in hints]
    lines = dict(origins)
    for path in lines:
        if path[0:1] == ("variants",) and len(path) > 1:
            del origins[path]
    for new, name in enumerate(names):
        for path, where in lines.items():
            if path[:2] == ("variants", known[name]):
                origins["variants", new, *path[2:]] = where
    values["variants"] = [variants[known[name]] for name in names]
    return []


def _set(
    target: dict[str, Any], path: tuple[str, ...], value: Any, origins: dict[KeyPath, str], prefix: KeyPath
) -> list[Problem]:
    for depth, part in enumerate(path[:-1]):
        inner = target.setdefault(part, {})
        if isinstance(inner, str) and (*prefix, *path[: depth + 1]) == ("dataset",):
            inner = target[part] = {"base": inner}
        if not isinstance(inner, dict):
            below = _dotted((*prefix, *path[: depth + 1]))
            return [Problem("command line", _dotted((*prefix, *path)), f"{below} is {inner!r}, it has no keys")]
        target = inner
    target[path[-1]] = value
    for depth in range(1, len(path) + 1):
        origins.setdefault((*prefix, *path[:depth]), "command line")
    origins[*prefix, *path] = "command line"
    return []


def _merge_base(values: dict[str, Any], origins: dict[KeyPath, str], path: Path) -> list[Problem]:
    """Replace ``dataset.base`` (or ``dataset: NAME``) by the dataset file, with the other keys on top."""
    dataset = values.get("dataset")
    if isinstance(dataset, str):
        dataset = {"base": dataset}
    if not isinstance(dataset, dict) or "base" not in dataset:
        return []
    own = {key: value for key, value in dataset.items() if key != "base"}
    try:
        base = read_yaml(find_config(str(dataset["base"]), "datasets", beside=path.parent))
    except ConfigError as error:
        values["dataset"] = {"name": "?", "source": "?", **own}
        where = origins.get(("dataset", "base"), origins.get(("dataset",), str(path)))
        return [Problem(where, "dataset.base", str(problem)) for problem in error.problems]
    for key, where in base.origins.items():
        if key and not _contains(own, key):
            origins["dataset", *key] = where
    values["dataset"] = deep_merge(base.values, own)
    return []


def _merge_variants(values: dict[str, Any]) -> dict[str, Any]:
    """Merge the default ``model`` and ``train`` into every variant; a model of another name replaces the default."""
    merged = {key: value for key, value in values.items() if key not in _DEFAULTS}
    if not isinstance(values.get("variants"), list):
        return merged
    merged["variants"] = []
    for variant in values["variants"]:
        if not isinstance(variant, dict):
            merged["variants"].append(variant)
            continue
        whole = dict(variant)
        for section in _DEFAULTS:
            default, own = values.get(section), variant.get(section)
            if isinstance(default, dict) and _same_kind(default, own):
                whole[section] = deep_merge(default, own or {})
            elif default is not None and own is None:
                whole[section] = default
        merged["variants"].append(whole)
    return merged


def _same_kind(default: dict[str, Any], own: Any) -> bool:
    """Whether ``own`` refines ``default``: it is absent, or a mapping that does not name another model."""
    if not isinstance(own, dict):
        return own is None
    return bool(own.get("name", default.get("name")) == default.get("name"))


def deep_merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``: mappings merge key by key, a mapping of another ``name`` and all else replaces."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and _same_kind(old, value):
            value = deep_merge(old, value)  # noqa: PLW2901
        merged[key] = value
    return copy.deepcopy(merged)


def _located(
    error: Any,
    values: dict[str, Any],
    origins: dict[KeyPath, str],
    path: Path,
    root: type[AnyExperiment] = Experiment,
) -> Problem:
    key, owner, annotation = section_at(root, error["loc"])
    added: dict[type[BaseModel], tuple[str, ...]] = {root: _DEFAULTS, Dataset: ("base",)}
    message = explain(error, owner, annotation, added.get(owner, ()))
    return _at(key, message, values, origins, path)


def _at(key: KeyPath, message: str, values: dict[str, Any], origins: dict[KeyPath, str], path: Path) -> Problem:
    """A problem at a key of the merged configuration, told of the place where the user set it."""
    if len(key) > 2 and key[0] == "variants" and key[2] in _DEFAULTS:
        own, default = values["variants"][key[1]], key[2:]
        if not _contains(own, default) and (_contains(values, default) or default not in origins):
            inherited = _contains(values, default[:-1]) and not _contains(own, default[:-1])
            key = default if inherited or _contains(values, default) else key
    where, known = str(path), key
    while known and known not in origins:
        known = known[:-1]
    return Problem(origins.get(known, where), _named(key, values), message)


def _contains(values: Any, path: Sequence[Hashable]) -> bool:
    for part in path:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _named(key: KeyPath, values: dict[str, Any]) -> str:
    """The dotted key, a variant told by its name instead of its place."""
    variants = values.get("variants")
    if len(key) > 1 and key[0] == "variants" and isinstance(variants, list) and isinstance(key[1], int):
        variant = variants[key[1]]
        name = variant.get("name") if isinstance(variant, dict) else None
        return _dotted((key[0], str(name or key[1]), *key[2:]))
    return _dotted(key)


def _dotted(key: KeyPath) -> str:
    return ".".join(str(part) for part in key)
