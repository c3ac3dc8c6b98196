"""From raw events to arrays: vocabularies and scales fitted on train, ids and numbers written block by block."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.atomic import write_json
from pipelines.config_ranking import Numeric
from pipelines.errors import DataError
from pipelines.ranking.files import readable
from pipelines.ranking.lists import lists_as_text
from pipelines.ranking.moments import Moments
from pipelines.ranking.numbers import Told, as_numbers, finite_numbers
from pipelines.ranking.reserved import LABEL
from pipelines.ranking.sources import SPLITS, DataConfig, Source, join_columns, numeric_kinds

Kinds = Mapping[str, Numeric]
BLOCK = 1 << 17
FARTHEST = 1e6
"""Standard deviations; products of numbers beyond it leave float32. Train has none: n values reach sqrt(n)."""
_VALUE, _COUNT, _POSITIVES = "value", "count", "positives"


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What was fitted on train.

    Attributes:
        vocabularies: field -> frame (value, count) of the train values with an id of their own; row i is id i. A
            missing value is a value like any other; every other value is unseen and gets the id ``len(frame)``.
        scales: numeric column -> (mean, standard deviation, whether train lacks some values).
    """

    vocabularies: dict[str, pl.DataFrame]
    scales: dict[str, tuple[float, float, bool]]

    @property
    def dense(self) -> tuple[str, ...]:
        """Names of the dense columns: each scaled number, and an indicator where train lacks some values."""
        names = [(name, f"{name} is missing") for name in self.scales]
        return tuple(
            n for pair, (_, _, lacks) in zip(names, self.scales.values(), strict=True) for n in pair[: 1 + lacks]
        )

    def save(self, directory: Path) -> None:
        """Write ``vocabulary-<place>.parquet`` of each field and ``encoding.json`` into an existing directory."""
        for place, vocabulary in enumerate(self.vocabularies.values()):
            vocabulary.write_parquet(directory / f"vocabulary-{place}.parquet", compression="zstd")
        write_json(directory / "encoding.json", {"fields": list(self.vocabularies), "scales": self.scales})

    @classmethod
    def load(cls, directory: Path) -> Encoding:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: It is not there.
        """
        path = directory / "encoding.json"
        if not path.is_file():
            raise DataError(f"{path} does not exist; run `recsys run` again, which writes it")
        facts = json.loads(path.read_bytes())
        places = enumerate(facts["fields"])
        vocabularies = {name: pl.read_parquet(directory / f"vocabulary-{i}.parquet", glob=False) for i, name in places}
        return cls(vocabularies, {name: tuple(scale) for name, scale in facts["scales"].items()})


def encode_rows(
    rows: pl.DataFrame, encoding: Encoding, config: DataConfig, first: int = 0
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Ids [n, F] and numbers [n, N] of rows as people have them: joins made, columns of the types that train had.

    The rows are numbered from ``first`` in messages.

    Raises:
        DataError: A joined column is missing and its file too, or a number is none, infinite or too far from train's.
    """
    kinds, told = numeric_kinds(config), _counted_from(first, "row {}".format)
    fields = [name for name in encoding.vocabularies if name not in kinds]
    frame = lists_as_text(join_columns(rows, config).lazy(), fields).collect()
    frame = frame.with_columns(finite_numbers(frame[name], told) for name in kinds)
    unseen: dict[str, npt.NDArray[np.bool_]] = {}
    for name in fields:
        found, unseen[name] = _as_train(frame[name], encoding.vocabularies[name][_VALUE].dtype)
        frame = frame.with_columns(found.alias(name))
    ids = _ids(frame, encoding, kinds)
    for place, (name, vocabulary) in enumerate(encoding.vocabularies.items()):
        if name in unseen:
            ids[unseen[name], place] = len(vocabulary)
    return ids, _dense(frame, encoding, kinds, told)


def _as_train(given: pl.Series, kind: pl.DataType) -> tuple[pl.Series, npt.NDArray[np.bool_]]:
    """Values as the type that train had, and which of them cannot be among train's.

    Text is the number whose text it is: ``7`` and ``7.0`` are 7, but ``07`` is not.
    """
    if given.dtype == pl.String and kind.is_integer():
        given = given.str.replace(r"\.0+$", "")
    found = given.cast(kind, strict=False)
    if given.dtype == pl.String and kind.is_float():
        return found, (found.is_null() & given.is_not_null()).to_numpy()
    return found, ~found.cast(given.dtype, strict=False).eq_missing(given).to_numpy()


