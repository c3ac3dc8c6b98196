import numba
import numpy as np
import pytest

from embeddings.tables import kernels
from embeddings.tables.find import FIND

NONE_F, NONE_I = np.empty(0, np.float32), np.empty(0, np.int64)


@pytest.mark.parametrize("num_rows", [1, 2, 2000, 1 << 11, (1 << 22) + 1, 2**31 - 1])
@pytest.mark.parametrize("lookups", [0, 1, 5000, 1 << 17])  # the last needs wide keys where there are most rows
def test_grouping_is_a_stable_sort(num_rows: int, lookups: int) -> None:
    rows = np.random.default_rng(0).integers(0, num_rows, lookups).astype(np.int32)
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


def test_tables_are_divided_where_whole_ones_leave_threads_idle() -> None:
    assert kernels.parts_for([50, 50], 2) == kernels.parts_for([50, 40, 45, 50], 2) == kernels.parts_for([9], 1) == 1
    assert kernels.parts_for([50], 2) == kernels.parts_for([50, 50, 50], 2) == kernels.parts_for([90, 10], 2) == 2
    assert kernels.parts_for([0, 0], 2) == 1


@pytest.mark.parametrize("dim", [1, 24, 64, 80])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "rowwise_adagrad", "adagrad", "lazy_adam"])
def test_result_does_not_depend_on_the_parts(kind: str, weighted: bool, dim: int) -> None:
    rng = np.random.default_rng(2)
    table = rng.standard_normal((2, 700, dim), np.float32)
    rows = rng.zipf(1.2, (2, 9000)).clip(max=699).astype(np.int32)
    weights = rng.random((2, 9000), dtype=np.float32)
    offsets, gradients = np.arange(0, 9001, 3), rng.standard_normal((2, 3000, dim), np.float32)
    state_dim = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": dim, "lazy_adam": dim}[kind]
    results = []
    for parts in (1, 2, 3):
        changed, out = table.copy(), np.empty_like(gradients)
        state, second = np.zeros((2, 2, 700, state_dim), np.float32)
        jobs = np.zeros(2, kernels.JOB)
        for t in range(2):
            scales = weights[t].ctypes.data if weighted else 0
            rows_at, offsets_at, out_at = (array.ctypes.data for array in (rows[t], offsets, out[t]))
            jobs[t] = (
                changed[t].ctypes.data, 700, dim, 4, state[t].ctypes.data, state_dim, second[t].ctypes.data, 0, rows_at,
                9000, scales, offsets_at, 3000, out_at, 4 * dim,
            )  # fmt: skip
        kernels.pool_tables(jobs, np.zeros(0, FIND), parts)
        jobs["pooled"] = [gradient.ctypes.data for gradient in gradients]
        rates = np.array([[0.1, 1e-8, 0.9, 0.99, 1, 0.01], [0.2, 1e-8, 0.9, 0.99, 1, 0]], np.float32)
        kernels.update_tables(jobs, rates, np.full(2, kernels.KINDS[kind]), parts)
        results.append((out, changed, state, second))
    bags = (table[1][rows[1]] * (weights[1][:, None] if weighted else 1)).reshape(3000, 3, dim).sum(1)
    assert np.allclose(results[0][0][1], bags, rtol=1e-4, atol=1e-4)
    for found in results[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(results[0], found, strict=True))
    assert not np.array_equal(results[0][1], table)


def test_threads_are_given_back() -> None:
    before = numba.get_num_threads()
    with pytest.raises(KeyError), kernels.threads_for(1):
        assert numba.get_num_threads() == 1
        raise KeyError
    assert numba.get_num_threads() == before
    with kernels.threads_for(10**9):
        assert numba.get_num_threads() == before
