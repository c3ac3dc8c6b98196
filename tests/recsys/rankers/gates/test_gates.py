"""Gates against the papers' equations, written example by example in float64; sparsity, noise, time and mistakes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recsys.rankers.gates.build import GateName, GateSpec, build_gate
from recsys.rankers.gates.comet import CometGate
from recsys.rankers.gates.dense_to_sparse import Annealing, DenseToSparseGate, balance
from recsys.rankers.gates.dselect_k import DSelectKGate
from recsys.rankers.gates.gate import Gate, smooth_step
from recsys.rankers.gates.hashed import HashGate
from recsys.rankers.gates.permuted import PermutationSearch, PermutedGate, sinkhorn
from recsys.rankers.gates.top_k import TopKGate

NAMES: tuple[GateName, ...] = ("softmax", "top_k", "hash", "dselect_k", "comet", "dense_to_sparse")
WIDTH = 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(gate: Gate, scale: float = 1.0) -> Gate:
    """The gate in evaluation mode with weights larger than the initial ones, so that it decides."""
    gate.draw(generator(1))
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator(2)))
    return gate.eval()


def affine(layer: nn.Linear | None, inputs: Tensor) -> Tensor:
    assert layer is not None
    return (inputs @ layer.weight.T + layer.bias).detach().double()


def examples(count: int = 40) -> tuple[Tensor, Tensor]:
    return torch.randn(count, WIDTH, generator=generator(3)), torch.arange(count)


def step(t: float, gamma: float) -> float:
    if abs(t) >= gamma / 2:
        return float(t > 0)
    return -2 * t**3 / gamma**3 + 3 * t / (2 * gamma) + 0.5


def xlogx(values: Any) -> float:
    return sum(-v * math.log(v) for v in np.asarray(values).ravel().tolist() if v > 0)


@pytest.mark.parametrize("num_experts", [2, 3, 5, 8])
@pytest.mark.parametrize("gamma", [0.5, 4.0])
def test_comet_is_the_paper_s_recursion(num_experts: int, gamma: float) -> None:
    gate = drawn(CometGate(WIDTH, num_experts, 2, gamma=gamma, entropy_weight=0.3))
    inputs, keys = examples()
    nodes = affine(gate.nodes, inputs).view(-1, 2, num_experts - 1)
    leaves = affine(gate.leaves, inputs).view(-1, 2, num_experts)

    def reach(example: int, tree: int, node: int, probability: float) -> list[tuple[int, float]]:
        """Leaves below a node of the heap, which is a leaf where its number has no inner node."""
        if node >= num_experts - 1:
            return [(node - (num_experts - 1), probability)]
        left = step(float(nodes[example, tree, node]), gamma)
        lower = reach(example, tree, 2 * node + 1, probability * left)
        return lower + reach(example, tree, 2 * node + 2, probability * (1 - left))

    found = gate(inputs, keys)
    entropies = []
    for example in range(len(inputs)):
        reached = [dict(reach(example, tree, 0, 1.0)) for tree in range(2)]
        terms = np.array(
            [
                [r[leaf] * math.exp(leaves[example, tree, leaf]) for leaf in range(num_experts)]
                for tree, r in enumerate(reached)
            ]
        )
        expected = terms.sum(0) / terms.sum()
        np.testing.assert_allclose(found.weights[example].detach(), expected, atol=1e-5)
        entropies.append(xlogx([list(r.values()) for r in reached]))
    assert found.penalty.item() == pytest.approx(0.3 * np.mean(entropies), rel=1e-4)


@pytest.mark.parametrize("num_experts", [2, 5, 8])
@pytest.mark.parametrize("per_example", [True, False])
def test_dselect_k_is_the_paper_s_equation(num_experts: int, per_example: bool) -> None:
    settings: dict[str, Any] = {"gamma": 3.0, "entropy_weight": 0.2, "per_example": per_example}
    k = min(3, num_experts)
    gate = drawn(DSelectKGate(WIDTH, num_experts, k, **settings))
    inputs, keys = examples()
    seen = inputs if per_example else torch.zeros(len(inputs), 1)
    codes = affine(gate.codes, seen).view(len(inputs), k, -1)
    mix = affine(gate.mix, seen).softmax(1)
    found = gate(inputs, keys)
    penalties = []
    for example in range(len(inputs)):
        selectors = np.ones((k, num_experts))
        for j, i, b in itertools.product(range(k), range(num_experts), range(codes.shape[2])):
            one = step(float(codes[example, j, b]), 3.0)
            selectors[j, i] *= one if (i >> b) & 1 else 1 - one
        np.testing.assert_allclose(found.weights[example].detach(), mix[example].numpy() @ selectors, atol=1e-5)
        power = num_experts & (num_experts - 1) == 0
        penalties.append(0.2 * xlogx(selectors) + (0.0 if power else (1 / selectors.sum(1).clip(1e-30)).sum()))
    assert found.penalty.item() == pytest.approx(np.mean(penalties), rel=1e-3)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_a_softmax_over_the_k_largest(k: int) -> None:
    gate = drawn(TopKGate(WIDTH, 5, k))
    inputs, keys = examples()
    logits = (inputs @ gate.logits.weight.T).detach().numpy()
    for row, weights in zip(logits, gate(inputs, keys).weights.detach().numpy(), strict=True):
        kept = np.argsort(-row)[:k]
        expected = np.zeros(5)
        expected[kept] = np.exp(row[kept]) / np.exp(row[kept]).sum()
        np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_noise_of_top_k_is_normal_times_softplus_and_only_in_training() -> None:
    gate = TopKGate(WIDTH, 5, 5, generator(7))
    drawn(gate)
    inputs, keys = examples()
    still = gate(inputs, keys).weights
    assert torch.equal(still, gate(inputs, keys).weights)
    gate.train()
    gate.noise.manual_seed(7)
    found = gate(inputs, keys).weights
    normal = torch.randn(40, 5, generator=generator(7))
    assert gate.spread is not None
    noisy = inputs @ gate.logits.weight.T + normal * torch.log1p((inputs @ gate.spread.weight.T).exp())
    torch.testing.assert_close(found, noisy.softmax(1))


def test_hash_gives_every_user_k_experts_for_ever() -> None:
    gate = HashGate(1000, 8, 2)
    gate.draw(generator(0))
    keys = torch.cat([torch.arange(1000), torch.arange(1000)])
    weights = gate(torch.zeros(2000, WIDTH), keys).weights
    assert torch.equal(weights[:1000], weights[1000:])
    assert set(weights.unique().tolist()) == {0.0, 0.5}
    assert (weights.sum(1) == 1).all()
    used = (weights[:1000] > 0).sum(0)
    assert (used > 180).all(), "each of 8 experts has about 250 of 1,000 users"
    assert (used < 320).all()
    unseen = gate(torch.zeros(3, WIDTH), torch.tensor([-1, 1000, 10**9])).weights
    assert torch.equal(unseen[0], unseen[1])
    assert torch.equal(unseen[0], unseen[2])


@pytest.mark.parametrize("name", ["comet", "dselect_k"])
def test_smooth_gates_start_undecided_and_choose_k_where_they_saturate(name: GateName) -> None:
    spec = GateSpec(name, k=2, gamma=0.01)
    gate = build_gate(spec, WIDTH, 16, 10, generator())
    gate.draw(generator(1))
    inputs, keys = examples()
    assert (gate(0.01 * inputs, keys).weights > 0).all()
    chosen = (gate(1e6 * inputs, keys).weights > 0).sum(1)
    assert int(chosen.max()) <= 2
    assert int(chosen.min()) >= 1


@pytest.mark.parametrize("name", ["comet", "dselect_k"])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_gradients_are_finite_and_right_where_leaves_are_out_of_reach(name: GateName, scale: float) -> None:
    gate = build_gate(GateSpec(name, k=2, gamma=2.0, entropy_weight=1.0), WIDTH, 6, 10, generator()).double()
    drawn(gate)
    inputs, keys = examples(5)
    inputs = (scale * inputs).double()
    values = torch.randn(6, generator=generator(4)).double()

    def loss() -> Tensor:
        found = gate(inputs, keys)
        return (found.weights @ values).sum() + found.penalty

    loss().backward()
    for parameter in gate.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        if scale > 1:
            continue
        for place in range(0, parameter.numel(), 5):
            flat, difference = parameter.data.view(-1), []
            for sign in (1, -1):
                flat[place] += sign * 1e-6
                difference.append(float(loss().detach()))
                flat[place] -= sign * 1e-6
            slope = (difference[0] - difference[1]) / 2e-6
            assert float(parameter.grad.view(-1)[place]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_the_smooth_step_is_odd_around_a_half_and_flat_outside() -> None:
    values = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    found = smooth_step(values, 2.5)
    assert torch.allclose(found, torch.tensor([step(v, 2.5) for v in values.tolist()], dtype=torch.float64))
    (slope,) = torch.autograd.grad(found.sum(), values)
    assert (slope[values.abs() >= 1.25] == 0).all()
    assert (slope[values.abs() < 1.2] > 0).all()


def test_a_permuted_gate_moves_weights_to_the_best_assignment_and_keeps_it() -> None:
    inner = TopKGate(WIDTH, 4, 2)
    gate = PermutedGate(inner, PermutationSearch(epochs=2.0), generator(5))
    gate.draw(generator(1))
    order = [2, 0, 3, 1]
    with torch.no_grad():
        gate.theta.zero_()
        gate.theta[torch.arange(4), torch.tensor(order)] = 1.0
    inputs, keys = examples()
    plain = inner(inputs, keys).weights
    expected = torch.zeros_like(plain)
    for place, expert in enumerate(order):
        expected[:, expert] = plain[:, place]
    gate.eval()
    assert torch.equal(gate(inputs, keys).weights, expected)
    gate.train()
    soft = gate(inputs, keys)
    torch.testing.assert_close(soft.weights, expected)
    assert gate(inputs, keys).weights.requires_grad
    gate.advance(2.0)
    hard = gate(inputs, keys)
    assert torch.equal(hard.weights, expected)
    hard.weights.square().sum().backward()
    assert gate.theta.grad is None, "after the search the permutation stays"


def test_a_soft_permutation_is_doubly_stochastic_hardens_and_learns() -> None:
    search = PermutationSearch(epochs=1.0, tau=(1.0, 1e-3), iterations=(50, 200), noise=0.0)
    gate = PermutedGate(TopKGate(WIDTH, 5, 5), search, generator(5))
    gate.draw(generator(1))
    gate.train()
    first, last = gate.doubly_stochastic(0.0), gate.doubly_stochastic(1.0)
    for found in (first, last):
        torch.testing.assert_close(found.sum(0), torch.ones(5), atol=1e-2, rtol=0)
        torch.testing.assert_close(found.sum(1), torch.ones(5), atol=2e-2, rtol=0)
    assert float(first.detach().max()) < 0.5
    assert float(last.detach().max(dim=1).values.min()) > 0.9
    found = gate(*examples())
    (found.weights.square().sum() + found.penalty).backward()
    assert gate.theta.grad is not None
    assert float(gate.theta.grad.abs().sum()) > 0
    torch.testing.assert_close(sinkhorn(torch.zeros(3, 3), 1), torch.full((3, 3), 1 / 3))


def test_evomoe_s_gate_goes_from_one_expert_over_all_to_k() -> None:
    annealing = Annealing(shared_epochs=1.0, anneal_epochs=2.0, tau=(2.0, 0.1), threshold=0.05, balance_weight=0.7)
    gate = DenseToSparseGate(WIDTH, 6, 1, annealing, generator(9))
    drawn(gate)
    inputs, keys = examples()
    logits = inputs @ gate.logits.weight.T

    def weights(epochs: float) -> Tensor:
        gate.advance(epochs)
        return gate(inputs, keys).weights

    assert torch.equal(weights(0.99), torch.eye(6)[torch.zeros(40, dtype=torch.int64)])
    for done, tau in ((0.0, 2.0), (0.5, math.sqrt(0.2)), (0.999, 0.1)):
        expected = (logits / tau).softmax(1)
        expected = expected * (expected > 0.05)
        torch.testing.assert_close(weights(1.0 + 2.0 * done), expected, atol=2e-2, rtol=0.1)
    last = weights(3.0)
    assert torch.equal((last > 0).sum(1), torch.ones(40, dtype=torch.int64))
    torch.testing.assert_close(last.max(1).values, logits.softmax(1).max(1).values)
    assert gate(inputs, keys).penalty.item() == pytest.approx(0.7 * balance(logits.softmax(1)).item())
    gate.train().advance(1.5)
    assert not torch.equal(gate(inputs, keys).weights, gate(inputs, keys).weights), "training has Gumbel noise"
    gate.noise.manual_seed(3)
    once = gate(inputs, keys).weights
    gate.noise.manual_seed(3)
    assert torch.equal(once, gate(inputs, keys).weights)


def test_balance_is_one_where_experts_are_used_alike_and_their_number_where_one_is() -> None:
    assert float(balance(torch.eye(4))) == pytest.approx(1.0)
    assert float(balance(torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 4))) == pytest.approx(4.0)


@pytest.mark.parametrize("name", NAMES)
def test_one_expert_gets_everything(name: GateName) -> None:
    gate = build_gate(GateSpec(name, k=1), WIDTH, 1, 10, generator())
    gate.draw(generator(1))
    gate.advance(100.0)
    assert torch.allclose(gate(*examples()).weights, torch.ones(40, 1))
    assert gate(torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.int64)).weights.shape == (0, 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("search", [None, PermutationSearch()])
def test_weights_are_a_distribution_over_experts(name: GateName, search: PermutationSearch | None) -> None:
    gate = build_gate(GateSpec(name, k=3, search=search), WIDTH, 8, 40, generator())
    gate.draw(generator(1))
    gate.advance(2.0)
    weights = gate.eval()(*examples()).weights
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(40), atol=2e-2, rtol=0)


def test_settings_that_cannot_be_are_told() -> None:
    for k in (0, 5):
        with pytest.raises(ValueError, match=rf"k must lie in \[1, 4\], the number of experts, got {k}"):
            build_gate(GateSpec("comet", k=k), WIDTH, 4, 10, generator())
    with pytest.raises(ValueError, match="gamma, the width of the smooth step, must be above 0, got 0"):
        build_gate(GateSpec("comet", gamma=0.0), WIDTH, 4, 10, generator())
    with pytest.raises(ValueError, match="at least one expert, got 0"):
        build_gate(GateSpec("softmax"), WIDTH, 0, 10, generator())
    with pytest.raises(ValueError, match=r"epochs > 0, tau > 0 and iterations >= 1, got PermutationSearch\(epochs=0"):
        PermutationSearch(epochs=0)
    with pytest.raises(ValueError, match=r"a threshold in \[0, 1\), got Annealing"):
        Annealing(threshold=1.0)
