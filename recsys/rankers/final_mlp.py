"""FinalMLP (Mao et al. 2023): two towers over gated fields, joined by a bilinear form."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from embeddings.tables.collection import TableCollection
from recsys.rankers.ranker import Ranker, Tower, beside, out_width, perceptron


@dataclasses.dataclass(frozen=True)
class Streams:
    """What FinalMLP has beside its first tower.

    Attributes:
        second: the second tower.
        heads: k, blocks of the bilinear fusion; the widths of both towers must be multiples of it.
        gates: for each stream, the fields that its feature gate sees; an empty tuple means a learned constant, None no
            gates at all.
        gate_hidden: hidden widths of a gate.
    """

    second: Tower = dataclasses.field(default_factory=Tower)
    heads: int = 1
    gates: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    gate_hidden: tuple[int, ...] = (800,)


class FinalMlp(Ranker):
    """``b + w_1 o_1 + w_2 o_2 + sum_h o_1h^T W_h o_2h`` of two towers' outputs (eq. 12 to 15).

    Each tower's input is multiplied, number by number, by a gate ``2 sigmoid(MLP(fields))`` (eq. 10 and 11).

    Args:
        tables: one for each categorical field.
        num_dense: numeric fields.
        tower: the first tower.
        streams: the rest.

    Raises:
        ValueError: A width is not a multiple of the heads, or a gate names an unknown field.
    """

    def __init__(self, tables: TableCollection, num_dense: int, tower: Tower, streams: Streams) -> None:
        super().__init__(tables, num_dense)
        width, heads = self.width, streams.heads
        self.first = perceptron(width, tower, self.noise)
        self.second = perceptron(width, streams.second, self.noise)
        one, two = out_width(width, tower), out_width(width, streams.second)
        if heads < 1 or one % heads or two % heads:
            raise ValueError(f"heads must divide the towers' last widths {one} and {two}, got {heads}")
        self.heads = heads
        self.linear_one = nn.Linear(one, 1)
        self.linear_two = nn.Linear(two, 1)
        self.bilinear = nn.Parameter(torch.empty(heads, one // heads, two // heads))
        self.gates = nn.ModuleList(_Gate(self, fields, streams.gate_hidden) for fields in streams.gates or ())

    def combine(self, vectors: Tensor, dense_BN: Tensor) -> Tensor:
        """See :meth:`Ranker.combine`."""
        flat = beside(vectors, dense_BN)
        inputs = [flat * gate(self.tables.split(vectors), len(flat)) for gate in self.gates] or [flat, flat]
        one, two = self.first(inputs[0]), self.second(inputs[1])
        left = one.unflatten(1, (self.heads, -1))
        right = two.unflatten(1, (self.heads, -1))
        fused = (torch.einsum("bhi,hij->bhj", left, self.bilinear) * right).sum((1, 2))
        logits: Tensor = (self.linear_one(one) + self.linear_two(two)).squeeze(1) + fused
        return logits


class _Gate(nn.Module):
    """``2 sigmoid(MLP(context))`` [B, W]; the context is some fields' vectors, or a learned constant."""

    def __init__(self, ranker: Ranker, fields: tuple[str, ...], hidden: tuple[int, ...]) -> None:
        super().__init__()
        names = [field.name for field in ranker.tables.fields]
        unknown = [name for name in fields if name not in names]
        if unknown:
            raise ValueError(f"a gate names the field {unknown[0]!r}; the fields are {', '.join(names)}")
        self.places = [names.index(name) for name in fields]
        width = sum(ranker.tables.dims[place] for place in self.places)
        self.constant = None if fields else nn.Parameter(torch.zeros(1, ranker.tables.dims[0]))
        self.layers = perceptron(width or ranker.tables.dims[0], Tower(hidden), ranker.noise, out=ranker.width)

    def forward(self, vectors: tuple[Tensor, ...], count: int) -> Tensor:
        """Factors [B, W] from the vectors of all fields."""
        if self.constant is not None:
            context = self.constant.expand(count, -1)
        else:
            context = torch.cat([vectors[place] for place in self.places], dim=1)
        factors: Tensor = 2 * torch.sigmoid(self.layers(context))
        return factors
