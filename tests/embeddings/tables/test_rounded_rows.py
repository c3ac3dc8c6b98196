import numpy as np
import pytest
import torch

from embeddings.id_map import IdMap
from embeddings.sparsity import Sparsity
from embeddings.tables import OptimizerSpec, TableBytes, build_table, look_up, step_all
from embeddings.tables.int8 import from_int8, to_int8
from embeddings.tables.kernels import threads_for

ROWS = 300
KINDS = ("bfloat16", "int8")


def weighted_map(ids=500, places=3, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, ROWS, (ids, places))
    weights = rng.random((ids, places), np.float32)
    return IdMap(rows, num_rows=ROWS + 1, unseen_row=ROWS, compressor="full", weights=weights)


def table_of(dtype, dim=64, optimizer="rowwise_adagrad", lr=0.05, id_map=None, init_std=0.1):
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


def rounded(rows, dtype):
    """What a table of ``dtype`` makes of float32 rows that are written to it."""
    if dtype == "bfloat16":
        return rows.bfloat16().float()
    steps = np.exp2(np.ceil(np.log2(rows.numpy().astype(np.float64).__abs__().max(1, keepdims=True) / 127)))
    return torch.from_numpy((np.round(rows.numpy() / steps) * steps).astype(np.float32))


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("dim", [64, 7, 16, 84, 130])
def test_a_lookup_is_the_float32_sum_of_the_rows_that_are_stored(dim, dtype):
    small, exact = table_of(dtype, dim=dim), table_of("float32", dim=dim)
    assert torch.equal(small.weight().float(), rounded(exact.weight(), dtype)), "both draw the same rows"
    exact.weight().copy_(small.weight())
    ids = torch.from_numpy(np.random.default_rng(2).integers(-1, 502, 1000))
    offsets = torch.tensor([0, 0, 10, 500, 1000])
    assert torch.equal(small(ids, offsets), exact(ids, offsets))
    assert torch.equal(small.vectors(), exact.vectors())
    single = IdMap.identity(ROWS)
    small, exact = (table_of(kind, dim=dim, id_map=single) for kind in (dtype, "float32"))
    exact.weight().copy_(small.weight())
    assert torch.equal(small.vectors(), exact.vectors())


@pytest.mark.parametrize("dtype", ["float32", *KINDS])
def test_rows_that_are_written_are_the_nearest_and_others_stay(dtype):
    table, rows = table_of(dtype), torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    before = table.weight().float().clone()
    table.write(rows, torch.tensor([7, 3]))
    expected = before.clone()
    expected[[7, 3]] = rows if dtype == "float32" else rounded(rows, dtype)
    assert torch.equal(table.weight().float(), expected)


@pytest.mark.parametrize("scale", [1e-36, 1e-6, 1.0, 1e6, 1e36])
def test_an_int8_row_is_within_half_a_step_of_what_it_stands_for(scale):
    rows = scale * torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    rows[0] = 0
    rows[1] = scale * 127  # its own step
    stored = to_int8(rows)
    steps = rows.abs().amax(dim=1, keepdim=True) / 63
    assert ((from_int8(stored) - rows).abs() <= steps / 2).all()
    assert torch.equal(from_int8(stored[:1]), rows[:1])
    assert torch.equal(to_int8(from_int8(stored)), stored), "what is stored is not rounded again"


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("dim", [64, 33])
def test_steps_too_small_for_the_type_arrive_in_the_mean(dim, dtype):
    table = table_of(dtype, dim=dim, optimizer="sgd", lr=1e-3, id_map=IdMap.identity(ROWS), init_std=0.0)
    table.write(torch.ones(ROWS + 1, dim), torch.arange(ROWS + 1))  # next below: 1 - 1/256 and 1 - 1/64
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


@pytest.mark.parametrize("dtype", KINDS)
def test_what_the_type_can_hold_is_not_rounded(dtype):
    table = table_of(dtype, dim=80, optimizer="sgd", lr=0.25, id_map=IdMap.identity(ROWS), init_std=0.0)
    for _ in range(8):
        table(torch.arange(ROWS)).sum().backward()
        table.step()
    assert (table.weight()[:ROWS] == -2).all()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001])
