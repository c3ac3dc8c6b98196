"""Prepared events of several tasks: interactions and drawn negatives as arrays, and the facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from pipelines.atomic import write_json
from pipelines.cache import Cache, content_hash
from pipelines.config_multitask import TaskData, TaskLabel
from pipelines.errors import DataError
from pipelines.events.data import PreparedEvents
from pipelines.ranking.files import find_files, readable, require_columns, scan_files
from pipelines.ranking.numbers import as_numbers
from pipelines.ranking.sources import SPLITS
from pipelines.stages.versions import versions
from recsys.rng import generator
from recsys.task_events import TaskEvents

VERSION = 3
IntArray = npt.NDArray[np.int64]


class MultiTaskData(PreparedEvents):
    """What :func:`prepare_tasks` wrote; a task's name is a column of the labels."""

    def events(self, split: Literal["train", "valid", "test"]) -> TaskEvents:
        """The events of a split."""
        arrays = load_file(self.path / f"{split}.safetensors")
        return TaskEvents(arrays["ids"], arrays["labels"], self.fields, tuple(self.facts["tasks"]))

    def test_users(self) -> npt.NDArray[np.int32]:
        """Whose each test event is, int32 [E]: an id, or a number after the ids for each user without one."""
        return load_file(self.path / "test_users.safetensors")["users"]

    def graph(self) -> csr_array:
        """Float32 [users, items]: ones at the pairs of train interactions."""
        pairs = load_file(self.path / "pairs.safetensors")["pairs"]
        shape = (self.sizes[self.user], self.sizes[self.item])
        return csr_array((np.ones(len(pairs), np.float32), (pairs[:, 0], pairs[:, 1])), shape=shape)


def files_of(config: TaskData) -> list[Path]:
    """Every file that the interactions are read from.

    Raises:
        DataError: There is none.
    """
    return find_files(config.source, [config.events])


