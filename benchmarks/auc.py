"""Exact AUC of 10 million scores against scikit-learn, float32 and float64, few and many ties."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from benchmarks.harness import Row, finish, paired, probe, set_threads
from recsys.metrics.auc import roc_auc

SCORES = 10_000_000
POSITIVE_SHARE = 0.25


def run(scale: float = 1.0) -> int:
    """Time both in ABBA pairs; ``scale`` is the share of the scores."""
    set_threads()
    size = max(1000, int(SCORES * scale))
    rng = np.random.default_rng(0)
    labels = rng.random(size) < POSITIVE_SHARE
    logits = rng.standard_normal(size) + labels
    probabilities = 1 / (1 + np.exp(-logits))
    rows = [
        _row("float64", labels, probabilities, scale),
        _row("float32", labels, probabilities.astype(np.float32), scale),
        _row("float32, 1,000 values", labels, np.round(probabilities, 3).astype(np.float32), scale),
    ]
    return finish("auc", rows, scale=scale)


def _row(name: str, labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating], scale: float) -> Row:
    values: dict[str, float] = {}

    def keep(side: str, metric: Callable[..., float]) -> Callable[[], None]:
        def job() -> None:
            values[side] = float(metric(labels, scores))

        return job

    pairs = paired(keep("ours", roc_auc), keep("theirs", roc_auc_score), repeats=7 if scale == 1.0 else 2)
    read_twice = 2 * (scores.nbytes + labels.nbytes)
    return Row.duration(
        f"{len(scores):,} scores, {name}",
        f"scikit-learn {version('scikit-learn')}",
        pairs,
        limit=read_twice / (probe(min(1.0, scale)).stream_gb_s * 1e9),
        auc=values["ours"],
        difference=abs(values["ours"] - values["theirs"]),
    )


if __name__ == "__main__":
    raise SystemExit(run())
