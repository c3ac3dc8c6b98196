from __future__ import annotations

import collections

import numpy as np
import pytest

from recsys.sequence_augmentation import Augmentation
from recsys.sequences import Batch

LENGTHS = np.array([0, 1, 2, 3, 7, 7, 30])


def ordered() -> Batch:
    """Sequence s has the items 100 s, 100 s + 1, ... at those times."""
    items = np.concatenate([100 * s + np.arange(length) for s, length in enumerate(LENGTHS)])
    return Batch(np.arange(len(LENGTHS)) + 40, items, LENGTHS, items.copy())


def split(batch: Batch) -> dict[int, np.ndarray]:
    parts = np.split(batch.items, np.cumsum(batch.lengths)[:-1])
    return dict(zip(batch.users.tolist(), parts, strict=True))


def test_a_crop_is_a_part_of_its_own_sequence_and_every_event_ends_one() -> None:
    ends = collections.Counter[int]()
    rng = np.random.default_rng(0)
    for _ in range(400):
        batch = Augmentation(crop=1.0)(ordered(), rng)
        assert batch.times is not None and np.array_equal(batch.times, batch.items)
        assert (np.diff(batch.lengths) >= 0).all() and batch.lengths.sum() == len(batch.items)
        for user, part in split(batch).items():
            whole = LENGTHS[user - 40]
            assert len(part) == whole if whole < 3 else 2 <= len(part) <= whole
            assert (np.diff(part) == 1).all() and (part // 100 == user - 40).all()
            ends.update(part[-1:].tolist())
    assert set(ends) >= {301, 302, *range(615, 630)} and {300, 600}.isdisjoint(ends)
    assert 240 < ends[302] < 360  # all three events, or the last two: 1/2 + 1/2 * 1/2


def test_a_shuffle_changes_one_part_of_the_order_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    changed = np.zeros(30, dtype=int)
    for _ in range(200):
        batch = Augmentation(shuffle=1.0)(ordered(), rng)
        assert batch.times is not None and np.array_equal(batch.times, ordered().items)
        assert np.array_equal(batch.lengths, LENGTHS) and np.array_equal(batch.users, ordered().users)
        for user, part in split(batch).items():
            assert sorted(part) == list(range(100 * (user - 40), 100 * (user - 40) + len(part)))
        moved = np.flatnonzero(split(batch)[46] != 600 + np.arange(30))
        changed[moved] += 1
    assert changed.min() > 20, "every event takes part"
    assert changed.max() < 200, "a part stays in order"


def test_only_a_share_of_the_sequences_is_varied() -> None:
    many = Batch(np.arange(4000), np.tile(np.arange(10), 4000), np.full(4000, 10))
    cropped = Augmentation(crop=0.25)(many, np.random.default_rng(1))
    assert 0.2 < (cropped.lengths < 10).mean() < 0.25  # a ninth of the crops keeps everything
    shuffled = Augmentation(shuffle=0.25)(many, np.random.default_rng(1)).items.reshape(-1, 10)
    assert 0.15 < (shuffled != np.arange(10)).any(1).mean() < 0.25
    assert Augmentation()(many, np.random.default_rng(1)) is many


def test_the_same_draws_give_the_same_batch() -> None:
    first, second = (Augmentation(0.5, 0.5)(ordered(), np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first.items, second.items) and np.array_equal(first.lengths, second.lengths)


@pytest.mark.parametrize(("settings", "name"), [({"crop": 1.5}, "crop"), ({"shuffle": -0.1}, "shuffle")])
def test_a_share_out_of_range_is_refused(settings: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is a share of the sequences and must lie in \[0, 1\], got"):
        Augmentation(**settings)
