"""The tensors of a table in a finished model's file."""

from __future__ import annotations

import torch
from torch import Tensor

from embeddings.tables import Table
from embeddings.tables.sparse_table import SparseTable


def table_tensors(name: str, table: Table) -> dict[str, Tensor]:
    """The rows of a table under ``name``, or the entries of a sparse one with mask and dimension under ``name.*``."""
    match table:
        case SparseTable():
            dim = torch.tensor(table.dim)
            return {f"{name}.values": table.values, f"{name}.mask": table.mask, f"{name}.dim": dim}
        case _:
            return {name: table.weight()}
