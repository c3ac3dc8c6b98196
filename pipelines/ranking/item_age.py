"""How old the item of an event is, for slices of the evaluation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.errors import DataError
from pipelines.ranking.numbers import finite_numbers

_SECONDS_PER_DAY = 86_400


def item_ages(
    frame: pl.LazyFrame, item: str, time: str, splits: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.float64], str]:
    """Time of each event since the first train event of its item.

    Args:
        frame: of the events.
        item: column of the items.
        time: column of numbers, dates or times.
        splits: uint8 [E], 0 for train.

    Returns:
        Float64 [E], NaN where train lacks the item or a time is missing, and the unit: "days" for dates and times, else
        the column's name.

    Raises:
        DataError: A value is no number, or infinite.
    """
    events = frame.select(pl.col(item).alias("item"), pl.col(time).alias("time")).collect()
    numbers, unit = _times(events["time"].alias(time))
    events = events.with_columns(numbers.alias("time"))
    train = events.filter(pl.Series(splits == 0))
    first = train.group_by("item").agg(pl.col("time").min().alias("first"))
    ages = events.join(first, on="item", how="left", nulls_equal=True, maintain_order="left")
    return ages.select(pl.col("time") - pl.col("first")).to_series().fill_null(np.nan).to_numpy(), unit


def _times(column: pl.Series) -> tuple[pl.Series, str]:
    kind = column.dtype
    if isinstance(kind, pl.Date | pl.Datetime):
        return column.cast(pl.Datetime("us")).dt.epoch("s") / _SECONDS_PER_DAY, "days"
    told = "dataset.time needs numbers, dates or times"
    if not (kind.is_numeric() or kind == pl.String):
        raise DataError(f"{told}, but the column {column.name!r} has {kind}")
    try:
        return finite_numbers(column), column.name
    except DataError as error:
        raise DataError(f"{told}: {error}") from None
