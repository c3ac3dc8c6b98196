"""UltraGCN against the paper's equations written out pair by pair, and on degenerate graphs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from test_trainer import SETTINGS, make_model, planted, timeless, weights

from recsys.losses import Constraints, Loss, Negatives
from recsys.models.lightgcn import LightGcn
from recsys.samplers import NegativeSampler, NegativeSampling, epoch_order
from recsys.trainer import fit
from recsys.ultragcn import UltraGcn, constraint_loss, item_neighbours

ULTRAGCN = dataclasses.replace(
    SETTINGS,
    loss=Loss("ultragcn", constraints=Constraints((0.1, 1.0, 0.2, 0.5), 3.0, 2, 0.7)),
    negatives=NegativeSampling(count=5, shared=False),
)


def dense_omega(matrix: np.ndarray) -> np.ndarray:
    gram = matrix.T @ matrix
    sums = gram.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        omega = gram / (sums - np.diag(gram))[:, None] * np.sqrt(sums[:, None] / sums[None, :])
    np.fill_diagonal(omega, 0.0)
    return np.nan_to_num(omega, posinf=0.0)


def test_neighbours_are_the_largest_weights_of_the_dense_matrix() -> None:
    matrix = (np.random.default_rng(0).random((40, 600)) < 0.05).astype(np.float64)
    matrix[:, 7] = 0
    indices, found = item_neighbours(csr_array(matrix.astype(np.float32)), 6)
    omega = dense_omega(matrix)
    for item in range(600):
        order = np.lexsort((np.arange(600), -omega[item]))[:6]
        kept = omega[item][order] > 0
        assert np.array_equal(indices[item][: kept.sum()], order[kept])
        assert np.allclose(found[item], np.where(kept, omega[item][order], 0), rtol=1e-6)
    assert not found[7].any()


@pytest.mark.parametrize("shared", [False, True])
def test_a_step_is_the_loss_of_the_paper(shared: bool) -> None:
    """The value that the first step reports, from the model's vectors and the draws, one logarithm at a time."""
    train, _ = planted()
    sampling = NegativeSampling(count=5, shared=shared, reject_positives=shared)
    settings = dataclasses.replace(ULTRAGCN, negatives=sampling, batch_size=10**6)
    model = make_model(similarity="dot")
    objective = UltraGcn(model, train, settings, seed=3)
    vectors = [v.double().numpy() for v in (model.user_vectors(np.arange(60)), model.item_vectors(range(48)))]
    [(_, size, value)] = list(objective.steps("select", 0, 0))
    assert size == train.nnz
    chosen = epoch_order(train.nnz, seed=3, phase="select", epoch=0)
    users, items = (part[chosen] for part in (np.repeat(np.arange(60), np.diff(train.indptr)), train.indices))
    draw = NegativeSampler(train, sampling, seed=3).draw(users.astype(np.int64), "select", 0, 0)
    dense = train.toarray().astype(np.float64)
    degree_u, degree_i, omega = dense.sum(1), dense.sum(0), dense_omega(dense)
    total = 0.0
    for b, (u, i) in enumerate(zip(users, items, strict=True)):
        beta = [math.sqrt((degree_u[u] + 1) / (degree_i[j] + 1)) / degree_u[u] for j in range(48)]
        log_sigmoid = [-math.log1p(math.exp(-s)) for s in vectors[0][u] @ vectors[1].T]
        total -= (0.1 + beta[i]) * log_sigmoid[i]
        for j in draw.items if shared else draw.items[b]:
            if not (shared and dense[u, j]):
                other = -math.log1p(math.exp(vectors[0][u] @ vectors[1][j]))
                total -= 3.0 / 5 * (0.2 + 0.5 * beta[j]) * other
        for k in np.lexsort((np.arange(48), -omega[i]))[:2]:
            total -= 0.7 * omega[i, k] * log_sigmoid[k]
    assert value == pytest.approx(total / size, rel=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (4, 3), (5, 3), (4, 2, 3)]
    inputs = [torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]
    factors = tuple(torch.rand(*shape, dtype=torch.float64, generator=generator) for shape in [(4,), (4, 5), (4, 2)])
    assert torch.autograd.gradcheck(lambda *tensors: constraint_loss(*tensors, factors, 0.7), inputs)  # type: ignore[arg-type]


def test_two_runs_have_the_same_bits_and_the_neighbours_matter() -> None:
    train, valid = planted()
    models = [make_model(similarity="dot") for _ in range(2)]
    runs = [fit(model, train, valid, ULTRAGCN, seed=3) for model in models]
    assert timeless(runs[0]) == timeless(runs[1])
    assert all(torch.equal(tensor, weights(models[1])[name]) for name, tensor in weights(models[0]).items())
    assert max(r.metrics["recall@5"] for r in runs[0].history if r.metrics) > 0.6
    alone = dataclasses.replace(ULTRAGCN, loss=Loss("ultragcn", constraints=Constraints(neighbour_weight=0.0)))
    assert timeless(fit(make_model(similarity="dot"), train, valid, alone, seed=3)) != timeless(runs[0])


def test_degenerate_graphs() -> None:
    indices, omega = item_neighbours(csr_array(np.ones((1, 1), np.float32)), 3)
    assert indices.shape == (1, 3) and not omega.any()
    model = make_model(similarity="dot")
    lonely = csr_array((np.ones(1, np.float32), ([3], [5])), shape=(60, 48))
    fit(model, lonely, None, ULTRAGCN, seed=0)
    assert torch.isfinite(model.scores(np.arange(60))).all()
    assert model.scores(np.array([3]))[0].argmax() == 5


def test_an_item_of_100_000_users_is_everybody_s_neighbour_but_its_own() -> None:
    users = np.arange(100_000)
    rows, columns = np.concatenate([users, users]), np.concatenate([np.zeros(100_000, np.int64), 1 + users % 3])
    train = csr_array((np.ones(200_000, np.float32), (rows, columns)), shape=(100_000, 4))
    indices, omega = item_neighbours(train, 2)
    assert indices[1:, 0].tolist() == [0, 0, 0] and (omega[1:, 1] == 0).all() and 0 not in indices[0]
    # G_10 = 33,333, g_1 - G_11 = 33,333, g_1 = 66,666, g_0 = 200,000
    assert omega[2, 0] == pytest.approx(math.sqrt(66_666 / 200_000))


def test_messages() -> None:
    u = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"ultragcn loss needs degrees and neighbours; train it by recsys\.ultragcn"):
        Loss("ultragcn")(u, u, torch.arange(2), Negatives(u))
    with pytest.raises(ValueError, match=r"ultragcn loss needs train\.precision float32, got bfloat16"):
        UltraGcn(make_model(), planted()[0], dataclasses.replace(ULTRAGCN, precision="bfloat16"), seed=0)
    for loss, group in (("0.5", None), ("0.0", 4)):
        negatives = dataclasses.replace(ULTRAGCN.negatives, group=group)
        settings = dataclasses.replace(ULTRAGCN, loss=Loss("ultragcn", user_dropout=float(loss)), negatives=negatives)
        with pytest.raises(
            ValueError, match=rf"needs user_dropout 0 and negatives\.group None, got {loss} and {group}"
        ):
            UltraGcn(make_model(similarity="dot"), planted()[0], settings, seed=0)
    tables = make_model()
    with pytest.raises(ValueError, match=r"stands for propagation and needs model mf, got LightGcn"):
        UltraGcn(LightGcn(tables.users, tables.items), planted()[0], ULTRAGCN, seed=0)
