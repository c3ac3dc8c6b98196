"""Best recall@20 on Gowalla within 10 s, 60 s, 5 min and 30 min of compute, ours against ALS and BPR of implicit.

Compute is fit and exact top-20 of every user with the training items masked; both sides are ranked by our top-k, which
is faster than implicit's own. Every setting of a ladder is run once on nine tenths of the training pairs; of those
that end within a budget the best on the last tenth is run again on all of them, timed, and judged on test. Where that
run, which has more to learn from, takes longer than the budget, the next best is taken. Each measurement is kept, so
that a killed benchmark goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_array

from benchmarks.bpr import IMPLICIT, _vectors
from benchmarks.gowalla import gowalla
from benchmarks.harness import SMOKE_RESULTS, Peer, Row, finish, peer_python, set_threads, write_json
from benchmarks.peer import ROOT
from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, build_table
from pipelines.report import words
from pipelines.report.figures import Panel
from pipelines.report.plots import write_plots
from pipelines.report.svg import Figure, Scale, style
from recsys.losses import Loss
from recsys.metrics.ranking import hit_matrix, ranking_metrics
from recsys.models.cheby_cf import fit_cheby_cf
from recsys.models.ensemble import StandardisedEnsemble
from recsys.models.gf_cf import fit_gf_cf
from recsys.models.ials import Ials, IalsSettings
from recsys.models.mf import MatrixFactorization
from recsys.retriever import Retriever
from recsys.rng import generator
from recsys.samplers import NegativeSampling
from recsys.settings import FitSettings
from recsys.spectral import spectral_vectors, start_from
from recsys.topk import exact_top_k
from recsys.trainer import fit

HERE = Path(__file__).resolve().parent
BUDGETS = (10.0, 60.0, 300.0, 1800.0)
K, DIM = 20, 64
FILTER_RANK = 512
"""Of the filter in blend."""
ModelName = Literal["gf_cf", "cheby_cf", "mf", "spectral_mf", "blend", "ials", "als", "bpr"]
PEERS: tuple[ModelName, ...] = ("als", "bpr")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One point of a ladder.

    Attributes:
        model: als and bpr are implicit's; blend is the sum of cheby_cf and spectral_mf, each over its deviation.
        effort: rank of a filter, iterations or epochs of the others.
        strength: exponent of gf_cf, alpha of cheby_cf, learning rate of mf and bpr, weight of spectral_mf in blend, of
            the unobserved in ials, confidence of als.
        regularization: of ials, als and bpr.
        dim: of als and bpr; all that ours train has 64.
    """

    model: ModelName
    effort: int
    strength: float
    regularization: float = 0.0
    dim: int = DIM

    @property
    def name(self) -> str:
        """As it stands in results."""
        words = [f"{self.model} {self.effort}", f"{self.strength:g}"]
        words += [f"{self.regularization:g}"] if self.regularization else []
        return ", ".join([*words, f"d = {self.dim}"] if self.dim != DIM else words)


def ladder() -> list[Setting]:
    """Every setting that is tried, the quick ones of a model first."""
    return [
        *(Setting("gf_cf", rank, exponent) for rank in (64, 128, 256) for exponent in (0.4, 0.5)),
        *(Setting("cheby_cf", rank, alpha) for rank in (256, FILTER_RANK) for alpha in (0.2, 0.5)),
        *(Setting("spectral_mf", epochs, lr) for epochs in (2, 5, 10, 20, 40) for lr in (0.05, 0.2)),
        *(Setting("mf", epochs, 0.2) for epochs in (10, 20, 40, 80, 160)),
        *(Setting("blend", epochs, weight) for epochs in (20, 40) for weight in (0.2, 0.4)),
        *(Setting("ials", n, weight, 0.003) for n in (4, 16, 32) for weight in (0.01, 0.03, 0.1)),
        *(Setting("als", n, times, l2) for n in (5, 15, 50) for times in (10.0, 40.0, 160.0) for l2 in (0.1, 10.0)),
        *(Setting("als", n, times, 0.1, 256) for n in (2, 5, 15, 50) for times in (40.0, 160.0)),
        *(Setting("bpr", n, lr, l2) for n in (50, 200, 600) for lr in (0.02, 0.05) for l2 in (0.001, 0.01)),
        *(Setting("bpr", 600, 0.05, l2, 256) for l2 in (0.01, 0.03)),
    ]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Compute of a setting, s, and the recall@20 on what it was judged by."""

    seconds: float
    recall: float


def run(scale: float = 1.0) -> int:
    """Climb the ladders; ``scale`` is the share of the users, of the budgets and of the ladder's epochs."""
    set_threads()
    train, test = (_share(gowalla(split), scale) for split in ("train", "test"))
    kept, valid = hold_out(train)
    with tempfile.TemporaryDirectory() as directory:
        tuning = _Trials(kept, valid, Path(directory) / "kept", scale)
        found = tuning.climb(ladder())
        final = _Trials(train, test, Path(directory) / "all", scale)
        rows = []
        for budget in BUDGETS:
            ours, theirs = (_best(found, final, budget * scale, peer=peer) for peer in (False, True))
            if ours and theirs:
                rows.append(_row(budget * scale, ours, theirs))
    if scale == 1.0:
        write_plots(ROOT / "docs" / "images" / "time_to_quality", [panel(found)])
    return finish("time_to_quality", rows, scale=scale)


