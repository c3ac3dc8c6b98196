"""From columns of ``users.parquet`` and ``items.parquet`` to :class:`recsys.features.Features`, fitted on train."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, assert_never

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, ValidationError

from pipelines.atomic import write_text
from pipelines.config_features import CategoricalEncoding, Encoding, ListEncoding, NumericEncoding, TextEncoding
from pipelines.config_section import Section
from pipelines.errors import DataError, did_you_mean
from recsys.features import Categorical, Column, Features, MultiCategorical, Numeric

Mask = npt.NDArray[np.bool_]
_WORDS = r"\w+"
_SQUARE = 1e150
"""Numbers beyond it have squares, and so a deviation, beyond float64."""
_ROUNDING = 1e-12
"""A deviation below this share of the mean is the rounding of equal numbers."""
_TOO_LARGE = "too large to be scaled; use transform: log or quantiles"


class Vocabulary(Section):
    """The known values of a column; a value's place is its id."""

    kind: Literal["categorical", "list"]
    column: str
    values: tuple[str, ...]


class Scale(Section):
    """``(f(x) - mean) / deviation`` with f the identity, or sign(x) ln(1 + |x|)."""

    kind: Literal["scale"] = "scale"
    column: str
    log: bool
    mean: float
    deviation: float


class Quantiles(Section):
    """Bucket i holds the numbers in ``(edges[i - 1], edges[i]]``."""

    kind: Literal["quantiles"] = "quantiles"
    column: str
    edges: tuple[float, ...]


class TextHash(Section):
    """Bucket of a word: its CRC-32 modulo the number of buckets. ``idf`` has one weight for each bucket."""

    kind: Literal["text"] = "text"
    column: str
    max_words: int
    idf: tuple[float, ...]


Fitted = Annotated[Vocabulary | Scale | Quantiles | TextHash, Field(discriminator="kind")]


class FeatureEncoder(Section):
    """What was learned from the rows that training saw, one part for each feature."""

    columns: tuple[Fitted, ...]

    @classmethod
    def fit(cls, frame: pl.DataFrame, encodings: Mapping[str, Encoding], seen: Mask) -> FeatureEncoder:
        """Learn vocabularies, means, quantiles and word weights.

        Args:
            frame: row i is entity i.
            encodings: column -> how it is encoded.
            seen: bool [N]; only these rows, the entities with a training interaction, are learned from.

        Raises:
            DataError: A column is missing, of the wrong type, without any value in the seen rows, has numbers that are
                not finite or too large, or has more values than its vocabulary may hold.
        """
        rows = frame.filter(pl.Series(seen))
        return cls(columns=tuple(_fit(rows, name, encoding) for name, encoding in encodings.items()))

    def encode(self, frame: pl.DataFrame, *, allow_empty: bool = True) -> Features:
        """The features of any rows, new ones too.

        Args:
            frame: with the columns that :meth:`fit` saw.
            allow_empty: whether a row may have no known feature; a tower without ids cannot tell such rows apart.

        Raises:
            DataError: A column is missing or has a number that is not finite or too large, or a row is empty and must
                not be; the message names the row.
        """
        features = Features(frame.height, tuple(_encode(frame, fitted) for fitted in self.columns))
        if allow_empty or not features.columns:
            return features
        empty = np.flatnonzero(np.logical_and.reduce([column.missing for column in features.columns]))
        if empty.size:
            raise DataError(
                f"{_row(frame, empty[0])} has none of the features {', '.join(c.name for c in features.columns)}"
                f" ({empty.size:,} such rows); give it one, or give the tower the id (`id: true`)"
            )
        return features

    def save(self, path: Path) -> None:
        """Write JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> FeatureEncoder:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: The file is missing or damaged.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(f"{path} is no feature encoder ({str(error)[:120]}); train again") from error


def default_encodings(kinds: Mapping[str, str]) -> dict[str, Encoding]:
    """The encoding of each column from its kind in the dataset's configuration, see ``Entities.features``."""
    made: dict[str, Encoding] = {}
    for name, kind in kinds.items():
        match kind:
            case "categorical":
                made[name] = CategoricalEncoding()
            case "list":
                made[name] = ListEncoding()
            case "numeric":
                made[name] = NumericEncoding()
            case "text":
                made[name] = TextEncoding()
            case _:
                raise DataError(f"feature {name!r} has the unknown kind {kind!r}; ingest the data again")
    return made


