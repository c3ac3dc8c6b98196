"""How old the item of an event is, for slices of the evaluation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.errors import DataError

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
        DataError: The column has text.
    """
    kind = frame.collect_schema()[time]
    if isinstance(kind, pl.Date | pl.Datetime):
        number, unit = pl.col(time).cast(pl.Datetime("us")).dt.epoch("s") / _SECONDS_PER_DAY, "days"
    elif kind.is_numeric():
        number, unit = pl.col(time).cast(pl.Float64), time
    else:
        raise DataError(f"dataset.time needs numbers, dates or times, but the column {time!r} has {kind}")
    events = frame.select(pl.col(item).alias("item"), number.alias("time")).collect()
    train = events.filter(pl.Series(splits == 0))
    first = train.group_by("item").agg(pl.col("time").min().alias("first"))
    ages = events.join(first, on="item", how="left", nulls_equal=True, maintain_order="left")
    return ages.select(pl.col("time") - pl.col("first")).to_series().fill_null(np.nan).to_numpy(), unit
