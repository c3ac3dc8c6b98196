"""Histories: in order, cut to length, and never with the item that is to be predicted."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.features import MultiCategorical
from recsys.histories import Context, Histories


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def lists(column: MultiCategorical) -> list[list[int]]:
    bounds = zip(column.offsets[:-1], column.offsets[1:], strict=True)
    return [column.values[a:b].tolist() for a, b in bounds]


HISTORIES = Histories.of_events(ids(2, 0, 2, 0, 2, 2), ids(5, 1, 3, 0, 5, 4), num_users=4, num_items=6)


def test_events_are_grouped_by_user_in_their_order() -> None:
    assert HISTORIES.items.tolist() == [1, 0, 5, 3, 5, 4]
    assert HISTORIES.offsets.tolist() == [0, 2, 2, 6, 6]
    assert HISTORIES.owners.tolist() == [0, 0, 2, 2, 2, 2]
    assert HISTORIES.matrix().toarray().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [0] * 6,
        [0, 0, 0, 1, 1, 1],
        [0] * 6,
    ]


def test_the_latest_items_serve() -> None:
    assert lists(HISTORIES.latest(ids(2, 1, 0), 2)) == [[5, 4], [], [1, 0]]
    assert lists(HISTORIES.latest(ids(2), 9)) == [[5, 3, 5, 4]]


@pytest.mark.parametrize(
    ("context", "length", "expected"),
    [
        ("before", 9, [[], [1], [], [5], [3], [5, 3, 5]]),  # the second 5 does not see the first one
        ("before", 1, [[], [1], [], [5], [3], [5]]),
        ("others", 9, [[0], [1], [3, 4], [5, 5, 4], [3, 4], [5, 3, 5]]),
        ("others", 1, [[0], [1], [4], [4], [4], [5]]),
    ],
)
def test_what_an_event_is_predicted_from(context: Context, length: int, expected: list[list[int]]) -> None:
    places = np.arange(6, dtype=np.int64)
    assert lists(HISTORIES.around(places, HISTORIES.owners, length, context)) == expected


@pytest.mark.parametrize("context", ["before", "others"])
def test_a_target_is_never_in_its_own_history(context: Context) -> None:
    rng = np.random.default_rng(0)
    histories = Histories.of_events(rng.integers(0, 20, 500), rng.integers(0, 30, 500), num_users=20, num_items=30)
    places = rng.permutation(500)
    found = lists(histories.around(places, histories.owners[places], 7, context))
    assert all(item not in history for item, history in zip(histories.items[places], found, strict=True))
    assert max(map(len, found)) <= 7
    for place, history in zip(places, found, strict=True):
        user = histories.owners[place]
        own = histories.items[histories.offsets[user] : histories.offsets[user + 1]]
        before = own[: place - histories.offsets[user]] if context == "before" else own
        kept = [item for item in before if item != histories.items[place]]
        assert history == kept[len(kept) - len(history) :]  # the most recent ones


def test_no_events_at_all() -> None:
    empty = Histories.of_events(ids(), ids(), num_users=2, num_items=3)
    assert lists(empty.latest(ids(0, 1), 5)) == [[], []]
    assert lists(empty.around(ids(), ids(), 5, "others")) == []
    assert empty.matrix().nnz == 0
