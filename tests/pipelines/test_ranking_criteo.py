"""Criteo's text and Parquet: what cannot be used is told with file, line or row, column and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.cache import Cache
from pipelines.config_ranking import CriteoData, EventSplit
from pipelines.errors import DataError
from pipelines.ranking.data import RankingData, prepare

ROWS = 20


def criteo(tmp_path: Path, **changes: Any) -> RankingData:
    """20 good lines, of which the fourth is changed: columns by name, or ``cut`` of them kept."""
    names = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    lines, cut = [], changes.pop("cut", 40)
    for place in range(ROWS):
        cells = dict.fromkeys(names, "7") | {"label": str(place % 2)}
        values = list((cells | changes if place == 3 else cells).values())
        lines.append("\t".join(values[:cut] if place == 3 else values))
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    return prepare(Cache(tmp_path / "cache"), CriteoData(name="c", source=str(tmp_path), min_count=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({"I1": value}, rf"'I1' must have finite numbers, but line 4 of .*train\.txt has '{value}'; correct it, or")
            for value in ("many", "inf", "-Infinity", "1e400", "1,5")
        ),
        (
            {"label": "500"},
            r"0 or 1, but line 4 of .*train\.txt has '500' in column 'label'; write 1 for a click and 0 for none",
        ),
        ({"C26": "7\t7"}, r"train\.txt, line 4: required are 40 columns separated by tabs, got 41: '1"),
        *(({"cut": cut}, rf"train\.txt, line 4: required are 40 columns .*, got {cut}: '1") for cut in (3, 20, 39)),
        ({"cut": 0}, "line 4: required are 40 columns separated by tabs, got 1: ''; correct the line, or fetch"),
        ({"label": ""}, r"labels must be 0 or 1, but line 4 of .*train\.txt has None"),
    ],
)
def test_a_mistake_in_criteo_text_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        criteo(tmp_path, **changes)


def test_a_missing_number_of_criteo_may_be_nan(tmp_path: Path) -> None:
    empty, nan, seven = (criteo(tmp_path, I1=value) for value in ("", "NaN", "7"))
    assert empty.hash == nan.hash != seven.hash
    frames = [{3: {"I1": None}}, {3: {"I1": float("nan")}}]
    first, second = (prepare(Cache(tmp_path / "cache"), criteo_days(tmp_path, changes)).hash for changes in frames)
    assert first == second


@pytest.mark.parametrize(("day", "line"), [(0, 1), (0, 4), (1, 1), (2, 4)])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_criteo_label_is_told_by_file_and_line(tmp_path: Path, day: int, line: int, end: str) -> None:
    """The last line of a file may lack its end; the files after it begin with line 1."""
    for place in range(3):
        labels = [str(row % 2) for row in range(4 + place)]
        if place == day:
            labels[line - 1] = "2"
        (tmp_path / f"day_{place}.txt").write_text(end.join("\t".join([label] + ["7"] * 39) for label in labels))
    with pytest.raises(
        DataError, match=rf"must be 0 or 1, but line {line} of .*/day_{day}\.txt has '2' in column 'label'; write 1"
    ):
        config = CriteoData(name="c", source=str(tmp_path), events="day_*.txt", min_count=1)
        prepare(Cache(tmp_path / "cache"), config)


def criteo_days(tmp_path: Path, changes: dict[int, dict[str, Any]]) -> CriteoData:
    """Parquet files of 4, 0, 5 and 6 good rows; ``changes`` has other cells, by the number of a row over all files."""
    names = [*(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    rows = [dict.fromkeys(names, 7) | {"label": row % 2} | changes.get(row, {}) for row in range(15)]
    for day, (start, end) in enumerate([(0, 4), (4, 4), (4, 9), (9, 15)]):
        pl.DataFrame(rows, strict=False, infer_schema_length=None)[start:end].write_parquet(
            tmp_path / f"day_{day}.parquet"
        )
    return CriteoData(name="c", source=str(tmp_path), events="day_*.parquet", min_count=1)


@pytest.mark.parametrize(("place", "row", "day"), [(0, 1, 0), (3, 4, 0), (4, 1, 2), (8, 5, 2), (9, 1, 3), (14, 6, 3)])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("label", 2, "labels must be 0 or 1, but {place} has 2 in column 'label'; write 1 for a click"),
        ("label", None, "labels must be 0 or 1, but {place} has None in column 'label'; write 1"),
        ("I13", float("inf"), "column 'I13' must have finite numbers, but {place} has inf; correct it, or leave"),
        ("I2", "many", "column 'I2' must have finite numbers, but {place} has 'many'; correct it, or leave"),
    ],
)
def test_a_mistake_in_criteo_parquet_is_told_by_file_and_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: int,
    row: int,
    day: int,
    column: str,
    value: Any,
    message: str,
) -> None:
    monkeypatch.setattr("pipelines.ranking.encode.BLOCK", 3)
    config = criteo_days(tmp_path, {place: {column: value}})
    told = message.format(place=rf"row {row} \(counted from 1\) of .*/day_{day}\.parquet")
    with pytest.raises(DataError, match=told):
        prepare(Cache(tmp_path / "cache"), config)


def test_a_criteo_number_too_far_from_train_is_told_by_file_and_row(tmp_path: Path) -> None:
    changes: dict[int, dict[str, Any]] = {row: {"I1": float(row)} for row in range(12)} | {13: {"I1": 1e12}}
    settings = {"numeric": "standardise", "split": EventSplit(method="order", valid=0.2, test=0.2)}
    with pytest.raises(DataError, match=r"'I1' is .* in row 5 \(counted from 1\) of .*/day_3\.parquet; the most is"):
        prepare(Cache(tmp_path / "cache"), criteo_days(tmp_path, changes).model_copy(update=settings))


def test_criteo_with_commas_is_told_at_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(",".join(["1"] * 40) + "\n")
    with pytest.raises(
        DataError, match=r"train\.txt, line 1: required are 40 columns separated by tabs, got 1: '1,1,1"
    ):
        prepare(Cache(tmp_path / "cache"), CriteoData(name="c", source=str(tmp_path)))
