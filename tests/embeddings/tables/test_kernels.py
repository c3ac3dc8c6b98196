import numba
import numpy as np
import pytest

from embeddings.tables import kernels

NONE_F, NONE_I = np.empty(0, np.float32), np.empty(0, np.int64)


@pytest.mark.parametrize("num_rows", [1, 2, 2000, 1 << 11, (1 << 22) + 1, 2**31 - 1])
def test_grouping_is_a_stable_sort(num_rows: int) -> None:
    rows = np.random.default_rng(0).integers(0, num_rows, 5000).astype(np.int32)
    pairs, weights = kernels.group_by_row(rows, NONE_F, NONE_I, num_rows)
    order = np.argsort(rows, kind="stable")
    assert np.array_equal(pairs >> np.uint64(32), rows[order])
    assert np.array_equal(pairs & np.uint64(0xFFFFFFFF), order)
    assert len(weights) == 0


def test_grouping_takes_bags_and_weights_along() -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 50, 300).astype(np.int32)
    weights = rng.random(300, dtype=np.float32)
    offsets = np.array([0, 0, 100, 101, 300])
    bag_of = np.repeat(np.arange(4), np.diff(offsets))
    order = np.argsort(rows, kind="stable")
    pairs, sorted_weights = kernels.group_by_row(rows, weights, offsets, 50)
    assert np.array_equal(pairs & np.uint64(0xFFFFFFFF), bag_of[order])
    assert np.array_equal(sorted_weights, weights[order])
    assert np.array_equal(kernels.group_by_row(rows, NONE_F, offsets, 50)[0], pairs)


@pytest.mark.parametrize("weighted", [False, True])
def test_parts_share_the_rows(weighted: bool) -> None:
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 90, 3000).astype(np.int32)
    weights = rng.random(3000 if weighted else 0, dtype=np.float32)
    pairs, scales = kernels.group_by_row(rows, weights, NONE_I, 90)
    found = [kernels.group_by_row(rows, weights, NONE_I, 90, part, 3) for part in range(3)]
    assert min(len(part) for part, _ in found) > 500
    order = np.argsort(np.concatenate([part for part, _ in found]), kind="stable")
    assert np.array_equal(np.concatenate([part for part, _ in found])[order], pairs)
    if weighted:
        assert np.array_equal(np.concatenate([s for _, s in found])[order], scales)


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
@pytest.mark.parametrize("kind", ["sgd", "rowwise_adagrad", "adagrad"])
def test_result_does_not_depend_on_the_threads(kind: str) -> None:
    rng = np.random.default_rng(2)
    table = rng.standard_normal((700, 24), np.float32)
    rows = rng.zipf(1.2, 9000).clip(max=699).astype(np.int32)
    offsets = np.arange(0, 9001, 3)
    gradients = rng.standard_normal((3000, 24), np.float32)
    results = []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        state = {"sgd": np.zeros((1, 1)), "rowwise_adagrad": np.zeros((700, 1)), "adagrad": np.zeros((700, 24))}[kind]
        changed, state, out = table.copy(), state.astype(np.float32), np.empty((3000, 24), np.float32)
        kernels.pool_rows(changed, rows, NONE_F, offsets, threads, out)
        rates = np.float32(0.1), np.float32(1e-8), np.float32(0.01)
        kernels.update_rows(changed, state, rows, NONE_F, offsets, gradients, threads, kernels.KINDS[kind], *rates)
        results.append((out, changed, state))
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)
    assert not np.array_equal(results[0][1], table)


def test_threads_are_given_back() -> None:
    before = numba.get_num_threads()
    with pytest.raises(KeyError), kernels.threads_for(1):
        assert numba.get_num_threads() == 1
        raise KeyError
    assert numba.get_num_threads() == before
    with kernels.threads_for(10**9):
        assert numba.get_num_threads() == before
