"""The state of torch's Adam by the names of its parameters, for a training that is resumed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_KEYS = ("step", "exp_avg", "exp_avg_sq")


def adam_state(adam: torch.optim.Adam, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """Step count and moments, ``NAME.KEY`` each; parameters that have not been stepped have none."""
    return {
        f"{name}.{key}": value for name, parameter in parameters.items() for key, value in adam.state[parameter].items()
    }


def load_adam_state(
    adam: torch.optim.Adam, parameters: Mapping[str, torch.nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """Go on from an :func:`adam_state`, on the device of each parameter."""
    for name, parameter in parameters.items():
        own = {key: state[f"{name}.{key}"].to(parameter.device) for key in _KEYS if f"{name}.{key}" in state}
        adam.state[parameter] = own
