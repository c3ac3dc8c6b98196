"""Batches of one epoch of ML-1M for a sequence model that reads 200 events, against RecBole's loader.

Ours are jagged and every event of a sequence is a target; RecBole's have a padded row for every prefix, made before.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.harness import Peer, Row, finish, paired, peer_python, set_threads
from benchmarks.peer import ROOT
from recsys.sequences import Sequences, epoch_batches

HERE = Path(__file__).resolve().parent
RECBOLE = ["torch==2.13.0", "recbole==1.2.1", "numpy<2", "scipy<1.14", "pandas<2.3", "pyarrow<20", "ray==2.6.3"]
LENGTH, SEQUENCES, ROWS = 200, 64, 512
"""Events that are read, sequences of our batch, and rows of theirs."""
SETTINGS = {"length": LENGTH, "batch_size": ROWS, "dim": 64, "layers": 2, "dropout": 0.2}


def ml1m(scale: float) -> tuple[Sequences, Sequences]:
    """The training events of the first users in the order of SASRec's own file, and all of their events."""
    data = Path(os.environ.get("RECSYS_DATA", ROOT.parent / "shared" / "data"))
    frame = pl.read_parquet(data / "ml1m" / "interactions.parquet").drop_nulls("chrono_pos")
    frame = frame.filter(pl.col("user_id") <= max(64, int(6040 * scale))).sort("user_id", "chrono_pos")
    users = frame["user_id"].to_numpy().astype(np.int64) - 1
    items = frame["item_id"].rank("dense").to_numpy().astype(np.int64) - 1
    train = (frame["split"] == "train").to_numpy()
    count = int(users.max()) + 1
    return Sequences.of_events(users[train], items[train], count), Sequences.of_events(users, items, count)


def save(sequences: Sequences, path: Path) -> None:
    """The argument of the peer's worker."""
    np.savez(path, items=sequences.items, offsets=sequences.offsets)


def load(train: Sequences, epoch: int = 0) -> int:
    """All our batches of an epoch; the number of targets."""
    lengths = np.minimum(train.lengths, LENGTH + 1)
    users = np.flatnonzero(lengths > 1).astype(np.int64)
    count = 0
    for chosen in epoch_batches(users, lengths, SEQUENCES, seed=0, phase="bench", epoch=epoch):
        count += len(train.last(chosen, LENGTH + 1).shifted()[1])
    return count


def run(scale: float = 1.0) -> int:
    """Time epochs in ABBA pairs, RecBole's by a part of an epoch; ``scale`` is the share of the users."""
    set_threads()
    train, every = ml1m(scale)
    prefixes = load(train)
    request = {"settings": SETTINGS, "batches": 100 if scale == 1.0 else 10, "prefixes": prefixes}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "events.npz"
        save(every, path)
        with Peer(peer_python("recbole", RECBOLE), HERE / "sequence_recbole_worker.py", [str(path)]) as peer:
            repeats = 7 if scale == 1.0 else 2
            pairs = paired(lambda: load(train), lambda: peer.run("load", **request), repeats=repeats)
    assert pairs.ours_last == prefixes
    found = {f"peer_{name}": value for name, value in pairs.theirs_last.quality.items() if name != "parameters"}
    case = f"ml1m, {train.num_users:,} users, {LENGTH} events"
    row = Row.rate(case, "recbole 1.2.1", pairs, work=prefixes, unit="prefixes/s", prefixes=prefixes, **found)
    return finish("seqloader", [row], scale=scale)


if __name__ == "__main__":
    raise SystemExit(run())
