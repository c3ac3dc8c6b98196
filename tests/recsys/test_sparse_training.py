"""Models over sparse tables: they learn, resume with the same bits, and are saved as small as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
from recsys.models.lightgcn import LightGcn
from recsys.models.mf import MatrixFactorization
from recsys.models.neumf import NeuMf
from recsys.models.tower import ID
from recsys.models.two_tower import TwoTower
from recsys.objective import Objective
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


def sparse_layered_towers() -> TwoTower:
    sides = tower_fixture.described(USERS, 1), tower_fixture.described(ITEMS, 2)
    return tower_fixture.two_tower(*sides, history_length=4, hidden=(12,), sparsity=Sparsity(0.4, Schedule(3, 60)))


def sparse_layered_neumf() -> NeuMf:
    tables = make_model(optimizer="adam")
    sparsities = [Sparsity(0.5, Schedule(3, 60), "momentum", window=2)] * 2
    return NeuMf(tables.users, tables.items, widths=(8, 4), generator=generator(0, "neumf"), sparsities=sparsities)


def fit_layers(model: TwoTower | NeuMf, directory: Path | None, on_epoch: Callable[[EpochRecord], None]) -> None:
    train, valid = planted()
    if isinstance(model, NeuMf):
        settings = dataclasses.replace(SETTINGS, loss=Loss("log_loss"), epochs=4, checkpoint_minutes=0.0)
        fit(model, train, valid, settings, seed=0, checkpoint_dir=directory, on_epoch=on_epoch)
    else:
        selection = Selection("recall@5", every_epochs=1, patience=9, refit=False)
        towers = TowerSettings(batch_size=64, epochs=4, selection=selection, checkpoint_minutes=0.0)
        data = TowerData(tower_fixture.histories(train), valid)
        fit_two_tower(model, data, towers, seed=0, checkpoint_dir=directory, on_epoch=on_epoch)


@pytest.mark.parametrize("make", [sparse_layered_towers, sparse_layered_neumf])
def test_sparse_layers_train_resume_and_are_saved_small(make: Callable[[], TwoTower | NeuMf], tmp_path: Path) -> None:
    whole, records = make(), list[EpochRecord]()
    start, sizes = [layer.stored() for layer in whole.sparse_layers], [layer.nnz for layer in whole.sparse_layers]
    fit_layers(whole, None, records.append)
    assert records[-1].loss < records[0].loss
    assert [layer.nnz for layer in whole.sparse_layers] == sizes
    assert all((layer.stored() != mask).any() for layer, mask in zip(whole.sparse_layers, start, strict=True))
    assert not any(name.endswith("values_avg") for name in whole.state_dict()), "no dense optimizer has the entries too"

    class StopError(Exception):
        pass

    def stop(record: EpochRecord) -> None:
        raise StopError

    with pytest.raises(StopError):
        fit_layers(make(), tmp_path / "state", stop)
    again = make()
    fit_layers(again, tmp_path / "state", records.append)
    assert_same_bits(again.state_dict(), whole.state_dict())
    save_model(whole, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, TwoTower | NeuMf)
    assert [layer.nnz for layer in loaded.sparse_layers] == sizes
    assert torch.equal(loaded.scores(np.arange(USERS)), whole.scores(np.arange(USERS)))
    saved = load_file(tmp_path / "model" / "model.safetensors")
    masks = sum(layer.mask.nbytes for layer in whole.sparse_layers)
    stored = {name: part.nbytes for name, part in saved.items() if "sparse." in name or ".network.weights." in name}
    assert sum(stored.values()) == 4 * sum(sizes) + masks + 8 * len(sizes), "entries, masks and a number of columns"


@pytest.mark.parametrize("make", [sparse_layered_towers, sparse_layered_neumf])
def test_saved_layers_that_do_not_fit_are_refused(make: Callable[[], TwoTower | NeuMf], tmp_path: Path) -> None:
    model = make()
    if isinstance(model, TwoTower):
        model.use_histories(tower_fixture.histories(planted()[0]))
    save_model(model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(".1.values") and "table" not in name)
    save_file(tensors | {name: tensors[name][:-1].clone()}, path)
    with pytest.raises(CheckpointError, match=r"the layers .* of the saved model do not fit: values must be .*; train"):
        load_model(tmp_path / "model")


def test_the_learning_rate_of_sparse_layers_is_that_of_the_other_layers() -> None:
    assert {layer.optimizer.lr for layer in sparse_layered_towers().sparse_layers} == {0.01}
    assert {layer.optimizer.lr for layer in sparse_layered_neumf().sparse_layers} == {0.1}


def test_neumf_needs_a_sparsity_for_each_layer() -> None:
    tables = make_model()
    with pytest.raises(ValueError, match="NeuMf of 2 layers needs a sparsity for each, got 1"):
        NeuMf(
            tables.users, tables.items, widths=(8, 4), generator=generator(0, "neumf"), sparsities=[Sparsity(0.5)]
        )  # fmt: skip


def light_gcn(*, sparse: bool) -> LightGcn:
    tables = [
        build_table(
            IdMap.identity(count), 16, optimizer=OptimizerSpec("adam", lr=0.02), init_std=0.1,
            generator=generator(0, side), sparsity=Sparsity(0.4, Schedule(4, 40, stop=0.5)) if sparse else None,
        )
        for side, count in (("users", USERS), ("items", ITEMS))
    ]  # fmt: skip
    model = LightGcn(*tables, layers=2, l2=1e-3)
    model.use_graph(planted()[0])
    return model


def test_light_gcn_over_sparse_tables_has_the_steps_of_masked_dense_tables() -> None:
    """Masks move until step 20; after that a full table that is masked after every step is the same."""
    train = planted()[0]
    sparse, dense = light_gcn(sparse=True), light_gcn(sparse=False)
    settings = dataclasses.replace(SETTINGS, batch_size=128)
    start = [table.stored() for table in sparse.tables if isinstance(table, SparseTable)]
    ours = Objective(sparse, train, settings, seed=0)
    for epoch in range(-(-20 // ours.steps_per_epoch)):
        list(ours.steps("select", epoch, 0))
    masks = [table.stored() for table in sparse.tables if isinstance(table, SparseTable)]
    assert all((mask != before).sum() > 20 for mask, before in zip(masks, start, strict=True))
    for own, whole, mask in zip(sparse.tables, dense.tables, masks, strict=True):
        assert isinstance(own, SparseTable)
        state = {name: torch.zeros(own.num_rows, 16) for name in ("exp_avg", "exp_avg_sq")}
        for name, part in state.items():
            part[mask] = getattr(own, name)
        whole.load_state_dict({"embedding": own.weight(), "steps": own.steps, **state})
    theirs = Objective(dense, train, settings, seed=0)
    for step, (one, other) in enumerate(zip(ours.steps("select", 9, 0), theirs.steps("select", 9, 0), strict=True)):
        assert one[2] == pytest.approx(other[2], rel=1e-5), step
        for own, whole, mask in zip(sparse.tables, dense.tables, masks, strict=True):
            whole.weight().mul_(mask)
            torch.testing.assert_close(own.weight(), whole.weight(), rtol=1e-4, atol=1e-5)
