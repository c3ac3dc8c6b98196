"""Tables whose last rows have fewer columns than the others: mixed dimensions with ordinary rows."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from embeddings.id_map import IdMap
from embeddings.tables.addresses import Floats, Ints, Longs
from embeddings.tables.spec import OptimizerSpec
from embeddings.tables.table import Bags, Table
from embeddings.tables.torch_table import TorchTable, pool_together, step_together


class NarrowTable(Table):
    """A table for maps with :attr:`IdMap.narrow`: a narrow row is a row whose other columns are zero and stay so.

    Wide and narrow rows are a :class:`TorchTable` each, with the same optimizer and row type; a bag's sum is that of
    its wide rows, and in the first columns of its narrow ones too.

    Args:
        id_map: which rows an id has, some of them narrow.
        dim: D, of the wide rows.
        optimizer: how they are updated.
        init_std: standard deviation of the rows' normal initialisation.
        generator: draws it, the wide rows first.
        dtype: of the rows, see :class:`TorchTable`.

    Attributes:
        wide: the rows of all columns.
        narrow: the others.

    Raises:
        ValueError: The map has no narrow rows, or the optimizer does not update rows that are rounded.
    """

    def __init__(
        self,
        id_map: IdMap,
        dim: int,
        optimizer: OptimizerSpec,
        *,
        init_std: float,
        generator: np.random.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(id_map, dim, optimizer)
        if id_map.narrow is None:
            raise ValueError("a NarrowTable is for id maps with narrow rows; use a TorchTable")
        draws: Any = {"init_std": init_std, "generator": generator, "dtype": dtype}
        self.wide = TorchTable(IdMap.identity(id_map.wide_rows - 1), dim, optimizer, **draws)
        columns = id_map.narrow.columns(dim)
        self.narrow = TorchTable(IdMap.identity(id_map.narrow.rows - 1), columns, optimizer, **draws)

    @property
    def parts(self) -> tuple[TorchTable, TorchTable]:
        """The wide and the narrow rows."""
        return self.wide, self.narrow

    def pool(self, bags: Bags) -> Tensor:
        """See :meth:`Table.pool`."""
        apart, first = [], 0
        for part in self.parts:
            rows, weights, offsets = map(torch.from_numpy, _between(*bags.arrays, first, first + part.num_rows))
            apart.append(Bags(rows, None if bags.weights is None else weights, offsets))
            first += part.num_rows
        total: Tensor = _AddFirst.apply(*pool_together(self.parts, apart))  # type: ignore[no-untyped-call]
        return total

    def weight(self) -> Tensor:
        """Float32 [num_rows, D], a copy; zeros are where narrow rows have no columns."""
        wide, narrow = (part.weight().float() for part in self.parts)
        return torch.cat([wide, functional.pad(narrow, (0, self.dim - narrow.shape[1]))])

    def write(self, values: Tensor, at: Tensor) -> None:
        """See :meth:`Table.write`; narrow rows take the first columns."""
        narrow = at >= self.wide.num_rows
        self.wide.write(values[~narrow], at[~narrow])
        self.narrow.write(values[narrow, : self.narrow.dim], at[narrow] - self.wide.num_rows)

    def optimizer_state(self) -> dict[str, Tensor]:
        """See :meth:`Table.optimizer_state`, of the wide and of the narrow rows, as ``wide.sum`` and so on."""
        parts = {"wide": self.wide, "narrow": self.narrow}
        states = {kind: part.optimizer_state() for kind, part in parts.items()}
        return {f"{kind}.{name}": tensor for kind, found in states.items() for name, tensor in found.items()}

    def step(self) -> None:
        """See :meth:`Table.step`."""
        step_together(self.parts)

    def set_lr(self, lr: float) -> None:
        """See :meth:`Table.set_lr`."""
        super().set_lr(lr)
        for part in self.parts:
            part.set_lr(lr)

    def _weight_bytes(self) -> int:
        return sum(part.rows().nbytes for part in self.parts)


class _AddFirst(torch.autograd.Function):
    """Adds [B, d] to the first columns of [B, D], in place."""

    @staticmethod
    def forward(ctx: Any, wide: Tensor, narrow: Tensor) -> Tensor:
        ctx.columns = narrow.shape[1]
        ctx.mark_dirty(wide)
        wide[:, : ctx.columns] += narrow
        return wide

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient[:, : ctx.columns]


@numba.njit(cache=True)
def _between(rows: Ints, weights: Floats, offsets: Longs, first: int, last: int) -> tuple[Ints, Floats, Longs]:
    """The rows from ``first`` to ``last``, which count from there, in the same bags; all arrays as ``Bags.arrays``."""
    chosen = np.flatnonzero((rows >= first) & (rows < last))
    before = np.searchsorted(chosen, offsets if len(offsets) else np.arange(len(rows) + 1))
    return (rows[chosen] - np.int32(first)).astype(np.int32), weights[chosen] if len(weights) else weights, before
