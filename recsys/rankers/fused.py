"""Layers whose passes over [B, W] arrays between the matrix products are one compiled loop each.

A bias is added where the product is read, not copied into the product's place before it, and a gradient's column sums
are taken while it is written. Column sums add rows in blocks of a fixed size and then the blocks in their order, so the
result does not depend on the number of threads. All of it is for float32; :func:`fits` says where torch's own
operations must be used. There is no second derivative, and hooks of the linear layers are not called.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from embeddings.tables.addresses import Floats
from embeddings.tables.kernels import threads_for

BLOCK = 64  # rows of which a column's sum is one number of the sum over blocks
VALUES_PER_LOOKUP = 16  # numbers that take a thread as long as a lookup does


def fits(values: Tensor) -> bool:
    """Whether the loops here take ``values``: float32 [B, W] on the CPU and no autocast."""
    plain = values.dtype == torch.float32 and values.ndim == 2 and values.device.type == "cpu"
    return plain and not torch.is_autocast_enabled("cpu")


def crossed(first: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The last x_l [B, W] of layers ``x_0 * (W x_l + b) + x_l`` from x_0 and each layer's weight and bias."""
    value: Tensor = _Crossed.apply(first.contiguous(), *parameters)  # type: ignore[no-untyped-call]
    return value


