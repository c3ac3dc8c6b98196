"""Deep and cross network, version 2 (Wang et al. 2021, "DCN V2")."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable
from torch.nn import functional

from embeddings.tables.collection import TableCollection
from recsys.rankers.fused import crossed, fits
from recsys.rankers.ranker import Ranker, Tower, beside, out_width, perceptron


@dataclasses.dataclass(frozen=True)
class Cross:
    """The cross network.

    Attributes:
        layers: number of them, at least 1.
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
        self.cross = (CrossLayers if cross.rank is None else MixtureLayers)(width, cross)
        self.tower = perceptron(width, tower, self.noise)
        self.stacked = cross.structure == "stacked"
        deep = out_width(width, tower)
        self.head = nn.Linear(deep if self.stacked else width + deep, 1)

    def combine(self, vectors: Tensor, dense_BN: Tensor) -> Tensor:
        """See :meth:`Ranker.combine`."""
        first = beside(vectors, dense_BN)
        last: Tensor = self.cross(first)
        if self.stacked:
            logits = self.head(self.tower(last))
        else:  # the head of both side by side, without a copy
            ours, deep = self.head.weight[:, : self.width], self.head.weight[:, self.width :]
            logits = functional.linear(last, ours, self.head.bias) + functional.linear(self.tower(first), deep)
        flat: Tensor = logits.squeeze(1)
        return flat


class CrossLayers(nn.ModuleList):
    """Layers ``x_0 * (W x_l + b) + x_l`` (eq. 1)."""

    def __init__(self, width: int, cross: Cross) -> None:
        super().__init__(nn.Linear(width, width) for _ in range(cross.layers))

    def forward(self, first: Tensor) -> Tensor:
        """The last x_l, [B, W], from x_0."""
        parameters = tuple(self.parameters())
        if fits(first):
            return crossed(first, parameters)
        last: Tensor = _Crossed.apply(first, *parameters)  # type: ignore[no-untyped-call]
        return last


class _Crossed(torch.autograd.Function):
    """All cross layers as one node, for what :mod:`recsys.rankers.fused` does not take: bfloat16 and float64.

    Autograd's nodes would read and write the [B, W] arrays twice as often.
    """

    @staticmethod
    @custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, first: Tensor, *parameters: Tensor) -> Tensor:
        """The last x_l from x_0 and the weight and bias of each layer."""
        weights, values, products = parameters[::2], [first], []
        for weight, bias in zip(weights, parameters[1::2], strict=True):
            products.append(functional.linear(values[-1], weight, bias))
            values.append(torch.addcmul(values[-1], first, products[-1]))
        ctx.save_for_backward(*weights, *values[:-1], *products)
        return values[-1]

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Gradients of x_0 and of each weight and bias."""
        count = len(ctx.saved_tensors) // 3
        weights, values, products = (ctx.saved_tensors[i * count : (i + 1) * count] for i in range(3))
        first, to_first, parameters = values[0], torch.zeros_like(values[0]), []
        for weight, value, product in zip(weights[::-1], values[::-1], products[::-1], strict=True):
            to_product = gradient * first
            to_first.addcmul_(gradient, product)
            parameters += [to_product.sum(0), to_product.T @ value]
            gradient = gradient + to_product @ weight
        return to_first.add_(gradient), *parameters[::-1]


class MixtureLayers(nn.ModuleList):
    """Several :class:`MixtureLayer`."""

    def __init__(self, width: int, cross: Cross) -> None:
        super().__init__(MixtureLayer(width, cross) for _ in range(cross.layers))

    def forward(self, first: Tensor) -> Tensor:
        """The last x_l, [B, W], from x_0."""
        value = first
        for layer in self:
            value = layer(first, value)
        return value


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
