"""What each user had before: the items whose vectors a user tower pools."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from recsys.features import MultiCategorical, ranges

IntArray = npt.NDArray[np.int64]
Context = Literal["before", "others"]


@dataclasses.dataclass(frozen=True)
class Histories:
    """The items of every user, oldest first.

    Attributes:
        items: int64 [n] in ``[0, num_items)``.
        offsets: int64 [num_users + 1]; user u has ``items[offsets[u]:offsets[u + 1]]``.
        num_items: size of the catalogue.
    """

    items: IntArray
    offsets: IntArray
    num_items: int

    @classmethod
    def of_events(cls, users: IntArray, items: IntArray, *, num_users: int, num_items: int) -> Histories:
        """Group events that are in the order of time, which is kept for every user.

        Args:
            users: int64 [n], each in ``[0, num_users)``.
            items: int64 [n].
            num_users: users without events have an empty history.
            num_items: size of the catalogue.
        """
        counts = np.bincount(users, minlength=num_users)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        return cls(items[np.argsort(users, kind="stable")].astype(np.int64), offsets, num_items)

    @property
    def num_users(self) -> int:
        """Users, those with an empty history too."""
        return len(self.offsets) - 1

    @property
    def owners(self) -> IntArray:
        """Int64 [n], the user of each place."""
        return np.repeat(np.arange(self.num_users, dtype=np.int64), np.diff(self.offsets))

    def matrix(self) -> csr_array:
        """Binary csr float32 [users, items], sorted and without duplicates."""
        shape = (self.num_users, self.num_items)
        ones = np.ones(len(self.items), np.float32)
        matrix = csr_array((ones, self.items.copy(), self.offsets.copy()), shape=shape)  # it is sorted in place
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix

    def latest(self, users: IntArray, length: int) -> MultiCategorical:
        """The last ``length`` items of each user: the history in which the user is served."""
        stops = self.offsets[users + 1]
        places, offsets = ranges(np.maximum(self.offsets[users], stops - length), stops)
        return MultiCategorical("history", self.items[places], offsets, self.num_items)

    def around(self, places: IntArray, owners: IntArray, length: int, context: Context) -> MultiCategorical:
        """The history in which the events at some places are predicted; it never has the item of the event.

        Args:
            places: int64 [B] of events.
            owners: int64 [B], their users.
            length: at most so many items.
            context: "before": those just before the event; "others": the user's last ones, later ones too, for data
                without an order.
        """
        firsts = self.offsets[owners]
        stops = places if context == "before" else self.offsets[owners + 1]
        spare = 0 if context == "before" else 1  # the event itself is among the last ones
        around, offsets = ranges(np.maximum(firsts, stops - length - spare), stops)
        rows = np.repeat(np.arange(len(places)), np.diff(offsets))
        kept = self.items[around] != self.items[places][rows]
        # One spare item too many where the event is older than the window: the oldest leaves.
        rows, around = rows[kept], around[kept]
        from_the_end = np.cumsum(np.bincount(rows, minlength=len(places)))[rows] - np.arange(len(rows))
        near = from_the_end <= length
        counts = np.bincount(rows[near], minlength=len(places))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        return MultiCategorical("history", self.items[around[near]], offsets, self.num_items)
