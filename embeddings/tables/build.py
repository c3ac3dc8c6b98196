"""From plain settings to a table."""

from __future__ import annotations

from typing import Literal, assert_never

import numpy as np

from embeddings.id_map import IdMap
from embeddings.tables.fbgemm_table import FbgemmTable
from embeddings.tables.spec import OptimizerSpec
from embeddings.tables.table import Table
from embeddings.tables.torch_table import TorchTable

Backend = Literal["torch", "fbgemm"]


def build_table(
    id_map: IdMap,
    dim: int,
    *,
    backend: Backend = "torch",
    optimizer: OptimizerSpec,
    init_std: float,
    generator: np.random.Generator,
) -> Table:
    """A new table; every back end draws the same rows from the same generator.

    Args:
        id_map: which rows an id has.
        dim: D.
        backend: where the rows live.
        optimizer: how they are updated.
        init_std: standard deviation of the rows' normal initialisation.
        generator: draws the initial rows.

    Raises:
        ModuleNotFoundError: The back end is not installed; the message has the command that installs it.
        ValueError: The back end lacks the optimizer, or the dimension does not fit it.
    """
    match backend:
        case "torch":
            return TorchTable(id_map, dim, optimizer, init_std=init_std, generator=generator)
        case "fbgemm":
            return FbgemmTable(id_map, dim, optimizer, init_std=init_std, generator=generator)
        case _:
            assert_never(backend)
