"""Why KGAT recommends an item: the paths that the user's attention takes to it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from embeddings.graph_export import strongest_paths
from recsys.models.kgat import Kgat

_LEAST = 1e-30


@dataclasses.dataclass(frozen=True)
class AttentionPath:
    """A path of the collaborative graph.

    Attributes:
        nodes: from the user to the item, as :class:`recsys.knowledge_graph.CollaborativeGraph` numbers them.
        relations: between them, one fewer.
        weight: product of the attention along the path.
    """

    nodes: tuple[int, ...]
    relations: tuple[int, ...]
    weight: float


def explain(model: Kgat, user: int, item: int, count: int) -> list[AttentionPath]:
    """The paths user, seen item, (entity,) item that get most attention (Wang et al. 2019, sec. 4.5).

    A path leaves the user by an interaction and goes on by facts alone, in either direction.

    Args:
        model: with a graph.
        user: index.
        item: index.
        count: paths at most.

    Returns:
        Strongest first; empty where no fact connects the item with what the user has seen.
    """
    graph, attention, target = model.collaborative, model.attention.numpy(), model.collaborative.item_node(item)
    starts = np.searchsorted(graph.heads, np.arange(graph.num_nodes + 1))
    interacts = (0, graph.num_relations // 2)
    best: dict[tuple[int, int], tuple[float, int]] = {}

    def follow(head: int, towards: set[int] | None, *, by_fact: bool) -> list[int]:
        reached = []
        for edge in range(starts[head], starts[head + 1]):
            tail, relation = int(graph.tails[edge]), int(graph.relations[edge])
            if (relation not in interacts) == by_fact and (towards is None or tail in towards):
                reached.append(tail)
                weight = max(float(attention[edge]), _LEAST)
                best[head, tail] = max(best.get((head, tail), (0.0, 0)), (weight, relation))
        return reached

    seen = [node for node in follow(user, None, by_fact=False) if node != target]
    near = {int(tail) for tail in graph.tails[starts[target] : starts[target + 1]]}
    between = {node for first in seen for node in follow(first, near | {target}, by_fact=True)} - {user, target, *seen}
    for node in between:
        follow(node, {target}, by_fact=True)
    edges = ((head, tail, weight) for (head, tail), (weight, _) in best.items())
    return [
        AttentionPath(tuple(nodes), tuple(best[pair][1] for pair in itertools.pairwise(nodes)), weight)
        for nodes, weight in strongest_paths(edges, user, target, count)
    ]
