"""What every table back end must do, checked against a plain computation with ``IdMap`` and torch."""

import importlib.util
import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from embeddings.id_map import IdMap
from embeddings.sparsity import Sparsity
from embeddings.tables import Backend, OptimizerSpec, Table, build_table
from embeddings.tables.collected_table import collected_tables
from embeddings.tables.collection import Field
from embeddings.tables.sparse_table import SparseTable

NUM_IDS, NUM_ROWS, DIM = 300, 121, 20
FUSED = ("sgd", "adagrad", "rowwise_adagrad")


def id_map(rows_per_id: int, *, weighted: bool = False) -> IdMap:
    rng = np.random.default_rng(rows_per_id)
    rows = rng.integers(0, NUM_ROWS - 1, (NUM_IDS, rows_per_id))
    weights = rng.uniform(0.5, 2, rows.shape).astype(np.float32) if weighted else None
    return IdMap(rows, NUM_ROWS, NUM_ROWS - 1, "test", weights)


def uneven_map() -> IdMap:
    """Ids with one to four rows, and one with none."""
    full = id_map(4, weighted=True)
    assert full.weights is not None
    used = np.arange(4) < np.random.default_rng(0).integers(1, 5, (NUM_IDS, 1))
    used[7] = False
    return IdMap(full.rows, NUM_ROWS, NUM_ROWS - 1, "test", full.weights * used)


def full_map() -> IdMap:
    return IdMap(np.arange(NUM_IDS)[:, None], NUM_IDS + 1, NUM_IDS, "full")


MAPS = {
    "full": full_map(),
    "shared": id_map(1),
    "shared-weighted": id_map(1, weighted=True),
    "double": id_map(2),
    "double-weighted": id_map(2, weighted=True),
    "uneven": uneven_map(),
}


def new_table(
    id_map: IdMap,
    backend: Backend | Literal["sparse", "collected"],
    name: str = "sgd",
    *,
    dim: int = DIM,
    lr: float = 0.1,
    weight_decay: float = 0.0,
) -> Table:
    spec = OptimizerSpec(name, lr=lr, weight_decay=weight_decay)  # type: ignore[arg-type]
    generator = np.random.Generator(np.random.Philox(5))
    if backend == "sparse":
        sparsity = Sparsity(0.4)
        return build_table(id_map, dim, optimizer=spec, init_std=0.1, generator=generator, sparsity=sparsity)
    if backend == "collected":
        fields = [Field("other", full_map(), 8), Field("own", id_map, dim)]
        draws = [np.random.default_rng(0), generator]
        return collected_tables(fields, optimizer=spec, init_std=0.1, generators=draws)[1]
    return build_table(id_map, dim, backend=backend, optimizer=spec, init_std=0.1, generator=generator)


def stored(table: Table) -> Tensor:
    """Bool [num_rows, D]."""
    return table.stored() if isinstance(table, SparseTable) else torch.ones(table.weight().shape, dtype=torch.bool)


def full_state(table: Table) -> dict[str, Tensor]:
    """The optimizer's state with zeros for what is not stored."""
    full = {}
    for name, state in table.optimizer_state().items():
        full[name] = state.clone()
        if isinstance(table, SparseTable) and state.shape == table.values.shape:
            full[name] = torch.zeros(table.weight().shape).masked_scatter(table.stored(), state)
    return full


def batch(seed: int, *, pooled: bool) -> tuple[Tensor, Tensor | None]:
    """Ids with repeats and unknown ones; bags of uneven length, the first, one inside and the last empty."""
    rng = np.random.default_rng(seed)
    ids = np.concatenate([rng.integers(-4, NUM_IDS + 4, 150), rng.integers(0, 5, 50)])
    rng.shuffle(ids)
    if not pooled:
        return torch.from_numpy(ids), None
    inner = np.sort(rng.integers(0, 200, 30))
    offsets = np.concatenate([[0, 0], inner, inner[-1:], [200, 200]])
    return torch.from_numpy(ids), torch.from_numpy(offsets)


def expected(weight: Tensor, id_map: IdMap, ids: Tensor, offsets: Tensor | None) -> Tensor:
    rows, scale = id_map.lookup(ids.numpy()), id_map.lookup_weights(ids.numpy())
    vectors = (weight[torch.from_numpy(rows)] * torch.from_numpy(scale)[:, :, None]).sum(1)
    if offsets is None:
        return vectors
    bounds = offsets.tolist()
    return torch.stack([vectors[a:b].sum(0) for a, b in itertools.pairwise(bounds)])


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Batches this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


needs_fbgemm = pytest.mark.skipif(importlib.util.find_spec("fbgemm_gpu") is None, reason="fbgemm is not installed")


FBGEMM = [pytest.param("fbgemm", marks=needs_fbgemm), pytest.param("collected", marks=needs_fbgemm)]


