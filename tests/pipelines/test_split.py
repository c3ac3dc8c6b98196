import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import config
from pipelines.errors import DataError
from pipelines.ingest.events import Events, sort_canonically
from pipelines.split import TEST, TRAIN, VALID, assign_splits


def make(user: list[int], item: list[int], **columns: list[int]) -> Events:
    ids = [pl.Series("raw_id", [str(i) for i in range(max(side) + 1)]) for side in (user, item)]
    arrays = {
        name: np.array(values, dtype=np.uint8 if name == "split" else np.int64) for name, values in columns.items()
    }
    events = Events(np.array(user, dtype=np.int32), np.array(item, dtype=np.int32), arrays, *ids)
    sort_canonically(events)
    return events


def grid(users: int, items: int, **columns: list[int]) -> Events:
    return make(np.repeat(np.arange(users), items).tolist(), np.tile(np.arange(items), users).tolist(), **columns)


def split(events: Events, **settings: object) -> tuple[list[int], dict[str, object]]:
    codes, facts = assign_splits(events, config.Split(**settings))  # type: ignore[arg-type]
    return codes.tolist(), facts


def test_global_time_cuts_by_shares() -> None:
    codes, facts = split(grid(1, 10, timestamp=list(range(100, 110))), method="global_time", valid=0.1, test=0.2)
    assert codes == [0] * 7 + [1] + [2] * 2
    assert (facts["train_until"], facts["valid_until"]) == (106, 107)


def test_ties_at_a_cut_go_to_the_earlier_side() -> None:
    times = [1, 2, 3, 4, 5, 6, 7, 7, 7, 8, 8, 9]
    codes, _ = split(grid(1, 12, timestamp=times), method="global_time", valid=0.25, test=0.2)
    assert codes == [0] * 9 + [1] * 2 + [2]


def test_leave_last_n_follows_time_and_counts_short_users() -> None:
    events = make([0, 0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 0, 1, 0], timestamp=[40, 10, 30, 20, 5, 6, 1])
    codes, facts = split(events, method="leave_last_n", n=1)
    assert codes == [TEST, TRAIN, VALID, TRAIN, TRAIN, TEST, TRAIN]
    assert facts["users_with_too_few"] == 2
    assert (facts["users_without_valid"], facts["users_without_test"]) == (2, 1)


def test_events_that_tie_at_a_cut_are_drawn_whatever_their_items() -> None:
    times = [1, 2, 3, 3, 3, 3, 3, 3] * 199 + list(range(8))
    codes, facts = split(grid(200, 8, timestamp=times), method="leave_last_n", n=1)
    table = np.array(codes).reshape(200, 8)
    assert table[-1].tolist() == [TRAIN] * 6 + [VALID, TEST]
    assert facts["users_with_tied_cut"] == 199
    for code in (VALID, TEST):
        held_out = (table[:-1] == code).sum(axis=0)
        assert held_out[:2].tolist() == [0, 0]
        assert held_out[2:].sum() == 199
        assert held_out[2:].min() > 15
    again, _ = split(grid(200, 8, timestamp=times), method="leave_last_n", n=1)
    other, _ = split(grid(200, 8, timestamp=times), method="leave_last_n", n=1, seed=1)
    assert codes == again != other


def test_ties_away_from_the_cuts_change_nothing() -> None:
    codes, facts = split(grid(1, 6, position=[0, 0, 0, 1, 2, 2]), method="user_ratio", valid=0.16, test=0.34)
    assert codes == [TRAIN, TRAIN, TRAIN, VALID, TEST, TEST]
    assert facts["users_with_tied_cut"] == 0


def test_events_of_one_time_are_cut_by_position_and_drawn_only_where_that_ties_too() -> None:
    positions = [3, 2, 1, 0] * 10 + [1, 1, 1, 0]
    codes, facts = split(grid(11, 4, timestamp=[7] * 44, position=positions), method="leave_last_n", n=1)
    table = np.array(codes).reshape(11, 4)
    assert (table[:10] == [TEST, VALID, TRAIN, TRAIN]).all()
    assert table[10, 3] == TRAIN
    assert (facts["order"], facts["users_with_tied_cut"]) == ("timestamp, position", 1)


