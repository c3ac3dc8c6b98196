"""What every ranking metric must do, whatever its formula."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from recsys.metrics.ranking import NAMES, hit_matrix, ranking_metrics

LENGTH, ITEMS = 12, 40
KS = (1, 3, 12)


def values(lists: np.ndarray, relevant: csr_array, name: str, k: int) -> np.ndarray:
    hits = hit_matrix(lists.astype(np.int32), relevant)
    return ranking_metrics(hits, np.diff(relevant.indptr).astype(np.int64), [k])[f"{name}@{k}"]


@pytest.fixture
def case() -> tuple[np.ndarray, csr_array]:
    rng = np.random.default_rng(0)
    relevant = rng.random((50, ITEMS)) < 0.05
    relevant[:, 0] = True
    return np.stack([rng.permutation(ITEMS)[:LENGTH] for _ in range(50)]), csr_array(relevant.astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", KS)
class TestMetric:
    def test_lies_between_zero_and_one(self, case: tuple[np.ndarray, csr_array], name: str, k: int) -> None:
        found = values(*case, name, k)
        assert found.shape == (50,)
        assert (found >= 0).all()
        assert (found <= 1 + 1e-12).all()
        assert found.std() > 0

    def test_nothing_found_is_zero(self, case: tuple[np.ndarray, csr_array], name: str, k: int) -> None:
        assert (values(np.full_like(case[0], -1), case[1], name, k) == 0).all()

    def test_relevant_items_first_is_the_best_order(
        self, case: tuple[np.ndarray, csr_array], name: str, k: int
    ) -> None:
        lists, relevant = case
        hits = hit_matrix(lists.astype(np.int32), relevant)
        best = np.take_along_axis(lists, np.argsort(~hits, axis=1, kind="stable"), axis=1)
        assert (values(best, relevant, name, k) >= values(lists, relevant, name, k) - 1e-12).all()

    def test_places_behind_k_do_not_matter(self, case: tuple[np.ndarray, csr_array], name: str, k: int) -> None:
        lists, relevant = case
        cut = lists.copy()
        cut[:, k:] = -1
        np.testing.assert_array_equal(values(cut, relevant, name, k), values(lists, relevant, name, k))

    def test_users_do_not_depend_on_each_other(self, case: tuple[np.ndarray, csr_array], name: str, k: int) -> None:
        lists, relevant = case
        order = np.random.default_rng(1).permutation(50)[:9]
        np.testing.assert_array_equal(
            values(lists[order], relevant[order], name, k), values(lists, relevant, name, k)[order]
        )
