"""Training of rankers: it learns what can be learned, repeats, resumes to the same bits, and lowers its rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import Field, build_collection
from recsys.event_batch import Events, join
from recsys.rankers.build import RankerSpec, build_ranker
from recsys.rankers.ranker import Ranker, Tower
from recsys.rankers.training import RankingSettings, fit_ranker
from recsys.settings import EpochRecord, Selection, TrainingDivergedError


def checkerboard(count: int, seed: int) -> Events:
    """The label is whether user and item have the same parity: no single field tells anything."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 8, (count, 2)).astype(np.int32)
    labels = ((ids.sum(1) % 2) == 0).astype(np.uint8)
    return Events(ids, np.zeros((count, 0), np.float32), labels, ("user", "item"))


def model(dropout: float = 0.0, optimizer: str = "adam") -> Ranker:
    fields = [Field(name, IdMap(np.arange(8)[:, None], 9, 8, "full"), 4) for name in ("user", "item")]
    spec = OptimizerSpec(optimizer, lr=0.01)  # type: ignore[arg-type]
    tables = build_collection(fields, optimizer=spec, init_std=0.1, generator=np.random.default_rng(0))
    tower = Tower((16,), dropout=dropout, batch_norm=True)
    return build_ranker(RankerSpec("dcn_v2", tower), tables, 0, seed=0)


def settings(**changes: Any) -> RankingSettings:
    chosen = {"batch_size": 64, "epochs": 8, "lr": 0.01, "table_lr": 0.01, "checkpoint_minutes": 0.0}
    return RankingSettings(**chosen | {"selection": Selection("auc", 1, 3, refit=False)} | changes)


@pytest.mark.parametrize("refit", [False, True])
def test_an_interaction_of_two_fields_is_learned(refit: bool) -> None:
    ranker = model()
    test = checkerboard(500, 2)
    chosen = settings(selection=Selection("auc", 1, 3, refit=refit))
    result = fit_ranker(ranker, checkerboard(1500, 0), checkerboard(300, 1), chosen, seed=0)
    assert max(record.metrics.get("auc", 0.0) for record in result.history) > 0.99
    assert ((ranker.scores(test) > 0) == test.labels).mean() > 0.97
    assert not ranker.training