def hold_out(train: csr_array) -> tuple[csr_array, csr_array]:
    """Nine tenths of the pairs, and the last tenth, drawn from one seed."""
    pairs = train.tocoo()
    held = generator(0, "time_to_quality").random(train.nnz) < 0.1
    parts = (csr_array((pairs.data[some], (pairs.row[some], pairs.col[some])), train.shape) for some in (~held, held))
    kept, valid = (part.sorted_indices() for part in parts)
    return kept, valid


def _share(matrix: csr_array, scale: float) -> csr_array:
    return csr_array(matrix[: max(200, int(matrix.shape[0] * scale))])


def _best(
    found: dict[Setting, Measured], final: _Trials, seconds: float, *, peer: bool
) -> tuple[Setting, Measured] | None:
    """The best on validation of those that end in time on both splits, with what ``final`` measured of it."""
    within = [s for s, m in found.items() if (s.model in PEERS) == peer and m.seconds <= seconds]
    for setting in sorted(within, key=lambda setting: -found[setting].recall):
        measured = final.climb([setting])[setting]
        if measured.seconds <= seconds:
            return setting, measured
    return None


class _Trials:
    """Measurements of settings on one split, kept in ``.recsys/benchmarks``.

    Args:
        train: csr [users, items], fitted and masked.
        relevant: what judges.
        scratch: for the files of the peer.
        scale: of the efforts.
    """

    def __init__(self, train: csr_array, relevant: csr_array, scratch: Path, scale: float) -> None:
        self.train, self.relevant, self.scratch, self.scale = train, relevant, scratch, scale
        digest = hashlib.sha256(train.indices.tobytes() + relevant.indices.tobytes()).hexdigest()[:12]
        self.store = SMOKE_RESULTS / f"time_to_quality-{digest}-{scale:g}.json"
        self.known: dict[str, Any] = json.loads(self.store.read_bytes()) if self.store.exists() else {}

    def climb(self, settings: Sequence[Setting]) -> dict[Setting, Measured]:
        """Measure what is not known yet, telling how long the rest will take."""
        todo = [setting for setting in dict.fromkeys(settings) if setting.name not in self.known]
        started = time.perf_counter()
        for done, setting in enumerate(todo, start=1):
            measured = self._measure(setting)
            self.known[setting.name] = dataclasses.asdict(measured)
            SMOKE_RESULTS.mkdir(parents=True, exist_ok=True)
            write_json(self.store, self.known)
            rest = (time.perf_counter() - started) / done * (len(todo) - done)
            told = f"{done}/{len(todo)} {setting.name}: recall@{K} {measured.recall:.4f} in {measured.seconds:.1f} s"
            print(f"{told}; about {rest / 60:.0f} min left", file=sys.stderr, flush=True)
        return {setting: Measured(**self.known[setting.name]) for setting in settings}

    def _measure(self, setting: Setting) -> Measured:
        started = time.perf_counter()
        if setting.model in PEERS:
            model, fitted = self._fit_peer(setting)
            started = time.perf_counter() - fitted
        else:
            model = fit_ours(setting, self.train, max(1, round(setting.effort * self.scale)))
        users = np.arange(self.train.shape[0])
        items = exact_top_k(model, users, K, self.train).items
        seconds = time.perf_counter() - started
        counts = np.diff(self.relevant.indptr).astype(np.int64)
        judged = np.flatnonzero(counts)
        hits = hit_matrix(items[judged], csr_array(self.relevant[judged]))
        return Measured(seconds, float(ranking_metrics(hits, counts[judged], [K])[f"recall@{K}"].mean()))

    def _fit_peer(self, setting: Setting) -> tuple[Retriever, float]:
        """The peer's vectors and the seconds of its own fit; start of the process and files are not counted."""
        self.scratch.mkdir(exist_ok=True)
        data, vectors = self.scratch / "train.npz", str(self.scratch / "vectors.npz")
        np.savez(data, indptr=self.train.indptr, indices=self.train.indices, shape=np.array(self.train.shape))
        epochs = max(1, round(setting.effort * self.scale))
        request: dict[str, Any] = {"model": setting.model, "epochs": epochs, "vectors": vectors, "dim": setting.dim}
        if setting.model == "als":
            request |= {"regularization": setting.regularization, "confidence": setting.strength}
        else:
            request |= {"lr": setting.strength, "weight_decay": setting.regularization}
        with Peer(peer_python("implicit", IMPLICIT), HERE / "implicit_worker.py", [str(data)]) as peer:
            seconds = peer.run(**request).seconds
        return _vectors(vectors), seconds


