from __future__ import annotations

import numpy as np
import pytest

from recsys.sequences import Sequences, epoch_batches


def int64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def three_users() -> Sequences:
    """User 0: 5, 7, 5, 2; user 1: nothing; user 2: 9."""
    return Sequences.of_events(int64(2, 0, 0, 0, 0), int64(9, 5, 7, 5, 2), 3, int64(50, 10, 20, 20, 30))


def test_events_are_grouped_by_user_in_the_order_given() -> None:
    found = three_users()
    assert found.items.tolist() == [5, 7, 5, 2, 9] and found.items.dtype == np.int32
    assert found.offsets.tolist() == [0, 4, 4, 5] and found.offsets.dtype == np.int64
    assert found.times is not None and found.times.tolist() == [10, 20, 20, 30, 50]
    assert found.num_users == 3 and found.lengths.tolist() == [4, 0, 1]


def test_the_matrix_is_binary_and_sorted_and_leaves_the_order_alone() -> None:
    found = three_users()
    matrix = found.matrix(10)
    assert matrix.shape == (3, 10) and matrix.indices.tolist() == [2, 5, 7, 9] and (matrix.data == 1).all()
    assert found.items.tolist() == [5, 7, 5, 2, 9] and found.offsets.tolist() == [0, 4, 4, 5]


def test_the_matrix_of_repeats_leaves_the_sequences_alone() -> None:
    repeats = Sequences.of_events(np.array([0, 0, 1]), np.array([2, 2, 1]), 2)
    assert repeats.matrix(3).toarray().tolist() == [[0, 0, 1], [0, 1, 0]]
    assert repeats.offsets.tolist() == [0, 2, 3]


def test_a_batch_has_the_events_before_a_place() -> None:
    sequences = Sequences.of_events(np.array([0, 0, 0, 1, 1]), np.array([5, 6, 7, 8, 9]), 2)
    batch = sequences.before(np.array([1, 0, 0]), np.array([4, 3, 0]), 2)
    assert batch.items.tolist() == [8, 6, 7]
    assert batch.lengths.tolist() == [1, 2, 0]


def test_a_batch_has_the_last_events_of_users_in_any_order() -> None:
    batch = three_users().last(int64(2, 1, 0), 3)
    assert batch.items.tolist() == [9, 7, 5, 2] and batch.lengths.tolist() == [1, 0, 3]
    assert batch.times is not None and batch.times.tolist() == [50, 20, 20, 30]
    assert batch.from_end.tolist() == [0, 2, 1, 0]


def test_every_prefix_predicts_the_next_event_and_users_with_one_event_predict_nothing() -> None:
    inputs, targets = three_users().last(int64(2, 1, 0), 50).shifted()
    assert inputs.users.tolist() == [0] and inputs.lengths.tolist() == [3]
    assert inputs.items.tolist() == [5, 7, 5] and targets.tolist() == [7, 5, 2]
    assert inputs.times is not None and inputs.times.tolist() == [10, 20, 20]


def test_an_epoch_has_every_user_once_in_batches_sorted_by_length() -> None:
    lengths = np.random.default_rng(0).integers(2, 50, 1000)
    users = np.arange(0, 1000, 3)
    batches = list(epoch_batches(users, lengths, 64, seed=0, phase="select", epoch=1))
    assert sorted(np.concatenate(batches)) == users.tolist()
    assert all((np.diff(lengths[batch]) >= 0).all() and 50 <= len(batch) <= 64 for batch in batches)
    other = list(epoch_batches(users, lengths, 64, seed=0, phase="select", epoch=2))
    assert any(set(a) != set(b) for a, b in zip(batches, other, strict=True))
    resumed = list(epoch_batches(users, lengths, 64, seed=0, phase="select", epoch=1, first=4))
    assert all(np.array_equal(a, b) for a, b in zip(batches[4:], resumed, strict=True))


@pytest.mark.parametrize(
    ("items", "offsets", "times", "message"),
    [
        (np.zeros(2), int64(0, 2), None, r"items must be int32 \[n\], got float64"),
        (np.zeros(2, np.int32), np.zeros(2, np.int32), None, r"offsets must be int64 \[num_users \+ 1\], got int32"),
        (np.zeros(2, np.int32), int64(0, 3), None, "must rise from 0 to the number of events, 2, got 0 to 3"),
        (np.zeros(2, np.int32), int64(0, 2, 1, 2), None, "must rise from 0"),
        (np.array([3, -1], np.int32), int64(0, 2), None, "must not be negative, but event 1 has -1"),
        (np.zeros(2, np.int32), int64(0, 2), int64(1), r"times must be int64 \[2\], got int64 \[1\]"),
    ],
)
def test_malformed_sequences_are_refused(
    items: np.ndarray, offsets: np.ndarray, times: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Sequences(items, offsets, times)


def test_a_catalogue_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"items must lie in \[0, 9\), got 9"):
        three_users().matrix(9)