def test_id_dropout_teaches_the_unseen_row() -> None:
    """With it an item that nobody has gets the odds of the user's items; without it those of the initial row."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 8, (2000, 2)).astype(np.int32)
    labels = (rng.random(2000) < np.where(ids[:, 0] < 4, 0.9, 0.1)).astype(np.uint8)
    train = Events(ids, np.zeros((2000, 0), np.float32), labels, ("user", "item"))
    strangers = Events(np.array([[0, 8], [7, 8]], np.int32), np.zeros((2, 0), np.float32), labels[:2], train.fields)
    rows = []
    for share in (0.0, 0.2):
        ranker = model()
        before = ranker.tables(torch.tensor([[8, 8]])).detach()
        fit_ranker(ranker, train, None, settings(id_dropout={"item": share}), seed=0)
        rows.append(ranker.tables(torch.tensor([[8, 8]])).detach() - before)
    user, item = rows[1].split(4, dim=1)
    assert not rows[0].any()
    assert not user.any()
    assert item.abs().min() > 0
    assert ranker.scores(strangers) == pytest.approx(np.log([9, 1 / 9]), abs=0.7)


def test_id_dropout_of_no_field_is_refused() -> None:
    with pytest.raises(ValueError, match="id_dropout names the field 'itme'; the fields are user, item"):
        fit_ranker(model(), checkerboard(50, 0), None, settings(id_dropout={"itme": 0.1}), seed=0)
    with pytest.raises(ValueError, match=r"id_dropout of item must lie in \[0, 1\), got 1.0"):
        settings(id_dropout={"item": 1.0})


@pytest.mark.parametrize(("count", "steps"), [(2, 1), (64, 1), (65, 1), (66, 2), (129, 2)])
def test_an_event_alone_in_the_last_batch_joins_the_one_before(count: int, steps: int) -> None:
    ranker, data = model(), checkerboard(count, 0)
    result = fit_ranker(ranker, data, None, settings(epochs=1), seed=0)
    assert int(ranker.state_dict()["tower.1.num_batches_tracked"]) == steps
    assert np.isfinite(result.history[0].loss)


class Killed(Exception):  # noqa: N818 - a kill, not an error
    pass


@pytest.mark.parametrize(("epoch", "precision"), [(2, "float32"), (5, "float32"), (5, "bfloat16")])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, epoch: int, precision: str) -> None:
    data = checkerboard(700, 0), checkerboard(200, 1)
    chosen = settings(plateau_factor=0.5, precision=precision, id_dropout={"item": 0.1})
    whole = model(dropout=0.3)
    expected = fit_ranker(whole, *data, chosen, seed=4)

    def kill(record: EpochRecord) -> None:
        if record.epoch == epoch:
            raise Killed

    with pytest.raises(Killed):
        fit_ranker(model(dropout=0.3), *data, chosen, seed=4, checkpoint_dir=tmp_path, on_epoch=kill)
    resumed = model(dropout=0.3)
    result = fit_ranker(resumed, *data, chosen, seed=4, checkpoint_dir=tmp_path)
    assert [r.metrics for r in result.history] == [r.metrics for r in expected.history]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_bfloat16_learns_the_same_within_its_rounding() -> None:
    data = checkerboard(1500, 0), checkerboard(300, 1)
    found = []
    for precision in ("float32", "bfloat16"):
        ranker = model(dropout=0.2)
        result = fit_ranker(ranker, *data, settings(precision=precision), seed=0)
        found.append(result.history[0].loss)
        assert max(record.metrics["auc"] for record in result.history) > 0.99
        assert {p.dtype for p in ranker.parameters()} == {torch.float32}
        assert ranker.scores(checkerboard(50, 2)).dtype == np.float32
    assert found[0] != found[1] == pytest.approx(found[0], rel=0.02)


def test_another_seed_shuffles_otherwise() -> None:
    data = checkerboard(700, 0), checkerboard(200, 1)
    losses = [fit_ranker(model(), *data, settings(epochs=1), seed=seed).history[0].loss for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_rates_fall_after_a_validation_without_a_gain() -> None:
    """With a factor of almost nothing the weights stay where they were at the first validation without a gain."""
    data = checkerboard(700, 0), checkerboard(200, 1)
    states: list[dict[str, torch.Tensor]] = []
    values: list[float] = []
    ranker = model(optimizer="adagrad")

    def keep(record: EpochRecord) -> None:
        states.append({name: value.detach().clone() for name, value in ranker.named_parameters()})
        values.append(record.metrics["auc"])

    chosen = settings(epochs=12, plateau_factor=1e-9, selection=Selection("auc", 1, 12, refit=False))
    fit_ranker(ranker, *data, chosen, seed=0, on_epoch=keep)
    worse = next(i for i in range(1, len(values)) if values[i] <= max(values[:i]))
    moved = [
        sum(float((states[i][name] - states[i - 1][name]).abs().sum()) for name in states[0]) for i in range(1, 12)
    ]
    assert moved[worse - 1] > 1e-3
    assert max(moved[worse:]) < 1e-4


def test_degenerate_input_is_told() -> None:
    good = checkerboard(50, 0)
    ones = Events(good.ids, good.dense, np.ones(50, np.uint8), good.fields)
    none = Events(good.ids[:0], good.dense[:0], good.labels[:0], good.fields)
    with pytest.raises(ValueError, match="label 0 and with label 1, got 50 of one class"):
        fit_ranker(model(), good, ones, settings(), seed=0)
    with pytest.raises(ValueError, match="at least one train event"):
        fit_ranker(model(), none, good, settings(), seed=0)
    with pytest.raises(ValueError, match=r"labels must be 0 or 1, but labels\[3\] is 2"):
        Events(good.ids, good.dense, np.array([0, 1, 0, 2] + [0] * 46, np.uint8), good.fields)
    with pytest.raises(ValueError, match=r"ids \[E, 2\], dense \[E, N\] and labels \[E\], got \[50, 2\]"):
        Events(good.ids, good.dense, good.labels[:7], good.fields)
    with pytest.raises(ValueError, match="no field 'town'; the events have user, item"):
        good.column("town")
    assert len(join([good, ones])) == 100


def test_a_single_class_in_train_is_learned_as_a_constant() -> None:
    good = checkerboard(200, 0)
    ones = Events(good.ids, good.dense, np.ones(200, np.uint8), good.fields)
    ranker = model()
    fit_ranker(ranker, ones, None, settings(epochs=60), seed=0)
    assert (ranker.scores(good) > 2).all()


@pytest.mark.parametrize("batch_size", [64, 400])
def test_divergence_names_the_settings_of_rankers(batch_size: int) -> None:
    """Of many steps a later one tells; of a single one the validation."""
    train, valid = checkerboard(400, 0), checkerboard(60, 1)
    wild = settings(lr=1e37, table_lr=1e37, batch_size=batch_size)
    remedy = "a smaller train.lr, or a smaller optimizer.lr of the model"
    with pytest.raises(TrainingDivergedError, match=rf"(loss|auc) is (nan|inf) .*; try {remedy}") as error:
        fit_ranker(model(), train, valid, wild, seed=0)
    assert "temperature" not in str(error.value) and "clip" not in str(error.value)
    assert settings(precision="bfloat16").remedy == f"{remedy}, or train.precision float32"