def test_given_carves_validation_from_train_only() -> None:
    given_split = ([0] * 10 + [2] * 5) * 20
    codes, facts = split(grid(20, 15, split=given_split), method="given", valid=0.2)
    table = np.array(codes).reshape(20, 15)
    assert (table[:, 10:] == TEST).all()
    assert ((table[:, :10] == VALID).sum(axis=1) == 2).all()
    assert (facts["valid_from"], facts["order"]) == ("train", "random")


def test_given_validation_of_the_source_is_kept() -> None:
    codes, facts = split(grid(1, 3, split=[0, 1, 2]))
    assert codes == [0, 1, 2]
    assert (facts["method"], facts["valid_from"]) == ("given", "source")


@pytest.mark.parametrize("method", ["user_ratio", "random_ratio"])
def test_ratios_are_met_seeded_and_repeatable(method: str) -> None:
    events = grid(30, 50)
    first, _ = split(events, method=method, valid=0.1, test=0.2, seed=1)
    again, _ = split(events, method=method, valid=0.1, test=0.2, seed=1)
    other, _ = split(events, method=method, valid=0.1, test=0.2, seed=2)
    assert np.bincount(first).tolist() == [1050, 150, 300]
    assert first == again != other


def test_user_ratio_takes_the_latest_where_there_are_times() -> None:
    codes, _ = split(grid(1, 10, timestamp=list(range(10))[::-1]), method="user_ratio", valid=0.1, test=0.2)
    assert codes == [2, 2, 1] + [0] * 7


@pytest.mark.parametrize(
    ("columns", "expected"),
    [({"split": [0, 1, 2]}, "given"), ({"timestamp": [1, 2, 3]}, "global_time"), ({}, "user_ratio")],
)
def test_auto_prefers_given_then_time(columns: dict[str, list[int]], expected: str) -> None:
    _, facts = split(grid(1, 3, **columns), valid=0.34, test=0.34)
    assert facts["method"] == expected


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({}, {"method": "given"}, "there is no split column; set `columns.split`"),
        ({}, {"method": "global_time"}, "global_time needs a timestamp column"),
        ({}, {"method": "leave_last_n"}, "leave_last_n needs a timestamp or position column"),
        (
            {"timestamp": [5, 5, 5]},
            {"method": "global_time"},
            "the valid split is empty: method global_time on 3 interactions",
        ),
        (
            {"timestamp": [1, 2, 3]},
            {"method": "global_time", "valid": 0.5, "test": 0.5},
            "must be below 1, got 0.5 [+] 0.5",
        ),
        ({}, {"method": "user_ratio", "valid": 0.01}, "the valid split is empty: method user_ratio"),
        ({"split": [0, 0, 0]}, {"method": "given", "valid": 0.4}, "the test split is empty: method given"),
    ],
)
def test_impossible_splits_say_what_to_do(
    columns: dict[str, list[int]], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        split(grid(1, 3, **columns), **settings)


@given(
    data=st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 12), st.integers(0, 40)),
        min_size=12,
        max_size=150,
        unique_by=lambda t: t[:2],
    ),
    method=st.sampled_from(["global_time", "leave_last_n", "user_ratio", "random_ratio"]),
    order=st.randoms(use_true_random=False),
)
def test_a_split_partitions_and_ignores_row_order(data: list[tuple[int, int, int]], method: str, order: object) -> None:
    def pieces(rows: list[tuple[int, int, int]]) -> dict[tuple[int, int], int] | str:
        events = make([r[0] for r in rows], [r[1] for r in rows], timestamp=[r[2] for r in rows])
        try:
            codes, _ = split(events, method=method)
        except DataError as error:
            return str(error)
        return dict(zip(zip(events.user.tolist(), events.item.tolist(), strict=True), codes, strict=True))

    shuffled = list(data)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    first = pieces(data)
    assert first == pieces(shuffled)
    if isinstance(first, dict):
        assert set(first) == {row[:2] for row in data}
        assert set(first.values()) == {TRAIN, VALID, TEST}
        times = {row[:2]: row[2] for row in data}
        if method == "global_time":
            for early, late in ((TRAIN, VALID), (VALID, TEST)):
                assert max(times[p] for p, c in first.items() if c == early) < min(
                    times[p] for p, c in first.items() if c == late
                )
        elif method != "random_ratio":
            for user in {pair[0] for pair in first}:
                assert TRAIN in {code for pair, code in first.items() if pair[0] == user}
