"""Normalised mutual information against scikit-learn, and what the shares of lists mean."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from recsys.features import Categorical, Features, MultiCategorical, Numeric
from recsys.models.tower import id_column
from recsys.mutual_information import normalised_mutual_information


def category(name: str, values: np.ndarray, size: int) -> Categorical:
    return Categorical(name, values.astype(np.int64), size)


def test_categories_are_as_scikit_learn_has_them() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 300), rng.integers(0, 9, 300)
    b[:200] = a[:200]  # correlated; value 9 is "missing"
    b[-20:] = 9
    found = normalised_mutual_information(Features(300, (category("a", a, 5), category("b", b, 9))))
    expected = normalized_mutual_info_score(a, b, average_method="geometric")
    assert found[0, 1] == found[1, 0] == pytest.approx(expected, rel=1e-12)
    assert np.allclose(np.diag(found), 1.0)


def test_the_id_and_constants_tell_nothing() -> None:
    parity = category("parity", np.arange(40) % 2, 2)
    constant = category("constant", np.zeros(40), 1)
    found = normalised_mutual_information(Features(40, (id_column(40), parity, constant)))
    assert found[1, 1] == pytest.approx(1.0)
    found[1, 1] = 0.0
    assert not found.any()


def test_a_list_of_one_value_is_a_category_and_a_number_its_quantile() -> None:
    values = np.random.default_rng(1).integers(0, 4, 200)
    lists = MultiCategorical("m", values.astype(np.int64), np.arange(201), 4)
    number = Numeric("n", values.astype(np.float32), np.zeros(200, bool))
    found = normalised_mutual_information(Features(200, (category("c", values, 4), lists, number)))
    assert np.allclose(found, 1.0)


def test_values_of_a_list_share_the_row() -> None:
    """Half of each row on its own value and half on a common one: the information is that of the joint shares."""
    parity = category("parity", np.arange(8) % 2, 2)
    values = np.stack([np.arange(8) % 2, np.full(8, 2)], 1).ravel().astype(np.int64)
    lists = MultiCategorical("m", values, np.arange(0, 17, 2), 3)
    found = normalised_mutual_information(Features(8, (parity, lists)))
    joint = np.array([[0.25, 0, 0.25], [0, 0.25, 0.25]])
    one, two = joint.sum(1), joint.sum(0)
    kept = joint > 0
    information = (joint[kept] * np.log(joint[kept] / np.outer(one, two)[kept])).sum()
    entropies = [-(p * np.log(p)).sum() for p in (one, two)]
    assert found[0, 1] == pytest.approx(information / np.sqrt(entropies[0] * entropies[1]), rel=1e-12)
