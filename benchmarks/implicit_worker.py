"""BPR and ALS of implicit, in its own environment. Argument: an .npz with ``indptr``, ``indices`` and ``shape``."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from scipy.sparse import csr_matrix

from benchmarks import THREADS
from benchmarks.worker import serve

with np.load(sys.argv[1], allow_pickle=False) as arrays:
    _indptr, _indices, _shape = arrays["indptr"], arrays["indices"], tuple(arrays["shape"])
TRAIN = csr_matrix((np.ones(len(_indices), np.float32), _indices, _indptr), shape=_shape)


def job(request: dict[str, Any]) -> dict[str, Any]:
    """Fit ``model`` for ``epochs`` iterations; with ``vectors`` save user and item vectors there."""
    model = _model(request)
    start = time.perf_counter()
    model.fit(TRAIN, show_progress=False)
    seconds = time.perf_counter() - start
    if request.get("vectors"):
        np.savez(request["vectors"], users=model.user_factors, items=model.item_factors)
    return {"seconds": seconds}


def _model(request: dict[str, Any]) -> Any:
    """BPR passes over negatives that are positives of the user with ``verify``, as implicit does by default.

    ``confidence`` of ALS is that of an observed pair, 1 being that of the others.
    """
    common = {"iterations": request["epochs"], "num_threads": THREADS, "random_state": 0}
    match request["model"]:
        case "bpr":
            return BayesianPersonalizedRanking(
                factors=request.get("dim", 64),
                learning_rate=request["lr"],
                regularization=request["weight_decay"],
                verify_negative_samples=request.get("verify", True),
                **common,
            )
        case "als":
            return AlternatingLeastSquares(
                factors=request["dim"],
                regularization=request["regularization"],
                alpha=request["confidence"],
                use_cg=True,
                **common,
            )
        case other:
            raise ValueError(f"model must be bpr or als, got {other!r}")


if __name__ == "__main__":
    serve(job)
