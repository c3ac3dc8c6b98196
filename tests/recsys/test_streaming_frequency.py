"""The streaming estimate finds known frequencies, follows changes and goes on from its state."""

from __future__ import annotations

import numpy as np

from recsys.streaming_frequency import StreamingFrequency


def periodic(frequency: StreamingFrequency, first: int, steps: int) -> None:
    """Item i is in every (i + 1)-th batch."""
    for step in range(first, first + steps):
        frequency.observe(np.array([item for item in range(4) if step % (item + 1) == 0], dtype=np.int64), step)


def test_items_of_known_periods() -> None:
    frequency = StreamingFrequency(5, slots=5, rate=0.1, initial_gap=50.0, seed=0)
    periodic(frequency, 1, 600)
    found = np.exp(frequency.log_probability(np.arange(5)))
    assert np.allclose(found[:4], [1, 1 / 2, 1 / 3, 1 / 4], rtol=1e-3)
    assert np.isclose(found[4], 1 / 50)  # never seen: as it was assumed


def test_random_batches() -> None:
    rng = np.random.default_rng(0)
    p = np.array([0.5, 0.2, 0.05])
    frequency = StreamingFrequency(3, slots=3, rate=0.005, initial_gap=10.0, seed=0)
    for step in range(1, 20001):
        frequency.observe(np.flatnonzero(rng.random(3) < p), step)
    assert np.allclose(np.exp(frequency.log_probability(np.arange(3))), p, rtol=0.25)


def test_by_hand() -> None:
    frequency = StreamingFrequency(1, slots=1, rate=0.5, initial_gap=8.0, seed=0)
    frequency.observe(np.array([0]), 2)  # B = 4 + (2 - 0) / 2 = 5
    frequency.observe(np.array([0, 0]), 5)  # B = 2.5 + (5 - 2) / 2 = 4, once for the batch
    assert np.isclose(np.exp(frequency.log_probability(np.array([0])))[0], 1 / 4)


def test_more_hash_functions_come_nearer_the_truth() -> None:
    """A collision only makes an item seem more frequent, so the least of several estimates is the best."""
    errors = []
    for hashes in (1, 4):
        frequency = StreamingFrequency(200, slots=100, hashes=hashes, rate=0.2, initial_gap=20.0, seed=1)
        for step in range(1, 401):
            frequency.observe(np.flatnonzero(step % 20 == np.arange(200) % 20), step)
        found = np.exp(frequency.log_probability(np.arange(200)))
        assert (found > 0.99 / 20).all()
        errors.append(float(np.abs(found - 1 / 20).mean()))
    assert errors[1] < 0.5 * errors[0]


def test_the_state_brings_it_back() -> None:
    whole, half = (StreamingFrequency(4, slots=4, initial_gap=9.0, seed=0) for _ in range(2))
    periodic(whole, 1, 40)
    periodic(half, 1, 20)
    again = StreamingFrequency(4, slots=4, initial_gap=9.0, seed=0)
    again.load_state({name: tensor.clone() for name, tensor in half.state().items()})
    periodic(again, 21, 20)
    assert np.array_equal(again.log_probability(np.arange(4)), whole.log_probability(np.arange(4)))
