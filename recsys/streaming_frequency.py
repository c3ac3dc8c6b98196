"""How often items occur in batches, estimated while the batches stream by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.rng import generator

IntArray = npt.NDArray[np.int64]


class StreamingFrequency:
    """Estimates the probability that an item is in a batch (Yi et al. 2019, algorithm 2, with several hash functions).

    For the slot h(y) of an item y in the batch of step t, array A has the last step that the slot occurred in, and B
    the mean number of steps between two occurrences::

        B[h(y)] = (1 - rate) B[h(y)] + rate (t - A[h(y)]);    A[h(y)] = t;    p(y) = 1 / B[h(y)]

    A collision makes a slot occur too often, so the smallest p of several hash functions is taken (section 4.2).

    Args:
        num_items: size of the catalogue.
        slots: of each hash array; at least ``num_items`` gives every item its own slot, without hashing.
        hashes: number of hash functions; has no effect without hashing.
        rate: alpha, in (0, 1].
        initial_gap: B before the first occurrence, in steps.
        seed: of the hash functions.
    """

    def __init__(
        self, num_items: int, *, slots: int, hashes: int = 2, rate: float = 0.05, initial_gap: float, seed: int
    ) -> None:
        if slots >= num_items:
            self._slots = np.arange(num_items)[None]
            slots = num_items
        else:
            rng = generator(seed, "streaming frequency")
            self._slots = rng.integers(0, slots, (hashes, num_items))
        self._rate = rate
        shape = (len(self._slots), slots)
        self._last, self._gap = np.zeros(shape), np.full(shape, float(initial_gap))

    def observe(self, items: IntArray, step: int) -> None:
        """Take note of the distinct items of the batch of a step, which counts from 1 on."""
        for slots, last, gap in zip(self._slots, self._last, self._gap, strict=True):
            hit = np.unique(slots[items])
            gap[hit] = (1 - self._rate) * gap[hit] + self._rate * (step - last[hit])
            last[hit] = step

    def log_probability(self, items: IntArray) -> npt.NDArray[np.float32]:
        """Float32 [len(items)]: log of the estimated probability of being in a batch."""
        gaps = np.stack([gap[slots[items]] for slots, gap in zip(self._slots, self._gap, strict=True)])
        log_probability: npt.NDArray[np.float32] = -np.log(np.maximum(gaps.max(0), 1.0)).astype(np.float32)
        return log_probability

    def state(self) -> dict[str, Tensor]:
        """What a resume needs."""
        return {"last": torch.from_numpy(self._last), "gap": torch.from_numpy(self._gap)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        self._last, self._gap = state["last"].numpy().copy(), state["gap"].numpy().copy()
