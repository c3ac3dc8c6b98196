"""Balanced, size-targeted label propagation on the bipartite graph, after BACO (SIGIR 2026, arXiv 2604.18351).

Written from the abstract: a co-clustering objective of connectivity within clusters and balance of cluster volumes,
weighted users and items, a label-propagation solver, a second cluster for each user. The exact weights of the paper
are not known here; those below are ours.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy import sparse

from embeddings.graph import canonical, degrees
from embeddings.id_map import IntArray
from embeddings.majority import home_buckets, majority
from embeddings.rebalance import fit_rows

MAX_SWEEPS = 12
MAX_FITS = 14
TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class BalancedClusters:
    """Clusters of both sides with exactly the number of rows asked for.

    Attributes:
        users: int64 [users] in ``[0, user_rows)``, -1 for a user without an edge.
        items: int64 [items] in ``[0, item_rows)``, -1 for an item without an edge.
        second: int64 [users], the cluster that a user's items lead to next, or -1 if there is none.
        penalty: weight of the balance term that came nearest to the number of rows.
    """

    users: IntArray
    items: IntArray
    second: IntArray
    penalty: float


def propagate(graph: sparse.csr_array, penalty: float, capacity: tuple[int, int], exponent: float = 0.5) -> IntArray:
    """Joint labels that greedily maximise ``sum_ui A_ui [c_u = c_i] - penalty * sum_c U_c I_c``.

    ``U_c`` and ``I_c`` are the volumes of the users and items of cluster c, an id of degree d weighing ``d**exponent``:
    exponent 1 is Barber's modularity, 0 the constant Potts model. A node moves to the neighbouring label of the best
    gain; a label with ``capacity`` ids of the node's side takes no more of them. Items move, then users, in the order
    of their indices, until none does or ``MAX_SWEEPS`` are done. Ties: the lower label.

    Args:
        graph: canonical, [users, items].
        penalty: weight of the balance term, > 0.
        capacity: most users and most items of one cluster.
        exponent: of the degree, in [0, 1].

    Returns:
        int64 [users + items], labels in ``[0, users + items)``.
    """
    users, items = graph.shape
    transposed = graph.T.tocsr()
    labels = np.arange(users + items, dtype=np.int64)
    weights = [np.power(side, exponent) for side in degrees(graph)]
    volumes = [np.zeros(users + items), np.zeros(users + items)]
    sizes = [np.zeros(users + items, dtype=np.int64), np.zeros(users + items, dtype=np.int64)]
    volumes[0][:users], volumes[1][users:] = weights
    sizes[0][:users], sizes[1][users:] = 1, 1
    own = (labels[:users], labels[users:])
    scratch = np.zeros(users + items)
    for _ in range(MAX_SWEEPS):
        moved = 0
        for side, neighbours in ((1, transposed), (0, graph)):
            moved += _sweep(
                neighbours.indptr, neighbours.indices, own[side], own[1 - side], weights[side], volumes[side],
                volumes[1 - side], sizes[side], scratch, penalty, capacity[side],
            )  # fmt: skip
        if not moved:
            break
    return labels


@njit(cache=True)
def _sweep(
    indptr: npt.NDArray[np.int32],
    indices: npt.NDArray[np.int32],
    labels: IntArray,
    others: IntArray,
    weights: npt.NDArray[np.float64],
    volumes: npt.NDArray[np.float64],
    other_volumes: npt.NDArray[np.float64],
    sizes: IntArray,
    edges: npt.NDArray[np.float64],
    penalty: float,
    capacity: int,
) -> int:
    """One pass over the nodes of one side; ``edges`` is zeros by label, and is left so. Returns the moves."""
    moves = 0
    for node in range(labels.size):
        start, end = indptr[node], indptr[node + 1]
        if start == end:
            continue
        here = labels[node]
        for edge in range(start, end):
            edges[others[indices[edge]]] += 1.0
        best, best_gain = here, edges[here] - penalty * weights[node] * other_volumes[here]
        for edge in range(start, end):
            label = others[indices[edge]]
            gain = edges[label] - penalty * weights[node] * other_volumes[label]
            better = gain > best_gain or (gain == best_gain and label < best)
            if label != here and better and sizes[label] < capacity:
                best, best_gain = label, gain
        for edge in range(start, end):
            edges[others[indices[edge]]] = 0.0
        if best != here:
            labels[node] = best
            volumes[here] -= weights[node]
            volumes[best] += weights[node]
            sizes[here] -= 1
            sizes[best] += 1
            moves += 1
    return moves


def balanced_clusters(
    graph: sparse.csr_array, user_rows: int, item_rows: int, *, balance: float = 4.0, exponent: float = 0.5
) -> BalancedClusters:
    """Search the penalty that gives about the number of clusters, then split or merge to exactly that number.

    Args:
        graph: train pairs [users, items].
        user_rows: user clusters, from 1 to the number of users with an interaction.
        item_rows: item clusters, likewise.
        balance: a cluster has at most this many times the mean number of ids of its side (before merges).
        exponent: see :func:`propagate`.

    Raises:
        ValueError: More clusters than ids with an interaction, or fewer than one.
    """
    graph = canonical(graph)
    seen = [side > 0 for side in degrees(graph)]
    rows = (user_rows, item_rows)
    for name, mask, wanted in zip(("user", "item"), seen, rows, strict=True):
        if not 1 <= wanted <= mask.sum():
            raise ValueError(
                f"{mask.sum():,} {name}s with an interaction can have 1 to {mask.sum():,} clusters, not {wanted:,};"
                " change the budget"
            )
    limits = [math.ceil(balance * mask.sum() / wanted) for mask, wanted in zip(seen, rows, strict=True)]
    penalty, found = _search(graph, sum(rows), (limits[0], limits[1]), exponent, seen)
    users, items = (fit_rows(labels, labels, wanted) for labels, wanted in zip(found, rows, strict=True))
    second = majority(graph, home_buckets(graph.T, users), exclude=users)
    return BalancedClusters(users, items, second, penalty)


def _search(
    graph: sparse.csr_array, target: int, capacity: tuple[int, int], exponent: float, seen: list[npt.NDArray[np.bool_]]
) -> tuple[float, tuple[IntArray, IntArray]]:
    """Bisect the logarithm of the penalty; the number of clusters grows with it, if not strictly."""
    low, high = 1e-6, 10.0
    best: tuple[int, float, tuple[IntArray, IntArray]] | None = None
    for _ in range(MAX_FITS):
        penalty = math.sqrt(low * high)
        joint = propagate(graph, penalty, capacity, exponent)
        users = graph.shape[0]
        sides = (_numbered(joint[:users], seen[0]), _numbered(joint[users:], seen[1]))
        count = sum(int(side.max(initial=-1)) + 1 for side in sides)
        if best is None or abs(count - target) < best[0]:
            best = (abs(count - target), penalty, sides)
        if best[0] <= TOLERANCE * target:
            break
        low, high = (penalty, high) if count < target else (low, penalty)
    assert best is not None
    return best[1], best[2]


def _numbered(labels: IntArray, seen: npt.NDArray[np.bool_]) -> IntArray:
    """Labels 0, 1, ... in their order for seen ids, -1 for the others."""
    numbered = np.full(labels.size, -1, dtype=np.int64)
    numbered[seen] = np.unique(labels[seen], return_inverse=True)[1]
    return numbered
