"""What a compressed model recommends hardly depends on how its ids are numbered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_array

from embeddings.compress import compress
from embeddings.id_map import IdMap
from embeddings.levels import Levels
from embeddings.tables import OptimizerSpec, build_table
from recsys.evaluator import quick_metrics
from recsys.losses import Loss
from recsys.models.mf import MatrixFactorization
from recsys.rng import generator
from recsys.samplers import NegativeSampling
from recsys.settings import FitSettings
from recsys.trainer import fit


@pytest.mark.quality
@pytest.mark.parametrize("levels", [Levels(), Levels(count=0, head_share=0.5)])
def test_recall_over_five_orders_of_the_nodes(levels: Levels, shared_data: Path) -> None:
    """Only the id maps see the order; training draws the same numbers for the same ids."""
    frame = pl.read_parquet(shared_data / "ml100k" / "interactions.parquet")
    pairs = [np.unique(frame[name].to_numpy(), return_inverse=True)[1] for name in ("user_id", "item_id")]
    held = generator(0, "held out").random(len(frame)) < 0.2
    train, valid = (
        csr_array((np.ones(int(some.sum()), np.float32), (pairs[0][some], pairs[1][some])), shape=(943, 1682))
        for some in (~held, held)
    )
    train.sort_indices()
    valid.sort_indices()
    recalls = [_recall(_maps(train, levels, order), train, valid) for order in range(5)]
    assert (max(recalls) - min(recalls)) / np.mean(recalls) < 0.02


def _maps(train: csr_array, levels: Levels, order: int) -> list[IdMap]:
    """Id maps of the graph with its nodes in another order, for the ids as they were."""
    orders = [generator(order, side).permutation(count) for side, count in enumerate(train.shape)]
    shuffled = csr_array(train[orders[0]][:, orders[1]])
    maps = compress("multi_graphhash", shuffled, 236, 420, levels=levels)
    found = []
    for one, numbers in zip(maps, orders, strict=True):
        back = np.argsort(numbers)
        weights = one.lookup_weights(np.arange(one.num_ids))[back]
        found.append(IdMap(one.rows[back], one.num_rows, one.unseen_row, one.compressor, weights))
    return found


def _recall(maps: list[IdMap], train: csr_array, valid: csr_array) -> float:
    tables = [
        build_table(
            one, 32, optimizer=OptimizerSpec("adagrad", lr=0.1), init_std=0.1, generator=generator(0, "init", side)
        )
        for side, one in enumerate(maps)
    ]
    model = MatrixFactorization(*tables, similarity="cosine")
    loss = Loss("sampled_softmax", temperature=0.15, logq=True)
    fit(model, train, None, FitSettings(loss, NegativeSampling(count=128), batch_size=1024, epochs=12), seed=0)
    return quick_metrics(model, valid, train, ("recall@20",))["recall@20"]
