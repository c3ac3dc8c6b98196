"""Constrained beam search, beam 50 over the 12,101 items of Amazon Beauty, against ``transformers`` on the same model.

Both sides have the same T5 of TIGER's sizes with the same weights, drawn at random: what a search costs does not depend
on them, and lists that agree show that it is the same search. The peer's is ``generate`` with
``prefix_allowed_tokens_fn``, which is how published code keeps it to the catalogue; its prefixes are looked up in a
dictionary.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file
from scipy.sparse import csr_array
from torch import Tensor

from benchmarks.harness import Peer, Row, finish, paired, peer_python, set_threads
from benchmarks.peer import ROOT
from embeddings.semantic_id.codes import SemanticCodes
from embeddings.semantic_id.residual import fit_residual
from recsys.models.t5 import T5Shape
from recsys.models.tiger import Reading, Tiger
from recsys.rng import generator
from recsys.sequences import Sequences
from recsys.spectral import spectral_vectors
from recsys.topk import exact_top_k

HERE = Path(__file__).resolve().parent
TRANSFORMERS = ["torch==2.13.0", "transformers==5.23.0", "safetensors", "numpy"]
USERS, BEAM, K, PEER_BATCH = 256, 50, 10, 32


def run(scale: float = 1.0) -> int:
    """Time the lists of 256 users in ABBA pairs; ``scale`` is the share of them."""
    set_threads()
    histories, num_items = beauty()
    model = Tiger(
        beauty_codes(histories, num_items),
        histories,
        T5Shape(),
        Reading(),
        beam=BEAM,
        generator=generator(0, "weights"),
    )
    users = generator(0, "users").permutation(histories.num_users)[: max(2, int(USERS * scale))]
    nothing = csr_array((histories.num_users, num_items), dtype=np.float32)
    with tempfile.TemporaryDirectory() as directory:
        job, out = Path(directory) / "job.safetensors", Path(directory) / "lists.npz"
        save_file(job_tensors(model, users), job)
        sizes = [str(value) for value in dataclasses.asdict(model.transformer.shape).values()]
        with Peer(
            peer_python("transformers", TRANSFORMERS), HERE / "beam_transformers_worker.py", [str(job), *sizes]
        ) as peer:
            pairs = paired(
                lambda: exact_top_k(model, users, K, nothing),
                lambda: peer.run(beam=BEAM, k=K, batch=PEER_BATCH, out=str(out)),
                repeats=3,
            )
        with np.load(out, allow_pickle=False) as found:
            paths, scores = found["paths"], found["scores"]
    ours = pairs.ours_last
    same = model.paths[ours.items] == paths
    row = Row.rate(
        f"amazon_beauty, {len(users)} users, beam {BEAM}, top-{K}, 4+4 layers of d128",
        "transformers 5.23.0",
        pairs,
        work=len(users),
        unit="users/s",
        same_lists=float(same.all(axis=2).mean()),
        largest_difference=float(np.abs(ours.scores - scores).max()),
        items_in_the_catalogue=float((ours.items >= 0).mean()),
    )
    return finish("beam", [row], scale=scale)


def beauty() -> tuple[Sequences, int]:
    """What users of the S3-Rec split know before the test item, and the size of the catalogue."""
    data = Path(os.environ.get("RECSYS_DATA", ROOT.parent / "shared" / "data"))
    frame = pl.read_parquet(data / "amazon_beauty" / "interactions.parquet")
    dense = frame.with_columns(pl.col("user_id", "item_id").rank("dense").cast(pl.Int64) - 1)
    known = dense.filter(pl.col("split") != "test").sort("user_id", "pos")
    users, items = known["user_id"].to_numpy(), known["item_id"].to_numpy()
    return Sequences.of_events(users, items, int(dense["user_id"].n_unique())), int(dense["item_id"].n_unique())


def beauty_codes(histories: Sequences, num_items: int) -> SemanticCodes:
    """3 x 256 codes of the graph, and a digit for items that share theirs."""
    vectors = spectral_vectors(histories.matrix(num_items), 64, seed=0)[1]
    _, codes = fit_residual(np.asarray(vectors, np.float32), (256, 256, 256), generator(0, "codes"))
    return SemanticCodes(codes, (256, 256, 256)).resolve_collisions("digit")


def job_tensors(model: Tiger, users: np.ndarray) -> dict[str, Tensor]:
    """The weights by the names of ``transformers``, the tokens that each user is read as, and the items' paths."""
    batch = model.histories.last(users, model.reading.max_items)
    tokens, lengths = model.tokens(batch)
    longest = int(lengths.max())
    padded = torch.zeros(len(users), longest, dtype=torch.int64)
    padded[torch.arange(longest)[None, :] < torch.from_numpy(lengths)[:, None]] = torch.from_numpy(tokens)
    weights = {peer_name(name): weight.detach().contiguous() for name, weight in model.transformer.named_parameters()}
    return weights | {"tokens": padded, "paths": torch.from_numpy(model.paths)}


def peer_name(name: str) -> str:
    """A parameter's name in ``transformers``.

    >>> peer_name("decoder.layers.2.cross.query.weight")
    'decoder.block.2.layer.1.EncDecAttention.q.weight'
    """
    if name == "embedding":
        return "shared.weight"
    stack, *rest = name.split(".")
    if rest == ["positions"]:
        return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    if rest[0] == "norm":
        return f"{stack}.final_layer_norm.weight"
    feed = 2 if stack == "decoder" else 1
    parts = {
        "own": "0.SelfAttention", "norm_own": "0.layer_norm", "cross": "1.EncDecAttention",
        "norm_cross": "1.layer_norm", "norm_feed": f"{feed}.layer_norm",
        "inner": f"{feed}.DenseReluDense.wi", "outer": f"{feed}.DenseReluDense.wo",
    }  # fmt: skip
    matrices = {"query": "q", "key": "k", "value": "v", "output": "o"}
    inside = ".".join(matrices.get(part, part) for part in rest[3:])
    return f"{stack}.block.{rest[1]}.layer.{parts[rest[2]]}.{inside}"


if __name__ == "__main__":
    raise SystemExit(run())
