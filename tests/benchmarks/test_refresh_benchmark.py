"""The periods of the refresh benchmark, and its four models on planted groups."""

from __future__ import annotations

import numpy as np

from benchmarks.refresh import compare, split


def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """200 users of four groups have each of the group's 25 items but one, in an order of their own."""
    draws = np.random.default_rng(0)
    users, items, order = [], [], []
    for user in range(200):
        own = np.arange(user % 4, 100, 4)
        users.append(np.full(24, user))
        items.append(draws.permutation(own)[:24])
        order.append(np.arange(24))
    mixed = draws.permutation(200 * 24)
    return np.concatenate(users)[mixed], np.concatenate(items)[mixed], np.concatenate(order)[mixed]


def test_periods_follow_each_users_order_and_old_ids_come_first() -> None:
    many = np.repeat(np.arange(10), 20)
    periods = split(many, np.tile(np.arange(20), 10), np.tile(np.arange(20), 10))
    assert periods.old.shape == (9, 12) and periods.known.shape == (10, 20)
    assert (periods.old.toarray() == 1).all()
    assert periods.known[9].nnz == 18 and (periods.future.toarray().sum(axis=1) == 2).all()
    assert periods.known.multiply(periods.future).nnz == 0


def test_every_way_recommends_a_users_own_group() -> None:
    found = compare(split(*planted()), epochs=10)
    assert set(found) == {"joined", "carried", "trained_on", "scratch"}
    assert min(found.values()) >= 0.9
