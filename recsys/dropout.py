"""Dropout whose draws are named, so that a resumed training repeats them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Dropout:
    """Sets a share of the numbers to 0 and scales up the others (Srivastava et al. 2014, inverted).

    One random byte decides on each number, so that the share is rounded to 1/256, and the scale to what was kept.

    Args:
        share: in [0, 1).
        rng: draws the bytes; None switches dropout off.

    Raises:
        ValueError: The share is out of range.
    """

    def __init__(self, share: float, rng: np.random.Generator | None) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {share}")
        self._dropped = round(256 * share) if rng is not None else 0
        self._rng = rng

    def __call__(self, values: Tensor) -> Tensor:
        """Float [...] to the same shape."""
        if self._rng is None or self._dropped == 0:
            return values
        drawn = np.frombuffer(bytearray(self._rng.bytes(values.numel())), dtype=np.uint8)
        keep = torch.from_numpy(drawn).view(values.shape) >= self._dropped
        return values * (keep * (256 / (256 - self._dropped)))
