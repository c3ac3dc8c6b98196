"""Agreement of clusterings against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from embeddings.agreement import adjusted_rand, normalised_mutual_information

RANDOM = np.random.default_rng(3)
ZEROS = np.zeros(6, dtype=np.int64)
PAIRS = {
    "independent": (RANDOM.integers(0, 40, 3000), RANDOM.integers(0, 900, 3000)),
    "near": (np.arange(3000) // 7, np.where(RANDOM.random(3000) < 0.1, 5, np.arange(3000) // 7)),
    "gaps in the labels": (RANDOM.integers(0, 4, 500) * 10, RANDOM.integers(0, 5, 500) * 3 + 7),
    "renamed": (np.arange(100) % 9, 8 - np.arange(100) % 9),
    "one cluster each": (ZEROS, ZEROS),
    "singletons each": (np.arange(6), np.arange(6)[::-1].copy()),
    "one cluster against singletons": (ZEROS, np.arange(6)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_it_is_scikit_learns(name: str) -> None:
    a, b = PAIRS[name]
    assert adjusted_rand(a, b) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
    assert normalised_mutual_information(a, b) == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-12)
    assert adjusted_rand(b, a) == pytest.approx(adjusted_rand(a, b), abs=1e-12)
