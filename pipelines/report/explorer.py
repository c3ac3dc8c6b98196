"""Users for whom two variants differ most, and samples of what variants recommend, with titles."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_array

from pipelines.dataset import Dataset
from pipelines.report.data import Run, VariantRun
from pipelines.report.verdict import main_pairs
from recsys.rng import generator

Json = dict[str, Any]
USERS_PER_SIDE = 15
LIST_LENGTH = 20
_HISTORY = 40
_RELEVANT = 40
_TITLE_LENGTH = 120
_SAMPLE_LENGTH = 10


class Titles:
    """Collects the titles in use, so that the page holds each once."""

    def __init__(self, titles: list[str]) -> None:
        self._all = titles
        self._place: dict[int, int] = {}

    def __call__(self, items: npt.NDArray[np.integer[Any]]) -> list[int]:
        """Numbers of the items' titles in :meth:`used`; -1, which pads short lists, is dropped."""
        return [self._place.setdefault(int(item), len(self._place)) for item in items if item >= 0]

    def used(self) -> list[str]:
        """Titles in the order of their numbers, cut to a bearable length."""
        return [clip(self._all[item]) for item in self._place]


def clip(title: str) -> str:
    """``title`` with at most 120 characters."""
    return title if len(title) <= _TITLE_LENGTH else title[: _TITLE_LENGTH - 1] + "…"


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Whom the lists are for: csr [users, items] of what the models saw at test, and of what they had to find."""

    seen: csr_array
    relevant: csr_array
    order: dict[int, npt.NDArray[np.int64]] | None
    popularity: npt.NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset, users: npt.NDArray[np.int64]) -> Interactions:
        """Read the dataset; where it has timestamps, ``order`` gives the history of ``users`` newest first."""
        seen = dataset.matrix("train", "valid")
        order = None
        frame = dataset.frame("train", "valid").filter(pl.col("user").is_in(users.tolist()))
        if "timestamp" in frame.columns:
            newest = frame.sort("user", pl.col("timestamp"), "item", descending=[False, True, False])
            order = {
                int(user): part["item"].unique(maintain_order=True).to_numpy().astype(np.int64)
                for (user,), part in newest.group_by("user", maintain_order=True)
            }
        popularity = np.bincount(seen.indices, minlength=seen.shape[1]).astype(np.int64)
        return cls(seen, dataset.matrix("test"), order, popularity)

    def history(self, user: int) -> npt.NDArray[np.int64]:
        """Items of the user, newest first, else the least popular first: those say most about a person."""
        if self.order is not None:
            return self.order.get(user, np.empty(0, dtype=np.int64))
        items = _row(self.seen, user)
        rarest_first: npt.NDArray[np.int64] = items[np.argsort(self.popularity[items], kind="stable")]
        return rarest_first

    def held_out(self, user: int) -> npt.NDArray[np.int64]:
        """Test items of the user."""
        return _row(self.relevant, user)


def _row(matrix: csr_array, row: int) -> npt.NDArray[np.int64]:
    return np.asarray(matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]], dtype=np.int64)


class Lists:
    """Recommended items by variant (first seed) for any evaluated user."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._frames: dict[str, tuple[npt.NDArray[np.int64], pl.Series] | None] = {}

    def has(self, variant: VariantRun) -> bool:
        """Whether the variant has lists."""
        return self._frame(variant) is not None

    def top(self, variant: VariantRun, user: int, length: int) -> npt.NDArray[np.int64]:
        """The user's items, best first; empty for a user who was not evaluated."""
        frame = self._frame(variant)
        empty = np.empty(0, dtype=np.int64)
        if frame is None:
            return empty
        users, items = frame
        place = int(np.searchsorted(users, user))
        if place == len(users) or users[place] != user:
            return empty
        return np.asarray(items[place], dtype=np.int64)[:length]

    def _frame(self, variant: VariantRun) -> tuple[npt.NDArray[np.int64], pl.Series] | None:
        if variant.name not in self._frames:
            frame = self._run.files.top_items(variant.name, variant.first.seed)
            if frame is None:
                self._frames[variant.name] = None
            else:
                frame = frame.sort("user")
                self._frames[variant.name] = (frame["user"].to_numpy().astype(np.int64), frame["items"])
        return self._frames[variant.name]


