"""The softmax over candidates against a plain sum of exponentials."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from recsys.losses import in_batch_softmax
from recsys.tower_losses import candidate_softmax

B, C, D = 5, 7, 4


def vectors(seed: int, rows: int) -> torch.Tensor:
    draw = np.random.default_rng(seed).normal(size=(rows, D))
    return functional.normalize(torch.from_numpy(draw), dim=1)


TARGET = torch.tensor([0, 3, 3, 6, 1])


@pytest.mark.parametrize("hardness", [0.0, 0.7])
def test_the_sum_over_candidates(hardness: float) -> None:
    user, item, log_q, t = vectors(0, B), vectors(1, C), torch.log(torch.rand(C, dtype=torch.float64)), 0.3
    found = candidate_softmax(user, item, TARGET, log_q, temperature=t, hardness=hardness)
    losses = []
    for row in range(B):
        logits = {j: float(user[row] @ item[j]) / t - float(log_q[j]) for j in range(C)}
        own = logits.pop(int(TARGET[row]))
        mean = np.mean([np.exp(hardness * z) for z in logits.values()])
        negatives = sum(np.exp(hardness * z) / mean * np.exp(z) for z in logits.values())
        losses.append(-np.log(np.exp(own) / (np.exp(own) + negatives)))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-12)


def test_distinct_candidates_are_a_batch_with_its_accidental_hits_masked() -> None:
    user, item = vectors(0, B), vectors(1, C)
    log_q = torch.log(torch.rand(C, dtype=torch.float64))
    batch, target = torch.unique(TARGET, return_inverse=True)
    found = candidate_softmax(user, item[batch], target, log_q[batch], temperature=0.3)
    # the rows of one item are counted as often as it is in the batch there, once here
    keep = torch.tensor([0, 1, 3, 4])
    expected = in_batch_softmax(user[keep], item[TARGET[keep]], TARGET[keep], log_q[TARGET[keep]], temperature=0.3)
    single = candidate_softmax(user[keep], item[batch], target[keep], log_q[batch], temperature=0.3)
    assert float(single) == pytest.approx(float(expected), rel=1e-12)
    assert torch.isfinite(found)


def test_the_weights_of_hard_negatives_have_no_gradient_but_pull_them_harder() -> None:
    gradients = []
    for hardness in (0.0, 2.0):
        item = vectors(1, C).requires_grad_()
        candidate_softmax(vectors(0, 1), item, TARGET[:1], None, temperature=0.3, hardness=hardness).backward()
        assert item.grad is not None
        gradients.append(item.grad.norm(dim=1))
    scores = (vectors(0, 1) @ vectors(1, C).T)[0]
    hardest = 1 + int(scores[1:].argmax())
    shares = [gradient[hardest] / gradient[1:].sum() for gradient in gradients]
    assert shares[1] > shares[0]


def test_a_lone_candidate_costs_nothing() -> None:
    value = candidate_softmax(vectors(0, 2), vectors(1, 1), torch.tensor([0, 0]), None, temperature=0.1, hardness=1.0)
    assert float(value) == 0.0
