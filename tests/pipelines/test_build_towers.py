"""Two towers over TorchRec's collection: the towers and the updates of the torch back end."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.tables.collected_table import CollectedTable
from pipelines.config_section import Optimizer
from pipelines.config_two_tower import TowerHistory, TwoTower
from pipelines.stages.build_towers import build_two_tower
from pipelines.stages.compress import Maps
from recsys.checkpoint import load_model, save_model
from recsys.histories import Histories
from recsys.item_ssl import ItemSsl
from recsys.models.two_tower import TwoTower as TwoTowerModel
from recsys.tower_objective import Candidates, TowerObjective, TowerSettings
from tests.recsys import tower_fixture

USERS, ITEMS = 30, 20
pytestmark = pytest.mark.skipif(importlib.util.find_spec("torchrec") is None, reason="torchrec is not installed")


def interactions() -> csr_array:
    return csr_array((np.random.default_rng(0).random((USERS, ITEMS)) < 0.4).astype(np.float32))


def build(backend: str, optimizer: str = "adagrad", hidden: tuple[int, ...] = (12,)) -> TwoTowerModel:
    """Users share rows of two tables, items have one each; the collection has both sides."""
    rng = np.random.default_rng(1)
    shared = IdMap(rng.integers(0, 9, (USERS, 2)), 10, 9, "double_hash")
    config = TwoTower(
        dim=8,
        feature_dim=4,
        hidden=hidden,
        history=TowerHistory(length=4),
        optimizer=Optimizer.model_validate({"name": optimizer, "lr": 0.1}),
        backend=backend,  # type: ignore[arg-type]
    )
    features = {"users": tower_fixture.described(USERS, 1), "items": tower_fixture.described(ITEMS, 2)}
    return build_two_tower(config, features, Maps(shared, IdMap.identity(ITEMS), Path()), 0, interactions(), 100)


def objective(model: TwoTowerModel) -> TowerObjective:
    """Its steps look the item ids up for the candidates, the histories and both views of the self-supervision."""
    model.use_histories(events())
    settings = TowerSettings(
        Candidates("mixed", 8), item_dropout=0.2, ssl=ItemSsl("rfm", weight=0.5, batch_size=10), batch_size=32
    )
    return TowerObjective(model, events(), settings, affinity=None, seed=0)


def train(steps: TowerObjective, epochs: range) -> list[float]:
    return [loss for epoch in epochs for _, _, loss in steps.steps("select", epoch, 0)]


def events() -> Histories:
    return tower_fixture.histories(interactions())


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_both_back_ends_have_the_same_towers_and_updates(optimizer: str) -> None:
    ours, theirs = build("torch", optimizer), build("fbgemm", optimizer)
    assert all(isinstance(table, CollectedTable) for table in theirs.tables())
    start = [table.weight().clone() for table in ours.tables()]
    steps = [objective(model) for model in (ours, theirs)]
    torch.testing.assert_close(ours.scores(np.arange(USERS)), theirs.scores(np.arange(USERS)), rtol=1e-5, atol=1e-6)
    losses = [train(each, range(3)) for each in steps]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]
    for before, own, other in zip(start, ours.tables(), theirs.tables(), strict=True):
        assert (own.weight() - before).abs().max() > 0.01
        torch.testing.assert_close(own.weight(), other.weight(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(own.optimizer_state(), other.optimizer_state(), rtol=1e-3, atol=1e-5)
        assert own.bytes() == other.bytes()
    for name, part in ours.users.network.named_parameters():
        torch.testing.assert_close(part, dict(theirs.users.network.named_parameters())[name], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ours.scores(np.arange(USERS)), theirs.scores(np.arange(USERS)), rtol=1e-3, atol=1e-4)


def test_a_resume_has_the_same_bits() -> None:
    straight, first, second = build("fbgemm"), build("fbgemm"), build("fbgemm")
    train(objective(straight), range(4))
    stopped, resumed = objective(first), objective(second)
    train(stopped, range(2))
    second.load_state_dict({name: part.clone() for name, part in first.state_dict().items()})
    resumed.load_state(stopped.state())
    train(resumed, range(2, 4))
    assert set(straight.state_dict()) == set(build("torch").state_dict())
    for name, part in straight.state_dict().items():
        assert torch.equal(part, second.state_dict()[name]), name


def test_a_saved_model_is_that_of_the_torch_back_end(tmp_path: Path) -> None:
    model = build("fbgemm")
    train(objective(model), range(1))
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, TwoTowerModel)
    torch.testing.assert_close(loaded.scores(np.arange(USERS)), model.scores(np.arange(USERS)))


def test_what_fbgemm_lacks_is_told() -> None:
    with pytest.raises(ValueError, match="FBGEMM has no adam on the CPU; use the torch back end"):
        build("fbgemm", "adam")
