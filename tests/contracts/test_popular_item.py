"""Every trained retriever on an item that 100,000 users have: one epoch, finite scores, the item first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, build_table
from embeddings.tables.table import Table
from recsys.knowledge_graph import KnowledgeGraph
from recsys.losses import Loss
from recsys.models.kgat import Kgat
from recsys.models.lightgcn import LightGcn
from recsys.models.mf import MatrixFactorization
from recsys.models.neumf import NeuMf
from recsys.models.ngcf import Ngcf
from recsys.models.simplex import SimpleX
from recsys.models.transr import TransR
from recsys.rng import generator
from recsys.samplers import NegativeSampling
from recsys.settings import FitSettings
from recsys.trainer import Trained, fit

USERS, ITEMS = 100_000, 4
KNOWLEDGE = KnowledgeGraph(ITEMS, ITEMS + 1, 1, np.array([[item, 0, ITEMS] for item in range(ITEMS)]))


def everybody_has_one() -> csr_array:
    """Item 0 is everybody's, item 1 is one user's, item 2 that of a second one, item 3 nobody's."""
    users = np.concatenate([np.arange(USERS), [7, 8]])
    items = np.concatenate([np.zeros(USERS, np.int64), [1, 2]])
    matrix = csr_array((np.ones(USERS + 2, np.float32), (users, items)), shape=(USERS, ITEMS))
    matrix.sort_indices()
    return matrix


def table(count: int) -> Table:
    spec = OptimizerSpec("adagrad", lr=0.1)
    return build_table(IdMap.identity(count), 4, optimizer=spec, init_std=0.1, generator=generator(0, "init", count))


def kgat(users: Table, items: Table) -> Kgat:
    knowledge = TransR(table(1), KNOWLEDGE, generator=generator(0, "relations"))
    return Kgat(users, items, knowledge, widths=(4,), dropout=0.0, generator=generator(0, "mixers"))


MODELS: dict[str, Callable[[Table, Table], Trained]] = {
    "mf": MatrixFactorization,
    "lightgcn": LightGcn,
    "ngcf": lambda users, items: Ngcf(users, items, layers=2, generator=generator(0, "mixers")),
    "simplex": lambda users, items: SimpleX(
        users, items, user_weight=0.5, pooling="mean", generator=generator(0, "mixers")
    ),
    "neumf": lambda users, items: NeuMf(users, items, widths=(4,), generator=generator(0, "perceptron")),
    "kgat": kgat,
}


@pytest.mark.parametrize("name", MODELS)
def test_an_item_of_100_000_users(name: str) -> None:
    train = everybody_has_one()
    model = MODELS[name](table(USERS), table(ITEMS))
    loss = Loss("log_loss" if name == "neumf" else "bpr")
    settings = FitSettings(loss, NegativeSampling(count=1, shared=False), batch_size=20_000, epochs=4)
    result = fit(model, train, None, settings, seed=0)
    assert result.history[-1].loss < result.history[0].loss
    scores = model.scores(np.arange(0, USERS, 1000)).numpy()
    assert np.isfinite(scores).all()
    assert (scores.argmax(axis=1) == 0).mean() >= 0.9