@pytest.fixture(params=["torch", *FBGEMM])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Back ends that store every entry."""
    return request.param


@pytest.fixture(params=["torch", *FBGEMM, "sparse"])
def any_backend(request: pytest.FixtureRequest) -> Backend:
    """Also the table that stores some of them."""
    return request.param


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("kind", MAPS)
def test_lookup_is_the_weighted_sum_of_the_mapped_rows(any_backend: Backend, kind: str, pooled: bool) -> None:
    table = new_table(MAPS[kind], any_backend)
    ids, offsets = batch(0, pooled=pooled)
    out = table(ids, offsets)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected(table.weight(), MAPS[kind], ids, offsets), rtol=1e-5, atol=1e-6)
    if offsets is not None:
        assert out[0].abs().max() == 0
        assert out[-1].abs().max() == 0


@pytest.mark.parametrize("dim", [4, 16, 64, 84, 200])
def test_any_dimension(any_backend: Backend, dim: int) -> None:
    table = new_table(MAPS["double-weighted"], any_backend, "rowwise_adagrad", dim=dim)
    ids, offsets = batch(1, pooled=True)
    torch.testing.assert_close(table(ids, offsets), expected(table.weight(), MAPS["double-weighted"], ids, offsets))
    before = table.weight().clone()
    table(ids, offsets).sum().backward()
    table.step()
    assert (table.weight() != before).any(1).sum() > 100
    assert (table.weight() - before).abs().max() < 0.11


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("kind", MAPS)
def test_one_step_is_the_documented_formula(any_backend: Backend, kind: str, name: str, pooled: bool) -> None:
    table = new_table(MAPS[kind], any_backend, name)
    for seed in (0, 1):
        ids, offsets = batch(seed, pooled=pooled)
        weight = table.weight().clone().requires_grad_()
        state = full_state(table)
        gradient = torch.from_numpy(np.random.default_rng(9).standard_normal(table(ids, offsets).shape, np.float32))
        expected(weight, MAPS[kind], ids, offsets).backward(gradient)
        g = weight.grad * stored(table)
        match name:
            case "sgd":
                wanted = weight - 0.1 * g
            case "adagrad":
                state["sum"] += g**2
                wanted = weight - 0.1 * g / (state["sum"].sqrt() + 1e-8)
            case _:
                state["sum"] += (g**2).sum(1) / stored(table).sum(1)
                wanted = weight - 0.1 * g / (state["sum"].sqrt() + 1e-8)[:, None]
        untouched = (g == 0).all(1)
        table(ids, offsets).backward(gradient)
        table.step()
        torch.testing.assert_close(table.weight(), wanted.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(full_state(table), state, rtol=1e-5, atol=1e-6)
        assert torch.equal(table.weight()[untouched], weight.detach()[untouched])


@needs_fbgemm
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("kind", ["full", "shared", "double", "double-weighted"])
def test_back_ends_agree_over_50_steps(kind: str, name: str, pooled: bool) -> None:
    ours, theirs = (new_table(MAPS[kind], backend, name, lr=0.05) for backend in ("torch", "fbgemm"))
    start = ours.weight().clone()
    assert torch.equal(start, theirs.weight())
    for seed in range(50):
        ids, offsets = batch(seed, pooled=pooled)
        target = torch.from_numpy(np.random.default_rng(seed).standard_normal(DIM, np.float32))
        for table in (ours, theirs):
            ((table(ids, offsets) - target) ** 2).mean(0).sum().backward()
            table.step()
    assert (ours.weight() - start).abs().max() > 0.1
    torch.testing.assert_close(ours.weight(), theirs.weight(), rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(ours.optimizer_state(), theirs.optimizer_state(), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("kind", ["full", "double-weighted"])
def test_all_lookups_of_a_step_are_one_update(any_backend: Backend, kind: str, name: str) -> None:
    """Adagrad tells one update with the sum of several gradients from several updates."""
    table, joined = (new_table(MAPS[kind], any_backend, name, lr=0.005) for _ in range(2))
    for seed in range(20):
        (bags, offsets), (ids, _) = batch(seed, pooled=True), batch(seed, pooled=False)
        one, two = table(bags, offsets), table(ids)
        one.square().sum().backward()
        table(ids)  # looked up, and not part of the loss
        (two.square().sum() + 2 * table(ids).sum()).backward()
        table.step()
        assert offsets is not None
        apart = offsets[-1] + torch.arange(1, len(ids) + 1)
        once = joined(torch.cat([bags, ids, ids]), torch.cat([offsets, apart, apart + len(ids)]))
        first, second, third = once.split([len(offsets) - 1, len(ids), len(ids)])
        (first.square().sum() + second.square().sum() + 2 * third.sum()).backward()
        joined.step()
    torch.testing.assert_close(table.weight(), joined.weight(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(table.optimizer_state(), joined.optimizer_state(), rtol=1e-4, atol=1e-6)


@needs_fbgemm
@pytest.mark.parametrize("late", [False, True])
def test_the_learning_rate_is_that_of_the_step(any_backend: Backend, late: bool) -> None:
    table = new_table(MAPS["full"], any_backend, lr=0.001 if late else 0.1)
    before, ids = table.weight().clone(), torch.arange(5)
    table(ids).sum().backward()
    if late:
        table.set_lr(0.1)
    table.step()
    moved = torch.zeros_like(before)
    moved[:5] = 0.1
    torch.testing.assert_close(table.weight(), before - moved * stored(table))


def test_pooled_bags_of_20_agree() -> None:
    ours, theirs = (new_table(MAPS["shared"], backend, "rowwise_adagrad") for backend in ("torch", "fbgemm"))
    offsets = torch.arange(0, 1001, 20)
    for seed in range(50):
        ids = torch.from_numpy(np.random.default_rng(seed).zipf(1.3, 1000).clip(max=NUM_IDS - 1))
        for table in (ours, theirs):
            (table(ids, offsets) ** 2).sum().backward()
            table.step()
    torch.testing.assert_close(ours.weight(), theirs.weight(), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", FUSED)
def test_bytes_are_those_of_the_tensors(backend: Backend, name: str) -> None:
    table = new_table(MAPS["double"], backend, name)
    sizes = table.bytes()
    state = {"sgd": 0, "adagrad": NUM_ROWS * DIM * 4, "rowwise_adagrad": NUM_ROWS * 4}[name]
    assert (sizes.weights, sizes.optimizer) == (NUM_ROWS * DIM * 4, state)
    assert sizes.map == (NUM_IDS + 1) * 2 * (4 + 4)
    assert sum(t.nbytes for t in table.state_dict().values()) == sizes.weights + sizes.optimizer
    assert new_table(MAPS["full"], backend).bytes().map == 0


@pytest.mark.parametrize("name", FUSED)
def test_training_resumes_bit_for_bit(backend: Backend, name: str) -> None:
    def train(table: Table, seeds: range) -> None:
        for seed in seeds:
            ids, offsets = batch(seed, pooled=True)
            (table(ids, offsets) ** 2).sum().backward()
            table.step()

    straight = new_table(MAPS["double-weighted"], backend, name)
    train(straight, range(20))
    first = new_table(MAPS["double-weighted"], backend, name)
    train(first, range(10))
    saved = {key: value.clone() for key, value in first.state_dict().items()}
    assert set(saved) == {"embedding"} | ({"sum"} if name != "sgd" else set())
    second = new_table(MAPS["double-weighted"], backend, name)
    second.load_state_dict(saved)
    train(second, range(10, 20))
    for key, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@needs_fbgemm
def test_state_moves_between_back_ends() -> None:
    ours, theirs = (new_table(MAPS["shared"], backend, "rowwise_adagrad") for backend in ("torch", "fbgemm"))
    ids, offsets = batch(3, pooled=True)
    theirs(ids, offsets).sum().backward()
    theirs.step()
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight(), theirs.weight())
    assert torch.equal(ours(ids), ours.vectors(ids))
    for table in (ours, theirs):
        table(ids, offsets).sum().backward()
        table.step()
    torch.testing.assert_close(ours.weight(), theirs.weight())


def test_vectors_are_all_entities_without_gradient(any_backend: Backend) -> None:
    table = new_table(MAPS["double"], any_backend)
    everyone = table.vectors()
    assert everyone.shape == (NUM_IDS, DIM)
    assert not everyone.requires_grad
    assert torch.equal(everyone, table(torch.arange(NUM_IDS)).detach())
    some = torch.tensor([7, NUM_IDS + 3, -1])
    assert torch.equal(table.vectors(some)[1:], table.weight()[[NUM_ROWS - 1] * 2])


def test_no_ids_give_no_vectors(any_backend: Backend) -> None:
    table = new_table(MAPS["double"], any_backend, "rowwise_adagrad")
    before = table.weight().clone()
    out = table(torch.empty(0, dtype=torch.int64))
    assert out.shape == (0, DIM)
    out.sum().backward()
    table.step()
    assert torch.equal(table.weight(), before)


@needs_fbgemm
def test_no_random_number_depends_on_the_back_end() -> None:
    assert torch.equal(new_table(MAPS["full"], "torch").weight(), new_table(MAPS["full"], "fbgemm").weight())
    assert new_table(MAPS["full"], "torch").weight().std() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("ids", "offsets", "message"),
    [
        (torch.zeros(2, 2, dtype=torch.int64), None, r"shape \[n\] and dtype int64, got \[2, 2\] torch.int64"),
        (torch.zeros(2, dtype=torch.int32), None, r"got \[2\] torch.int32"),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(2), r"dtype int64, got \[2\] torch.float32"),
        (torch.zeros(3, dtype=torch.int64), torch.tensor([0, 2]), "from 0 to the number of ids, 3, got 0 to 2"),
        (torch.zeros(3, dtype=torch.int64), torch.tensor([0, 2, 1, 3]), "bag 1 runs from 2 to 1"),
    ],
)
def test_wrong_inputs_are_refused(any_backend: Backend, ids: Tensor, offsets: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        new_table(MAPS["full"], any_backend)(ids, offsets)
