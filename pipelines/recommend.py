"""What a trained variant recommends to one user, by raw id and with titles."""

from __future__ import annotations

import dataclasses
import json as json_format
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.code_paths import CodePrefix, ContentMatch, explanations
from pipelines.dataset import Dataset
from pipelines.errors import DataError
from pipelines.explain import Reason, reasons
from pipelines.knowledge import open_knowledge
from pipelines.run_directory import find_run, find_variant, open_dataset
from pipelines.run_files import RunFiles
from pipelines.shared_digits import SharedDigits, shared_digits
from recsys.checkpoint import Model, load_model
from recsys.models.kgat import Kgat
from recsys.models.popularity import Popularity
from recsys.models.rpg import Rpg
from recsys.models.tiger import Tiger
from recsys.topk import TopK, exact_top_k

_SHOWN_HISTORY = 20
_PATHS = 3
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


Explanation = Reason | CodePrefix | ContentMatch | SharedDigits


@dataclasses.dataclass(frozen=True)
class Item:
    """An item as a person reads it; ``score`` is None in a history, ``because`` is for recommendations explained."""

    id: str
    title: str
    score: float | None = None
    because: tuple[Explanation, ...] = ()


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """Items for one user.

    Attributes:
        run: Run directory.
        variant: Variant that recommends, or ``popularity`` when the user is unknown.
        user: Raw id as asked for.
        fallback: Whether the most popular items stand in for a user that is not in the data.
        note: What a reader should know (unknown user, user without training interactions), or empty.
        history: The user's latest interactions, newest first where the data has times.
        history_size: All interactions of the user; none of them is recommended.
        items: Recommended items, best first.
    """

    run: str
    variant: str
    user: str
    fallback: bool
    note: str
    history: tuple[Item, ...]
    history_size: int
    items: tuple[Item, ...]

    def json(self) -> str:
        """The same as JSON."""
        return json_format.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)

    def text(self) -> str:
        """A page for a terminal, without the control characters that ids and titles may hold."""
        plain = dataclasses.replace(
            self,
            user=_printable(self.user),
            note=_printable(self.note),
            history=tuple(map(_printable_item, self.history)),
            items=tuple(map(_printable_item, self.items)),
        )
        return plain._text()

    def _text(self) -> str:
        lines = [self.note] if self.note else []
        if self.history:
            more = f", {len(self.history)} of {self.history_size}" if self.history_size > len(self.history) else ""
            lines += [f"history of user {self.user}{more}:", *(f"      {item.title}" for item in self.history), ""]
        lines.append(f"{self.variant} recommends:")
        width = max((len(item.title) for item in self.items), default=0)
        for place, item in enumerate(self.items, start=1):
            known_as = "" if item.id == item.title else f"  ({item.id})"
            lines.append(f"  {place:>3} {item.title:<{min(width, 60)}}  {item.score:.4f}{known_as}")
            lines += [f"        {reason.text()}  ({reason.weight:.2g})" for reason in item.because]
        return "\n".join(lines)


def _printable(text: str) -> str:
    r"""Text without control and direction characters, which a terminal would obey.

    >>> _printable("a\x1b[2Jb\n")
    'a[2Jb'
    """
    return _CONTROLS.sub("", text)


def _printable_item(item: Item) -> Item:
    because = tuple(reason.printable(_printable) for reason in item.because)
    return dataclasses.replace(item, id=_printable(item.id), title=_printable(item.title), because=because)


def recommend(
    run: Path, user: str, *, variant: str | None = None, k: int = 10, explain: bool = False
) -> Recommendation:
    """Recommend ``k`` unseen items to a user.

    Args:
        run: Run directory or its name.
        user: Raw id. An unknown user gets the most popular items, with ``fallback`` set.
        variant: Name of a variant; the best one on validation if None.
        k: How many items.
        explain: Give the paths of the knowledge graph that lead to each item, the codes that TIGER wrote, or the digits
            that RPG finds likely and items of the history have.

    Raises:
        DataError: There is no such run or variant, its dataset is gone, or the variant cannot explain.
    """
    directory = find_run(run)
    chosen = find_variant(directory, variant)
    if explain and chosen.model not in ("kgat", "tiger", "rpg"):
        raise DataError(
            f"variant {chosen.name} is of model {chosen.model}, which has no knowledge graph to explain by and predicts"
            " no codes; give --variant one whose model is kgat, tiger or rpg"
        )
    dataset = open_dataset(directory)
    try:
        index = dataset.user_index(user)
    except DataError as unknown:
        return _popular(directory, dataset, user, k, f"{unknown} The most popular items stand in.")
    model = load_model(RunFiles(directory).checkpoint_dir(chosen.name, chosen.seed))
    seen = dataset.matrix("train", "valid", "test")
    top = exact_top_k(model, np.array([index], dtype=np.int64), k, seen)
    trained_on = seen.indptr[index + 1] - seen.indptr[index]
    cold = not len(dataset.matrix("train", "valid")[[index]].indices)
    notes = [f"user {user} has no training interactions: a cold user"] if cold else []
    if trained_on == dataset.num_items:
        notes.append(f"user {user} has had all {dataset.num_items:,} items, so that none is left to recommend")
    history = _history(dataset, index)
    items = _items(dataset, top.items[0], top.scores[0])
    if explain:
        because = _explained(model, dataset, index, top)
        items = tuple(dataclasses.replace(item, because=b) for item, b in zip(items, because, strict=True))
        if items and not any(because):
            what = "likely digit" if isinstance(model, Rpg) else "fact of the knowledge graph"
            notes.append(f"no {what} connects these items with the user's history")
    note = "; ".join(notes)
    return Recommendation(str(directory), chosen.name, user, False, note, history, int(trained_on), items)  # noqa: FBT003


def _explained(model: Model, dataset: Dataset, user: int, top: TopK) -> Sequence[tuple[Explanation, ...]]:
    there = top.items[0] >= 0
    items = top.items[0][there].tolist()
    if isinstance(model, Tiger):
        return explanations(model, dataset, user, items, top.scores[0][there].tolist())
    if isinstance(model, Rpg):
        return shared_digits(model, dataset, user, items, _PATHS)
    assert isinstance(model, Kgat)
    knowledge = open_knowledge(dataset)
    return [reasons(model, dataset, knowledge, user, item, _PATHS) for item in items]


def _popular(directory: Path, dataset: Dataset, user: str, k: int, note: str) -> Recommendation:
    model = Popularity.fit(dataset.matrix("train", "valid"))
    top = exact_top_k(model, np.array([0], dtype=np.int64), k, None)
    items = _items(dataset, top.items[0], top.scores[0])
    return Recommendation(str(directory), "popularity", user, True, note, (), 0, items)  # noqa: FBT003


def _history(dataset: Dataset, index: int) -> tuple[Item, ...]:
    import polars as pl

    rows = dataset.frame().filter(pl.col("user") == index)
    for order in ("timestamp", "position"):
        if order in rows.columns:
            rows = rows.sort(order, descending=True, nulls_last=True)
            break
    ids, titles = dataset.raw_item_ids(), dataset.item_titles()
    return tuple(Item(ids[item], titles[item]) for item in rows["item"].head(_SHOWN_HISTORY).to_list())


def _items(dataset: Dataset, items: Any, scores: Any) -> tuple[Item, ...]:
    ids, titles = dataset.raw_item_ids(), dataset.item_titles()
    pairs = zip(np.asarray(items).tolist(), np.asarray(scores).tolist(), strict=True)
    return tuple(Item(ids[item], titles[item], float(score)) for item, score in pairs if item >= 0)
