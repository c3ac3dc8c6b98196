"""The codes of a catalogue: frozen, versioned, mapped back to items."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from scipy.optimize import linear_sum_assignment

from embeddings import atomic
from embeddings.id_map import IntArray

FORMAT = "recsys semantic codes 1"

Codes = npt.NDArray[np.int32]
Resolution = Literal["digit", "reassign"]


class FullError(ValueError):
    """A new item finds no code that is free; ``item`` is its place among the new ones."""

    def __init__(self, message: str, item: int) -> None:
        super().__init__(message)
        self.item = item


@dataclasses.dataclass(frozen=True)
class SemanticCodes:
    """For each of N items a path of L codes, coarse first (TIGER, Rajput et al. 2023, section 3.1).

    Attributes:
        codes: int32 [N, L], level l in ``[0, widths[l])``.
        widths: codes of each level.
        catalogue: what the rows stand for, e.g. a hash of the item ids in their order; see :meth:`require`.
        source: JSON-able facts about where they came from (features, tokeniser, seed).

    Raises:
        ValueError: Shapes or dtypes disagree or a code is outside its level; the message has the first bad item.
    """

    codes: Codes
    widths: tuple[int, ...]
    catalogue: str = ""
    source: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every code once and lock the array."""
        if self.codes.ndim != 2 or self.codes.shape[1] != len(self.widths) or not self.widths:
            raise ValueError(f"codes must be [N, {len(self.widths)}] for widths {self.widths}, got {self.codes.shape}")
        if self.codes.dtype != np.int32:
            raise ValueError(f"codes must be int32, got {self.codes.dtype}; convert with codes.astype(np.int32)")
        if min(self.widths) < 1:
            raise ValueError(f"each level needs at least one code, got widths {self.widths}")
        bad = np.flatnonzero(((self.codes < 0) | (self.codes >= np.array(self.widths))).any(axis=1))
        if bad.size:
            raise ValueError(
                f"codes must lie below the widths {self.widths}, but item {bad[0]} has {self.codes[bad[0]].tolist()}"
                f" ({bad.size:,} bad items in all)"
            )
        locked = self.codes.copy()
        locked.setflags(write=False)
        object.__setattr__(self, "codes", locked)

    @property
    def num_items(self) -> int:
        """N, the size of the catalogue."""
        return int(self.codes.shape[0])

    @property
    def levels(self) -> int:
        """L, the length of a path."""
        return len(self.widths)

    @cached_property
    def version(self) -> str:
        """16 hex digits of a SHA-256 of the catalogue, the widths and every code."""
        facts = json.dumps([self.catalogue, self.widths]).encode()
        return hashlib.sha256(facts + self.codes.astype("<i4").tobytes()).hexdigest()[:16]

    @cached_property
    def _groups(self) -> tuple[Codes, IntArray, IntArray]:
        """The distinct codes in order, the group of each item, the size of each group."""
        distinct, group, sizes = np.unique(self.codes, axis=0, return_inverse=True, return_counts=True)
        return distinct, group.ravel().astype(np.int64), sizes.astype(np.int64)

    @property
    def distinct(self) -> int:
        """Number of different codes."""
        return int(self._groups[2].size)

    @property
    def unique(self) -> bool:
        """Whether a code names one item, which generative retrieval needs."""
        return self.distinct == self.num_items

    @property
    def colliding(self) -> IntArray:
        """Items int64 that share their code with another item."""
        _, group, sizes = self._groups
        return np.flatnonzero(sizes[group] > 1)

    def items(self, prefix: Sequence[int]) -> IntArray:
        """Items int64, in order, whose path starts with ``prefix``; a whole code gives the items of that code.

        Raises:
            ValueError: The prefix is longer than a path.
        """
        if len(prefix) > self.levels:
            raise ValueError(f"a prefix has at most {self.levels} codes, got {list(prefix)}")
        return np.flatnonzero((self.codes[:, : len(prefix)] == np.array(prefix, dtype=np.int64)).all(axis=1))

    def require(self, catalogue: str, num_items: int) -> None:
        """Refuse codes that were made for another version of the catalogue.

        Raises:
            ValueError: The catalogue or its size is not that of the codes.
        """
        if self.num_items != num_items or self.catalogue != catalogue:
            raise ValueError(
                f"semantic codes {self.version} were made for catalogue {self.catalogue!r} of {self.num_items:,} items,"
                f" but this is catalogue {catalogue!r} of {num_items:,} items; tokenise this catalogue"
            )

    def resolve_collisions(
        self, how: Resolution, cost: npt.NDArray[np.float32] | None = None, digit_width: int | None = None
    ) -> SemanticCodes:
        """Codes that name one item each.

        Args:
            how: "digit" appends a level with the running index among the items of a code (TIGER, section 3.1);
                "reassign" moves as few items as it can to free codes of the last level, at the least cost in all, and
                keeps L levels.
            cost: float32 [N, widths[-1]], what each last code would cost an item, say the distance of its last
                residual; without it the next free code is taken. For "reassign".
            digit_width: codes of the digit, with room for items that come later; None for no more than are needed.

        Raises:
            ValueError: A prefix has more items than the last level or the digit has codes, or ``cost`` has another
                shape.
        """
        source = self.source | {"collisions": how, "colliding_before": int(self.colliding.size)}
        if how == "digit":
            digit = running_index(self._groups[1])
            needed = int(digit.max(initial=0)) + 1
            if digit_width is not None and digit_width < needed:
                raise ValueError(f"{needed:,} items have one code, but digit_width is {digit_width}; make it wider")
            codes = np.column_stack([self.codes, digit]).astype(np.int32)
            return SemanticCodes(codes, (*self.widths, digit_width or needed), self.catalogue, source)
        self._check_cost(cost, self.num_items)
        return SemanticCodes(self._reassigned(cost), self.widths, self.catalogue, source)

    def _check_cost(self, cost: npt.NDArray[np.float32] | None, items: int) -> None:
        if cost is not None and cost.shape != (items, self.widths[-1]):
            raise ValueError(f"cost must be [{items}, {self.widths[-1]}], got {list(cost.shape)}")

    def extend(
        self,
        codes: Codes,
        how: Literal["keep"] | Resolution,
        catalogue: str,
        cost: npt.NDArray[np.float32] | None = None,
    ) -> SemanticCodes:
        """The codes of N + n items: those of the N as they are, then those of n new ones.

        Args:
            codes: int32 [n, L'] that the tokeniser gives the new items, without a digit.
            how: collisions were resolved: "keep" takes the codes as they come, "digit" appends the next free digit,
                "reassign" takes the free code of the last level that costs least where the code is taken.
            catalogue: what the N + n rows stand for.
            cost: float32 [n, widths[-1]], as in :meth:`resolve_collisions`.

        Raises:
            FullError: All digits of a code, or all last codes of a prefix, are taken.
            ValueError: A shape is wrong.
        """
        digits = self.levels - codes.shape[1]
        if digits not in ((0, 1) if how == "digit" else (0,)):
            raise ValueError(f"new codes must have the {self.levels} levels of the old ones, got {codes.shape[1]}")
        if how == "digit":
            codes = self._next_digits(codes, digits)
        elif how == "reassign":
            self._check_cost(cost, len(codes))
            codes = self._next_free(codes, cost)
        return SemanticCodes(np.concatenate([self.codes, codes]), self.widths, catalogue, self.source)

    def _next_digits(self, codes: Codes, digits: int) -> Codes:
        """New codes with their digits; ``digits`` is 0 where no collision asked for one, and the digits are all 0."""
        width = self.widths[-1] if digits else 1
        paths = np.concatenate([self.codes[:, : codes.shape[1]], codes])
        digit = running_index(np.unique(paths, axis=0, return_inverse=True)[1].ravel())[self.num_items :]
        full = np.flatnonzero(digit >= width)
        if full.size:
            raise FullError(
                f"code {codes[full[0]].tolist()} has {width} item(s), as many as the digit tells apart; tokenise all"
                " items anew with a larger digit_width, which leaves room for new ones",
                int(full[0]),
            )
        return np.column_stack([codes, digit]).astype(np.int32) if digits else codes

    def _next_free(self, codes: Codes, cost: npt.NDArray[np.float32] | None) -> Codes:
        width, found = self.widths[-1], codes.copy()
        both = np.concatenate([self.codes, codes])
        prefix = np.unique(both[:, :-1], axis=0, return_inverse=True)[1].ravel()
        old, new = prefix[: self.num_items], prefix[self.num_items :]
        taken = {one: np.zeros(width, dtype=np.bool_) for one in np.unique(new).tolist()}
        for row in np.flatnonzero(np.isin(old, new)).tolist():
            taken[int(old[row])][self.codes[row, -1]] = True
        for item, path in enumerate(found):
            used = taken[int(new[item])]
            if used.all():
                raise FullError(
                    f"all {width} codes of the last level are taken below prefix {path[:-1].tolist()}; tokenise all"
                    " items anew with a wider last level, or resolve collisions by a digit",
                    item,
                )
            if used[path[-1]]:
                away = (np.arange(width) - path[-1]) % width if cost is None else cost[item]
                path[-1] = np.argmin(np.where(used, np.inf, away))
            used[path[-1]] = True
        return found

    def _reassigned(self, cost: npt.NDArray[np.float32] | None) -> Codes:
        codes, width = self.codes.copy(), self.widths[-1]
        _, prefix, sizes = np.unique(self.codes[:, :-1], axis=0, return_inverse=True, return_counts=True)
        prefix = prefix.ravel()
        if sizes.max(initial=0) > width:
            item = int(np.argmax(sizes[prefix]))
            raise ValueError(
                f"prefix {self.codes[item, :-1].tolist()} has {int(sizes.max()):,} items, but the last level has only"
                f" {width} codes; make it wider, add a level, or resolve collisions by a digit"
            )
        for members in np.split(np.argsort(prefix, kind="stable"), np.cumsum(np.bincount(prefix))[:-1]):
            own = codes[members, -1]
            if np.unique(own).size == own.size:
                continue
            price = (np.arange(width) - own[:, None]) % width if cost is None else cost[members]
            price = price.astype(np.float64)
            stay = 2 * own.size * (np.ptp(price) or 1.0)  # more than all moves together: no needless one
            price[np.arange(own.size), own] -= stay
            codes[members, -1] = linear_sum_assignment(price)[1]
        return codes

    def save(self, path: Path) -> None:
        """Write ``path`` (safetensors, the facts as JSON in its header), atomically; equal codes give equal bytes."""
        facts = {
            "format": FORMAT,
            "version": self.version,
            "widths": self.widths,
            "catalogue": self.catalogue,
            "source": self.source,
        }
        header = {"semantic_codes": json.dumps(facts, sort_keys=True)}
        atomic.write_bytes(path, safetensors.numpy.save({"codes": np.ascontiguousarray(self.codes)}, metadata=header))

    @classmethod
    def load(cls, path: Path) -> SemanticCodes:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: The file is foreign, truncated or damaged; the message names the path.
            FileNotFoundError: There is no such file.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {}).get("semantic_codes", "{}"))
                codes = file.get_tensor("codes") if facts.get("format") == FORMAT else None
        except (safetensors.SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); tokenise again") from error
        if codes is None:
            raise ValueError(f"{path} holds no semantic codes: its header must say {FORMAT!r}; tokenise again")
        found = cls(codes, tuple(facts["widths"]), facts["catalogue"], facts["source"])
        if found.version != facts["version"]:
            raise ValueError(f"{path} is damaged: its version {facts['version']} is not that of its codes")
        return found


def running_index(group: IntArray) -> IntArray:
    """For each item how many items of its group come before it.

    >>> running_index(np.array([3, 0, 3, 3, 0])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    index = np.empty(group.size, dtype=np.int64)
    index[order] = np.arange(group.size) - np.repeat(starts, sizes)
    return index
