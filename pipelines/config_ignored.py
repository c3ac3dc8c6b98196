"""Settings that a model would not read, because another setting of it makes them pointless."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from pipelines.config_features import CategoricalEncoding, Encoding, NumericEncoding
from pipelines.config_models import Mf
from pipelines.config_problems import IGNORED, Finding
from pipelines.config_sparse import Sparse, SparseEntries
from pipelines.config_two_tower import TwoTower

Setting = tuple[str, ...]
"""A key of a model, under its sections."""
_MOVES = ("growth", "every_steps", "start", "end", "stop", "window_steps", "momentum")
_STARTS = ("columns", "resolution")


def check_ignored(models: Sequence[tuple[int, Mf | TwoTower]]) -> Iterator[Finding]:
    """Yield a finding for what a variant gives and does not read; what another reads may be the file's default.

    Args:
        models: of the variants, with their places.
    """
    unread = [dict(_unread(model)) for _, model in models]
    for (index, model), own in zip(models, unread, strict=True):
        for setting, why in own.items():
            section, value = _value(model, setting[:-1]), _value(model, setting)
            read = any(
                setting not in others and _value(other, setting) == value
                for (_, other), others in zip(models, unread, strict=True)
            )
            assert isinstance(section, BaseModel)
            if not read and value != type(section).model_fields[setting[-1]].default:
                yield ("variants", index, "model", *setting), f"{why}, so that {setting[-1]}: {value} {IGNORED}"


def _value(part: object, setting: Setting) -> object:
    """None where there is no such section."""
    for name in setting:
        part = part.get(name) if isinstance(part, dict) else getattr(part, name, None)
    return part


def _unread(model: Mf | TwoTower) -> Iterator[tuple[Setting, str]]:
    for key in ("sparse", "sparse_layers"):
        section = getattr(model, key, None)
        if isinstance(section, SparseEntries):
            yield from _under((key,), _unread_sparse(section))
    if not isinstance(model, TwoTower):
        return
    for side, inputs in (("user", model.user), ("item", model.item)):
        for column, encoding in (inputs.features or {}).items():
            yield from _under((side, "features", column), _unread_encoding(encoding))
    if model.loss.name == "in_batch":
        yield ("loss", "count"), "loss in_batch draws no items"
    if model.loss.name == "sampled" and model.loss.logq == "exact":
        yield ("loss", "logq"), "loss sampled draws every item equally often"
    if model.ssl is not None and model.ssl.name == "spread_out":
        yield ("ssl", "dropout"), "ssl spread_out drops nothing"


def _under(where: Setting, settings: Iterator[tuple[str, str]]) -> Iterator[tuple[Setting, str]]:
    yield from (((*where, name), why) for name, why in settings)


def _unread_sparse(sparse: SparseEntries) -> Iterator[tuple[str, str]]:
    if sparse.method != "dynamic":
        yield from ((name, f"method {sparse.method} moves no entry") for name in _MOVES)
    elif sparse.growth != "momentum":
        yield "momentum", f"growth {sparse.growth} has no decay"
    if sparse.method == "dynamic" and sparse.growth == "random":
        yield "window_steps", "growth random looks at no gradient"
    if isinstance(sparse, Sparse) and sparse.method == "prune":
        yield from ((name, "method prune chooses after training") for name in _STARTS)
    elif isinstance(sparse, Sparse) and sparse.columns == "random":
        yield "resolution", "random columns need no clusters"


def _unread_encoding(encoding: Encoding) -> Iterator[tuple[str, str]]:
    if isinstance(encoding, CategoricalEncoding) and encoding.max_size is None:
        yield "on_overflow", "without max_size nothing overflows"
    if isinstance(encoding, NumericEncoding) and encoding.transform != "quantiles":
        yield "buckets", f"transform {encoding.transform} has none"
