"""Several tables in one call are the same, bit for bit, as one after the other."""

import numpy as np
import pytest
import torch
from torch import Tensor

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, Table, build_table, look_up, step_all
from embeddings.tables.batch import look_up_joined
from embeddings.tables.build import Backend

BACKENDS: list[list[Backend]] = [["torch"] * 4, ["fbgemm"] * 4, ["torch", "fbgemm", "torch", "fbgemm"]]


def new_tables(backends: list[Backend]) -> list[Table]:
    specs = [
        OptimizerSpec("rowwise_adagrad", lr=0.3),
        OptimizerSpec("sgd", lr=0.1),
        OptimizerSpec("adagrad", lr=0.2),
        OptimizerSpec("rowwise_adagrad", lr=0.2),
    ]
    maps = [IdMap(np.arange(n)[:, None], n + 1, n, "full") for n in (50, 400, 7)]
    rng = np.random.default_rng(0)
    maps.append(IdMap(rng.integers(0, 20, (60, 2)), 21, 20, "double_hash"))
    used = np.arange(3) < rng.integers(1, 4, (400, 1))
    maps[1] = IdMap(rng.integers(0, 400, (400, 3)), 401, 400, "uneven", used.astype(np.float32))
    return [
        build_table(id_map, 8, backend=backend, optimizer=spec, init_std=0.1, generator=np.random.default_rng(t))
        for t, (backend, spec, id_map) in enumerate(zip(backends, specs, maps, strict=True))
    ]


def batch(step: int) -> tuple[list[Tensor], list[Tensor | None], list[Tensor]]:
    rng = np.random.default_rng(step)
    ids = [torch.from_numpy(rng.integers(-2, 60, n)) for n in (9000, 30, 1, 300)]
    offsets = [torch.arange(0, 9001, 9), None, torch.tensor([0, 0, 1]), torch.tensor([0, 300])]
    gradients = [torch.from_numpy(rng.standard_normal((n, 8), np.float32)) for n in (1000, 30, 2, 1)]
    return ids, offsets, gradients


@pytest.mark.parametrize("backends", BACKENDS, ids=["torch", "fbgemm", "mixed"])
def test_same_bits_as_one_after_the_other(backends: list[Backend]) -> None:
    together, apart = new_tables(backends), new_tables(backends)
    for step in range(3):
        ids, offsets, gradients = batch(step)
        pooled = look_up(together, ids, offsets)
        torch.autograd.backward(pooled, gradients)
        step_all(together)
        single = [table(*pair) for table, *pair in zip(apart, ids, offsets, strict=True)]
        torch.autograd.backward(single, gradients)
        for table in apart:
            table.step()
        assert all(torch.equal(a, b) for a, b in zip(pooled, single, strict=True))
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a.weight(), b.weight())
        assert not torch.equal(a.weight(), new_tables(backends)[together.index(a)].weight())