def encode(
    source: Source, min_count: int, directory: Path, *, user: str, item: str, min_positives: int = 0
) -> Encoding:
    """Fit on train and write ``<split>-{ids,dense,labels}.npy`` for each split; memory grows with distinct values only.

    ``test-users.npy``, int32 [E], tells the users of test apart: those who share the unseen id have numbers after it.

    Args:
        source: the events.
        min_count: train events that a value needs for an id of its own.
        directory: exists.
        user: field of the users.
        item: field whose values are those of the catalogue, if the source has one.
        min_positives: positive train events that a value of ``user`` or ``item`` needs besides.

    Raises:
        DataError: A label is not 0 or 1, a split is empty, or a number has no value in train, is infinite or far off.
    """
    counts = np.bincount(source.splits, minlength=3)
    for split, count in zip(SPLITS, counts, strict=True):
        if not count:
            raise DataError(f"the {split} split has no event (train, valid, test: {counts.tolist()}); change the split")
    encoding = _fit(source, min_count, {user: min_positives, item: min_positives}, item)
    shapes = {"ids": (np.int32, len(encoding.vocabularies)), "dense": (np.float32, len(encoding.dense))}
    arrays: dict[tuple[int, str], Any] = {}
    for code, split in enumerate(SPLITS):
        for name, (dtype, width) in shapes.items():
            path = directory / f"{split}-{name}.npy"
            arrays[code, name] = np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=(int(counts[code]), width))
        path = directory / f"{split}-labels.npy"
        arrays[code, "labels"] = np.lib.format.open_memmap(path, "w+", dtype=np.uint8, shape=(int(counts[code]),))
    path = directory / "test-users.npy"
    arrays[2, "users"] = np.lib.format.open_memmap(path, "w+", dtype=np.int32, shape=(int(counts[2]),))
    place, strangers = list(encoding.vocabularies).index(user), dict[Any, int]()
    written = [0, 0, 0]
    for first, frame, told in _blocks(source):
        splits = source.splits[first : first + len(frame)]
        parts: dict[str, npt.NDArray[Any]] = {
            "ids": _ids(frame, encoding, source.numeric),
            "dense": _dense(frame, encoding, source.numeric, told),
            "labels": _labels(frame, source, told),
        }
        ids = parts["ids"][:, place]
        alone = (splits == 2) & (ids == len(encoding.vocabularies[user]))
        parts["users"] = _tell_apart(frame[user], ids, alone, strangers)
        for code in range(3):
            rows = np.flatnonzero(splits == code)
            for name in (name for split, name in arrays if split == code):
                arrays[code, name][written[code] : written[code] + len(rows)] = parts[name][rows]
            written[code] += len(rows)
    for array in arrays.values():
        if array.size:
            array.flush()
    return encoding


def _blocks(source: Source) -> Iterator[tuple[int, pl.DataFrame, Told]]:
    """The events in order, block by block: number of the first, rows with numbers as such, and where a row is."""
    first = 0
    with readable(source.files):
        for frame in source.frame.collect_batches(chunk_size=BLOCK, maintain_order=True):
            told = _counted_from(first, source.told)
            yield first, frame.with_columns(finite_numbers(frame[name], told) for name in source.numeric), told
            first += len(frame)


def _fit(source: Source, min_count: int, min_positives: Mapping[str, int], item: str) -> Encoding:
    names, judged = _categorical(source), [name for name, wanted in min_positives.items() if wanted]
    counts = {name: pl.DataFrame() for name in names}
    moments = {name: Moments() for name, kind in source.numeric.items() if kind != "log_bucket"}
    for first, frame, told in _blocks(source):
        inside = pl.Series(source.splits[first : first + len(frame)] == 0)
        train = frame.filter(inside)
        labels = _labels(frame, source, told) if judged else np.empty(0, np.uint8)
        for name in names:
            column, sums = _column(train, name, source.numeric).rename(_VALUE).to_frame(), [pl.len().alias(_COUNT)]
            if name in judged:
                column = column.with_columns(pl.Series(_POSITIVES, labels, pl.Int64).filter(inside))
                sums.append(pl.col(_POSITIVES).sum())
            found = column.group_by(_VALUE).agg(sums)
            parts = [counts[name], found] if len(counts[name]) else [found]
            counts[name] = pl.concat(parts).group_by(_VALUE).agg(pl.all().sum())
        for name, moment in moments.items():
            moment.add(_numbers(train, name, source.numeric[name]))
    vocabularies = {}
    for name, frame in counts.items():
        least = {_COUNT: min_count} | ({_POSITIVES: min_positives[name]} if name in judged else {})
        kept = frame.filter(pl.col(column) >= number for column, number in least.items())
        vocabularies[name] = kept.select(_VALUE, _COUNT).sort(_VALUE, nulls_last=True)
    if source.catalogue is not None:
        everything = source.catalogue.select(pl.col(item).alias(_VALUE))
        counted = everything.join(counts[item].select(_VALUE, _COUNT), on=_VALUE, how="left", maintain_order="left")
        vocabularies[item] = counted.with_columns(pl.col(_COUNT).fill_null(0))
    return Encoding(vocabularies, {name: moment.scale(name) for name, moment in moments.items()})


