"""Deep and cross network, version 2 (Wang et al. 2021, "DCN V2")."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor, nn

from embeddings.tables.collection import TableCollection
from recsys.rankers.ranker import Ranker, Tower, beside, out_width, perceptron


@dataclasses.dataclass(frozen=True)
class Cross:
    """The cross network.

    Attributes:
        layers: number of them.
        structure: "parallel" puts it beside the tower, "stacked" before it (figure 1).
        rank: of each weight matrix; None for full matrices.
        experts: of the low-rank mixture, used with ``rank``.
    """

    layers: int = 3
    structure: Literal["parallel", "stacked"] = "parallel"
    rank: int | None = None
    experts: int = 4


class DcnV2(Ranker):
    """Cross layers and a tower over the concatenated vectors and numbers of an event.

    Args:
        tables: one for each categorical field.
        num_dense: numeric fields.
        tower: the deep part.
        cross: the cross part.
    """

    def __init__(self, tables: TableCollection, num_dense: int, tower: Tower, cross: Cross) -> None:
        super().__init__(tables, num_dense)
        width = self.width
        layer = CrossLayer if cross.rank is None else MixtureLayer
        self.cross = nn.ModuleList(layer(width, cross) for _ in range(cross.layers))
        self.tower = perceptron(width, tower, self.noise)
        self.stacked = cross.structure == "stacked"
        deep = out_width(width, tower)
        self.head = nn.Linear(deep if self.stacked else width + deep, 1)

    def combine(self, vectors: Tensor, dense_BN: Tensor) -> Tensor:
        """See :meth:`Ranker.combine`."""
        first = beside(vectors, dense_BN)
        crossed = first
        for layer in self.cross:
            crossed = layer(first, crossed)
        whole = self.tower(crossed) if self.stacked else torch.cat([crossed, self.tower(first)], dim=1)
        logits: Tensor = self.head(whole).squeeze(1)
        return logits


class CrossLayer(nn.Module):
    """``x_0 * (W x_l + b) + x_l`` (eq. 1)."""

    def __init__(self, width: int, cross: Cross) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, first: Tensor, value: Tensor) -> Tensor:
        """The next x_l, [B, W], from x_0 and x_l."""
        return torch.addcmul(value, first, self.linear(value))


class MixtureLayer(nn.Module):
    """A mixture of low-rank cross layers (eq. 3 and 4).

    ``sum_i G_i(x_l) * x_0 * (U_i tanh(C_i tanh(V_i^T x_l)) + b) + x_l`` with G the softmax of a linear gate.
    """

    def __init__(self, width: int, cross: Cross) -> None:
        super().__init__()
        assert cross.rank is not None
        if not 1 <= cross.rank <= width or cross.experts < 1:
            raise ValueError(
                f"low-rank cross layers need 1 <= rank <= {width} (the width of the input) and experts >= 1, got rank"
                f" {cross.rank} and {cross.experts} experts"
            )
        self.gate = nn.Linear(width, cross.experts, bias=False)
        self.down = nn.ModuleList(nn.Linear(width, cross.rank, bias=False) for _ in range(cross.experts))
        self.middle = nn.ModuleList(nn.Linear(cross.rank, cross.rank, bias=False) for _ in range(cross.experts))
        self.up = nn.ModuleList(nn.Linear(cross.rank, width, bias=False) for _ in range(cross.experts))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, first: Tensor, value: Tensor) -> Tensor:
        """The next x_l, [B, W], from x_0 and x_l."""
        weights = torch.softmax(self.gate(value), dim=1)
        total = value
        for i, (down, middle, up) in enumerate(zip(self.down, self.middle, self.up, strict=True)):
            expert = up(torch.tanh(middle(torch.tanh(down(value))))) + self.bias
            total = total + weights[:, i : i + 1] * first * expert
        return total