def test_a_table_whose_output_is_not_used_stays_as_it_is() -> None:
    tables = new_tables(["torch"] * 4)
    before = [table.weight().clone() for table in tables]
    ids, offsets, gradients = batch(0)
    pooled = look_up(tables, ids, offsets)
    pooled[1].backward(gradients[1])
    step_all(tables)
    assert [torch.equal(a, table.weight()) for a, table in zip(before, tables, strict=True)] == [
        True,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("backends", BACKENDS, ids=["torch", "fbgemm", "mixed"])
@pytest.mark.parametrize("count", [0, 1, 9000])
def test_side_by_side(backends: list[Backend], count: int) -> None:
    joined, apart = new_tables(backends), new_tables(backends)
    for step in range(3):
        rng = np.random.default_rng(step)
        ids = [torch.from_numpy(rng.integers(-2, 60, count)) for _ in range(4)]
        gradient = torch.from_numpy(rng.standard_normal((count, 32), np.float32))
        vectors, parts = look_up_joined(joined, ids), look_up(apart, ids)
        assert torch.equal(vectors, torch.cat(parts, 1))
        vectors.backward(gradient)
        torch.autograd.backward(parts, gradient.split(8, 1))
        step_all(joined)
        step_all(apart)
    assert all(torch.equal(a.weight(), b.weight()) for a, b in zip(joined, apart, strict=True))
    assert torch.equal(joined[1].weight(), new_tables(backends)[1].weight()) == (count == 0)


def test_side_by_side_with_several_passes_and_dense_adam() -> None:
    def new(seed: int) -> Table:
        draws, spec = np.random.default_rng(seed), OptimizerSpec("adam", lr=0.1)
        return build_table(IdMap.identity(30), 4 + seed, optimizer=spec, init_std=0.1, generator=draws)

    joined, apart = [new(0), new(1)], [new(0), new(1)]
    for first, second in ((3, 5), (7, 2)):
        for ids in (torch.arange(first), torch.arange(second)):
            look_up_joined(joined, [ids, ids + 1]).square().sum().backward()
            sum(part.square().sum() for part in look_up(apart, [ids, ids + 1])).backward()  # type: ignore[union-attr]
        step_all(joined)
        step_all(apart)
    assert all(torch.equal(a.weight(), b.weight()) for a, b in zip(joined, apart, strict=True))


def test_side_by_side_takes_as_many_ids_for_each_table() -> None:
    with pytest.raises(ValueError, match=r"as many ids for each of 4 tables, got \[2, 2, 3, 2\]"):
        look_up_joined(new_tables(["torch"] * 4), [torch.arange(n) for n in (2, 2, 3, 2)])
    with pytest.raises(ValueError, match=r"as many ids for each of 0 tables, got \[\]"):
        look_up_joined([], [])
    with pytest.raises(ValueError, match=r"ids of shape \[n\] and dtype int64, got \[\] torch.int64"):
        look_up_joined(new_tables(["torch"] * 4), [torch.tensor(1)] * 4)


def test_no_offsets() -> None:
    tables = new_tables(["torch"] * 4)
    ids = [torch.arange(5)] * 4
    assert all(torch.equal(a, table(i)) for a, table, i in zip(look_up(tables, ids), tables, ids, strict=True))


def test_as_many_ids_as_tables() -> None:
    with pytest.raises(ValueError, match="ids and offsets for each table, got 4 tables, 3 ids and 4 offsets"):
        look_up(new_tables(["torch"] * 4), [torch.arange(2)] * 3)


@pytest.mark.parametrize("backends", BACKENDS, ids=["torch", "fbgemm", "mixed"])
def test_weights_of_ids_scale_their_rows_forward_and_back(backends: list[Backend]) -> None:
    """Bags of ids with weights are sums of scaled single lookups; tables with one, two and one to three rows an id."""
    together, apart = new_tables(backends), new_tables(backends)
    ids, offsets = torch.tensor([3, 5, 3, 99]), torch.tensor([0, 3, 3, 4])
    weights = torch.tensor([0.5, -1.0, 2.0, 0.25])
    pooled = look_up(together, [ids] * 4, [offsets] * 4, [weights] * 4)
    bag = torch.tensor([0, 0, 0, 2])
    for one, table in zip(pooled, apart, strict=True):
        scaled = torch.zeros(3, 8).index_add(0, bag, table(ids) * weights[:, None])
        assert torch.allclose(one, scaled, atol=1e-6)
        scaled.square().sum().backward()
        table.step()
    sum(one.square().sum() for one in pooled).backward()
    step_all(together)
    for a, b in zip(together, apart, strict=True):
        assert torch.allclose(a.weight(), b.weight(), atol=1e-6)


def test_lookups_with_and_without_weights_are_one_step() -> None:
    """A table that two parts of a model look up, one with weights: the step sees the gradients of both."""
    one, two = new_tables(["torch"] * 4)[1], new_tables(["torch"] * 4)[1]
    ids, weights = torch.tensor([1, 2]), torch.tensor([0.5, 3.0])
    first, second = one(ids), look_up([one], [ids], None, [weights])[0]
    (first.sum() + second.sum()).backward()
    one.step()
    look_up([two], [ids], None, [weights + 1])[0].sum().backward()
    two.step()
    assert torch.allclose(one.weight(), two.weight(), atol=1e-6)
    with pytest.raises(ValueError, match=r"weights must be float32 \[2\], one for each id, got torch.float32 \[1\]"):
        look_up([one], [ids], None, [weights[:1]])
