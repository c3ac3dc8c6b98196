"""Losses against closed forms, against torch's autograd on the textbook formula, and against finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from recsys.losses import Loss, Negatives, bpr, directau, in_batch_softmax, sampled_softmax
from recsys.softmax_kernel import shared_softmax

B, M, D = 7, 11, 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def textbook_softmax(u: Tensor, p: Tensor, n: Tensor, temperature: float, offset: Tensor, excluded: Tensor) -> Tensor:
    logits = u @ n.T / temperature + offset
    positive = (u * p).sum(1, keepdim=True) / temperature
    everything = torch.cat([positive, logits.masked_fill(excluded, -torch.inf)], 1)
    return functional.cross_entropy(everything, torch.zeros(len(u), dtype=torch.int64))


def test_bpr_of_equal_scores_is_log_two() -> None:
    assert bpr(torch.ones(3, 2), torch.ones(3, 2), Negatives(torch.ones(4, 2))).item() == pytest.approx(math.log(2))


def test_bpr_closed_form_for_shared_and_own_negatives() -> None:
    user, positive = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 1.0], [1.0, 1.0]])
    shared = torch.tensor([[1.0, 1.0], [0.0, -1.0]])
    margins = [3 - 1, 3 - 0, 2 - 2, 2 + 2]
    expected = sum(math.log1p(math.exp(-m)) for m in margins) / 4
    assert bpr(user, positive, Negatives(shared)).item() == pytest.approx(expected)
    own = shared.expand(2, 2, 2)
    assert bpr(user, positive, Negatives(own)).item() == pytest.approx(expected)


def test_bpr_skips_known_positives_among_shared_negatives() -> None:
    user, positive = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 1.0], [1.0, 1.0]])
    shared = torch.tensor([[1.0, 1.0], [0.0, -1.0]])
    hits = (torch.tensor([0, 1]), torch.tensor([0, 1]))
    expected = (math.log1p(math.exp(-3)) + math.log(2)) / 2
    assert bpr(user, positive, Negatives(shared, hits=hits)).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [2.0, 0.1, 0.001])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
def test_the_softmax_kernel_is_the_textbook_softmax(temperature: float, masked: bool, corrected: bool) -> None:
    u, p, n = draw(B, D), draw(B, D, seed=1), draw(M, D, seed=2)
    offset = draw(M, seed=3).detach() if corrected else torch.zeros(M, dtype=torch.float64)
    excluded = torch.zeros(B, M, dtype=torch.bool)
    if masked:
        excluded[[0, 0, 3, 6], [1, 10, 4, 0]] = True
    want = textbook_softmax(u, p, n, temperature, offset, excluded)
    want_grad = torch.autograd.grad(want, (u, p, n))
    rows, columns = excluded.nonzero(as_tuple=True)
    got = shared_softmax(
        u,
        p,
        n,
        temperature=temperature,
        offset_M=offset if corrected else None,
        hits=(rows, columns) if masked else None,
    )
    got_grad = torch.autograd.grad(got * 3, (u, p, n))
    assert got.item() == pytest.approx(want.item(), rel=1e-9, abs=1e-9)
    for mine, theirs in zip(got_grad, want_grad, strict=True):
        assert torch.allclose(mine, theirs * 3, rtol=1e-8, atol=1e-9)


def test_the_softmax_kernel_is_the_same_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    u, p, n = draw(B, D), draw(B, D, seed=1), draw(M, D, seed=2)
    rows, columns = torch.tensor([0, 2, 2, 6]), torch.tensor([3, 0, 5, 10])

    def run() -> tuple[Tensor, ...]:
        loss = shared_softmax(u, p, n, temperature=0.3, hits=(rows, columns))
        return loss.detach(), *torch.autograd.grad(loss, (u, p, n))

    whole = run()
    monkeypatch.setattr("recsys.softmax_kernel._BLOCK_ELEMENTS", 2 * M)
    for mine, theirs in zip(run(), whole, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10)


@pytest.mark.parametrize(("positive", "hits"), [([[10.0]], None), ([[0.1]], (torch.tensor([0]), torch.tensor([0])))])
def test_the_softmax_kernel_neither_overflows_nor_underflows(
    positive: list[list[float]], hits: tuple[Tensor, Tensor] | None
) -> None:
    """A positive far above all negatives; an excluded negative far above all others."""
    negatives = [[0.1]] if hits is None else [[20.0], [0.1]]
    u, p, n = (torch.tensor(x).requires_grad_() for x in ([[10.0]], positive, negatives))
    excluded = torch.zeros(1, len(n), dtype=torch.bool)
    if hits is not None:
        excluded[hits] = True
    want = textbook_softmax(u, p, n, 1.0, torch.zeros(len(n)), excluded)
    got = shared_softmax(u, p, n, temperature=1.0, hits=hits)
    assert got.item() == pytest.approx(want.item())
    for mine, theirs in zip(torch.autograd.grad(got, (u, p, n)), torch.autograd.grad(want, (u, p, n)), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_sampled_softmax_with_own_negatives_equals_shared_ones() -> None:
    u, p, n = draw(B, D), draw(B, D, seed=1), draw(M, D, seed=2)
    log_q = draw(M, seed=4).detach()
    shared = sampled_softmax(u, p, Negatives(n, log_q), temperature=0.5, logq=True)
    own = sampled_softmax(u, p, Negatives(n.expand(B, M, D), log_q.expand(B, M)), temperature=0.5, logq=True)
    assert shared.item() == pytest.approx(own.item(), rel=1e-6)


def test_logq_estimates_the_full_softmax() -> None:
    """With q uniform over a catalogue that the sample enumerates, the corrected loss is the full softmax exactly."""
    u, p, catalogue = draw(B, D), draw(B, D, seed=1), draw(M, D, seed=2)
    log_q = torch.full((M,), -math.log(M), dtype=torch.float64)
    got = sampled_softmax(u, p, Negatives(catalogue, log_q), temperature=1.0, logq=True)
    scores, positive = u @ catalogue.T, (u * p).sum(1)
    want = (torch.log(positive.exp() + scores.exp().sum(1)) - positive).mean()
    assert got.item() == pytest.approx(want.item())
    popular = torch.tensor([0, 0, 0, 1])  # item 0 proposed three times as often: its share is divided by three
    q = torch.tensor([0.75, 0.25], dtype=torch.float64).log()
    sample = sampled_softmax(u, p, Negatives(catalogue[popular], q[popular]), temperature=1.0, logq=True)
    pair = (torch.log(positive.exp() + scores[:, :2].exp().sum(1)) - positive).mean()
    assert sample.item() == pytest.approx(pair.item())


def test_in_batch_softmax_masks_accidental_hits_and_corrects_every_column() -> None:
    u, p = draw(4, D), draw(4, D, seed=1)
    ids, log_q = torch.tensor([5, 9, 5, 2]), torch.log(torch.tensor([0.4, 0.1, 0.4, 0.1], dtype=torch.float64))
    logits = (u @ p.T) / 0.7 - log_q
    columns = [[0, 1, 3], [0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]
    want = sum((torch.logsumexp(logits[b, c], 0) - logits[b, b] for b, c in enumerate(columns)), torch.tensor(0.0)) / 4
    assert in_batch_softmax(u, p, ids, log_q, temperature=0.7).item() == pytest.approx(want.item())
    plain = in_batch_softmax(u, p, ids, None, temperature=0.7)
    assert plain.item() != pytest.approx(want.item(), rel=1e-3)


def test_directau_closed_form() -> None:
    user = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], dtype=torch.float64)
    item = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    align = (0 + 2 + 2) / 3
    users = math.log((math.exp(-4) + math.exp(-8) + math.exp(-4)) / 3)
    items = math.log((1 + math.exp(-4) + math.exp(-4)) / 3)
    assert directau(user, item, gamma=0.5).item() == pytest.approx(align + 0.5 * (users + items) / 2, rel=1e-5)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "bpr": lambda u, p, n: bpr(u, p, Negatives(n)),
    "sampled_softmax": lambda u, p, n: sampled_softmax(u, p, Negatives(n), temperature=0.4, logq=False),
    "in_batch_softmax": lambda u, p, n: in_batch_softmax(
        u, p, torch.tensor([0, 1, 2, 3, 1, 5, 6]), None, temperature=2
    ),
    "directau": lambda u, p, n: directau(u, p, gamma=0.8),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    inputs = draw(B, D), draw(B, D, seed=1), draw(M, D, seed=2)
    loss = LOSSES[name](*inputs)
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    for place, gradient in enumerate(gradients):
        for row, column in ((0, 0), (3, 2), (6, 4)):
            values = []
            for sign in (1, -1):
                moved = [tensor.detach().clone() for tensor in inputs]
                moved[place][row, column] += sign * 1e-6
                values.append(LOSSES[name](*moved).item())
            numeric = (values[0] - values[1]) / 2e-6
            analytic = 0.0 if gradient is None else gradient[row, column].item()
            assert analytic == pytest.approx(numeric, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_the_named_loss_calls_its_function(name: str) -> None:
    u, p, n = draw(B, D), draw(B, D, seed=1), draw(M, D, seed=2)
    settings = {
        "bpr": Loss("bpr"),
        "sampled_softmax": Loss("sampled_softmax", temperature=0.4),
        "in_batch_softmax": Loss("in_batch_softmax", temperature=2.0),
        "directau": Loss("directau", gamma=0.8),
    }
    loss = settings[name]
    negatives = Negatives(n) if loss.needs_negatives else None
    got = loss(u, p, torch.tensor([0, 1, 2, 3, 1, 5, 6]), negatives)
    assert got.item() == pytest.approx(LOSSES[name](u, p, n).item())


def test_messages() -> None:
    u = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"bpr loss needs sampled negatives, got None; give the trainer a sampler"):
        Loss("bpr")(u, u, torch.arange(2))
    with pytest.raises(ValueError, match=r"logq needs negatives\.log_q, got None; draw them with NegativeSampler"):
        sampled_softmax(u, u, Negatives(u), temperature=1.0, logq=True)
    with pytest.raises(ValueError, match="needs at least 2 rows, got 1"):
        directau(u[:1], u[:1], gamma=1.0)


def test_bfloat16_autocast_stays_close() -> None:
    u, p, n = (functional.normalize(draw(64, 32, seed=s).float(), dim=1).detach().requires_grad_() for s in range(3))
    want = shared_softmax(u, p, n, temperature=0.1)
    want_grad = torch.autograd.grad(want, u)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = shared_softmax(u, p, n, temperature=0.1)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(want.item(), rel=0.01)
    got_grad = torch.autograd.grad(got, u)[0]
    assert (got_grad - want_grad).norm() < 0.05 * want_grad.norm()


def test_hits_among_own_negatives_do_not_count() -> None:
    rng = torch.Generator().manual_seed(0)
    u, p = (torch.randn(2, 3, generator=rng) for _ in range(2))
    own = torch.randn(2, 4, 3, generator=rng)
    hits = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 3])
    kept = [[0, 1, 3], [1, 2]]
    want = [sampled_softmax(u[[b]], p[[b]], Negatives(own[b, kept[b]]), temperature=0.5, logq=False) for b in (0, 1)]
    got = sampled_softmax(u, p, Negatives(own, hits=hits), temperature=0.5, logq=False)
    torch.testing.assert_close(got, torch.stack(want).mean())
