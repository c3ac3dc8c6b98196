"""Why RPG recommends an item, in words: the digits of its id that items of the history have, too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipelines.code_paths import latest, require_codes
from pipelines.dataset import Dataset
from recsys.models.rpg import Rpg

_SHOWN = 6


@dataclasses.dataclass(frozen=True)
class SharedDigits:
    """What the id of a recommended item has in common with that of an item of the history.

    Attributes:
        seen: title of the item of the history.
        digits: place, from 0, and code of each digit that both have, likeliest first.
        length: digits of an id.
        weight: geometric mean of the probabilities that the model gives these digits, in (0, 1].
    """

    seen: str
    digits: tuple[tuple[int, int], ...]
    length: int
    weight: float

    def text(self) -> str:
        """One line, with the likeliest digits as place=code."""
        shown = [f"{place}={code}" for place, code in self.digits[:_SHOWN]]
        shown += ["..."] if len(self.digits) > _SHOWN else []
        return f"{len(self.digits)} of {self.length} digits of {self.seen}: {', '.join(shown)}"

    def printable(self, clean: Callable[[str], str]) -> SharedDigits:
        """The same with a cleaned title."""
        return dataclasses.replace(self, seen=clean(self.seen))


def shared_digits(
    model: Rpg, dataset: Dataset, user: int, items: list[int], count: int
) -> list[tuple[SharedDigits, ...]]:
    """For each recommended item the items of the history that speak most for it, strongest first.

    An item of the history speaks for it by the log-probabilities of the digits that both have, each less that of a
    digit drawn at random, ``ln(1 / M)``. Digits no likelier than that do not count, nor are items without others shown.

    Args:
        model: that recommends them.
        dataset: of its catalogue.
        user: index.
        items: indices, n.
        count: items of the history at most.

    Raises:
        DataError: The codes of the model are those of another catalogue.
    """
    require_codes(model.codes, dataset)
    codes, titles = model.codes.codes, dataset.item_titles()
    history = np.array(latest(model.histories, user, model.encoder.max_length), dtype=np.int64)
    by_chance = -np.log(model.codes.widths)

    def strongest(item: int, logs: npt.NDArray[np.float64]) -> tuple[SharedDigits, ...]:
        shared = (codes[history] == codes[item]) & (logs > by_chance)
        gains = np.where(shared, logs - by_chance, 0.0).sum(axis=1)
        likeliest = np.argsort(-logs, kind="stable")
        found = []
        for place in np.argsort(-gains, kind="stable")[:count]:
            if gains[place] > 0:
                digits = tuple((int(digit), int(codes[item, digit])) for digit in likeliest if shared[place, digit])
                weight = float(np.exp(logs[shared[place]].mean()))
                found.append(SharedDigits(titles[history[place]], digits, model.codes.levels, weight))
        return tuple(found)

    known = model.digit_log_probabilities(user, np.array(items, dtype=np.int64)).double().numpy()
    return [strongest(item, logs) for item, logs in zip(items, known, strict=True)]
