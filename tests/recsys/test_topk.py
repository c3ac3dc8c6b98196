from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from torch import Tensor

from recsys.retriever import VectorRetriever
from recsys.topk import exact_top_k


class Vectors:
    """A retriever by inner products."""

    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        self.users, self.items = users.astype(np.float32), items.astype(np.float32)
        self.num_users, self.num_items = len(users), len(items)

    def user_vectors(self, users: np.ndarray) -> Tensor:
        return torch.from_numpy(self.users[users])

    def item_vectors(self, items: range) -> Tensor:
        return torch.from_numpy(self.items[items.start : items.stop])

    def scores(self, users: np.ndarray) -> Tensor:
        return self.user_vectors(users) @ self.item_vectors(range(self.num_items)).T


class Scores:
    """A retriever that only scores."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table.astype(np.float32)
        self.num_users, self.num_items = table.shape

    def scores(self, users: np.ndarray) -> Tensor:
        return torch.from_numpy(self.table[users])


def naive(scores: np.ndarray, seen: np.ndarray, k: int) -> np.ndarray:
    """Full stable sort; -1 behind the unseen items."""
    order = np.argsort(np.where(seen, np.inf, -scores), axis=1, kind="stable")[:, :k]
    items = np.where(np.take_along_axis(seen, order, axis=1), -1, order)
    return np.pad(items, ((0, 0), (0, k - items.shape[1])), constant_values=-1)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Small integers: inner products are exact in float32 and tie often."""
    return rng.integers(-2, 3, shape).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    users=st.integers(1, 20),
    items=st.integers(1, 200),
    dim=st.integers(1, 9),
    k=st.integers(1, 250),
    density=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    seed=st.integers(0, 9),
)
def test_equals_a_full_sort_under_ties(users: int, items: int, dim: int, k: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = Vectors(integers(rng, users, dim), integers(rng, items, dim))
    mask = rng.random((users, items)) < density
    every = np.arange(users)
    expected = naive(model.users @ model.items.T, mask, k)
    for retriever in (model, Scores(model.users @ model.items.T)):
        top = exact_top_k(retriever, every, k, csr_array(mask.astype(np.float32)))
        np.testing.assert_array_equal(top.items, expected)
        listed = top.items >= 0
        assert (top.scores[~listed] == -np.inf).all()
        rows = np.nonzero(listed)[0]
        np.testing.assert_array_equal(top.scores[listed], (model.users @ model.items.T)[rows, top.items[listed]])


def test_real_vectors_equal_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    items = rng.standard_normal((3000, 64)) * rng.gamma(1.0, size=(3000, 1))  # norms that let users finish early
    model = Vectors(rng.standard_normal((200, 64)), items)
    mask = rng.random((200, 3000)) < 0.05
    scores = model.users.astype(np.float64) @ model.items.T.astype(np.float64)
    top = exact_top_k(model, np.arange(200), 100, csr_array(mask.astype(np.float32)))
    found = np.take_along_axis(scores, top.items.astype(np.int64), axis=1)
    best = np.take_along_axis(scores, naive(scores, mask, 100), axis=1)
    np.testing.assert_allclose(found, best, rtol=0, atol=2e-4)
    assert not mask[np.arange(200)[:, None], top.items].any()
    np.testing.assert_allclose(top.scores, found, rtol=0, atol=2e-4)


def test_equal_vectors_tie_wherever_they_stand() -> None:
    """Items that share a table row must come in index order: a matrix product gives no such promise."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((7, 33))
    model = Vectors(rng.standard_normal((50, 33)), rows[np.arange(1000) % 7])
    top = exact_top_k(model, np.arange(50), 1000, None)
    best = np.argsort(-(model.users.astype(np.float64) @ rows.T), axis=1)
    expected = np.concatenate([np.arange(first, 1000, 7) for first in best[3]])
    np.testing.assert_array_equal(top.items[3], expected)


def test_zeros_of_both_signs_tie() -> None:
    table = np.array([[-0.0, 0.0, -0.0, 0.0, -1.0]])
    np.testing.assert_array_equal(exact_top_k(Scores(table), np.array([0]), 5, None).items, [[0, 1, 2, 3, 4]])
    model = Vectors(np.array([[-1.0]]), np.array([[0.0], [0.0], [1.0], [-0.0]]))
    np.testing.assert_array_equal(exact_top_k(model, np.array([0]), 4, None).items, [[0, 1, 3, 2]])


def test_largest_and_smallest_floats_are_ranked() -> None:
    largest, smallest = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    table = np.array([[-largest, 0, smallest, largest, -smallest]])
    np.testing.assert_array_equal(exact_top_k(Scores(table), np.array([0]), 5, None).items, [[3, 2, 1, 4, 0]])


def test_does_not_depend_on_the_users_asked_for_or_threads() -> None:
    rng = np.random.default_rng(2)
    model = Vectors(rng.standard_normal((1300, 16)), rng.standard_normal((500, 16)))
    seen = csr_array((rng.random((1300, 500)) < 0.1).astype(np.float32))
    whole = exact_top_k(model, np.arange(1300), 20, seen)
    some = rng.permutation(1300)[:77]
    part = exact_top_k(model, some, 20, seen)
    np.testing.assert_array_equal(part.items, whole.items[some])
    np.testing.assert_array_equal(part.scores, whole.scores[some])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = exact_top_k(model, np.arange(1300), 20, seen)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(single.scores, whole.scores)


def test_the_list_of_k_starts_with_the_list_of_fewer() -> None:
    rng = np.random.default_rng(3)
    model = Vectors(integers(rng, 30, 4), integers(rng, 300, 4))
    long = exact_top_k(model, np.arange(30), 250, None)
    np.testing.assert_array_equal(exact_top_k(model, np.arange(30), 7, None).items, long.items[:, :7])


def test_no_users() -> None:
    model = Vectors(np.ones((3, 2)), np.ones((4, 2)))
    assert exact_top_k(model, np.array([], dtype=np.int64), 3, None).items.shape == (0, 3)


def test_unsorted_seen_indices() -> None:
    seen = csr_array((np.ones(3, np.float32), np.array([4, 0, 2]), np.array([0, 3])), shape=(1, 5))
    top = exact_top_k(Scores(np.arange(5.0)[None]), np.array([0]), 5, seen)
    np.testing.assert_array_equal(top.items, [[3, 1, -1, -1, -1]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_name_the_user(bad: float) -> None:
    table = np.zeros((9, 70))
    table[7, 66] = bad
    with pytest.raises(ValueError, match="user 7 has a NaN or infinite score"):
        exact_top_k(Scores(table), np.arange(9), 2, None)
    users, items = np.ones((9, 2)), np.ones((70, 2))
    users[7, 0] = bad
    with pytest.raises(ValueError, match="user 7 has a NaN or infinite score"):
        exact_top_k(Vectors(users, items), np.arange(9), 2, None)
    items[3, 1] = bad
    with pytest.raises(ValueError, match="user 0 has a NaN or infinite score"):
        exact_top_k(Vectors(np.ones((9, 2)), items), np.arange(9), 2, None)


def test_overflow_is_an_error_only_where_a_score_overflows() -> None:
    items = np.array([[1e30, 0.0], [0.0, 1.0]])
    exact_top_k(Vectors(np.array([[0.0, 1e30]]), items), np.array([0]), 2, None)
    with pytest.raises(ValueError, match="user 0 has a NaN or infinite score"):
        exact_top_k(Vectors(np.array([[1e30, 0.0]]), items), np.array([0]), 2, None)


def test_arguments_are_checked() -> None:
    model = Vectors(np.ones((3, 2)), np.ones((4, 2)))
    assert isinstance(model, VectorRetriever)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        exact_top_k(model, np.array([0]), 0, None)
    with pytest.raises(ValueError, match=r"users must lie in \[0, 3\), but users\[1\] is 3"):
        exact_top_k(model, np.array([0, 3]), 1, None)
    with pytest.raises(ValueError, match=r"seen must have the model's shape \[3, 4\], got \[3, 5\]"):
        exact_top_k(model, np.array([0]), 1, csr_array((3, 5), dtype=np.float32))


@pytest.mark.parametrize("layout", ["columns", "strided", "float64"])
def test_scores_may_lie_in_memory_in_any_way(layout: str) -> None:
    table = np.random.default_rng(0).standard_normal((5, 200)).astype(np.float32)

    class Odd(Scores):
        def scores(self, users: np.ndarray) -> Tensor:
            scores = super().scores(users)
            match layout:
                case "columns":
                    return scores.T.contiguous().T
                case "strided":
                    return scores.repeat_interleave(2, dim=1)[:, ::2]
                case _:
                    return scores.double()

    found = exact_top_k(Odd(table), np.arange(5), 7, None)
    assert (found.items == naive(table, np.zeros(table.shape, bool), 7)).all()


def test_scores_are_selected_alike_on_any_number_of_threads_and_the_first_bad_user_is_named() -> None:
    rng = np.random.default_rng(4)
    table = integers(rng, 300, 90)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        top = exact_top_k(Scores(table), np.arange(300), 9, None)
        table[[70, 290], 5] = np.nan, np.inf
        with pytest.raises(ValueError, match="user 70 has a NaN or infinite score"):
            exact_top_k(Scores(table), np.arange(300), 9, None)
    finally:
        torch.set_num_threads(threads)
    table[[70, 290], 5] = 0
    np.testing.assert_array_equal(top.items[71:290], naive(table, np.zeros((300, 90), bool), 9)[71:290])