@pytest.mark.parametrize("dtype", KINDS)
def test_no_number_stays_none(bits, dtype):
    table = table_of(dtype, dim=80, optimizer="sgd", id_map=IdMap.identity(ROWS))
    table(torch.arange(ROWS)).backward(torch.full((ROWS, 80), bits, dtype=torch.int32).view(torch.float32))
    table.step()
    assert table.weight()[:ROWS].isnan().all()


def test_an_int8_row_that_overflows_has_no_numbers():
    table = table_of("int8", dim=70, optimizer="sgd", lr=10.0, id_map=IdMap.identity(ROWS))
    gradient = torch.zeros(ROWS, 70)
    gradient[5, 3] = 3e38
    table(torch.arange(ROWS)).backward(gradient)
    table.step()
    wrong = table.weight().isnan()
    assert wrong[5].all()
    assert wrong.sum() == 70


def test_a_batch_updates_tables_of_all_types_as_it_would_each_alone():
    kinds, dims = ("bfloat16", "float32", "int8", "bfloat16"), (64, 7, 64, 33)
    together, alone = ([table_of(kind, dim=dim) for kind, dim in zip(kinds, dims, strict=True)] for _ in range(2))
    ids = torch.from_numpy(np.random.default_rng(3).integers(0, 500, 6000))
    for _ in range(3):
        torch.autograd.backward([out.square().sum() for out in look_up(together, [ids] * 4, [None] * 4)])
        step_all(together)
        for table in alone:
            for part in ids.split(3500):  # two backward passes are one update
                table(part).square().sum().backward()
            table.step()
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.weight().float(), other.weight().float())
    assert [int(table.steps) for table in alone if table.rounded] == [3, 3, 3]


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.02), ("int8", 0.05)])
def test_training_stays_near_float32(dtype, most):
    small, exact = (train(table_of(kind), 40) for kind in (dtype, "float32"))
    moved = (exact.weight() - table_of("float32").weight()).norm()
    assert (small.weight().float() - exact.weight()).norm() < most * moved
    assert torch.allclose(small.sum, exact.sum, rtol=0.02)


@pytest.mark.parametrize("dtype", KINDS)
def test_bits_do_not_depend_on_threads_and_training_goes_on_where_it_stopped(dtype):
    whole = train(table_of(dtype), 12)
    with threads_for(1):
        alone = train(table_of(dtype), 12)
    assert torch.equal(whole.rows().view(torch.int8), alone.rows().view(torch.int8))
    half = train(table_of(dtype), 6)
    again = table_of(dtype, init_std=0.0)
    again.load_state_dict(half.state_dict())
    for table in (half, again):
        train(table, 6, seed=5)
    assert torch.equal(half.rows().view(torch.int8), again.rows().view(torch.int8))
    assert int(half.steps) == 12


@pytest.mark.parametrize(("dtype", "row"), [("bfloat16", 128), ("int8", 65)])
def test_bytes_are_those_of_the_tensors(dtype, row):
    table = table_of(dtype, id_map=IdMap.identity(ROWS))
    assert table.bytes() == TableBytes((ROWS + 1) * row, (ROWS + 1) * 4, 0)


REFUSED = [OptimizerSpec("adagrad"), OptimizerSpec("adam"), OptimizerSpec("sgd", weight_decay=1)]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("spec", REFUSED)
def test_optimizers_whose_state_is_larger_are_refused(spec, dtype):
    with pytest.raises(ValueError, match=f"{dtype} rows are updated by sgd or rowwise_adagrad without weight decay"):
        build_table(IdMap.identity(3), 4, optimizer=spec, init_std=0.1, generator=np.random.default_rng(0), dtype=dtype)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("given", [{"backend": "fbgemm"}, {"sparsity": Sparsity(0.5)}])
def test_other_tables_have_float32_rows(given, dtype):
    with pytest.raises(ValueError, match=f"{dtype} rows need the torch back end and no sparsity"):
        build_table(
            IdMap.identity(3), 4, optimizer=OptimizerSpec("sgd"), init_std=0.1, generator=np.random.default_rng(0),
            dtype=dtype, **given,
        )  # fmt: skip
