"""Causal attention over sequences that are stored without padding."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_SHORTEST = 8


@dataclasses.dataclass(frozen=True)
class Block:
    """Neighbouring sequences of like length, padded at the right to the longest one.

    A causal mask is all that padding at the right needs: an event never sees what comes after it.

    Attributes:
        tokens: their events among all T.
        cells: int64 [tokens], where each event stands in ``count * length`` cells.
        count: sequences.
        length: cells of each.
    """

    tokens: slice
    cells: Tensor
    count: int
    length: int

    def pad(self, values: Tensor) -> Tensor:
        """Float [tokens, ...] of the block's events to [count, length, ...], zero where there is no event."""
        padded = values.new_zeros(self.count * self.length, *values.shape[1:]).index_copy(0, self.cells, values)
        return padded.view(self.count, self.length, *values.shape[1:])

    def unpad(self, values: Tensor) -> Tensor:
        """[count, length, ...] to the events [tokens, ...] of the block."""
        return values.reshape(self.count * self.length, *values.shape[2:])[self.cells]

    def hidden(self) -> Tensor:
        """Bool [length, length], True where the column comes after the row."""
        return torch.ones(self.length, self.length, dtype=torch.bool).triu_(1)


def blocks(lengths: npt.NDArray[np.int64], shortest: int = _SHORTEST) -> list[Block]:
    """Cut sequences into blocks wherever the length passes 8, 16, 32, ...

    Args:
        lengths: int64 [B], each at least 1; ascending lengths give the fewest blocks.
        shortest: no block is cut below this length.
    """
    ends = np.cumsum(lengths)
    powers = np.ceil(np.log2(np.maximum(lengths, shortest)))
    bounds = [0, *(np.flatnonzero(np.diff(powers)) + 1), len(lengths)]
    found = []
    for first, last in itertools.pairwise(bounds):
        if first == last:
            continue
        some = lengths[first:last]
        length, start = int(some.max()), int(ends[first] - lengths[first])
        within = np.arange(start, ends[last - 1]) - np.repeat(ends[first:last] - some, some)
        cells = within + np.repeat(np.arange(len(some)) * length, some)
        found.append(Block(slice(start, int(ends[last - 1])), torch.from_numpy(cells), len(some), length))
    return found


def attend(
    query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Block], weigh: Callable[[Tensor, Block], Tensor]
) -> Tensor:
    """Weighted sums of the values of each sequence.

    Args:
        query: float [T, H, d] for H heads.
        key: float [T, H, d].
        value: float [T, H, d'].
        parts: the :func:`blocks` of the T events.
        weigh: from scores q k^T [count, H, length, length] of a block to weights, zero for :meth:`Block.hidden`.

    Returns:
        float [T, H, d'].
    """
    out = []
    sizes = [len(block.cells) for block in parts]  # the backward of a split is one join, that of slices a sum of zeros
    for block, *own in zip(parts, *(torch.split(x, sizes) for x in (query, key, value)), strict=True):
        q, k, v = (block.pad(x).transpose(1, 2) for x in own)
        out.append(block.unpad((weigh(q @ k.transpose(2, 3), block) @ v).transpose(1, 2)))
    return torch.cat(out)
