import math

import numba
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.stats import chisquare

from recsys.bpr_kernel import _KINDS, BprOptimizer, BprStep, BprTable, _block, bpr_epoch
from recsys.rng import generator

OPTIMIZERS: tuple[BprOptimizer, ...] = ("sgd", "rowwise_adagrad", "adagrad")


def table(ids: int, optimizer: BprOptimizer, dim: int = 8, seed: int = 0, rows: int | None = None) -> BprTable:
    count = rows or ids
    rng = np.random.default_rng(seed)
    state = {"sgd": (1, 1), "rowwise_adagrad": (count, 1), "adagrad": (count, dim)}[optimizer]
    weight = rng.standard_normal((count, dim)).astype(np.float32)
    return BprTable((np.arange(ids) % count).astype(np.int32), weight, np.full(state, 0.5, np.float32))


def interactions(users: int = 300, items: int = 200, seed: int = 0) -> csr_array:
    return csr_array((np.random.default_rng(seed).random((users, items)) < 0.1).astype(np.float32))


def epoch(users: BprTable, items: BprTable, train: csr_array, step: BprStep, number: int = 0) -> float:
    indptr, indices = train.indptr.astype(np.int32), train.indices.astype(np.int32)
    return bpr_epoch(users, items, indptr, indices, step, generator(1, "epoch", number))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_triple_is_one_step_of_torch(optimizer: BprOptimizer) -> None:
    users, items = table(1, optimizer), table(2, optimizer, seed=1)
    weights = [torch.tensor(w[None], requires_grad=True) for w in (users.weight[0], items.weight[0], items.weight[1])]
    u, i, j = weights
    lr, decay, eps = 0.3, 0.1, 1e-8
    loss = torch.nn.functional.softplus(-(u * (i - j)).sum())
    loss.backward()
    expected = []
    for w in weights:
        gradient = w.grad + decay * w.detach()
        state = {"sgd": 0.5, "rowwise_adagrad": 0.5 + gradient.square().mean(), "adagrad": 0.5 + gradient.square()}
        scale = 1.0 if optimizer == "sgd" else 1.0 / (torch.as_tensor(state[optimizer]).sqrt() + eps)
        expected.append((w.detach() - lr * gradient * scale).numpy()[0])
    only = np.zeros(1, np.int32)
    step = (_KINDS[optimizer], np.float32(lr), np.float32(decay), np.float32(eps))
    sides = [(t.rows, t.weight, t.state) for t in (users, items)]
    got = _block(*sides, only, only.copy(), np.ones(1, np.int32), step, np.uint64(3))
    assert got == pytest.approx(loss.item(), rel=1e-5)
    for mine, theirs in zip((users.weight[0], items.weight[0], items.weight[1]), expected, strict=True):
        assert np.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rows", [None, 37])
def test_the_bits_do_not_depend_on_the_number_of_threads(optimizer: BprOptimizer, rows: int | None) -> None:
    train, results = interactions(), []
    before = numba.get_num_threads()
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            users, items = table(300, optimizer, rows=rows), table(200, optimizer, seed=1, rows=rows)
            losses = [epoch(users, items, train, BprStep(optimizer, 0.1, 0.01), number) for number in range(3)]
            results.append((losses, users.weight, items.weight, users.state, items.state))
    finally:
        numba.set_num_threads(before)
    assert results[0][0] == results[1][0]
    for one, two in zip(results[0][1:], results[1][1:], strict=True):
        assert np.array_equal(one, two)


def test_every_interaction_is_used_once_and_negatives_are_uniform() -> None:
    """From zero item vectors a tiny step moves item k by half a step for each (positive - negative) use of it."""
    train = interactions()
    users = BprTable(np.arange(300, dtype=np.int32), np.ones((300, 1), np.float32), np.zeros((1, 1), np.float32))
    items = BprTable(np.arange(200, dtype=np.int32), np.zeros((200, 1), np.float32), np.zeros((1, 1), np.float32))
    lr, epochs = 1e-7, 20
    for number in range(epochs):
        assert epoch(users, items, train, BprStep("sgd", lr), number) == pytest.approx(math.log(2), rel=1e-3)
    balance = items.weight[:, 0] / (0.5 * lr)
    drawn = epochs * np.bincount(train.indices, minlength=200) - balance
    assert drawn.sum() == pytest.approx(epochs * train.nnz, rel=1e-3)
    assert chisquare(drawn, np.full(200, drawn.sum() / 200)).pvalue > 1e-4


def test_a_tiny_catalogue_is_trained() -> None:
    train = csr_array(np.tile([[1.0, 0.0], [0.0, 1.0]], (20, 1)).astype(np.float32))
    users, items = table(40, "sgd"), table(2, "sgd", seed=1)
    losses = [epoch(users, items, train, BprStep("sgd", 0.3), number) for number in range(30)]
    assert losses[-1] < losses[0] / 2 + math.log(2) / 4


def test_training_ranks_the_checkerboard() -> None:
    dense = (np.add.outer(np.arange(40), np.arange(30)) % 2 == 0).astype(np.float32)
    dense[np.random.default_rng(0).random(dense.shape) < 0.3] = 0.0
    users, items = table(40, "adagrad"), table(30, "adagrad", seed=1)
    losses = [epoch(users, items, csr_array(dense), BprStep("adagrad", 0.3, 0.01), k) for k in range(40)]
    assert losses[-1] < 0.5 < losses[0]
    scores = users.weight @ items.weight.T
    same = np.add.outer(np.arange(40), np.arange(30)) % 2 == 0
    assert scores[same].min() > scores[~same].max()
