"""Means and deviations of numbers whose mean is large beside their deviation, or that are all one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.cache import Cache
from pipelines.config_ranking import EventSplit, TableData
from pipelines.errors import DataError
from pipelines.ranking import encode
from pipelines.ranking.data import prepare
from pipelines.ranking.moments import Moments


def exact(values: np.ndarray) -> tuple[float, float]:
    """Mean and deviation in whole fractions."""
    known = [Fraction(float(value)) for value in values]
    mean = sum(known) / len(known)
    return float(mean), float(sum((value - mean) ** 2 for value in known) / len(known)) ** 0.5


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (1e9, 1.0), (1.6e12, 3e4), (-1e15, 2.0), (1e-9, 1e-12)])
def test_the_deviation_is_exact_whatever_the_offset_and_the_blocks(offset: float, spread: float, block: int) -> None:
    values = offset + spread * np.random.default_rng(0).standard_normal(300)
    moments = Moments()
    for first in range(0, len(values), block):
        moments.add(values[first : first + block])
    mean, deviation, lacks = moments.scale("x")
    wanted = exact(values)
    assert not lacks
    assert abs(mean - wanted[0]) <= 1e-9 * wanted[1] + 4 * np.spacing(abs(wanted[0]))
    assert deviation == pytest.approx(wanted[1], rel=1e-9)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1.7e12 + 0.1, -1e-300, 1e300])
def test_a_constant_has_no_deviation(value: float) -> None:
    moments = Moments()
    for count in (3, 1, 100):
        moments.add(np.full(count, value))
    assert moments.scale("x") == (value, 0.0, False)
    moments.add(np.array([np.nan]))
    assert moments.scale("x") == (value, 0.0, True)


def test_what_has_no_scale_is_told() -> None:
    moments = Moments()
    moments.add(np.full(3, np.nan))
    with pytest.raises(DataError, match="'x' has no value in train; leave it out, or use log_bucket"):
        moments.scale("x")
    moments.add(np.array([1.0, 1e300]))
    with pytest.raises(DataError, match="'x' has values beyond 1e150 in train; leave it out, or use log_standardise"):
        moments.scale("x")


@pytest.mark.parametrize("kind", ["standardise", "log_standardise"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1.6e12 + 0.1])
def test_events_of_a_number_that_train_has_constant_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, value: float
) -> None:
    monkeypatch.setattr(encode, "BLOCK", 7)
    columns = {
        "user": [1, 2] * 20,
        "item": [1, 2, 3, 4] * 10,
        "label": [0, 1] * 20,
        "x": [value] * 32 + [2 * value] * 8,
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "interactions.parquet")
    config = TableData.model_validate(
        {"name": "t", "source": str(tmp_path), "fields": ["user", "item"], "numeric": {"x": kind}}
        | {"split": EventSplit(method="order", valid=0.1, test=0.1)}
    )
    data = prepare(Cache(tmp_path / "cache"), config)
    assert not any(data.events(split).dense.any() for split in ("train", "valid", "test"))
