"""Rows of n-grams and pieces: worked by hand, at the budget, and for cold items."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from embeddings.compress import compress
from embeddings.semantic_id.codes import SemanticCodes
from embeddings.semantic_id.collaborative import fast_rp
from embeddings.semantic_id.compress import Semantic
from embeddings.semantic_id.rows import ngram_rows, piece_rows

PATHS = np.array([[0, 1, 2], [0, 1, 3], [1, 1, 2], [2, 0, 0]], dtype=np.int32)
COUNTS = np.array([5, 3, 1, 0])


def draws() -> np.random.Generator:
    return np.random.default_rng(0)


def used(places: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    rows, weights = places
    return [sorted(row[weight > 0].tolist()) for row, weight in zip(rows, weights, strict=True)]


def test_unigrams_have_a_row_for_each_code_of_each_level() -> None:
    # levels: {0, 1} -> rows 0, 1; {1} -> row 2; {2, 3} -> rows 3, 4; the last item has no trained code
    assert used(ngram_rows(PATHS, COUNTS, 5, 1, draws())) == [[0, 2, 3], [0, 2, 4], [1, 2, 3], []]


def test_bigrams_and_rows_for_the_most_frequent_items() -> None:
    # pairs (0,1), (1,1) -> rows 0, 1; last codes 2, 3 -> rows 2, 3; rows 4 and 5 belong to items 0 and 1
    assert used(ngram_rows(PATHS, COUNTS, 6, 2, draws())) == [[0, 2, 4], [0, 3, 5], [1, 2], []]
    assert used(ngram_rows(PATHS, COUNTS, 9, 3, draws())) == [[0, 3], [1, 4], [2, 5], []]


def test_a_cold_item_shares_the_trained_rows_of_its_codes() -> None:
    cold = np.vstack([PATHS, [[0, 7, 3]]]).astype(np.int32)
    assert used(ngram_rows(cold, np.append(COUNTS, 0), 5, 1, draws()))[4] == [0, 4]


def test_positions_with_too_many_ngrams_are_hashed_into_their_share() -> None:
    codes = np.stack([np.arange(60) % 2, np.arange(60)], axis=1).astype(np.int32)
    rows, weights = ngram_rows(codes, np.ones(60, dtype=np.int64), 12, 1, draws())
    assert (weights == 1).all()
    assert set(rows[:, 0]) == {0, 1}
    assert rows[:, 1].min() >= 2
    assert rows[:, 1].max() < 12
    assert len(set(rows[:, 1])) > 5
    few = ngram_rows(codes, np.ones(60, dtype=np.int64), 1, 1, draws())
    assert used(few) == [[0]] * 60


@settings(max_examples=40, deadline=None)
@given(
    items=st.integers(1, 40),
    levels=st.integers(1, 4),
    rows=st.integers(1, 60),
    n=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_rows_stay_in_the_budget_and_seen_items_have_some(
    items: int, levels: int, rows: int, n: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 6, (items, levels)).astype(np.int32)
    counts = generator.integers(0, 3, items)
    counts[0] = 1
    for found in (ngram_rows(codes, counts, rows, min(n, levels), draws()), piece_rows(codes, counts, rows)):
        assert found[0].min() >= 0
        assert found[0].max() < rows
        assert (found[1][counts > 0].sum(axis=1) >= 1).all()
        same = (codes == codes[0]).all(axis=1) & (counts == 0)
        assert (found[1][same].sum(axis=1) >= 1).all()  # cold, but with the path of a seen item


def test_popular_paths_become_one_piece_and_rare_ones_several() -> None:
    generator = np.random.default_rng(1)
    codes = generator.integers(0, 8, (300, 3)).astype(np.int32)
    codes[:2] = [[7, 7, 7], [1, 2, 3]]
    counts = np.ones(300, dtype=np.int64)
    counts[0] = 5000
    rows, weights = piece_rows(codes, counts, 60)
    pieces = weights[:, 1:].sum(axis=1)  # the first column is the row that an item owns
    assert pieces[0] == 1
    assert pieces.max() == 3
    assert np.unique(rows[weights > 0]).size == 60


def test_a_code_is_another_piece_on_another_level() -> None:
    pieces = used(piece_rows(np.array([[0, 1], [1, 0]], dtype=np.int32), np.array([1, 1]), 4))
    assert not set(pieces[0]) & set(pieces[1])


def test_a_budget_below_the_codes_drops_fine_levels() -> None:
    codes = np.stack([np.arange(60) % 3, np.arange(60)], axis=1).astype(np.int32)
    rows, weights = piece_rows(codes, np.ones(60, dtype=np.int64), 3)
    assert [row for [row] in used((rows, weights))] == (np.arange(60) % 3).tolist()


def test_limits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"n-grams of paths of 3 codes need n in \[1, 3\], got 4"):
        ngram_rows(PATHS, COUNTS, 5, 4, draws())
    many = np.arange(70_000, dtype=np.int32)[:, None]
    with pytest.raises(ValueError, match="SentencePiece has 65,534 private-use characters, but there are 70,000 codes"):
        piece_rows(many, np.ones(70_000, dtype=np.int64), 80_000)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r"semantic_spm needs sentencepiece; pip install 'sentencepiece>=0.2'"):
        piece_rows(PATHS, COUNTS, 9)


def graph() -> sparse.csr_array:
    edges = np.random.default_rng(3).random((50, 30)) < 0.2
    edges[:, 29] = False  # a cold item
    return sparse.csr_array(edges.astype(np.float32))


@pytest.mark.parametrize("name", ["semantic_ngram", "semantic_spm"])
def test_given_codes_serve_cold_items_and_others_go_to_the_unseen_row(name: str) -> None:
    codes = np.random.default_rng(0).integers(0, 4, (30, 3)).astype(np.int32)
    codes[29] = codes[0]
    cold = compress(name, graph(), 10, 14, semantic=Semantic(items=SemanticCodes(codes, (4, 4, 4))))[1]
    weights = cold.lookup_weights(np.array([0, 29]))
    rows = [set(cold.rows[i][weights[place] > 0]) for place, i in enumerate((0, 29))]
    assert rows[1]
    assert rows[1] <= rows[0]  # but for the row that item 0 may own
    assert cold.unseen_row not in rows[1]
    codes[29] = 9
    alien = compress(name, graph(), 10, 14, semantic=Semantic(items=SemanticCodes(codes, (10, 10, 10))))[1]
    assert set(alien.rows[29]) == {alien.unseen_row} or alien.lookup_weights(np.array([29]))[0, 0] == 1.0
    assert alien.rows[29, 0] == alien.unseen_row


@pytest.mark.parametrize("name", ["semantic_ngram", "semantic_spm"])
def test_ids_of_like_popularity_share_a_row_and_cold_ones_have_that_of_the_rarest(name: str) -> None:
    codes = SemanticCodes(np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0, 0], [7, 7]], np.int32), (8, 8))
    interactions = sparse.csr_array(np.array([[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]], np.float32))
    item_map = compress(name, interactions, 9, 12, semantic=Semantic(items=codes, popularity_share=0.25))[1]
    rows, weights = item_map.rows, item_map.lookup_weights(np.arange(6))
    shared = [set(row[weight > 0].tolist()) & {10, 11} for row, weight in zip(rows, weights, strict=True)]
    assert shared == [{10}, {11}, {11}, {10}, {10}, set()]
    assert (rows[5] == item_map.unseen_row)[weights[5] > 0].all()
    assert all((weights[:5] > 0).sum(axis=1) >= 2)
    with pytest.raises(ValueError, match=r"popularity_share must be in \[0, 1\), got 1"):
        Semantic(popularity_share=1)


def test_codes_of_another_catalogue_are_refused() -> None:
    codes = SemanticCodes(np.zeros((7, 1), dtype=np.int32), (1,))
    with pytest.raises(
        ValueError, match="semantic_spm has codes of 7 items, but the graph has 30; tokenise this catal"
    ):
        compress("semantic_spm", graph(), 5, 5, semantic=Semantic(items=codes))


def test_fast_rp_is_the_equation_and_puts_blocks_together() -> None:
    train = graph()
    dense = train.toarray().astype(np.float64)
    items, users = np.maximum(dense.sum(0), 1), np.maximum(dense.sum(1), 1)
    walk = (dense.T / items[:, None]) @ (dense / users[:, None])
    share = 1 / np.sqrt(30)
    random = draws().random((30, 16))
    current = items[:, None] ** -0.5 * ((random < share / 2) * 1.0 - ((random >= share / 2) & (random < share)))
    total = np.zeros_like(current)
    for weight in (0.5, 2.0):
        current = walk @ current
        total += weight * current / np.maximum(np.linalg.norm(current, axis=1, keepdims=True), 1e-12)
    expected = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(fast_rp(train, 16, draws(), (0.5, 2.0)), expected, atol=1e-6)
    assert not fast_rp(train, 16, draws())[29].any()
