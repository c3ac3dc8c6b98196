"""Paths of codes in words: why TIGER or LIGER recommends an item, and how far its first choice is right."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from embeddings.semantic_id.codes import SemanticCodes
from pipelines.dataset import Dataset
from pipelines.errors import DataError
from pipelines.stages.semantic import catalogue
from pipelines.text_features import words
from recsys.models.tiger import Tiger
from recsys.sequences import Sequences

_WORDS, _SEEN = 3, 3
_LEAST_SHARE, _LEAST_LIFT = 0.5, 2.0


@dataclasses.dataclass(frozen=True)
class CodePrefix:
    """The beginning of a recommended item's path.

    Attributes:
        codes: of the prefix.
        items: how many items of the catalogue begin so.
        common: words of at least half of them, at least twice as frequent as in the catalogue, most telling first.
        seen: titles of what the user did that begins so, latest first.
        weight: probability of the prefix, in (0, 1].
    """

    codes: tuple[int, ...]
    items: int
    common: tuple[str, ...]
    seen: tuple[str, ...]
    weight: float

    def text(self) -> str:
        """One line."""
        parts = ["1 item" if self.items == 1 else f"{self.items:,} items"]
        parts += [f"in common: {', '.join(self.common)}"] if self.common else []
        parts += [f"of the history: {', '.join(self.seen)}"] if self.seen else []
        return f"{'-'.join(map(str, self.codes))}: {'; '.join(parts)}"

    def printable(self, clean: Callable[[str], str]) -> CodePrefix:
        """The same with cleaned words."""
        return dataclasses.replace(self, common=tuple(map(clean, self.common)), seen=tuple(map(clean, self.seen)))


@dataclasses.dataclass(frozen=True)
class ContentMatch:
    """An item that no search brought in, but the dense head.

    Attributes:
        cold: whether the item has no event in what the model was trained on.
        nearest: titles of what the user did, most similar content first.
        weight: cosine of the item's content with what the encoder made of the history, in [-1, 1].
    """

    cold: bool
    nearest: tuple[str, ...]
    weight: float

    def text(self) -> str:
        """One line."""
        who = "cold item, by the dense head" if self.cold else "by the dense head"
        return f"{who}; of the history nearest in content: {', '.join(self.nearest)}" if self.nearest else who

    def printable(self, clean: Callable[[str], str]) -> ContentMatch:
        """The same with cleaned titles."""
        return dataclasses.replace(self, nearest=tuple(map(clean, self.nearest)))


def explanations(
    model: Tiger, dataset: Dataset, user: int, items: list[int], scores: list[float]
) -> list[tuple[CodePrefix | ContentMatch, ...]]:
    """For each recommended item its :func:`prefixes`, or that the dense head alone brought it in.

    Args:
        model: that recommends them.
        dataset: of its catalogue.
        user: index.
        items: indices, n.
        scores: of the items, n.

    Raises:
        DataError: The codes of the model are those of another catalogue.
    """
    written = prefixes(model, dataset, user, items)
    if model.dense is None:
        return [*written]
    dense, titles, alone = model.dense, dataset.item_titles(), set(model.dense.ranked_for_all().tolist())
    history = np.array(latest(model.histories, user), dtype=np.int64)

    def match(item: int, score: float) -> ContentMatch:
        near = tuple(titles[other] for other in dense.nearest(item, history)[:_SEEN])
        return ContentMatch(bool(dense.cold[item]), near, score)

    found = zip(items, scores, written, strict=True)
    return [(match(item, score),) if item in alone else path for item, score, path in found]


def prefixes(model: Tiger, dataset: Dataset, user: int, items: list[int]) -> list[tuple[CodePrefix, ...]]:
    """For each item its prefixes, the shortest first, down to the one that the item has for itself.

    Raises:
        DataError: The codes of the model are those of another catalogue.
    """
    require_codes(model.codes, dataset)
    if not items:
        return []
    chances = model.path_log_probabilities(user, np.array(items)).double().cumsum(1).exp().numpy()
    common, titles = _Words(dataset), dataset.item_titles()
    history = latest(model.histories, user)

    def level(path: tuple[int, ...], weight: float) -> CodePrefix:
        under = model.codes.items(path)
        seen = tuple(titles[item] for item in history if item in under)[:_SEEN]
        return CodePrefix(path, len(under), common.of(under), seen, weight)

    found = []
    for item, probabilities in zip(items, chances, strict=True):
        path = tuple(model.codes.codes[item].tolist())
        steps = [level(path[: depth + 1], float(p)) for depth, p in enumerate(probabilities)]
        alone = next((depth for depth, step in enumerate(steps) if step.items == 1), len(steps) - 1)
        found.append(tuple(steps[: alone + 1]))
    return found


def require_codes(codes: SemanticCodes, dataset: Dataset) -> None:
    """Refuse codes that were not made for the catalogue of ``dataset``.

    Raises:
        DataError: They are those of another one.
    """
    try:
        codes.require(catalogue(dataset), dataset.num_items)
    except ValueError as error:
        raise DataError(f"{error}, and run the experiment again") from error


def latest(histories: Sequences, user: int, events: int | None = None) -> list[int]:
    """Each item of a user's last ``events``, or of all, once and latest first."""
    first, last = histories.offsets[user : user + 2]
    return list(dict.fromkeys(histories.items[first:last][::-1][:events].tolist()))


