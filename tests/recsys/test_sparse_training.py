"""Models over sparse tables: they learn, resume with the same bits, and are saved as small as they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from embeddings.id_map import IdMap
from embeddings.sparsity import Growth, Schedule, Sparsity
from embeddings.tables import OptimizerSpec, build_table
from embeddings.tables.sparse_table import SparseTable
from recsys.checkpoint import load_model, save_model
from recsys.evaluator import quick_metrics
from recsys.losses import Loss
from recsys.models.mf import MatrixFactorization
from recsys.rng import generator
from recsys.samplers import NegativeSampling
from recsys.settings import EpochRecord, FitSettings, Selection
from recsys.trainer import fit
from recsys.training_state import CheckpointError
from tests.recsys.test_trainer import ITEMS, USERS, assert_same_bits, planted, timeless, weights

SETTINGS = FitSettings(
    Loss("sampled_softmax", temperature=0.3),
    NegativeSampling(count=16),
    batch_size=64,
    epochs=12,
    selection=Selection(every_epochs=2, patience=4, metric="recall@5"),
)


def make_model(growth: Growth = "gradient", optimizer: str = "adagrad") -> MatrixFactorization:
    users, items = (
        build_table(
            IdMap(np.arange(n)[:, None], n + 1, n, "full"),
            16,
            optimizer=OptimizerSpec(optimizer, lr=0.1),  # type: ignore[arg-type]
            init_std=0.1,
            generator=generator(0, side),
            sparsity=Sparsity(0.4, Schedule(4, 100), growth, window=3),
        )
        for side, n in (("users", USERS), ("items", ITEMS))
    )
    return MatrixFactorization(users, items, similarity="cosine")


@pytest.mark.parametrize("growth", ["gradient", "momentum", "random"])
def test_a_sparse_model_learns(growth: Growth) -> None:
    train, valid = planted()
    model = make_model(growth)
    untrained = quick_metrics(model, valid, train, ("recall@5",))["recall@5"]
    result = fit(model, train, valid, SETTINGS, seed=0)
    assert max(record.metrics["recall@5"] for record in result.history if record.metrics) > untrained + 0.3


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad"])
def test_a_resume_inside_the_schedule_has_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    train, valid = planted()
    settings = dataclasses.replace(SETTINGS, epochs=4, checkpoint_minutes=1e-9)
    whole = make_model(optimizer=optimizer)
    want = fit(whole, train, valid, settings, seed=0)
    stops = 0

    class StopError(Exception):
        pass

    def stop(record: EpochRecord) -> None:
        raise StopError

    while True:
        model = make_model(optimizer=optimizer)
        try:
            got = fit(model, train, valid, settings, seed=0, checkpoint_dir=tmp_path, on_epoch=stop)
            break
        except StopError:
            stops += 1
    assert stops == len(want.history)
    assert timeless(got) == timeless(want)
    assert_same_bits(weights(model), weights(whole))


def test_a_saved_model_is_as_small_as_its_tables(tmp_path: Path) -> None:
    model = make_model()
    save_model(model, tmp_path / "model")
    file = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert file < sum(table.bytes().weights for table in (model.users, model.items)) + 600
    again = load_model(tmp_path / "model")
    assert isinstance(again, MatrixFactorization) and isinstance(again.users, SparseTable)
    assert again.users.bytes().optimizer == 0
    assert torch.equal(again.scores(np.arange(USERS)), model.scores(np.arange(USERS)))


def test_a_saved_mask_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_model(make_model(), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["items.values"] = tensors["items.values"][:-1].clone()
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"the items beside .*item_map.safetensors do not fit it: values must be"):
        load_model(tmp_path / "model")


def test_learn_bpr_refuses_sparse_tables() -> None:
    settings = dataclasses.replace(
        SETTINGS, loss=Loss("bpr"), negatives=NegativeSampling(count=1, shared=False), batch_size=1
    )
    with pytest.raises(ValueError, match=r"LearnBPR, which does not take .*sparse tables"):
        fit(make_model(), planted()[0], None, settings, seed=0)
