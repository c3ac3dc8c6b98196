"""Training of DCN-V2, batch 4096, against FuxiCTR: 26 fields of Criteo's sizes with a million ids, and Frappe.

Criteo's events are not free, so the 26 fields are drawn: as many ids as Criteo's, at most 130,000, used like words
(Zipf), with a label that depends on single fields and on pairs of them. Frappe is given: `python -m benchmarks.ctr`
finds it under $RECSYS_DATA. Ours moves the table rows of a batch (lazy Adam), FuxiCTR's torch.optim.Adam all rows, and
ours starts the Adam of the layers anew in every timed epoch. FuxiCTR's step clips gradients to a norm of 10, as it is
made to. The limit is that of the layers' matrix products alone, in float32, which ours in bfloat16 passes where the CPU
has AMX.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ctr_job import FUXICTR, PEER, SPLITS, Job, write_splits
from benchmarks.harness import Peer, Row, Timed, finish, paired, peer_python, probe, set_threads
from recsys.event_batch import Events
from recsys.metrics.auc import roc_auc
from recsys.rankers.ranker import Ranker
from recsys.rankers.training import Precision, RankingSettings, fit_ranker
from recsys.rng import generator

HERE = Path(__file__).resolve().parent
LARGEST = 130_000
CRITEO_IDS = (
    1_460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5_683, 8_351_593, 3_194, 27, 14_992,
    5_461_306, 10, 5_652, 2_173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572,
)  # fmt: skip
"""Ids of the 26 categorical fields of Criteo's display advertising challenge."""


def run(scale: float = 1.0) -> int:
    """Time epochs and steps in pairs; ``scale`` shrinks the events and the tables."""
    set_threads()
    repeats = 7 if scale == 1.0 else 1
    rows = []
    criteo = criteo_like(scale)
    rows += compare("26 fields", *criteo, Job(), repeats=repeats, with_limit=scale == 1.0)
    try:
        frappe = frappe_events(scale)
    except FileNotFoundError as error:
        print(f"no Frappe rows: {error}", file=sys.stderr)
    else:
        rows += compare("Frappe, 10 fields", *frappe, Job(hidden=(500, 500, 500)), repeats=repeats,
                        with_limit=scale == 1.0)  # fmt: skip
    return finish("ctr", rows, scale=scale, headline=rows[:1])


def compare(
    name: str, splits: Mapping[str, Events], sizes: Mapping[str, int], job: Job, *, repeats: int, with_limit: bool
) -> list[Row]:
    """Rows against an epoch of FuxiCTR's loop, and one against its steps on batches that are ready made."""
    train, ids = splits["train"], sum(sizes.values())
    steps = -(-len(train) // job.batch_size)
    limit = probe(1.0).sgemm_gflop_s * 1e9 / flops(len(sizes), job) if with_limit else None
    case = f"{name}, {ids:,} ids, dim {job.dim}, batch {job.batch_size}"
    measured: list[tuple[str, str, int, Precision]] = [
        ("its loop", "epochs", 1, "float32"),
        ("its loop, ours in bfloat16", "epochs", 1, "bfloat16"),
        ("its step alone", "steps", steps, "float32"),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        write_splits(Path(directory), splits, sizes)
        with Peer(peer_python("fuxictr", FUXICTR), HERE / "ctr_fuxictr_worker.py", [directory]) as peer:
            for loop, command, count, precision in measured:
                request = job.request() | {"measured": loop}
                mine, settings = job.ranker(sizes), job.settings(1, precision)
                runs = [0]

                def ours(mine: Ranker = mine, settings: RankingSettings = settings, runs: list[int] = runs) -> None:
                    runs[0] += 1
                    fit_ranker(mine, train, None, settings, seed=runs[0])

                def theirs(request: dict[str, Any] = request, command: str = command, count: int = count) -> Timed:
                    return peer.run(command, job=request, count=count)

                pairs = paired(ours, theirs, repeats=repeats)
                test = splits["test"]
                peer_auc = peer.run("evaluate", job=request).quality["test/auc"]
                rows.append(
                    Row.rate(
                        f"{case}, {loop}", PEER, pairs, work=len(train), unit="samples/s", limit=limit,
                        auc=roc_auc(test.labels, mine.scores(test)), peer_auc=peer_auc, epochs=runs[0],
                    )
                )  # fmt: skip
    return rows


def flops(fields: int, job: Job) -> float:
    """Of an event's forward and backward matrix products."""
    width = fields * job.dim
    widths = (width, *job.hidden)
    tower = sum(a * b for a, b in itertools.pairwise(widths))
    return 6.0 * (job.layers * width * width + tower + width + job.hidden[-1])


def criteo_like(scale: float) -> tuple[dict[str, Events], dict[str, int]]:
    """40 batches of train events and 10 of each held-out split."""
    draws = generator(0, "criteo-like events")
    sizes = {f"C{f + 1}": max(3, int(min(size, LARGEST) * min(1.0, scale))) for f, size in enumerate(CRITEO_IDS)}
    count = max(2, round(60 * scale)) * 4096
    ids = np.empty((count, len(sizes)), np.int32)
    effects = np.empty((count, len(sizes)), np.float32)
    for place, size in enumerate(sizes.values()):
        ranks = np.minimum(draws.pareto(0.8, count) * 4, size - 1)
        ids[:, place] = draws.permutation(size)[ranks.astype(np.int64)]
        effects[:, place] = draws.standard_normal(size, np.float32)[ids[:, place]]
    logits = effects.sum(1) + 0.5 * (effects[:, :-1] * effects[:, 1:]).sum(1)
    labels = (draws.random(count) < 1 / (1 + np.exp(1.0 - 0.5 * logits))).astype(np.uint8)
    parts = np.split(np.arange(count), [count * 4 // 6, count * 5 // 6])
    dense = np.zeros((count, 0), np.float32)
    splits = {s: Events(ids[p], dense[p], labels[p], tuple(sizes)) for s, p in zip(SPLITS, parts, strict=True)}
    return splits, sizes


def frappe_events(scale: float = 1.0, min_positives: int = 0) -> tuple[dict[str, Events], dict[str, int]]:
    """Frappe's events, with ``min_positives: 1`` those of ``ctr_frappe.yaml``.

    Raises:
        FileNotFoundError: There is no data set frappe.
    """
    from pipelines.cache import Cache
    from pipelines.config_ranking import FrappeData
    from pipelines.errors import DataError
    from pipelines.ranking.data import prepare
    from pipelines.run_directory import cache_root

    config = FrappeData(name="frappe", source="data:frappe", min_positives=min_positives)
    try:
        data = prepare(Cache(cache_root()), config)
    except DataError as error:
        raise FileNotFoundError(str(error)) from error
    splits = {}
    for split in SPLITS:
        events = data.events(split)
        rows = generator(0, "shorter").permutation(len(events))[: max(100, round(len(events) * scale))]
        splits[split] = Events(events.ids[rows], events.dense[rows], events.labels[rows], events.fields)
    return splits, data.sizes


if __name__ == "__main__":
    sys.exit(run(*map(float, sys.argv[1:2])))
