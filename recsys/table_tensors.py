"""The tensors of a table, or of a network's layers, in a finished model's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, Table
from embeddings.tables.sparse_table import SparseTable
from embeddings.tables.sparse_weights import SparseWeights, output_rows
from recsys.training_state import CheckpointError


def table_tensors(name: str, table: Table) -> dict[str, Tensor]:
    """The rows of a table under ``name``, or the entries of a sparse one with mask and dimension under ``name.*``."""
    match table:
        case SparseTable():
            dim = torch.tensor(table.dim)
            return {f"{name}.values": table.values, f"{name}.mask": table.mask, f"{name}.dim": dim}
        case _:
            return {name: table.weight()}


def read_sparse_table(name: str, tensors: Mapping[str, Tensor], id_map: IdMap) -> SparseTable:
    """The sparse table that :func:`table_tensors` wrote, for lookups.

    Raises:
        KeyError: A tensor is missing.
        ValueError: The tensors do not fit each other or the id map.
    """
    dim, mask = int(tensors[f"{name}.dim"]), tensors[f"{name}.mask"].numpy().view(np.uint16)
    return SparseTable(id_map, dim, OptimizerSpec("sgd"), mask, tensors[f"{name}.values"])


def layer_tensors(name: str, weights: SparseWeights) -> dict[str, Tensor]:
    """The stored entries of each layer, ``name.0.values`` and so on, as :func:`table_tensors` has them."""
    layers = enumerate(weights.tables)
    return {key: part for layer, table in layers for key, part in table_tensors(f"{name}.{layer}", table).items()}


def read_layers(name: str, tensors: Mapping[str, Tensor], outputs: Sequence[int]) -> SparseWeights:
    """What :func:`layer_tensors` wrote of layers with so many outputs, for use only.

    Raises:
        KeyError: A tensor is missing.
        CheckpointError: The tensors do not fit each other or the outputs.
    """
    try:
        parts = [
            read_sparse_table(f"{name}.{layer}", tensors, output_rows(count)) for layer, count in enumerate(outputs)
        ]
    except ValueError as error:
        raise CheckpointError(f"the layers {name} of the saved model do not fit: {error}; train it again") from error
    return SparseWeights(parts)
