"""RQ-KMeans of 100,000 vectors of 256 columns to 3 x 256 codes, against faiss's k-means on the same residuals.

Both take the vectors from memory and give codes; the inertia that the last level leaves is compared.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Peer, Row, finish, paired, peer_python, probe, set_threads
from embeddings.semantic_id.residual import fit_residual

HERE = Path(__file__).resolve().parent
FAISS = ["faiss-cpu==1.15.1", "numpy"]
DIM, WIDTHS = 256, (256, 256, 256)


def planted(count: int) -> npt.NDArray[np.float32]:
    """Points of 64 far clusters of 64 nearer ones each, with noise."""
    draw = np.random.default_rng(0)
    outer, inner = draw.standard_normal((64, DIM)), 0.6 * draw.standard_normal((4096, DIM))
    fine = draw.integers(0, 4096, count)
    return (outer[fine // 64] + inner[fine] + 0.4 * draw.standard_normal((count, DIM))).astype(np.float32)


def run(scale: float = 1.0) -> int:
    """Time whole tokenisations in ABBA pairs; ``scale`` is the share of the vectors."""
    set_threads()
    vectors = planted(max(256, int(100_000 * scale)))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vectors.npy"
        np.save(path, vectors)
        with Peer(peer_python("faiss", FAISS), HERE / "rqkmeans_faiss_worker.py", [str(path)]) as peer:
            pairs = paired(
                lambda: fit_residual(vectors, WIDTHS, np.random.default_rng(0)),
                lambda: peer.run(widths=WIDTHS),
                repeats=7 if scale == 1.0 else 2,
            )
    quantiser, codes = pairs.ours_last
    left = float(np.square(vectors - quantiser.decode(codes), dtype=np.float64).sum())
    passes = 3 * 2 * len(vectors) * DIM * WIDTHS[0]
    row = Row.duration(
        f"{len(vectors):,} x {DIM} to {len(WIDTHS)} x {WIDTHS[0]}",
        "faiss 1.15.1",
        pairs,
        limit=passes / (probe(min(1.0, scale)).sgemm_gflop_s * 1e9),
        inertia=left,
        peer_inertia=pairs.theirs_last.quality["inertia"],
        inertia_over_peer=left / pairs.theirs_last.quality["inertia"],
    )
    return finish("rqkmeans", [row], scale=scale)


if __name__ == "__main__":
    raise SystemExit(run())
