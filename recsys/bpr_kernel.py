"""LearnBPR on all cores with the result of one: stochastic gradient descent over blocks that share no row.

Users and items are cut into K blocks each, anew in every epoch. In stratum s, block b of the users meets block
(b + s) mod K of the items: the K pairs of a stratum touch disjoint rows, so they run at the same time without locks
and in any order (Gemulla et al. 2011, DSGD), and a pair's rows stay in a core's cache. The negative of a triple comes
from the item block of its positive; as the blocks are random, negatives are uniform over the catalogue, but for one
thing: a positive meets itself, which is no step, once in a block's items and not once in the catalogue's. Tables of
fewer than 24 rows have fewer blocks, so that a step is left.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt

BprOptimizer = Literal["sgd", "rowwise_adagrad", "adagrad"]
BLOCKS = 8
_SMALLEST_BLOCK = 3
"""Rows: in a block of one row the only negative of an item is that item."""

_KINDS: dict[str, int] = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": 2}
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class BprTable:
    """One side of the factorisation, updated in place.

    Attributes:
        rows: int32 [ids], the row of each id; several ids may share one.
        weight: float32 [R, D], C-contiguous.
        state: float32 [R, D] for Adagrad, [R, 1] for row-wise Adagrad, [1, 1] (unused) for SGD.
    """

    rows: Ints
    weight: Floats
    state: Floats


@dataclasses.dataclass(frozen=True)
class BprStep:
    """Step size and regularisation: the gradient of a row is that of the loss plus ``weight_decay * row``."""

    optimizer: BprOptimizer
    lr: float
    weight_decay: float = 0.0
    eps: float = 1e-8


def bpr_epoch(
    users: BprTable, items: BprTable, indptr: Ints, indices: Ints, step: BprStep, rng: np.random.Generator
) -> float:
    """One pass of LearnBPR over all interactions, one uniform negative each (Rendle et al. 2009, fig. 4).

    The result depends on ``rng`` only, not on the number of threads.

    Args:
        users: table of the users.
        items: table of the items.
        indptr: int32 [users + 1] of the training CSR.
        indices: int32 [interactions] of the training CSR.
        step: how to update.
        rng: of the epoch.

    Returns:
        Mean of ``-ln sigmoid(s_ui - s_uj)``, each before its update; NaN or infinite if the training diverged.
    """
    user_block = _random_blocks(len(users.weight), rng)[users.rows]
    item_block = _random_blocks(len(items.weight), rng)[items.rows]
    candidates = np.argsort(item_block, kind="stable").astype(np.int32)
    candidate_ends = np.searchsorted(item_block[candidates], np.arange(BLOCKS + 1)).astype(np.int64)
    pair_users, pair_items, ends = _group(indptr, indices, user_block, item_block)
    seeds = rng.integers(0, 1 << 63, BLOCKS * BLOCKS, dtype=np.uint64)
    losses = np.zeros((BLOCKS * BLOCKS, 8))
    _strata(
        (users.rows, users.weight, users.state),
        (items.rows, items.weight, items.state),
        (pair_users, pair_items, ends),
        (candidates, candidate_ends),
        (_KINDS[step.optimizer], np.float32(step.lr), np.float32(step.weight_decay), np.float32(step.eps)),
        seeds,
        losses,
    )
    return float(losses[:, 0].sum() / len(indices))


def _random_blocks(rows: int, rng: np.random.Generator) -> npt.NDArray[np.int8]:
    blocks = max(1, min(BLOCKS, rows // _SMALLEST_BLOCK))
    block = np.empty(rows, dtype=np.int8)
    block[rng.permutation(rows)] = np.arange(rows) * blocks // rows
    return block


@numba.njit(cache=True)
def _group(indptr: Any, indices: Any, user_block: Any, item_block: Any) -> Any:
    """Counting sort of the interactions by (user block, item block)."""
    ends = np.zeros(BLOCKS * BLOCKS + 1, np.int64)
    for user in range(len(indptr) - 1):
        for place in range(indptr[user], indptr[user + 1]):
            ends[user_block[user] * BLOCKS + item_block[indices[place]] + 1] += 1
    ends = np.cumsum(ends)
    free = ends.copy()
    pair_users, pair_items = np.empty(len(indices), np.int32), np.empty(len(indices), np.int32)
    for user in range(len(indptr) - 1):
        for place in range(indptr[user], indptr[user + 1]):
            pair = user_block[user] * BLOCKS + item_block[indices[place]]
            pair_users[free[pair]], pair_items[free[pair]] = user, indices[place]
            free[pair] += 1
    return pair_users, pair_items, ends


@numba.njit(cache=True, parallel=True)
def _strata(users: Any, items: Any, pairs: Any, candidates: Any, step: Any, seeds: Any, losses: Any) -> None:
    for stratum in range(BLOCKS):
        for block in numba.prange(BLOCKS):
            pair = block * BLOCKS + (block + stratum) % BLOCKS
            first, last = pairs[2][pair], pairs[2][pair + 1]
            item_block = pair % BLOCKS
            low, high = candidates[1][item_block], candidates[1][item_block + 1]
            if low < high:
                losses[pair, 0] = _block(
                    users, items, pairs[0][first:last], pairs[1][first:last], candidates[0][low:high], step, seeds[pair]
                )


@numba.njit(cache=True)
def _draw(state: Any, bound: int) -> Any:
    """Next splitmix64 state (Steele et al. 2014) and an integer in [0, bound) from its upper half."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return state, np.int64(((z >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def _block(users: Any, items: Any, pair_users: Any, pair_items: Any, candidates: Any, step: Any, state: Any) -> float:
    """Plain sequential SGD over one pair of blocks, in an order shuffled in place (Fisher-Yates)."""
    user_rows, user_weight, user_state = users
    item_rows, item_weight, item_state = items
    kind, lr, decay, eps = step
    dim = user_weight.shape[1]
    one = np.float32(1.0)
    total = 0.0
    for left in range(len(pair_users) - 1, -1, -1):
        state, place = _draw(state, left + 1)
        user, positive = pair_users[place], pair_items[place]
        pair_users[place], pair_items[place] = pair_users[left], pair_items[left]
        state, place = _draw(state, len(candidates))
        u, i, j = user_rows[user], item_rows[positive], item_rows[candidates[place]]
        if i == j:
            total += math.log(2.0)
            continue
        margin: Any = np.float32(0.0)
        for d in range(dim):
            margin += user_weight[u, d] * (item_weight[i, d] - item_weight[j, d])
        odds = np.float32(math.exp(-abs(margin)))
        total += math.log1p(odds) + max(-margin, np.float32(0.0))
        pull = odds / (one + odds) if margin >= 0 else one / (one + odds)
        if kind == 0:
            for d in range(dim):
                wu, wi, wj = user_weight[u, d], item_weight[i, d], item_weight[j, d]
                user_weight[u, d] = wu + lr * (pull * (wi - wj) - decay * wu)
                item_weight[i, d] = wi + lr * (pull * wu - decay * wi)
                item_weight[j, d] = wj - lr * (pull * wu + decay * wj)
        else:
            _adagrad(
                user_weight[u],
                item_weight[i],
                item_weight[j],
                user_state[u],
                item_state[i],
                item_state[j],
                pull,
                kind,
                lr,
                decay,
                eps,
            )
    return total


@numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def _adagrad(
    wu: Any, wi: Any, wj: Any, su: Any, si: Any, sj: Any, pull: Any, kind: int, lr: Any, decay: Any, eps: Any
) -> None:
    """Adagrad of the three rows of a triple, per element (kind 2) or per row (kind 1)."""
    dim = len(wu)
    if kind == 1:
        sum_u = sum_i = sum_j = np.float32(0.0)
        for d in range(dim):
            sum_u += (pull * (wi[d] - wj[d]) - decay * wu[d]) ** 2
            sum_i += (pull * wu[d] - decay * wi[d]) ** 2
            sum_j += (pull * wu[d] + decay * wj[d]) ** 2
        share = np.float32(1.0) / np.float32(dim)
        su[0], si[0], sj[0] = su[0] + sum_u * share, si[0] + sum_i * share, sj[0] + sum_j * share
        lr_u, lr_i, lr_j = lr / (math.sqrt(su[0]) + eps), lr / (math.sqrt(si[0]) + eps), lr / (math.sqrt(sj[0]) + eps)
        for d in range(dim):
            u, i, j = wu[d], wi[d], wj[d]
            wu[d] = u + lr_u * (pull * (i - j) - decay * u)
            wi[d] = i + lr_i * (pull * u - decay * i)
            wj[d] = j - lr_j * (pull * u + decay * j)
        return
    for d in range(dim):
        u, i, j = wu[d], wi[d], wj[d]
        gu, gi, gj = pull * (i - j) - decay * u, pull * u - decay * i, -pull * u - decay * j
        su[d], si[d], sj[d] = su[d] + gu * gu, si[d] + gi * gi, sj[d] + gj * gj
        wu[d] = u + lr * gu / (math.sqrt(su[d]) + eps)
        wi[d] = i + lr * gi / (math.sqrt(si[d]) + eps)
        wj[d] = j + lr * gj / (math.sqrt(sj[d]) + eps)