class _Words:
    """How often items have a word."""

    def __init__(self, dataset: Dataset) -> None:
        try:
            self._words = [set(found) for found in words(dataset.items)]
        except DataError:  # there is no text
            self._words = [set() for _ in range(dataset.num_items)]
        self._counts = collections.Counter(word for one in self._words for word in one)

    def of(self, items: npt.NDArray[np.int64]) -> tuple[str, ...]:
        """What most of the items have and few others; empty for a single item, which has everything in common."""
        if len(items) < 2:
            return ()
        counts = collections.Counter(word for item in items.tolist() for word in self._words[item])
        shares = {word: count / len(items) for word, count in counts.items() if count >= _LEAST_SHARE * len(items)}
        lifts = {word: share * len(self._words) / self._counts[word] for word, share in shares.items()}
        telling = [word for word in shares if lifts[word] >= _LEAST_LIFT and len(word) > 2]
        return tuple(sorted(telling, key=lambda word: (-shares[word] * np.log(lifts[word]), word))[:_WORDS])


def path_accuracy(codes: SemanticCodes, lists: npt.NDArray[np.int32], relevant: csr_array) -> dict[str, Any]:
    """How far the first item of each list goes the way of the relevant one, and what all lists reach.

    Args:
        codes: of the catalogue.
        lists: int32 [U, K], best first, -1 = none.
        relevant: csr [U, N] of the held-out items; of several, the first counts.

    Returns:
        ``levels``, for each level the users and the share of right codes after a right and after a wrong prefix (None
        without such users), and ``recommended``, the share of the catalogue that is in a list.
    """
    judged = np.flatnonzero((np.diff(relevant.indptr) > 0) & (lists[:, 0] >= 0))
    targets = relevant.indices[relevant.indptr[:-1][judged]]
    right = codes.codes[lists[judged, 0]] == codes.codes[targets]
    before, levels = np.ones(len(judged), dtype=np.bool_), []
    for level in range(codes.levels):
        groups = {"right": right[before, level], "wrong": right[~before, level]}
        levels.append(
            {f"{name}_users": len(hits) for name, hits in groups.items()}
            | {f"after_{name}": float(hits.mean()) if len(hits) else None for name, hits in groups.items()}
        )
        before = before & right[:, level]
    reached = np.unique(lists[lists >= 0]).size
    return {"levels": levels, "recommended": reached / codes.num_items}
