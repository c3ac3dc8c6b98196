"""Ingest of a CSV of 10 M events: read, check, 5-core, dense ids, sort, split by global time, write; against pandas.

Both sides do the same job on the same file, each in a process of its own, and must agree on every count. Ours also
looks for bad cells and duplicates and hashes and audits what it wrote; the file has neither, so that pandas needs not.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.harness import SMOKE_RESULTS, Peer, Row, finish, paired, peer_python, probe
from recsys.rng import generator

PEERS = Path(__file__).resolve().parent / "peers"
PACKAGES = ["pandas==3.1.1", "pyarrow"]
EVENTS = 10_000_000
BYTES_MOVED_PER_EVENT = 29 + 4 * 20 + 17
BYTES_HELD_PER_EVENT = 4 + 4 + 8 + 1
"""User, item, time and split, which a sort needs at once."""


def write_events(path: Path, events: int, seed: int = 0) -> None:
    """CSV of distinct pairs with zipf-like items, sparse ids up to 10 digits and times within four years, shuffled."""
    rng = generator(seed, "benchmark", "ingest")
    users, items = max(events // 20, 50), max(events // 33, 50)
    user = (rng.random(int(events * 1.4)) ** 1.5 * users).astype(np.int64)
    item = (rng.random(len(user)) ** 4.5 * items).astype(np.int64)
    keys = rng.permutation(np.unique(user * items + item))[:events]
    time = rng.integers(1_500_000_000, 1_626_000_000, size=len(keys))
    frame = pl.DataFrame(
        {"user_id": keys // items * 17 + 100_000, "item_id": keys % items * 11 + 1_000, "timestamp": time}
    )
    frame.write_csv(path)


def run(scale: float = 1.0) -> int:
    """Run the benchmark on ``scale`` times 10 M events."""
    SMOKE_RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SMOKE_RESULTS) as folder:
        source = Path(folder) / "events.csv"
        write_events(source, int(EVENTS * scale))
        rows = pl.scan_csv(source).select(pl.len()).collect().item()
        megabytes = source.stat().st_size / 1e6
        pandas_python = peer_python("pandas", PACKAGES)
        with (
            Peer(Path(sys.executable), PEERS / "ingest_ours.py") as ours,
            Peer(pandas_python, PEERS / "ingest_pandas.py") as theirs,
        ):
            pairs = paired(
                lambda: ours.run(source=str(source), out=f"{folder}/ours"),
                lambda: theirs.run(source=str(source), out=f"{folder}/theirs"),
                repeats=7 if scale == 1.0 else 1,
            )
    mine, other = pairs.ours_last, pairs.theirs_last
    if mine.quality != other.quality:
        raise RuntimeError(f"the jobs differ: ours {mine.quality}, pandas {other.quality}")
    limit = probe(min(scale, 1.0)).stream_gb_s * 1e9 / BYTES_MOVED_PER_EVENT
    case = f"{rows:,} events, {megabytes:.0f} MB of CSV, 5-core, ids, sort, global time split"
    speed = Row.rate(case, PACKAGES[0], pairs, work=rows, unit="events/s", limit=limit, **mine.quality)
    least = rows * BYTES_HELD_PER_EVENT / 2**20
    memory = Row(
        "peak memory of the same job", PACKAGES[0], mine.peak_rss_mib, other.peak_rss_mib, "MiB",
        *[other.peak_rss_mib / mine.peak_rss_mib] * 3, limit=least, limit_fraction=least / mine.peak_rss_mib,
    )  # fmt: skip
    return finish("ingest", [speed, memory], scale=scale, headline=[speed])
