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
from embeddings.tables import OptimizerSpec, Table, build_table
from embeddings.tables.sparse_table import SparseTable
from recsys.checkpoint import load_model, save_model
from recsys.evaluator import quick_metrics
from recsys.losses import Loss
from recsys.models.mf import MatrixFactorization
from recsys.models.neumf import NeuMf
from recsys.models.tower import ID
from recsys.models.two_tower import TwoTower
from recsys.rng import generator
from recsys.samplers import NegativeSampling
from recsys.settings import EpochRecord, FitSettings, Selection
from recsys.tower_objective import TowerSettings
from recsys.tower_training import TowerData, fit_two_tower
from recsys.trainer import fit
from recsys.training_state import CheckpointError
from tests.recsys import tower_fixture
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


def sparse_ids(table: Table) -> Table:
    return build_table(
        table.id_map, table.dim, optimizer=table.optimizer, init_std=0.1, generator=generator(0, "ids"),
        sparsity=Sparsity(0.5, Schedule(3, 60), window=3),
    )  # fmt: skip


def sparse_towers() -> TwoTower:
    sides = tower_fixture.described(USERS, 1), tower_fixture.described(ITEMS, 2)
    model = tower_fixture.two_tower(*sides, history_length=4, hidden=(12,))
    for tower in (model.users, model.items):
        tower.replace_table(ID, sparse_ids)
        tower.replace_table("no such column", sparse_ids)
    return model


def test_two_towers_over_sparse_ids_train_resume_and_are_saved_small(tmp_path: Path) -> None:
    train, valid = planted()
    data = TowerData(tower_fixture.histories(train), valid)
    selection = Selection("recall@5", every_epochs=1, patience=9, refit=False)
    settings = TowerSettings(batch_size=64, epochs=4, selection=selection, checkpoint_minutes=0.0)
    whole = sparse_towers()
    start = [table.stored() for table in whole.tables() if isinstance(table, SparseTable)]
    fit_two_tower(whole, data, settings, seed=0)
    tables = [table for table in whole.tables() if isinstance(table, SparseTable)]
    assert [table.nnz for table in tables] == [table.num_rows * table.dim // 2 for table in tables]
    assert all((table.stored() != before).any() for table, before in zip(tables, start, strict=True))

    class StopError(Exception):
        pass

    def stop(record: EpochRecord) -> None:
        raise StopError

    again = sparse_towers()
    with pytest.raises(StopError):
        fit_two_tower(again, data, settings, seed=0, checkpoint_dir=tmp_path / "state", on_epoch=stop)
    again = sparse_towers()
    fit_two_tower(again, data, settings, seed=0, checkpoint_dir=tmp_path / "state")
    assert_same_bits(again.state_dict(), whole.state_dict())
    save_model(whole, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, TwoTower) and isinstance(loaded.items.table_of(ID), SparseTable)
    assert torch.equal(loaded.scores(np.arange(USERS)), whole.scores(np.arange(USERS)))


def test_a_saved_neumf_has_its_sparse_tables(tmp_path: Path) -> None:
    tables = make_model()
    model = NeuMf(tables.users, tables.items, widths=(8, 4), generator=generator(0, "neumf"))
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, NeuMf) and isinstance(loaded.users, SparseTable)
    assert torch.equal(loaded.scores(np.arange(USERS)), model.scores(np.arange(USERS)))


def test_learn_bpr_refuses_sparse_tables() -> None:
    settings = dataclasses.replace(
        SETTINGS, loss=Loss("bpr"), negatives=NegativeSampling(count=1, shared=False), batch_size=1
    )
    with pytest.raises(ValueError, match=r"LearnBPR, which does not take .*sparse tables"):
        fit(make_model(), planted()[0], None, settings, seed=0)
