"""Adjusted mutual information against scikit-learn, and what the shares of lists mean."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score

from recsys.features import Categorical, Features, MultiCategorical, Numeric
from recsys.models.tower import id_column
from recsys.mutual_information import adjusted_mutual_information


def category(name: str, values: np.ndarray, size: int) -> Categorical:
    return Categorical(name, values.astype(np.int64), size)


def test_categories_are_as_scikit_learn_has_them() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 300), rng.integers(0, 9, 300)
    b[:200] = a[:200]  # correlated; value 9 is "missing"
    b[-20:] = 9
    found = adjusted_mutual_information(Features(300, (category("a", a, 5), category("b", b, 9))))
    expected = adjusted_mutual_info_score(a, b, average_method="geometric")
    assert found[0, 1] == found[1, 0] == pytest.approx(expected, abs=0.01)
    assert np.allclose(np.diag(found), 1.0)


def test_many_values_tell_nothing_by_chance() -> None:
    """Without the expectation 500 unrelated values over 1000 rows told more than a copy of half of the rows."""
    rng = np.random.default_rng(0)
    a, many = rng.integers(0, 4, 1000), rng.integers(0, 500, 1000)
    b = np.where(rng.random(1000) < 0.5, a, rng.integers(0, 4, 1000))
    found = adjusted_mutual_information(
        Features(
            1000, (category("a", a, 4), category("b", b, 4), category("many", many, 500), category("2", many, 500))
        )
    )
    assert found[0, 1] > 0.2
    assert np.abs(found[:2, 2:]).max() < 0.02
    assert found[2, 3] == pytest.approx(1.0)


def test_the_id_and_constants_tell_nothing() -> None:
    parity = category("parity", np.arange(40) % 2, 2)
    constant = category("constant", np.zeros(40), 1)
    found = adjusted_mutual_information(Features(40, (id_column(40), parity, constant)))
    assert found[1, 1] == pytest.approx(1.0)
    found[1, 1] = 0.0
    assert not found.any()


def test_a_list_of_one_value_is_a_category_and_a_number_its_quantile() -> None:
    values = np.random.default_rng(1).integers(0, 4, 200)
    lists = MultiCategorical("m", values.astype(np.int64), np.arange(201), 4)
    number = Numeric("n", values.astype(np.float32), np.zeros(200, bool))
    found = adjusted_mutual_information(Features(200, (category("c", values, 4), lists, number)))
    assert np.allclose(found, 1.0)


def test_values_of_a_list_share_the_row() -> None:
    """Half of each row on its own value and half on a common one: the information is that of the joint shares."""
    rows = np.arange(8000)
    parity = category("parity", rows % 2, 2)
    values = np.stack([rows % 2, np.full(8000, 2)], 1).ravel().astype(np.int64)
    lists = MultiCategorical("m", values, np.arange(0, 16001, 2), 3)
    found = adjusted_mutual_information(Features(8000, (parity, lists)))
    joint = np.array([[0.25, 0, 0.25], [0, 0.25, 0.25]])
    one, two = joint.sum(1), joint.sum(0)
    kept = joint > 0
    information = (joint[kept] * np.log(joint[kept] / np.outer(one, two)[kept])).sum()
    entropies = [-(p * np.log(p)).sum() for p in (one, two)]
    assert found[0, 1] == pytest.approx(information / np.sqrt(entropies[0] * entropies[1]), abs=1e-3)
