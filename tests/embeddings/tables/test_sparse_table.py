"""The sparse table against a masked dense reference, its invariants, its bytes and its resume."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embeddings.id_map import IdMap
from embeddings.sparsity import Growth, Schedule, Sparsity, entries
from embeddings.tables import OptimizerSpec, build_table, sparse_kernels
from embeddings.tables.sparse_table import SparseTable, prune

ROWS, DIM, LR = 90, 20, 0.1
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam")


def full_map(rows: int = ROWS) -> IdMap:
    return IdMap(np.arange(rows - 1)[:, None], rows, rows - 1, "full")


def new_table(
    optimizer: str = "adagrad",
    sparsity: Sparsity | None = None,
    *,
    rows: int = ROWS,
    dim: int = DIM,
    decay: float = 0.0,
) -> SparseTable:
    table = build_table(
        full_map(rows),
        dim,
        optimizer=OptimizerSpec(optimizer, lr=LR, weight_decay=decay),  # type: ignore[arg-type]
        init_std=0.1,
        generator=np.random.Generator(np.random.Philox(3)),
        sparsity=sparsity or Sparsity(0.3),
    )
    assert isinstance(table, SparseTable)
    return table


def dynamic(growth: Growth = "gradient", *, window: int = 4, every: int = 10, density: float = 0.3) -> Sparsity:
    return Sparsity(density, Schedule(every, 200, stop=0.9), growth, window)


def batch(step: int, rows: int = ROWS, dim: int = DIM) -> tuple[Tensor, Tensor]:
    """Ids with repeats, and a target for each."""
    rng = np.random.default_rng(step)
    return torch.from_numpy(rng.integers(0, rows, 40)), torch.from_numpy(rng.standard_normal((40, dim), np.float32))


def train(table: SparseTable, steps: range) -> None:
    for step in steps:
        ids, target = batch(step, table.num_rows, table.dim)
        (table(ids) - target).square().sum().mul(0.5).backward()
        table.step()


class MaskedDense:
    """The same training with full tensors and a mask, from the equations; it rounds alike, so that ties break alike."""

    def __init__(self, table: SparseTable) -> None:
        self.weight, self.mask = table.weight(), table.stored()
        self.spec, self.sparsity = table.optimizer, table.sparsity
        self.first, self.second = torch.zeros(ROWS, DIM), torch.zeros(ROWS, DIM)
        self.by_row = torch.zeros(ROWS)
        self.scores = torch.zeros(ROWS, DIM)
        self.gradients: list[Tensor] = []

    def step(self, t: int) -> None:
        weight = self.weight.clone().requires_grad_()
        ids, target = batch(t - 1)
        (weight[ids] - target).square().sum().mul(0.5).backward()
        assert weight.grad is not None
        self.gradients.append(weight.grad)
        decayed = (
            torch.ones(ROWS, dtype=torch.bool) if self.spec.name == "adam" else torch.bincount(ids, minlength=ROWS) > 0
        )
        g = (weight.grad + self.spec.weight_decay * self.weight * decayed[:, None]) * self.mask
        match self.spec.name:
            case "sgd":
                change = self.spec.lr * g
            case "adagrad":
                self.first += g**2
                change = g * self.spec.lr / (self.first.sqrt() + self.spec.eps)
            case "rowwise_adagrad":
                self.by_row += g.square().sum(1) / self.mask.sum(1).clamp(min=1)
                change = (self.spec.lr / (self.by_row.sqrt() + self.spec.eps))[:, None] * g
            case "adam":
                b1, b2 = self.spec.betas
                self.first, self.second = b1 * self.first + (1 - b1) * g, b2 * self.second + (1 - b2) * g**2
                root = (self.second / (1 - b2**t)).sqrt() + self.spec.eps
                change = self.spec.lr * (self.first / (1 - b1**t)) / root
        self.weight = self.weight - change * self.mask
        self.move(t)

    def move(self, t: int) -> None:
        sparsity = self.sparsity
        assert sparsity is not None and sparsity.schedule is not None
        schedule = sparsity.schedule
        end = schedule.stop * schedule.steps
        if t % schedule.every or t > end:
            return
        share = schedule.end + (schedule.start - schedule.end) / 2 * (1 + math.cos(math.pi * t / end))
        recent = self.gradients[-sparsity.window :]
        if sparsity.growth == "gradient":
            score = torch.stack(recent).abs().sum(0)
        else:
            score = sum(g * sparsity.momentum**age for age, g in enumerate(reversed(recent))).abs()  # type: ignore[union-attr]
        candidates = int(((score > 0) & ~self.mask).sum())
        count = min(math.ceil(share * int(self.mask.sum())), candidates)
        order = torch.where(self.mask, self.weight.abs(), torch.inf).flatten().argsort(stable=True)
        self.mask.view(-1)[order[:count]] = False
        order = torch.where(self.mask, -1.0, score).flatten().argsort(descending=True, stable=True)
        self.mask.view(-1)[order[:count]] = True
        fresh = torch.zeros_like(self.mask).view(-1)
        fresh[order[:count]] = True
        gone = ~self.mask | fresh.view(ROWS, DIM)
        for tensor in (self.weight, self.first, self.second):
            tensor[gone] = 0


def by_entry(table: SparseTable, state: Tensor) -> Tensor:
    return torch.zeros(table.num_rows, table.dim).masked_scatter(table.stored(), state)


@pytest.mark.parametrize("growth", ["gradient", "momentum"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_200_steps_are_those_of_a_masked_dense_table(optimizer: str, growth: Growth) -> None:
    table = new_table(optimizer, dynamic(growth), decay=0.01)
    dense = MaskedDense(table)
    start = table.stored()
    for t in range(1, 201):
        train(table, range(t - 1, t))
        dense.step(t)
        assert torch.equal(table.stored(), dense.mask), f"the masks differ after step {t}"
        torch.testing.assert_close(table.weight(), dense.weight, rtol=1e-3, atol=1e-4)
    assert (table.stored() != start).sum() > 100
    state = table.optimizer_state()
    if optimizer == "rowwise_adagrad":
        torch.testing.assert_close(state["sum"], dense.by_row, rtol=1e-3, atol=1e-4)
    for name, wanted in (("exp_avg", dense.first), ("exp_avg_sq", dense.second)):
        if optimizer == "adam":
            torch.testing.assert_close(by_entry(table, state[name]), wanted, rtol=1e-3, atol=1e-4)
    if optimizer == "adagrad":
        torch.testing.assert_close(by_entry(table, state["sum"]), dense.first, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_density_1_is_the_torch_back_end_bit_for_bit(optimizer: str) -> None:
    table = new_table(optimizer, Sparsity(1.0), decay=0.01)
    dense = build_table(
        full_map(), DIM, optimizer=table.optimizer, init_std=0.1, generator=np.random.Generator(np.random.Philox(3))
    )
    for step in range(20):
        for each in (table, dense):
            ids, target = batch(step)
            (each(ids) - target).square().sum().backward()
            each.step()
    assert torch.equal(table.weight(), dense.weight())


@pytest.mark.parametrize("growth", ["gradient", "momentum", "random"])
def test_every_update_moves_the_scheduled_number_and_keeps_the_others(growth: Growth) -> None:
    table = new_table("adam", dynamic(growth, window=10))
    assert table.sparsity is not None and table.sparsity.schedule is not None
    nnz = entries(0.3, ROWS, DIM)
    for t in range(1, 201):
        before, weight = table.stored(), table.weight()
        train(table, range(t - 1, t))
        after = table.stored()
        assert int(after.sum()) == nnz == table.nnz == table.exp_avg.numel()
        share = table.sparsity.schedule.share(t)
        assert (share > 0) == (t % 10 == 0 and t <= 180)
        if share == 0:
            assert torch.equal(before, after)
            continue
        count = math.ceil(share * nnz)
        new = after & ~before
        assert 0 < int(new.sum()) <= count
        zeros = by_entry(table, table.exp_avg) == 0
        assert (zeros & after).sum() == count, "grown entries, and only these, start without state"
        assert (table.weight()[new] == 0).all()
        assert not (weight[before & after] == table.weight()[before & after]).all()
        assert len(table.window_rows) == 0
    whole = table.num_rows * (4 * DIM + 4)
    assert (0 < int(table.window_peak) <= whole) if growth != "random" else not table.window_peak


def test_growth_at_random_reaches_every_entry_alike() -> None:
    table = new_table("sgd", Sparsity(0.3, Schedule(1, 10**6, start=1.0, end=1.0), "random"), rows=41)
    grown = torch.zeros(41, DIM)
    for step in range(400):
        train(table, range(step, step + 1))
        grown += table.stored()
    share = grown / 400
    assert float(share.mean()) == pytest.approx(0.3)
    assert float(share.min()) > 0.3 - 5 * 0.023 and float(share.max()) < 0.3 + 5 * 0.023


def test_the_growth_seed_decides_random_growth() -> None:
    tables = [new_table("sgd", dynamic("random")) for _ in range(3)]
    tables[2].growth_seed += 1
    for table in tables:
        train(table, range(10))
    assert torch.equal(tables[0].stored(), tables[1].stored())
    assert not torch.equal(tables[0].stored(), tables[2].stored())


def test_without_a_gradient_nothing_moves() -> None:
    table = new_table("sgd", Sparsity(0.3, Schedule(1, 10)))
    before = table.stored()
    table(torch.arange(5)).mul(0.0).sum().backward()
    table.step()
    assert torch.equal(table.stored(), before)
    table.step()
    assert int(table.steps) == 1, "a step without a backward pass is none"


@pytest.mark.parametrize("growth", ["gradient", "momentum", "random"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resume_inside_the_window_has_the_same_bits(optimizer: str, growth: Growth) -> None:
    straight = new_table(optimizer, dynamic(growth))
    train(straight, range(60))
    first = new_table(optimizer, dynamic(growth))
    train(first, range(38))  # two steps before an update, in its window
    assert (len(first.window_rows) > 0) == (growth != "random")
    saved = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    train(first, range(38, 45))
    second = new_table(optimizer, dynamic(growth))
    train(second, range(7))
    second.load_state_dict(saved)
    train(second, range(38, 60))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_the_number_of_parts_changes_no_bit() -> None:
    results = []
    for parts in (1, 3):
        table = new_table("adagrad")
        ids, target = batch(0)
        bags = table.bags(ids)
        pooled = np.empty((40, DIM), np.float32)
        mask, values = table.mask.numpy().view(np.uint16), table.values.detach().numpy()
        sparse_kernels.pool_sparse(mask, table.starts.numpy(), values, *bags.arrays, pooled, parts)
        sparse_kernels.update_sparse(
            mask, table.starts.numpy(), values, table.sum.numpy(), *bags.arrays, target.numpy(), 2,
            np.array([0.1, 1e-8, 0.01], np.float32), parts,
        )  # fmt: skip
        results.append((pooled, values, table.sum.numpy()))
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize(("density", "limit"), [(0.5, 0.60), (0.2, 0.28), (0.1, 0.16), (0.05, 0.10)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bytes_stay_within_the_budget(optimizer: str, density: float, limit: float) -> None:
    rows = 5000
    table = new_table(optimizer, Sparsity(density, Schedule(10, 100)), rows=rows, dim=64)
    state = {"sgd": 0, "adagrad": 256, "rowwise_adagrad": 4, "adam": 512}[optimizer]
    sizes = table.bytes()
    assert sizes.weights + sizes.optimizer <= limit * rows * (256 + state)
    saved = sum(tensor.nbytes for tensor in table.state_dict().values())
    assert saved <= limit * rows * (256 + state)
    assert saved == sizes.weights + sizes.optimizer - table.starts.nbytes + 24
    assert (
        sizes.optimizer
        == {"sgd": 0, "adagrad": 4 * table.nnz, "rowwise_adagrad": 4 * rows, "adam": 8 * table.nnz}[optimizer]
    )


def test_rows_start_with_equal_shares_of_the_entries_at_columns_that_vary() -> None:
    table = new_table("sgd", Sparsity(0.23), rows=1000)
    stored = table.stored()
    assert int(stored.sum()) == round(0.23 * 1000 * DIM)
    assert set(stored.sum(1).tolist()) == {4, 5}
    assert float(stored.float().mean(0).min()) > 0.18
    assert float(table.values.detach().std()) == pytest.approx(0.1, rel=0.05)


def test_a_row_without_entries_is_zero_and_stays_so() -> None:
    table = new_table("rowwise_adagrad", Sparsity(1 / DIM / 2))
    empty = ~table.stored().any(1)
    assert int(empty.sum()) == ROWS // 2
    train(table, range(10))
    assert torch.equal(table.stored().any(1), ~empty)
    assert table.sum[empty].abs().max() == 0
    assert table.weight().isfinite().all()
    assert (table.vectors(empty.nonzero()[:, 0]) == 0).all()


def test_pruning_keeps_the_largest_entries_of_the_whole_table() -> None:
    dense = build_table(
        full_map(), DIM, optimizer=OptimizerSpec("sgd"), init_std=1.0, generator=np.random.default_rng(0)
    )
    table = prune(dense, 0.25)
    wanted = dense.weight().flatten().abs().argsort(descending=True)[: round(0.25 * ROWS * DIM)]
    assert torch.equal(table.stored().flatten().nonzero()[:, 0], wanted.sort().values)
    assert torch.equal(table.weight(), dense.weight() * table.stored())


@pytest.mark.parametrize(
    ("mask", "values", "message"),
    [
        (np.zeros((3, 1), np.uint16), torch.zeros(0), r"mask must be uint16 \[90, 2\], got uint16 \[3, 1\]"),
        (np.ones((ROWS, 2), np.uint16), torch.zeros(3), r"values must be float32 \[180\], .*, got torch.float32 \[3\]"),
        (np.full((ROWS, 2), 16, np.uint16), torch.zeros(180), r"bits beyond column 19; a table of dim 20 has none"),
    ],
)
def test_parts_that_do_not_fit_are_refused(mask: Any, values: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseTable(full_map(), DIM, OptimizerSpec("sgd"), mask, values)


def test_there_is_no_lazy_adam() -> None:
    with pytest.raises(ValueError, match="a sparse table has no lazy_adam; use adam, which moves all stored entries"):
        new_table("lazy_adam")


def test_only_the_torch_back_end_is_sparse() -> None:
    with pytest.raises(ValueError, match="a sparse table needs the torch back end, got fbgemm; set backend: torch"):
        build_table(
            full_map(), DIM, backend="fbgemm", optimizer=OptimizerSpec("sgd"), init_std=0.1,
            generator=np.random.default_rng(0), sparsity=Sparsity(0.5),
        )  # fmt: skip


def test_weights_are_not_freed_before_their_last_use() -> None:
    """Freed memory is overwritten in the child process: numba frees an array after the last use that it sees."""
    program = """
import numpy as np
from embeddings.tables import kernels, sparse_kernels
rng = np.random.default_rng(0)
mask, values = np.full((50, 1), 0xFFFF, np.uint16), np.zeros(800, np.float32)
rows, weights = rng.integers(0, 50, 5000).astype(np.int32), rng.random(5000, dtype=np.float32)
gradients, rates = rng.standard_normal((5000, 16), dtype=np.float32), np.array([1, 0, 0], np.float32)
sparse_kernels.update_sparse(
    mask, sparse_kernels.block_starts(mask), values, np.empty(0, np.float32), rows, weights, np.empty(0, np.int64),
    gradients, kernels.KINDS["sgd"], rates, 1,
)
want = np.zeros((50, 16))
np.add.at(want, rows, -weights[:, None] * gradients)
np.testing.assert_allclose(values.reshape(50, 16), want, atol=1e-3)
"""
    environment = os.environ | {"MALLOC_PERTURB_": "165"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
