"""What ``recsys validate`` says of the columns of ranking events, from the schemas of the files alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.config_problems import Finding
from pipelines.config_ranking import CriteoData, NextItemData, TableData
from pipelines.errors import DataError, did_you_mean
from pipelines.ingest.source import base_path
from pipelines.ranking.files import PARQUET, columns_of
from pipelines.ranking.joins import refused_columns
from pipelines.ranking.sources import CRITEO_FIELDS, CRITEO_NUMERIC, DataConfig, categorical, files_of, numeric_kinds

Wanted = Iterable[tuple[tuple[str | int, ...], str]]
"""Keys of the configuration that name a column, and the column."""


def check_columns(config: DataConfig) -> Iterator[Finding]:
    """Yield the key and the message of files that are absent or damaged, and of columns that they lack."""
    fields = categorical(config)
    for role, name in (("user", config.user), ("item", config.item)):
        if name not in fields:
            yield (role,), f"{name!r} is no field; {did_you_mean(name, fields)}"
    taken = [*fields, *numeric_kinds(config)]
    for name in dict.fromkeys(name for name in taken if taken.count(name) > 1):
        yield ("fields",), f"the column {name!r} is in fields and in numeric, or twice; each column is one of them"
    try:
        files = files_of(config)
        columns = {path: columns_of(path) for path in files if _has_columns(config, path)}
    except DataError as error:
        yield ("source",), str(error)
        return
    match config:
        case TableData():
            yield from _check_table(config, columns)
        case CriteoData():
            for path, known in columns.items():
                yield from _lacking(path, known, (((), name) for name in ("label", *CRITEO_NUMERIC, *CRITEO_FIELDS)))
        case NextItemData():
            events, catalogue = files
            roles = {"user": config.user, "item": config.item, "split": config.split, "order": config.order}
            yield from _lacking(events, columns[events], (((key,), name) for key, name in roles.items() if name))
            described = ((("columns", place), name) for place, name in enumerate(config.columns))
            yield from _lacking(catalogue, columns[catalogue], [(("item",), config.item), *described])


def _has_columns(config: DataConfig, path: Path) -> bool:
    return path.suffix in PARQUET or isinstance(config, TableData)


def _check_table(config: TableData, columns: dict[Path, list[str]]) -> Iterator[Finding]:
    joins = [(base_path(config.source) / join.source, join) for join in config.joins]
    joined = [name for _, join in joins for name in join.columns]
    events = {path: known for path, known in columns.items() if path not in [other for other, _ in joins]}
    wanted: list[tuple[tuple[str | int, ...], str]] = [(("label", "column"), config.label.column)]
    wanted += [(("fields", place), name) for place, name in enumerate(config.fields)]
    wanted += [(("numeric", name), name) for name in config.numeric]
    wanted += [(("split", "column"), config.split.column)] if config.split.column else []
    wanted += [(("time",), config.time)] if config.time else []
    wanted += [(("joins", place, "key"), join.key) for place, join in enumerate(config.joins)]
    for path, known in events.items():
        yield from _lacking(path, [*known, *joined], wanted)
    for (place, index), message in refused_columns(sorted(set().union(*events.values())), config.joins):
        yield ("joins", place, "columns", index), message
    for place, (path, join) in enumerate(joins):
        named = ((("joins", place, "columns", index), name) for index, name in enumerate(join.columns))
        yield from _lacking(path, columns.get(path, []), [(("joins", place, "key"), join.key), *named])


def _lacking(path: Path, known: list[str], wanted: Wanted) -> Iterator[Finding]:
    for key, name in wanted:
        if name not in known:
            yield key, f"{path.name} has no column {name!r}; {did_you_mean(name, known)}"