def fit_ours(setting: Setting, train: csr_array, effort: int) -> Retriever:
    """A model of ours fitted on ``train``.

    Raises:
        ValueError: The model is the peer's.
    """
    match setting.model:
        case "gf_cf":
            return fit_gf_cf(train, effort, exponent=setting.strength)
        case "cheby_cf":
            return fit_cheby_cf(train, rank=effort, alpha=setting.strength)
        case "ials":
            return Ials.fit(train, IalsSettings(DIM, effort, setting.regularization, setting.strength))
        case "mf" | "spectral_mf":
            return _fit_mf(setting, train, effort)
        case "blend":
            filtered = fit_cheby_cf(train, rank=FILTER_RANK, alpha=0.2)
            learned = _fit_mf(Setting("spectral_mf", effort, 0.2), train, effort)
            return StandardisedEnsemble(filtered, learned, setting.strength)
        case other:
            raise ValueError(f"{other} is implicit's; ours are gf_cf, cheby_cf, mf, spectral_mf, blend and ials")


def _fit_mf(setting: Setting, train: csr_array, epochs: int) -> Retriever:
    maps = [IdMap(np.arange(count)[:, None], count + 1, count, "full") for count in train.shape]
    spec = OptimizerSpec("adagrad", lr=setting.strength)
    tables = [
        build_table(one, DIM, backend="torch", optimizer=spec, init_std=0.1, generator=generator(0, "init", side))
        for one, side in zip(maps, ("users", "items"), strict=True)
    ]
    if setting.model == "spectral_mf":
        for table, one, vectors in zip(tables, maps, spectral_vectors(train, DIM), strict=True):
            start_from(table, one, vectors, std=0.1)
    model = MatrixFactorization(*tables, similarity="cosine")
    loss = Loss("sampled_softmax", temperature=0.08, logq=True)
    fit(model, train, None, FitSettings(loss, NegativeSampling(count=256), batch_size=4096, epochs=epochs), seed=0)
    return model


def _row(budget: float, ours: tuple[Setting, Measured], theirs: tuple[Setting, Measured]) -> Row:
    ratio = ours[1].recall / max(theirs[1].recall, 1e-9)
    return Row(
        f"gowalla, within {budget:g} s", "implicit 0.7.3", ours[1].recall, theirs[1].recall, f"recall@{K}",
        ratio, ratio, ratio,
        quality={
            "setting": ours[0].name, "seconds": ours[1].seconds,
            "peer_setting": theirs[0].name, "peer_seconds": theirs[1].seconds,
        },
    )  # fmt: skip


def panel(found: dict[Setting, Measured]) -> Panel:
    """Recall on validation against compute: every setting a point, one line along the best of each model."""
    seconds = [measured.seconds for measured in found.values()]
    recalls = [measured.recall for measured in found.values()]
    x = Scale(min(seconds) / 1.3, max(seconds) * 1.3, 58, 560, log=True)
    y = Scale(min(recalls) - 0.005, max(recalls) + 0.005, 296, 24)
    title = f"Recall@{K} by compute, Gowalla"
    figure = Figure(title, "; ".join(f"{s.name}: {m.recall:.4f} in {m.seconds:.1f} s" for s, m in found.items()), 700)
    figure.axes(x, y, ("seconds of fit and ranking (log scale)", f"validation recall@{K}"), (words.tick, words.tick))
    labels = []
    for number, model in enumerate(dict.fromkeys(setting.model for setting in found)):
        points = sorted((m.seconds, m.recall) for setting, m in found.items() if setting.model == model)
        front = [p for i, p in enumerate(points) if p[1] > max((q[1] for q in points[:i]), default=-1.0)]
        figure.line([(x(a), y(b)) for a, b in front], style(number))
        for a, b in points:
            figure.point(x(a), y(b), style(number), f"{model}: {b:.4f} in {a:.1f} s", hollow=model in PEERS)
        labels.append((y(front[-1][1]), model, style(number)))
    figure.end_labels(565, labels, 24, 296)
    rows: list[list[Any]] = [[s.model, s.name, m.seconds, m.recall] for s, m in found.items()]
    caption = "Hollow: implicit 0.7.3."
    return Panel("time_to_quality", title, figure.render(), caption, ("model", "setting", "seconds", "recall"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    sys.exit(run(parser.parse_args().scale))
