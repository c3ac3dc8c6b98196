"""Residual k-means with faiss, in its own environment. Argument: an .npy float32 [N, D]."""

from __future__ import annotations

import sys
import time
from typing import Any

import faiss
import numpy as np

from benchmarks import THREADS
from benchmarks.worker import serve

VECTORS = np.load(sys.argv[1], allow_pickle=False)


def job(request: dict[str, Any]) -> dict[str, Any]:
    """Codes of every level by ``faiss.Kmeans`` with its defaults (25 iterations on up to 256 points a centre)."""
    faiss.omp_set_num_threads(THREADS)
    start = time.perf_counter()
    left = VECTORS - VECTORS.mean(axis=0)
    for width in request["widths"]:
        kmeans = faiss.Kmeans(left.shape[1], width, seed=0)
        kmeans.train(left)
        code = kmeans.index.search(left, 1)[1][:, 0]
        left = left - kmeans.centroids[code]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "quality": {"inertia": float(np.square(left, dtype=np.float64).sum())}}


if __name__ == "__main__":
    serve(job)
