from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from embeddings.semantic_id.codes import SemanticCodes
from recsys.code_trie import CodeTrie
from recsys.models.t5 import T5Shape, relative_buckets
from recsys.models.tiger import Reading, Tiger
from recsys.retriever import GeneratingRetriever
from recsys.topk import exact_top_k
from tests.recsys import tiger_fixture
from tests.recsys.tiger_fixture import ITEMS, bucket, codes, histories, plain_logits, tiger

USERS = np.arange(9)


def test_every_path_of_the_trie_is_an_item_and_every_item_has_one() -> None:
    catalogue = codes()
    trie = CodeTrie.of(catalogue)
    paths: list[tuple[tuple[int, ...], int]] = [((), 0)]
    for level in range(trie.levels):
        parents, nodes = trie.expand(level, torch.tensor([node for _, node in paths]))
        written = trie.codes[level][nodes].tolist()
        paths = [((*paths[p][0], c), n) for p, c, n in zip(parents.tolist(), written, nodes.tolist(), strict=True)]
    found = {int(trie.items[node]): path for path, node in paths}
    assert len(paths) == ITEMS
    assert found == {item: tuple(path) for item, path in enumerate(catalogue.codes.tolist())}


def test_a_node_that_is_none_has_no_children() -> None:
    parents, nodes = CodeTrie.of(codes()).expand(1, torch.tensor([-1, 0, -1]))
    assert set(parents.tolist()) == {1} and len(nodes) > 0


def test_items_that_share_their_codes_are_refused() -> None:
    shared = SemanticCodes(np.array([[0, 1], [1, 1], [0, 1]], dtype=np.int32), (2, 2))
    with pytest.raises(ValueError, match=re.escape("2 of 3 share theirs, first item 0 with [0, 1]; set semantic_ids")):
        CodeTrie.of(shared)


@pytest.mark.parametrize("causal", [True, False])
def test_relative_positions_are_exact_when_near_and_logarithmic_when_far(causal: bool) -> None:
    distance = torch.arange(-200, 201)
    expected = [bucket(int(d), causal=causal) for d in distance]
    assert relative_buckets(distance, causal=causal).tolist() == expected


@pytest.mark.parametrize("user", [0, 3, 8])
def test_a_score_is_the_sum_of_log_probabilities_by_the_equations_of_t5(user: int) -> None:
    """Users without an event, with some, and with more than are read; the start token is 0, codes by level follow."""
    model, catalogue = tiger(), codes().codes
    offsets = 1 + np.array([0, 4, 8])
    row = int(model._hash(np.array([user]))[0])
    events = histories().items[histories().offsets[user] : histories().offsets[user + 1]][-4:]
    read = torch.tensor([13 + row, *(catalogue[events] + offsets).reshape(-1).tolist()])
    scores = model.scores(np.array([user]))[0]
    for item in (0, 7, 29):
        path = (catalogue[item] + offsets).tolist()
        logits = plain_logits(model.transformer, read, torch.tensor([0, *path[:-1]]))
        expected = sum(logits[level].log_softmax(0)[path[level]] for level in range(3))
        assert torch.allclose(scores[item], expected, atol=1e-4)


def test_a_beam_of_all_items_is_exact_and_a_narrow_one_finds_true_scores() -> None:
    model = tiger()
    assert isinstance(model, GeneratingRetriever)
    scores, seen = model.scores(USERS).numpy(), histories().matrix(ITEMS)
    assert np.allclose(model.path_log_probabilities(5, np.arange(ITEMS)).sum(1), scores[5], atol=1e-5)
    masked = np.where(seen.toarray() > 0, -np.inf, scores)
    top = exact_top_k(model, USERS, 10, seen)
    assert np.array_equal(top.items, np.argsort(-masked, axis=1, kind="stable")[:, :10])
    assert np.allclose(top.scores, np.sort(masked, axis=1)[:, ::-1][:, :10], atol=1e-5)
    narrow = exact_top_k(tiger(beam=4), USERS, 4, seen)
    assert np.allclose(narrow.scores, np.take_along_axis(masked, narrow.items.astype(np.int64), 1), atol=1e-5)
    assert (narrow.items[:, 0] == top.items[:, 0]).mean() > 0.5


def test_a_narrow_beam_follows_no_prefix_whose_items_are_all_seen() -> None:
    """The best six items of each user are out, and with them what a beam of three would follow."""
    model, rows = tiger(beam=3), np.repeat(USERS, 6)
    best = np.argsort(-model.scores(USERS).numpy(), axis=1, kind="stable")[:, :6]
    seen = csr_array((np.ones(54, np.float32), (rows, best.ravel())), shape=(9, ITEMS))
    seen.sort_indices()
    top = exact_top_k(model, USERS, 3, seen)
    assert (top.items >= 0).all() and not seen.toarray()[np.repeat(USERS, 3), top.items.ravel()].any()


def test_a_list_does_not_depend_on_who_else_is_asked_for() -> None:
    model, seen = tiger(), histories().matrix(ITEMS)
    whole = exact_top_k(model, USERS, 5, seen)
    some = exact_top_k(model, np.array([7, 0, 7]), 5, seen)
    assert np.array_equal(some.items, whole.items[[7, 0, 7]])
    assert exact_top_k(model, USERS[:0], 5, seen).items.shape == (0, 5)


def test_a_user_who_has_seen_all_gets_nothing_and_a_longer_list_than_the_catalogue_ends() -> None:
    model = tiger()
    seen = csr_array(np.ones((9, ITEMS), np.float32) * (USERS == 4)[:, None])
    top = exact_top_k(model, USERS, ITEMS + 5, seen)
    assert (top.items[4] == -1).all() and np.isneginf(top.scores[4]).all()
    alone = exact_top_k(model, USERS[4:5], 3, seen)
    assert (alone.items == -1).all() and np.isneginf(alone.scores).all()
    assert sorted(top.items[3][:ITEMS].tolist()) == list(range(ITEMS)) and (top.items[3][ITEMS:] == -1).all()


def test_users_are_hashed_to_tokens_of_their_own() -> None:
    """With one user token everybody without an event is alike; with many, not."""
    nobody = tiger_fixture.Sequences.of_events(np.zeros(0, np.int64), np.zeros(0, np.int64), 9)
    alike, told = tiger(reading=Reading(user_tokens=1)), tiger(reading=Reading(user_tokens=50))
    alike.histories = told.histories = nobody
    assert len(np.unique(alike.scores(USERS).numpy(), axis=0)) == 1
    assert len(np.unique(told.scores(USERS).numpy(), axis=0)) > 5


def test_scores_that_are_no_numbers_are_told() -> None:
    model = tiger()
    torch.nn.init.constant_(model.transformer.embedding, torch.nan)
    with pytest.raises(ValueError, match="scores must be finite, but user 0 has a NaN or infinite score"):
        exact_top_k(model, USERS, 3, None)


def test_sizes_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("T5Shape.layers must be at least 1, got 0")):
        T5Shape(layers=0)
    with pytest.raises(ValueError, match=re.escape("Reading.max_items must be at least 1, got 0")):
        Reading(max_items=0)
    with pytest.raises(ValueError, match="beam must be at least 1, got 0"):
        Tiger(codes(), histories(), tiger_fixture.SMALL, Reading(), beam=0, generator=np.random.default_rng(0))
