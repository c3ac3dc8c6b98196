"""Figures of the report against maps small enough to count by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import sparse

from embeddings.clustering import co_cluster
from embeddings.compress import compress
from embeddings.describe import describe, stability, worst_buckets
from embeddings.graph import degrees
from embeddings.id_map import IdMap
from embeddings.names import COMPRESSORS


def test_single_rows_counted_by_hand() -> None:
    id_map = IdMap(np.array([[0], [0], [1], [0], [4], [3]]), 5, 4, "modulo")
    facts = describe(id_map, np.array([5, 1, 2, 1, 0, 1]))
    assert (facts["ids"], facts["seen_ids"], facts["rows"], facts["rows_used"]) == (6, 5, 5, 3)
    assert facts["bucket"] == {"min": 0, "median": 1.0, "mean": 1.25, "max": 3, "gini": pytest.approx(0.45)}
    assert facts["histogram"] == {"edges": [0, 1, 2, 4], "counts": [1, 2, 1]}
    assert (facts["shared_ids"], facts["colliding_ids"], facts["distinct_embeddings"]) == (3, 3, 3)
    assert facts["shared_interactions"] == pytest.approx(7 / 10)
    assert facts["expected_shared_ids"] == pytest.approx(5 * (1 - 0.75**4))
    assert worst_buckets(id_map, 2) == [{"row": 0, "size": 3, "ids": [0, 1, 3]}, {"row": 1, "size": 1, "ids": [2]}]


def test_summed_rows_collide_only_when_all_are_shared_in_any_order() -> None:
    id_map = IdMap(np.array([[0, 1], [1, 0], [0, 2], [3, 3]]), 5, 4, "double_hash")
    facts = describe(id_map, np.ones(4, dtype=np.int64))
    assert (facts["shared_ids"], facts["colliding_ids"], facts["distinct_embeddings"]) == (3, 2, 3)
    assert facts["bucket"]["max"] == 3
    assert worst_buckets(id_map, 1, members=2) == [{"row": 0, "size": 3, "ids": [0, 1]}]


def test_a_place_without_weight_is_not_used() -> None:
    weights = np.array([[1, 0], [1, 0], [1, 1]], dtype=np.float32)
    id_map = IdMap(np.array([[0, 0], [1, 0], [0, 0]]), 3, 2, "double_frequency", weights)
    facts = describe(id_map, np.ones(3, dtype=np.int64))
    assert facts["bucket"]["max"] == 2
    assert (facts["distinct_embeddings"], facts["colliding_ids"]) == (3, 0)


def test_random_hashing_shares_as_many_ids_as_expected() -> None:
    graph = sparse.csr_array(np.ones((4000, 1), dtype=np.float32))
    found = [describe(compress("universal_hash", graph, 3000, 1, seed=s)[0], degrees(graph)[0]) for s in range(8)]
    mean = np.mean([facts["shared_ids"] for facts in found])
    assert mean == pytest.approx(found[0]["expected_shared_ids"], rel=0.05)


def test_every_map_is_described_in_json() -> None:
    graph = sparse.csr_array((np.random.default_rng(0).random((40, 30)) < 0.1).astype(np.float32))
    clustering = co_cluster(graph, 2.0)
    for name in COMPRESSORS:
        maps = compress(name, graph, clustering.num_user_clusters, clustering.num_item_clusters, clustering)
        for id_map, side in zip(maps, degrees(graph), strict=True):
            facts = describe(id_map, side)
            assert json.loads(json.dumps(facts, allow_nan=False))["rows"] == id_map.num_rows
            assert sum(facts["histogram"]["counts"]) == id_map.num_rows - 1
    empty = IdMap(np.zeros((0, 1), dtype=np.int64), 1, 0, "full")
    assert describe(empty, np.zeros(0, dtype=np.int64))["bucket"]["mean"] == 0.0
    assert worst_buckets(empty) == []


def test_degrees_of_another_side_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the map has 2 ids, but degrees of shape \[3\]"):
        describe(IdMap(np.zeros((2, 1), dtype=np.int64), 2, 1, "modulo"), np.ones(3, dtype=np.int64))


def test_stability_is_one_on_clear_clusters_and_low_on_noise() -> None:
    clear = sparse.csr_array(np.kron(np.eye(6), np.ones((5, 4))).astype(np.float32))
    facts = stability(clear, 1.0, orders=3)
    assert facts["users"] == {"ari": 1.0, "ari_min": 1.0, "nmi": pytest.approx(1.0)}
    assert facts["rows"] == [12, 12, 12]
    noise = sparse.csr_array((np.random.default_rng(0).random((150, 100)) < 0.05).astype(np.float32))
    unclear = stability(noise, 30.0, orders=3, seed=1)
    assert unclear["items"]["ari"] < 0.9
    assert unclear == stability(noise, 30.0, orders=3, seed=1)
    json.dumps(unclear)
    with pytest.raises(ValueError, match="at least 2 node orders, got orders=1"):
        stability(clear, 1.0, orders=1)