def _fit(frame: pl.DataFrame, name: str, encoding: Encoding) -> Fitted:
    rows = _column(frame, name)
    match encoding:
        case ListEncoding():
            return _vocabulary(rows, _lists(rows).explode(), encoding)
        case CategoricalEncoding():
            return _vocabulary(rows, _text(rows), encoding)
        case NumericEncoding(transform="quantiles", buckets=buckets):
            levels = np.arange(1, buckets) / buckets
            edges = np.unique(np.quantile(_known_numbers(frame, name), levels, method="inverted_cdf"))
            return Quantiles(column=name, edges=tuple(edges.tolist()))
        case NumericEncoding(transform=transform):
            numbers = _shape(_known_numbers(frame, name), log=transform == "log")
            if np.abs(numbers).max() > _SQUARE:
                _refuse_numbers(frame, name, _numbers(frame, name).abs() > _SQUARE, _TOO_LARGE)
            mean, deviation = float(numbers.mean()), float(numbers.std())
            deviation = deviation if deviation > _ROUNDING * abs(mean) else 1.0
            return Scale(column=name, log=transform == "log", mean=mean, deviation=deviation)
        case TextEncoding(buckets=buckets, max_words=max_words):
            words = _word_buckets(rows, buckets).unique()
            if words.is_empty():
                raise _no_value(rows)
            documents = np.bincount(words["bucket"].to_numpy(), minlength=buckets)
            idf = np.log((1 + len(rows)) / (1 + documents)) + 1  # smoothed, as Salton and Buckley 1988 in scikit-learn
            return TextHash(column=name, max_words=max_words, idf=tuple(idf.tolist()))
        case _:
            assert_never(encoding)


def _encode(frame: pl.DataFrame, fitted: Fitted) -> Column:
    column = _column(frame, fitted.column)
    match fitted:
        case Vocabulary(kind="categorical", values=values):
            return Categorical(fitted.column, _places(_text(column), values), len(values))
        case Vocabulary(values=values):
            return _multi(fitted.column, _lists(column), values)
        case Scale(log=log, mean=mean, deviation=deviation):
            numbers = _numbers(frame, fitted.column)
            missing = numbers.is_null().to_numpy()
            with np.errstate(over="ignore"):  # told by the next line
                scaled = ((_shape(numbers.fill_null(0.0).to_numpy(), log=log) - mean) / deviation).astype(np.float32)
            _refuse_numbers(frame, fitted.column, pl.Series(~np.isfinite(scaled) & ~missing), _TOO_LARGE)
            return Numeric(fitted.column, np.where(missing, np.float32(0), scaled), missing)
        case Quantiles(edges=edges):
            numbers, size = _numbers(frame, fitted.column), len(edges) + 1
            places = np.searchsorted(np.array(edges), numbers.fill_null(0.0).to_numpy(), side="left")
            return Categorical(fitted.column, np.where(numbers.is_null().to_numpy(), size, places), size)
        case TextHash():
            return _tf_idf(column, fitted)
        case _:
            assert_never(fitted)


def _column(frame: pl.DataFrame, name: str) -> pl.Series:
    if name not in frame.columns:
        known = [column for column in frame.columns if column not in ("raw_id", "title")]
        raise DataError(f"there is no feature {name!r}; {did_you_mean(name, known)}")
    return frame[name]


def _vocabulary(rows: pl.Series, values: pl.Series, encoding: CategoricalEncoding) -> Vocabulary:
    name, counts = rows.name, values.drop_nulls().alias("value").value_counts(name="rows")
    if counts.is_empty():
        raise _no_value(rows)
    known = counts.filter(pl.col("rows") >= encoding.min_count)
    if known.is_empty():
        raise DataError(
            f"no value of feature {name!r} is in min_count {encoding.min_count:,} rows of train, the most frequent is"
            f" in {counts['rows'].to_numpy().max():,}; lower min_count"
        )
    kept = known.sort("rows", "value", descending=[True, False])["value"].to_list()
    if encoding.max_size is not None and len(kept) > encoding.max_size:
        if encoding.on_overflow == "error":
            raise DataError(
                f"feature {name!r} has {len(kept):,} values in train, max_size is {encoding.max_size:,}, the first"
                f" beyond it is {kept[encoding.max_size]!r}; raise max_size or min_count, or set on_overflow: unseen"
            )
        kept = kept[: encoding.max_size]
    kind: Literal["categorical", "list"] = "list" if isinstance(encoding, ListEncoding) else "categorical"
    return Vocabulary(kind=kind, column=name, values=tuple(sorted(kept)))


def _places(values: pl.Series, known: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """The place of each value among the known ones; their number where it is null or not known."""
    places = pl.Series(range(len(known)), dtype=pl.Int64)
    found = values.replace_strict(pl.Series(known, dtype=pl.String), places, default=len(known), return_dtype=pl.Int64)
    return found.fill_null(len(known)).to_numpy().astype(np.int64)


def _multi(name: str, lists: pl.Series, known: tuple[str, ...]) -> MultiCategorical:
    """Values that are not known leave a list that has others; a list without any keeps one unseen value."""
    rows = np.repeat(np.arange(len(lists)), lists.list.len().fill_null(0).to_numpy())
    flat = lists.drop_nulls().explode(empty_as_null=False)
    places = _places(flat, known)
    kept = places < len(known)
    rows, places = rows[kept], places[kept]
    empty = np.setdiff1d(np.arange(len(lists)), rows)
    rows = np.concatenate([rows, empty])
    order = np.argsort(rows, kind="stable")
    values = np.concatenate([places, np.full(len(empty), len(known))])[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(lists)))])
    return MultiCategorical(name, values.astype(np.int64), offsets.astype(np.int64), len(known))