def _categorical(source: Source) -> tuple[str, ...]:
    return (*source.fields, *(name for name, kind in source.numeric.items() if kind == "log_bucket"))


def _counted_from(first: int, told: Told) -> Told:
    """``told`` for the rows of a block, whose first event has the number ``first``."""
    return lambda row: told(first + row)


def _column(frame: pl.DataFrame, name: str, kinds: Kinds) -> pl.Series:
    """Values of a categorical field; a bucketed number is int32, a missing one null."""
    if name not in kinds:
        return frame[name]
    values = frame[name].cast(pl.Float64).to_numpy()
    return pl.Series(name, log_buckets(values), dtype=pl.Int32).set(pl.Series(np.isnan(values)), None)


def log_buckets(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Int32 [n]: ``floor(ln(x)^2)`` above 2 and ``floor(x)`` up to it, the buckets usual for Criteo's counts.

    NaN gives 0; who calls it knows where values are missing.

    Example:
        >>> log_buckets(np.array([-1.0, 0.0, 2.0, 3.0, 100.0])).tolist()
        [-1, 0, 2, 1, 21]
    """
    large = values > 2
    out = np.floor(np.nan_to_num(np.where(large, 0.0, values), nan=0.0))
    out[large] = np.floor(np.square(np.log(values[large])))
    buckets: npt.NDArray[np.int32] = np.maximum(out, np.iinfo(np.int32).min).astype(np.int32)
    return buckets


def _numbers(frame: pl.DataFrame, name: str, kind: Numeric) -> npt.NDArray[np.float64]:
    """A numeric column before it is scaled, NaN where it is missing."""
    values: npt.NDArray[np.float64] = frame[name].cast(pl.Float64).to_numpy()
    if kind == "log_standardise":
        values = np.sign(values) * np.log1p(np.abs(values))
    return values


def _ids(frame: pl.DataFrame, encoding: Encoding, kinds: Kinds) -> npt.NDArray[np.int32]:
    out = np.empty((len(frame), len(encoding.vocabularies)), np.int32)
    for place, (name, vocabulary) in enumerate(encoding.vocabularies.items()):
        known = vocabulary.select(_VALUE).with_row_index("id")
        found = _column(frame, name, kinds).rename(_VALUE).to_frame()
        ids = found.join(known, on=_VALUE, how="left", nulls_equal=True, maintain_order="left")["id"]
        out[:, place] = ids.fill_null(len(vocabulary)).to_numpy()
    return out


def _tell_apart(
    values: pl.Series, ids: npt.NDArray[np.int32], unseen: npt.NDArray[np.bool_], strangers: dict[Any, int]
) -> npt.NDArray[np.int32]:
    """Ids [n], to which each distinct value among the ``unseen``, who have one id, adds its number in ``strangers``."""
    out = ids.copy()
    found = values.filter(pl.Series(unseen)).to_list()
    out[unseen] += np.array([strangers.setdefault(value, len(strangers)) for value in found], np.int32)
    return out


def _dense(frame: pl.DataFrame, encoding: Encoding, kinds: Kinds, told: Told) -> npt.NDArray[np.float32]:
    """A scaled number is 0 where it is missing or train has one value only."""
    columns = []
    for name, (mean, deviation, lacks) in encoding.scales.items():
        values = _numbers(frame, name, kinds[name])
        columns.append(_scaled(name, values, mean, deviation, told) if deviation else np.zeros(len(values)))
        columns += [np.isnan(values)] if lacks else []
    return np.stack(columns, axis=1).astype(np.float32) if columns else np.zeros((len(frame), 0), np.float32)


def _scaled(
    name: str, values: npt.NDArray[np.float64], mean: float, deviation: float, told: Told
) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore"):
        scaled = (values - mean) / deviation
    far = np.flatnonzero(np.abs(scaled) > FARTHEST)
    if far.size:
        raise DataError(
            f"numeric column {name!r} is {scaled[far[0]]:.3g} standard deviations of train away from train's mean in"
            f" {told(int(far[0]))}; the most is {FARTHEST:g}: correct it, leave it empty, or leave the column out"
        )
    return np.nan_to_num(scaled)


def _labels(frame: pl.DataFrame, source: Source, told: Told) -> npt.NDArray[np.uint8]:
    labels, at_least = as_numbers(frame[LABEL]), source.at_least
    known = labels.is_in([0.0, 1.0]) if at_least is None else labels.is_not_nan()
    bad = (~known).fill_null(value=True).arg_true()
    if len(bad):
        row, wanted = int(bad[0]), "0 or 1" if at_least is None else "numbers"
        given = f"{told(row)} has {frame[LABEL][row]!r} in column {source.label!r}"
        raise DataError(f"labels must be {wanted}, but {given}; {source.remedy}")
    positive = labels if at_least is None else labels >= at_least
    return positive.cast(pl.UInt8).to_numpy()
