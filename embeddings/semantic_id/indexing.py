"""Codes without codebooks: the item indexing of Hua et al. 2023, "How to Index Item IDs for Recommendation"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse
from scipy.sparse.linalg import eigsh

from embeddings.graph import co_occurrence
from embeddings.id_map import IntArray
from embeddings.semantic_id.codes import SemanticCodes, running_index

Counts = sparse.csr_array
_DENSE = 600
"""Nodes below which the eigenvectors are those of a dense matrix."""


def random_codes(num_items: int, widths: tuple[int, ...], generator: np.random.Generator) -> SemanticCodes:
    """Distinct codes drawn at random (RID).

    Raises:
        ValueError: There are more items than codes.
    """
    space = int(np.prod([int(width) for width in widths], dtype=object))
    if space < num_items:
        raise ValueError(f"widths {widths} have {space:,} codes for {num_items:,} items; add a level or widen one")
    if space <= 2**22:
        numbers = generator.permutation(space)[:num_items]
    else:
        numbers = np.empty(0, dtype=np.int64)
        while numbers.size < num_items:  # more than half of the draws are new, as items are few against codes
            drawn = generator.integers(0, min(space, 2**62), 2 * num_items)
            numbers = np.unique(np.concatenate([numbers, drawn]))
        numbers = generator.permutation(numbers)[:num_items]
    return SemanticCodes(_digits(numbers, widths), widths)


def sequential_codes(histories: Iterable[Sequence[int]], num_items: int, width: int = 256) -> SemanticCodes:
    """Consecutive numbers in the order in which users, one after another, come to items (SID).

    Give training histories only: numbers from later interactions tell the model what comes next, as the first
    published code did.

    Args:
        histories: the items of each user in their order.
        num_items: items that no history has come last, in index order.
        width: codes of each level; as many levels as the items need.
    """
    rank = np.full(num_items, -1, dtype=np.int64)
    following = 0
    for history in histories:
        for item in history:
            if rank[item] < 0:
                rank[item] = following
                following += 1
    rank[rank < 0] = np.arange(following, num_items)
    levels = 1
    while width**levels < num_items:
        levels += 1
    widths = (-(-num_items // width ** (levels - 1)) or 1, *[width] * (levels - 1))
    return SemanticCodes(_digits(rank, widths), widths)


def category_codes(paths: Sequence[Sequence[str]]) -> SemanticCodes:
    """One level for each depth of the category path, then the running index among the items of a path (SemID).

    The codes of a level number the different names of that depth in alphabetical order from 1; 0 means that the
    path has ended. An item without a path keeps zeros.

    Args:
        paths: from the root, one for each item.
    """
    depth = max((len(path) for path in paths), default=0)
    levels, widths = [], []
    for level in range(depth):
        names = sorted({path[level] for path in paths if len(path) > level})
        number = {name: place + 1 for place, name in enumerate(names)}
        levels.append([number[path[level]] if len(path) > level else 0 for path in paths])
        widths.append(len(names) + 1)
    path_codes = np.array(levels, dtype=np.int64).reshape(depth, len(paths)).T
    return _with_leaf(path_codes, tuple(widths))


def collaborative_codes(
    train: sparse.csr_array, clusters: int, largest: int, generator: np.random.Generator
) -> SemanticCodes:
    """Spectral clustering of the items' co-occurrence, again within each cluster that is too large (CID).

    Two items are linked by the number of users who have both, so that the graph is symmetric. The code of a level
    is the cluster from 1, or 0 where the item's cluster was small enough before; the last level is the running index
    in the cluster. Items without co-occurrence, which have no place in the graph, share path 0.

    Args:
        train: train pairs [users, items].
        clusters: N, parts of each division, >= 2.
        largest: k, clusters of more items than this are divided again, >= 1.
        generator: draws the start of the eigenvectors.

    Raises:
        ValueError: ``clusters`` < 2 or ``largest`` < 1.
    """
    if clusters < 2 or largest < 1:
        raise ValueError(f"spectral codes need clusters >= 2 and largest >= 1, got {clusters} and {largest}")
    counts = co_occurrence(train)
    linked = np.flatnonzero(np.diff(counts.indptr))
    levels: list[IntArray] = []
    waiting = [(0, linked)]
    while waiting:
        depth, members = waiting.pop()
        if members.size <= largest or depth > 30:
            continue
        if depth == len(levels):
            levels.append(np.zeros(train.shape[1], dtype=np.int64))
        found = spectral_clusters(counts[members][:, members], min(clusters, members.size), generator)
        if np.unique(found).size == 1:  # no cut was found: divide by index, so that the depth is bounded
            found = np.arange(members.size) * clusters // members.size
        levels[depth][members] = found + 1
        waiting += [(depth + 1, members[found == cluster]) for cluster in range(found.max(initial=0), -1, -1)]
    codes = np.array(levels, dtype=np.int64).reshape(len(levels), train.shape[1]).T
    return _with_leaf(codes, (clusters + 1,) * len(levels))


def hybrid_codes(path: SemanticCodes) -> SemanticCodes:
    """The path of collaborative or category codes with a last code that is the item's own (HID, "+ IID")."""
    items = np.arange(path.num_items)
    codes = np.column_stack([path.codes[:, :-1], items]).astype(np.int32)
    return SemanticCodes(codes, (*path.widths[:-1], max(1, path.num_items)), path.catalogue, path.source)


def spectral_clusters(weights: Counts, clusters: int, generator: np.random.Generator) -> IntArray:
    """Normalised cuts: leading vectors of ``D^-1/2 W D^-1/2``, then the pivoted QR of Damle, Minden and Ying (2019).

    Args:
        weights: symmetric, non-negative [n, n].
        clusters: parts, <= n.
        generator: draws the start.

    Returns:
        int64 [n] in ``[0, clusters)``.
    """
    size = weights.shape[0]
    degree = np.maximum(np.asarray(weights.sum(axis=1), dtype=np.float64), 1e-12)
    scale = sparse.diags_array(1 / np.sqrt(degree))
    normalised = scale @ weights.astype(np.float64) @ scale
    if size < max(_DENSE, clusters + 2):
        vectors = linalg.eigh(normalised.toarray())[1][:, size - clusters :]
    else:
        start = generator.standard_normal(size)
        _, vectors = eigsh(normalised, clusters, which="LA", v0=start, tol=1e-4, maxiter=50 * size)
    pivots = linalg.qr(vectors.T, mode="r", pivoting=True)[1][:clusters]
    left, _, right = linalg.svd(vectors[pivots].T)
    return np.asarray(np.abs(vectors @ (left @ right)).argmax(axis=1), dtype=np.int64)


def _with_leaf(path: npt.NDArray[np.int64], widths: tuple[int, ...]) -> SemanticCodes:
    if path.shape[1]:
        group = np.unique(path, axis=0, return_inverse=True)[1].ravel()
    else:
        group = np.zeros(len(path), dtype=np.int64)
    leaf = running_index(group.astype(np.int64))
    codes = np.column_stack([path, leaf]).astype(np.int32)
    return SemanticCodes(codes, (*widths, int(leaf.max(initial=0)) + 1))


def _digits(numbers: IntArray, widths: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Mixed-radix digits of the numbers, the most significant first."""
    digits = []
    for width in widths[::-1]:
        digits.append(numbers % width)
        numbers = numbers // width
    return np.column_stack(digits[::-1]).astype(np.int32)
