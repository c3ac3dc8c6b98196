"""The bipartite interaction graph: canonical form, files, degrees, item co-occurrence."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from embeddings import atomic
from embeddings.id_map import IntArray

FORMAT = "recsys graph 1"


def canonical(graph: sparse.csr_array) -> sparse.csr_array:
    """The same pairs in the one form that every function here works on.

    Sorted indices, each stored non-zero pair once, weight one. A graph that is in this form already is returned as
    it is; no other is changed in place.

    Args:
        graph: [users, items], any scipy sparse format; pairs of the *train* split.

    Returns:
        csr_array float32 [users, items] of ones with int32 indices.

    Raises:
        ValueError: The graph is not sparse and two-dimensional, or a weight is negative or NaN.
    """
    if not sparse.issparse(graph) or graph.ndim != 2:
        raise ValueError(f"a graph must be a scipy sparse matrix [users, items], got {type(graph).__name__}")
    if isinstance(graph, sparse.csr_array) and _is_canonical(graph):
        return graph
    copy = sparse.csr_array(graph).astype(np.float32)
    bad = np.flatnonzero(~(copy.data >= 0))
    if bad.size:
        user = int(np.searchsorted(copy.indptr, bad[0], side="right")) - 1
        raise ValueError(
            f"graph weights must be >= 0, but user {user}, item {copy.indices[bad[0]]} has {copy.data[bad[0]]}"
        )
    copy.eliminate_zeros()
    copy.sum_duplicates()
    copy.data[:] = 1.0
    copy.indices = copy.indices.astype(np.int32, copy=False)
    copy.indptr = copy.indptr.astype(np.int32, copy=False) if copy.nnz < 2**31 else copy.indptr
    return copy


def _is_canonical(graph: sparse.csr_array) -> bool:
    return bool(
        graph.dtype == np.float32
        and graph.indices.dtype == np.int32
        and graph.has_canonical_format
        and (graph.data == 1.0).all()
    )


def degrees(graph: sparse.csr_array) -> tuple[IntArray, IntArray]:
    """Interactions of every user, int64 [users], and of every item, int64 [items], of a canonical graph."""
    users = np.diff(graph.indptr).astype(np.int64)
    items = np.bincount(graph.indices, minlength=graph.shape[1]).astype(np.int64)
    return users, items


def degree_statistics(graph: sparse.csr_array) -> dict[str, Any]:
    """JSON-able facts for the report: counts, density, and per side quantiles, Gini and a histogram by powers of two.

    A histogram bin ``i`` counts the ids with degree in ``[edges[i], edges[i + 1])``; the first bin is degree 0.
    """
    graph = canonical(graph)
    users, items = degrees(graph)
    cells = graph.shape[0] * graph.shape[1]
    return {
        "users": graph.shape[0],
        "items": graph.shape[1],
        "edges": int(graph.nnz),
        "density": graph.nnz / cells if cells else 0.0,
        "user_degrees": _side_statistics(users),
        "item_degrees": _side_statistics(items),
    }


def _side_statistics(side: IntArray) -> dict[str, Any]:
    histogram = log_histogram(side)
    if not side.size:
        return {"count": 0, "isolated": 0, "histogram": histogram}
    quantiles = np.quantile(side, [0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0])
    names = ("min", "p25", "median", "p75", "p90", "p99", "max")
    return {
        "count": int(side.size),
        "isolated": int((side == 0).sum()),
        "mean": float(side.mean()),
        **{name: float(value) for name, value in zip(names, quantiles, strict=True)},
        "gini": gini(side),
        "histogram": histogram,
    }


def log_histogram(values: IntArray) -> dict[str, list[int]]:
    """Counts of non-negative int64 values in the bins [0, 1), [1, 2), [2, 4), [4, 8), ..."""
    top = int(values.max(initial=0))
    edges = [0, *(2**power for power in range(top.bit_length() + 1))]
    counts, _ = np.histogram(values, bins=edges)
    return {"edges": edges, "counts": counts.tolist()}


def gini(values: npt.NDArray[np.int64]) -> float:
    """Gini coefficient of non-negative values: 0 = all equal, near 1 = one has everything; 0 for none or all zero."""
    total = values.sum()
    if total == 0:
        return 0.0
    n = values.size
    ranked = np.sort(values).astype(np.float64)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ranked / (n * total))


def co_occurrence(graph: sparse.csr_array, top: int | None = None, block: int = 4096) -> sparse.csr_array:
    """Users that two items share: ``graph.T @ graph`` without its diagonal.

    Computed ``block`` items at a time, so that with ``top`` the memory is that of the result and of one block.

    Args:
        graph: [users, items].
        top: keep only the ``top`` strongest neighbours of each item, ties by item index (not symmetric then).
        block: items of one step.

    Returns:
        csr_array float32 [items, items], sorted indices.

    Raises:
        ValueError: ``top`` or ``block`` is below 1.
    """
    if block < 1 or (top is not None and top < 1):
        raise ValueError(f"co_occurrence needs block >= 1 and top >= 1 (or None), got block={block}, top={top}")
    graph = canonical(graph)
    by_item = graph.T.tocsr()
    parts = []
    for start in range(0, by_item.shape[0], block):
        part = (by_item[start : start + block] @ graph).tocoo()
        keep = part.row + start != part.col
        row, col, data = part.row[keep], part.col[keep], part.data[keep]
        if top is not None:
            order = np.lexsort((col, -data, row))
            row, col, data = row[order], col[order], data[order]
            first = np.searchsorted(row, row)
            keep = np.arange(row.size) - first < top
            row, col, data = row[keep], col[keep], data[keep]
        parts.append(sparse.csr_array((data, (row, col)), shape=part.shape, dtype=np.float32))
    result: sparse.csr_array = sparse.vstack(parts or [sparse.csr_array((0, 0), dtype=np.float32)], format="csr")
    result.sort_indices()
    return result


def save_graph(path: Path, graph: sparse.csr_array, dataset_hash: str) -> None:
    """Write the canonical graph and the content hash of the dataset it came from as ``.npz``, atomically."""
    graph = canonical(graph)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        format=np.array(FORMAT),
        dataset_hash=np.array(dataset_hash),
        shape=np.array(graph.shape, dtype=np.int64),
        indptr=graph.indptr,
        indices=graph.indices,
    )
    atomic.write_bytes(path, buffer.getvalue())


def load_graph(path: Path, dataset_hash: str | None = None) -> tuple[sparse.csr_array, str]:
    """Read what :func:`save_graph` wrote.

    Args:
        path: the ``.npz`` file.
        dataset_hash: hash that the file must have, or None for any.

    Returns:
        The canonical graph and its dataset's hash.

    Raises:
        ValueError: The file is foreign, damaged, or belongs to another dataset.
        FileNotFoundError: There is no such file.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a whole graph file ({error}); build the graph again") from error
    if str(arrays.get("format")) != FORMAT:
        raise ValueError(f"{path} is not a graph file: its 'format' must be {FORMAT!r}, got {arrays.get('format')}")
    try:
        shape = (int(arrays["shape"][0]), int(arrays["shape"][1]))
        ones = np.ones(arrays["indices"].size, dtype=np.float32)
        graph: sparse.csr_array = sparse.csr_array((ones, arrays["indices"], arrays["indptr"]), shape=shape)
        graph.check_format()
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{path} holds no valid graph ({error}); build the graph again") from error
    found = str(arrays["dataset_hash"])
    if dataset_hash is not None and found != dataset_hash:
        raise ValueError(f"{path} belongs to dataset {found}, not to {dataset_hash}; build the graph again")
    return graph, found
