"""A list as one categorical value: the text of its set."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from pipelines.errors import DataError

_LISTS = (pl.List, pl.Array)


def lists_as_text(frame: pl.LazyFrame, names: Iterable[str]) -> pl.LazyFrame:
    r"""``frame`` with those of the columns ``names`` that are lists as text, each the sorted set of its entries.

    Entries are joined by ``|``. Inside one ``|`` and a backslash have a backslash before them, and an empty entry is
    ``\e``, so that two sets never have the same text. A missing entry is none; a missing list is missing.

    Example:
        >>> frame = pl.LazyFrame({"tags": [["b", "a", "b"], ["a|b"], [], [""], None]})
        >>> lists_as_text(frame, ["tags"]).collect()["tags"].to_list()
        ['a|b', 'a\\|b', '', '\\e', None]

    Raises:
        DataError: An entry is a list or a struct itself.
    """
    schema = frame.collect_schema()
    return frame.with_columns(_text(name, schema[name]) for name in names if isinstance(schema.get(name), _LISTS))


def _text(name: str, kind: pl.DataType) -> pl.Expr:
    if isinstance(kind, _LISTS) and kind.inner.is_nested():
        raise DataError(
            f"column {name!r} has lists of {kind.inner}; as a field a list must have text, numbers, truth values or"
            " times: write each entry as one text"
        )
    entry = pl.element()
    escaped = entry.str.replace_all("\\", "\\\\", literal=True).str.replace_all("|", "\\|", literal=True)
    told = pl.when(entry == "").then(pl.lit("\\e")).otherwise(escaped)
    entries = pl.col(name).cast(pl.List(pl.String)).list.drop_nulls().list.unique().list.sort()
    return entries.list.eval(told).list.join("|")
