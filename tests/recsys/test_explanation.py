"""Paths of attention against all paths, found by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from embeddings.graph_export import strongest_paths
from recsys.explanation import explain
from recsys.models.kgat import Kgat
from tests.recsys.graph_fixture import ITEMS, USERS, kgat, toy

FIRST_ITEM, FIRST_ENTITY = USERS + 1, USERS + ITEMS + 2


def test_the_strongest_paths_come_first_and_of_parallel_edges_the_strongest_counts() -> None:
    edges = [(0, 1, 0.1), (0, 1, 0.5), (1, 3, 0.5), (0, 2, 0.9), (2, 3, 0.9), (1, 2, 1.0)]
    found = strongest_paths(edges, 0, 3, 5)
    assert [path for path, _ in found] == [[0, 2, 3], [0, 1, 2, 3], [0, 1, 3]]
    assert [weight for _, weight in found] == pytest.approx([0.81, 0.45, 0.25])
    assert strongest_paths(edges, 0, 3, 1) == found[:1]
    assert strongest_paths(edges, 3, 0, 5) == [] and strongest_paths([], 0, 3, 5) == []


@pytest.fixture
def model() -> Kgat:
    made = kgat(toy())
    made.use_graph(toy())
    made.refresh()
    return made


def every_path(model: Kgat, user: int, item: int) -> list[tuple[float, tuple[int, ...]]]:
    """User, seen item, at most one more node, item: the best relation of each pair, by brute force."""
    graph, best = model.collaborative, {}
    for head, relation, tail, weight in zip(
        graph.heads.tolist(), graph.relations.tolist(), graph.tails.tolist(), model.attention.tolist(), strict=True
    ):
        interaction = relation in (0, 3)
        best[head, tail, interaction] = max(weight, best.get((head, tail, interaction), 0.0))
    seen = [FIRST_ITEM + int(i) for i in toy().indices[toy().indptr[user] : toy().indptr[user + 1]]]
    target, found = FIRST_ITEM + item, []
    for first in seen:
        for middle in [(), *((node,) for node in range(FIRST_ITEM, graph.num_nodes))]:
            nodes = (first, *middle, target)
            hops = [best.get((*pair, False)) for pair in itertools.pairwise(nodes)]
            if len(set(nodes)) == len(nodes) and not set(middle) & set(seen) and None not in hops:
                found.append((float(np.prod([best[user, first, True], *hops])), (user, *nodes)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("user", [0, 1, 5])
def test_paths_are_all_short_ones_by_weight(model: Kgat, user: int) -> None:
    unseen = [item for item in range(ITEMS) if not toy()[[user]].toarray()[0, item]]
    expected = {item: every_path(model, user, item) for item in unseen}
    assert any(expected.values())
    for item, paths in expected.items():
        ours = explain(model, user, item, 100)
        assert [path.nodes for path in ours] == [nodes for _, nodes in paths]
        assert [path.weight for path in ours] == pytest.approx([weight for weight, _ in paths], rel=1e-4)
        assert explain(model, user, item, 1) == ours[:1]
        for path in ours:
            assert path.relations[0] == 0 and not {0, 3} & set(path.relations[1:])


def test_a_user_without_interactions_has_no_reason(model: Kgat) -> None:
    assert explain(model, 4, 0, 3) == []


def test_no_attention_is_a_weak_path_and_no_error(model: Kgat) -> None:
    model.use_attention(torch.zeros(model.collaborative.num_edges))
    assert any(path.weight < 1e-30 for item in range(ITEMS) for path in explain(model, 0, item, 3))
