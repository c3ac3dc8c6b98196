"""NeuMF against a dense version of the paper's equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

from embeddings.tables import OptimizerSpec
from recsys.losses import Loss, Negatives
from recsys.models.neumf import NeuMf
from recsys.neumf_steps import NeuMfSteps
from recsys.retriever import VectorRetriever
from recsys.samplers import NegativeSampler, NegativeSampling, epoch_order
from recsys.settings import FitSettings
from recsys.trainer import fit
from tests.recsys.graph_fixture import ITEMS, USERS, dense_map, tables, toy, two_row_map

HALF = 3


def settings(*, shared: bool) -> FitSettings:
    sampling = NegativeSampling(count=4, shared=shared, reject_positives=shared)
    return FitSettings(Loss("log_loss"), sampling, batch_size=3, epochs=2)


def neumf(train: csr_array, widths: tuple[int, ...] = (5, 4), dim: int = 2 * HALF) -> NeuMf:
    made = tables(train, OptimizerSpec("adam", lr=0.01), two_row_map, dim=dim)
    return NeuMf(*made, widths=widths, generator=np.random.default_rng(5))


def dense_score(user: Tensor, item: Tensor, matrices: list[Tensor], biases: list[Tensor]) -> Tensor:
    """He et al. 2017, eq. 12, for one user and one item."""
    hidden = torch.cat([user[HALF:], item[HALF:]])
    for matrix, bias in zip(matrices[:-1], biases[:-1], strict=True):
        hidden = functional.relu(matrix.T @ hidden + bias)
    return (matrices[-1].T @ torch.cat([user[:HALF] * item[:HALF], hidden]) + biases[-1])[0]


@pytest.mark.parametrize("shared", [False, True])
def test_adam_steps_have_the_losses_and_weights_of_dense_autograd(shared: bool) -> None:
    """Pair by pair, with the negatives that are positives of a user left out where they are shared."""
    train, model, chosen = toy(), neumf(toy()), settings(shared=shared)
    maps = dense_map(model.users.id_map), dense_map(model.items.id_map)
    ours = [model.users.weight(), model.items.weight(), *model.matrices, *model.biases]
    dense: list[Tensor] = [torch.nn.Parameter(part.detach().clone()) for part in ours]
    matrices, biases = dense[2:5], dense[5:]
    adam = torch.optim.Adam(dense, lr=0.01)
    sampler = NegativeSampler(train, chosen.negatives, seed=1)
    pairs = np.stack(train.nonzero(), axis=1).astype(np.int64)
    order = epoch_order(train.nnz, seed=1, phase="select", epoch=0)
    steps = list(NeuMfSteps(model, train, chosen, seed=1).steps("select", 0, 0))
    assert len(steps) >= 5
    bounds = np.linspace(0, train.nnz, len(steps) + 1).astype(int)
    for step, size, value in steps:
        batch = pairs[order[bounds[step] : bounds[step + 1]]]
        drawn = sampler.draw(batch[:, 0], "select", 0, step).items
        users, items = maps[0] @ dense[0], maps[1] @ dense[1]
        losses = []
        for row, (user, positive) in enumerate(batch.tolist()):
            others = drawn if shared else drawn[row]
            kept = [j for j in others.tolist() if not (shared and train.toarray()[user, j])]
            losses.append(-torch.log(torch.sigmoid(dense_score(users[user], items[positive], matrices, biases))))
            losses += [
                -torch.log(1 - torch.sigmoid(dense_score(users[user], items[j], matrices, biases))) for j in kept
            ]
        expected = torch.stack(losses).mean()
        assert size == len(batch) and value == pytest.approx(float(expected.detach()), rel=1e-4)
        adam.zero_grad()
        expected.backward()  # type: ignore[no-untyped-call]
        adam.step()
    for mine, theirs in zip(ours, dense, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-3, atol=1e-4)


def test_scores_are_made_in_blocks_and_are_those_of_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = neumf(toy())
    assert not isinstance(model, VectorRetriever)
    whole = model.scores(np.arange(USERS))
    monkeypatch.setattr("recsys.models.neumf._NUMBERS_AT_ONCE", 18)
    torch.testing.assert_close(model.scores(np.arange(USERS)), whole)
    users, items = model.users.vectors(), model.items.vectors()
    for user in range(USERS):
        for item in range(ITEMS):
            expected = dense_score(users[user], items[item], list(model.matrices), list(model.biases))
            assert float(whole[user, item]) == pytest.approx(float(expected.detach()), abs=1e-5)


def test_the_log_loss_of_vectors_is_that_of_their_scores() -> None:
    user, positive, others = (torch.randn(2, 3, generator=torch.Generator().manual_seed(i)) for i in range(3))
    hits = torch.tensor([0]), torch.tensor([1])
    value = Loss("log_loss")(user, positive, torch.arange(2), Negatives(others, hits=hits))
    scores = torch.cat([(user * positive).sum(1), (user @ others.T).reshape(-1)[[0, 2, 3]]])
    labels = torch.tensor([1.0, 1, 0, 0, 0])
    torch.testing.assert_close(value, functional.binary_cross_entropy_with_logits(scores, labels))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (50, 40)])
def test_unusual_data_trains_to_finite_scores(shape: tuple[int, int]) -> None:
    train = csr_array(np.ones(shape, np.float32))
    if shape == (50, 40):
        train = csr_array((np.ones(1, np.float32), ([3], [2])), shape=shape)
    model = neumf(train)
    result = fit(model, train, None, settings(shared=False), seed=0)
    assert np.isfinite([record.loss for record in result.history]).all()
    assert torch.isfinite(model.scores(np.arange(shape[0]))).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"NeuMf needs tables of an even dimension and widths >= 1, got 5 and \[4\]"):
        neumf(toy(), widths=(4,), dim=5)
    with pytest.raises(ValueError, match=r"widths >= 1, got 6 and \[\]"):
        neumf(toy(), widths=())
    by_user = FitSettings(Loss("log_loss"), positives="users")
    with pytest.raises(ValueError, match="NeuMF takes every interaction once: positives must be that, got 'users'"):
        fit(neumf(toy()), toy(), None, by_user, seed=0)
    grouped = FitSettings(Loss("log_loss"), NegativeSampling(group=4))
    with pytest.raises(ValueError, match=r"NeuMf have no groups: negatives\.group must be None, got 4"):
        fit(neumf(toy()), toy(), None, grouped, seed=0)
    with pytest.raises(ValueError, match=r"NeuMf needs loss log_loss .*, got loss bpr \(0.0\), 1.0, None and float32"):
        fit(neumf(toy()), toy(), None, FitSettings(Loss("bpr")), seed=0)
