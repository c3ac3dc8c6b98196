"""The back end that always works: plain tensors, compiled loops on the CPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from embeddings.id_map import IdMap
from embeddings.tables import adam_kernel, kernels
from embeddings.tables.find import FIND
from embeddings.tables.int8 import from_int8, to_int8
from embeddings.tables.kept_gradients import Lookup, join_bags
from embeddings.tables.memory import empty_pages, keep_freed_memory
from embeddings.tables.spec import OptimizerSpec
from embeddings.tables.table import Bags, Table


class TorchTable(Table):
    """A table of plain tensors whose rows are updated in place by :meth:`step`.

    Backward keeps the gradient of each bag and what was looked up, nothing by lookup; ``step`` sums by row over all
    backward passes since the last step and touches each row once. The result is the same, bit for bit, for any number
    of threads.

    Args:
        id_map: which rows an id has.
        dim: D.
        optimizer: what :meth:`step` applies.
        init_std: standard deviation of the rows' normal initialisation.
        generator: draws it.
        dtype: of the rows. ``torch.bfloat16`` halves them, ``torch.int8`` quarters them but for one byte a row, see
            :mod:`embeddings.tables.int8`; sums are float32, and an update is rounded at random, right in the mean, by a
            draw that the row and the number of the update decide.

    Raises:
        ValueError: The optimizer does not update rows that are rounded.
    """

    sum: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: Tensor

    def __init__(
        self,
        id_map: IdMap,
        dim: int,
        optimizer: OptimizerSpec,
        *,
        init_std: float,
        generator: np.random.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(id_map, dim, optimizer)
        if dtype != torch.float32:
            check_rounded(optimizer, dtype)
            self.register_buffer("steps", torch.tensor(0))
        keep_freed_memory()
        rows = normal_rows(self.num_rows, dim, init_std, generator, dtype)
        self.embedding = nn.Parameter(rows, requires_grad=dtype.is_floating_point)
        for name, state in optimizer_tensors(optimizer, self.num_rows, dim).items():
            self.register_buffer(name, state)

    @property
    def rounded(self) -> bool:
        """Whether updates are rounded: the rows are bfloat16 or int8."""
        return self.rows().dtype != torch.float32

    def rows(self) -> Tensor:
        """The rows as they are stored: float32 or bfloat16 [num_rows, D], int8 [num_rows, D + 1]."""
        rows = self._parameters["embedding"]  # ``self.embedding`` takes longer
        assert rows is not None
        return rows

    def place(self) -> tuple[int, ...]:
        """Addresses and shapes of the rows and of the optimizer's state, as ``kernels.JOB`` starts with."""
        rows, buffers = self.rows(), self._buffers
        state, second = buffers.get("sum", buffers.get("exp_avg")), buffers.get("exp_avg_sq")
        state_dim = 0 if state is None else state.numel() // self.num_rows
        address, other = (0 if part is None else part.data_ptr() for part in (state, second))
        steps = int(self.steps) if rows.dtype != torch.float32 else 0
        return rows.data_ptr(), self.num_rows, self.dim, rows.itemsize, address, state_dim, other, steps

    def rates(self) -> tuple[float, ...]:
        """A line of the rates of ``kernels.update_tables``; counts the steps of lazy Adam and of rounded rows."""
        spec = self.optimizer
        if self.rounded:
            self.steps += 1
        if spec.name != "lazy_adam":
            return spec.lr, spec.eps, 0.0, 0.0, 1.0, spec.weight_decay
        self.steps += 1
        (b1, b2), steps = spec.betas, int(self.steps)
        return spec.lr / (1 - b1**steps), spec.eps, b1, b2, math.sqrt(1 - b2**steps), spec.weight_decay

    def pool(self, bags: Bags) -> Tensor:
        """Float32 [B, D]: the weighted sum of each bag's rows."""
        return pool_together([self], [bags])[0]

    def weight(self) -> Tensor:
        """Float32 or bfloat16 [num_rows, D], a view; a float32 copy of int8 rows."""
        rows = self.rows().detach()
        return from_int8(rows) if rows.dtype == torch.int8 else rows

    def write(self, values: Tensor, at: Tensor) -> None:
        """See :meth:`Table.write`."""
        rows = self.rows().detach()
        rows[at] = to_int8(values) if rows.dtype == torch.int8 else values.to(rows.dtype)

    def _weight_bytes(self) -> int:
        return self.rows().nbytes

    def optimizer_state(self) -> dict[str, Tensor]:
        """See :meth:`Table.optimizer_state`."""
        return {name: getattr(self, name) for name in STATES[self.optimizer.name]}

    def step(self) -> None:
        """Apply the gradients of the backward passes since the last step, as one batch."""
        step_together([self])

    def _update_adam(self, bags: Bags, gradient: Tensor) -> None:
        self.steps += 1
        pairs, weights = kernels.group_by_row(*bags.arrays, self.num_rows, 0, 1)
        spec, steps = self.optimizer, int(self.steps)
        b1, b2 = spec.betas
        with kernels.threads_for(self.num_rows) as parts:
            adam_kernel.update_adam(
                self.weight().numpy(), self.exp_avg.numpy(), self.exp_avg_sq.numpy(), pairs, weights,
                gradient.contiguous().numpy(), parts, (np.float32(b1), np.float32(b2)),
                np.float32(spec.lr / (1 - b1**steps)), np.float32(math.sqrt(1 - b2**steps)),
                np.float32(spec.eps), np.float32(spec.weight_decay),
            )  # fmt: skip