def explorer(run: Run, dataset: Dataset | None) -> Json | None:
    """Pairs of variants and the users where they differ most, as plain JSON; None where something needed is missing."""
    lists, per_user = Lists(run), run.per_user
    if dataset is None or per_user is None:
        return None
    pairs = [
        (a, b)
        for a, b in main_pairs(run)
        if lists.has(a) and lists.has(b) and a.name in per_user.values and b.name in per_user.values
    ]
    if not pairs:
        return None
    chosen = [_extremes(per_user.mean(a.name) - per_user.mean(b.name)) for a, b in pairs]
    data = Interactions.of(dataset, per_user.users[np.unique(np.concatenate(chosen))])
    titles = Titles(dataset.item_titles())
    found = []
    for (a, b), places in zip(pairs, chosen, strict=True):
        users = [
            _user(data, lists, titles, int(per_user.users[place]), (a, b))
            | {
                "id": clip(per_user.raw_ids[place]),
                "a": round(float(per_user.mean(a.name)[place]), 4),
                "b": round(float(per_user.mean(b.name)[place]), 4),
            }
            for place in places
        ]
        found.append({"a": a.name, "b": b.name, "users": users})
    return {
        "metric": run.selection,
        "length": LIST_LENGTH,
        "newest_first": data.order is not None,
        "pairs": found,
        "titles": titles.used(),
    }


def _extremes(difference: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Places of the users with the largest gains, then of those with the largest losses; no user without either."""
    gains = np.argsort(-difference, kind="stable")[:USERS_PER_SIDE]
    losses = np.argsort(difference, kind="stable")[:USERS_PER_SIDE]
    kept = [gains[difference[gains] > 0], losses[difference[losses] < 0]]
    return np.concatenate(kept).astype(np.int64)


def _user(data: Interactions, lists: Lists, titles: Titles, user: int, pair: tuple[VariantRun, VariantRun]) -> Json:
    history, relevant = data.history(user), data.held_out(user)
    return {
        "history": titles(history[:_HISTORY]),
        "history_size": len(history),
        "relevant": titles(relevant[:_RELEVANT]),
        "relevant_size": len(relevant),
        "lists": [_judged(lists.top(variant, user, LIST_LENGTH), relevant, titles) for variant in pair],
    }


def _judged(items: npt.NDArray[np.int64], relevant: npt.NDArray[np.int64], titles: Titles) -> list[list[int]]:
    items = items[items >= 0]
    return [[title, int(hit)] for title, hit in zip(titles(items), np.isin(items, relevant), strict=True)]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Recommendations for one user: ``lists`` holds (variant, [(title, is a hit)])."""

    user: str
    described: str
    history: list[str]
    lists: list[tuple[str, list[tuple[str, bool]]]]


def samples(run: Run, dataset: Dataset | None, number: int = 5) -> list[Sample]:
    """Recommendations for users drawn at random, one from each fifth by activity; empty without dataset or lists."""
    lists, per_user = Lists(run), run.per_user
    if dataset is None or per_user is None or not len(per_user.users):
        return []
    shown = list(dict.fromkeys(variant.name for pair in main_pairs(run) for variant in pair)) or [run.ranking[0].name]
    variants = [run.variant(name) for name in shown[:3] if lists.has(run.variant(name))]
    if not variants:
        return []
    activity = np.diff(dataset.matrix("train", "valid").indptr)[per_user.users]
    fifths = np.array_split(np.argsort(activity, kind="stable"), number)
    rng = generator(0, "report", "samples")
    places = [int(rng.choice(fifth)) for fifth in fifths if fifth.size]
    data = Interactions.of(dataset, per_user.users[places])
    names = dataset.item_titles()
    return [_sample(data, lists, names, per_user.raw_ids[p], int(per_user.users[p]), variants) for p in places]


def _sample(
    data: Interactions, lists: Lists, names: list[str], raw_id: str, user: int, variants: list[VariantRun]
) -> Sample:
    history, relevant = data.history(user), data.held_out(user)
    ranked = []
    for variant in variants:
        items = lists.top(variant, user, _SAMPLE_LENGTH)
        items = items[items >= 0]
        hits = np.isin(items, relevant)
        ranked.append((variant.name, [(clip(names[i]), bool(hit)) for i, hit in zip(items, hits, strict=True)]))
    described = f"{len(history):,} items before, {len(relevant):,} held out"
    return Sample(clip(raw_id), described, [clip(names[i]) for i in history[:10]], ranked)
