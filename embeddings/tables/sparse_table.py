"""A table that stores some of its entries, with optimizer state for no others, and may change which ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from embeddings.id_map import IdMap
from embeddings.sparsity import RowGroups, Sparsity, entries
from embeddings.tables import kernels, regrow, sparse_kernels
from embeddings.tables.kept_gradients import Lookup, join_bags
from embeddings.tables.masked_vector import WORD
from embeddings.tables.memory import empty_pages, keep_freed_memory
from embeddings.tables.spec import OptimizerSpec, TableBytes
from embeddings.tables.table import Bags, Table
from embeddings.tables.torch_table import STATES

Words = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]

_ROWS_AT_ONCE = 1 << 12
_BY_VALUE = ("sum", "exp_avg", "exp_avg_sq")
"""Optimizer state that lies beside the values, unless it is by row."""


class SparseTable(Table):
    """Rows of which only the entries of a mask exist; the others are 0, have no state, and take no memory.

    An entry costs 4 bytes and its optimizer state; a row costs half a byte and one bit a column (in words of 16). The
    formulas are those of :class:`OptimizerSpec` over the stored entries: the mean of row-wise Adagrad is over these,
    and Adam moves all of them.

    With a schedule, :meth:`step` counts its calls and moves entries: the smallest in magnitude are dropped, and as many
    that were not stored grow at 0 with state 0, among them such as were just dropped. Only entries with a gradient in
    the window can grow, so no more move than have one. Equal magnitudes go in the order of the table.

    Args:
        id_map: which rows an id has.
        dim: D.
        optimizer: what :meth:`step` applies.
        mask: uint16 [num_rows, ceil(D / 16)], bit c of word w is column 16 w + c.
        values: float32 [nnz] of the set bits, row by row.
        sparsity: how entries move; None for a mask that stays.
        growth_seed: of growth at random.

    Attributes:
        window_peak: int64, bytes of the gradients kept for an update, the most there ever were.

    Raises:
        ValueError: The mask does not fit the id map, the dimension or the values, or the optimizer is lazy Adam.
    """

    mask: Tensor
    starts: Tensor
    sum: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: Tensor
    growth_seed: Tensor
    window_rows: Tensor
    window_gradients: Tensor
    window_peak: Tensor
    _room: tuple[npt.NDArray[np.int32], Floats]
    _slots: npt.NDArray[np.int32]

    def __init__(
        self, id_map: IdMap, dim: int, optimizer: OptimizerSpec, mask: Words, values: Tensor,
        sparsity: Sparsity | None = None, growth_seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(id_map, dim, optimizer)
        if optimizer.name == "lazy_adam":
            raise ValueError("a sparse table has no lazy_adam; use adam, which moves all stored entries, or an Adagrad")
        keep_freed_memory()
        _check(mask, values, id_map.num_rows, dim)
        self.sparsity = sparsity
        self.values = nn.Parameter(values)
        self.register_buffer("mask", torch.from_numpy(mask.view(np.int16)))
        self.register_buffer("starts", torch.from_numpy(sparse_kernels.block_starts(mask)), persistent=False)
        for name in STATES[optimizer.name]:
            if name != "steps":
                rows = optimizer.name == "rowwise_adagrad"
                self.register_buffer(name, empty_pages((id_map.num_rows,) if rows else values.shape).zero_())
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("growth_seed", torch.tensor(growth_seed))
        self.register_buffer("window_peak", torch.tensor(0))
        self._clear_window()

    @property
    def nnz(self) -> int:
        """Stored entries."""
        return self.values.numel()

    def pool(self, bags: Bags) -> Tensor:
        """Float32 [B, D]: the weighted sum of each bag's rows."""
        pooled: tuple[Tensor] = Lookup.apply(_pool, [self], [bags], self.values)  # type: ignore[no-untyped-call]
        return pooled[0]

    def weight(self) -> Tensor:
        """Float32 [num_rows, D], a full copy with zeros; for export and tests."""
        out = torch.zeros(self.num_rows, self.dim)
        out[self.stored()] = self.values.detach()
        return out

    def stored(self) -> Tensor:
        """Bool [num_rows, D]: which entries are stored."""
        bits = np.unpackbits(self._mask().view(np.uint8), axis=1, bitorder="little")
        return torch.from_numpy(bits[:, : self.dim].astype(np.bool_))

    def optimizer_state(self) -> dict[str, Tensor]:
        """See :meth:`Table.optimizer_state`; [num_rows] if row-wise, else [nnz] beside the values."""
        return {name: getattr(self, name) for name in STATES[self.optimizer.name]}

    def bytes(self) -> TableBytes:
        """Exact sizes; the weights with their mask, the optimizer with the gradients kept for the next update."""
        sizes = super().bytes()
        return dataclasses.replace(sizes, optimizer=sizes.optimizer + self._window_bytes())

    def _window_bytes(self) -> int:
        return self.window_rows.nbytes + self.window_gradients.nbytes

    def _weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.values, self.mask, self.starts))

    @torch.no_grad()
    def step(self) -> None:
        """Apply the gradients of the backward passes since the last step, as one batch; move entries where due."""
        if not self.pending:
            return
        bags, gradient = join_bags(self.pending)
        self.pending.clear()
        self.steps += 1
        step = int(self.steps)
        if self.sparsity is not None and self.sparsity.observes(step):
            self._observe(bags, gradient.numpy())
        self._update(bags, gradient.numpy())
        if self.sparsity is not None and self.sparsity.schedule is not None:
            share = self.sparsity.schedule.share(step)
            if share:
                self._move(math.ceil(share * self.nnz))

    def _update(self, bags: Bags, gradient: Floats) -> None:
        spec, mask, starts = self.optimizer, self._mask(), self.starts.numpy()
        if spec.name == "adam":
            pairs, weights = kernels.group_by_row(*bags.arrays, self.num_rows, 0, 1)
            packed = np.zeros(self.nnz, np.float32)
            sparse_kernels.pack_rows(mask, starts, *sparse_kernels.row_gradients(pairs, weights, gradient), packed)
            (b1, b2), steps = spec.betas, int(self.steps)
            sparse_kernels.adam_values(
                self._values(), self.exp_avg.numpy(), self.exp_avg_sq.numpy(), packed, (np.float32(b1), np.float32(b2)),
                np.float32(spec.lr / (1 - b1**steps)), np.float32(math.sqrt(1 - b2**steps)), np.float32(spec.eps),
                np.float32(spec.weight_decay),
            )  # fmt: skip
            return
        state = self.sum.numpy() if spec.name != "sgd" else np.empty(0, np.float32)
        rates = np.array([spec.lr, spec.eps, spec.weight_decay], np.float32)
        with kernels.threads_for(len(bags.rows)) as parts:
            sparse_kernels.update_sparse(
                mask, starts, self._values(), state, *bags.arrays, gradient, kernels.KINDS[spec.name], rates, parts
            )

    def _observe(self, bags: Bags, gradient: Floats) -> None:
        """Add the gradient of the touched rows, all columns, to those of the window."""
        assert self.sparsity is not None
        pairs, weights = kernels.group_by_row(*bags.arrays, self.num_rows, 0, 1)
        rows, sums = sparse_kernels.row_gradients(pairs, weights, gradient)
        if self.sparsity.growth == "gradient":
            np.abs(sums, out=sums)
        if self.sparsity.growth == "momentum":
            self.window_gradients.mul_(self.sparsity.momentum)
        used = len(self.window_rows)
        needed = min(used + len(rows), self.num_rows)
        if needed > len(self._room[0]):
            capacity = min(max(needed, 2 * used), self.num_rows)
            room = np.empty(capacity, np.int32), np.empty((capacity, self.dim), np.float32)
            for new, old in zip(room, (self.window_rows, self.window_gradients), strict=True):
                new[:used] = old.numpy()
            self._room = room
        if len(self._slots) == 0:
            self._slots = np.full(self.num_rows, -1, np.int32)
            self._slots[self.window_rows.numpy()] = np.arange(used)
        used = sparse_kernels.add_to_window(rows, sums, self._slots, used, *self._room)
        self.window_rows, self.window_gradients = (torch.from_numpy(part[:used]) for part in self._room)
        self.window_peak.clamp_(min=self._window_bytes())

    def _move(self, count: int) -> None:
        """Drop the smallest ``count`` entries, or as many as can grow, and grow as many."""
        assert self.sparsity is not None
        mask, values = self._mask(), self._values()
        rows, scores = self.window_rows.numpy(), self.window_gradients.numpy()
        at_random = self.sparsity.growth == "random"
        free = self.num_rows * self.dim - self.nnz
        candidates = free if at_random else regrow.count_candidates(mask, rows, scores)
        count = min(count, candidates)
        kept = regrow.drop_below(mask, values, *regrow.select_smallest(values, count))
        grown = kept.copy()
        if at_random:
            self._grow_at_random(grown, count)
        else:
            regrow.hide_stored(kept, rows, scores)
            regrow.grow_above(grown, rows, scores, *regrow.select_largest(scores.reshape(-1), count))
        for name in _BY_VALUE:
            state = getattr(self, name, None)
            if state is not None and self.optimizer.name != "rowwise_adagrad":
                setattr(self, name, torch.from_numpy(regrow.carry(mask, kept, grown, state.numpy())))
        self.values.data = torch.from_numpy(regrow.carry(mask, kept, grown, values))
        self.mask = torch.from_numpy(grown.view(np.int16))
        self._clear_window()
        self._find_starts()

    def _grow_at_random(self, mask: Words, count: int) -> None:
        """Grow ``count`` entries that are not stored, each as likely as any other."""
        key = np.array([int(self.growth_seed), int(self.steps)], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        while count:
            places = rng.integers(0, self.num_rows * self.dim, 2 * count + WORD)
            count -= regrow.grow_at(mask, places, self.dim, count)

    def _clear_window(self) -> None:
        self.register_buffer("window_rows", torch.empty(0, dtype=torch.int32))
        self.register_buffer("window_gradients", torch.empty(0, self.dim))
        self._forget_room()

    def _forget_room(self) -> None:
        """The window's memory, which grows with it, and the place of each row in it; made again when needed."""
        self._room = np.empty(0, np.int32), np.empty((0, self.dim), np.float32)
        self._slots = np.empty(0, np.int32)

    def _find_starts(self) -> None:
        self.starts = torch.from_numpy(sparse_kernels.block_starts(self._mask()))

    def _mask(self) -> Words:
        return self.mask.numpy().view(np.uint16)

    def _values(self) -> Floats:
        values: Floats = self.values.detach().numpy()
        return values

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """The window may have any number of rows; the starts follow from the mask."""
        for name in ("window_rows", "window_gradients"):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        peak = int(self.window_peak)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.window_peak.clamp_(min=peak)
        self._forget_room()
        self._find_starts()


def _pool(tables: Sequence[SparseTable], bags: Sequence[Bags]) -> tuple[Tensor, ...]:
    (table,), (bag,) = tables, bags
    pooled = torch.empty(bag.count, table.dim)
    with kernels.threads_for(len(bag.rows)) as parts:
        sparse_kernels.pool_sparse(
            table._mask(), table.starts.numpy(), table._values(), *bag.arrays, pooled.numpy(), parts
        )
    return (pooled,)


def draw_sparse_table(
    id_map: IdMap, dim: int, optimizer: OptimizerSpec, sparsity: Sparsity, *, init_std: float,
    generator: np.random.Generator, groups: RowGroups | None = None,
) -> SparseTable:  # fmt: skip
    """A table with normal values at random columns, as many in each row but for rounding; no full table is made.

    With density 1 the values are those of the torch back end.

    Args:
        id_map: which rows an id has.
        dim: D.
        optimizer: what :meth:`Table.step` applies.
        sparsity: density, and how entries move.
        init_std: standard deviation of the values.
        generator: draws values, columns and the seed of growth.
        groups: rows that start with the same columns; None for columns that each row draws.
    """
    rows, nnz = id_map.num_rows, entries(sparsity.density, id_map.num_rows, dim)
    values = empty_pages((nnz,))
    generator.standard_normal(out=values.numpy(), dtype=np.float32)
    mask = np.zeros((rows, -(-dim // WORD)), np.uint16)
    for first in range(0, rows, _ROWS_AT_ONCE):
        bounds = np.arange(first, min(first + _ROWS_AT_ONCE, rows) + 1) * nnz // rows
        if groups is None:
            random = generator.integers(0, 1 << 62, (len(bounds) - 1, dim))
        else:
            random = groups.draws[groups.of_row[first : first + _ROWS_AT_ONCE]]
        sparse_kernels.draw_mask(np.diff(bounds), random, dim, mask[first : first + _ROWS_AT_ONCE])
    return SparseTable(
        id_map, dim, optimizer, mask, values.mul_(init_std), sparsity, int(generator.integers(0, 1 << 62))
    )


def prune(table: Table, density: float, optimizer: OptimizerSpec | None = None) -> SparseTable:
    """The largest entries of a trained table.

    Args:
        table: any back end.
        density: share of the entries that are kept, of the whole table.
        optimizer: to train what is left, with new state; None for lookups only.
    """
    return prune_rows(table.weight(), table.id_map, density, optimizer)


def prune_rows(rows: Tensor, id_map: IdMap, density: float, optimizer: OptimizerSpec | None = None) -> SparseTable:
    """As :func:`prune`, of float32 [num_rows, D]."""
    weight, dim = rows.numpy(), rows.shape[1]
    threshold, ties = regrow.select_largest(weight.reshape(-1), entries(density, *weight.shape))
    mask = np.zeros((len(weight), -(-dim // WORD)), np.uint16)
    regrow.grow_above(mask, np.arange(len(weight), dtype=np.int32), weight, threshold, ties)
    stored = np.unpackbits(mask.view(np.uint8), axis=1, bitorder="little")[:, :dim].astype(np.bool_)
    values = torch.from_numpy(weight[stored])
    return SparseTable(id_map, dim, optimizer or OptimizerSpec("sgd"), mask, values)


def _check(mask: Words, values: Tensor, rows: int, dim: int) -> None:
    shape = (rows, -(-dim // WORD))
    if mask.shape != shape or mask.dtype != np.uint16:
        raise ValueError(f"mask must be uint16 {list(shape)}, got {mask.dtype} {list(mask.shape)}")
    bits = int(sparse_kernels.block_starts(mask)[-1])
    if values.shape != (bits,) or values.dtype != torch.float32:
        raise ValueError(
            f"values must be float32 [{bits}], one for each bit of the mask, got {values.dtype} {list(values.shape)}"
        )
    beyond = dim % WORD and int((mask[:, -1] >> np.uint16(dim % WORD)).max())
    if beyond:
        raise ValueError(f"mask has bits beyond column {dim - 1}; a table of dim {dim} has none there")