ROUNDED_OPTIMIZERS = ("sgd", "rowwise_adagrad")
ROWS_AT_ONCE = 1 << 16
_ANCHOR = torch.empty(0, requires_grad=True)  # stands for int8 rows in autograd, which differentiates no integers
_MOMENTS = ("exp_avg", "exp_avg_sq", "steps")
STATES = {"sgd": (), "adagrad": ("sum",), "rowwise_adagrad": ("sum",), "adam": _MOMENTS, "lazy_adam": _MOMENTS}


def optimizer_tensors(optimizer: OptimizerSpec, num_rows: int, dim: int) -> dict[str, Tensor]:
    """The state of a new optimizer by name: float32 [num_rows, D], [num_rows] if row-wise; int64 [] for ``steps``."""
    shape = (num_rows,) if optimizer.name == "rowwise_adagrad" else (num_rows, dim)
    return {name: torch.tensor(0) if name == "steps" else empty_pages(shape).zero_() for name in STATES[optimizer.name]}


def normal_rows(
    num_rows: int, dim: int, std: float, generator: np.random.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The rows of independent normal numbers, mean 0, as they are stored; the same draws for every ``dtype``."""
    rows = empty_pages((num_rows, dim + (dtype == torch.int8)), dtype)
    if dtype == torch.float32:
        generator.standard_normal(out=rows.numpy(), dtype=np.float32)
        return rows.mul_(std)
    for start in range(0, num_rows, ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        drawn = torch.from_numpy(generator.standard_normal((len(part), dim), dtype=np.float32)).mul_(std)
        part.copy_(to_int8(drawn) if dtype == torch.int8 else drawn)
    return rows


def check_rounded(optimizer: OptimizerSpec, dtype: torch.dtype) -> None:
    """Raise ValueError if rows of a type below float32 cannot be updated by this optimizer."""
    if optimizer.name not in ROUNDED_OPTIMIZERS or optimizer.weight_decay:
        allowed = " or ".join(ROUNDED_OPTIMIZERS)
        raise ValueError(
            f"{str(dtype).removeprefix('torch.')} rows are updated by {allowed} without weight decay, got"
            f" {optimizer.name} with {optimizer.weight_decay:g}; use float32"
        )


def pool_together(
    tables: Sequence[TorchTable], bags: Sequence[Bags], finds: kernels.Jobs | None = None, *, joined: bool = False
) -> tuple[Tensor, ...]:
    """Pool several tables in one compiled call and one node of autograd.

    Args:
        tables: T of them.
        bags: what is looked up in each; as many of each where ``joined``.
        finds: what finds their rows first (:func:`embeddings.tables.table.bags_to_find`); None where they are found.
        joined: whether the sums stand side by side.

    Returns:
        T times float32 [B, D], the weighted sum of each bag's rows; once float32 [B, sum of D] where ``joined``.
    """
    finds = kernels.records([], FIND) if finds is None else finds
    pool = functools.partial(_pool, finds=finds, joined=joined)
    rows = (_ANCHOR if table.rows().dtype == torch.int8 else table.embedding for table in tables)
    pooled: tuple[Tensor, ...] = Lookup.apply(pool, tables, bags, *rows)  # type: ignore[no-untyped-call]
    return pooled


def step_together(tables: Sequence[TorchTable]) -> None:
    """The steps of several tables, in one compiled call but for those with dense Adam."""
    jobs, rates, kinds, kept = [], [], [], []
    for table in tables:
        if not table.pending:
            continue
        bags, gradient = join_bags(table.pending)
        table.pending.clear()
        if table.optimizer.name == "adam":
            table._update_adam(bags, gradient)
            continue
        jobs.append(_job(table, bags, gradient))
        rates.append(table.rates())
        kinds.append(kernels.KINDS[table.optimizer.name])
        kept.append((bags, gradient))
    if jobs:
        lookups = [len(bags.rows) for bags, _ in kept]
        with kernels.threads_for(sum(lookups)) as threads:
            records, settings = kernels.records(jobs, kernels.JOB), np.array(rates, np.float32)
            kernels.update_tables(records, settings, np.array(kinds), kernels.parts_for(lookups, threads))


def _pool(
    tables: Sequence[TorchTable], bags: Sequence[Bags], *, finds: kernels.Jobs, joined: bool
) -> tuple[Tensor, ...]:
    dims = [table.dim for table in tables]
    if joined:
        outputs: tuple[Tensor, ...] = (torch.empty(bags[0].count, sum(dims)),)
        pooled = torch.split(outputs[0], dims, dim=1)
    else:
        pooled = outputs = tuple(torch.empty(bag.count, dim) for dim, bag in zip(dims, bags, strict=True))
    jobs = kernels.records([_job(*parts) for parts in zip(tables, bags, pooled, strict=True)], kernels.JOB)
    lookups = [bag.rows.shape[0] for bag in bags]
    with kernels.threads_for(sum(lookups)) as threads:
        kernels.pool_tables(jobs, finds, kernels.parts_for(lookups, threads))
    return outputs


def _job(table: TorchTable, bags: Bags, pooled: Tensor) -> tuple[int, ...]:
    """A line of ``kernels.JOB``: addresses, valid as long as the arguments live."""
    return (
        *table.place(),
        bags.rows.data_ptr(), bags.rows.shape[0], 0 if bags.weights is None else bags.weights.data_ptr(),
        0 if bags.offsets is None else bags.offsets.data_ptr(), bags.count,
        pooled.data_ptr(), 4 * pooled.stride(0) if len(pooled) else 0,
    )  # fmt: skip
