"""A compressed item table is both what a sequence model reads and what it scores, whatever the compressor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embeddings.clustering import co_cluster
from embeddings.compress import compress
from embeddings.id_map import IdMap
from embeddings.names import COMPRESSORS
from embeddings.tables import OptimizerSpec, build_table
from recsys.models.sequence_model import SequenceModel
from recsys.rng import generator
from recsys.sequence_trainer import SequenceData, fit_sequences
from recsys.sequences import Sequences
from tests.recsys.sequence_fixture import sasrec
from tests.recsys.test_sequence_trainer import settings

USERS, ITEMS, EVENTS = 40, 24, 6


def sequences() -> Sequences:
    """Steps of one through the first 20 items; the last four items have no event."""
    items = (np.arange(USERS)[:, None] + np.arange(EVENTS)[None, :]) % 20
    return Sequences.of_events(np.repeat(np.arange(USERS), EVENTS), items.reshape(-1), USERS)


def summed(id_map: IdMap, rows: torch.Tensor) -> torch.Tensor:
    """Vectors of all items by the definition: the weighted sum of their rows."""
    weights = np.ones(id_map.rows.shape, np.float32) if id_map.weights is None else id_map.weights
    return (rows[torch.from_numpy(id_map.rows)] * torch.from_numpy(weights)[:, :, None]).sum(1)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_compressor_serves_inputs_and_outputs(name: str) -> None:
    train = sequences()
    graph = train.matrix(ITEMS)
    clusters = co_cluster(graph, 6.0)
    budget = (clusters.num_user_clusters, clusters.num_item_clusters)
    id_map = compress(name, graph, *budget, clusters, 0)[1]  # type: ignore[arg-type]
    table = build_table(
        id_map, 8, optimizer=OptimizerSpec("adam", lr=0.02), init_std=0.1, generator=generator(0, "items")
    )
    model = SequenceModel(table, sasrec(), train)
    before = table.weight().clone()
    history = fit_sequences(model, SequenceData(train, None, train), settings(epochs=3), seed=0).history
    assert history[-1].loss < history[0].loss
    vectors = summed(id_map, table.weight())
    assert torch.allclose(model.item_vectors(range(ITEMS)), vectors, atol=1e-6)
    batch = train.last(np.arange(USERS), model.encoder.max_length)
    read = model.encode(vectors[torch.from_numpy(batch.items)], batch)[EVENTS - 1 :: EVENTS]
    assert torch.allclose(model.scores(np.arange(USERS)), read @ vectors.T, atol=1e-4)
    used = np.unique(id_map.rows[:20] if id_map.weights is None else id_map.rows[:20][id_map.weights[:20] > 0])
    assert (table.weight()[used] != before[used]).any(1).all()