def rectified(values: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The last h_l [B, W_l] of layers ``max(W h_l + b, 0)`` from the input and each layer's weight and bias."""
    value: Tensor = _Rectified.apply(values, *parameters)  # type: ignore[no-untyped-call]
    return value


class Perceptron(nn.Sequential):
    """A sequence whose linear layers with a ReLU right after them are :func:`rectified` where that :func:`fits`."""

    def forward(self, values: Tensor) -> Tensor:
        """See :class:`torch.nn.Sequential`."""
        if not fits(values):
            out: Tensor = super().forward(values)  # type: ignore[no-untyped-call]
            return out
        pending = list[Tensor]()
        for layer, after in itertools.pairwise((*self, None)):
            if isinstance(layer, nn.Linear) and layer.bias is not None and isinstance(after, nn.ReLU):
                pending += [layer.weight, layer.bias]
            elif not (pending and isinstance(layer, nn.ReLU)):
                values = layer(rectified(values, pending) if pending else values)
                pending = []
        return rectified(values, pending) if pending else values


class _Crossed(torch.autograd.Function):
    """:func:`crossed`."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, *parameters: Tensor) -> Tensor:
        """The last x_l."""
        weights, biases, values, products = parameters[::2], parameters[1::2], [first], []
        for weight, bias in zip(weights, biases, strict=True):
            products.append(torch.mm(values[-1], weight.T))
            values.append(torch.empty_like(first))
            _run(_cross, first, values[-2], products[-1], bias, values[-1])
        ctx.save_for_backward(*weights, *biases, *values[:-1], *products)
        return values[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x_0 and of each weight and bias."""
        count = len(ctx.saved_tensors) // 4
        weights, biases, values, products = (ctx.saved_tensors[i * count : (i + 1) * count] for i in range(4))
        first, gradient, parameters = values[0], gradient.contiguous(), list[Tensor]()
        to_value, to_first, to_product = (torch.empty_like(first) for _ in range(3))
        for place in reversed(range(count)):
            weight, starts = weights[place], place == count - 1
            inputs = (gradient if starts else to_value, first, products[place], biases[place])
            to_bias = _block_sums(first)
            _run(_cross_gradients, *inputs, to_value, to_first, to_product, to_bias, place, count)
            parameters += [torch.from_numpy(to_bias.sum(0)), to_product.T @ values[place]]
            if place:
                to_value.addmm_(to_product, weight)
            elif ctx.needs_input_grad[0]:
                to_first.addmm_(to_product, weight)
        return to_first if ctx.needs_input_grad[0] else None, *parameters[::-1]


class _Rectified(torch.autograd.Function):
    """:func:`rectified`; as all layers are one node, a gradient between two of them may be changed in place."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, *parameters: Tensor) -> Tensor:
        """The last h_l."""
        weights, outputs = parameters[::2], [values]
        for weight, bias in zip(weights, parameters[1::2], strict=True):
            outputs.append(torch.mm(outputs[-1], weight.T))
            _run(_rectify, bias, outputs[-1])
        ctx.save_for_backward(*weights, *outputs)
        return outputs[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of each weight and bias."""
        count = len(ctx.saved_tensors) // 2
        weights, outputs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        gradient, parameters = gradient.contiguous(), list[Tensor]()
        ours = torch.empty_like(gradient)
        for place in reversed(range(count)):
            to_bias = _block_sums(ours)
            _run(_rectify_gradients, gradient, outputs[place + 1], ours, to_bias)
            parameters += [torch.from_numpy(to_bias.sum(0)), ours.T @ outputs[place]]
            if place or ctx.needs_input_grad[0]:
                gradient = ours = ours @ weights[place]
        return gradient if ctx.needs_input_grad[0] else None, *parameters[::-1]


def _block_sums(values: Tensor) -> Floats:
    """Room for the column sums of each block of rows."""
    return np.empty((-(-len(values) // BLOCK), values.shape[1]), np.float32)


def _run(kernel: Any, *arguments: Tensor | Floats | int) -> None:
    """Call a kernel with the arrays of tensors, on as many threads as the largest keeps busy."""
    arrays = [part.detach().numpy() if isinstance(part, Tensor) else part for part in arguments]
    with threads_for(max(np.size(part) for part in arrays) // VALUES_PER_LOOKUP):
        kernel(*arrays)


@numba.njit(parallel=True, cache=True)
def _cross(first: Floats, value: Floats, product: Floats, bias: Floats, out: Floats) -> None:
    """``out = value + first * (product + bias)``, [B, W] with a bias [W]."""
    rows, width = out.shape
    for block in numba.prange((rows + BLOCK - 1) // BLOCK):
        for row in range(block * BLOCK, min(rows, (block + 1) * BLOCK)):
            for i in range(width):
                out[row, i] = value[row, i] + first[row, i] * (product[row, i] + bias[i])


@numba.njit(parallel=True, cache=True)
def _cross_gradients(
    gradient: Floats, first: Floats, product: Floats, bias: Floats, to_value: Floats, to_first: Floats,
    to_product: Floats, to_bias: Floats, place: int, count: int,
) -> None:  # fmt: skip
    """Gradients of :func:`_cross` before that of its matrix product.

    Args:
        gradient: of ``out``, float32 [B, W] as all arrays are.
        first: x_0.
        product: ``W x_l``.
        bias: [W].
        to_value: gets the gradient that x_l has beside that of its product; it is ``gradient`` from the second call on.
        to_first: x_0's, that of this layer is added to those of the layers above it.
        to_product: gets the product's gradient.
        to_bias: [blocks, W], gets the column sums of ``to_product`` over each block.
        place: l; 0 is the last call, where x_l is x_0 and ``to_first`` gets what ``to_value`` would.
        count: of the layers; count - 1 is the first call.
    """
    rows, width = gradient.shape
    for block in numba.prange((rows + BLOCK - 1) // BLOCK):
        for i in range(width):
            to_bias[block, i] = 0
        for row in range(block * BLOCK, min(rows, (block + 1) * BLOCK)):
            for i in range(width):
                to_product[row, i] = gradient[row, i] * first[row, i]
            for i in range(width):
                to_bias[block, i] += to_product[row, i]
            if place == count - 1:
                for i in range(width):
                    to_first[row, i] = 0
            for i in range(width):
                to_first[row, i] += gradient[row, i] * (product[row, i] + bias[i])
            if place == 0:
                for i in range(width):
                    to_first[row, i] += gradient[row, i]
            elif place == count - 1:
                for i in range(width):
                    to_value[row, i] = gradient[row, i]


@numba.njit(parallel=True, cache=True)
def _rectify(bias: Floats, values: Floats) -> None:
    """``values = max(values + bias, 0)`` in place, [B, W] with a bias [W]; NaN stays NaN."""
    rows, width = values.shape
    zero = np.float32(0)
    for block in numba.prange((rows + BLOCK - 1) // BLOCK):
        for row in range(block * BLOCK, min(rows, (block + 1) * BLOCK)):
            for i in range(width):
                value = values[row, i] + bias[i]
                values[row, i] = zero if value <= zero else value


@numba.njit(parallel=True, cache=True)
def _rectify_gradients(gradient: Floats, values: Floats, out: Floats, to_bias: Floats) -> None:
    """``out = gradient * (values > 0)``, [B, W], and its column sums over each block; ``out`` may be ``gradient``."""
    rows, width = values.shape
    zero = np.float32(0)
    for block in numba.prange((rows + BLOCK - 1) // BLOCK):
        for i in range(width):
            to_bias[block, i] = 0
        for row in range(block * BLOCK, min(rows, (block + 1) * BLOCK)):
            for i in range(width):
                out[row, i] = zero if values[row, i] <= zero else gradient[row, i]
            for i in range(width):
                to_bias[block, i] += out[row, i]
