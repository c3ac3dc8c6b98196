"""libFM text: blank lines, and lines that cannot be used, each told with its file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cache import Cache
from pipelines.config_ranking import LibfmData
from pipelines.errors import DataError
from pipelines.ranking.data import RankingData, prepare

GOOD = b"1 0:1 5:1\n-1 1:1 6:1\n"


def libfm(tmp_path: Path, train: bytes, valid: bytes = GOOD) -> RankingData:
    for name, content in {"train": train, "valid": valid, "test": GOOD}.items():
        (tmp_path / f"{name}.libfm").write_bytes(content)
    return prepare(Cache(tmp_path / "cache"), LibfmData(name="l", source=str(tmp_path), fields=("user", "item")))


@pytest.mark.parametrize("content", [GOOD + b"\n", b"\n \n" + GOOD, GOOD.replace(b"\n", b"\r\n\r\n"), GOOD[:-1]])
def test_blank_lines_are_no_events(tmp_path: Path, content: bytes) -> None:
    data = libfm(tmp_path, content)
    assert data.facts["counts"] == {"train": 2, "valid": 2, "test": 2}
    assert data.events("train").labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"valid\.libfm has no events; required is a line `label index:1 ...` of each"),
        (b"\n\n", r"valid\.libfm has no events"),
        (
            GOOD + b"\n2 0:1 5:1\n",
            r"valid\.libfm, line 4: labels must be 0 or 1 \(or -1, which is 0\), got '2'; write 1",
        ),
        (b"yes 0:1 5:1\n", r"valid\.libfm, line 1: labels must be 0 or 1 .*, got 'yes'"),
        (GOOD + b"1 caf\xe9:1 5:1\n", r"valid\.libfm, line 3: not UTF-8 \(byte 0xe9 at column 6\); required is text"),
        (GOOD + b"1\n", r"valid\.libfm, line 3: required are a label and 2 features `index:1`.* got '1'"),
    ],
)
def test_a_mistake_is_told_with_its_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        libfm(tmp_path, GOOD, content)
    assert "dataset.label" not in str(raised.value)


def test_a_split_of_one_label_names_what_libfm_has(tmp_path: Path) -> None:
    data = libfm(tmp_path, GOOD, b"1 0:1 5:1\n")
    with pytest.raises(DataError, match=r"needs 1 of each in valid, give other files as dataset\.train"):
        data.require_both_classes()
