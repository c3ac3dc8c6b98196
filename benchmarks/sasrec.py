"""One pass of SASRec over the prefixes of ML-1M, 200 events read, against RecBole's of the same size and loss.

Ours predicts after every event of a sequence in one pass, as the paper does; RecBole encodes every prefix anew. The
seconds of RecBole are those of as many prefixes as ours, at the rate of a few of its batches.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.harness import Peer, Row, finish, paired, peer_python, probe, set_threads
from benchmarks.seqloader import HERE, LENGTH, RECBOLE, SEQUENCES, SETTINGS, ml1m, save
from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, build_table
from recsys.models.sasrec import SasRecEncoder
from recsys.models.sequence_model import SequenceModel
from recsys.rng import generator
from recsys.sequence_losses import SequenceLoss
from recsys.sequence_trainer import NextItem, SequenceSettings
from recsys.sequences import Sequences


def training(train: Sequences, dim: int, layers: int, dropout: float) -> tuple[SequenceModel, NextItem]:
    """Our model and its steps, as the trainer makes them."""
    count = int(train.items.max()) + 1
    draws = generator(0, "init")
    items = build_table(
        IdMap.identity(count), dim, backend="torch", optimizer=OptimizerSpec("adam", lr=1e-3), init_std=0.02,
        generator=draws,
    )  # fmt: skip
    encoder = SasRecEncoder(dim, layers=layers, max_length=LENGTH, dropout=dropout, generator=draws)
    model = SequenceModel(items, encoder, train)
    settings = SequenceSettings(loss=SequenceLoss("softmax"), batch_size=SEQUENCES)
    return model, NextItem(model, train, settings, seed=0)


def flops(train: Sequences, dim: int, layers: int, items: int) -> float:
    """Multiplications and additions of a pass that matrix products make, attention without padding, thrice forward."""
    lengths = [min(int(length), LENGTH + 1) - 1 for length in train.lengths if length > 1]
    matrices = 6 * 2 * dim * dim * layers + 2 * dim * items
    attention = sum(2 * 2 * dim * length * length * layers for length in lengths)
    return 3.0 * (sum(lengths) * matrices + attention)


def run(scale: float = 1.0) -> int:
    """Time whole passes of ours and parts of RecBole's in ABBA pairs; ``scale`` is the share of the users."""
    set_threads()
    train, every = ml1m(scale)
    dim, layers = int(SETTINGS["dim"]), int(SETTINGS["layers"])
    model, steps = training(train, dim, layers, SETTINGS["dropout"])
    request = {"settings": SETTINGS, "batches": 4 if scale == 1.0 else 1, "prefixes": steps.count}
    losses: list[float] = []

    def ours() -> None:
        losses.append(sum(loss * size for _, size, loss in steps.steps("select", len(losses), 0)) / steps.count)

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "events.npz"
        save(every, path)
        with Peer(peer_python("recbole", RECBOLE), HERE / "sequence_recbole_worker.py", [str(path)]) as peer:
            pairs = paired(ours, lambda: peer.run("train", **request), repeats=3 if scale == 1.0 else 1)
    parameters = model.items.bytes().weights // 4 + sum(p.numel() for p in model.encoder.parameters())
    least = flops(train, dim, layers, model.num_items) / (probe(min(1.0, scale)).sgemm_gflop_s * 1e9)
    found = {f"peer_{name}": value for name, value in pairs.theirs_last.quality.items()}
    row = Row.duration(
        f"ml1m, {train.num_users:,} users, {LENGTH} events, d{dim}, {layers} layers, softmax", "recbole 1.2.1", pairs,
        limit=least, prefixes=steps.count, parameters=parameters, losses=losses, **found,
    )  # fmt: skip
    return finish("sasrec", [row], scale=scale)


if __name__ == "__main__":
    raise SystemExit(run())
