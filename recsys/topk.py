"""Exact top-k of the whole catalogue with seen items masked, in bounded memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor

from recsys.microkernel import pack
from recsys.retriever import GeneratingRetriever, Retriever, SelectingRetriever, VectorRetriever, WeightedRetriever
from recsys.selection import Catalogue, Heaps, Masks, best_first, empty_heaps, select_from_scores, select_from_vectors

Users = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
_Select = Callable[[Tensor, Users, Heaps], None]
USERS_AT_ONCE = 16_384
BLOCK_USERS = 512
BLOCK_SCORES = 1 << 24
_SCORED_USERS = 64
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class TopK:
    """Best items of U users.

    Attributes:
        items: int32 [U, K], best first; -1 where fewer than K items were left.
        scores: float32 [U, K]; -inf where ``items`` is -1.
    """

    items: npt.NDArray[np.int32]
    scores: FloatArray


@torch.no_grad()
def exact_top_k(model: Retriever, users: Users, k: int, seen: csr_array | None) -> TopK:
    """The k best unseen items of each user; equal scores are in the order of the item index.

    A :class:`VectorRetriever` or :class:`SelectingRetriever` never gets a score matrix; of others, blocks of at most
    64 MiB of scores are taken. The result does not depend on the number of users asked for, on blocks, or on threads
    (``torch.get_num_threads``). A :class:`GeneratingRetriever` gives the best that its search finds.

    Args:
        model: the retriever.
        users: int64 [U].
        k: length of the lists.
        seen: csr [num_users, num_items] of items to leave out, or None.

    Raises:
        ValueError: ``k`` < 1, a user outside ``[0, num_users)``, ``seen`` of another shape, or a NaN or infinite score.
    """
    users = np.asarray(users, dtype=np.int64)
    seen = _checked(model, users, k, seen)
    if isinstance(model, GeneratingRetriever):
        return _generated(model, users, k, seen)
    heaps = empty_heaps(len(users), k)
    if isinstance(model, SelectingRetriever) and not isinstance(model, VectorRetriever):
        _in_parts(lambda rows, *rest: model.select(users[rows], *rest), users, seen, heaps, BLOCK_USERS)
    else:
        size, select = _ranking(model, seen)
        ranks = model.user_vectors if isinstance(model, VectorRetriever) else model.scores
        for rows in blocks(len(users), size):
            select(ranks(users[rows]), users[rows], _part(heaps, rows))
    return TopK(*best_first(heaps))


@torch.no_grad()
def top_k_by_weight(
    model: WeightedRetriever, weights: Sequence[float], users: Users, k: int, seen: csr_array | None
) -> Iterator[tuple[slice, list[TopK]]]:
    """The lists of :func:`exact_top_k` at each weight, for one block of users after the other.

    Args:
        model: what is weighed; its parts are computed once for a block.
        weights: to rank at.
        users: int64 [U].
        k: length of the lists.
        seen: csr [num_users, num_items] of items to leave out, or None.

    Yields:
        Places among ``users``, and the lists of the users there at each weight.

    Raises:
        ValueError: As :func:`exact_top_k`.
    """
    users = np.asarray(users, dtype=np.int64)
    size, select = _ranking(model, _checked(model, users, k, seen))
    for rows in blocks(len(users), size):
        found = []
        for ranks in model.by_weight(users[rows], weights):
            heaps = empty_heaps(len(users[rows]), k)
            select(ranks, users[rows], heaps)
            found.append(TopK(*best_first(heaps)))
        yield rows, found


def _generated(model: GeneratingRetriever, users: Users, k: int, seen: csr_array) -> TopK:
    found = TopK(*model.generate(users, k, seen))
    bad = np.flatnonzero(np.isnan(found.scores).any(axis=1))
    if bad.size:
        raise ValueError(_not_finite(int(users[bad[0]])))
    return found


def _checked(model: Retriever, users: Users, k: int, seen: csr_array | None) -> csr_array:
    shape = (model.num_users, model.num_items)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    bad = np.flatnonzero((users < 0) | (users >= model.num_users))
    if bad.size:
        raise ValueError(f"users must lie in [0, {model.num_users}), but users[{bad[0]}] is {users[bad[0]]}")
    if seen is None:
        return csr_array(
            (np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(shape[0] + 1, np.int32)), shape=shape
        )
    if seen.shape != shape:
        raise ValueError(f"seen must have the model's shape {list(shape)}, got {list(seen.shape)}")
    if not seen.has_sorted_indices:
        seen = seen.sorted_indices()
    return seen


def blocks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``[0, count)``."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def masks_of(matrix: csr_array, users: Users) -> Masks:
    """Rows ``users`` of a csr matrix as the kernels take them."""
    rows = matrix[users]
    return Masks(rows.indptr.astype(np.int64), rows.indices.astype(np.int32))


def floats_of(found: Tensor) -> FloatArray:
    """What a model returns as the kernels read it: float32 in C order."""
    return np.ascontiguousarray(found.detach().cpu().numpy(), dtype=np.float32)


def finite_vectors(found: Tensor, users: Users, catalogue: Catalogue) -> FloatArray:
    """Vectors [U, D] of users, after checking that no score of theirs is NaN or infinite."""
    vectors = floats_of(found)
    longest = catalogue.norms.max(initial=0.0)
    suspects = ~(np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1)) * longest < _LARGEST)
    for row in np.flatnonzero(suspects):
        with np.errstate(invalid="ignore"):
            partial = np.abs(vectors[row].astype(np.float64)) @ np.abs(catalogue.panels.astype(np.float64))
        if not (partial < _LARGEST).all():
            raise ValueError(_not_finite(int(users[row])))
    return vectors


def catalogue_of(model: VectorRetriever) -> Catalogue:
    """The model's item vectors, longest first."""
    vectors = floats_of(model.item_vectors(range(model.num_items)))
    norms = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1))
    order = np.argsort(-norms, kind="stable")
    panels = pack(vectors[order])
    items, ordered = np.full(len(panels) * panels.shape[2], -1, np.int32), np.zeros(len(panels) * panels.shape[2])
    items[: len(order)], ordered[: len(order)] = order, norms[order]
    return Catalogue(panels, items, ordered)


