import numpy as np
import pytest
import torch

from embeddings.id_map import IdMap, Narrow
from embeddings.sparsity import Sparsity
from embeddings.tables import OptimizerSpec, build_table, look_up, step_all
from embeddings.tables.narrow_table import NarrowTable
from embeddings.tables.torch_table import TorchTable
from recsys.table_tensors import read_table, table_tensors

WIDE, NARROW, IDS, DIM = 40, 30, 90, 12


def narrow_map(places=3, weighted=True, seed=0, share=0.25):
    """Ids of wide rows alone, of narrow rows alone and of both; the last wide row is the unseen one."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, WIDE - 1, (IDS, places))
    rows[:60, -1] = rng.integers(WIDE, WIDE + NARROW, 60)
    rows[:10] = rng.integers(WIDE, WIDE + NARROW, (10, places))
    weights = rng.random(rows.shape, np.float32) if weighted else None
    return IdMap(rows, WIDE + NARROW, WIDE - 1, "modulo", weights, narrow=Narrow(NARROW, share))


def tables(optimizer, id_map=None, dtype="float32", **settings):
    """A narrow table, and a plain one with the same rows, whose other columns are zero."""
    id_map = narrow_map() if id_map is None else id_map
    spec = OptimizerSpec(optimizer, **settings)
    draws = {"init_std": 0.1, "generator": np.random.default_rng(1)}
    narrow = build_table(id_map, DIM, optimizer=spec, dtype=dtype, **draws)
    whole = TorchTable(id_map, DIM, spec, **draws)
    whole.weight().copy_(narrow.weight())
    assert isinstance(narrow, NarrowTable)
    return narrow, whole


def lookups(steps):
    rng = np.random.default_rng(3)
    for _ in range(steps):
        ids = torch.from_numpy(rng.integers(-1, IDS + 1, 200))
        offsets = torch.from_numpy(np.concatenate([[0, 0], np.sort(rng.integers(0, 201, 30)), [200]]))
        yield ids, offsets, torch.from_numpy(rng.standard_normal((len(offsets) - 1, DIM), np.float32))


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam", "lazy_adam"])
def test_it_is_a_table_of_whole_rows_whose_other_columns_get_no_gradient(optimizer, weighted, places):
    narrow, whole = tables(optimizer, narrow_map(places, weighted), lr=0.1)
    columns = narrow.narrow.dim
    assert columns == 3 and (whole.weight()[WIDE:, columns:] == 0).all()
    for ids, offsets, weights in lookups(20):
        pooled, expected = narrow(ids, offsets), whole(ids, offsets)
        torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(narrow(ids), whole(ids), rtol=1e-5, atol=1e-6)
        (pooled * weights).sum().backward()
        (expected * weights).sum().backward()
        for table in (narrow, whole):
            table.step()
        whole.weight()[WIDE:, columns:] = 0
    torch.testing.assert_close(narrow.weight(), whole.weight(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(narrow.vectors(), whole.vectors(), rtol=1e-4, atol=1e-5)


def test_the_mean_square_of_a_narrow_row_is_that_of_its_columns():
    narrow, _ = tables("rowwise_adagrad", lr=0.1)
    ids = torch.arange(IDS)
    gradient = torch.randn(IDS, DIM, generator=torch.Generator().manual_seed(0))
    before = narrow.weight()
    (narrow(ids) * gradient).sum().backward()
    narrow.step()
    id_map = narrow.id_map
    total = torch.zeros(NARROW, 3)
    for i in range(IDS):
        for row, weight in zip(id_map.rows[i], id_map.weights[i], strict=True):
            if row >= WIDE:
                total[row - WIDE] += float(weight) * gradient[i, :3]
    mean = total.square().mean(1)
    state = narrow.optimizer_state()
    torch.testing.assert_close(state["narrow.sum"], mean, rtol=1e-4, atol=1e-6)
    assert state["wide.sum"].shape == (WIDE,)
    moved = before[WIDE:, :3] - narrow.weight()[WIDE:, :3]
    torch.testing.assert_close(moved, 0.1 * total / (mean.sqrt()[:, None] + 1e-8), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rounded_rows_learn_and_are_stored_as_they_are_counted(dtype):
    narrow, _ = tables("rowwise_adagrad", dtype=dtype, lr=0.1)
    size = {"bfloat16": (2 * DIM, 2 * 3), "int8": (DIM + 1, 3 + 1)}[dtype]
    assert narrow.bytes().weights == WIDE * size[0] + NARROW * size[1]
    assert narrow.bytes().optimizer == 4 * (WIDE + NARROW)
    goal = torch.randn(IDS, DIM, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(200):
        loss = (narrow(torch.arange(IDS)) - goal).square().mean()
        losses.append(float(loss.detach()))
        loss.backward()
        narrow.step()
    assert losses[-1] < 0.8 * losses[0]
    saved = table_tensors("items", narrow)
    assert saved["items"].nbytes + saved["items.narrow"].nbytes == narrow.bytes().weights
    again = read_table("items", saved, narrow.id_map)
    assert torch.equal(again.vectors(), narrow.vectors())


def test_it_steps_and_is_looked_up_beside_other_tables_and_with_a_rate_that_falls():
    (first, whole), (second, _) = tables("sgd", lr=0.1), tables("sgd", lr=0.1)
    ids, offsets, weights = next(lookups(1))
    for group in ([first, whole], [second]):
        for table in group:
            table.set_lr(0.02)
        pooled = look_up(group, [ids] * len(group), [offsets] * len(group))
        sum((part * weights).sum() for part in pooled).backward()
        step_all(group)
    assert torch.equal(first.weight(), second.weight())
    assert not torch.equal(first.weight(), tables("sgd", lr=0.1)[0].weight())
    slow = tables("sgd", lr=0.02)[0]
    (slow(ids, offsets) * weights).sum().backward()
    slow.step()
    assert torch.equal(slow.weight(), first.weight())


def test_a_saved_state_goes_on_bit_for_bit():
    ran, resumed = (
        tables("rowwise_adagrad", dtype="int8", lr=0.1)[0],
        tables("rowwise_adagrad", dtype="int8", lr=0.1)[0],
    )
    for step, (ids, offsets, weights) in enumerate(lookups(6)):
        if step == 3:
            resumed.load_state_dict(ran.state_dict())
        for table in [ran] if step < 3 else [ran, resumed]:
            (table(ids, offsets) * weights).sum().backward()
            table.step()
    assert all(torch.equal(a, b) for a, b in zip(ran.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_rows_that_are_written_keep_their_first_columns():
    narrow, _ = tables("sgd")
    values, at = torch.ones(3, DIM), torch.tensor([2, WIDE, WIDE + NARROW - 1])
    before = narrow.weight()
    narrow.write(values, at)
    before[2] = 1
    before[at[1:], :3] = 1
    assert torch.equal(narrow.weight(), before)


def test_what_has_no_narrow_rows_says_so():
    spec, draws = OptimizerSpec("sgd"), {"init_std": 0.1, "generator": np.random.default_rng(0)}
    with pytest.raises(ValueError, match="use a TorchTable"):
        NarrowTable(IdMap.identity(5), DIM, spec, **draws)
    for backend, sparsity in (("fbgemm", None), ("torch", Sparsity(0.5))):
        with pytest.raises(ValueError, match="narrow rows need the torch back end and no sparsity"):
            build_table(narrow_map(), DIM, backend=backend, sparsity=sparsity, optimizer=spec, **draws)
    saved = table_tensors("items", tables("sgd")[0])
    with pytest.raises(ValueError, match="the map has rows of shape"):
        read_table("items", saved | {"items.narrow": saved["items.narrow"][:, :2]}, narrow_map())
    with pytest.raises(KeyError):
        read_table("items", {"items": saved["items"]}, narrow_map())
