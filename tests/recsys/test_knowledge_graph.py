from __future__ import annotations

import numpy as np
import pytest

from recsys.bipartite import BipartiteGraph
from recsys.knowledge_graph import CollaborativeGraph, KnowledgeGraph
from tests.recsys.graph_fixture import ITEMS, USERS, knowledge, toy


def test_tensors_bring_the_graph_back() -> None:
    graph = knowledge()
    again = KnowledgeGraph.from_tensors(graph.tensors())
    assert np.array_equal(again.triples, graph.triples) and again.triples.dtype == np.int64
    assert (again.num_items, again.num_entities, again.num_relations) == (ITEMS, ITEMS + 4, 2)


def test_the_collaborative_graph_has_every_edge_in_both_directions_and_by_head() -> None:
    graph = CollaborativeGraph.of(BipartiteGraph.of(toy()), knowledge())
    edges = list(zip(graph.heads.tolist(), graph.relations.tolist(), graph.tails.tolist(), strict=True))
    assert (graph.num_nodes, graph.num_relations) == (USERS + 1 + ITEMS + 1 + 4, 6)
    assert graph.num_edges == len(edges) == 2 * (toy().nnz + len(knowledge().triples))
    assert edges == sorted(edges, key=lambda edge: (edge[0], edge[2]))
    assert {(t, (r + 3) % 6, h) for h, r, t in edges} == set(edges)
    users, items = toy().nonzero()
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        assert (user, 0, graph.item_node(item)) in edges
    last_item, second_entity = graph.item_node(ITEMS - 1), USERS + 1 + ITEMS + 1 + 1
    assert (second_entity, 1, last_item) in edges


def test_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="must be of the 7 items of the interactions, got 6"):
        CollaborativeGraph.of(BipartiteGraph.of(toy()), knowledge(6))


def test_the_core_drops_rare_entities_until_none_is_left_and_keeps_every_item() -> None:
    """Entity 4 hangs on 3, which falls below two triples without it; 2 is shared by two items."""
    triples = np.array([[0, 0, 2], [1, 0, 2], [0, 1, 3], [3, 0, 4]])
    core, old = KnowledgeGraph(2, 5, 2, triples).core(2)
    assert old.tolist() == [0, 1, 2] and core.triples.tolist() == [[0, 0, 2], [1, 0, 2]]
    assert (core.num_items, core.num_entities, core.num_relations) == (2, 3, 2)
    nothing, old = KnowledgeGraph(2, 5, 2, triples).core(3)
    assert old.tolist() == [0, 1] and nothing.triples.shape == (0, 3)
    whole, old = KnowledgeGraph(2, 5, 2, triples).core(0)
    assert len(old) == 5 and np.array_equal(whole.triples, triples)


@pytest.mark.parametrize(
    ("sizes", "triples", "message"),
    [
        ((2, 4, 1), [[0, 0]], r"needs triples \[T, 3\].*got \[1, 2\] and 4"),
        ((5, 4, 1), [[0, 0, 1]], "entities that include the 5 items, got"),
        ((2, 4, 1), [[0, 0, 1], [0, 0, 4]], r"triple 1 has tail 4, must lie in \[0, 4\)"),
        ((2, 4, 1), [[-1, 0, 1]], r"triple 0 has head -1, must lie in \[0, 4\)"),
        ((2, 4, 1), [[0, 1, 1]], r"triple 0 has relation 1, must lie in \[0, 1\)"),
        ((2, 4, 1), [[0, 0, 1], [0, 0, 1]], "1 triples occur twice; keep one of each"),
    ],
)
def test_triples_that_make_no_sense_are_refused(
    sizes: tuple[int, int, int], triples: list[list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        KnowledgeGraph(*sizes, np.array(triples))
