"""Models from the configuration: both back ends make the same updates, also where a step looks a table up twice."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.tables.fbgemm_table import FbgemmTable
from pipelines.config import Train
from pipelines.config_models import Kgat, LightGcn, Mf, NeuMf, Ngcf, SimpleX
from pipelines.stages.build import build_mf, fit_settings
from pipelines.stages.compress import Maps
from recsys.trainer import Trained, fit
from tests.recsys.graph_fixture import knowledge

USERS, ITEMS = 30, 20
COMMON = {"dim": 8, "optimizer": {"name": "adagrad", "lr": 0.1}}
BPR = {"loss": {"name": "bpr"}, "negatives": {"count": 2, "shared": False}, "similarity": "dot"}


def interactions() -> csr_array:
    return csr_array((np.random.default_rng(0).random((USERS, ITEMS)) < 0.3).astype(np.float32))


def trained(config: Mf) -> Trained:
    """Users share rows of weight 1, items have one each."""
    rng = np.random.default_rng(1)
    maps = Maps(IdMap(rng.integers(0, 9, (USERS, 2)), 10, 9, "double_hash"), IdMap.identity(ITEMS), Path())
    train = interactions()
    model = build_mf(config, maps, 0, train, 100, knowledge(ITEMS))
    fit(model, train, None, fit_settings(config, Train(epochs=3, batch_size=16)), seed=0)
    return model


@pytest.mark.skipif(importlib.util.find_spec("fbgemm_gpu") is None, reason="fbgemm is not installed")
@pytest.mark.parametrize(
    "config",
    [
        Mf.model_validate(COMMON | BPR),
        LightGcn.model_validate(COMMON | BPR | {"layers": 2, "l2": 0.01}),
        LightGcn.model_validate(COMMON | BPR | {"layers": 2, "ssl": {"name": "sgl"}}),
        Ngcf.model_validate(COMMON | BPR | {"layers": 2}),
        SimpleX.model_validate(COMMON),
        NeuMf.model_validate(COMMON | {"widths": (8, 4)}),
        Kgat.model_validate(COMMON | {"widths": (4,)}),
    ],
    ids=lambda config: config.name,
)
def test_both_back_ends_make_the_same_updates(config: Mf) -> None:
    ours, theirs = (trained(config.model_copy(update={"backend": backend})) for backend in ("torch", "fbgemm"))
    assert len(ours.tables) == len(theirs.tables)
    for own, other in zip(ours.tables, theirs.tables, strict=True):
        assert isinstance(other, FbgemmTable)
        torch.testing.assert_close(own.weight(), other.weight(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(own.optimizer_state(), other.optimizer_state(), rtol=1e-3, atol=1e-4)
