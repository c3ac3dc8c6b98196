from __future__ import annotations

import torch
from torch import nn

from recsys.dense_adam import DenseAdam


def test_it_is_the_adam_of_torch_and_its_state_brings_it_back() -> None:
    start = torch.linspace(-1, 1, 6).reshape(2, 3)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    adam, expected = DenseAdam({"weights": ours}, lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for step in range(4):
        if step == 2:
            state = {name: part.clone() for name, part in adam.state_dict().items()}
            adam = DenseAdam({"weights": ours}, lr=0.1)
            adam.load_state_dict(state)
        for parameter in (ours, theirs):
            parameter.grad = (parameter.detach() - step).square()
        adam.step()
        expected.step()
        torch.testing.assert_close(ours, theirs)
        assert ours.grad is None


def test_a_step_without_gradient_changes_nothing() -> None:
    parameter = nn.Parameter(torch.ones(2))
    adam = DenseAdam({"weights": parameter}, lr=0.1)
    adam.step()
    assert parameter.tolist() == [1, 1] and int(adam.steps) == 0
