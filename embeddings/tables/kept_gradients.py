"""Gradients that wait for the step of their table: one update for all that a step looks up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from embeddings.tables.table import Bags, Table

Pool = Callable[[Sequence[Any], Sequence[Bags]], tuple[Tensor, ...]]


class Lookup(torch.autograd.Function):
    """Pools in forward; backward leaves the bags' gradients with the tables, and none for autograd."""

    @staticmethod
    def forward(
        ctx: Any, pool: Pool, tables: Sequence[Table], bags: Sequence[Bags], *rows: Tensor
    ) -> tuple[Tensor, ...]:
        """Float32 [B, D] of each table, or once [B, sum of D], as ``pool`` gives; they depend on ``rows``."""
        ctx.tables, ctx.bags = tables, bags
        ctx.set_materialize_grads(False)
        return pool(tables, bags)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        """Keep [B, D] for :meth:`Table.step`."""
        parts: Sequence[Tensor | None] = [None if part is None else part.contiguous() for part in gradients]
        if len(parts) < len(ctx.tables) and parts[0] is not None:
            parts = torch.split(parts[0], [table.dim for table in ctx.tables], dim=1)
        for table, bags, gradient in zip(ctx.tables, ctx.bags, parts, strict=False):
            if gradient is not None:
                table.pending.append((bags, gradient))
        return (None,) * (3 + len(ctx.tables))


def join_bags(pending: list[tuple[Bags, Tensor]]) -> tuple[Bags, Tensor]:
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
    weights = None
    if any(bag.weights is not None for bag in bags):
        weights = torch.cat([torch.ones(len(bag.rows)) if bag.weights is None else bag.weights for bag in bags])
    return Bags(rows, weights, offsets), gradients
