"""The paths of :mod:`recsys.explanation` in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from pipelines.dataset import Dataset
from pipelines.knowledge import Knowledge
from recsys.explanation import AttentionPath, explain
from recsys.models.kgat import Kgat


@dataclasses.dataclass(frozen=True)
class Reason:
    """A path from a user to a recommended item.

    Attributes:
        names: of the nodes: user, seen item, entity, recommended item.
        relations: between them, one fewer.
        weight: product of the attention along the path, in (0, 1].
    """

    names: tuple[str, ...]
    relations: tuple[str, ...]
    weight: float

    def text(self) -> str:
        """One line."""
        steps = zip(self.relations, self.names[1:], strict=True)
        return "".join([self.names[0], *(f" -[{relation}]-> {name}" for relation, name in steps)])

    def printable(self, clean: Callable[[str], str]) -> Reason:
        """The same with cleaned names."""
        return dataclasses.replace(
            self, names=tuple(map(clean, self.names)), relations=tuple(map(clean, self.relations))
        )


def reasons(
    model: Kgat, dataset: Dataset, knowledge: Knowledge, user: int, item: int, count: int
) -> tuple[Reason, ...]:
    """At most ``count`` paths to an item, strongest first."""
    titles = dataset.item_titles()

    def name(node: int) -> str:
        graph = model.collaborative
        if node < graph.num_users:
            return f"user {dataset.raw_user_ids()[node]}"
        place = node - graph.num_users - 1
        return titles[place] if place < graph.num_items else knowledge.entity_names[place - graph.num_items - 1]

    def words(path: AttentionPath) -> Reason:
        related = tuple(_relation(relation, knowledge.relation_names) for relation in path.relations)
        return Reason(tuple(map(name, path.nodes)), related, path.weight)

    return tuple(words(path) for path in explain(model, user, item, count))


def _relation(relation: int, names: list[str]) -> str:
    back, place = divmod(relation, len(names) + 1)
    known_as = "interacted with" if place == 0 else names[place - 1]
    return f"inverse of {known_as}" if back else known_as
