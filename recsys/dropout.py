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
        self._device_rng: torch.Generator | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Float [...] to the same shape."""
        if self._rng is None or self._dropped == 0:
            return values
        keep = self._bytes(values, self._rng) >= self._dropped
        return values * (keep * (256 / (256 - self._dropped)))

    def _bytes(self, values: Tensor, rng: np.random.Generator) -> Tensor:
        """Random uint8 of the shape of ``values``; a GPU draws its own, from a seed that ``rng`` gives."""
        if values.device.type == "cpu":
            drawn = np.frombuffer(bytearray(rng.bytes(values.numel())), dtype=np.uint8)
            return torch.from_numpy(drawn).view(values.shape)
        if self._device_rng is None:
            self._device_rng = torch.Generator(values.device).manual_seed(int(rng.integers(2**63)))
        return torch.randint(256, values.shape, dtype=torch.uint8, device=values.device, generator=self._device_rng)
