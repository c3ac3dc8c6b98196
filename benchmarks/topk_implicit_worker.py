"""implicit's side of :mod:`benchmarks.topk`: exact top-k from given factors, liked items filtered."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # implicit has threads of its own and asks for this

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

from benchmarks import THREADS
from benchmarks.worker import serve


def main() -> None:
    """Load the job named on the command line and answer ``run`` requests."""
    job = np.load(sys.argv[1], allow_pickle=False)
    model = AlternatingLeastSquares(factors=job["users"].shape[1], num_threads=THREADS)  # not fitted: factors are given
    model.user_factors, model.item_factors = job["users"], job["items"]
    liked = csr_matrix((np.ones(len(job["indices"]), np.float32), job["indices"], job["indptr"]), shape=job["shape"])

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        chosen = np.arange(request["users"])
        start = time.perf_counter()
        items, _ = model.recommend(chosen, liked[: len(chosen)], N=request["k"], filter_already_liked_items=True)
        seconds = time.perf_counter() - start
        np.save(request["out"], items)
        return {"seconds": seconds}

    serve(answer)


if __name__ == "__main__":
    main()
