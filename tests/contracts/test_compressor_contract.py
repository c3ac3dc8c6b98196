"""What every compressor must do, on noisy, tiny and degenerate graphs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from embeddings.clustering import CoClustering, co_cluster
from embeddings.compress import compress
from embeddings.graph import degrees
from embeddings.id_map import IdMap
from embeddings.names import COMPRESSORS

TWO_ROWS = {"double_hash", "double_frequency", "quotient_remainder", "double_graphhash"}
COMPOSED = {"baco": 2, "multi_graphhash": 4, "residual_codes": 4, "semantic_ngram": 4, "semantic_spm": 4}
"""Most rows per id; fewer where a table is too small for them, and one for the items of baco."""
every_compressor = pytest.mark.parametrize("name", COMPRESSORS)


def random_graph(users: int, items: int, density: float, seed: int) -> sparse.csr_array:
    generator = np.random.default_rng(seed)
    edges = generator.random((users, items)) < density
    edges[users - 1, 0] = True
    return sparse.csr_array(edges.astype(np.float32))


def compress_with_clusters(name: str, graph: sparse.csr_array, seed: int = 0) -> tuple[IdMap, IdMap, CoClustering]:
    clustering = co_cluster(graph, 2.0)
    maps = compress(name, graph, clustering.num_user_clusters, clustering.num_item_clusters, clustering, seed)
    return *maps, clustering


def fingerprint(name: str) -> str:
    digest = hashlib.sha256()
    graph = random_graph(60, 40, 0.1, seed=3)
    for algorithm in ("louvain", "leiden"):
        clustering = co_cluster(graph, 3.0, algorithm)
        rows = (clustering.num_user_clusters, clustering.num_item_clusters)
        for one in compress(name, graph, *rows, clustering, seed=5):
            digest.update(one.rows.tobytes() + (b"" if one.weights is None else one.weights.tobytes()))
    return digest.hexdigest()


@every_compressor
@settings(max_examples=10, deadline=None)
@given(
    users=st.integers(1, 30),
    items=st.integers(1, 30),
    density=st.sampled_from([0.02, 0.2, 1.0]),
    seed=st.integers(0, 99),
)
def test_rows_budget_and_unseen_row(name: str, users: int, items: int, density: float, seed: int) -> None:
    graph = random_graph(users, items, density, seed)
    user_map, item_map, clustering = compress_with_clusters(name, graph)
    user_degrees, item_degrees = degrees(graph)
    for one, side_degrees, budget in (
        (user_map, user_degrees, clustering.num_user_clusters),
        (item_map, item_degrees, clustering.num_item_clusters),
    ):
        seen = side_degrees > 0
        assert one.num_rows == (int(seen.sum()) if name == "full" else budget) + 1
        assert one.unseen_row == one.num_rows - 1
        if name in COMPOSED:
            assert 1 <= one.rows_per_id <= COMPOSED[name]
        else:
            assert one.rows_per_id == (2 if name in TWO_ROWS else 1)
        assert one.num_ids == side_degrees.size
        assert one.compressor == name
        assert (one.rows[seen] < one.unseen_row).all()
        assert (one.rows[~seen] == one.unseen_row).all()
        outside = np.array([-1, one.num_ids, 2**62])
        assert (one.lookup(outside) == one.unseen_row).all()
        unseen_ids = np.flatnonzero(~seen)
        assert (one.lookup_weights(unseen_ids) == one.lookup_weights(outside[:1])).all()


@every_compressor
def test_input_is_not_changed_and_edge_order_plays_no_part(name: str) -> None:
    graph = random_graph(50, 30, 0.1, seed=1)
    edges = graph.tocoo()
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(edges.nnz), 2))
    shuffled = sparse.csr_array(
        (edges.data[order].astype(np.float64), (edges.row[order].astype(np.int64), edges.col[order])), shape=graph.shape
    )
    shuffled.data[:] = 3.0
    before = [array.copy() for array in (shuffled.data, shuffled.indices, shuffled.indptr)]
    for a, b in zip(compress_with_clusters(name, graph)[:2], compress_with_clusters(name, shuffled)[:2], strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
    for array, copy in zip((shuffled.data, shuffled.indices, shuffled.indptr), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_maps_are_equal_in_another_process(root: Path) -> None:
    for name in COMPRESSORS:
        fingerprint(name)
    here = {name: fingerprint(name) for name in COMPRESSORS}
    code = (
        "import sys; sys.path.insert(0, 'tests/contracts'); import test_compressor_contract as t;"
        "print(*(f'{n} {t.fingerprint(n)}' for n in reversed(t.COMPRESSORS)), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    there = dict(line.split() for line in done.stdout.splitlines())
    assert there == here


@every_compressor
def test_a_seed_changes_random_maps_only(name: str) -> None:
    graph = random_graph(80, 60, 0.1, seed=2)
    a, b = compress_with_clusters(name, graph, seed=0)[0], compress_with_clusters(name, graph, seed=1)[0]
    random = {"universal_hash", "double_hash", "double_frequency", "lsh", "double_graphhash", "residual_codes"}
    random |= {"semantic_ngram", "semantic_spm"}
    assert (not np.array_equal(a.rows, b.rows)) == (name in random)


@pytest.mark.parametrize("name", ["universal_hash", "double_hash", "lsh"])
def test_users_and_items_are_hashed_apart(name: str) -> None:
    """A symmetric graph must not give user i and item i the same random row."""
    graph = random_graph(60, 60, 0.2, seed=4)
    graph = sparse.csr_array(((graph + graph.T) > 0).astype(np.float32))
    users, items, _ = compress_with_clusters(name, graph)
    assert not np.array_equal(users.rows, items.rows)


@every_compressor
def test_files_bring_the_map_back(name: str, tmp_path: Path) -> None:
    for one in compress_with_clusters(name, random_graph(40, 25, 0.15, seed=6))[:2]:
        one.save(tmp_path / "map.safetensors")
        loaded = IdMap.load(tmp_path / "map.safetensors")
        np.testing.assert_array_equal(loaded.rows, one.rows)
        np.testing.assert_array_equal(loaded.lookup_weights(np.arange(-1, 41)), one.lookup_weights(np.arange(-1, 41)))
        assert loaded.info == one.info


@every_compressor
def test_one_user_and_one_item(name: str) -> None:
    users, items, _ = compress_with_clusters(name, sparse.csr_array(np.ones((1, 1), dtype=np.float32)))
    for one in (users, items):
        assert one.num_rows == 2
        assert (one.rows == 0).all()


@pytest.mark.parametrize(
    "name", [name for name in COMPRESSORS if not name.endswith("graphhash") or name == "multi_graphhash"]
)
def test_a_graph_without_interactions_is_all_unseen(name: str) -> None:
    for shape in ((4, 3), (0, 3), (0, 0)):
        for one in compress(name, sparse.csr_array(shape, dtype=np.float32), 2, 2):
            assert (one.rows == one.unseen_row).all()


def planted(blocks: int, density: float, noise: float, seed: int) -> tuple[sparse.csr_array, np.ndarray, np.ndarray]:
    """Users and items of ``blocks`` groups, in a random node order: edges within a group, and some across."""
    generator = np.random.default_rng(seed)
    users, items = (
        generator.permutation(np.repeat(np.arange(blocks), 30)),
        generator.permutation(np.repeat(np.arange(blocks), 20)),
    )
    chance = np.where(users[:, None] == items[None, :], density, noise)
    return sparse.csr_array((generator.random(chance.shape) < chance).astype(np.float32)), users, items


@pytest.mark.parametrize("algorithm", ["louvain", "leiden"])
@pytest.mark.parametrize("name", ["graphhash", "double_graphhash"])
def test_planted_clusters_are_recovered_by_graphhash(name: str, algorithm: str) -> None:
    graph, users, items = planted(blocks=12, density=0.5, noise=0.01, seed=7)
    clustering = co_cluster(graph, 1.0, algorithm)
    rows = (clustering.num_user_clusters, clustering.num_item_clusters)
    user_map, item_map = compress(name, graph, *rows, clustering)
    assert adjusted_rand_score(users, user_map.rows[:, 0]) >= 0.95
    assert adjusted_rand_score(items, item_map.rows[:, 0]) >= 0.95


def test_planted_clusters_are_recovered_by_lsh() -> None:
    graph, users, items = planted(blocks=12, density=1.0, noise=0.0, seed=8)
    user_map, item_map = compress("lsh", graph, 64, 64)
    assert adjusted_rand_score(users, user_map.rows[:, 0]) >= 0.95
    assert adjusted_rand_score(items, item_map.rows[:, 0]) >= 0.95


@pytest.mark.parametrize("name", ["modulo", "universal_hash", "frequency"])
def test_hashing_does_not_see_planted_clusters(name: str) -> None:
    graph, users, _ = planted(blocks=12, density=1.0, noise=0.0, seed=9)
    assert abs(adjusted_rand_score(users, compress(name, graph, 12, 12)[0].rows[:, 0])) < 0.05


def test_errors_say_what_is_needed() -> None:
    graph = random_graph(9, 8, 0.5, seed=0)
    clustering = co_cluster(graph, 1.0)
    rows = (clustering.num_user_clusters, clustering.num_item_clusters)
    with pytest.raises(ValueError, match="unknown compressor 'hash'; choose from full, modulo"):
        compress("hash", graph, 2, 2)
    with pytest.raises(ValueError, match="modulo needs item_rows >= 1, got 0"):
        compress("modulo", graph, 2, 0)
    with pytest.raises(ValueError, match="double_graphhash needs a clustering of the graph"):
        compress("double_graphhash", graph, 2, 2)
    with pytest.raises(ValueError, match=rf"each of the {rows[1]} item clusters a row, but item_rows is {rows[1] + 1}"):
        compress("graphhash", graph, rows[0], rows[1] + 1, clustering)
    with pytest.raises(ValueError, match=r"the clustering has 9 users, but the graph has 10; cluster this graph"):
        compress("graphhash", random_graph(10, 8, 0.5, seed=0), *rows, clustering)
