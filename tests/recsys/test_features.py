"""Features as arrays: what they accept, what they give for some rows, and the way through a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from recsys.features import Categorical, Column, Features, MultiCategorical, Numeric, ranges


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def everything() -> Features:
    return Features(
        3,
        (
            Categorical("colour", ids(0, 2, 1), 2),
            MultiCategorical("tags", ids(3, 0, 4, 4), ids(0, 2, 2, 4), 4),
            MultiCategorical("words", ids(1, 0, 1), ids(0, 1, 2, 3), 2, numbers(0.5, 1.0, 2.0)),
            Numeric("price", numbers(1.5, 0.0, -1.0), np.array([False, True, False])),
        ),
    )


def listed(column: Column) -> list[Any]:
    match column:
        case Categorical():
            return column.ids.tolist()
        case Numeric():
            return column.values.tolist()
        case MultiCategorical():
            bounds = zip(column.offsets[:-1], column.offsets[1:], strict=True)
            return [column.values[a:b].tolist() for a, b in bounds]


def test_take_gives_the_rows_in_the_order_asked_for_with_repeats() -> None:
    taken = everything().take(ids(2, 0, 2))
    assert [listed(column) for column in taken.columns] == [
        [1, 0, 1],
        [[4, 4], [3, 0], [4, 4]],
        [[1], [1], [1]],
        [-1.0, 1.5, -1.0],
    ]
    words = taken.columns[2]
    assert isinstance(words, MultiCategorical) and words.weights is not None
    assert words.weights.tolist() == [2.0, 0.5, 2.0]
    assert everything().take(ids()).num_rows == 0


def test_missing_rows() -> None:
    missing = [column.missing.tolist() for column in everything().columns]
    assert missing[0] == [False, True, False]
    assert missing[1] == [False, True, True]  # no value, and the unseen value only
    assert missing[3] == [False, True, False]


def test_arrays_and_facts_bring_the_features_back() -> None:
    features = everything()
    again = Features.from_arrays(3, features.facts(), features.arrays())
    assert again.facts() == features.facts()
    assert all(np.array_equal(again.arrays()[name], array) for name, array in features.arrays().items())
    with pytest.raises(ValueError, match="feature 'x' has the unknown kind 'Image'"):
        Features.from_arrays(3, [{"kind": "Image", "name": "x", "size": 0}], {})


def test_ranges_of_nothing() -> None:
    places, offsets = ranges(ids(), ids())
    assert places.tolist() == [] and offsets.tolist() == [0]
    places, offsets = ranges(ids(5, 2), ids(5, 4))
    assert places.tolist() == [2, 3] and offsets.tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Categorical("c", ids(0, 3, 4), 2), r"'c': ids must lie in \[0, 2\], but place 1 has 3 \(2 such"),
        (lambda: Categorical("c", ids(-1), 2), "place 0 has -1"),
        (lambda: Categorical("c", numbers(1.0), 2), r"ids must be int64 \[n\], got float32 \[1\]"),
        (lambda: MultiCategorical("m", ids(1, 9), ids(0, 2), 2), r"values must lie in \[0, 2\], but place 1 has 9"),
        (lambda: MultiCategorical("m", ids(1), ids(0, 2), 2), "rise from 0 to the number of values, 1, got 0 to 2"),
        (lambda: MultiCategorical("m", ids(1, 1), ids(0, 2, 1, 2), 2), "offsets must rise"),
        (lambda: MultiCategorical("m", ids(), ids().reshape(0, 1), 2), r"offsets must be int64 \[N \+ 1\]"),
        (lambda: MultiCategorical("m", ids(1), ids(0, 1), 2, numbers(1, 2)), r"weights must be float32 of the shape"),
        (lambda: Numeric("n", numbers(0, np.nan, np.inf), np.zeros(3, bool)), "'n': row 1 is nan; mark it missing"),
        (lambda: Numeric("n", numbers(0), np.zeros(2, bool)), r"must have one shape, got \[1\] and \[2\]"),
        (lambda: Numeric("n", ids(0), np.zeros(1, bool)), r"values must be float32 \[N\] and missing bool"),
        (lambda: Features(2, (Categorical("c", ids(0), 1),)), "feature 'c' must have 2 rows, got 1"),
        (lambda: Features(1, (Categorical("c", ids(0), 1),) * 2), "names of their own, got c, c"),
    ],
)
def test_what_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
