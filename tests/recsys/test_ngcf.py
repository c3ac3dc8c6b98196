from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embeddings.tables import OptimizerSpec
from recsys.losses import Loss
from recsys.models.ngcf import Ngcf
from recsys.objective import Objective
from recsys.samplers import NegativeSampler, NegativeSampling, epoch_order
from recsys.settings import FitSettings
from tests.recsys.graph_fixture import ITEMS, USERS, dense_adjacency, dense_map, tables, toy, two_row_map


def dense_ngcf(ego: Tensor, mixers: Tensor, adjacency: Tensor) -> Tensor:
    """Wang et al. 2019, eq. 7 and 10: [users + 1 + items + 1, D (K + 1)]."""
    layers = [ego]
    for first, second in mixers:
        x = layers[-1]
        around = adjacency @ x
        layers.append(functional.leaky_relu((around + x) @ first + (around * x) @ second, 0.2))
    return torch.cat(layers, 1)


def make_model(layers: int, lr: float = 0.01, dropout: float = 0.0) -> Ngcf:
    train = toy()
    users, items = tables(train, OptimizerSpec("adam", lr=lr), two_row_map)
    model = Ngcf(users, items, layers=layers, l2=0.1, dropout=dropout, generator=np.random.default_rng(5))
    model.use_graph(train)
    return model


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_adam_steps_have_the_losses_and_weights_of_dense_autograd(layers: int) -> None:
    """The golden losses of BPR, by torch autograd and torch.optim.Adam over the rows and the matrices."""
    train, model, first_item = toy(), make_model(layers), USERS + 1
    maps = dense_map(model.users.id_map), dense_map(model.items.id_map)
    parameters = [model.users.weight().clone(), model.items.weight().clone(), model.mixers.detach().clone()]
    users, items, mixers = (torch.nn.Parameter(part) for part in parameters)
    adam = torch.optim.Adam([users, items, mixers], lr=0.01)
    settings = FitSettings(Loss("bpr"), NegativeSampling(count=1, shared=False), batch_size=3)
    sampler = NegativeSampler(train, settings.negatives, seed=1)
    pairs = np.stack(train.nonzero(), axis=1).astype(np.int64)
    order = epoch_order(train.nnz, seed=1, phase="select", epoch=0)
    steps = list(Objective(model, train, settings, seed=1).steps("select", 0, 0))
    assert len(steps) >= 5
    bounds = np.linspace(0, train.nnz, len(steps) + 1).astype(int)
    for step, size, value in steps:
        batch = torch.from_numpy(pairs[order[bounds[step] : bounds[step + 1]]])
        draw = torch.from_numpy(sampler.draw(batch[:, 0].numpy(), "select", 0, step).items)[:, 0] + first_item
        ego = torch.cat([maps[0] @ users, maps[1] @ items])
        final = dense_ngcf(ego, mixers, dense_adjacency(train))
        user, positive, negative = final[batch[:, 0]], final[batch[:, 1] + first_item], final[draw]
        expected = functional.softplus(((negative - positive) * user).sum(1)).mean()
        touched = torch.cat([batch[:, 0], batch[:, 1] + first_item, draw])
        expected = expected + 0.05 * ego[touched].square().sum() / size
        assert value == pytest.approx(float(expected.detach()), rel=1e-4)
        adam.zero_grad()
        expected.backward()  # type: ignore[no-untyped-call]
        adam.step()
    for ours, theirs in zip(
        (model.users.weight(), model.items.weight(), model.mixers), (users, items, mixers), strict=True
    ):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-3, atol=1e-4)
    assert model.item_vectors(range(ITEMS)).shape == (ITEMS, model.users.dim * (layers + 1))


def test_dropout_is_for_training_only_and_differs_by_step() -> None:
    model = make_model(2, dropout=0.5)
    ids = np.arange(USERS), np.arange(ITEMS)
    evaluated = model.user_vectors(ids[0])
    first, again, other = (model.look_up(*ids, 0, "select", 0, step).users.detach() for step in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    dropped = (first == 0) & (evaluated != 0)
    assert 0.3 < dropped[:, model.users.dim : 2 * model.users.dim].float().mean() < 0.7
    assert torch.equal(model.user_vectors(ids[0]), evaluated)


def test_a_dropout_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 0 <= dropout < 1, got 1"):
        make_model(1, dropout=1.0)
