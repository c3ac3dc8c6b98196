"""BSL, Adap-tau and CCL against the papers' equations written out, and against torch's autograd on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.contrastive_losses import (
    InverseTemperatures,
    adaptive_softmax,
    bilateral_softmax,
    cosine_contrastive,
    plain_softmax_rows,
)
from recsys.losses import Loss, LossName, Negatives
from recsys.negative_kernel import shared_log_mean_exp

B, M, D = 9, 11, 5
USERS = torch.tensor([4, 1, 4, 4, 0, 1, 7, 8, 9])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def hits_of(excluded: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = excluded.nonzero(as_tuple=True)
    return rows, columns


def some_excluded() -> Tensor:
    excluded = torch.zeros(B, M, dtype=torch.bool)
    excluded[[0, 0, 3, 8], [1, 10, 4, 0]] = True
    excluded[5] = True
    return excluded


def paper_log_mean_exp(u: Tensor, n: Tensor, scale: Tensor, excluded: Tensor) -> Tensor:
    rows = []
    for b in range(len(u)):
        scores = [torch.exp(scale[b] * (u[b] * n[m]).sum()) for m in range(len(n)) if not excluded[b, m]]
        rows.append(torch.log(sum(scores, torch.tensor(0.0)) / len(scores)) if scores else torch.tensor(0.0))
    return torch.stack(rows).mean()


@pytest.mark.parametrize("size", [1.0, 40.0])
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_is_the_log_of_the_mean_of_exponentials(size: float, masked: bool) -> None:
    """At size 40 the exponents pass the bound beyond which they are shifted."""
    u, n, scale = draw(B, D), draw(M, D, seed=2), size * torch.linspace(0.5, 3, B, dtype=torch.float64)
    excluded = some_excluded() if masked else torch.zeros(B, M, dtype=torch.bool)
    want = paper_log_mean_exp(u, n, scale, excluded)
    got = shared_log_mean_exp(u, n, scale, hits=hits_of(excluded) if masked else None)
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    for mine, theirs in zip(torch.autograd.grad(got * 3, (u, n)), torch.autograd.grad(want * 3, (u, n)), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_kernel_is_the_same_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    u, n, scale = draw(B, D), draw(M, D, seed=2), torch.linspace(0.5, 3, B, dtype=torch.float64)
    hits = hits_of(some_excluded())

    def run() -> tuple[Tensor, ...]:
        value = shared_log_mean_exp(u, n, scale, hits=hits)
        return value, *torch.autograd.grad(value, (u, n))

    whole = run()
    monkeypatch.setattr("recsys.negative_kernel._BLOCK_ELEMENTS", 2 * M)
    for one, two in zip(whole, run(), strict=True):
        assert torch.allclose(one, two, rtol=1e-12, atol=1e-14)


def paper_bsl(u: Tensor, p: Tensor, n: Tensor, tau_1: float, tau_2: float) -> Tensor:
    """``-tau_1 ln E_i e^{s_i / tau_1} + tau_2 ln E_j e^{s_j / tau_2}``, mean over the rows of the batch."""
    total = torch.tensor(0.0, dtype=torch.float64)
    for b in range(B):
        mine = torch.stack([(u[a] * p[a]).sum() for a in range(B) if USERS[a] == USERS[b]])
        positive = tau_1 * torch.log(torch.exp(mine / tau_1).mean())
        total = total - positive + tau_2 * torch.log(torch.exp(n @ u[b] / tau_2).mean())
    return total / B


@pytest.mark.parametrize("own", [False, True])
def test_bsl_is_the_equation_of_the_paper(own: bool) -> None:
    u, p, n = draw(B, D), draw(B, D, seed=1), draw(M, D, seed=2)
    tau_1, tau_2 = 0.7, 1.9
    want = paper_bsl(u, p, n, tau_1, tau_2) / tau_1
    negatives = Negatives(n.expand(B, M, D) if own else n)
    got = bilateral_softmax(
        u, p, negatives, USERS, temperature=tau_2, positive_temperature=tau_1, exponent=tau_2 / tau_1
    )
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    for mine, theirs in zip(torch.autograd.grad(got, (u, p, n)), torch.autograd.grad(want, (u, p, n)), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


def test_bsl_of_equal_scores_is_zero_and_its_exponent_weighs_the_negatives() -> None:
    ones = torch.ones(3, 2)
    loss = Loss("bsl", temperature=0.5, positive_temperature=0.5, exponent=1.5)
    assert loss(ones, ones, torch.arange(3), Negatives(torch.ones(4, 2)), users_B=torch.arange(3)).item() == (
        pytest.approx(1.5 * 4 - 4)
    )
    assert Loss("bsl", 0.5, positive_temperature=0.5)(
        ones, ones, torch.arange(3), Negatives(torch.ones(4, 2))
    ).item() == pytest.approx(0.0, abs=1e-6)


def test_bsl_pools_large_scores_without_overflow() -> None:
    u, p = torch.tensor([[1000.0], [1000.0]]), torch.tensor([[1.0], [2.0]])
    loss = Loss("bsl", 1.0, positive_temperature=1.0, exponent=0.0)
    got = loss(u, p, torch.arange(2), Negatives(torch.zeros(1, 1)), users_B=torch.tensor([5, 5]))
    assert got.item() == pytest.approx(-(2000 - math.log(2)))


@pytest.mark.parametrize("own", [False, True])
def test_adap_tau_is_the_equation_of_the_paper(own: bool) -> None:
    u, p, n = draw(B, D), draw(B, D, seed=1), draw(M, D, seed=2)
    inverse = torch.linspace(0.3, 2.0, B, dtype=torch.float64)
    rows = [-1.3 * (u[b] * p[b]).sum() + torch.log(torch.exp(inverse[b] * (n @ u[b])).mean()) for b in range(B)]
    want = torch.stack(rows).mean()
    got = adaptive_softmax(u, p, Negatives(n.expand(B, M, D) if own else n), InverseTemperatures(1.3, inverse))
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    for mine, theirs in zip(torch.autograd.grad(got, (u, p, n)), torch.autograd.grad(want, (u, p, n)), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_losses_of_the_users_have_no_temperature() -> None:
    u, p, n = draw(B, D).detach(), draw(B, D, seed=1).detach(), draw(M, D, seed=2).detach()
    want = [math.log(sum(math.exp(float(s)) for s in n @ u[b])) - float((u[b] * p[b]).sum()) for b in range(B)]
    assert np.allclose(plain_softmax_rows(u, p, Negatives(n)).numpy(), want)
    only = torch.ones(B, M, dtype=torch.bool)
    only[:, 3] = False
    assert np.allclose(plain_softmax_rows(u, p, Negatives(n, hits=hits_of(only))).numpy(), ((u * n[3] - u * p).sum(1)))


def test_ccl_closed_form_with_shared_own_and_excluded_negatives() -> None:
    u, p = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    shared = torch.tensor([[0.8, 0.6], [0.28, 0.96], [-1.0, 0.0]])
    above = [[0.8 - 0.5, 0, 0], [0.6 - 0.5, 0.96 - 0.5, 0]]
    positive = (0.4 + 0.0) / 2
    want = positive + 12 * sum(map(sum, above)) / 6
    assert cosine_contrastive(u, p, Negatives(shared), margin=0.5, negative_weight=12).item() == pytest.approx(want)
    own = Negatives(shared.expand(2, 3, 2))
    assert cosine_contrastive(u, p, own, margin=0.5, negative_weight=12).item() == pytest.approx(want)
    hits = (torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]))
    want = positive + 12 * (0 + 0.1 / 1) / 2
    got = Loss("ccl", margin=0.5, negative_weight=12)(u, p, torch.arange(2), Negatives(shared, hits=hits))
    assert got.item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", ["bsl", "adap_tau", "ccl"])
def test_gradients_equal_finite_differences(name: LossName) -> None:
    inputs = draw(B, D), draw(B, D, seed=1), draw(M, D, seed=2)
    loss = Loss(name, 0.4, positive_temperature=0.6, exponent=1.3, margin=0.1, negative_weight=3)
    temperatures = InverseTemperatures(1.1, torch.linspace(0.5, 2, B, dtype=torch.float64))

    def value(u: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return loss(u, p, torch.arange(B), Negatives(n), users_B=USERS, temperatures=temperatures)

    gradients = torch.autograd.grad(value(*inputs), inputs)
    for place, gradient in enumerate(gradients):
        for row, column in ((0, 0), (3, 2), (8, 4)):
            values = []
            for sign in (1, -1):
                moved = [tensor.detach().clone() for tensor in inputs]
                moved[place][row, column] += sign * 1e-6
                values.append(value(*moved).item())
            assert gradient[row, column].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_messages() -> None:
    u = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"adap_tau loss needs temperatures, got None; give it AdaptiveTemperature"):
        Loss("adap_tau")(u, u, torch.arange(2), Negatives(u))
    with pytest.raises(ValueError, match="the bsl loss needs sampled negatives, got None"):
        Loss("bsl")(u, u, torch.arange(2))
