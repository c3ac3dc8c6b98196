from __future__ import annotations

import pytest
import torch

from recsys.dropout import Dropout
from recsys.rng import generator


def test_the_share_is_dropped_and_the_mean_kept() -> None:
    dropped = Dropout(0.2, generator(0))(torch.ones(500, 1000))
    zeros = (dropped == 0).double().mean()
    assert abs(zeros - 51 / 256) < 0.002
    assert abs(dropped.double().mean() - 1) < 0.002
    assert dropped.unique().tolist() == pytest.approx([0, 256 / 205])


def test_the_gradient_passes_where_the_number_was_kept() -> None:
    values = torch.ones(50, requires_grad=True)
    dropped = Dropout(0.5, generator(0))(values)
    dropped.sum().backward()
    assert values.grad is not None and torch.equal(values.grad, dropped.detach())


def test_it_is_off_without_a_generator_or_a_share() -> None:
    values = torch.ones(5)
    assert Dropout(0.5, None)(values) is values and Dropout(0.0, generator(0))(values) is values


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"dropout must lie in \[0, 1\), got {share}"):
        Dropout(share, None)
