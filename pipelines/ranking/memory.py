"""How much memory a ranking experiment will need, told before it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import assert_never

import polars as pl
import psutil

from pipelines.config_ranking import (
    CriteoData,
    FrappeData,
    LibfmData,
    NextItemData,
    RankingExperiment,
    TableData,
)
from pipelines.ingest.source import base_path
from pipelines.memory import LIBRARIES_MIB, MIB, count_lines
from pipelines.ranking.encode import BLOCK
from pipelines.ranking.files import PARQUET, readable
from pipelines.ranking.frappe import FIELDS, IDS
from pipelines.ranking.lists import lists_as_text
from pipelines.ranking.sources import CRITEO_FIELDS, CRITEO_NUMERIC, DataConfig, files_of

_BYTES_PER_VALUE = 64
"""Of a block of raw events and of the vocabularies: a short string, its hash and its count."""
_BYTES_PER_EVENT = {"prepare": 9, "train": 16, "evaluate": 60}
"""Split and its draw; the shuffled order, twice; a score and what sorting it takes."""
_STATES = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 0, "adam": 2, "lazy_adam": 2}
"""Numbers that an optimizer keeps beside each weight."""


@dataclasses.dataclass(frozen=True)
class EventSize:
    """Events of all splits, categorical fields and numbers of an event, and ids of all fields together.

    Text is extrapolated from its first MiB, and each event may bring ids of its own: then ``ids`` is a bound.
    """

    events: int
    fields: int
    numbers: int
    ids: int


def measure_events(config: DataConfig) -> EventSize:
    """The size of a source, from Parquet metadata and sketches of its columns, or from the first MiB of text.

    Raises:
        DataError: A file is missing or damaged.
    """
    files = files_of(config)
    with readable(files):
        return _measure(config, files)


def _measure(config: DataConfig, files: list[Path]) -> EventSize:
    match config:
        case FrappeData():
            train, held_out = (_parquet([path], ())[0] for path in files)
            return EventSize(train * (1 + config.negatives) + held_out, len(FIELDS), 0, IDS)
        case NextItemData():
            events, catalogue = files
            rows, users = _parquet([events], [config.user])
            ids = users + _parquet([catalogue], (config.item, *config.columns))[1]
            return EventSize(rows * (1 + config.negatives), 2 + len(config.columns), 0, ids)
        case TableData():
            names, numbers = config.fields, len(config.numeric)
        case CriteoData():
            names, numbers = CRITEO_FIELDS, len(CRITEO_NUMERIC)
        case LibfmData():
            names, numbers = config.fields, 0
        case _:
            assert_never(config)
    joins = config.joins if isinstance(config, TableData) else ()
    joined = {base_path(config.source) / join.source for join in joins}
    files = [path for path in files if path not in joined]
    if files[0].suffix in PARQUET:
        rows, ids = _parquet(files, names)
        return EventSize(rows, len(names), numbers, ids)
    rows = sum(count_lines(path, per_item=False) for path in files)
    return EventSize(rows, len(names), numbers, rows * len(names))


def _parquet(files: list[Path], names: Iterable[str]) -> tuple[int, int]:
    """Rows, and about how many distinct values the columns have together; a joined column is not counted."""
    scan = pl.scan_parquet(files)
    known = [name for name in names if name in scan.collect_schema().names()]
    counts = (
        lists_as_text(scan, known)
        .select(pl.len(), *(pl.col(name).approx_n_unique() for name in known))
        .collect()
        .row(0)
    )
    return int(counts[0]), int(sum(counts[1:]))


def estimate(experiment: RankingExperiment, size: EventSize) -> dict[str, float]:
    """Peak MiB by stage: each is on top of the libraries, and only one stage runs at a time."""
    found = {name: size.events * value / MIB for name, value in _BYTES_PER_EVENT.items()}
    columns = size.fields + size.numbers
    found["prepare"] += (BLOCK * columns + size.ids) * _BYTES_PER_VALUE / MIB
    training = []
    for variant in experiment.variants:
        model, batch = variant.model, variant.train.batch_size
        tables = size.ids * model.dim * 4 * (1 + _STATES[model.optimizer.name])
        step = batch * (4 * size.fields * model.dim + 4 * sum(model.hidden)) * 4
        training.append((tables + step) / MIB)
    found["train"] += max(training)
    return {"libraries": LIBRARIES_MIB, **found}


def memory_lines(experiment: RankingExperiment) -> list[str]:
    """The memory estimate, with a warning when the machine has less."""
    parts = estimate(experiment, measure_events(experiment.dataset))
    peak = parts["libraries"] + max(value for name, value in parts.items() if name != "libraries")
    available = psutil.virtual_memory().available / MIB
    stages = ", ".join(f"{name} {value:,.0f}" for name, value in parts.items())
    lines = [f"memory: about {peak:,.0f} MiB at most ({stages}), {available:,.0f} MiB available"]
    if peak > available:
        lines.append("warning: this is more than the machine has free; use a smaller model.dim or a larger min_count")
    return lines
