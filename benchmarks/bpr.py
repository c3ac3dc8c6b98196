"""MF-BPR on Gowalla, d = 64: triples a second against implicit and RecBole, with the recall@20 that each reaches.

``python -m benchmarks.bpr --peer-quality EPOCHS`` trains RecBole for long and stores its best recall beside the result.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from benchmarks.gowalla import gowalla
from benchmarks.harness import RESULTS, Peer, Row, finish, paired, peer_python, probe, set_threads, write_json
from benchmarks.topk import Factors
from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, build_table
from recsys.evaluator import quick_metrics
from recsys.losses import Loss
from recsys.models.mf import MatrixFactorization
from recsys.rng import generator
from recsys.samplers import NegativeSampling
from recsys.settings import FitSettings
from recsys.trainer import fit

HERE = Path(__file__).resolve().parent
PEER_QUALITY = RESULTS / "bpr_peer_quality.json"
IMPLICIT = ["implicit==0.7.3", "pandas==3.1.1", "pyarrow"]
RECBOLE = [
    "torch==2.13.0",
    "recbole==1.2.1",
    "numpy<2",
    "scipy<1.14",
    "pandas<2.3",
    "pyarrow<20",
    "ray==2.6.3",
]
DIM = 64
SETTINGS = FitSettings(Loss("bpr"), NegativeSampling(count=1, shared=False), batch_size=1, epochs=160, lr_decay=0.05)
OPTIMIZER = OptimizerSpec("sgd", lr=0.1, weight_decay=0.01)
ROWS_PER_TRIPLE = 6
"""Three rows read and written."""


def run(scale: float = 1.0) -> int:
    """Time epochs in ABBA pairs, then train each to its quality; ``scale`` shortens both."""
    set_threads()
    train, test = gowalla("train"), gowalla("test")
    epochs, quality_epochs = max(1, round(10 * scale)), max(1, round(SETTINGS.epochs * scale))
    repeats = 7 if scale == 1.0 else 1
    recall = _recall(_train(train, quality_epochs), train, test)
    limit = probe(1.0).random_rows_per_s / ROWS_PER_TRIPLE if scale == 1.0 else None
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "train.npz"
        np.savez(data, indptr=train.indptr, indices=train.indices, shape=np.array(train.shape))
        with Peer(peer_python("implicit", IMPLICIT), HERE / "implicit_worker.py", [str(data)]) as peer:
            fast = {"model": "bpr", "lr": 0.05, "weight_decay": 0.01, "verify": False}
            pairs = paired(
                lambda: _train(train, epochs), lambda: peer.run(epochs=epochs, **fast), repeats=repeats, warmup=1
            )
            vectors = str(Path(directory) / "implicit.npz")
            slow = {"model": "bpr", "lr": 0.01, "weight_decay": 1e-4}
            peer.run(epochs=max(1, round(300 * scale)), vectors=vectors, **slow)
            theirs = _recall(_vectors(vectors), train, test)
        rows.append(
            Row.rate(
                f"gowalla d{DIM}, {epochs} epochs, negatives not verified (peer's recall: verified)",
                "implicit 0.7.3", pairs, work=epochs * train.nnz, unit="triples/s",
                limit=limit, recall_at_20=recall, peer_recall_at_20=theirs, our_epochs=quality_epochs,
            )
        )  # fmt: skip
        recbole = Peer(peer_python("recbole", RECBOLE), HERE / "bpr_recbole_worker.py", [str(data)])
        with recbole as peer:
            few = max(1, round(2 * scale))
            pairs = paired(lambda: _train(train, few), lambda: peer.run(epochs=few), repeats=repeats)
        stored = json.loads(PEER_QUALITY.read_text()) if PEER_QUALITY.exists() else {"recall_at_20": None}
        rows.append(
            Row.rate(
                f"gowalla d{DIM}, {few} epochs, batch 4096", "recbole 1.2.1", pairs, work=few * train.nnz,
                unit="triples/s", limit=limit, recall_at_20=recall, peer_recall_at_20=stored["recall_at_20"],
                our_epochs=quality_epochs,
            )
        )  # fmt: skip
    return finish("bpr", rows, scale=scale)


def _train(train: csr_array, epochs: int) -> MatrixFactorization:
    """Our side: the ordinary trainer, with the settings that a user would write."""
    users, items = (
        build_table(
            IdMap(np.arange(count, dtype=np.int64)[:, None], count + 1, count, "full"),
            DIM,
            backend="torch",
            optimizer=OPTIMIZER,
            init_std=0.1,
            generator=generator(0, "init", side),
        )
        for side, count in (("users", train.shape[0]), ("items", train.shape[1]))
    )
    model = MatrixFactorization(users, items, similarity="dot")
    fit(model, train, None, dataclasses.replace(SETTINGS, epochs=epochs), seed=0)
    return model


def _vectors(path: str) -> Factors:
    """A peer's vectors as a retriever."""
    with np.load(path, allow_pickle=False) as arrays:
        return Factors(arrays["users"], arrays["items"])


def _recall(model: MatrixFactorization | Factors, train: csr_array, test: csr_array) -> float:
    return quick_metrics(model, test, train, ("recall@20",))["recall@20"]


def peer_quality(epochs: int, every: int = 10) -> None:
    """Train RecBole for long; store the best test recall of all evaluations, which favours the peer."""
    train, test = gowalla("train"), gowalla("test")
    curve: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        data, vectors = Path(directory) / "train.npz", str(Path(directory) / "recbole.npz")
        np.savez(data, indptr=train.indptr, indices=train.indices, shape=np.array(train.shape))
        with Peer(peer_python("recbole", RECBOLE), HERE / "bpr_recbole_worker.py", [str(data)]) as peer:
            for epoch in range(every, epochs + 1, every):
                done = peer.run(epochs=every, vectors=vectors)
                curve[epoch] = _recall(_vectors(vectors), train, test)
                print(epoch, f"{curve[epoch]:.4f}", f"{done.seconds / every:.2f} s/epoch", flush=True)
                best = max(curve, key=lambda e: curve[e])
                result = {
                    "name": "bpr_peer_quality",
                    "peer": "recbole 1.2.1, BPR, d 64, Adam lr 0.001, batch 4096, uniform negatives",
                    "recall_at_20": curve[best],
                    "epoch": best,
                    "curve": curve,
                    "command": f"python -m benchmarks.bpr --peer-quality {epochs}",
                }
                write_json(PEER_QUALITY, result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--peer-quality", type=int, metavar="EPOCHS", help="only train RecBole for this many epochs")
    arguments = parser.parse_args()
    if arguments.peer_quality:
        peer_quality(arguments.peer_quality)
    else:
        sys.exit(run(arguments.scale))
