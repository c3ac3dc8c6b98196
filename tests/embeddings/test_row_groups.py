"""Rows of one cluster start with one set of columns, on graphs whose clusters are planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.row_groups import cluster_groups
from embeddings.sparsity import RowGroups, Sparsity
from embeddings.tables import OptimizerSpec, build_table
from embeddings.tables.sparse_table import SparseTable

BLOCKS, USERS, ITEMS, DIM = 3, 6, 5, 24


def planted() -> csr_array:
    """Every user of a block has all items of the block; one more user and one more item have nothing."""
    graph = np.zeros((BLOCKS * USERS + 1, BLOCKS * ITEMS + 1), np.float32)
    for block in range(BLOCKS):
        graph[block * USERS : (block + 1) * USERS, block * ITEMS : (block + 1) * ITEMS] = 1
    return csr_array(graph)


def groups_of(users: IdMap, items: IdMap, seed: int = 0) -> tuple[RowGroups, RowGroups]:
    return cluster_groups(planted(), (users, items), DIM, resolution=1.0, generator=np.random.default_rng(seed))


def full(ids: int) -> IdMap:
    return IdMap(np.arange(ids, dtype=np.int64)[:, None], ids + 1, ids, "full")


def test_users_and_items_of_a_block_are_one_group() -> None:
    users, items = groups_of(full(BLOCKS * USERS + 1), full(BLOCKS * ITEMS + 1))
    assert users.draws is items.draws and users.draws.shape == (BLOCKS + 1, DIM)
    by_user, by_item = users.of_row[: BLOCKS * USERS].reshape(BLOCKS, -1), items.of_row[: BLOCKS * ITEMS]
    np.testing.assert_array_equal(by_user, np.repeat(by_user[:, :1], USERS, 1))
    np.testing.assert_array_equal(by_item.reshape(BLOCKS, -1), np.repeat(by_user[:, :1], ITEMS, 1))
    assert sorted(by_user[:, 0]) == list(range(BLOCKS))
    assert users.of_row[-2:].tolist() == [BLOCKS, BLOCKS] == items.of_row[-2:].tolist(), "nothing is known of these"


def test_a_shared_row_is_of_the_cluster_of_its_most_frequent_id() -> None:
    shared = IdMap(np.zeros((BLOCKS * ITEMS + 1, 1), np.int64), 2, 1, "modulo")
    graph = planted().toarray()
    graph[: USERS - 1, 0] = 0  # item 0 has one user only, those of the last block all of theirs
    graph[:, ITEMS + 1 : -ITEMS - 1] = 0
    users, items = cluster_groups(
        csr_array(graph), (full(BLOCKS * USERS + 1), shared), DIM, resolution=1.0, generator=np.random.default_rng(0)
    )
    last = users.of_row[BLOCKS * USERS - 1]
    assert items.of_row.tolist() == [last, users.draws.shape[0] - 1]


def test_tables_start_with_the_columns_of_the_group() -> None:
    maps = full(BLOCKS * USERS + 1), full(BLOCKS * ITEMS + 1)
    stored = []
    for id_map, groups in zip(maps, groups_of(*maps), strict=True):
        table = build_table(
            id_map, DIM, optimizer=OptimizerSpec("sgd"), init_std=0.1, generator=np.random.default_rng(1),
            sparsity=Sparsity(0.25), groups=groups,
        )  # fmt: skip
        assert isinstance(table, SparseTable)
        assert table.stored().sum(1).tolist() == [DIM // 4] * id_map.num_rows
        stored.append(table.stored()[:-2])
    users, items = stored
    overlap = users.float() @ items.float().T
    within = torch.from_numpy(planted().toarray()[:-1, :-1]) > 0
    assert (overlap[within] == DIM // 4).all()
    assert float(overlap[~within].mean()) < 0.6 * DIM / 4


def test_the_generator_decides_the_columns_alone() -> None:
    maps = full(BLOCKS * USERS + 1), full(BLOCKS * ITEMS + 1)
    (first, _), (same, _), (other, _) = groups_of(*maps), groups_of(*maps), groups_of(*maps, seed=1)
    np.testing.assert_array_equal(first.of_row, other.of_row)
    np.testing.assert_array_equal(first.draws, same.draws)
    assert (first.draws != other.draws).any()


def test_an_empty_graph_has_no_clusters() -> None:
    empty = csr_array(np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match=r"at least one interaction, got an empty graph of shape \[4, 3\]; draw the"):
        cluster_groups(empty, (full(4), full(3)), DIM, resolution=1.0, generator=np.random.default_rng(0))
