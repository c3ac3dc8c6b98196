"""One tower: features looked up, joined, and passed through an MLP."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from embeddings.id_map import IdMap
from embeddings.tables import Table, look_up
from recsys.features import Categorical, Features, MultiCategorical, Numeric
from recsys.mlp import Mlp

LookedUp = Categorical | MultiCategorical
"""Features that have a table."""
ID = "id"
"""Name of the column that tells the entities apart."""


def id_column(num_rows: int) -> Categorical:
    """The column of a tower that knows ids: row i has the value i."""
    return Categorical(ID, np.arange(num_rows, dtype=np.int64), num_rows)


def full_map(size: int) -> IdMap:
    """The id map of an uncompressed feature: one row for each value, one for what is missing or unseen."""
    return IdMap(np.arange(size, dtype=np.int64)[:, None], size + 1, size, "full")


class Tower(nn.Module):
    """From the features of an entity to its vector.

    The vectors of all features and, for every number, the number and whether it is missing are joined to one row,
    which ``network`` maps to the vector. A masked, missing or unseen value has the table's unseen row: the "default
    embedding" of Yao et al. 2021.

    Args:
        features: of all N entities.
        tables: one for each categorical and multi-valued column, in their order; any id map and dimension.
        network: its input has the :func:`joined_width`, and what is looked up in tables of other towers.

    Attributes:
        extra_width: how much of the input comes from other towers' tables.

    Raises:
        ValueError: Tables, columns and the network's input do not fit.
    """

    def __init__(self, features: Features, tables: Sequence[Table], network: Mlp) -> None:
        super().__init__()
        looked_up = [column for column in features.columns if not isinstance(column, Numeric)]
        if len(looked_up) != len(tables):
            names = ", ".join(column.name for column in looked_up)
            raise ValueError(f"a tower needs one table for each of its features ({names}), got {len(tables)}")
        for column, table in zip(looked_up, tables, strict=True):
            if table.num_ids != column.size:
                raise ValueError(
                    f"the table of feature {column.name!r} must know its {column.size:,} values, got {table.num_ids:,}"
                )
        width = joined_width(features, [table.dim for table in tables])
        if network.widths[0] < width:
            raise ValueError(f"the network must take at least the joined width {width}, got {network.widths[0]}")
        self.extra_width = network.widths[0] - width
        self.features = features
        self.embeddings = nn.ModuleList(tables)
        self.network = network

    @property
    def dim(self) -> int:
        """D, the length of the vectors."""
        return self.network.widths[-1]

    @property
    def tables(self) -> list[Table]:
        """One for each categorical and multi-valued column."""
        return [table for table in self.embeddings if isinstance(table, Table)]

    def table_of(self, name: str) -> Table | None:
        """The table of a column, or None if there is no such column."""
        place = self._place(name)
        return None if place is None else self.tables[place]

    def replace_table(self, name: str, change: Callable[[Table], Table]) -> None:
        """Put ``change`` of a column's table in its place; nothing where there is no such column."""
        place = self._place(name)
        if place is not None:
            self.embeddings[place] = change(self.tables[place])

    def _place(self, name: str) -> int | None:
        names = [column.name for column in self.features.columns if not isinstance(column, Numeric)]
        return names.index(name) if name in names else None

    def inputs(self, features: Features, extra: Sequence[tuple[Table, LookedUp]] = ()) -> Tensor:
        """What the network gets: float32 [n, W].

        Args:
            features: of n rows, with the columns of this tower.
            extra: columns that are looked up in tables of other towers; they come last.
        """
        own = [column for column in features.columns if not isinstance(column, Numeric)]
        jobs = [*zip(self.tables, own, strict=True), *extra]
        vectors: list[Tensor] = []
        if jobs:
            ids, offsets, weights = zip(*(_lookup(column) for _, column in jobs), strict=True)
            vectors = list(look_up([table for table, _ in jobs], ids, offsets, weights))
        numbers = [column for column in features.columns if isinstance(column, Numeric)]
        pairs = [number for column in numbers for number in (column.values, column.missing.astype(np.float32))]
        joined = vectors[: len(own)] + ([torch.from_numpy(np.stack(pairs, 1))] if pairs else []) + vectors[len(own) :]
        return torch.cat(joined, 1)

    def forward(self, features: Features, extra: Sequence[tuple[Table, LookedUp]] = ()) -> Tensor:
        """Vectors float32 [n, D], see :meth:`inputs`."""
        vectors: Tensor = self.network(self.inputs(features, extra))
        return vectors


def joined_width(features: Features, dims: Sequence[int]) -> int:
    """Width of a tower's joined row for tables of these dimensions."""
    return sum(dims) + 2 * sum(isinstance(column, Numeric) for column in features.columns)


Lookup = tuple[Tensor, Tensor | None, Tensor | None]


def _lookup(column: LookedUp) -> Lookup:
    """Ids, offsets and weights as :func:`embeddings.tables.look_up` takes them."""
    match column:
        case Categorical():
            return torch.from_numpy(column.ids), None, None
        case MultiCategorical():
            values, offsets = torch.from_numpy(column.values), torch.from_numpy(column.offsets)
            return values, offsets, torch.from_numpy(column.pooling)
