import numpy as np
import pytest
import torch

from embeddings.id_map import IdMap
from embeddings.sparsity import Sparsity
from embeddings.tables import OptimizerSpec, TableBytes, build_table, look_up, step_all
from embeddings.tables.kernels import threads_for

ROWS = 300


def weighted_map(ids=500, places=3, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, ROWS, (ids, places))
    weights = rng.random((ids, places), np.float32)
    return IdMap(rows, num_rows=ROWS + 1, unseen_row=ROWS, compressor="full", weights=weights)


def table_of(dtype="bfloat16", dim=64, optimizer="rowwise_adagrad", lr=0.05, id_map=None, init_std=0.1):
    return build_table(
        id_map or weighted_map(), dim, optimizer=OptimizerSpec(optimizer, lr=lr), init_std=init_std,
        generator=np.random.default_rng(1), dtype=dtype,
    )  # fmt: skip


def train(table, steps, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        ids = torch.from_numpy(rng.integers(0, 500, 4096))
        offsets = torch.from_numpy(np.append(np.sort(rng.integers(0, 4097, 999)), 4096))
        offsets[0] = 0
        table(ids, offsets).square().sum().backward()
        table.step()
    return table


@pytest.mark.parametrize("dim", [64, 7, 16, 84, 130])
def test_a_lookup_is_the_float32_sum_of_the_rows_that_are_stored(dim):
    short, exact = table_of(dim=dim), table_of("float32", dim=dim)
    assert short.weight().dtype == torch.bfloat16
    assert torch.equal(short.weight(), exact.weight().bfloat16()), "both draw the same rows"
    exact.weight().copy_(short.weight())
    ids = torch.from_numpy(np.random.default_rng(2).integers(-1, 502, 1000))
    offsets = torch.tensor([0, 0, 10, 500, 1000])
    assert torch.equal(short(ids, offsets), exact(ids, offsets))
    assert torch.equal(short.vectors(), exact.vectors())
    single = IdMap.identity(ROWS)
    short, exact = (table_of(dtype, dim=dim, id_map=single) for dtype in ("bfloat16", "float32"))
    exact.weight().copy_(short.weight())
    assert torch.equal(short.vectors(), exact.vectors())


@pytest.mark.parametrize("dim", [64, 33])
def test_steps_too_small_for_bfloat16_arrive_in_the_mean(dim):
    table = table_of(dim=dim, optimizer="sgd", lr=1e-3, id_map=IdMap.identity(ROWS), init_std=0.0)
    table.weight().fill_(1.0)  # the next bfloat16 below is 1 - 1/256
    ids = torch.arange(ROWS)
    for _ in range(50):
        table(ids).sum().backward()
        table.step()
    values = table.weight()[:ROWS].double()
    assert values.mean() == pytest.approx(1 - 50e-3, abs=1e-3)
    assert values.std() > 1e-3
    correlated = np.corrcoef(values.numpy())[np.triu_indices(ROWS, 1)]
    assert abs(correlated.mean()) < 0.01, "rows draw apart from each other"
    assert abs(np.corrcoef(values.numpy().T)[np.triu_indices(dim, 1)].mean()) < 0.01, "and so do columns"


def test_what_bfloat16_can_hold_is_not_rounded():
    table = table_of(dim=80, optimizer="sgd", lr=0.25, id_map=IdMap.identity(ROWS), init_std=0.0)
    for _ in range(8):
        table(torch.arange(ROWS)).sum().backward()
        table.step()
    assert (table.weight()[:ROWS] == -2).all()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001])
def test_no_number_stays_none(bits):
    table = table_of(dim=80, optimizer="sgd", id_map=IdMap.identity(ROWS))
    table(torch.arange(ROWS)).backward(torch.full((ROWS, 80), bits, dtype=torch.int32).view(torch.float32))
    table.step()
    assert table.weight()[:ROWS].isnan().all()


def test_a_batch_updates_tables_of_both_types_as_it_would_each_alone():
    kinds, dims = ("bfloat16", "float32", "bfloat16"), (64, 7, 33)
    together, alone = ([table_of(kind, dim=dim) for kind, dim in zip(kinds, dims, strict=True)] for _ in range(2))
    ids = torch.from_numpy(np.random.default_rng(3).integers(0, 500, 6000))
    for _ in range(3):
        torch.autograd.backward([out.square().sum() for out in look_up(together, [ids] * 3, [None] * 3)])
        step_all(together)
        for table in alone:
            for part in ids.split(3500):  # two backward passes are one update
                table(part).square().sum().backward()
            table.step()
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.weight().float(), other.weight().float())
    assert [int(table.steps) for table in alone if table.short] == [3, 3]


def test_training_stays_near_float32():
    short, exact = (train(table_of(dtype), 40) for dtype in ("bfloat16", "float32"))
    moved = (exact.weight() - table_of("float32").weight()).norm()
    assert (short.weight().float() - exact.weight()).norm() < 0.02 * moved
    assert torch.allclose(short.sum, exact.sum, rtol=0.02)


def test_bits_do_not_depend_on_threads_and_training_goes_on_where_it_stopped():
    whole = train(table_of(), 12)
    with threads_for(1):
        alone = train(table_of(), 12)
    assert torch.equal(whole.weight().view(torch.int16), alone.weight().view(torch.int16))
    half = train(table_of(), 6)
    again = table_of(init_std=0.0)
    again.load_state_dict(half.state_dict())
    for table in (half, again):
        train(table, 6, seed=5)
    assert torch.equal(half.weight().view(torch.int16), again.weight().view(torch.int16))
    assert int(half.steps) == 12


def test_bytes_are_those_of_the_tensors():
    assert table_of(id_map=IdMap.identity(ROWS)).bytes() == TableBytes((ROWS + 1) * 64 * 2, (ROWS + 1) * 4, 0)


REFUSED = [OptimizerSpec("adagrad"), OptimizerSpec("adam"), OptimizerSpec("sgd", weight_decay=1)]


@pytest.mark.parametrize("spec", REFUSED)
def test_optimizers_whose_state_is_larger_are_refused(spec):
    with pytest.raises(ValueError, match="bfloat16 rows are updated by sgd or rowwise_adagrad without weight decay"):
        build_table(
            IdMap.identity(3), 4, optimizer=spec, init_std=0.1, generator=np.random.default_rng(0), dtype="bfloat16"
        )


@pytest.mark.parametrize("given", [{"backend": "fbgemm"}, {"sparsity": Sparsity(0.5)}])
def test_other_tables_have_no_bfloat16(given):
    with pytest.raises(ValueError, match="bfloat16 rows need the torch back end and no sparsity"):
        build_table(
            IdMap.identity(3), 4, optimizer=OptimizerSpec("sgd"), init_std=0.1, generator=np.random.default_rng(0),
            dtype="bfloat16", **given,
        )  # fmt: skip
