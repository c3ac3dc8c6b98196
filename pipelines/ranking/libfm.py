"""Text of ``label index:1 index:1 ...``, the layout of libFM and NFM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from pipelines.errors import DataError
from pipelines.ranking.numbers import as_numbers


def read_libfm(path: Path, fields: Sequence[str], label: str) -> pl.DataFrame:
    """The events of a file: ``label`` 0 or 1, where -1 is 0, and the index in each place; blank lines are skipped.

    Raises:
        DataError: The file has no event, a line is of another layout or no UTF-8, or a label is neither 0, 1 nor -1.
    """
    numbers, labels, rows = [], [], []
    for number, line in _lines(path):
        first, *tokens = line.split()
        if len(tokens) != len(fields) or not all(token.endswith(":1") for token in tokens):
            raise DataError(
                f"{path}, line {number}: required are a label and {len(fields)} features `index:1`, one for each of"
                f" the fields {', '.join(fields)}, got {line.strip()[:80]!r}"
            )
        numbers.append(number)
        labels.append("0" if first == "-1" else first)
        rows.append([token[:-2] for token in tokens])
    if not rows:
        raise DataError(
            f"{path} has no events; required is a line `label index:1 ...` of each, give a file that has some"
        )
    values = {label: labels} | {name: [row[place] for row in rows] for place, name in enumerate(fields)}
    frame = pl.DataFrame(values, schema={label: pl.String} | dict.fromkeys(fields, pl.String))
    bad = (~as_numbers(frame[label]).is_in([0.0, 1.0])).fill_null(value=True).arg_true()
    if len(bad):
        raise DataError(
            f"{path}, line {numbers[bad[0]]}: labels must be 0 or 1 (or -1, which is 0), got {labels[bad[0]]!r};"
            " write 1 for a positive and 0 for others, libfm has no at_least"
        )
    return frame


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, and their numbers from 1."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not UTF-8 (byte {line[error.start]:#04x} at column {error.start + 1});"
                    " required is text of `label index:1 ...`, write the file as UTF-8, or give another"
                ) from None
            if text.strip():
                yield number, text
