"""Exact top-20 with seen items masked: Gowalla, 29,858 users x 40,981 items, d = 64, against implicit's ``recommend``.

Both sides rank the same vectors: a truncated SVD of the normalised training graph, so that scores are realistic, once
as it is and once at unit length, where no item can be left out by its norm.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds
from torch import Tensor

from benchmarks.gowalla import gowalla
from benchmarks.harness import Peer, Row, finish, paired, peer_python, probe, set_threads
from recsys.metrics.ranking import hit_matrix, ranking_metrics
from recsys.topk import exact_top_k

HERE = Path(__file__).resolve().parent
IMPLICIT = ["implicit==0.7.3", "pandas==3.1.1", "pyarrow"]
DIM, K = 64, 20
Vectors = npt.NDArray[np.float32]


class Factors:
    """Given vectors as a retriever."""

    def __init__(self, users: Vectors, items: Vectors) -> None:
        self.users, self.items = torch.from_numpy(users), torch.from_numpy(items)
        self.num_users, self.num_items = len(users), len(items)

    def user_vectors(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), D]."""
        return self.users[torch.from_numpy(users)]

    def item_vectors(self, items: range) -> Tensor:
        """Float32 [len(items), D]."""
        return self.items[items.start : items.stop]

    def scores(self, users: npt.NDArray[np.int64]) -> Tensor:
        """Float32 [len(users), num_items]."""
        return self.user_vectors(users) @ self.items.T


def run(scale: float = 1.0) -> int:
    """Time whole rankings in ABBA pairs; ``scale`` is the share of the users."""
    set_threads()
    train, test = gowalla("train"), gowalla("test")
    users, items = spectral_vectors(train)
    rows = [
        _row("dot", users, items, (train, test), scale),
        _row("cosine", _unit(users), _unit(items), (train, test), scale),
    ]
    return finish("topk", rows, scale=scale)


def _row(name: str, users: Vectors, items: Vectors, split: tuple[csr_array, csr_array], scale: float) -> Row:
    train, test = split
    model, chosen = Factors(users, items), np.arange(max(1, int(len(users) * scale)))
    with tempfile.TemporaryDirectory() as directory:
        job, out = Path(directory) / "job.npz", Path(directory) / "items.npy"
        np.savez(job, users=users, items=items, indptr=train.indptr, indices=train.indices, shape=np.array(train.shape))
        with Peer(peer_python("implicit", IMPLICIT), HERE / "topk_implicit_worker.py", [str(job)]) as peer:
            pairs = paired(
                lambda: exact_top_k(model, chosen, K, train),
                lambda: peer.run(users=len(chosen), k=K, out=str(out)),
                repeats=7 if scale == 1.0 else 3,
            )
        theirs = np.load(out, allow_pickle=False).astype(np.int32)
    ours = exact_top_k(model, chosen, K, train).items
    flops_per_user = 2 * DIM * len(items)
    return Row.rate(
        f"gowalla {name}, {len(chosen):,} users x {len(items):,} items, d{DIM}, top-{K}",
        "implicit 0.7.3",
        pairs,
        work=len(chosen),
        unit="users/s",
        limit=probe(min(1.0, scale)).sgemm_gflop_s * 1e9 / flops_per_user,
        recall_at_20=_recall(ours, test, chosen),
        peer_recall_at_20=_recall(theirs, test, chosen),
        same_lists=float((ours == theirs).mean()),
    )


def _recall(items: npt.NDArray[np.int32], test: csr_array, users: npt.NDArray[np.int64]) -> float:
    relevant = test[users]
    counts = np.diff(relevant.indptr).astype(np.int64)
    some = counts > 0
    hits = hit_matrix(items[some], relevant[some])
    return float(ranking_metrics(hits, counts[some], [K])[f"recall@{K}"].mean())


def spectral_vectors(train: csr_array) -> tuple[Vectors, Vectors]:
    """Rank-64 truncated SVD of the degree-normalised graph; both sides take the root of the singular values."""
    user_scale = 1 / np.sqrt(np.maximum(1, np.diff(train.indptr)))
    item_scale = 1 / np.sqrt(np.maximum(1, np.bincount(train.indices, minlength=train.shape[1])))
    normalised = csr_array(train.multiply(user_scale[:, None]).multiply(item_scale)).astype(np.float32)
    left, values, right = svds(normalised, DIM, random_state=0)
    root = np.sqrt(values)
    return (left * root).astype(np.float32), (right.T * root).astype(np.float32)


def _unit(vectors: Vectors) -> Vectors:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))


if __name__ == "__main__":
    raise SystemExit(run())
