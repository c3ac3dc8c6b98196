"""Facts about items as triples, and the collaborative knowledge graph that they form with the interactions."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from embeddings.tables.addresses import Longs
from recsys.bipartite import BipartiteGraph

INTERACTS = 0
"""The relation of a user to an item of the training interactions."""


@dataclasses.dataclass(frozen=True)
class KnowledgeGraph:
    """Triples (head, relation, tail) over entities: entity i < ``num_items`` is item i, the others follow.

    Attributes:
        num_items: items, linked or not.
        num_entities: entities, the items among them.
        num_relations: R.
        triples: int64 [T, 3] of distinct triples: head and tail in ``[0, num_entities)``, relation in ``[0, R)``.

    Raises:
        ValueError: A triple names an entity or a relation that does not exist, or occurs twice.
    """

    num_items: int
    num_entities: int
    num_relations: int
    triples: Longs

    def __post_init__(self) -> None:
        """Check the triples."""
        bounds = (self.num_entities, self.num_relations, self.num_entities)
        if self.triples.ndim != 2 or self.triples.shape[1] != 3 or self.num_entities < self.num_items:
            raise ValueError(
                f"a knowledge graph needs triples [T, 3] and entities that include the {self.num_items:,} items,"
                f" got {list(self.triples.shape)} and {self.num_entities:,}"
            )
        for column, (name, bound) in enumerate(zip(("head", "relation", "tail"), bounds, strict=True)):
            wrong = np.flatnonzero((self.triples[:, column] < 0) | (self.triples[:, column] >= bound))
            if wrong.size:
                raise ValueError(
                    f"triple {wrong[0]} has {name} {self.triples[wrong[0], column]}, must lie in [0, {bound})"
                )
        distinct = len(np.unique(self.triples, axis=0))
        if distinct < len(self.triples):
            raise ValueError(f"{len(self.triples) - distinct:,} triples occur twice; keep one of each")

    def core(self, least: int) -> tuple[KnowledgeGraph, Longs]:
        """Without the entities in fewer than ``least`` triples and their triples, until none is left; items stay.

        Returns:
            The rest, and int64 [n] the old index of each of its entities.
        """
        triples = self.triples
        kept = np.ones(self.num_entities, bool)
        while True:
            degrees = np.bincount(triples[:, [0, 2]].reshape(-1), minlength=self.num_entities)
            rare = kept & (degrees < least)
            rare[: self.num_items] = False
            if not rare.any():
                break
            kept &= ~rare
            triples = triples[kept[triples[:, 0]] & kept[triples[:, 2]]]
        old = np.flatnonzero(kept)
        new = np.cumsum(kept) - 1
        renamed = np.stack([new[triples[:, 0]], triples[:, 1], new[triples[:, 2]]], axis=1)
        return KnowledgeGraph(self.num_items, len(old), self.num_relations, renamed), old

    def tensors(self) -> dict[str, Tensor]:
        """Tensors ``knowledge.triples`` int32 [T, 3] and ``knowledge.sizes`` int64 [3]."""
        sizes = torch.tensor([self.num_items, self.num_entities, self.num_relations])
        return {"knowledge.triples": torch.from_numpy(self.triples.astype(np.int32)), "knowledge.sizes": sizes}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> KnowledgeGraph:
        """The graph whose :meth:`tensors` these are."""
        items, entities, relations = tensors["knowledge.sizes"].tolist()
        return cls(items, entities, relations, tensors["knowledge.triples"].numpy().astype(np.int64))


@dataclasses.dataclass(frozen=True)
class CollaborativeGraph:
    """Interactions and knowledge as one graph of directed edges, each with its inverse (Wang et al. 2019, sec. 2).

    Nodes are the users, the unseen user, the items, the unseen item and the other entities, in this order. Relation 0
    leads from a user to an item, relations 1 to R are those of the knowledge graph, and r + R + 1 is the inverse of r.

    Attributes:
        num_users: without the unseen user.
        num_items: without the unseen item.
        num_nodes: N.
        num_relations: 2 (R + 1).
        heads: int64 [E], ascending.
        relations: int64 [E].
        tails: int64 [E], ascending for one head.
    """

    num_users: int
    num_items: int
    num_nodes: int
    num_relations: int
    heads: Longs
    relations: Longs
    tails: Longs

    @classmethod
    def of(cls, graph: BipartiteGraph, knowledge: KnowledgeGraph) -> CollaborativeGraph:
        """The union of both.

        Raises:
            ValueError: They have different items.
        """
        if graph.num_items != knowledge.num_items:
            raise ValueError(
                f"the knowledge graph must be of the {graph.num_items:,} items of the interactions,"
                f" got {knowledge.num_items:,}"
            )
        first_item, first_entity = graph.num_users + 1, graph.num_users + graph.num_items + 2
        entity = np.arange(knowledge.num_entities)
        node = np.where(entity < knowledge.num_items, first_item + entity, first_entity + entity - knowledge.num_items)
        users = np.repeat(np.arange(graph.num_users + 1), np.diff(graph.by_user.starts))
        heads = np.concatenate([users, node[knowledge.triples[:, 0]]])
        tails = np.concatenate([first_item + graph.by_user.columns.astype(np.int64), node[knowledge.triples[:, 2]]])
        relations = np.concatenate([np.full(len(users), INTERACTS), 1 + knowledge.triples[:, 1]])
        forward, back = (heads, relations, tails), (tails, relations + knowledge.num_relations + 1, heads)
        both = [np.concatenate(parts) for parts in zip(forward, back, strict=True)]
        order = np.lexsort((both[1], both[2], both[0]))
        nodes = first_entity + knowledge.num_entities - knowledge.num_items
        sizes = (graph.num_users, graph.num_items, nodes, 2 * (knowledge.num_relations + 1))
        return cls(*sizes, *(part[order] for part in both))

    @property
    def num_edges(self) -> int:
        """E, both directions counted."""
        return len(self.heads)

    def item_node(self, item: int) -> int:
        """Node of an item."""
        return self.num_users + 1 + item
