"""The tables and layers of a model from its configuration: whole, sparse, or in search of their dimensions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import csr_array

from embeddings.mixed_dims import SoftSelection, frequency_blocks, row_counts
from embeddings.row_groups import cluster_groups
from embeddings.sparsity import RowGroups, Schedule, Sparsity, entries, erk_densities
from embeddings.tables import OptimizerSpec, Table, build_table
from embeddings.tables.sparse_table import SparseTable, prune
from embeddings.tables.sparse_weights import prune_layers
from pipelines.config_models import Mf
from pipelines.config_section import TableModel
from pipelines.config_sparse import MixedDims, Sparse, SparseEntries
from pipelines.config_two_tower import TwoTower
from pipelines.errors import DataError
from pipelines.stages.compress import Maps
from recsys.mixed_dims import DimSearch
from recsys.mlp import Mlp
from recsys.models.graph_model import GraphModel
from recsys.models.mf import TwoTables
from recsys.models.neumf import NeuMf as NeuMfModel
from recsys.models.tower import ID
from recsys.models.two_tower import TwoTower as TwoTowerModel
from recsys.rng import generator

logger = logging.getLogger(__name__)
Shapes = Sequence[tuple[int, int]]


def build_tables(config: Mf, maps: Maps, seed: int, train: csr_array, steps: int) -> list[Table]:
    """The users' and the items' table, freshly drawn; arguments as of :func:`pipelines.stages.build.build_mf`."""
    spec, dim = optimizer_spec(config), config.table_dim
    ids = np.diff(train.indptr), np.bincount(train.indices, minlength=train.shape[1])
    groups = row_groups(config, maps, seed, train)
    sides = zip(("users", "items"), (maps.users, maps.items), ids, sparsities(config, maps, steps), groups, strict=True)
    tables: list[Table] = []
    for side, id_map, counts, sparsity, group in sides:
        draws = generator(seed, "init", side)
        search = config.mixed_dims
        if search is None:
            table = build_table(
                id_map, dim, backend=config.backend, optimizer=spec, init_std=config.init_std, generator=draws,
                sparsity=sparsity, groups=group, dtype=config.table_dtype,
            )  # fmt: skip
        else:
            blocks = frequency_blocks(row_counts(id_map, counts.astype(np.int64)), search.blocks)
            table = SoftSelection(
                id_map, dim, spec, blocks, init_std=config.init_std, generator=draws, alpha_lr=search.alpha_lr,
                alpha_l1=search.alpha_l1,
            )  # fmt: skip
        tables.append(table)
    return tables


def optimizer_spec(config: TableModel) -> OptimizerSpec:
    """The plain arguments of the tables' optimizer."""
    return OptimizerSpec(config.optimizer.name, lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay)


def row_groups(
    config: Mf | TwoTower, maps: Maps, seed: int, train: csr_array
) -> tuple[RowGroups | None, RowGroups | None]:
    """The rows of the users' and the items' table that start with the same columns; None where each draws its own."""
    sparse = config.sparse
    if sparse is None or sparse.method == "prune" or sparse.columns == "random":
        return None, None
    draws = generator(seed, "init", "columns")
    return cluster_groups(
        train, (maps.users, maps.items), config.table_dim, resolution=sparse.resolution, generator=draws
    )


def sparsities(config: Mf | TwoTower, maps: Maps, steps: int) -> list[Sparsity | None]:
    """How the users' and the items' table are stored; None where all entries are.

    Args:
        config: of the model.
        maps: the rows of both tables.
        steps: of the training at most; the share that moves falls over these, in the refit too.

    Raises:
        DataError: No update would be due in so few steps.
    """
    sparse = config.sparse
    if sparse is None:
        return [None, None]
    shapes = [(rows, config.table_dim) for rows in (maps.users.num_rows, maps.items.num_rows)]
    for side, density, (rows, dim) in zip(("users", "items"), _densities(sparse, shapes), shapes, strict=True):
        stored = entries(density, rows, dim)
        if stored < rows and not (side == "users" and config.items_only):
            told = "the table of %s stores %s entries in %s rows, so that some are all zero; raise model.sparse.density"
            logger.warning(told, side, f"{stored:,}", f"{rows:,}")
    if sparse.method == "prune":
        return [None, None]
    return [*_sparsities(sparse, shapes, steps)]


def layer_sparsities(sparse: SparseEntries | None, shapes: Shapes, steps: int) -> list[Sparsity] | None:
    """How the layers of a network are stored in training; None where they are whole.

    Args:
        sparse: of the configuration.
        shapes: of the layers' matrices; they share the density together.
        steps: as for :func:`sparsities`.
    """
    return None if sparse is None or sparse.method == "prune" else _sparsities(sparse, shapes, steps)


def _sparsities(sparse: SparseEntries, shapes: Shapes, steps: int) -> list[Sparsity]:
    if sparse.method == "static":
        return [Sparsity(density) for density in _densities(sparse, shapes)]
    schedule = Schedule(sparse.every_steps, steps, sparse.start, sparse.end, sparse.stop)
    if schedule.to_update(0) is None:
        first = f"the first {int(sparse.stop * steps):,} of {steps:,} steps"
        key = "sparse" if isinstance(sparse, Sparse) else "sparse_layers"
        raise DataError(f"{key}.every_steps is {sparse.every_steps:,}, but entries move in {first} only; lower it")
    return [
        Sparsity(density, schedule, sparse.growth, sparse.window_steps, sparse.momentum)
        for density in _densities(sparse, shapes)
    ]


def _densities(sparse: SparseEntries, shapes: Shapes) -> list[float]:
    return erk_densities(shapes, sparse.density) if sparse.distribution == "erk" else [sparse.density] * len(shapes)


def dim_search(config: MixedDims) -> DimSearch:
    """The plain arguments of a search."""
    return DimSearch(config.density, config.epochs, config.warmup_epochs, config.held_out)


def window_bytes(tables: Iterable[Table]) -> int:
    """Of the gradients that tables kept for updates of their masks, the most there ever were."""
    return sum(int(table.window_peak) for table in tables if isinstance(table, SparseTable))


def prune_tables(model: TwoTables | TwoTowerModel, density: float) -> None:
    """Keep the largest entries of each table of users and items of a trained model, for lookups only."""
    if isinstance(model, TwoTowerModel):
        for tower in (model.users, model.items):
            tower.replace_table(ID, lambda table: prune(table, density))
    else:
        model.users, model.items = prune(model.users, density), prune(model.items, density)
    if isinstance(model, GraphModel | TwoTowerModel):
        model.forget()


def prune_networks(model: NeuMfModel | TwoTowerModel, sparse: SparseEntries) -> None:
    """Keep the largest weights of the layers of a trained model, for use only."""
    networks: list[Mlp | NeuMfModel] = (
        [model] if isinstance(model, NeuMfModel) else [model.users.network, model.items.network]
    )
    weights = [network.layer_weights() for network in networks]
    densities = iter(_densities(sparse, [(len(part), part.shape[1]) for parts in weights for part in parts]))
    for network, parts in zip(networks, weights, strict=True):
        network.use_sparse(prune_layers(parts, [next(densities) for _ in parts]))
    if isinstance(model, TwoTowerModel):
        model.forget()
