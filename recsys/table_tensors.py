"""The tensors of a table, or of a network's layers, in a finished model's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, Table
from embeddings.tables.narrow_table import NarrowTable
from embeddings.tables.sparse_table import SparseTable
from embeddings.tables.sparse_weights import SparseWeights, output_rows
from embeddings.tables.torch_table import TorchTable
from recsys.training_state import CheckpointError


def table_tensors(name: str, table: Table) -> dict[str, Tensor]:
    """The rows of a table as they are stored; those that are narrow, and a sparse one's parts, under ``name.*``."""
    match table:
        case SparseTable():
            dim = torch.tensor(table.dim)
            return {f"{name}.values": table.values, f"{name}.mask": table.mask, f"{name}.dim": dim}
        case TorchTable():
            return {name: table.rows().detach()}
        case NarrowTable():
            return {name: table.wide.rows().detach(), f"{name}.narrow": table.narrow.rows().detach()}
        case _:
            return {name: table.weight()}


def read_table(name: str, tensors: Mapping[str, Tensor], id_map: IdMap) -> TorchTable | NarrowTable | SparseTable:
    """The table that :func:`table_tensors` wrote, for lookups, on the torch back end whatever it was trained on.

    Raises:
        KeyError: A tensor is missing.
        ValueError: The tensors do not fit each other or the id map.
    """
    if f"{name}.values" in tensors:
        dim, mask = int(tensors[f"{name}.dim"]), tensors[f"{name}.mask"].numpy().view(np.uint16)
        return SparseTable(id_map, dim, OptimizerSpec("sgd"), mask, tensors[f"{name}.values"])
    rows, nothing = tensors[name], np.random.default_rng(0)
    if rows.ndim != 2 or len(rows) != id_map.wide_rows:
        raise ValueError(f"the map has {id_map.wide_rows:,} rows, the weights have shape {list(rows.shape)}")
    dim = rows.shape[1] - (rows.dtype == torch.int8)
    shape: Any = {"init_std": 0.0, "generator": nothing, "dtype": rows.dtype}
    if id_map.narrow is None:
        table = TorchTable(id_map, dim, OptimizerSpec("sgd"), **shape)
        table.rows().detach().copy_(rows)
        return table
    mixed = NarrowTable(id_map, dim, OptimizerSpec("sgd"), **shape)
    for part, saved in ((mixed.wide, rows), (mixed.narrow, tensors[f"{name}.narrow"])):
        if part.rows().shape != saved.shape or part.rows().dtype != saved.dtype:
            raise ValueError(f"the map has rows of shape {list(part.rows().shape)}, the weights {list(saved.shape)}")
        part.rows().detach().copy_(saved)
    return mixed


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
        parts = [read_table(f"{name}.{layer}", tensors, output_rows(count)) for layer, count in enumerate(outputs)]
    except ValueError as error:
        raise CheckpointError(f"the layers {name} of the saved model do not fit: {error}; train it again") from error
    return SparseWeights([part for part in parts if isinstance(part, SparseTable)])
