"""What users did, in order: one jagged array of items, and batches of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from recsys.rng import generator

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Sequences:
    """The events of every user, oldest first.

    Attributes:
        items: int32 [n].
        offsets: int64 [num_users + 1]; user u has ``items[offsets[u]:offsets[u + 1]]``.
        times: int64 [n] seconds, not falling within a user, or None where the data have an order only.

    Raises:
        ValueError: Shapes or dtypes disagree, the offsets do not rise from 0 to n, or an item is negative.
    """

    items: npt.NDArray[np.int32]
    offsets: Ints
    times: Ints | None = None

    def __post_init__(self) -> None:
        """Check once, so that no batch has to."""
        if self.items.ndim != 1 or self.items.dtype != np.int32:
            raise ValueError(f"Sequences.items must be int32 [n], got {self.items.dtype} {list(self.items.shape)}")
        if self.offsets.ndim != 1 or self.offsets.dtype != np.int64 or len(self.offsets) < 1:
            raise ValueError(
                f"Sequences.offsets must be int64 [num_users + 1], got {self.offsets.dtype} {list(self.offsets.shape)}"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.items) or (np.diff(self.offsets) < 0).any():
            raise ValueError(
                f"Sequences.offsets must rise from 0 to the number of events, {len(self.items)}, got"
                f" {self.offsets[0]} to {self.offsets[-1]}"
            )
        if self.items.min(initial=0) < 0:
            raise ValueError(f"items must not be negative, but event {int(self.items.argmin())} has {self.items.min()}")
        if self.times is not None and (self.times.shape != self.items.shape or self.times.dtype != np.int64):
            raise ValueError(
                f"Sequences.times must be int64 [{len(self.items)}], got {self.times.dtype} {list(self.times.shape)}"
            )

    @classmethod
    def of_events(cls, users: Ints, items: Ints, num_users: int, times: Ints | None = None) -> Sequences:
        """Group events that are in the order of time; the order within a user is kept.

        Args:
            users: int64 [n], each in ``[0, num_users)``.
            items: int64 [n].
            num_users: users without an event get an empty sequence.
            times: int64 [n] or None.
        """
        order = np.argsort(users, kind="stable")
        offsets = np.zeros(num_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(users, minlength=num_users), out=offsets[1:])
        return cls(items[order].astype(np.int32), offsets, None if times is None else times[order].astype(np.int64))

    @property
    def num_users(self) -> int:
        """Users, those without an event included."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Int64 [num_users], events of each user."""
        return np.diff(self.offsets)

    def matrix(self, num_items: int) -> csr_array:
        """Binary csr float32 [num_users, num_items], sorted, whatever the order and the repeats.

        Raises:
            ValueError: An item is not in ``[0, num_items)``.
        """
        if self.items.max(initial=-1) >= num_items:
            raise ValueError(f"items must lie in [0, {num_items}), got {self.items.max()}; give the catalogue's size")
        ones = np.ones(len(self.items), dtype=np.float32)
        shape = (self.num_users, num_items)
        matrix = csr_array((ones, self.items.copy(), self.offsets.copy()), shape=shape)  # both change in place
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix

    def last(self, users: Ints, length: int) -> Batch:
        """The last ``length`` events of each of the users.

        Args:
            users: int64 [B].
            length: at least 1; older events are left out.
        """
        return self.before(users, self.offsets[users + 1], length)

    def before(self, users: Ints, places: Ints, length: int) -> Batch:
        """The last ``length`` events of each of the users before a place.

        Args:
            users: int64 [B].
            places: int64 [B], among all n events; from ``offsets[u]``, no event, to ``offsets[u + 1]``, all.
            length: at least 1; older events are left out.
        """
        lengths = np.minimum(places - self.offsets[users], length)
        starts = np.cumsum(lengths) - lengths
        chosen = np.repeat(places - lengths - starts, lengths) + np.arange(lengths.sum())
        times = None if self.times is None else self.times[chosen]
        return Batch(users, self.items[chosen].astype(np.int64), lengths, times)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences of B users, one after the other without padding.

    Attributes:
        users: int64 [B].
        items: int64 [T], T = sum of the lengths.
        lengths: int64 [B].
        times: int64 [T] or None.
    """

    users: Ints
    items: Ints
    lengths: Ints
    times: Ints | None = None

    @property
    def from_end(self) -> Ints:
        """Int64 [T]: how many events come after each one, so that the last one has 0."""
        ends = np.cumsum(self.lengths)
        return np.repeat(ends, self.lengths) - 1 - np.arange(len(self.items))

    def shifted(self) -> tuple[Batch, Ints]:
        """Each event but the last as input, and the event after it as target: all prefixes in one pass.

        Returns:
            The inputs, sequences of one event fewer, and the targets int64 [T - B] of their events. Users with fewer
            than two events are left out.
        """
        kept = self.lengths > 1
        whole = np.repeat(kept, self.lengths)
        last = self.from_end == 0
        first = np.zeros(len(self.items), dtype=np.bool_)
        first[(np.cumsum(self.lengths) - self.lengths)[kept]] = True
        times = None if self.times is None else self.times[whole & ~last]
        inputs = Batch(self.users[kept], self.items[whole & ~last], self.lengths[kept] - 1, times)
        return inputs, self.items[whole & ~first]


def epoch_batches(
    users: Ints, lengths: Ints, batch_size: int, *, seed: int, phase: str, epoch: int, first: int = 0
) -> Iterator[Ints]:
    """Users in a random order, in batches of nearly equal size, each sorted by length.

    Sequences of like length are neighbours in a batch, which wastes little on padding, while the batch itself is a
    uniform sample.

    Args:
        users: int64 [n], to be trained on.
        lengths: int64 [num_users].
        batch_size: users at most.
        seed: of the run.
        phase: names the stream, with the epoch.
        epoch: 0-based.
        first: batches to skip.
    """
    order = users[generator(seed, "order", phase, epoch).permutation(len(users))]
    count = -(-len(users) // batch_size)
    bounds = np.linspace(0, len(users), count + 1).astype(np.int64)
    for start, stop in zip(bounds[first:-1], bounds[first + 1 :], strict=True):
        chosen = order[start:stop]
        yield chosen[np.argsort(lengths[chosen], kind="stable")]
