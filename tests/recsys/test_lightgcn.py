from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from recsys.losses import Loss, LossName
from recsys.models.lightgcn import LightGcn
from recsys.objective import Objective
from recsys.samplers import NegativeSampler, NegativeSampling, epoch_order
from recsys.settings import FitSettings
from tests.recsys.graph_fixture import ITEMS, USERS, dense_lightgcn, dense_map, full_map, tables, toy, two_row_map

MAPS = {"full": full_map, "two rows an id": two_row_map}


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("make_map", MAPS.values(), ids=MAPS)
def test_final_vectors_are_those_of_the_dense_equation(make_map: Callable[[int], IdMap], layers: int) -> None:
    train = toy()
    users, items = tables(train, make_map=make_map)
    model = LightGcn(users, items, layers=layers)
    model.use_graph(train)
    maps = dense_map(users.id_map), dense_map(items.id_map)
    expected = dense_lightgcn(users.weight(), items.weight(), maps, train, layers)
    torch.testing.assert_close(model.user_vectors(np.arange(USERS)), expected[:USERS])
    torch.testing.assert_close(model.item_vectors(range(ITEMS)), expected[USERS + 1 : -1])
    torch.testing.assert_close(model.user_vectors(np.array([-1, 99])), expected[[USERS, USERS]])


def dense_loss(loss: LossName, final: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """BPR, or softmax at temperature 0.5, of rows of ``final``; negatives [M] or [B, M]."""
    positive = (final[users] * final[positives]).sum(1, keepdim=True)
    other = torch.stack(
        [final[negatives if negatives.ndim == 1 else negatives[i]] @ final[u] for i, u in enumerate(users)]
    )
    if loss == "bpr":
        return functional.softplus(other - positive).mean()
    return functional.cross_entropy(torch.cat([positive, other], 1) / 0.5, torch.zeros(len(users), dtype=torch.int64))


@pytest.mark.parametrize("make_map", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize(("loss", "shared"), [("bpr", False), ("bpr", True), ("sampled_softmax", True)])
def test_adam_steps_have_the_losses_and_weights_of_dense_autograd(
    make_map: Callable[[int], IdMap], layers: int, loss: LossName, shared: bool
) -> None:
    """The golden losses: the paper's equations, eq. 15's penalty included, by torch autograd and torch.optim.Adam."""
    train, l2, first_item = toy(), 0.1, USERS + 1
    users, items = tables(train, OptimizerSpec("adam", lr=0.05), make_map)
    maps = dense_map(users.id_map), dense_map(items.id_map)
    rows = [torch.nn.Parameter(table.weight().clone()) for table in (users, items)]
    adam = torch.optim.Adam(rows, lr=0.05)
    model = LightGcn(users, items, layers=layers, l2=l2)
    model.use_graph(train)
    settings = FitSettings(
        Loss(loss, temperature=0.5), NegativeSampling(count=3 if shared else 1, shared=shared), batch_size=3
    )
    sampler = NegativeSampler(train, settings.negatives, seed=1)
    pairs = np.stack(train.nonzero(), axis=1).astype(np.int64)
    order = epoch_order(train.nnz, seed=1, phase="select", epoch=0)
    steps = list(Objective(model, train, settings, seed=1).steps("select", 0, 0))
    assert len(steps) >= 5
    bounds = np.linspace(0, train.nnz, len(steps) + 1).astype(int)
    for step, size, value in steps:
        batch = torch.from_numpy(pairs[order[bounds[step] : bounds[step + 1]]])
        draw = torch.from_numpy(sampler.draw(batch[:, 0].numpy(), "select", 0, step).items) + first_item
        final = dense_lightgcn(rows[0], rows[1], maps, train, layers)
        expected = dense_loss(loss, final, batch[:, 0], batch[:, 1] + first_item, draw)
        ego = torch.cat([maps[0] @ rows[0], maps[1] @ rows[1]])
        touched = torch.cat([batch[:, 0], batch[:, 1] + first_item, draw.reshape(-1)])
        expected = expected + 0.5 * l2 * ego[touched].square().sum() / size
        assert value == pytest.approx(float(expected.detach()), rel=1e-5)
        adam.zero_grad()
        expected.backward()  # type: ignore[no-untyped-call]
        adam.step()
    for table, row in zip((users, items), rows, strict=True):
        torch.testing.assert_close(table.weight(), row.detach(), rtol=1e-3, atol=2e-5)
