"""A two-tower model from the configuration: its tables, on one of the back ends, and its layers."""

from __future__ import annotations

from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.tables import Table, build_table
from embeddings.tables.collected_table import collected_tables
from embeddings.tables.collection import Field
from pipelines.config_two_tower import TwoTower
from pipelines.stages.compress import Maps
from pipelines.stages.sparse import layer_sparsities, optimizer_spec, row_groups, sparsities
from recsys.features import Features, Numeric
from recsys.mlp import Mlp, layer_shapes
from recsys.models.tower import ID, Tower, full_map, joined_width
from recsys.models.two_tower import TwoTower as TwoTowerModel
from recsys.rng import generator

Sides = dict[str, Features]
"""The features of "users" and "items"."""


def build_two_tower(
    config: TwoTower, features: Sides, maps: Maps, seed: int, train: csr_array, steps: int
) -> TwoTowerModel:
    """A two-tower model with freshly drawn weights; the id tables are compressed as the maps say.

    Args:
        config: of the model.
        features: of both sides.
        maps: rows of the id tables.
        seed: of the run.
        train: [users, items], for the clusters of sparse tables.
        steps: of the training at most, for the schedules of sparse tables and layers.
    """
    fields = {
        side: _fields(config, part, maps.users if side == "users" else maps.items) for side, part in features.items()
    }
    if config.backend == "torch":
        tables = _tables(config, fields, maps, seed, train, steps)
    else:
        tables = _collected(config, fields, seed)
    networks = _networks(config, features, fields, seed, steps)
    towers = {side: Tower(part, tables[side], networks[side]) for side, part in features.items()}
    return TwoTowerModel(
        towers["users"],
        towers["items"],
        history_length=config.history.length if config.history is not None else 0,
        temperature=config.loss.temperature,
        learn_temperature=config.loss.learn_temperature,
        dense_lr=config.dense_lr,
    )


def _fields(config: TwoTower, features: Features, ids: IdMap) -> list[Field]:
    """Name, id map and dimension of each feature that has a table."""
    looked_up = [column for column in features.columns if not isinstance(column, Numeric)]
    return [
        Field(ID, ids, config.dim)
        if column.name == ID
        else Field(column.name, full_map(column.size), config.feature_dim)
        for column in looked_up
    ]


def _tables(
    config: TwoTower, fields: dict[str, list[Field]], maps: Maps, seed: int, train: csr_array, steps: int
) -> dict[str, list[Table]]:
    """The tables of each side on the torch back end; those of the ids may be sparse."""
    stored, groups = sparsities(config, maps, steps), row_groups(config, maps, seed, train)
    return {
        side: [
            build_table(
                field.id_map, field.dim, optimizer=optimizer_spec(config), init_std=config.init_std,
                generator=generator(seed, "init", side, field.name), sparsity=sparsity if field.name == ID else None,
                groups=group if field.name == ID else None, dtype=config.table_dtype,
            )
            for field in fields[side]
        ]
        for side, sparsity, group in zip(fields, stored, groups, strict=True)
    }  # fmt: skip


def _collected(config: TwoTower, fields: dict[str, list[Field]], seed: int) -> dict[str, list[Table]]:
    """The tables of both sides in one collection on FBGEMM, which names them by number: any name may be a feature's."""
    pairs = [(side, field) for side, own in fields.items() for field in own]
    tables = collected_tables(
        [Field(f"{place}", field.id_map, field.dim) for place, (_, field) in enumerate(pairs)],
        optimizer=optimizer_spec(config),
        init_std=config.init_std,
        generators=[generator(seed, "init", side, field.name) for side, field in pairs],
    )
    return {side: [table for table, (own, _) in zip(tables, pairs, strict=True) if own == side] for side in fields}


def _networks(
    config: TwoTower, features: Sides, fields: dict[str, list[Field]], seed: int, steps: int
) -> dict[str, Mlp]:
    """The layers of each side; where they are sparse, both share one density."""
    widths = {}
    for side, part in features.items():
        history = config.dim if side == "users" and config.history is not None else 0
        width = joined_width(part, [field.dim for field in fields[side]]) + history
        widths[side] = (width, *config.hidden, config.dim)
    shapes = [shape for side in widths.values() for shape in layer_shapes(side)]
    stored = layer_sparsities(config.sparse_layers, shapes, steps)
    parts = iter(stored or ())
    return {
        side: Mlp(
            own,
            generator(seed, "init", side, "network"),
            None if stored is None else [next(parts) for _ in layer_shapes(own)],
        )
        for side, own in widths.items()
    }
