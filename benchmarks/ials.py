"""iALS on Gowalla, d = 64: iterations a second against the ALS of implicit, on the same objective.

Both sides take three steps of conjugate gradients per system. The objectives are the same up to a factor, see
:class:`recsys.models.ials.IalsSettings`; the value that each side reaches is computed by our code from its vectors.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.bpr import IMPLICIT, _recall, _vectors
from benchmarks.gowalla import gowalla
from benchmarks.harness import Peer, Row, finish, paired, peer_python, set_threads
from benchmarks.topk import Factors
from recsys.models.ials import Ials, IalsSettings

HERE = Path(__file__).resolve().parent
SETTINGS = IalsSettings(dim=64, iterations=10, regularization=0.1, unobserved_weight=0.01, exponent=0.0, cg_steps=3)


def run(scale: float = 1.0) -> int:
    """Time whole fits in ABBA pairs, set-up included on both sides; ``scale`` shortens them."""
    set_threads()
    train, test = gowalla("train"), gowalla("test")
    iterations = max(1, round(SETTINGS.iterations * scale))
    settings = dataclasses.replace(SETTINGS, iterations=iterations)
    weight = settings.unobserved_weight
    request = {
        "model": "als",
        "dim": settings.dim,
        "regularization": settings.regularization * (1 + weight) / weight,
        "confidence": (1 + weight) / weight,
        "epochs": iterations,
    }
    with tempfile.TemporaryDirectory() as directory:
        data, vectors = Path(directory) / "train.npz", str(Path(directory) / "implicit.npz")
        np.savez(data, indptr=train.indptr, indices=train.indices, shape=np.array(train.shape))
        with Peer(peer_python("implicit", IMPLICIT), HERE / "implicit_worker.py", [str(data)]) as peer:
            pairs = paired(
                lambda: Ials.fit(train, settings),
                lambda: peer.run(**request),
                repeats=7 if scale == 1.0 else 1,
                warmup=1,
            )
            peer.run(**request, vectors=vectors)
            theirs = _vectors(vectors)
    ours = pairs.ours_last
    assert isinstance(ours, Ials)
    length = float(np.sqrt(1 + weight))
    scaled = Ials(theirs.users / length, theirs.items / length)
    quality = {
        "objective": ours.objective(train, settings),
        "peer_objective": scaled.objective(train, settings),
        "recall_at_20": _recall(Factors(ours.users.numpy(), ours.items.numpy()), train, test),
        "peer_recall_at_20": _recall(theirs, train, test),
    }
    case = f"gowalla d{settings.dim}, {iterations} iterations, {settings.cg_steps} CG steps"
    row = Row.rate(case, "implicit 0.7.3", pairs, work=iterations, unit="iterations/s", **quality)
    return finish("ials", [row], scale=scale)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    sys.exit(run(parser.parse_args().scale))
