"""Crops and shuffles of training sequences (Lepage et al. 2025, the SASRec++ of "Closing the performance gap")."""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys.sequences import Batch, Ints


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How the sequences of a training step are varied; each one is drawn for each sequence and step.

    Attributes:
        crop: share of the sequences of which a contiguous part of at least two events stays. Its length and place are
            uniform, so that every event is the last one at times, as the one before a recommendation always is.
        shuffle: share of the sequences of which a contiguous part is put into a random order, the times left in place.

    Raises:
        ValueError: A share is not in [0, 1].
    """

    crop: float = 0.0
    shuffle: float = 0.0

    def __post_init__(self) -> None:
        """Check the shares."""
        for name, share in dataclasses.asdict(self).items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share of the sequences and must lie in [0, 1], got {share}")

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Vary a batch, shortest sequence first. Sequences of fewer than two events stay as they are."""
        if self.crop:
            batch = _cropped(batch, self.crop, rng)
        return _shuffled(batch, self.shuffle, rng) if self.shuffle else batch


def _cropped(batch: Batch, share: float, rng: np.random.Generator) -> Batch:
    starts, lengths = _parts(batch.lengths, share, rng, otherwise=batch.lengths)
    starts += np.cumsum(batch.lengths) - batch.lengths
    order = np.argsort(lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    places = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    times = None if batch.times is None else batch.times[places]
    return Batch(batch.users[order], batch.items[places], lengths, times)


def _shuffled(batch: Batch, share: float, rng: np.random.Generator) -> Batch:
    starts, lengths = _parts(batch.lengths, share, rng, otherwise=np.zeros_like(batch.lengths))
    starts += np.cumsum(batch.lengths) - batch.lengths
    first, length = np.repeat(starts, batch.lengths), np.repeat(lengths, batch.lengths)
    place = np.arange(len(batch.items))
    inside = (place >= first) & (place < first + length)
    key = np.where(inside, first + rng.random(len(place)) * length, place)
    return dataclasses.replace(batch, items=batch.items[np.argsort(key, kind="stable")])


def _parts(lengths: Ints, share: float, rng: np.random.Generator, *, otherwise: Ints) -> tuple[Ints, Ints]:
    """The first event and the length of a random part of ``share`` of the sequences, 0 and ``otherwise`` elsewhere."""
    chosen = (rng.random(len(lengths)) < share) & (lengths > 1)
    whole = np.maximum(lengths, 2)
    part = rng.integers(2, whole + 1)
    first = rng.integers(0, whole - part + 1)
    return np.where(chosen, first, 0), np.where(chosen, part, otherwise)
