"""Tables in one TorchRec collection: lookups together and apart, and one update for all lookups of a step."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec, Table, build_table, look_up, step_all
from embeddings.tables.collected_table import collected_tables
from embeddings.tables.collection import Field

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torchrec") is None, reason="torchrec is not installed")
FIELDS = [Field("a", IdMap.identity(9), 8), Field("b", IdMap.identity(5), 4)]
SPEC = OptimizerSpec("adagrad", lr=0.1)


def draws() -> list[np.random.Generator]:
    return [np.random.default_rng(place) for place in range(len(FIELDS))]


def collected() -> list[Table]:
    return collected_tables(FIELDS, optimizer=SPEC, init_std=0.5, generators=draws())


def plain() -> list[Table]:
    return [
        build_table(field.id_map, field.dim, optimizer=SPEC, init_std=0.5, generator=generator)
        for field, generator in zip(FIELDS, draws(), strict=True)
    ]


def ids(step: int, count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(step).integers(0, 6, count))


@pytest.mark.parametrize("places", [(0, 1), (1, 0), (0, 1, 0), (1,)])
def test_lookups_of_different_lengths_are_one_update(places: tuple[int, ...]) -> None:
    """Adagrad tells one update with the sum of two gradients from two updates."""
    ours, theirs = plain(), collected()
    for step in range(4):
        for tables in (ours, theirs):
            asked = [ids(step * 10 + i, 4 + 3 * i) for i in range(len(places))]
            vectors = look_up([tables[place] for place in places], asked)
            assert [list(vector.shape) for vector in vectors] == [
                [4 + 3 * i, FIELDS[place].dim] for i, place in enumerate(places)
            ]
            again = tables[places[0]](ids(step, 6))
            sum((part**2).sum() for part in (*vectors, again)).backward()  # type: ignore[union-attr]
            step_all(tables)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.weight(), other.weight(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(own.optimizer_state(), other.optimizer_state(), rtol=1e-4, atol=1e-6)


def test_a_step_without_gradients_changes_nothing() -> None:
    tables = collected()
    before = [table.weight().clone() for table in tables]
    look_up(tables, [ids(0, 3), ids(1, 3)])
    step_all(tables)
    assert all(torch.equal(table.weight(), weight) for table, weight in zip(tables, before, strict=True))


def test_tables_of_two_collections_and_other_back_ends_are_looked_up_together() -> None:
    ours, theirs, others = plain(), collected(), collected()
    for tables in ([ours[0], ours[1]], [theirs[0], others[1]], [theirs[0], ours[1]]):
        vectors = look_up(tables, [ids(0, 3), ids(1, 5)])
        for vector, table, asked in zip(vectors, ours, (ids(0, 3), ids(1, 5)), strict=True):
            torch.testing.assert_close(vector.detach(), table.vectors(asked))


def test_the_learning_rate_is_that_of_the_collection() -> None:
    tables = collected()
    tables[0].set_lr(0.0)
    before = [table.weight().clone() for table in tables]
    sum(vector.sum() for vector in look_up(tables, [ids(0, 3), ids(1, 3)])).backward()  # type: ignore[union-attr]
    step_all(tables)
    assert all(torch.equal(table.weight(), weight) for table, weight in zip(tables, before, strict=True))
