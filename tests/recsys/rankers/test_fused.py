"""The compiled layers against torch's own operations, forward and backward."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numba
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.rankers import fused
from recsys.rankers.dcn_v2 import Cross, CrossLayers
from recsys.rankers.fused import Perceptron, crossed, fits, rectified
from recsys.rankers.ranker import Dropout, Tower, perceptron

Layers = Callable[[Tensor, Sequence[Tensor]], Tensor]
SHAPES = [(1, 3), (7, 16), (7, 416), (4097, 3), (4097, 16), (4097, 416)]


def plain_cross(first: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    value = first
    for weight, bias in pairs(parameters):
        value = value + first * functional.linear(value, weight, bias)
    return value


def plain_tower(values: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    for weight, bias in pairs(parameters):
        values = functional.relu(functional.linear(values, weight, bias))
    return values


def pairs(parameters: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(parameters[::2], parameters[1::2], strict=True))


CASES: list[tuple[Layers, Layers]] = [(crossed, plain_cross), (rectified, plain_tower)]
each_layer = pytest.mark.parametrize(("layers", "plain"), CASES, ids=["cross", "tower"])


def problem(rows: int, width: int, layers: Layers, count: int = 3) -> tuple[Tensor, list[Tensor], Tensor]:
    """Input, weights and biases, and the gradient of the output; a tower's sums are exact, so that no ReLU may flip."""
    draws = torch.Generator().manual_seed(rows + width)
    widths = [width] * (count + 1) if layers is crossed else [width, *(width + 2 + i for i in range(count))]
    shapes = [shape for a, b in itertools.pairwise(widths) for shape in ((b, a), (b,))]
    parameters = [torch.randn(shape, generator=draws) / width**0.5 for shape in shapes]
    values, gradient = torch.randn(rows, width, generator=draws), torch.randn(rows, widths[-1], generator=draws)
    if layers is rectified:
        parameters, values = [(part * width**0.5).round() for part in parameters], values.round()
    return values, parameters, gradient


def run(layers: Layers, values: Tensor, parameters: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    """Output, and the gradients of the input and the parameters."""
    leaves = [part.clone().requires_grad_() for part in (values, *parameters)]
    out = layers(leaves[0], leaves[1:])
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def assert_near(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Within float32 rounding of the largest value of each array."""
    for one, other in zip(ours, exact, strict=True):
        assert one.shape == other.shape
        assert one.dtype == torch.float32
        assert float((one - other).abs().max()) <= 2e-5 * max(1.0, float(other.abs().max()))


@each_layer
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_values_and_gradients_are_those_of_torch(layers: Layers, plain: Layers, rows: int, width: int) -> None:
    values, parameters, gradient = problem(rows, width, layers)
    before = gradient.clone()
    doubles = run(plain, values.double(), [part.double() for part in parameters], gradient.double())
    assert_near(run(layers, values, parameters, gradient), [part.float() for part in doubles])
    assert torch.equal(gradient, before)  # it may be another node's too


@each_layer
def test_one_layer_and_no_rows(layers: Layers, plain: Layers) -> None:
    for rows, count in ((0, 2), (65, 1)):
        given = problem(rows, 5, layers, count)
        assert_near(run(layers, *given), run(plain, *given)) if rows else None
        assert [part.shape for part in run(layers, *given)] == [part.shape for part in run(plain, *given)]


@each_layer
def test_arrays_need_not_be_contiguous(layers: Layers, plain: Layers) -> None:
    values, parameters, gradient = problem(70, 6, layers)
    strided = torch.stack([values, values], 2)[:, :, 0].requires_grad_()
    outs = [layer(strided, parameters) for layer in (layers, plain)]
    grads = [torch.autograd.grad(out, strided, gradient.T.contiguous().T)[0] for out in outs]
    assert_near([outs[0].detach(), grads[0]], [outs[1].detach(), grads[1]])
    spread = [torch.autograd.grad(layer(strided, parameters).sum(), strided)[0] for layer in (layers, plain)]
    assert_near(spread[:1], spread[1:])


@each_layer
def test_an_input_without_gradient_changes_no_other(layers: Layers, plain: Layers) -> None:
    values, parameters, gradient = problem(70, 6, layers)
    whole = run(layers, values, parameters, gradient)
    leaves = [part.clone().requires_grad_() for part in parameters]
    grads = torch.autograd.grad(layers(values, leaves), leaves, gradient)
    assert all(torch.equal(one, other) for one, other in zip(grads, whole[2:], strict=True))


@each_layer
def test_loops_have_the_same_bits_on_any_number_of_threads(
    layers: Layers, plain: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = problem(4097, 48, layers)
    available, seen = numba.get_num_threads(), list[int]()
    original = fused.threads_for
    monkeypatch.setattr(fused, "threads_for", lambda lookups: seen.append(lookups) or original(lookups))
    results = []
    for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        numba.set_num_threads(threads)
        results.append(run(layers, *given))
    numba.set_num_threads(available)
    assert min(seen) >= 2 * 2048  # so that two threads share the loops
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_what_diverged_stays_visible() -> None:
    values = torch.tensor([[1.0, float("nan")]])
    out = rectified(values, [torch.eye(2), torch.zeros(2)])
    assert bool(out.isnan().all())


@pytest.mark.parametrize(
    "tower",
    [Tower((5, 4)), Tower((5, 4), dropout=0.5), Tower((5, 4), batch_norm=True), Tower(()), Tower((3,), 0.5, True)],
)
@pytest.mark.parametrize("out", [None, 1])
def test_a_perceptron_is_its_layers_one_after_the_other(tower: Tower, out: int | None) -> None:
    noise = torch.Generator()
    model = perceptron(6, tower, noise, out=out)
    assert isinstance(model, Perceptron)
    values, results = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), []
    for call in (model, lambda values: nn.Sequential.forward(model, values)):
        noise.manual_seed(1)
        leaf = values.clone().requires_grad_()
        result = call(leaf)
        leaves = [leaf, *model.parameters()]
        results.append([result.detach(), *torch.autograd.grad(result.square().sum(), leaves)])
    assert_near(*results)
    assert [type(layer) for layer in model if isinstance(layer, Dropout)] == [Dropout] * (
        len(tower.hidden) if tower.dropout else 0
    )


def test_other_types_and_autocast_take_the_operations_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Tensor:
        raise AssertionError

    model, cross = perceptron(6, Tower((5, 4)), torch.Generator()), CrossLayers(6, Cross(2))
    monkeypatch.setattr(fused, "_run", refuse)
    values = torch.randn(9, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fits(values)
        assert model(values).dtype == torch.bfloat16
        cross(values).sum().backward()
    assert not fits(values.double())
    assert not fits(values[None])
    model.double()(values.double()).sum().backward()
    with pytest.raises(AssertionError):
        cross(values)
