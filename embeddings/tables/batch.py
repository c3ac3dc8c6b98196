"""Several tables in one call, which saves the cost of a call for each; with one table it is that table's own call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from embeddings.tables.collected_table import CollectedTable, pool_collected
from embeddings.tables.table import Bags, Table, bags_to_find, find_rows
from embeddings.tables.torch_table import TorchTable, pool_together, step_together


def look_up(
    tables: Sequence[Table],
    ids: Sequence[Tensor],
    offsets: Sequence[Tensor | None] | None = None,
    weights: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, ...]:
    """What each table gives for its ids; same numbers as one table after the other.

    Args:
        tables: T of them, of any back ends.
        ids: T times int64 [n], as :meth:`Table.forward` takes them.
        offsets: T times int64 [B + 1] or None; None for T times None.
        weights: T times float32 [n], of the ids in the sum of their bag, or None for all ones; None for T times None.

    Returns:
        T times float32 [n, D], or [B, D] with offsets.

    Raises:
        ValueError: The sequences have different lengths, ids or offsets are wrong (see :meth:`Table.forward`), or the
            weights of a table are not one for each id.
    """
    bounds: Sequence[Tensor | None] = [None] * len(tables) if offsets is None else offsets
    if not len(tables) == len(ids) == len(bounds):
        raise ValueError(
            f"look_up takes ids and offsets for each table, got {len(tables)} tables, {len(ids)} ids and"
            f" {len(bounds)} offsets"
        )
    bags, finds, _kept = bags_to_find(tables, ids, bounds)
    if weights is not None:
        parts = zip(bags, weights, tables, ids, strict=True)
        bags = [bag if weight is None else _weighted(bag, weight, table.places(i)) for bag, weight, table, i in parts]
    fused = [table for table in tables if isinstance(table, TorchTable)]
    if len(fused) == len(tables):
        return pool_together(fused, bags, finds)
    find_rows(bags, finds)
    collected = [table for table in tables if isinstance(table, CollectedTable)]
    if len(collected) == len(tables):
        return pool_collected(collected, bags)
    return tuple(table.pool(bag) for table, bag in zip(tables, bags, strict=True))


def look_up_joined(tables: Sequence[Table], ids: Sequence[Tensor]) -> Tensor:
    """What each table gives for its ids, side by side, where rows on the torch back end are written in place.

    Args:
        tables: T of them, of any back ends.
        ids: T times int64 [n].

    Returns:
        Float32 [n, sum of D].

    Raises:
        ValueError: There is no table, or not as many ids for each, or they are wrong (see :meth:`Table.forward`).
    """
    counts = [part.numel() for part in ids]
    if len(counts) != len(tables) or len(set(counts)) != 1:
        raise ValueError(f"look_up_joined takes as many ids for each of {len(tables)} tables, got {counts}")
    fused = [table for table in tables if isinstance(table, TorchTable)]
    if len(fused) < len(tables):
        return torch.cat(look_up(tables, ids), 1)
    bags, finds, _kept = bags_to_find(tables, ids, [None] * len(tables))
    return pool_together(fused, bags, finds, joined=True)[0]


def _weighted(bags: Bags, weights: Tensor, places: Tensor) -> Bags:
    """Bags whose ids, with int64 ``places`` [n] rows each, count ``weights`` [n] times."""
    if weights.shape != places.shape or weights.dtype != torch.float32:
        raise ValueError(
            f"weights must be float32 [{len(places)}], one for each id, got {weights.dtype} {list(weights.shape)}"
        )
    spread = weights.repeat_interleave(places)
    offsets = torch.arange(len(bags.rows) + 1) if bags.offsets is None else bags.offsets  # a weight is one of a bag
    return Bags(bags.rows, spread if bags.weights is None else spread * bags.weights, offsets)


def step_all(tables: Sequence[Table]) -> None:
    """:meth:`Table.step` of every table."""
    step_together([table for table in tables if isinstance(table, TorchTable)])
    for table in tables:
        if not isinstance(table, TorchTable):
            table.step()
