"""Louvain and Leiden for bipartite graphs, compiled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy import sparse

from embeddings.id_map import IntArray

Weights = npt.NDArray[np.float64]
LOUVAIN_TOLERANCE = 1e-3
LEIDEN_TOLERANCE = 1e-4


def joint_labels(graph: sparse.csr_array, resolution: float, *, refine: bool) -> IntArray:
    """Labels of users and then items, int64 [users + items], that maximise Barber's modularity.

    Louvain (Blondel et al. 2008): move single nodes while the modularity grows, merge each cluster into a node, repeat.
    The arithmetic, the order of the moves and the tolerance are those of scikit-network's ``Louvain``, whose labels it
    reproduces; the sets of neighbouring clusters are arrays here, which is what makes it faster.

    ``refine`` makes it Leiden (Traag et al. 2019): clusters are refined from single nodes before the merge, and the
    merged nodes start from the unrefined clusters. A node is refined to the best cluster (the limit of small theta) and
    not to a random one, and the tolerance is a tenth, so that the result depends on nothing but the graph. On
    most graphs its modularity is at least that of scikit-network's ``Leiden`` (which draws from the C library's
    ``rand``); on graphs of some dozen nodes it may be lower, by 0.01.

    Args:
        graph: canonical, [users, items], with at least one edge.
        resolution: weight of the null model.
        refine: Leiden, else Louvain.
    """
    users, items = graph.shape
    nodes = users + items
    adjacency = _normalised_adjacency(graph)
    out = np.concatenate([np.diff(graph.indptr) / graph.nnz, np.zeros(items)])
    into = np.concatenate([np.zeros(users), np.bincount(graph.indices, minlength=items) / graph.nnz])
    node_of = np.arange(nodes, dtype=np.int64)
    start = node_of
    tolerance = LEIDEN_TOLERANCE if refine else LOUVAIN_TOLERANCE
    while True:
        labels, gain = _move(adjacency, out, into, start, resolution, tolerance)
        merged = _refined(adjacency, out, into, labels, resolution) if refine else labels
        clusters = int(merged.max()) + 1
        if clusters == 1 or gain <= tolerance:
            return labels[node_of]
        node_of = merged[node_of]
        adjacency, out, into = _merge(adjacency, out, into, merged, clusters)
        start = np.arange(clusters, dtype=np.int64)
        start[merged] = labels if refine else merged


def _normalised_adjacency(graph: sparse.csr_array) -> sparse.csr_matrix:
    """The symmetric adjacency matrix [[0, B], [B^T, 0]] / 2m, float64, sorted indices."""
    users, items = graph.shape
    transposed = graph.T.tocsr()
    indices = np.concatenate([graph.indices + np.int32(users), transposed.indices])
    indptr = np.concatenate([graph.indptr, graph.nnz + transposed.indptr[1:].astype(np.int64)])
    data = np.full(2 * graph.nnz, 1 / (2 * graph.nnz))
    return sparse.csr_matrix((data, indices, indptr), shape=(users + items, users + items))


def _move(
    adjacency: sparse.csr_matrix, out: Weights, into: Weights, start: IntArray, resolution: float, tolerance: float
) -> tuple[IntArray, float]:
    """Move nodes from their clusters in ``start``; returns consecutive labels and the gain in modularity."""
    clusters = start.size
    labels = start.astype(np.int32)
    gain = move_nodes(
        labels,
        adjacency.indptr,
        adjacency.indices,
        adjacency.data.astype(np.float32),
        out.astype(np.float32),
        into.astype(np.float32),
        np.bincount(start, weights=out, minlength=clusters).astype(np.float32),
        np.bincount(start, weights=into, minlength=clusters).astype(np.float32),
        adjacency.diagonal().astype(np.float32),
        np.float32(resolution),
        np.float32(tolerance),
    )
    _, consecutive = np.unique(labels, return_inverse=True)
    return consecutive, float(gain)


def _refined(
    adjacency: sparse.csr_matrix, out: Weights, into: Weights, labels: IntArray, resolution: float
) -> IntArray:
    """Clusters built up from single nodes over the edges inside the clusters of ``labels``."""
    rows = np.repeat(np.arange(labels.size), np.diff(adjacency.indptr))
    inside = labels[rows] == labels[adjacency.indices]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows[inside], minlength=labels.size))])
    within = sparse.csr_matrix((adjacency.data[inside], adjacency.indices[inside], indptr), shape=adjacency.shape)
    return _move(within, out, into, np.arange(labels.size, dtype=np.int64), resolution, LEIDEN_TOLERANCE)[0]


def _merge(
    adjacency: sparse.csr_matrix, out: Weights, into: Weights, merged: IntArray, clusters: int
) -> tuple[sparse.csr_matrix, Weights, Weights]:
    """The graph whose nodes are the clusters ``merged``; weights inside a cluster become its self-loop."""
    nodes = merged.size
    ones = np.ones(nodes, dtype=bool)
    membership = sparse.csr_matrix((ones, merged, np.arange(nodes + 1)), shape=(nodes, clusters))
    members = membership.T.tocsr()
    return members @ (adjacency @ membership), members @ out, members @ into


@njit(cache=True)
def move_nodes(labels, indptr, indices, data, out, into, cluster_out, cluster_in, loops, resolution, tolerance):  # type: ignore[no-untyped-def]
    """Move each node to the neighbouring cluster with the largest gain, until a pass gains ``tolerance`` or less.

    The gain of node i in cluster c is ``2 A_ic - g out_i in_c - g in_i out_c`` less the same for its present cluster
    without i; ties go to the lower label. All weights are float32 and sum to one over the graph.

    Args:
        labels: int32 [n] clusters in ``[0, n)``, changed in place.
        indptr: of the symmetric CSR adjacency matrix.
        indices: of the same.
        data: of the same, > 0.
        out: node weights towards items [n].
        into: node weights towards users [n].
        cluster_out: sums of ``out`` over clusters [n], changed in place.
        cluster_in: sums of ``into`` over clusters [n], changed in place.
        loops: diagonal of the matrix [n].
        resolution: g.
        tolerance: see above.

    Returns:
        The gain in modularity of all moves, float32.
    """
    n = labels.size
    two = np.float32(2)
    links = np.zeros(n, dtype=np.float32)
    touched = np.empty(n, dtype=np.int32)
    gain = np.float32(0)
    while True:
        gain_of_pass = np.float32(0)
        for i in range(n):
            label = labels[i]
            count = 0
            for j in range(indptr[i], indptr[i + 1]):
                target = labels[indices[j]]
                if links[target] == 0:
                    touched[count] = target
                    count += 1
                links[target] += data[j]
            resolution_out = resolution * out[i]
            resolution_in = resolution * into[i]
            stay = two * (links[label] - loops[i])
            stay -= resolution_out * (cluster_in[label] - into[i])
            stay -= resolution_in * (cluster_out[label] - out[i])
            best = np.float32(0)
            best_label = label
            for t in range(count):
                target = touched[t]
                move = two * links[target]
                if resolution_out:
                    move -= resolution_out * cluster_in[target]
                if resolution_in:
                    move -= resolution_in * cluster_out[target]
                move -= stay
                links[target] = 0
                if target != label and (move > best or (move == best and best > 0 and target < best_label)):
                    best = move
                    best_label = target
            if best_label != label:
                gain_of_pass += best
                labels[i] = best_label
                cluster_out[label] -= out[i]
                cluster_in[label] -= into[i]
                cluster_out[best_label] += out[i]
                cluster_in[best_label] += into[i]
        gain += gain_of_pass
        if gain_of_pass <= tolerance:
            return gain