def _not_finite(user: int) -> str:
    return (
        f"scores must be finite, but user {user} has a NaN or infinite score; the model has probably diverged: lower"
        " the learning rate or clip gradients"
    )


def _part(heaps: Heaps, rows: slice) -> Heaps:
    return Heaps(heaps.keys[rows], heaps.worst[rows])


def _ranking(model: Retriever, seen: csr_array) -> tuple[int, _Select]:
    """How many users to take at once, and what offers all items to them by their vectors or scores."""
    if isinstance(model, VectorRetriever):
        return USERS_AT_ONCE, functools.partial(_from_vectors, catalogue_of(model), seen)
    return max(1, BLOCK_SCORES // max(1, model.num_items)), functools.partial(_from_scores, seen)


def _from_vectors(catalogue: Catalogue, seen: csr_array, found: Tensor, users: Users, heaps: Heaps) -> None:
    vectors = finite_vectors(found, users, catalogue)

    def select(rows: slice) -> None:
        select_from_vectors(vectors[rows], catalogue, masks_of(seen, users[rows]), _part(heaps, rows))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(select, blocks(len(users), BLOCK_USERS)))


def _from_scores(seen: csr_array, found: Tensor, users: Users, heaps: Heaps) -> None:
    scores = floats_of(found)

    def select(rows: slice, masks: Masks, best: Heaps) -> int:
        return int(select_from_scores(scores[rows], masks, best))

    _in_parts(select, users, seen, heaps, _SCORED_USERS)


def _in_parts(
    select: Callable[[slice, Masks, Heaps], int], users: Users, seen: csr_array, heaps: Heaps, size: int
) -> None:
    """Call ``select`` for parts of at most ``size`` users, several at a time."""

    def part(rows: slice) -> int:
        bad = select(rows, masks_of(seen, users[rows]), _part(heaps, rows))
        return -1 if bad < 0 else rows.start + bad

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for bad in pool.map(part, blocks(len(users), size)):
            if bad >= 0:
                raise ValueError(_not_finite(int(users[bad])))
