from __future__ import annotations

import math

import pytest
import torch

from recsys.losses import Negatives
from recsys.sequence_losses import SequenceLoss, SequenceLossName, gbce_power, generalized_bce, targets_among

ITEMS, DIM = 7, 4


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden [3, D], targets [3], drawn [5] with a target among them, all item vectors."""
    torch.manual_seed(0)
    return torch.randn(3, DIM), torch.tensor([2, 6, 2]), torch.tensor([1, 2, 0, 5, 5]), torch.randn(ITEMS, DIM)


def expected(name: SequenceLossName, temperature: float = 1.0) -> float:
    """The definitions, one event and one item at a time, in float64."""
    hidden, targets, drawn, items = batch()
    total = 0.0
    for row, target in zip(hidden.double(), targets.tolist(), strict=True):
        score = [float(row @ item) / temperature for item in items.double()]
        others = [item for item in drawn.tolist() if item != target]
        match name:
            case "softmax":
                total += math.log(sum(map(math.exp, score))) - score[target]
            case "sampled_softmax":
                chosen = [score[target], *(score[item] for item in others)]
                total += math.log(sum(map(math.exp, chosen))) - score[target]
            case "bce" | "gbce":
                alpha = len(drawn) / (ITEMS - 1)
                beta = alpha * (0.75 * (1 - 1 / alpha) + 1 / alpha) if name == "gbce" else 1.0
                sigmoid = [1 / (1 + math.exp(-s)) for s in score]
                total -= beta * math.log(sigmoid[target]) + sum(math.log(1 - sigmoid[item]) for item in others)
    return total / len(targets)


@pytest.mark.parametrize(
    ("name", "temperature"), [("bce", 1.0), ("gbce", 1.0), ("softmax", 0.5), ("sampled_softmax", 0.5)]
)
def test_a_loss_is_its_definition_and_a_drawn_target_is_no_negative(name: SequenceLossName, temperature: float) -> None:
    hidden, targets, drawn, items = batch()
    others = torch.arange(ITEMS) if name == "softmax" else drawn
    hits = targets_among(targets, others[None, :])
    value = SequenceLoss(name, temperature)(hidden, items[targets], Negatives(items[others], hits=hits), ITEMS)
    assert float(value) == pytest.approx(expected(name, temperature), rel=1e-5)


def test_negatives_of_their_own_give_the_loss_of_shared_ones() -> None:
    hidden, targets, drawn, items = batch()
    own = drawn.expand(3, 5)
    each = Negatives(items[own], hits=targets_among(targets, own))
    value = SequenceLoss("bce")(hidden, items[targets], each, ITEMS)
    assert float(value) == pytest.approx(expected("bce"), rel=1e-5)


def test_the_gradient_of_gbce_is_that_of_finite_differences() -> None:
    hidden, targets, drawn, items = (x.double() if x.is_floating_point() else x for x in batch())
    negatives = items[drawn].requires_grad_()
    hits = targets_among(targets, drawn[None, :])
    arguments = (hidden.requires_grad_(), items[targets].detach().requires_grad_(), negatives)
    assert torch.autograd.gradcheck(lambda h, t, n: generalized_bce(h, t, Negatives(n, hits=hits), 0.3, 2.0), arguments)


def test_gbce_without_calibration_is_bce_and_with_all_of_it_weighs_positives_by_the_sampling_rate() -> None:
    assert gbce_power(256, 3417, 0.0) == pytest.approx(1.0)
    assert gbce_power(256, 3417, 1.0) == pytest.approx(256 / 3416)
    for negatives, items in ((3416, 3417), (10_000, 3417), (4, 1)):
        assert gbce_power(negatives, items, 0.5) == pytest.approx(1.0)


def test_targets_are_found_among_shared_and_own_draws() -> None:
    draw = torch.Generator().manual_seed(0)
    targets, drawn = (torch.randint(0, 9, (count,), generator=draw) for count in (50, 30))
    expected = [(row, column) for row, t in enumerate(targets) for column, d in enumerate(drawn) if t == d]
    for shape in (drawn[None, :], drawn.expand(50, 30)):
        rows, columns = targets_among(targets, shape)
        assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
