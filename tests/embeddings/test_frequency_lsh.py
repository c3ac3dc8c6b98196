"""What the frequency and LSH compressors do with known degrees and neighbours."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from embeddings.compress import compress
from embeddings.frequency import reserve_rows
from embeddings.lsh import hyperplane_buckets


def test_the_most_frequent_half_of_the_rows_is_owned() -> None:
    own, left = reserve_rows(np.array([1, 9, 0, 5, 9, 5]), rows=7)
    assert own.tolist() == [-1, 0, -1, 2, 1, -1]
    assert left == 4


def test_the_head_owns_all_rows_but_one() -> None:
    own, left = reserve_rows(np.array([1, 9, 0, 5, 9, 5]), rows=4, shared=1)
    assert own.tolist() == [-1, 0, -1, 2, 1, -1]
    assert left == 1
    graph = sparse.csr_array(np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]], np.float32))
    users, items = compress("head", graph, 2, 3, narrow=(0.0, 0.25))
    assert users.rows[:, 0].tolist() == [0, 1, 1, 2]
    assert items.rows[:, 0].tolist() == [1, 1, 2, 0]
    assert items.narrow is not None
    assert items.narrow.rows == 2 and items.rows[:, 1].tolist()[:2] == [3, 4]


def test_ids_without_interactions_own_no_row() -> None:
    own, left = reserve_rows(np.array([0, 2, 0]), rows=6)
    assert own.tolist() == [-1, 0, -1]
    assert left == 3


def test_frequency_maps_the_rest_to_the_other_half() -> None:
    degrees = np.arange(1, 21)[::-1]
    graph = sparse.csr_array((np.arange(20)[None, :] < degrees[:, None]).astype(np.float32))
    users, _ = compress("frequency", graph, 10, 10)
    assert users.rows[:5, 0].tolist() == [0, 1, 2, 3, 4]
    assert users.rows[5:, 0].tolist() == [5 + i % 5 for i in range(5, 20)]
    doubled, _ = compress("double_frequency", graph, 10, 10)
    assert doubled.rows[:5, 0].tolist() == [0, 1, 2, 3, 4]
    assert doubled.lookup_weights(np.arange(5)).tolist() == [[1.0, 0.0]] * 5
    assert ((doubled.rows[5:] >= 5) & (doubled.rows[5:] < 10)).all()
    assert doubled.lookup_weights(np.arange(5, 20)).tolist() == [[1.0, 1.0]] * 15


def test_equal_neighbours_share_a_bucket_and_near_ones_more_often_than_far_ones() -> None:
    generator = np.random.default_rng(0)
    base = generator.random((200, 300)) < 0.1
    near = base ^ (generator.random(base.shape) < 0.002)
    graph = sparse.csr_array(np.concatenate([base, base, near]).astype(np.float32))
    buckets = hyperplane_buckets(graph, 60, np.random.Generator(np.random.Philox(1)))
    same, close = buckets[:200] == buckets[200:400], buckets[:200] == buckets[400:]
    far = buckets[:200] == np.roll(buckets[:200], 1)
    assert same.all()
    assert close.mean() > 3 * far.mean() + 0.1


def test_codes_are_packed_evenly_into_all_rows() -> None:
    generator = np.random.default_rng(0)
    graph = sparse.csr_array((generator.random((3000, 100)) < 0.2).astype(np.float32))
    for rows in (1, 2, 7, 50):
        buckets = hyperplane_buckets(graph, rows, np.random.Generator(np.random.Philox(2)))
        assert len(np.unique(buckets)) == rows
        assert buckets.max() == rows - 1
