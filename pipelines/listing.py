"""What a configuration can name, read off its own schema, and copies of packaged experiments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from pipelines import (
    config,
    config_models,
    config_multitask,
    config_ranking,
    config_section,
    config_sequence,
    config_two_tower,
)
from pipelines.atomic import write_bytes
from pipelines.config_checks import METRICS
from pipelines.config_loader import find_config, list_configs, read_yaml
from pipelines.config_problems import alternatives, did_you_mean, tag


@dataclasses.dataclass(frozen=True)
class _Kind:
    title: str
    names: Callable[[], list[tuple[str, str]]]


def listing(kind: str | None = None) -> str:
    """Names and descriptions, one a line, of one kind or of all.

    Raises:
        ValueError: There is no such kind.
    """
    kinds = _kinds()
    if kind is not None and kind not in kinds:
        raise ValueError(f"unknown kind {kind!r}{did_you_mean(kind, kinds)} (there are {', '.join(kinds)})")
    blocks = []
    for name in [kind] if kind else list(kinds):
        rows = kinds[name].names()
        width = max((len(row[0]) for row in rows), default=0)
        lines = [f"  {word:<{width}}  {text}".rstrip() for word, text in rows]
        blocks.append("\n".join([f"{kinds[name].title}:", *lines]))
    return "\n\n".join(blocks)


def copy_config(name: str, to: Path) -> Path:
    """Copy a packaged experiment, or any experiment file, byte for byte.

    Args:
        name: Packaged name or path.
        to: File to write, or a directory that gets a file of the same name.

    Raises:
        ConfigError: There is no such experiment.
        FileExistsError: The file is there already.
    """
    source = find_config(name)
    target = to / source.name if to.is_dir() else to
    if target.exists():
        raise FileExistsError(f"{target} is there already; give another name: recsys cp {name} FILE")
    write_bytes(target, source.read_bytes())
    return target


def _kinds() -> dict[str, _Kind]:
    variant = config.Variant.model_fields
    mf = config_models.Mf.model_fields
    sequence = config_sequence.Sasrec.model_fields
    return {
        "experiments": _Kind("experiments (recsys run NAME)", lambda: _files("experiments")),
        "datasets": _Kind("datasets (dataset.base)", lambda: _files("datasets")),
        "models": _Kind("models (model.name)", lambda: _sections(variant["model"].annotation)),
        "compressors": _Kind("compressors (compressor.name)", lambda: _literals(config.Compressor, "name")),
        "rankers": _Kind("models with task: ctr (model.name)", lambda: _sections(config_ranking.RankerModel)),
        "gates": _Kind("gates with task: multitask (model.gate.name)", lambda: _sections(config_multitask.GateConfig)),
        "losses": _Kind("losses (model.loss.name)", lambda: _sections(mf["loss"].annotation)),
        "sequence_losses": _Kind(
            "losses of sasrec and hstu (model.loss.name)", lambda: _sections(sequence["loss"].annotation)
        ),
        "tower_losses": _Kind(
            "losses of two_tower (model.loss.name)", lambda: _literals(config_two_tower.TowerLoss, "name")
        ),
        "optimizers": _Kind("optimizers (model.optimizer.name)", lambda: _literals(config_section.Optimizer, "name")),
        "metrics": _Kind("metrics for train.selection, at any k", lambda: [(f"{name}@k", "") for name in METRICS]),
    }


def _files(kind: str) -> list[tuple[str, str]]:
    rows = []
    for path in list_configs(kind):
        values = read_yaml(path).values
        rows.append((path.stem, str(values.get("description") or values.get("source") or "")))
    return rows


def _sections(union: Any) -> list[tuple[str, str]]:
    return [(tag(section), (section.__doc__ or "").split("\n")[0]) for section in alternatives(union)]


def _literals(section: type[config_section.Section], field: str) -> list[tuple[str, str]]:
    return [(str(name), "") for name in get_args(section.model_fields[field].annotation)]
