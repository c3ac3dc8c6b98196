"""Negative samplers and the order of an epoch: pure functions of a seed and counters."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from recsys.rng import generator

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

_REJECTION_ROUNDS = 16


@dataclasses.dataclass(frozen=True)
class NegativeSampling:
    """How negatives are drawn.

    Attributes:
        alpha: items are proposed in proportion to (training interactions) ** alpha; 0 is uniform over the catalogue.
        count: negatives per positive, or per draw when shared.
        shared: one draw for the whole batch, or for each group of it.
        group: positives that share a draw, about; None is the whole batch.
        reject_positives: never use a known positive of the user: redrawn, or masked when shared.
    """

    alpha: float = 0.0
    count: int = 256
    shared: bool = True
    reject_positives: bool = False
    group: int | None = None

    def groups(self, positives: int) -> list[slice]:
        """Near-equal parts of a batch, each with a draw of its own."""
        parts = 1 if self.group is None else max(1, -(-positives // self.group))
        bounds = [positives * part // parts for part in range(parts + 1)]
        return [slice(low, high) for low, high in itertools.pairwise(bounds)]


@dataclasses.dataclass(frozen=True)
class Draw:
    """Sampled negatives.

    Attributes:
        items: int64 [M] if shared, else [B, M].
        log_q: float32 of the same shape, exact log of the proposal probability.
        hits: int64 (rows, columns) of known positives among shared negatives, rows ascending, or None.
    """

    items: IntArray
    log_q: FloatArray
    hits: tuple[IntArray, IntArray] | None = None


class NegativeSampler:
    """Draws negatives for batches of one training matrix."""

    def __init__(self, train: csr_array, sampling: NegativeSampling, *, seed: int) -> None:
        """Prepare the proposal distribution.

        Args:
            train: csr [users, items] with sorted indices.
            sampling: how to draw.
            seed: of the run.

        Raises:
            ValueError: ``reject_positives`` and a user who interacted with every item that can be proposed.
        """
        self.sampling = sampling
        self._seed = seed
        self._train = train
        self._items = int(train.shape[1])
        self._counts = np.bincount(train.indices, minlength=self._items).astype(np.int64)
        weights = self._counts.astype(np.float64) ** sampling.alpha
        if sampling.alpha > 0:
            weights[self._counts == 0] = 0.0
        self._probability = weights / weights.sum()
        self._support = np.flatnonzero(self._probability)
        self._cumulative = np.cumsum(self._probability[self._support])
        with np.errstate(divide="ignore"):
            self._log_q = np.log(self._probability)
        if sampling.reject_positives:
            self._prepare_rejection()

    def _prepare_rejection(self) -> None:
        users = np.repeat(np.arange(self._train.shape[0], dtype=np.int64), np.diff(self._train.indptr))
        self._keys = users * self._items + self._train.indices
        proposable = self._probability[self._train.indices] > 0
        known = np.bincount(users[proposable], minlength=self._train.shape[0])
        full = np.flatnonzero(known >= len(self._support))
        if full.size:
            raise ValueError(
                f"reject_positives needs an item without interaction for every user, but user {full[0]} has all"
                f" {len(self._support):,} items that can be drawn ({full.size:,} such users);"
                " drop these users or set negatives.reject_positives: false"
            )
        mass = np.bincount(users, weights=self._probability[self._train.indices], minlength=self._train.shape[0])
        self._log_free = np.log1p(-np.minimum(mass, 1.0 - 1e-12))

    def knowledge(self) -> dict[str, IntArray]:
        """All that it knows of the interactions, for an audit.

        Returns:
            ``counts`` int64 [items], which the proposals are made from; ``known`` int64 [n, 2], the (user, item) pairs
            that are never used, where positives are rejected.
        """
        if not self.sampling.reject_positives:
            return {"counts": self._counts}
        known = np.stack([self._keys // self._items, self._keys % self._items], axis=1)
        return {"counts": self._counts, "known": known}

    def draw(self, users: IntArray, *counters: str | int) -> Draw:
        """Negatives for the positives of ``users``; the same counters give the same draw.

        Args:
            users: int64 [B].
            counters: name the batch, for example ("select", epoch, step).
        """
        rng = generator(self._seed, "negatives", *counters)
        if self.sampling.shared:
            items = self._propose(rng, self.sampling.count)
            hits = self._hits(users, items) if self.sampling.reject_positives else None
            return Draw(items, self._log_q[items].astype(np.float32), hits)
        items = self._propose(rng, len(users) * self.sampling.count)
        owners = np.repeat(users, self.sampling.count)
        log_q = self._log_q
        if not self.sampling.reject_positives:
            shape = (len(users), self.sampling.count)
            return Draw(items.reshape(shape), log_q[items].astype(np.float32).reshape(shape))
        self._redraw_positives(rng, owners, items)
        conditional = (log_q[items] - self._log_free[owners]).astype(np.float32)
        return Draw(items.reshape(len(users), -1), conditional.reshape(len(users), -1))

    def _propose(self, rng: np.random.Generator, count: int) -> IntArray:
        if self.sampling.alpha == 0:
            return rng.integers(0, self._items, count, dtype=np.int64)
        drawn = np.searchsorted(self._cumulative, rng.random(count) * self._cumulative[-1], side="right")
        items: IntArray = self._support[np.minimum(drawn, len(self._support) - 1)]
        return items

    def _is_positive(self, users: IntArray, items: IntArray) -> npt.NDArray[np.bool_]:
        keys = users * self._items + items
        place = np.minimum(np.searchsorted(self._keys, keys), max(len(self._keys) - 1, 0))
        found: npt.NDArray[np.bool_] = self._keys[place] == keys
        return found

    def _redraw_positives(self, rng: np.random.Generator, owners: IntArray, items: IntArray) -> None:
        pending = np.flatnonzero(self._is_positive(owners, items))
        for _ in range(_REJECTION_ROUNDS):
            if not pending.size:
                return
            items[pending] = self._propose(rng, pending.size)
            pending = pending[self._is_positive(owners[pending], items[pending])]
        for place in pending:
            user = owners[place]
            known = self._train.indices[self._train.indptr[user] : self._train.indptr[user + 1]]
            free = np.setdiff1d(self._support, known, assume_unique=True)
            weights = self._probability[free]
            items[place] = rng.choice(free, p=weights / weights.sum())

    def _hits(self, users: IntArray, items: IntArray) -> tuple[IntArray, IntArray]:
        order = np.argsort(items, kind="stable")
        ordered = items[order]
        start, count = self._train.indptr[users].astype(np.int64), np.diff(self._train.indptr)[users].astype(np.int64)
        rows = np.repeat(np.arange(len(users)), count)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        known = self._train.indices[np.repeat(start, count) + within]
        left, right = np.searchsorted(ordered, known, "left"), np.searchsorted(ordered, known, "right")
        repeats = right - left
        hit_rows = np.repeat(rows, repeats)
        offset = np.arange(len(hit_rows)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        return hit_rows, order[np.repeat(left, repeats) + offset]


def epoch_order(count: int, *, seed: int, phase: str, epoch: int) -> IntArray:
    """Permutation int64 [count] of the interactions in one epoch, the same for the same arguments."""
    return generator(seed, "order", phase, epoch).permutation(count)


def user_order(indptr: npt.NDArray[np.integer], *, seed: int, phase: str, epoch: int) -> IntArray:
    """As many interactions int64 [nnz] as there are: each a random one of a random user, as LightGCN's code draws them.

    A user with few interactions then counts as much as one with many, as in a recall that is the mean over users.

    Args:
        indptr: [users + 1] of the csr matrix of the interactions.
        seed: of the run.
        phase: names the draws, with the epoch.
        epoch: 0-based.
    """
    rng, counts = generator(seed, "users", phase, epoch), np.diff(indptr).astype(np.int64)
    active = np.flatnonzero(counts)
    users = active[rng.integers(0, active.size, int(indptr[-1]))]
    return indptr[users].astype(np.int64) + (rng.random(users.size) * counts[users]).astype(np.int64)


def log_popularity(train: csr_array, *, by_user: bool = False) -> FloatArray:
    """Log share of an item among the positives of an epoch, float32 [items]; one without any counts as half of one.

    Args:
        train: csr [users, items], the interactions.
        by_user: the positives are those of :func:`user_order`, else every interaction once.
    """
    weights = None
    if by_user:
        counts = np.diff(train.indptr)
        weights = np.repeat(train.nnz / (np.maximum(counts, 1) * max(np.count_nonzero(counts), 1)), counts)
    drawn = np.bincount(train.indices, weights, minlength=train.shape[1])
    return np.log(np.where(drawn > 0, drawn, 0.5) / max(train.nnz, 1)).astype(np.float32)
