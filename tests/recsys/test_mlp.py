"""Perceptrons, whole and sparse: the sparse ones against a masked dense reference, step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embeddings.sparsity import Growth, Schedule, Sparsity
from embeddings.tables import step_all
from embeddings.tables.sparse_weights import prune_layers
from recsys.dense_adam import DenseAdam
from recsys.mlp import Mlp, layer_shapes

WIDTHS, LR = (21, 18, 5), 0.02


def dynamic(growth: Growth, density: float = 0.3) -> Sparsity:
    return Sparsity(density, Schedule(10, 200, stop=0.9), growth, window=4 if growth == "momentum" else 1)


def sparse_mlp(sparsity: Sparsity, widths: tuple[int, ...] = WIDTHS) -> Mlp:
    return Mlp(widths, np.random.default_rng(3), [sparsity] * (len(widths) - 1))


class Trained:
    """A perceptron with the optimizers that a model gives it."""

    def __init__(self, network: Mlp) -> None:
        self.network = network
        for layer in network.sparse_layers:
            layer.set_lr(LR)
        parameters = {name.replace(".", "_"): part for name, part in network.dense_parameters().items()}
        self.adam = DenseAdam(parameters, LR)

    def step(self, t: int) -> None:
        loss(self.network(batch(t)), t).backward()  # type: ignore[no-untyped-call]
        step_all(self.network.sparse_layers)
        self.adam.step()


def batch(t: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(t).standard_normal((16, WIDTHS[0]), np.float32))


def loss(outputs: Tensor, t: int) -> Tensor:
    return (outputs - batch(t)[:, : WIDTHS[-1]].sin()).square().mean()


class MaskedDense:
    """The same training with full matrices, masks and dense Adam, from the equations of RigL and SNFS."""

    def __init__(self, network: Mlp) -> None:
        self.weights = [table.weight() for table in network.sparse_layers]
        self.masks = [table.stored() for table in network.sparse_layers]
        self.sparsities = [table.sparsity for table in network.sparse_layers]
        self.biases = [bias.detach().clone() for bias in network.biases]
        self.moments = [[torch.zeros_like(part) for _ in range(2)] for part in self.weights + self.biases]
        self.gradients: list[list[Tensor]] = [[] for _ in self.weights]

    def step(self, t: int) -> None:
        parts = [part.clone().requires_grad_() for part in self.weights + self.biases]
        count = len(self.weights)
        hidden = batch(t)
        for layer in range(count):
            hidden = functional.linear(hidden, parts[layer], parts[count + layer])
            hidden = functional.relu(hidden) if layer < count - 1 else hidden
        loss(hidden, t).backward()  # type: ignore[no-untyped-call]
        for place, (part, (first, second)) in enumerate(zip(parts, self.moments, strict=True)):
            assert part.grad is not None
            g = part.grad * self.masks[place] if place < count else part.grad
            first.mul_(0.9).add_(0.1 * g)
            second.mul_(0.999).add_(0.001 * g**2)
            change = LR * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
            if place < count:
                self.gradients[place].append(part.grad)
                self.weights[place] = self.weights[place] - change * self.masks[place]
            else:
                self.biases[place - count] -= change
        for layer in range(count):
            self.move(layer, t)

    def move(self, layer: int, t: int) -> None:
        sparsity, mask = self.sparsities[layer], self.masks[layer].view(-1)
        assert sparsity is not None and sparsity.schedule is not None
        if t % 10 or t > 180:
            return
        share = 0.005 + (0.5 - 0.005) / 2 * (1 + math.cos(math.pi * t / 180))
        recent = self.gradients[layer][-sparsity.window :]
        score = sum(g * 0.9**age for age, g in enumerate(reversed(recent))).abs().view(-1)  # type: ignore[union-attr]
        count = min(math.ceil(share * int(mask.sum())), int(((score > 0) & ~mask).sum()))
        order = torch.where(mask, self.weights[layer].view(-1).abs(), torch.inf).argsort(stable=True)
        mask[order[:count]] = False
        grown = torch.where(mask, -1.0, score).argsort(descending=True, stable=True)[:count]
        mask[grown] = True
        for tensor in (self.weights[layer], *self.moments[layer]):
            tensor.view(-1)[grown] = 0
            tensor.view(-1)[~mask] = 0


@pytest.mark.parametrize("growth", ["gradient", "momentum"])
def test_200_steps_are_those_of_masked_dense_layers(growth: Growth) -> None:
    ours = Trained(sparse_mlp(dynamic(growth)))
    layers = ours.network.sparse_layers
    dense, start = MaskedDense(ours.network), [layer.stored() for layer in layers]
    for t in range(1, 201):
        ours.step(t)
        dense.step(t)
        for layer, mask, weight in zip(layers, dense.masks, dense.weights, strict=True):
            assert torch.equal(layer.stored(), mask), f"the masks differ after step {t}"
            torch.testing.assert_close(layer.weight(), weight, rtol=1e-3, atol=1e-4)
    for layer, before, (first, second) in zip(layers, start, dense.moments, strict=False):
        assert (layer.stored() != before).sum() > 20
        torch.testing.assert_close(layer.exp_avg, first[layer.stored()], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.exp_avg_sq, second[layer.stored()], rtol=1e-3, atol=1e-5)
    for bias, expected in zip(ours.network.biases, dense.biases, strict=True):
        torch.testing.assert_close(bias.detach(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("growth", ["gradient", "momentum", "random"])
def test_every_update_moves_the_scheduled_share_and_keeps_the_number(growth: Growth) -> None:
    ours = Trained(sparse_mlp(dynamic(growth)))
    sizes = [round(0.3 * fan_out * fan_in) for fan_out, fan_in in layer_shapes(WIDTHS)]
    for t in range(1, 201):
        before = [layer.stored() for layer in ours.network.sparse_layers]
        ours.step(t)
        for layer, mask, size in zip(ours.network.sparse_layers, before, sizes, strict=True):
            assert layer.nnz == size == int(layer.stored().sum()) == layer.exp_avg.numel() == layer.exp_avg_sq.numel()
            fresh = int((layer.exp_avg_sq == 0).sum())
            if t % 10 or t > 180:
                assert torch.equal(layer.stored(), mask)
            elif t > 10:  # before, entries behind a dead unit may have had no gradient either
                share = 0.005 + 0.495 / 2 * (1 + math.cos(math.pi * t / 180))
                assert fresh >= math.ceil(share * size)
            assert len(layer.window_rows) == 0 or t % 10 > 5, "gradients are kept in the window alone"


def test_a_resume_inside_the_schedule_has_the_same_bits() -> None:
    straight, first = Trained(sparse_mlp(dynamic("momentum"))), Trained(sparse_mlp(dynamic("momentum")))
    for t in range(1, 60):
        straight.step(t)
    for t in range(1, 39):  # inside a window
        first.step(t)
    assert all(len(layer.window_rows) for layer in first.network.sparse_layers)
    saved = [{name: part.clone() for name, part in m.state_dict().items()} for m in (first.network, first.adam)]
    second = Trained(Mlp(WIDTHS, np.random.default_rng(9), [dynamic("momentum")] * 2))
    second.network.load_state_dict(saved[0])
    second.adam.load_state_dict(saved[1])
    for t in range(39, 60):
        second.step(t)
    for name, part in straight.network.state_dict().items():
        assert torch.equal(part, second.network.state_dict()[name]), name


def test_a_sparse_layer_gives_outputs_of_the_variance_of_a_whole_one() -> None:
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 400), np.float32))
    for sparsities in (None, [Sparsity(0.1)]):
        network = Mlp((400, 300), np.random.default_rng(1), sparsities)
        assert float(network(inputs).detach().std()) == pytest.approx(1.0, rel=0.05)


def test_only_stored_weights_take_memory() -> None:
    network = sparse_mlp(Sparsity(0.25, Schedule(10, 100)), (256, 128, 64))
    entries = (256 * 128 + 128 * 64) // 4
    assert sum(layer.nnz for layer in network.sparse_layers) == entries
    assert set(network.dense_parameters()) == {"biases.0", "biases.1"}
    masks = (256 * 128 + 128 * 64) // 8
    starts = 8 * (128 // 16 + 1 + 64 // 16 + 1)
    assert sum(layer.bytes().weights for layer in network.sparse_layers) == 4 * entries + masks + starts
    assert sum(layer.bytes().optimizer for layer in network.sparse_layers) == 8 * entries


def test_pruned_layers_keep_their_largest_weights() -> None:
    network = Mlp(WIDTHS, np.random.default_rng(0))
    first, second = (weight.detach().clone() for weight in network.layer_weights())
    network.use_sparse(prune_layers(network.layer_weights(), [0.2, 0.5]))
    for weight, density in ((first, 0.2), (second, 0.5)):
        weight[
            weight.abs() < weight.abs().flatten().sort(descending=True).values[round(density * weight.numel()) - 1]
        ] = 0
    assert torch.equal(network.sparse_layers[0].weight(), first)
    assert torch.equal(network.sparse_layers[1].weight(), second)
    expected = functional.linear(functional.relu(functional.linear(batch(0), first)), second)
    torch.testing.assert_close(network(batch(0)).detach(), expected)
    assert set(network.dense_parameters()) == {"biases.0", "biases.1"}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"an Mlp needs at least two widths >= 1, got \[3\]"):
        Mlp((3,), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"an Mlp of 2 layers needs a sparsity for each, got 1"):
        Mlp((3, 2, 1), np.random.default_rng(0), [Sparsity(0.5)])
