"""What ``recsys validate`` says of a ranker and the fields that it is for."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.config_problems import Finding, did_you_mean
from pipelines.config_ranking import Data, FinalMlp, RankerModel, RankerTrain
from pipelines.ranking.sources import field_names, numeric_kinds


def check_model(model: RankerModel, dataset: Data) -> Iterator[Finding]:
    """Yield the key and the message of every rule that a ranker breaks over the fields of ``dataset``."""
    fields = field_names(dataset)
    for name in model.dims:
        if name not in fields:
            yield ("dims", name), _no_field(name, fields)
    dims = {name: model.dims.get(name, model.dim) for name in fields}
    if model.name in ("dlrm", "deep_fm") and len(set(dims.values())) > 1:
        yield ("dims",), f"{model.name} multiplies fields and needs one dim for all of them, got {dims}"
    thin = [name for name, dim in dims.items() if dim < 2]
    if model.name in ("wide_deep", "deep_fm") and thin:
        message = "needs dim >= 2, one column for the linear part and the rest for the vector, but"
        yield ("dim",), f"{model.name} {message} {thin[0]} has dim {dims[thin[0]]}"
    if isinstance(model, FinalMlp):
        scaled = [name for name, kind in numeric_kinds(dataset).items() if kind != "log_bucket"]
        yield from _check_streams(model, fields, None if scaled else sum(dims.values()))


def check_id_dropout(train: RankerTrain, dataset: Data) -> Iterator[Finding]:
    """Yield the fields of ``train.id_dropout`` that the events lack."""
    fields = field_names(dataset)
    for name in train.id_dropout:
        if name not in fields:
            yield ("id_dropout", name), _no_field(name, fields)


def _check_streams(model: FinalMlp, fields: tuple[str, ...], width: int | None) -> Iterator[Finding]:
    """``width`` is that of the towers' input; None where the events decide, for a number may have an indicator."""
    for place, names in enumerate(model.gates or ()):
        for index, name in enumerate(names):
            if name not in fields:
                yield ("gates", place, index), _no_field(name, fields)
    lasts = [tower.hidden[-1] if tower.hidden else width for tower in (model, model.second)]
    if any(last is not None and last % model.heads for last in lasts):
        yield ("heads",), f"heads must divide the towers' last widths {lasts[0]} and {lasts[1]}, got {model.heads}"


def _no_field(name: str, fields: tuple[str, ...]) -> str:
    return f"there is no field {name!r}{did_you_mean(name, fields)} (the fields are {', '.join(fields)})"
