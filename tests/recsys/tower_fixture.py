"""Small two-tower models."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.sparsity import Sparsity
from embeddings.tables import OptimizerSpec, Table, build_table
from recsys.features import Categorical, Features, MultiCategorical, Numeric
from recsys.histories import Histories
from recsys.mlp import Mlp
from recsys.models.tower import ID, Tower, full_map, id_column, joined_width
from recsys.models.two_tower import TwoTower
from recsys.rng import generator

DIM = 8


def table(id_map: IdMap, name: str, dim: int = DIM, lr: float = 0.2) -> Table:
    spec = OptimizerSpec("adagrad", lr=lr)
    return build_table(id_map, dim, optimizer=spec, init_std=0.1, generator=generator(0, "table", name))


def tower(
    side: str, features: Features, *, hidden: tuple[int, ...] = (), extra: int = 0, id_map: IdMap | None = None,
    sparsity: Sparsity | None = None,
) -> Tower:  # fmt: skip
    tables = [
        table(id_map if column.name == ID and id_map is not None else full_map(column.size), f"{side} {column.name}")
        for column in features.columns
        if not isinstance(column, Numeric)
    ]
    width = joined_width(features, [part.dim for part in tables]) + extra
    stored = None if sparsity is None else [sparsity] * (len(hidden) + 1)
    return Tower(features, tables, Mlp((width, *hidden, DIM), generator(0, "network", side), stored))


def two_tower(
    users: Features,
    items: Features,
    *,
    history_length: int = 0,
    hidden: tuple[int, ...] = (),
    item_map: IdMap | None = None,
    learn_temperature: bool = False,
    sparsity: Sparsity | None = None,
) -> TwoTower:
    return TwoTower(
        tower("users", users, hidden=hidden, extra=DIM if history_length else 0, sparsity=sparsity),
        tower("items", items, hidden=hidden, id_map=item_map, sparsity=sparsity),
        history_length=history_length,
        temperature=0.2,
        learn_temperature=learn_temperature,
        dense_lr=0.01,
    )


def ids_only(count: int) -> Features:
    return Features(count, (id_column(count),))


def described(count: int, seed: int = 0) -> Features:
    """Ids, a category, a list and a number; the category is the parity of the row."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Features(
        count,
        (
            id_column(count),
            Categorical("parity", np.arange(count, dtype=np.int64) % 2, 2),
            MultiCategorical("tags", rng.integers(0, 6, offsets[-1]), offsets, 6),
            Numeric("size", rng.normal(size=count).astype(np.float32), rng.random(count) < 0.2),
        ),
    )


def histories(matrix: csr_array) -> Histories:
    users, items = matrix.nonzero()
    return Histories.of_events(
        users.astype(np.int64), items.astype(np.int64), num_users=matrix.shape[0], num_items=matrix.shape[1]
    )
