"""Self-supervision of an item tower: complementary views, the paper's loss, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.features import Categorical, Features
from recsys.item_ssl import ItemSsl, ItemSslName, ItemSslTerm
from recsys.models.tower import Tower, id_column
from recsys.mutual_information import adjusted_mutual_information
from recsys.rng import generator
from tests.recsys import tower_fixture

ITEMS = 30
NO_ID = Features(ITEMS, tower_fixture.described(ITEMS).columns[1:])


def term(
    name: ItemSslName, features: Features | None = None, tower: Tower | None = None, **settings: float | str
) -> ItemSslTerm:
    features = tower_fixture.described(ITEMS) if features is None else features
    tower = tower_fixture.tower("items", features) if tower is None else tower
    ssl = ItemSsl(name, **settings)  # type: ignore[arg-type]
    affinity = adjusted_mutual_information(features) if name == "cfm" else None
    return ItemSslTerm(tower, ssl, affinity=affinity, seed=0)


def masked(before: Features, after: Features) -> list[bool]:
    """Columns that are missing everywhere in a view."""
    return [
        bool(two.missing.all() and not one.missing.all())
        for one, two in zip(before.columns, after.columns, strict=True)
    ]


@pytest.mark.parametrize("name", ["rfm", "cfm"])
@pytest.mark.parametrize("with_id", [True, False])
def test_masks_are_complementary_and_no_view_is_empty(name: ItemSslName, with_id: bool) -> None:
    features = tower_fixture.described(ITEMS) if with_id else NO_ID
    made, found = term(name, features, dropout=0.0), set()
    for draw in range(200):
        views = made.views(features, np.random.default_rng(draw))
        first, second = (masked(features, view) for view in views)
        assert [one != two for one, two in zip(first, second, strict=True)] == [True] * len(features.columns)
        assert not all(first) and not all(second)
        found.add(tuple(first))
    assert len(found) >= 2
    if with_id:
        assert {first[0] for first in found} == {True, False}  # the id is in either view
    if name == "rfm":
        assert {sum(first) for first in found} == {len(features.columns) // 2}


def test_correlated_features_are_masked_together() -> None:
    """a and b are one feature twice, c and d another: the drawn feature takes its twin along."""
    a, c = np.arange(40) % 4, np.arange(40) // 4 % 2
    columns = [Categorical(n, v.astype(np.int64), 4) for n, v in (("a", a), ("b", 3 - a), ("c", c), ("d", 1 - c))]
    features = Features(40, (id_column(40), *columns))
    made = term("cfm", features, dropout=0.0)
    for draw in range(50):
        first = masked(features, made.views(features, np.random.default_rng(draw))[0])[1:]
        assert sum(first) == 3  # the drawn one and floor(4 / 2) more
        assert (first[0] and first[1]) or (first[2] and first[3])
    twins = adjusted_mutual_information(features)
    assert twins[1, 2] > 0.99 and twins[1, 3] < 0.5


@pytest.mark.parametrize("count", [1, 2])
def test_correlated_masking_with_few_features_beside_the_id(count: int) -> None:
    features = Features(ITEMS, tower_fixture.described(ITEMS).columns[: 1 + count])
    made = term("cfm", features, dropout=0.0)
    for draw in range(20):
        first, second = (masked(features, view) for view in made.views(features, np.random.default_rng(draw)))
        assert not all(first) and not all(second)
        assert sum(first[1:]) == 1


@pytest.mark.parametrize("name", ["rfm", "cfm", "dropout", "spread_out"])
@pytest.mark.parametrize("projection", ["shared", "separate"])
def test_the_loss_is_the_info_nce_of_the_views(name: ItemSslName, projection: str) -> None:
    made = term(name, weight=0.3, temperature=0.2, batch_size=12, dropout=0.2, projection=projection)
    found = float(made.loss("select", 0, 7).detach())
    (tower,) = made._tower
    rng = generator(0, "ssl", "select", 0, 7)
    items = tower.features.take(rng.permutation(ITEMS)[:12])
    one, two = made.views(items, rng)
    second = tower.network if made.second is None else made.second
    z, w = tower.network(tower.inputs(one)).double(), second(tower.inputs(two)).double()
    z, w = z / z.norm(dim=1, keepdim=True), w / w.norm(dim=1, keepdim=True)
    scores = torch.exp(z @ w.T / 0.2)
    assert found == pytest.approx(0.3 * float(-torch.log(scores.diagonal() / scores.sum(1)).mean().detach()), rel=1e-5)
    assert (made.second is None) == (projection == "shared" or name == "spread_out")


def test_the_gradient_reaches_tables_and_networks_and_brings_the_views_together() -> None:
    tower = tower_fixture.tower("items", tower_fixture.described(ITEMS))
    made = term("rfm", tower=tower, weight=1.0, batch_size=ITEMS, projection="separate")
    assert made.second is not None
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items() if "embedding" in name}
    first = float(made.loss(0).detach())
    for step in range(60):
        value = made.loss(step)
        value.backward()
        for table in tower.tables:
            table.step()
        made.step()
        with torch.no_grad():
            for parameter in tower.network.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.05 * parameter.grad)
                parameter.grad = None
    assert float(made.loss(0).detach()) < 0.8 * first
    after = tower.state_dict()
    assert all(not torch.equal(after[name], tensor) for name, tensor in before.items() if name.endswith(".embedding"))


def test_the_same_step_draws_the_same_items() -> None:
    made = term("dropout", dropout=0.3)
    assert float(made.loss("select", 1).detach()) == float(made.loss("select", 1).detach())
    assert float(made.loss("select", 1).detach()) != float(made.loss("select", 2).detach())


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size >= 2 and 0 <= dropout < 1, got 0.1, 0.1, 1024 and 1.0"):
        ItemSsl("rfm", dropout=1.0)
    alone = tower_fixture.ids_only(ITEMS)
    with pytest.raises(ValueError, match=r"ssl rfm shares the features out .* at least 2 of them, got id"):
        term("rfm", alone)
    with pytest.raises(ValueError, match=r"ssl dropout masks no feature that is alone, .* got id; give the item tower"):
        term("dropout", alone)
    tower = tower_fixture.tower("items", tower_fixture.described(ITEMS))
    with pytest.raises(ValueError, match=r"ssl cfm needs the affinity of 4 features with each other, got none"):
        ItemSslTerm(tower, ItemSsl("cfm"), seed=0)
    with pytest.raises(ValueError, match=r"got \[3, 3\]"):
        ItemSslTerm(tower, ItemSsl("cfm"), affinity=np.zeros((3, 3)), seed=0)
