"""An order of users and items that their names play no part in."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy import sparse

from embeddings.graph import canonical
from embeddings.id_map import IntArray

Colours = npt.NDArray[np.uint64]
MAX_ROUNDS = 16


def structural_order(graph: sparse.csr_array) -> tuple[IntArray, IntArray]:
    """Sort nodes by what is around them: colour refinement (Weisfeiler and Leman 1968) with 64-bit hashes.

    A node's first colour is its degree; a round gives it the hash of its own and the multiset of its neighbours'
    colours. Rounds end when the colours part no more nodes than before, or after ``MAX_ROUNDS``. Nodes of equal colour
    stay in the order of their indices: those with the same neighbours, for example, which can be exchanged without
    changing the graph.

    Args:
        graph: pairs [users, items].

    Returns:
        Permutations of the users and of the items, int64: the indices in their new order.
    """
    graph = canonical(graph)
    sides = (graph, graph.T.tocsr())
    users, items = (_mixed(np.diff(side.indptr).astype(np.uint64)) for side in sides)
    parted = 0
    for _ in range(MAX_ROUNDS):
        before, parted = parted, len(np.unique(users)) + len(np.unique(items))
        if parted == before:
            break
        users, items = _refined(*_lists(sides[0]), users, items), _refined(*_lists(sides[1]), items, users)
    return np.argsort(users, kind="stable"), np.argsort(items, kind="stable")


def _lists(side: sparse.csr_array) -> tuple[IntArray, IntArray]:
    return side.indptr.astype(np.int64), side.indices.astype(np.int64)


@numba.njit(cache=True)
def _mix(value: Any) -> Any:
    """Every bit of the result depends on every bit of the uint64 ``value`` (the finaliser of MurmurHash3)."""
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@numba.njit(cache=True)
def _mixed(values: Colours) -> Colours:
    out = np.empty_like(values)
    for i in range(len(values)):
        out[i] = _mix(values[i])
    return out


@numba.njit(cache=True)
def _refined(starts: IntArray, neighbours: IntArray, own: Colours, others: Colours) -> Colours:
    """The next colours of one side; a sum of hashes does not depend on the order of the neighbours."""
    out = np.empty_like(own)
    for i in range(len(own)):
        total = np.uint64(0)
        for k in range(starts[i], starts[i + 1]):
            total += _mix(others[neighbours[k]])
        out[i] = _mix(own[i] * np.uint64(3) + total)
    return out