def prepare_tasks(cache: Cache, config: TaskData, tasks: Sequence[TaskLabel]) -> MultiTaskData:
    """Read, draw negatives and split, or find it done.

    Raises:
        DataError: The source cannot be used; the message names file, column and value.
    """
    labels = [task.model_dump(mode="json", exclude={"weight"}) for task in tasks]
    key = {
        "version": VERSION,
        "files": content_hash(*files_of(config)),
        "settings": config.model_dump(mode="json", exclude={"source"}),
        "tasks": labels,
        "libraries": versions(["polars", "numpy"]),
    }
    return MultiTaskData(cache.stage("task-events", key, lambda directory: _build(config, tasks, directory)))


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Pairs of user and item: int64 [E, 2], indices into the ids that occur; labels float32 [E, T]; a split of each."""

    ids: IntArray
    labels: npt.NDArray[np.float32]
    splits: npt.NDArray[np.uint8]


def _build(config: TaskData, tasks: Sequence[TaskLabel], directory: Path) -> None:
    frame = _read(config, tasks)
    raw = [frame[name].unique().sort() for name in (config.user, config.item)]
    ids = np.stack([values.search_sorted(frame[values.name]).to_numpy() for values in raw], axis=1).astype(np.int64)
    labels = np.stack([_labels(frame, task) for task in tasks], axis=1)
    positives = _Pairs(ids, labels, _split(len(ids), config, "interactions"))
    shape = (len(raw[0]), len(raw[1]))
    drawn = draw_negatives(ids, shape, config.negatives, generator(config.seed, "negatives"))
    unknown = np.array([0.0 if task.label == "seen" else np.nan for task in tasks], np.float32)
    negatives = _Pairs(drawn, np.tile(unknown, (len(drawn), 1)), _split(len(drawn), config, "negatives"))
    known = _write(positives, negatives, shape, directory)
    facts: dict[str, Any] = {"name": config.name, "source": config.source, "user": config.user, "item": config.item}
    for values, seen in zip(raw, known, strict=True):
        values.gather(seen).to_frame("value").write_parquet(directory / f"{values.name}.parquet", compression="zstd")
    facts |= {"fields": {values.name: len(seen) for values, seen in zip(raw, known, strict=True)}}
    facts |= {"tasks": [task.name for task in tasks], "interactions": len(ids), "negatives": len(drawn)}
    facts |= _counts(directory, tasks)
    arrays = [directory / f"{name}.safetensors" for name in (*SPLITS, "test_users")]
    write_json(directory / "facts.json", facts | {"hash": content_hash(*arrays)})


def _read(config: TaskData, tasks: Sequence[TaskLabel]) -> pl.DataFrame:
    files = files_of(config)
    frame = scan_files(files)
    columns = [config.user, config.item, *{task.column: None for task in tasks if task.column is not None}]
    require_columns(frame, columns, files[0].name)
    with readable(files):
        found = frame.select(columns).collect()
    for task in tasks:
        if task.column is not None:
            _check_numbers(found[task.column], task)
    return _selected(found, config)


def _selected(frame: pl.DataFrame, config: TaskData) -> pl.DataFrame:
    """Each pair of user and item once, its last row, of so many users as are wanted."""
    columns = [config.user, config.item]
    empty = [name for name in columns if frame[name].null_count()]
    if empty:
        row = int(frame[empty[0]].is_null().arg_true()[0])
        raise DataError(f"column {empty[0]!r} has no value in row {row}; every interaction needs a user and an item")
    frame = frame.unique(subset=columns, keep="last", maintain_order=True)
    users = frame[config.user].unique().sort()
    if config.max_users is not None and config.max_users < len(users):
        kept = generator(config.seed, "users").permutation(len(users))[: config.max_users]
        frame = frame.filter(pl.col(config.user).is_in(users.gather(np.sort(kept)).implode()))
    if len(frame) < 10:
        raise DataError(f"{config.source!r} has {len(frame)} interactions; a split needs at least 10")
    return frame


def _check_numbers(column: pl.Series, task: TaskLabel) -> None:
    """Raise DataError for what is no number, and for a known value to be learned that float32 cannot hold."""
    numbers = as_numbers(column)
    bad, wanted = (numbers.is_null() & column.is_not_null()).arg_true(), "numbers"
    if not len(bad) and task.label == "value":
        far = numbers.abs() > float(np.finfo(np.float32).max)
        known = numbers.is_not_nan() if task.known_from is None else numbers >= task.known_from
        bad, wanted = (far & known).arg_true(), f"finite numbers up to {np.finfo(np.float32).max:.3g}"
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"column {column.name!r} must hold {wanted}, but row {row} has {column[row]!r}; correct it, or leave it"
            " empty"
        )


def _labels(frame: pl.DataFrame, task: TaskLabel) -> npt.NDArray[np.float32]:
    """Float32 [E] of interactions, NaN where unknown."""
    if task.column is None:
        return np.ones(len(frame), np.float32)
    values = as_numbers(frame[task.column]).fill_null(float("nan")).to_numpy()
    known = ~np.isnan(values) if task.known_from is None else values >= task.known_from
    labels = values if task.at_least is None else (values >= task.at_least).astype(np.float64)
    return np.where(known, labels, np.nan).astype(np.float32)


def draw_negatives(
    pairs: IntArray, shape: tuple[int, int], per_pair: float | Literal["all"], draws: np.random.Generator
) -> IntArray:
    """Int64 [M, 2]: different pairs of user and item that are not among ``pairs`` [E, 2], uniform, in random order.

    Raises:
        DataError: There are fewer such pairs than wanted.
    """
    taken = np.unique(pairs[:, 0] * shape[1] + pairs[:, 1])
    free = shape[0] * shape[1] - len(taken)
    wanted = free if per_pair == "all" else round(per_pair * len(pairs))
    if wanted > free:
        raise DataError(f"{wanted:,} negatives are wanted, but only {free:,} pairs are free; lower dataset.negatives")
    if 2 * wanted > free:
        codes = np.setdiff1d(np.arange(shape[0] * shape[1]), taken, assume_unique=True)
        return np.stack(np.divmod(draws.permutation(codes)[:wanted], shape[1]), axis=1)
    codes = np.zeros(0, np.int64)
    while len(codes) < wanted:
        more = draws.integers(shape[0] * shape[1], size=2 * (wanted - len(codes)))
        codes = np.setdiff1d(np.union1d(codes, more), taken, assume_unique=True)
    return np.stack(np.divmod(draws.permutation(codes)[:wanted], shape[1]), axis=1)


def _split(count: int, config: TaskData, kind: str) -> npt.NDArray[np.uint8]:
    """Uint8 [count]: the split of each; interactions and negatives are split alike, which is stratified."""
    order = generator(config.seed, "task split", kind).permutation(count)
    valid, test = round(config.valid * count), round(config.test * count)
    splits = np.zeros(count, np.uint8)
    splits[order[:valid]] = 1
    splits[order[valid : valid + test]] = 2
    return splits


def _write(positives: _Pairs, negatives: _Pairs, shape: tuple[int, int], directory: Path) -> list[IntArray]:
    """Write the arrays; an id without a train event is unseen. Returns for each side the ids of train, ascending."""
    ids = np.concatenate([positives.ids, negatives.ids])
    labels = np.concatenate([positives.labels, negatives.labels])
    splits = np.concatenate([positives.splits, negatives.splits])
    known = [np.unique(ids[splits == 0, side]) for side in range(2)]
    users = ids[:, 0].copy()
    for side, seen in enumerate(known):
        index = np.full(shape[side], len(seen))
        index[seen] = np.arange(len(seen))
        ids[:, side] = index[ids[:, side]]
    for code, split in enumerate(SPLITS):
        rows = splits == code
        arrays = {"ids": ids[rows].astype(np.int32), "labels": labels[rows]}
        save_file(arrays, directory / f"{split}.safetensors")
    users = np.where(ids[:, 0] < len(known[0]), ids[:, 0], len(known[0]) + users)[splits == 2]
    save_file({"users": users.astype(np.int32)}, directory / "test_users.safetensors")
    pairs = ids[: len(positives.ids)][positives.splits == 0]
    save_file({"pairs": pairs}, directory / "pairs.safetensors")
    return known


def _counts(directory: Path, tasks: Sequence[TaskLabel]) -> dict[str, Any]:
    """Events of each split, and of each task its known labels by split and their mean and deviation in train.

    Raises:
        DataError: A task has no known label in a split, too few of a class, or one value only in train.
    """
    by_split = {split: load_file(directory / f"{split}.safetensors")["labels"] for split in SPLITS}
    found = {}
    for place, task in enumerate(tasks):
        known = {split: int((~np.isnan(labels[:, place])).sum()) for split, labels in by_split.items()}
        for split, labels in by_split.items():
            _require(task, split, labels[:, place])
        train = by_split["train"][:, place].astype(np.float64)
        mean, deviation = float(np.nanmean(train)), float(np.nanstd(train))
        if not deviation:
            raise DataError(f"every label of task {task.name!r} in train is {mean:g}; there is nothing to learn")
        found[task.name] = {"known": known, "mean": mean, "deviation": deviation}
    return {"counts": {split: len(labels) for split, labels in by_split.items()}, "labels": found}


def _require(task: TaskLabel, split: str, labels: npt.NDArray[np.float32]) -> None:
    """Labels that the evaluation of a split can do with: DeLong's variance needs two of each class."""
    if np.isnan(labels).all():
        raise DataError(f"task {task.name!r} has no known label in {split}; check column and known_from")
    zeros, ones = int((labels == 0).sum()), int((labels == 1).sum())
    if task.label != "value" and min(zeros, ones) < 2:
        raise DataError(
            f"task {task.name!r} needs two labels of each class in {split}, got {zeros:,} zeros and {ones:,} ones;"
            " change at_least or the split"
        )
