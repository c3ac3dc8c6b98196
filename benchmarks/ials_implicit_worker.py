"""The ALS of implicit, in its own environment. Argument: an .npz with ``indptr``, ``indices``, ``shape`` of train."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

from benchmarks import THREADS
from benchmarks.worker import serve

with np.load(sys.argv[1], allow_pickle=False) as arrays:
    _indptr, _indices, _shape = arrays["indptr"], arrays["indices"], tuple(arrays["shape"])
TRAIN = csr_matrix((np.ones(len(_indices), np.float32), _indices, _indptr), shape=_shape)


def job(request: dict[str, Any]) -> dict[str, Any]:
    """Fit ``iterations`` iterations; with ``vectors`` save user and item vectors there.

    ``confidence`` is that of an observed pair, 1 being that of the others.
    """
    model = AlternatingLeastSquares(
        factors=request["dim"],
        regularization=request["regularization"],
        alpha=request["confidence"],
        iterations=request["iterations"],
        use_cg=True,
        num_threads=THREADS,
        random_state=0,
    )
    start = time.perf_counter()
    model.fit(TRAIN, show_progress=False)
    seconds = time.perf_counter() - start
    if request.get("vectors"):
        np.savez(request["vectors"], users=model.user_factors, items=model.item_factors)
    return {"seconds": seconds}


if __name__ == "__main__":
    serve(job)
