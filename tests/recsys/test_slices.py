from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from recsys.slices import Lists, activity_groups, deciles, heat_map, popularity_groups, slice_tables


def test_activity_labels_say_the_counts() -> None:
    groups, labels = activity_groups(np.array([1, 1, 2, 3, 4, 5, 6, 7, 8, 100]))
    assert labels == ["1 train items", "2-3 train items", "4-5 train items", "6-7 train items", "8-100 train items"]
    assert groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_equal_counts_share_a_bin() -> None:
    groups, labels = activity_groups(np.array([3] * 9 + [8]))
    assert labels == ["3 train items", "8 train items"]
    assert groups.tolist() == [0] * 9 + [1]


def test_popularity_groups_split_the_interactions() -> None:
    counts = np.array([0, 30, 50, 10, 10])
    groups, labels = popularity_groups(counts)
    assert groups.tolist() == [2, 1, 0, 2, 2]
    assert len(labels) == 3


def test_deciles() -> None:
    assert deciles(np.arange(20)[::-1]).tolist() == np.repeat(np.arange(9, -1, -1), 2).tolist()
    assert deciles(np.array([5])).tolist() == [0]


def test_planted_difference_shows_where_it_was_planted() -> None:
    """The first item is always found, the second never; active users are the last ten."""
    users = 20
    relevant = csr_array(np.tile(np.array([[1, 1, 0]], dtype=np.float32), (users, 1)))
    items = np.tile(np.array([[0, 2]], dtype=np.int32), (users, 1))
    hits = np.tile([True, False], (users, 1))
    recall = np.r_[np.zeros(10), np.ones(10)]
    lists = Lists(
        items, hits, relevant, {"recall@2": recall}, (2, 1), np.r_[np.ones(10, int), np.full(10, 9)],
        np.array([9, 1, 0]),
    )  # fmt: skip
    tables = slice_tables(lists, 100, seed=0)
    assert [row["metrics"]["recall@2"] for row in tables["user_activity"]] == [0, 1]
    assert [row["users"] for row in tables["user_activity"]] == [10, 10]
    head, _, tail = tables["item_popularity"]
    assert (head["metrics"]["recall@2"], head["pairs"], head["ci95"]["recall@2"]) == (1, 20, [1, 1])
    assert (tail["metrics"]["recall@2"], tail["items"]) == (0, 2)
    cold, few, warm = tables["cold_items"]
    assert (cold["metrics"], cold["items"], cold["pairs"]) == ({}, 1, 0)
    assert (few["items"], few["pairs"], few["metrics"]["recall@2"]) == (1, 20, 0)
    assert (warm["items"], warm["pairs"], warm["metrics"]["recall@2"]) == (1, 20, 1)
    shares, counts = heat_map(lists)
    assert counts.sum() == 40
    assert counts.sum(axis=1).tolist() == [4] * 10
    assert np.nansum(shares * counts) == 20


def test_items_are_sought_in_lists_of_every_length() -> None:
    """Two users want both items; the second item is one place too low for the short lists."""
    relevant = csr_array(np.array([[1, 1, 0], [1, 1, 0]], dtype=np.float32))
    items = np.array([[0, 2, 1], [0, 2, 1]], dtype=np.int32)
    hits = np.array([[True, False, True]] * 2)
    lists = Lists(items, hits, relevant, {"recall@2": np.full(2, 0.5)}, (2, 3), np.array([1, 1]), np.array([8, 1, 0]))
    tables = slice_tables(lists, 100, seed=0)
    head, _, tail = tables["item_popularity"]
    assert head["metrics"] == {"recall@2": 1, "recall@3": 1}
    assert tail["metrics"] == {"recall@2": 0, "recall@3": 1}
    assert tail["ci95"] == {"recall@2": [0, 0], "recall@3": [1, 1]}
    shares, counts = heat_map(lists)
    assert np.nansum(shares * counts) == 2, "the heat map has the first length"
