"""K-means, residual quantisation and RQ-VAE on planted clusters, against closed forms and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from embeddings.semantic_id.kmeans import balanced_kmeans, distances, kmeans, lloyd, nearest
from embeddings.semantic_id.residual import ResidualQuantiser, fit_residual
from embeddings.semantic_id.rqvae import RqVae, RqVaeSettings, fit_rq_vae
from embeddings.semantic_id.sinkhorn import balanced_assignment


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def planted(groups: int, inner: int, each: int, dim: int = 16, noise: float = 0.02) -> tuple[np.ndarray, ...]:
    """Points of ``groups`` far clusters of ``inner`` near ones: vectors, outer and inner label, in a random order."""
    draw = generator(7)
    outer, fine = 10 * draw.standard_normal((groups, dim)), draw.standard_normal((groups, inner, dim))
    labels = draw.permutation(np.arange(groups * inner * each))
    group, member = labels // (inner * each), labels // each % inner
    points = outer[group] + fine[group, member] + noise * draw.standard_normal((labels.size, dim))
    return points.astype(np.float32), group, group * inner + member


def inertia(points: np.ndarray, centres: np.ndarray) -> float:
    return float(nearest(points, centres)[1].sum(dtype=np.float64))


def test_nearest_and_distances_are_the_definition() -> None:
    points, centres = (generator(i).standard_normal((n, 5)).astype(np.float32) for i, n in ((0, 9000), (1, 7)))
    expected = np.square(points[:, None] - centres[None]).sum(-1)
    code, distance = nearest(points, centres)
    np.testing.assert_array_equal(code, expected.argmin(1))
    np.testing.assert_allclose(distance, expected.min(1), atol=1e-4)
    np.testing.assert_allclose(distances(points, centres), expected, atol=1e-4)


def test_nearest_does_not_depend_on_threads_and_ties_go_to_the_lower_centre() -> None:
    points, centres = generator().standard_normal((9000, 24)).astype(np.float32), np.ones((3, 24), dtype=np.float32)
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found.append(nearest(points, centres))
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
    assert (found[0][0] == 0).all()
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_kmeans_is_as_good_as_scikit_learn() -> None:
    points = generator().standard_normal((6000, 12)).astype(np.float32)
    centres, code = kmeans(points, 16, generator(1))
    np.testing.assert_array_equal(code, nearest(points, centres)[0])
    peer = KMeans(16, init="random", n_init=1, max_iter=20, random_state=0).fit(points).inertia_
    assert inertia(points, centres) < 1.01 * peer


def test_kmeans_finds_planted_clusters_and_no_code_stays_empty() -> None:
    points, group, _ = planted(8, 1, 40)
    _, code = kmeans(points, 8, generator(3))
    assert adjusted_rand_score(group, code) == 1.0
    assert len(np.unique(kmeans(points, 64, generator(3))[1])) == 64


@pytest.mark.parametrize("ones", range(1000, 1004))
def test_a_small_point_counts_in_the_mean_of_a_large_sum(ones: int) -> None:
    cluster = np.ones((1 + ones, 3), dtype=np.float32)
    cluster[0] = 2**24  # float32 can add no 1 to it
    centres, _, _ = lloyd(np.concatenate([cluster, -cluster]), np.float32([[1, 1, 1], [-1, -1, -1]]), 1)
    mean = cluster.mean(axis=0, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(centres, [mean, -mean])


def test_equal_points_leave_codes_empty_and_too_few_are_refused() -> None:
    points = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    centres, code = kmeans(points, 10, generator())
    assert inertia(points, centres) == 0
    assert len(np.unique(code)) == 3
    with pytest.raises(ValueError, match="k-means of 16 clusters needs as many points, got 15; use narrower levels"):
        kmeans(points, 16, generator())
    points[4, 1] = np.nan
    with pytest.raises(ValueError, match=r"vectors must be finite, but that of item 4 is not \(1 bad items in all\)"):
        kmeans(points, 2, generator())


@pytest.mark.parametrize("count", [60, 67])
def test_balanced_clusters_have_equal_sizes(count: int) -> None:
    points = generator().standard_normal((count, 6)).astype(np.float32) ** 3
    centres, code = balanced_kmeans(points, 12, generator(1))
    sizes = np.bincount(code, minlength=12)
    assert sizes.min() >= count // 12
    assert sizes.max() <= -(-count // 12)
    assert not np.isnan(centres).any()


def test_balanced_clusters_are_the_planted_ones_where_those_are_balanced() -> None:
    points, group, _ = planted(4, 1, 30)
    assert adjusted_rand_score(group, balanced_kmeans(points, 4, generator(5))[1]) == 1.0


def test_residual_codes_are_a_hierarchy_and_reconstruct() -> None:
    points, group, fine = planted(6, 4, 25)
    quantiser, codes = fit_residual(points, (6, 24, 24), generator(2))
    assert adjusted_rand_score(group, codes[:, 0]) == 1.0
    assert adjusted_rand_score(fine, codes[:, 0] * 24 + codes[:, 1]) >= 0.5
    errors = [
        np.square(points - ResidualQuantiser(quantiser.codebooks[:n], quantiser.mean).decode(codes[:, :n])).sum()
        for n in (1, 2, 3)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01 * np.square(points - points.mean(0)).sum()
    np.testing.assert_array_equal(quantiser.encode(points), codes)
    expected = quantiser.mean + sum(book[codes[:, level]] for level, book in enumerate(quantiser.codebooks))
    np.testing.assert_allclose(quantiser.decode(codes), expected)


@pytest.mark.parametrize("normalised", [False, True])
def test_last_cost_is_least_at_the_code_and_files_bring_the_quantiser_back(normalised: bool, tmp_path: Path) -> None:
    points, _, _ = planted(5, 3, 10)
    quantiser, codes = fit_residual(points, (5, 8), generator(), normalised=normalised)
    np.testing.assert_array_equal(quantiser.last_cost(points, codes).argmin(1), codes[:, -1])
    paths = [tmp_path / f"{copy}.safetensors" for copy in range(8)]
    for path in (tmp_path / "q.safetensors", *paths):
        quantiser.save(path)
    assert len({path.read_bytes() for path in paths}) == 1
    loaded = ResidualQuantiser.load(tmp_path / "q.safetensors")
    assert (loaded.widths, loaded.normalised) == ((5, 8), normalised)
    np.testing.assert_array_equal(loaded.encode(points), codes)


def test_new_items_get_codes_without_training() -> None:
    points, _, _ = planted(6, 4, 25)
    quantiser, codes = fit_residual(points[:400], (6, 8), generator(2), balanced=True)
    assert codes.shape == (400, 2)
    late = quantiser.encode(points[:1] + 1e-4)
    assert late.dtype == np.int32
    np.testing.assert_array_equal(late, quantiser.encode(points[:1]))
    with pytest.raises(ValueError, match="the codebooks take vectors of 16 columns, got 3"):
        quantiser.encode(np.zeros((2, 3), dtype=np.float32))


def test_sinkhorn_spends_codes_alike_and_agrees_with_nearest_where_that_is_balanced() -> None:
    distance = torch.from_numpy(generator().random((64, 8), dtype=np.float32))
    distance[:, 0] -= 0.8  # the nearest code of nearly all
    sizes = torch.bincount(balanced_assignment(distance, 0.003), minlength=8)
    assert torch.bincount(distance.argmin(1), minlength=8)[0] > 40
    assert sizes.max() <= 12
    clear = torch.eye(8).repeat(4, 1) * -1
    torch.testing.assert_close(balanced_assignment(clear, 0.05), clear.argmin(1))


def test_the_loss_is_the_equation() -> None:
    torch.manual_seed(0)
    model = RqVae(6, (3, 4), RqVaeSettings(hidden=(5,), latent=2, beta=0.25, sinkhorn=0.0))
    for book in model.books:
        torch.nn.init.normal_(book)
    vectors = torch.randn(7, 6)
    loss, codes, _ = model.loss(vectors)
    with torch.no_grad():
        left, penalty, total = model.encoder(vectors), 0.0, torch.zeros(7, 2)
        for level, book in enumerate(model.books):
            chosen = book[torch.cdist(left, book).argmin(1)]
            assert torch.equal(torch.cdist(left, book).argmin(1), codes[:, level])
            penalty += 1.25 * (left - chosen).square().sum(1).mean()
            left, total = left - chosen, total + chosen
        expected = (vectors - model.decoder(total)).square().sum(1).mean() + penalty
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters() if p.ndim == 2)


SMALL = RqVaeSettings(hidden=(32,), latent=8, epochs=15, batch_size=64, lr=3e-3)


def test_rq_vae_finds_planted_clusters_uses_its_codes_and_repeats_bit_for_bit(tmp_path: Path) -> None:
    points, group, _ = planted(6, 4, 25)
    model, codes = fit_rq_vae(points, (8, 8, 8), SMALL, generator())
    again = fit_rq_vae(points, (8, 8, 8), SMALL, generator())[1]
    np.testing.assert_array_equal(codes, again)
    pure = [np.bincount(group[codes[:, 0] == c]).max() for c in np.unique(codes[:, 0])]
    assert sum(pure) / group.size >= 0.85
    assert min(len(np.unique(codes[:, level])) for level in range(3)) >= 6
    error = np.square(points - model.decode(codes)).sum() / np.square(points - points.mean(0)).sum()
    assert error < 0.35
    np.testing.assert_array_equal(model.last_cost(points, codes).argmin(1), codes[:, -1])
    model.save(tmp_path / "vae.safetensors")
    np.testing.assert_array_equal(RqVae.load(tmp_path / "vae.safetensors").encode(points[:9]), codes[:9])
    with pytest.raises(ValueError, match="the encoder takes vectors of 16 columns, got 2"):
        model.encode(np.zeros((1, 2), dtype=np.float32))


def test_a_training_that_diverges_says_so() -> None:
    points = planted(6, 4, 25)[0]
    with pytest.raises(ValueError, match=r"the RQ-VAE diverged in epoch \d+: the loss is (nan|inf); lower lr"):
        fit_rq_vae(points, (4, 4), RqVaeSettings(hidden=(32,), latent=4, epochs=30, lr=1e30), generator())
