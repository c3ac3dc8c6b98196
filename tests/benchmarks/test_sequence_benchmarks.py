from __future__ import annotations

import numpy as np
import pytest

from benchmarks import sasrec, seqloader
from recsys.sequences import Sequences


def two_users() -> Sequences:
    return Sequences.of_events(np.array([0] * 5 + [1] * 300), np.arange(305) % 7, 2)


def test_every_target_of_an_epoch_is_loaded() -> None:
    assert seqloader.load(two_users()) == 4 + seqloader.LENGTH


def test_the_flops_are_those_of_the_products_that_a_pass_makes() -> None:
    forward = 4 * (6 * 2 * 8 * 8 + 2 * 8 * 7) + 2 * 2 * 8 * 4 * 4
    first = Sequences.of_events(np.zeros(5, np.int64), np.arange(5), 1)
    assert sasrec.flops(first, 8, 1, 7) == 3 * forward


def test_our_side_trains_every_prefix_with_the_whole_catalogue() -> None:
    model, steps = sasrec.training(two_users(), 8, 1, 0.0)
    ((step, size, loss),) = steps.steps("select", 0, 0)
    assert (step, size, steps.count) == (0, 4 + seqloader.LENGTH, 4 + seqloader.LENGTH)
    assert loss == pytest.approx(np.log(model.num_items), abs=0.2)
