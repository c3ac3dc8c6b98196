"""The back end that always works: plain tensors, compiled loops on the CPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from embeddings.id_map import IdMap
from embeddings.tables import kernels
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
    """

    sum: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: Tensor

    def __init__(
        self, id_map: IdMap, dim: int, optimizer: OptimizerSpec, *, init_std: float, generator: np.random.Generator
    ) -> None:
        super().__init__(id_map, dim, optimizer)
        keep_freed_memory()
        self.embedding = nn.Parameter(normal_rows(self.num_rows, dim, init_std, generator))
        for name, state in optimizer_tensors(optimizer, self.num_rows, dim).items():
            self.register_buffer(name, state)
        self._pending: list[tuple[Bags, Tensor]] = []

    def pool(self, bags: Bags) -> Tensor:
        """Float32 [B, D]: the weighted sum of each bag's rows."""
        pooled: Tensor = _Pool.apply(self.embedding, self, bags)  # type: ignore[no-untyped-call]
        return pooled

    def weight(self) -> Tensor:
        """Float32 [num_rows, D], a view."""
        return self.embedding.detach()

    def optimizer_state(self) -> dict[str, Tensor]:
        """See :meth:`Table.optimizer_state`."""
        return {name: getattr(self, name) for name in STATES[self.optimizer.name]}

    def step(self) -> None:
        """Apply the gradients of the backward passes since the last step, as one batch."""
        if not self._pending:
            return
        bags, gradients = _joined(self._pending)
        self._pending.clear()
        lookups = bags.arrays
        if self.optimizer.name == "adam":
            self._update_adam(*kernels.group_by_row(*lookups, self.num_rows, 0, 1), gradients.numpy())
            return
        spec = self.optimizer
        state = np.zeros((1, 1), np.float32) if spec.name == "sgd" else self.sum.numpy().reshape(self.num_rows, -1)
        with kernels.threads_for(bags.rows.shape[0]) as parts:
            kernels.update_rows(
                self.weight().numpy(), state, *lookups, gradients.numpy(), parts, kernels.KINDS[spec.name],
                np.float32(spec.lr), np.float32(spec.eps), np.float32(spec.weight_decay),
            )  # fmt: skip

    def _update_adam(self, pairs: kernels.Pairs, weights: kernels.Floats, gradients: kernels.Floats) -> None:
        self.steps += 1
        spec, steps = self.optimizer, int(self.steps)
        b1, b2 = spec.betas
        with kernels.threads_for(self.num_rows) as parts:
            kernels.update_adam(
                self.weight().numpy(), self.exp_avg.numpy(), self.exp_avg_sq.numpy(), pairs, weights, gradients,
                parts, (np.float32(b1), np.float32(b2)), np.float32(spec.lr / (1 - b1**steps)),
                np.float32(math.sqrt(1 - b2**steps)), np.float32(spec.eps), np.float32(spec.weight_decay),
            )  # fmt: skip


STATES = {"sgd": (), "adagrad": ("sum",), "rowwise_adagrad": ("sum",), "adam": ("exp_avg", "exp_avg_sq", "steps")}


def optimizer_tensors(optimizer: OptimizerSpec, num_rows: int, dim: int) -> dict[str, Tensor]:
    """The state of a new optimizer by name: float32 [num_rows, D], [num_rows] if row-wise; int64 [] for ``steps``."""
    shape = (num_rows,) if optimizer.name == "rowwise_adagrad" else (num_rows, dim)
    return {name: torch.tensor(0) if name == "steps" else empty_pages(shape).zero_() for name in STATES[optimizer.name]}


def normal_rows(num_rows: int, dim: int, std: float, generator: np.random.Generator) -> Tensor:
    """Float32 [num_rows, D] of independent normal numbers, mean 0."""
    rows = empty_pages((num_rows, dim))
    generator.standard_normal(out=rows.numpy(), dtype=np.float32)
    return rows.mul_(std)


class _Pool(torch.autograd.Function):
    """Pools in forward; backward leaves the bags' gradient with the table, and none for autograd."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor, table: TorchTable, bags: Bags) -> Tensor:
        """Float32 [B, D]."""
        ctx.table, ctx.bags = table, bags
        out = torch.empty(bags.count, table.dim)
        with kernels.threads_for(bags.rows.shape[0]) as parts:
            kernels.pool_rows(embedding.detach().numpy(), *bags.arrays, parts, out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        """Keep [B, D] for :meth:`TorchTable.step`."""
        ctx.table._pending.append((ctx.bags, gradient.contiguous()))
        return None, None, None


def _joined(pending: list[tuple[Bags, Tensor]]) -> tuple[Bags, Tensor]:
    """The lookups of several backward passes as those of one."""
    if len(pending) == 1:
        return pending[0]
    bags = [bag for bag, _ in pending]
    gradients = torch.cat([gradient for _, gradient in pending])
    rows = torch.cat([bag.rows for bag in bags])
    if all(bag.offsets is None for bag in bags):
        return Bags(rows, None, None), gradients
    lengths = [torch.ones(len(b.rows), dtype=torch.int64) if b.offsets is None else b.offsets.diff() for b in bags]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(lengths).cumsum(0)])
    weights = None if bags[0].weights is None else torch.cat([bag.weights for bag in bags if bag.weights is not None])
    return Bags(rows, weights, offsets), gradients
