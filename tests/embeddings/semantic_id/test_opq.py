"""Optimised product quantisation on correlated and on planted vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embeddings.semantic_id.kmeans import kmeans
from embeddings.semantic_id.opq import ProductQuantiser, fit_opq


def correlated(count: int = 600, dim: int = 8) -> np.ndarray:
    """Normal vectors whose columns depend on each other, with variances that fall by half."""
    draws = np.random.default_rng(5)
    turn = np.linalg.qr(draws.standard_normal((dim, dim)))[0]
    return (draws.standard_normal((count, dim)) * 2.0 ** -np.arange(dim) @ turn + 3).astype(np.float32)


def error(vectors: np.ndarray, decoded: np.ndarray) -> float:
    return float(np.square(vectors - decoded, dtype=np.float64).sum())


def plain_pq_error(vectors: np.ndarray, digits: int, width: int) -> float:
    parts = np.split(vectors, digits, axis=1)
    found = [kmeans(part, width, np.random.default_rng(0)) for part in parts]
    return error(vectors, np.concatenate([centres[code] for centres, code in found], axis=1))


@pytest.mark.parametrize("whitened", [False, True])
def test_codes_stand_for_what_the_codebooks_say(whitened: bool) -> None:
    vectors = correlated()
    quantiser, codes = fit_opq(vectors, 4, 16, np.random.default_rng(0), whitened=whitened)
    assert codes.shape == (600, 4) and codes.dtype == np.int32 and quantiser.widths == (16, 16, 16, 16)
    rotated = (vectors - quantiser.mean) @ quantiser.rotation
    for digit, part in enumerate(np.split(rotated, 4, axis=1)):
        far = np.square(part[:, None] - quantiser.codebooks[digit]).sum(-1)
        assert np.allclose(far.min(1), far[np.arange(600), codes[:, digit]], atol=1e-5)
    joined = np.concatenate([quantiser.codebooks[digit][codes[:, digit]] for digit in range(4)], axis=1)
    assert np.allclose(quantiser.decode(codes), joined @ np.linalg.inv(quantiser.rotation) + quantiser.mean, atol=1e-4)


def test_the_rotation_is_orthonormal_and_better_than_none() -> None:
    vectors = correlated()
    found = {}
    for passes in (0, 10):
        quantiser, codes = fit_opq(vectors, 4, 16, np.random.default_rng(0), passes=passes)
        assert np.allclose(quantiser.rotation @ quantiser.rotation.T, np.eye(8), atol=1e-5)
        assert np.allclose(quantiser.inverse, quantiser.rotation.T, atol=1e-6)
        found[passes] = error(vectors, quantiser.decode(codes))
    assert found[10] <= found[0] < 0.7 * plain_pq_error(vectors, 4, 16)


def test_the_parts_start_with_like_products_of_variances() -> None:
    vectors = correlated()
    quantiser, _ = fit_opq(vectors, 4, 16, np.random.default_rng(0), passes=0)
    products = ((vectors - quantiser.mean) @ quantiser.rotation).var(0).reshape(4, 2).prod(1)
    assert products.max() < 1.5 * products.min()


def test_whitened_directions_have_unit_variance_and_those_without_variance_are_left_out() -> None:
    vectors = correlated(dim=6)
    vectors = np.concatenate([vectors, vectors[:, :2]], axis=1)  # of rank 6
    quantiser, codes = fit_opq(vectors, 2, 32, np.random.default_rng(0), whitened=True)
    rotated = (vectors - quantiser.mean) @ quantiser.rotation
    spread = np.linalg.eigvalsh(np.cov(rotated.T, bias=True))
    assert np.allclose(spread, [0, 0, 1, 1, 1, 1, 1, 1], atol=1e-3)
    assert error(vectors, quantiser.decode(codes)) < 0.5 * error(vectors, vectors.mean(0))


def test_new_items_get_codes_without_training_and_files_bring_the_quantiser_back(tmp_path: Path) -> None:
    vectors = correlated()
    quantiser, codes = fit_opq(vectors[:500], 2, 16, np.random.default_rng(0))
    quantiser.save(tmp_path / "opq.safetensors")
    again = ProductQuantiser.load(tmp_path / "opq.safetensors")
    assert np.array_equal(again.encode(vectors)[:500], codes)
    assert np.array_equal(again.encode(vectors[500:]), again.encode(vectors)[500:])
    assert np.array_equal(codes, fit_opq(vectors[:500], 2, 16, np.random.default_rng(0))[1])


def test_the_last_cost_is_least_at_the_last_digit() -> None:
    vectors = correlated()
    quantiser, codes = fit_opq(vectors, 2, 16, np.random.default_rng(0))
    cost = quantiser.last_cost(vectors, codes)
    assert cost.shape == (600, 16)
    assert np.allclose(cost.min(1), cost[np.arange(600), codes[:, 1]], atol=1e-5)


def test_what_cannot_be_coded_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parts of equal width, got 8 columns for 3 digits; change the features' dim"):
        fit_opq(correlated(), 3, 16, np.random.default_rng(0))
    with pytest.raises(ValueError, match="k-means of 16 clusters needs as many points, got 10"):
        fit_opq(correlated(10), 2, 16, np.random.default_rng(0))
    vectors = correlated()
    quantiser, _ = fit_opq(vectors, 2, 4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="the codebooks take vectors of 8 columns, got 3"):
        quantiser.encode(vectors[:, :3])
    vectors[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"vectors must be finite, but that of item 7 is not"):
        fit_opq(vectors, 2, 4, np.random.default_rng(0))
