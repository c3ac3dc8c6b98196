"""Indexing without codebooks, on catalogues whose codes can be told by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from embeddings.graph import co_occurrence
from embeddings.semantic_id.indexing import (
    category_codes,
    collaborative_codes,
    hybrid_codes,
    random_codes,
    sequential_codes,
    spectral_clusters,
)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def blocks(count: int, users: int, items: int, seed: int = 0) -> tuple[sparse.csr_array, np.ndarray]:
    """Users who only take items of their own block, items in a random order."""
    draw = generator(seed)
    label = draw.permutation(np.repeat(np.arange(count), items))
    edges = (np.repeat(np.arange(count), users)[:, None] == label[None]) & (
        draw.random((count * users, label.size)) < 0.5
    )
    return sparse.csr_array(edges.astype(np.float32)), label


@pytest.mark.parametrize("widths", [(3, 4), (256, 256, 256), (65536,) * 5])
def test_random_codes_are_distinct_and_seeded(widths: tuple[int, ...]) -> None:
    codes = random_codes(12, widths, generator())
    assert codes.unique
    np.testing.assert_array_equal(codes.codes, random_codes(12, widths, generator()).codes)
    assert not np.array_equal(codes.codes, random_codes(12, widths, generator(1)).codes)


def test_random_codes_of_too_small_a_space() -> None:
    with pytest.raises(ValueError, match=r"widths \(2, 3\) have 6 codes for 7 items; add a level or widen one"):
        random_codes(7, (2, 3), generator())


def test_sequential_codes_follow_the_histories() -> None:
    codes = sequential_codes([(4, 2), (2, 0)], num_items=6, width=2)
    rank = codes.codes @ np.array([4, 2, 1])
    assert rank.tolist() == [2, 3, 1, 4, 0, 5]
    assert codes.widths == (2, 2, 2)
    assert sequential_codes([], num_items=0).num_items == 0
    assert sequential_codes([(0,)], num_items=300).widths == (2, 256)


def test_category_codes_number_the_names_of_a_depth() -> None:
    codes = category_codes([("b", "x"), ("a",), ("b", "x"), (), ("a", "y")])
    assert codes.codes.tolist() == [[2, 1, 0], [1, 0, 0], [2, 1, 1], [0, 0, 0], [1, 2, 0]]
    assert codes.widths == (3, 3, 2)
    assert category_codes([]).num_items == 0


def test_spectral_clusters_are_the_blocks() -> None:
    train, label = blocks(4, 30, 20)
    assert adjusted_rand_score(label, spectral_clusters(co_occurrence(train), 4, generator())) == 1.0
    train, label = blocks(4, 40, 160)  # beyond the dense eigensolver
    assert adjusted_rand_score(label, spectral_clusters(co_occurrence(train), 4, generator())) == 1.0


def test_collaborative_codes_divide_until_clusters_are_small() -> None:
    train, label = blocks(3, 30, 20)
    codes = collaborative_codes(train, clusters=3, largest=8, generator=generator())
    assert codes.unique
    assert adjusted_rand_score(label, codes.codes[:, 0]) == 1.0
    assert codes.widths[:-1] == (4,) * (codes.levels - 1)
    assert codes.widths[-1] <= 8
    assert collaborative_codes(train, 3, 100, generator()).widths == (60,)


def test_items_without_co_occurrence_keep_path_zero() -> None:
    train, _ = blocks(2, 30, 20)
    wide = sparse.csr_array((train.data, train.indices, train.indptr), shape=(train.shape[0], 43))
    codes = collaborative_codes(wide, clusters=2, largest=20, generator=generator())
    assert codes.codes[40:].tolist() == [[0, 0], [0, 1], [0, 2]]
    assert (codes.codes[:40, 0] > 0).all()
    empty = sparse.csr_array((3, 4), dtype=np.float32)
    assert collaborative_codes(empty, 2, 1, generator()).codes.ravel().tolist() == [0, 1, 2, 3]


def test_equal_items_are_divided_too() -> None:
    train = sparse.csr_array(np.ones((3, 40), dtype=np.float32))
    codes = collaborative_codes(train, clusters=2, largest=4, generator=generator())
    assert codes.unique
    assert codes.widths[-1] <= 4


def test_hybrid_codes_end_in_the_item() -> None:
    codes = hybrid_codes(category_codes([("b",), ("a",), ("b",)]))
    assert codes.codes.tolist() == [[2, 0], [1, 1], [2, 2]]
    assert codes.widths == (3, 3)


def test_bad_parameters() -> None:
    with pytest.raises(ValueError, match="spectral codes need clusters >= 2 and largest >= 1, got 1 and 5"):
        collaborative_codes(sparse.csr_array((3, 4), dtype=np.float32), 1, 5, generator())
