"""From plain settings to a table."""

from __future__ import annotations

from typing import Any, Literal, assert_never

import numpy as np
import torch

from embeddings.id_map import IdMap
from embeddings.sparsity import RowGroups, Sparsity
from embeddings.tables.fbgemm_table import FbgemmTable
from embeddings.tables.narrow_table import NarrowTable
from embeddings.tables.sparse_table import draw_sparse_table
from embeddings.tables.spec import OptimizerSpec
from embeddings.tables.table import Table
from embeddings.tables.torch_table import TorchTable

Backend = Literal["torch", "fbgemm"]
RowDtype = Literal["float32", "bfloat16", "int8"]


def build_table(
    id_map: IdMap,
    dim: int,
    *,
    backend: Backend = "torch",
    optimizer: OptimizerSpec,
    init_std: float,
    generator: np.random.Generator,
    sparsity: Sparsity | None = None,
    groups: RowGroups | None = None,
    dtype: RowDtype = "float32",
) -> Table:
    """A new table; every back end draws the same rows from the same generator.

    Args:
        id_map: which rows an id has; a map with narrow rows is for the torch back end without sparsity.
        dim: D.
        backend: where the rows live.
        optimizer: how they are updated.
        init_std: standard deviation of the rows' normal initialisation.
        generator: draws the initial rows.
        sparsity: store only some entries, see :class:`SparseTable`; for the torch back end. None for all.
        groups: rows of a sparse table that start with the same columns; None for random columns in each.
        dtype: of the rows; below float32 for the torch back end, see :class:`TorchTable`.

    Raises:
        ModuleNotFoundError: The back end is not installed; the message has the command that installs it.
        ValueError: The back end lacks the optimizer, sparsity, dtype or narrow rows, or the dimension does not fit it.
    """
    if id_map.narrow is not None and (backend != "torch" or sparsity is not None):
        raise ValueError(f"narrow rows need the torch back end and no sparsity, got {backend}; or set narrow: 0")
    if dtype != "float32" and (backend != "torch" or sparsity is not None):
        raise ValueError(f"{dtype} rows need the torch back end and no sparsity, got {backend}; use float32")
    if sparsity is not None:
        if backend != "torch":
            raise ValueError(f"a sparse table needs the torch back end, got {backend}; set backend: torch")
        return draw_sparse_table(
            id_map, dim, optimizer, sparsity, init_std=init_std, generator=generator, groups=groups
        )
    match backend:
        case "torch":
            table = TorchTable if id_map.narrow is None else NarrowTable
            draws: Any = {"init_std": init_std, "generator": generator}
            return table(id_map, dim, optimizer, **draws, dtype=getattr(torch, dtype))
        case "fbgemm":
            return FbgemmTable(id_map, dim, optimizer, init_std=init_std, generator=generator)
        case _:
            assert_never(backend)
