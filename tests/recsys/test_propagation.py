from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.bipartite import BipartiteGraph, Pair
from recsys.propagation import Perturb, Plan, expand, product, propagate
from tests.recsys.graph_fixture import ITEMS, USERS, dense_adjacency, toy

ROWS = np.array([USERS, 3, 4]), np.array([0, 2, 5])
PLACES = torch.from_numpy(np.concatenate([ROWS[0], ROWS[1] + USERS + 1]))


def shift(layer: int, pair: Pair) -> Pair:
    """A constant noise that tells the layers apart."""
    return pair[0] + 0.1 * layer, pair[1] - 0.2 * layer


def dense_layers(ego: Tensor, layers: int, perturb: Perturb | None) -> list[Tensor]:
    found, adjacency = [ego], dense_adjacency(toy())
    for layer in range(1, layers + 1):
        product = adjacency @ found[-1]
        pair = (product[: USERS + 1], product[USERS + 1 :])
        found.append(product if perturb is None else torch.cat(perturb(layer, pair)))
    return found


@pytest.mark.parametrize("layers", [0, 1, 2, 4])
@pytest.mark.parametrize("with_ego", [True, False])
@pytest.mark.parametrize("views", [(None,), (None, shift, None), (shift,)])
def test_views_and_taps_have_the_values_and_gradients_of_dense_autograd(
    layers: int, with_ego: bool, views: tuple[Perturb | None, ...]
) -> None:
    with_ego |= layers == 0  # a mean of nothing
    taps = tuple(sorted({0, layers // 2, layers}))
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n + 1, 3, generator=generator, requires_grad=True) for n in (USERS, ITEMS))
    plan = Plan(BipartiteGraph.of(toy()), layers, with_ego, ROWS, views, taps)
    found = [torch.cat(pair) for pair in propagate(users, items, plan)]
    ego = torch.cat([users, items])
    every = [dense_layers(ego, layers, perturb) for perturb in views]
    expected = [torch.stack(part[not with_ego :]).mean(0)[PLACES] for part in every]
    expected += [every[0][tap][PLACES] for tap in taps]
    assert len(found) == len(expected)
    weights = [torch.randn(part.shape, generator=generator) for part in expected]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach())
    gradients = [
        torch.autograd.grad([(w * part).sum() for w, part in zip(weights, parts, strict=True)], [users, items])
        for parts in (found, expected)
    ]
    for mine, dense in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, dense)


@pytest.mark.parametrize("rows", [None, ROWS])
def test_a_product_has_the_value_and_gradient_of_the_dense_matrix(rows: tuple[np.ndarray, np.ndarray] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n + 1, 3, generator=generator, requires_grad=True) for n in (USERS, ITEMS))
    found = torch.cat(product(users, items, BipartiteGraph.of(toy()), rows))
    whole = dense_adjacency(toy()) @ torch.cat([users, items])
    expected = whole if rows is None else whole[PLACES]
    torch.testing.assert_close(found.detach(), expected.detach())
    weight = torch.randn(found.shape, generator=generator)
    ours, theirs = (torch.autograd.grad((weight * part).sum(), [users, items]) for part in (found, expected))
    for mine, dense in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, dense)


def test_the_gradient_of_repeated_rows_is_summed() -> None:
    compact = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    places = np.array([2, 0, 2, 2, 3])
    weight = torch.arange(15.0).reshape(5, 3)
    expanded = expand(compact, places)
    assert torch.equal(expanded, compact[torch.from_numpy(places)])
    (gradient,) = torch.autograd.grad((expanded * weight).sum(), compact)
    expected = torch.stack([weight[1], torch.zeros(3), weight[[0, 2, 3]].sum(0), weight[4]])
    assert torch.equal(gradient, expected)
