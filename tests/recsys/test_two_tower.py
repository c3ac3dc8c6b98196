"""The two-tower model against a dense computation, its training against plain autograd, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch.nn import functional

from embeddings.id_map import IdMap
from recsys.checkpoint import CheckpointError, load_model, save_model
from recsys.features import Categorical, Features, MultiCategorical, Numeric
from recsys.histories import Histories
from recsys.item_ssl import ItemSsl
from recsys.mlp import Mlp
from recsys.models.tower import Tower
from recsys.models.two_tower import TwoTower
from recsys.mutual_information import adjusted_mutual_information
from recsys.settings import EpochRecord, Selection
from recsys.tower_objective import Candidates, TowerObjective, TowerSettings
from recsys.tower_training import TowerData, fit_two_tower
from tests.recsys import tower_fixture

USERS, ITEMS = 20, 15


def paired(count: int) -> IdMap:
    return IdMap(np.arange(count)[:, None] // 2, count // 2 + 2, count // 2 + 1, "pair")


def interactions(seed: int = 0) -> csr_array:
    """Users like the items of their parity, with holes."""
    truth = np.add.outer(np.arange(USERS), np.arange(ITEMS)) % 2 == 0
    return csr_array((truth & (np.random.default_rng(seed).random(truth.shape) < 0.7)).astype(np.float32))


def model(history_length: int = 4, **settings: Any) -> TwoTower:
    users, items = tower_fixture.described(USERS, 1), tower_fixture.described(ITEMS, 2)
    made = tower_fixture.two_tower(users, items, history_length=history_length, hidden=(12,), **settings)
    made.use_histories(tower_fixture.histories(interactions()))
    return made


def dense_tower(tower: Tower, row: int, history: list[int] | None, id_table: torch.Tensor) -> torch.Tensor:
    """One row, feature by feature: vectors of the weights, means of lists, numbers and whether they are missing."""
    parts, numbers = [], []
    tables = iter(tower.tables)
    for column in tower.features.columns:
        match column:
            case Categorical():
                table = next(tables)
                rows = table.id_map.lookup(np.array([column.ids[row]]))[0]
                parts.append(table.weight()[torch.from_numpy(rows)].sum(0))
            case MultiCategorical():
                own = column.values[column.offsets[row] : column.offsets[row + 1]]
                weight = next(tables).weight()
                parts.append(weight[torch.from_numpy(own)].mean(0) if len(own) else torch.zeros(weight.shape[1]))
            case Numeric():
                numbers += [float(column.values[row]), float(column.missing[row])]
    parts.append(torch.tensor(numbers))
    if history is not None:
        parts.append(id_table[torch.tensor(history)].mean(0) if history else torch.zeros(id_table.shape[1]))
    hidden = torch.cat(parts)
    weights, biases = list(tower.network.weights), list(tower.network.biases)
    hidden = functional.relu(weights[0] @ hidden + biases[0])
    return functional.normalize(weights[1] @ hidden + biases[1], dim=0)


@pytest.mark.parametrize("item_map", [None, paired(ITEMS)])
def test_vectors_are_those_of_a_dense_computation(item_map: IdMap | None) -> None:
    made = model(item_map=item_map)
    ids = made.items.tables[0]
    by_id = ids.weight()[torch.from_numpy(ids.id_map.rows[:, 0])]
    items = torch.stack([dense_tower(made.items, row, None, by_id) for row in range(ITEMS)])
    histories = made.histories
    recent = [histories.items[histories.offsets[u] : histories.offsets[u + 1]][-4:].tolist() for u in range(USERS)]
    users = torch.stack([dense_tower(made.users, row, recent[row], by_id) for row in range(USERS)])
    assert torch.allclose(made.item_vectors(range(ITEMS)), items, atol=1e-6)
    assert torch.allclose(made.user_vectors(np.arange(USERS)), users, atol=1e-6)
    assert torch.allclose(made.scores(np.arange(USERS)), users @ items.T, atol=1e-6)


def test_cold_entities_are_told_apart_by_their_features() -> None:
    """Two items without a training event share the unseen row of the ids and differ by their features."""
    cold = IdMap(np.r_[np.arange(ITEMS - 2), [ITEMS - 2] * 2][:, None], ITEMS - 1, ITEMS - 2, "full")
    vectors = model(item_map=cold).item_vectors(range(ITEMS))
    assert (vectors[-1] - vectors[-2]).abs().max() > 1e-3


def settings(**changes: Any) -> TowerSettings:
    chosen = {"candidates": Candidates("mixed", count=6), "batch_size": 32, "epochs": 3, "context": "before"}
    return TowerSettings(**chosen | changes)


def data(valid: bool = False) -> TowerData:
    train = interactions()
    held_out = csr_array((interactions(9) - interactions(9).multiply(train)).astype(np.float32))
    held_out.eliminate_zeros()
    union = tower_fixture.histories(csr_array(train + held_out))
    affinity = adjusted_mutual_information(tower_fixture.described(ITEMS, 2))
    return TowerData(tower_fixture.histories(train), held_out if valid else None, union if valid else None, affinity)


def test_a_tower_of_numbers_alone() -> None:
    number = Numeric("size", np.array([2.0, 0.0], np.float32), np.array([False, True]))
    tower = Tower(Features(2, (number,)), (), Mlp((2, 3), np.random.default_rng(0)))
    weight = tower.network.weights[0]
    assert torch.allclose(tower(tower.features), torch.stack([2 * weight[:, 0], weight[:, 1]]))


def test_users_may_be_nothing_but_their_histories() -> None:
    items = tower_fixture.described(ITEMS, 2)
    made = tower_fixture.two_tower(Features(USERS), items, history_length=4)
    fit_two_tower(made, data(), settings(user_dropout=0.5, epochs=40, context="others"), seed=0)
    scores, truth = made.scores(np.arange(USERS)).numpy(), interactions().toarray() > 0
    assert scores[truth].mean() > scores[~truth].mean() + 0.3
    assert made.tables() == made.items.tables


@pytest.mark.parametrize("loss", ["in_batch", "sampled", "mixed"])
@pytest.mark.parametrize("logq", ["streaming", "exact", "none"])
def test_every_loss_learns(loss: Any, logq: Any) -> None:
    made = model(learn_temperature=True)
    chosen = settings(candidates=Candidates(loss, count=8, logq=logq), epochs=12)
    result = fit_two_tower(made, data(), chosen, seed=0)
    scores, truth = made.scores(np.arange(USERS)).numpy(), interactions().toarray() > 0
    gap = scores[truth].mean() - scores[~truth].mean()
    assert gap > 0.3
    assert result.history[-1].loss < result.history[0].loss
    assert float(made.temperature.detach()) != pytest.approx(0.2)


def test_the_correction_is_the_share_of_the_batches_that_have_an_item() -> None:
    events = tower_fixture.histories(interactions())
    chosen = settings(candidates=Candidates("in_batch", logq="exact"))
    objective = TowerObjective(model(), events, chosen, affinity=None, seed=0)
    size = len(events.items) / objective.steps_per_epoch
    shares = np.bincount(events.items, minlength=ITEMS) / len(events.items)
    assert np.allclose(np.exp(objective._log_offered(np.arange(ITEMS))), 1 - (1 - shares) ** size, rtol=1e-4)
    mixed = settings(candidates=Candidates("mixed", count=6, logq="exact"))
    objective = TowerObjective(model(), events, mixed, affinity=None, seed=0)
    expected = 1 - (1 - shares) ** size * (1 - 1 / ITEMS) ** 6
    assert np.allclose(np.exp(objective._log_offered(np.arange(ITEMS))), expected, rtol=1e-4)
    counts = objective.knowledge()["counts"]
    assert counts.tolist() == np.bincount(events.items, minlength=ITEMS).tolist()


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("ssl", [None, ItemSsl("cfm", batch_size=8, projection="separate")])
def test_a_stopped_training_goes_on_to_the_same_bits(ssl: ItemSsl | None, tmp_path: Path) -> None:
    chosen = settings(
        ssl=ssl,
        checkpoint_minutes=0.0,
        item_dropout=0.2,
        user_dropout=0.2,
        selection=Selection("recall@5", every_epochs=1, patience=9),
    )
    whole = model(learn_temperature=True)
    fit_two_tower(whole, data(valid=True), chosen, seed=0)

    def stop(record: EpochRecord) -> None:
        if (record.phase, record.epoch) in ((("select"), 2), ("refit", 1)):
            raise StoppedError

    for _ in range(2):
        with pytest.raises(StoppedError):
            part = model(learn_temperature=True)
            fit_two_tower(part, data(valid=True), chosen, seed=0, checkpoint_dir=tmp_path, on_epoch=stop)
    again = model(learn_temperature=True)
    fit_two_tower(again, data(valid=True), chosen, seed=0, checkpoint_dir=tmp_path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    with pytest.raises(CheckpointError, match="belongs to another configuration, data set or initial model"):
        fit_two_tower(model(), data(), chosen, seed=0, checkpoint_dir=tmp_path)


def test_a_saved_model_serves_with_its_features_and_histories(tmp_path: Path) -> None:
    made = model(item_map=paired(ITEMS))
    save_model(made, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert isinstance(again, TwoTower)
    assert torch.equal(again.scores(np.arange(USERS)), made.scores(np.arange(USERS)))
    (tmp_path / "model" / "items.table.0.map.safetensors").unlink()
    with pytest.raises(CheckpointError, match="damaged, or files beside it are missing"):
        load_model(tmp_path / "model")


def test_what_is_refused() -> None:
    users, items = tower_fixture.described(USERS), tower_fixture.described(ITEMS)
    tower = tower_fixture.tower("items", items)
    with pytest.raises(ValueError, match=r"one table for each of its features \(id, parity, tags\), got 1"):
        Tower(items, tower.tables[:1], tower.network)
    with pytest.raises(ValueError, match=r"table of feature 'id' must know its 15 values, got 20"):
        Tower(items, [tower_fixture.tower("users", users).tables[0], *tower.tables[1:]], tower.network)
    with pytest.raises(ValueError, match="must take at least the joined width 26, got 9"):
        Tower(items, tower.tables, Mlp((9, 4), np.random.default_rng(0)))
    with pytest.raises(ValueError, match=r"must take 8 numbers of the history .* got 0 and 0"):
        TwoTower(tower_fixture.tower("users", users), tower, history_length=3)
    nameless = tower_fixture.tower("items", Features(ITEMS, items.columns[1:]))
    with pytest.raises(ValueError, match="a history is pooled from the items' id table"):
        TwoTower(tower_fixture.tower("users", users, extra=8), nameless, history_length=3)
    narrow = Tower(Features(USERS), (), Mlp((8, 3), np.random.default_rng(0)))
    with pytest.raises(ValueError, match="must have one dimension, got 3 for users, 8 for items"):
        TwoTower(narrow, tower)
    fresh = tower_fixture.two_tower(users, items, history_length=2)
    with pytest.raises(RuntimeError, match="TwoTower needs histories, got none"):
        fresh.scores(np.arange(2))
    other = Histories.of_events(np.array([0]), np.array([0]), num_users=2, num_items=3)
    with pytest.raises(ValueError, match=r"of the model's \(20, 15\) users and items, got \(2, 3\)"):
        fresh.use_histories(other)
    empty = TowerData(data().train, csr_array((USERS, ITEMS)))
    with pytest.raises(ValueError, match="valid must have at least one interaction, got an empty matrix"):
        fit_two_tower(model(), empty, settings(), seed=0)
    with pytest.raises(ValueError, match="at least two widths >= 1, got"):
        Mlp((3,), np.random.default_rng(0))
    with pytest.raises(ValueError, match="train must have at least one event"):
        empty = Histories.of_events(np.empty(0, np.int64), np.empty(0, np.int64), num_users=USERS, num_items=ITEMS)
        fit_two_tower(fresh, TowerData(empty), settings(), seed=0)
    with pytest.raises(ValueError, match=r"give TowerData.union"):
        fit_two_tower(fresh, TowerData(data().train, interactions()), settings(), seed=0)
