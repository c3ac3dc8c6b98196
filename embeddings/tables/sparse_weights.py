"""Weight matrices of a network's layers of which a share of the entries is stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from embeddings.id_map import IdMap
from embeddings.sparsity import Sparsity
from embeddings.tables.sparse_table import SparseTable, draw_sparse_table, prune_rows
from embeddings.tables.spec import OptimizerSpec


class SparseWeights(nn.Module):
    """A matrix for each layer: a :class:`SparseTable` with a row for every output, looked up whole.

    Masks move by the schedule and the rules of tables. A step makes each matrix and its gradient in full, which is what
    growth by gradient chooses from, and frees them: a layer is small beside an embedding table. What lasts is the
    stored entries, their optimizer state, and the mask.

    Iterating gives the matrices, float32 [fan_out, fan_in], differentiable; :meth:`SparseTable.step` applies the sum of
    the gradients of all that were made since the last step.

    Args:
        tables: one for each layer; its rows are the layer's outputs, its columns the inputs.
    """

    def __init__(self, tables: Sequence[SparseTable]) -> None:
        super().__init__()
        self._layers = nn.ModuleList(tables)

    @property
    def tables(self) -> list[SparseTable]:
        """One for each layer."""
        return [table for table in self._layers if isinstance(table, SparseTable)]

    def __len__(self) -> int:
        """Number of layers."""
        return len(self._layers)

    def __iter__(self) -> Iterator[Tensor]:
        """The matrix of each layer."""
        return (table(torch.arange(table.num_rows)) for table in self.tables)

    def set_lr(self, lr: float) -> None:
        """Let later steps use another learning rate."""
        for table in self.tables:
            table.set_lr(lr)


def output_rows(count: int) -> IdMap:
    """The id map of a layer: ``count`` rows, the last of which no id needs, since every lookup takes all rows."""
    return IdMap.identity(count - 1)


def draw_layer(
    fan_out: int, fan_in: int, sparsity: Sparsity, *, std: float, generator: np.random.Generator
) -> SparseTable:
    """A layer with normal entries at random inputs, as many for each output but for rounding, trained by Adam.

    Args:
        fan_out: rows.
        fan_in: columns.
        sparsity: density, and how entries move.
        std: deviation of the entries of the whole layer; the stored ones get ``std / sqrt(density)``, so that the
            layer's outputs keep their variance (Evci et al. 2022, "Gradient flow in sparse neural networks").
        generator: draws entries, places and the seed of growth.
    """
    deviation = std / math.sqrt(sparsity.density)
    rows = output_rows(fan_out)
    return draw_sparse_table(rows, fan_in, OptimizerSpec("adam"), sparsity, init_std=deviation, generator=generator)


def prune_layers(weights: Sequence[Tensor], densities: Sequence[float]) -> SparseWeights:
    """The largest entries of trained layers, for use only.

    Args:
        weights: float32 [fan_out, fan_in] each.
        densities: share of each that is kept.
    """
    pairs = zip(weights, densities, strict=True)
    return SparseWeights(
        [prune_rows(part.detach().contiguous(), output_rows(len(part)), density) for part, density in pairs]
    )
