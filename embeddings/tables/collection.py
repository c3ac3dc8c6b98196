"""The tables of several categorical fields, looked up in one call: one seam, several back ends."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Literal, assert_never

import numpy as np
import torch
from torch import Tensor, nn

from embeddings.id_map import IdMap
from embeddings.tables.batch import look_up_joined, step_all
from embeddings.tables.build import build_table
from embeddings.tables.spec import OptimizerSpec, TableBytes, total_bytes
from embeddings.tables.table import Table

CollectionBackend = Literal["torch", "fbgemm", "torchrec"]


@dataclasses.dataclass(frozen=True)
class Field:
    """A categorical field and its table.

    Attributes:
        name: unique in a collection.
        id_map: which rows an id of the field has.
        dim: columns of its table.
    """

    name: str
    id_map: IdMap
    dim: int


class TableCollection(nn.Module, abc.ABC):
    """A table for each of F fields; dimensions and compression are the fields' own.

    Args:
        fields: F of them, in the order of the columns of the ids.

    Raises:
        ValueError: There is no field, or two have one name.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        super().__init__()
        names = [field.name for field in fields]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a table collection needs fields of different names, got {names}")
        self.fields = tuple(fields)

    @property
    def dims(self) -> tuple[int, ...]:
        """Columns of each field's table."""
        return tuple(field.dim for field in self.fields)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up one id of every field for each event.

        Args:
            ids: int64 [B, F]; an id outside ``[0, num_ids)`` of its field gets the field's unseen row.

        Returns:
            Float32 [B, sum of D_f], the fields' vectors side by side.

        Raises:
            ValueError: ``ids`` has not one column for each field.
        """
        if ids.ndim != 2 or ids.shape[1] != len(self.fields):
            raise ValueError(f"ids must have shape [B, {len(self.fields)}], one column a field, got {list(ids.shape)}")
        return self.look_up(ids.T.contiguous())

    @abc.abstractmethod
    def look_up(self, ids_FB: Tensor) -> Tensor:
        """Float32 [B, sum of D_f] for int64 [F, B]."""

    def split(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """The views [B, D_f] of each field in [B, sum of D_f]."""
        return torch.split(vectors, list(self.dims), dim=1)

    @abc.abstractmethod
    def weight(self, name: str) -> Tensor:
        """Float32 [num_rows, D_f] of a field, a view of what is trained."""

    @abc.abstractmethod
    def bytes(self) -> TableBytes:
        """Exact sizes of all tables together."""

    @abc.abstractmethod
    def set_lr(self, lr: float) -> None:
        """Let later steps use another learning rate; it is not part of ``state_dict``."""

    def step(self) -> None:
        """Apply the gradients since the last step; nothing to do for TorchRec, whose backward applies them."""


class Tables(TableCollection):
    """A :class:`Table` for each field, on the torch or the FBGEMM back end."""

    def __init__(self, fields: Sequence[Field], tables: Sequence[Table]) -> None:
        super().__init__(fields)
        self.tables = nn.ModuleList(tables)
        self._tables = list(tables)

    def look_up(self, ids_FB: Tensor) -> Tensor:
        """See :meth:`TableCollection.look_up`."""
        return look_up_joined(self._tables, ids_FB.unbind(0))

    def weight(self, name: str) -> Tensor:
        """See :meth:`TableCollection.weight`."""
        return self._tables[[field.name for field in self.fields].index(name)].weight()

    def bytes(self) -> TableBytes:
        """See :meth:`TableCollection.bytes`."""
        return total_bytes(*(table.bytes() for table in self._tables))

    def set_lr(self, lr: float) -> None:
        """See :meth:`TableCollection.set_lr`."""
        for table in self._tables:
            table.set_lr(lr)

    def step(self) -> None:
        """One update of every table, see :func:`embeddings.tables.step_all`."""
        step_all(self._tables)


def build_collection(
    fields: Sequence[Field],
    *,
    backend: CollectionBackend = "torch",
    optimizer: OptimizerSpec,
    init_std: float,
    generator: np.random.Generator,
) -> TableCollection:
    """New tables for fields; every back end draws the same rows from the same generator.

    Args:
        fields: F of them.
        backend: where the rows live.
        optimizer: how they are updated.
        init_std: standard deviation of the rows' normal initialisation.
        generator: draws the initial rows, field by field.

    Raises:
        ModuleNotFoundError: The back end is not installed; the message has the command that installs it.
        ValueError: The back end lacks the optimizer, or a dimension does not fit it.
    """
    match backend:
        case "torch" | "fbgemm":
            tables = [
                build_table(
                    field.id_map,
                    field.dim,
                    backend=backend,
                    optimizer=optimizer,
                    init_std=init_std,
                    generator=generator,
                )
                for field in fields
            ]
            return Tables(fields, tables)
        case "torchrec":
            from embeddings.tables.torchrec_collection import TorchRecTables  # torchrec takes seconds to import

            return TorchRecTables(fields, optimizer, init_std=init_std, generators=[generator] * len(fields))
        case _:
            assert_never(backend)
