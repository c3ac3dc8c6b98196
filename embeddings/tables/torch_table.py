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
        dtype: of the rows. ``torch.bfloat16`` halves them; sums are float32, and an update is rounded at random, right
            in the mean, by a draw that the row and the number of the update decide.

    Raises:
        ValueError: The optimizer does not update bfloat16 rows.
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
        if dtype == torch.bfloat16:
            check_short(optimizer)
            self.register_buffer("steps", torch.tensor(0))
        keep_freed_memory()
        self.embedding = nn.Parameter(normal_rows(self.num_rows, dim, init_std, generator, dtype))
        for name, state in optimizer_tensors(optimizer, self.num_rows, dim).items():
            self.register_buffer(name, state)

    @property
    def short(self) -> bool:
        """Whether the rows are bfloat16."""
        rows = self._parameters["embedding"]
        return rows is not None and rows.dtype == torch.bfloat16

    def place(self) -> tuple[int, ...]:
        """Addresses and shapes of the rows and of the optimizer's state, as ``kernels.JOB`` starts with."""
        rows, buffers = self._parameters["embedding"], self._buffers  # ``self.embedding`` takes longer
        assert rows is not None
        state, second = buffers.get("sum", buffers.get("exp_avg")), buffers.get("exp_avg_sq")
        state_dim = 0 if state is None else state.numel() // self.num_rows
        address, other = (0 if part is None else part.data_ptr() for part in (state, second))
        steps = int(self.steps) if self.short else 0
        return rows.data_ptr(), self.num_rows, self.dim, int(self.short), address, state_dim, other, steps

    def rates(self) -> tuple[float, ...]:
        """A line of the rates of ``kernels.update_tables``; counts the steps of lazy Adam and of bfloat16 rows."""
        spec = self.optimizer
        if self.short:
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
        """Float32 or bfloat16 [num_rows, D], a view."""
        return self.embedding.detach()

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


SHORT_OPTIMIZERS = ("sgd", "rowwise_adagrad")
ROWS_AT_ONCE = 1 << 16
_MOMENTS = ("exp_avg", "exp_avg_sq", "steps")
STATES = {"sgd": (), "adagrad": ("sum",), "rowwise_adagrad": ("sum",), "adam": _MOMENTS, "lazy_adam": _MOMENTS}


def optimizer_tensors(optimizer: OptimizerSpec, num_rows: int, dim: int) -> dict[str, Tensor]:
    """The state of a new optimizer by name: float32 [num_rows, D], [num_rows] if row-wise; int64 [] for ``steps``."""
    shape = (num_rows,) if optimizer.name == "rowwise_adagrad" else (num_rows, dim)
    return {name: torch.tensor(0) if name == "steps" else empty_pages(shape).zero_() for name in STATES[optimizer.name]}


def normal_rows(
    num_rows: int, dim: int, std: float, generator: np.random.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """[num_rows, D] of independent normal numbers, mean 0; the same draws for every ``dtype``."""
    rows = empty_pages((num_rows, dim), dtype)
    if dtype == torch.float32:
        generator.standard_normal(out=rows.numpy(), dtype=np.float32)
        return rows.mul_(std)
    for start in range(0, num_rows, ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        part.copy_(torch.from_numpy(generator.standard_normal(part.shape, dtype=np.float32)).mul_(std))
    return rows


def check_short(optimizer: OptimizerSpec) -> None:
    """Raise ValueError if bfloat16 rows cannot be updated by this optimizer."""
    if optimizer.name not in SHORT_OPTIMIZERS or optimizer.weight_decay:
        raise ValueError(
            f"bfloat16 rows are updated by {' or '.join(SHORT_OPTIMIZERS)} without weight decay, got {optimizer.name}"
            f" with {optimizer.weight_decay:g}; use float32"
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
    finds = kernels.records([], kernels.FIND) if finds is None else finds
    pool = functools.partial(_pool, finds=finds, joined=joined)
    pooled: tuple[Tensor, ...] = Lookup.apply(pool, tables, bags, *(table.embedding for table in tables))  # type: ignore[no-untyped-call]
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