def _tf_idf(column: pl.Series, fitted: TextHash) -> MultiCategorical:
    """Term frequency times inverse document frequency, rows scaled to length one, the heaviest words kept."""
    size = len(fitted.idf)
    idf = pl.Series(fitted.idf, dtype=pl.Float64)
    words = _word_buckets(column, size).group_by("row", "bucket").len("count")
    words = words.with_columns(weight=pl.col("count") * idf.gather(words["bucket"]))
    words = words.sort("row", "weight", "bucket", descending=[False, True, False])
    words = words.group_by("row", maintain_order=True).head(fitted.max_words).sort("row", "bucket")
    words = words.with_columns(weight=pl.col("weight") / pl.col("weight").pow(2).sum().sqrt().over("row"))
    empty = np.setdiff1d(np.arange(len(column)), words["row"].to_numpy())
    rows = np.concatenate([words["row"].to_numpy(), empty])
    order = np.argsort(rows, kind="stable")
    values = np.concatenate([words["bucket"].to_numpy(), np.full(len(empty), size)])[order]
    weights = np.concatenate([words["weight"].to_numpy(), np.ones(len(empty))])[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(column)))])
    return MultiCategorical(
        fitted.column, values.astype(np.int64), offsets.astype(np.int64), size, weights.astype(np.float32)
    )


def _word_buckets(column: pl.Series, buckets: int) -> pl.DataFrame:
    """One line for each word: ``row`` and ``bucket``, int64."""
    text = pl.DataFrame({"row": np.arange(len(column)), "word": _text(column)})
    words = text.drop_nulls().with_columns(pl.col("word").str.to_lowercase().str.extract_all(_WORDS))
    words = words.explode("word", empty_as_null=False)
    distinct = words["word"].unique()
    hashed = pl.Series([zlib.crc32(word.encode()) % buckets for word in distinct.to_list()], dtype=pl.Int64)
    bucket = words["word"].replace_strict(distinct, hashed, return_dtype=pl.Int64)
    return words.select(pl.col("row").cast(pl.Int64), bucket.cast(pl.Int64).alias("bucket"))  # without words: Null


def _text(column: pl.Series) -> pl.Series:
    if column.dtype.is_nested():
        raise DataError(f"feature {column.name!r} needs one value a row, got {column.dtype}; use kind: list")
    return (column.fill_nan(None) if column.dtype.is_float() else column).cast(pl.String)


def _lists(column: pl.Series) -> pl.Series:
    if not isinstance(column.dtype, pl.List):
        raise DataError(f"feature {column.name!r} needs a list in each row, got {column.dtype}; use kind: categorical")
    if column.dtype.inner.is_float():
        column = column.list.eval(pl.element().fill_nan(None))
    return column.cast(pl.List(pl.String)).list.drop_nulls()


def _numbers(frame: pl.DataFrame, name: str) -> pl.Series:
    """Float64 with nulls where missing."""
    column = _column(frame, name)
    if not column.dtype.is_numeric():
        raise DataError(f"feature {name!r} needs numbers, got {column.dtype}; use kind: categorical")
    numbers = column.cast(pl.Float64)
    _refuse_numbers(frame, name, ~numbers.is_finite(), "not finite; leave the cell empty where there is no number")
    return numbers


def _known_numbers(frame: pl.DataFrame, name: str) -> npt.NDArray[np.float64]:
    """Float64 without the missing ones, at least one."""
    known = _numbers(frame, name).drop_nulls().to_numpy()
    if not len(known):
        raise _no_value(frame[name])
    return known


def _refuse_numbers(frame: pl.DataFrame, name: str, bad: pl.Series, why: str) -> None:
    rows = bad.fill_null(value=False).arg_true()
    if len(rows):
        found = f"{_row(frame, rows[0])} has {frame[name][rows[0]]}"
        raise DataError(f"feature {name!r}: {found}, which is {why} ({len(rows):,} such rows)")


def _row(frame: pl.DataFrame, row: int) -> str:
    """A row by the id that the user knows, where there is one."""
    return f"{frame['raw_id'][int(row)]!r}" if "raw_id" in frame.columns else f"row {row}"


def _no_value(rows: pl.Series) -> DataError:
    return DataError(
        f"feature {rows.name!r} has no value in the {len(rows):,} rows that training sees; remove it from the features"
    )


def _shape(numbers: npt.NDArray[np.float64], *, log: bool) -> npt.NDArray[np.float64]:
    return np.sign(numbers) * np.log1p(np.abs(numbers)) if log else numbers
