"""What every table offers, and the lookup of ids in an id map that all back ends share."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from embeddings.id_map import IdMap
from embeddings.tables import find, kernels
from embeddings.tables.addresses import Floats, Ints, Longs
from embeddings.tables.spec import OptimizerSpec, TableBytes

VECTORS_AT_ONCE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Bags:
    """Rows to be pooled by sum; the tensors are contiguous, the kernels take their addresses.

    Attributes:
        rows: int32 [M], each in ``[0, num_rows)``.
        weights: float32 [M], or None for all ones.
        offsets: int64 [B + 1], bag b is ``rows[offsets[b]:offsets[b + 1]]``; None for M bags of one row.
    """

    rows: Tensor
    weights: Tensor | None
    offsets: Tensor | None

    @property
    def count(self) -> int:
        """B, the number of bags."""
        return self.rows.shape[0] if self.offsets is None else self.offsets.shape[0] - 1

    @functools.cached_property
    def arrays(self) -> tuple[Ints, Floats, Longs]:
        """Rows, weights and offsets as the kernels take them: empty for none."""
        weights = np.empty(0, np.float32) if self.weights is None else self.weights.numpy()
        offsets = np.empty(0, np.int64) if self.offsets is None else self.offsets.numpy()
        return self.rows.numpy(), weights, offsets


class Table(nn.Module, abc.ABC):
    """Embedding rows behind an :class:`IdMap`: the vector of an id is the weighted sum of its rows.

    ``state_dict`` holds ``embedding`` [num_rows, D] and the optimizer's state, under the same names for every back end;
    the id map is saved apart.

    Args:
        id_map: which rows an id has.
        dim: D.
        optimizer: what :meth:`step` applies.

    Attributes:
        pending: bags and gradients float32 [B, D] of the backward passes since the last step.

    Raises:
        ValueError: ``dim`` is below 1, or ``num_rows`` needs more than 31 bits.
    """

    map_rows: Tensor | None
    map_weights: Tensor | None
    map_starts: Tensor | None

    def __init__(self, id_map: IdMap, dim: int, optimizer: OptimizerSpec) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"a table needs dim >= 1, got {dim}")
        if id_map.num_rows >= 2**31:
            raise ValueError(
                f"a table has at most 2^31 - 1 rows, got {id_map.num_rows:,}; compress, or shard the table"
            )
        self.dim = dim
        self.id_map = id_map
        self.num_ids = id_map.num_ids
        self.num_rows = id_map.num_rows
        self.rows_per_id = id_map.rows_per_id
        self.unseen_row = id_map.unseen_row
        self.optimizer = optimizer
        rows, weights = map_tensors(id_map)
        starts = None
        if rows is not None and weights is not None and id_map.weights is not None and not id_map.weights.all():
            used = weights != 0
            starts = torch.nn.functional.pad(used.sum(1).cumsum(0), (1, 0))
            rows, weights = rows[used], weights[used]
        self.register_buffer("map_rows", rows, persistent=False)
        self.register_buffer("map_weights", weights, persistent=False)
        self.register_buffer("map_starts", starts, persistent=False)
        self.pending: list[tuple[Bags, Tensor]] = []

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Look up ids, and pool them by sum where ``offsets`` are given.

        Args:
            ids: int64 [n]; an id outside ``[0, num_ids)`` gets the unseen row.
            offsets: int64 [B + 1] from 0 to n: bag b is ``ids[offsets[b]:offsets[b + 1]]``. An empty bag gives zeros.

        Returns:
            float32 [n, D], or [B, D] with offsets.

        Raises:
            ValueError: A shape or dtype is wrong, or the offsets do not rise from 0 to n.
        """
        return self.pool(self.bags(ids, offsets))

    def bags(self, ids: Tensor, offsets: Tensor | None = None) -> Bags:
        """The rows behind ids, see :meth:`forward`; the id map is not differentiated."""
        return bags_together([self], [ids], [offsets])[0]

    def map_facts(self) -> tuple[int, int, int, int]:
        """The id map as ``find.FIND`` takes it."""
        map_rows = self._buffers["map_rows"]  # ``self.map_rows`` takes longer
        address = 0 if map_rows is None else map_rows.data_ptr()
        return address, self.rows_per_id, self.num_ids, self.unseen_row

    def places(self, ids: Tensor) -> Tensor:
        """Int64 [n]: how many rows each of ids int64 [n] has a weight for, :attr:`rows_per_id` where all do."""
        if self.map_starts is None:
            return torch.full_like(ids, self.rows_per_id)
        known = (ids >= 0) & (ids < self.num_ids)
        return self.map_starts.diff()[torch.where(known, ids, self.num_ids)]

    def used_bags(self, ids: Tensor, offsets: Tensor | None) -> Bags:
        """:meth:`bags` of a map of which some weights are 0: the rows of the others."""
        assert self.map_starts is not None
        assert self.map_rows is not None
        assert self.map_weights is not None
        bounds = np.empty(0, np.int64) if offsets is None else offsets.contiguous().numpy()
        maps = self.map_starts.numpy(), self.map_rows.numpy(), self.map_weights.numpy()
        return Bags(*map(torch.from_numpy, find.find_used(ids.numpy(), bounds, *maps)))

    def weights_and_bounds(self, ids: Tensor, offsets: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Weights of the rows of ids, and the bags of these rows, as :class:`Bags` takes them."""
        bounds = None if offsets is None else offsets.contiguous()
        if self.map_weights is None:
            return None, bounds
        known = (ids >= 0) & (ids < self.num_ids)
        weights = self.map_weights[torch.where(known, ids, self.num_ids)].reshape(-1)
        bounds = torch.arange(len(ids) + 1) if bounds is None else bounds
        return weights, bounds * self.rows_per_id

    @torch.no_grad()
    def vectors(self, ids: Tensor | None = None) -> Tensor:
        """Vectors of ``ids``, or of all ``num_ids`` entities, outside autograd: float32 [n, D]."""
        chosen = torch.arange(self.num_ids) if ids is None else ids
        out = torch.empty(len(chosen), self.dim)
        for start in range(0, len(chosen), VECTORS_AT_ONCE):
            part = slice(start, start + VECTORS_AT_ONCE)
            out[part] = self.pool(self.bags(chosen[part]))
        return out

    @abc.abstractmethod
    def pool(self, bags: Bags) -> Tensor:
        """Float32 [B, D]: the weighted sum of each bag's rows, differentiable in the rows."""

    @abc.abstractmethod
    def weight(self) -> Tensor:
        """[num_rows, D] of what is trained: a view where it is stored as float32 or bfloat16, else a float32 copy."""

    def write(self, values: Tensor, at: Tensor) -> None:
        """Set the rows ``at``, int64 [n], to float32 [n, D], or the nearest that the table can store.

        Raises:
            TypeError: The table does not store whole rows.
        """
        raise TypeError(f"{type(self).__name__} does not store whole rows that could be written")

    @abc.abstractmethod
    def optimizer_state(self) -> dict[str, Tensor]:
        """The tensors of the optimizer, views: ``sum`` for Adagrad, ``exp_avg``, ``exp_avg_sq``, ``steps`` for Adam."""

    @abc.abstractmethod
    def step(self) -> None:
        """Apply the gradients of the backward passes since the last step, as one batch."""

    def set_lr(self, lr: float) -> None:
        """Let later steps use another learning rate; it is not part of ``state_dict``."""
        self.optimizer = dataclasses.replace(self.optimizer, lr=lr)

    def bytes(self) -> TableBytes:
        """Exact sizes of the tensors, by ``nbytes``."""
        maps = (t for t in (self.map_rows, self.map_weights, self.map_starts) if t is not None)
        states = (t.nbytes for name, t in self.optimizer_state().items() if name != "steps")
        return TableBytes(self._weight_bytes(), sum(states), sum(t.nbytes for t in maps))

    def _weight_bytes(self) -> int:
        return self.weight().nbytes


def bags_together(tables: Sequence[Table], ids: Sequence[Tensor], offsets: Sequence[Tensor | None]) -> list[Bags]:
    """:meth:`Table.bags` of several tables in one compiled call."""
    bags, finds, _kept = bags_to_find(tables, ids, offsets)
    find_rows(bags, finds)
    return bags


def find_rows(bags: Sequence[Bags], finds: kernels.Jobs) -> None:
    """Write the rows of bags of :func:`bags_to_find`."""
    counts = [bag.rows.shape[0] for bag in bags]
    with kernels.threads_for(sum(counts)) as threads:
        find.find_rows(finds, kernels.parts_for(counts, threads))


def bags_to_find(
    tables: Sequence[Table], ids: Sequence[Tensor], offsets: Sequence[Tensor | None]
) -> tuple[list[Bags], kernels.Jobs, list[Tensor]]:
    """:meth:`Table.bags` of several tables before their rows are found.

    Returns:
        bags: whose rows have any numbers.
        finds: ``find.FIND`` [T] that writes them; of no ids for a table whose rows are found already.
        ids: what it reads, to be kept until then.
    """
    checked: tuple[Tensor | None, int] = (None, 0)  # tables often share their offsets
    ids, bags, jobs = list(ids), [], []
    for t, (table, bounds) in enumerate(zip(tables, offsets, strict=True)):
        if ids[t].ndim != 1 or ids[t].dtype != torch.int64:
            raise ValueError(f"a table takes ids of shape [n] and dtype int64, got {list(ids[t].shape)} {ids[t].dtype}")
        ids[t], count = ids[t].contiguous(), ids[t].shape[0]
        if bounds is not None and (checked[0] is not bounds or checked[1] != count):
            _check_offsets(bounds, count)
            checked = bounds, count
        if table.map_starts is not None:
            bags.append(table.used_bags(ids[t], bounds))
            jobs.append((0, 0, *table.map_facts(), 0))
            continue
        found = torch.empty(count * table.rows_per_id, dtype=torch.int32)
        bags.append(Bags(found, *table.weights_and_bounds(ids[t], bounds)))
        jobs.append((ids[t].data_ptr(), count, *table.map_facts(), found.data_ptr()))
    return bags, kernels.records(jobs, find.FIND), ids


def map_tensors(id_map: IdMap) -> tuple[Tensor | None, Tensor | None]:
    """Int32 rows [N + 1, H] and float32 weights [N + 1, H], with the unseen id last.

    The rows are None for the identity, the weights are None for one row of weight one.
    """
    unseen = np.array([id_map.num_ids])
    weights = None
    if id_map.rows_per_id > 1 or id_map.weights is not None:
        known = np.ones_like(id_map.rows, np.float32) if id_map.weights is None else id_map.weights
        weights = torch.from_numpy(np.concatenate([known, id_map.lookup_weights(unseen)]).astype(np.float32))
    elif np.array_equal(id_map.rows[:, 0], np.arange(id_map.num_ids)):
        return None, None
    rows = np.concatenate([id_map.rows, id_map.lookup(unseen)])
    return torch.from_numpy(rows.astype(np.int32)), weights


def _check_offsets(offsets: Tensor, ids: int) -> None:
    if offsets.ndim != 1 or offsets.dtype != torch.int64 or offsets.shape[0] < 1:
        raise ValueError(f"offsets must have shape [B + 1] and dtype int64, got {list(offsets.shape)} {offsets.dtype}")
    bounds = offsets.numpy()
    if bounds[0] != 0 or bounds[-1] != ids:
        raise ValueError(
            f"offsets must run from 0 to the number of ids, {ids}, got {bounds[0]} to {bounds[-1]};"
            " give B + 1 offsets, the last one included"
        )
    bag = find.first_fall(bounds)
    if bag >= 0:
        raise ValueError(f"offsets must not fall, but bag {bag} runs from {bounds[bag]} to {bounds[bag + 1]}")
