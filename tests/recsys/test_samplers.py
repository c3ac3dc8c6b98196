import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import chisquare

from recsys.samplers import NegativeSampler, NegativeSampling, epoch_order, log_popularity, user_order


def matrix(users: int = 40, items: int = 30, density: float = 0.3, seed: int = 0) -> csr_array:
    dense = np.random.default_rng(seed).random((users, items)) < density * np.linspace(1.8, 0.2, items)
    dense[:, 0] = True
    dense[:, -1] = False
    return csr_array(dense.astype(np.float32))


def sampler(train: csr_array, alpha: float = 0.0, count: int = 4, **options: bool) -> NegativeSampler:
    return NegativeSampler(train, NegativeSampling(alpha, count, **options), seed=5)


USERS = np.arange(40, dtype=np.int64).repeat(50)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_proposals_follow_popularity_to_the_alpha(alpha: float) -> None:
    train = matrix()
    items = np.concatenate([sampler(train, alpha, 20_000, shared=True).draw(USERS, k).items for k in range(5)])
    counts = np.bincount(train.indices, minlength=30).astype(float)
    expected = np.where(counts > 0, counts**alpha, 0.0) if alpha else np.ones(30)
    seen = np.bincount(items, minlength=30)
    support = expected > 0
    assert seen[~support].sum() == 0
    assert chisquare(seen[support], expected[support] / expected.sum() * len(items)).pvalue > 1e-4


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_log_q_is_the_log_probability(alpha: float) -> None:
    train = matrix()
    draw = sampler(train, alpha, 1000).draw(USERS, 0)
    counts = np.bincount(train.indices, minlength=30) ** alpha
    assert np.allclose(np.exp(draw.log_q), (counts / counts.sum())[draw.items], rtol=1e-5)


def test_own_negatives_have_a_row_per_positive() -> None:
    draw = sampler(matrix(), count=3, shared=False).draw(USERS, 0)
    assert draw.items.shape == draw.log_q.shape == (len(USERS), 3)
    assert len(np.unique(draw.items, axis=0)) > 100


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_rejection_is_exact_and_conditional_probabilities_sum_to_one(alpha: float) -> None:
    train = matrix()
    dense = train.toarray() > 0
    draw = sampler(train, alpha, 200, shared=False, reject_positives=True).draw(USERS, 0)
    assert not dense[USERS[:, None], draw.items].any()
    user = 7
    counts = np.bincount(train.indices, minlength=30).astype(float) ** alpha
    free = np.where(dense[user], 0.0, counts)
    free /= free.sum()
    mine = draw.items[user == USERS].ravel()
    assert np.allclose(np.exp(draw.log_q[user == USERS].ravel()), free[mine], rtol=1e-4)
    assert chisquare(np.bincount(mine, minlength=30)[free > 0], free[free > 0] * len(mine)).pvalue > 1e-4


def test_rejection_ends_for_a_user_with_one_free_item() -> None:
    dense = np.ones((2, 5000), dtype=np.float32)
    dense[0, 4321] = 0.0
    dense[1, :4000] = 0.0
    draw = sampler(csr_array(dense), count=50, shared=False, reject_positives=True).draw(np.array([0, 1]), 0)
    assert (draw.items[0] == 4321).all()
    assert (draw.items[1] < 4000).all()


def test_shared_hits_are_exactly_the_known_positives() -> None:
    train = matrix()
    users = np.array([3, 3, 0, 39, 12], dtype=np.int64)
    draw = sampler(train, count=64, shared=True, reject_positives=True).draw(users, 0)
    assert draw.hits is not None
    got = np.zeros((len(users), 64), dtype=int)
    np.add.at(got, draw.hits, 1)
    assert np.array_equal(got, (train.toarray()[users][:, draw.items] > 0).astype(int))
    assert (np.diff(draw.hits[0]) >= 0).all()


def test_a_draw_depends_on_seed_and_counters_only() -> None:
    train = matrix()
    one = sampler(train, shared=False)
    one.draw(USERS, "select", 1, 1)
    again = one.draw(USERS, "select", 1, 2)
    fresh = sampler(train, shared=False).draw(USERS, "select", 1, 2)
    assert np.array_equal(again.items, fresh.items)
    assert not np.array_equal(again.items, one.draw(USERS, "select", 2, 1).items)


def test_a_user_with_everything_is_named() -> None:
    dense = np.ones((3, 4), dtype=np.float32)
    dense[[0, 2], [0, 1]] = 0.0
    with pytest.raises(
        ValueError, match=r"user 1 has all 4 items that can be drawn \(1 such users\); drop these users"
    ):
        sampler(csr_array(dense), reject_positives=True)


def test_epoch_order_is_a_permutation_by_seed_phase_and_epoch() -> None:
    order = epoch_order(1000, seed=1, phase="select", epoch=3)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, epoch_order(1000, seed=1, phase="select", epoch=3))
    for seed, phase, epoch in ((2, "select", 3), (1, "refit", 3), (1, "select", 4)):
        assert not np.array_equal(order, epoch_order(1000, seed=seed, phase=phase, epoch=epoch))


def test_log_popularity_is_the_share_of_interactions() -> None:
    train = csr_array(np.array([[1, 1, 0], [1, 0, 0]], dtype=np.float32))
    assert np.allclose(np.exp(log_popularity(train)), [2 / 3, 1 / 3, 0.5 / 3])


@pytest.mark.parametrize("shared", [True, False])
def test_knowledge_is_the_counts_and_the_rejected_pairs_of_the_matrix_given(shared: bool) -> None:
    train = csr_array(np.array([[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=np.float32))
    known = NegativeSampler(train, NegativeSampling(shared=shared, reject_positives=True), seed=0).knowledge()
    assert known["counts"].tolist() == [1, 0, 2, 0]
    assert known["known"].tolist() == [[0, 0], [0, 2], [1, 2]]
    assert NegativeSampler(train, NegativeSampling(alpha=1.0), seed=0).knowledge().keys() == {"counts"}


def test_draws_by_user_are_uniform_over_users_and_over_what_each_has() -> None:
    train = csr_array(np.array([[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]], dtype=np.float32))
    draws = np.stack([user_order(train.indptr, seed=2, phase="select", epoch=epoch) for epoch in range(4000)])
    assert draws.shape == (4000, train.nnz) and draws.dtype == np.int64
    expected = np.array([1 / 4] * 4 + [1] + [1 / 2] * 2) / 3
    assert chisquare(np.bincount(draws.ravel(), minlength=7), expected * draws.size).pvalue > 1e-4
    assert np.array_equal(draws[5], user_order(train.indptr, seed=2, phase="select", epoch=5))
    others = [user_order(train.indptr, seed=s, phase=p, epoch=5) for s, p in ((3, "select"), (2, "refit"))]
    assert not any(np.array_equal(draws[5], other) for other in others)


def test_the_share_of_an_item_among_draws_by_user_is_exact() -> None:
    train = csr_array(np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 1, 0]], dtype=np.float32))
    expected = np.array([1 / 4 + 1 / 2, 1 / 4, 1 / 4 + 1, 1 / 4 + 1 / 2]) / 3
    assert np.allclose(np.exp(log_popularity(train, by_user=True)), [*expected, 0.5 / 7], rtol=1e-6)
    assert np.allclose(np.exp(log_popularity(train)), np.array([2, 1, 2, 2, 0.5]) / 7, rtol=1e-6)
