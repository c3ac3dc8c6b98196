"""SimpleX against a dense version of the paper's equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

from embeddings.tables import OptimizerSpec
from recsys.losses import Loss
from recsys.models.simplex import Pooling, SimpleX
from recsys.objective import Objective
from recsys.samplers import NegativeSampler, NegativeSampling, epoch_order
from recsys.settings import FitSettings
from recsys.trainer import fit
from tests.recsys.graph_fixture import ITEMS, USERS, dense_map, tables, toy, two_row_map

SETTINGS = FitSettings(
    Loss("ccl", margin=0.1, negative_weight=3.0), NegativeSampling(count=2, shared=False), batch_size=3, epochs=2
)


def simplex(train: csr_array, pooling: Pooling = "mean", user_weight: float = 0.3) -> SimpleX:
    made = tables(train, OptimizerSpec("adam", lr=0.01), two_row_map)
    return SimpleX(*made, user_weight=user_weight, pooling=pooling, generator=np.random.default_rng(5))


def dense_users(users: Tensor, items: Tensor, mixers: Tensor, queries: Tensor, pooling: Pooling) -> Tensor:
    """Mao et al. 2021, sec. 3.2, user by user."""
    rows = []
    for user, likes in enumerate(toy().toarray() > 0):
        history = items[:-1][torch.from_numpy(likes)]
        pooled = torch.zeros(items.shape[1])
        if len(history) and pooling == "mean":
            pooled = history.mean(0)
        elif len(history):
            pooled = torch.softmax(torch.tanh(history @ mixers[1] + queries[1]) @ queries[0], 0) @ history
        rows.append(0.3 * users[user] + 0.7 * pooled @ mixers[0])
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_adam_steps_have_the_losses_and_weights_of_dense_autograd(pooling: Pooling) -> None:
    train, model = toy(), simplex(toy(), pooling)
    model.use_graph(train)
    maps = dense_map(model.users.id_map), dense_map(model.items.id_map)
    ours = [model.users.weight(), model.items.weight(), model.mixers, model.queries]
    users, items, mixers, queries = (torch.nn.Parameter(part.detach().clone()) for part in ours)
    adam = torch.optim.Adam([users, items, mixers, queries], lr=0.01)
    sampler = NegativeSampler(train, SETTINGS.negatives, seed=1)
    pairs = np.stack(train.nonzero(), axis=1).astype(np.int64)
    order = epoch_order(train.nnz, seed=1, phase="select", epoch=0)
    steps = list(Objective(model, train, SETTINGS, seed=1).steps("select", 0, 0))
    assert len(steps) >= 5
    bounds = np.linspace(0, train.nnz, len(steps) + 1).astype(int)
    for step, _, value in steps:
        batch = pairs[order[bounds[step] : bounds[step + 1]]]
        drawn = sampler.draw(batch[:, 0], "select", 0, step).items
        item = functional.normalize(maps[1] @ items)
        user = functional.normalize(dense_users(maps[0] @ users, maps[1] @ items, mixers, queries, pooling))
        user = user[batch[:, 0]]
        positive, negative = (user * item[batch[:, 1]]).sum(1), torch.einsum("bd,bmd->bm", user, item[drawn])
        expected = (1 - positive + 3.0 * functional.relu(negative - 0.1).mean(1)).mean()
        assert value == pytest.approx(float(expected.detach()), rel=1e-4)
        adam.zero_grad()
        expected.backward()  # type: ignore[no-untyped-call]
        adam.step()
    for mine, theirs in zip(ours, (users, items, mixers, queries), strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (50, 40)])
def test_unusual_data_trains_to_finite_scores(shape: tuple[int, int], pooling: Pooling) -> None:
    """Of 50 users and 40 items one user and one item have an interaction."""
    train = csr_array(np.ones(shape, np.float32))
    if shape == (50, 40):
        train = csr_array((np.ones(1, np.float32), ([3], [2])), shape=shape)
    model = simplex(train, pooling)
    result = fit(model, train, None, SETTINGS, seed=0)
    assert np.isfinite([record.loss for record in result.history]).all()
    assert torch.isfinite(model.scores(np.arange(shape[0]))).all()


def test_unknown_users_have_no_history_and_the_history_is_that_of_the_last_phase() -> None:
    model = simplex(toy())
    model.use_graph(toy())
    unseen = model.users.vectors(torch.tensor([USERS]))
    far = model.user_vectors(np.array([-1, USERS, 10**9]))
    torch.testing.assert_close(far, functional.normalize(unseen).expand(3, -1))
    valid = csr_array((np.ones(2, np.float32), ([4, 4], [2, 0])), shape=toy().shape)
    fit(model, toy(), valid, SETTINGS, seed=0)
    assert model.history.nnz == toy().nnz + 2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SimpleX needs 0 <= user_weight <= 1, got 1\.5"):
        simplex(toy(), user_weight=1.5)
    with pytest.raises(RuntimeError, match=r"needs the users' histories, got none; call use_graph\(train\) or fit it"):
        simplex(toy()).user_vectors(np.arange(ITEMS))
    with pytest.raises(
        ValueError, match=r"histories must have the model's shape \(9, 7\) \(users, items\), got \(2, 3\)"
    ):
        simplex(toy()).use_graph(csr_array(np.ones((2, 3), np.float32)))
