"""DIN against a plain loop of its equation, and the jagged histories that it looks at."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import CollectionBackend, Field, build_collection
from recsys.event_batch import EventHistories, Events, join
from recsys.rankers.build import RankerSpec, build_ranker
from recsys.rankers.checkpoint import load_ranker, save_ranker
from recsys.rankers.din import Interest
from recsys.rankers.ranker import Tower
from recsys.rankers.training import RankingSettings, fit_ranker
from recsys.settings import EpochRecord, Selection

USERS, ITEMS = 30, 12
SPEC = RankerSpec("din", Tower((8,)), interest=Interest("item", (5,)))


def events(count: int, seed: int = 0) -> Events:
    """The label is whether the candidate's half of the catalogue is that of most of the history; users tell nothing."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, USERS, count), rng.integers(0, ITEMS, count)], 1).astype(np.int32)
    lengths = rng.integers(0, 5, count)
    ends = np.cumsum(lengths)
    half = rng.integers(0, 2, count)
    items = rng.integers(0, ITEMS // 2, int(ends[-1])) + np.repeat(half, lengths) * (ITEMS // 2)
    labels = ((ids[:, 1] >= ITEMS // 2) == half).astype(np.uint8)
    history = EventHistories(items.astype(np.int32), np.stack([ends - lengths, ends], 1))
    return Events(ids, np.zeros((count, 0), np.float32), labels, ("user", "item"), history)


def din(spec: RankerSpec = SPEC, optimizer: str = "adam", backend: CollectionBackend = "torch", dim: int = 3) -> Any:
    fields = [Field("user", IdMap.identity(USERS), dim), Field("item", IdMap.identity(ITEMS), 4)]
    chosen = OptimizerSpec(optimizer, lr=0.02)  # type: ignore[arg-type]
    draw = np.random.default_rng(0)
    tables = build_collection(fields, backend=backend, optimizer=chosen, init_std=0.3, generator=draw)
    return build_ranker(spec, tables, 0, seed=0)


def test_interest_is_equation_3() -> None:
    model, data = din(), events(40)
    for part in model.activation:
        if isinstance(part, torch.nn.PReLU):
            part.weight.data.fill_(0.3)
    users, items = (model.tables.weight(name).double() for name in ("user", "item"))
    first, _, last = model.activation
    expected = []
    assert data.history is not None
    for (user, item), (start, end) in zip(data.ids.tolist(), data.history.bounds.tolist(), strict=True):
        interest = torch.zeros(4, dtype=torch.float64)
        for other in data.history.items[start:end].tolist():
            e, v = items[other], items[item]
            x = first.weight.double() @ torch.cat([e, v, e - v, e * v]) + first.bias.double()
            x = torch.where(x > 0, x, 0.3 * x)
            interest += (last.weight.double() @ x + last.bias.double()) * e
        x = torch.cat([users[user], items[item], interest])
        x = torch.relu(model.tower[0].weight.double() @ x + model.tower[0].bias.double())
        expected.append(float((model.tower[2].weight.double() @ x + model.tower[2].bias.double()).detach()))
    np.testing.assert_allclose(model.scores(data), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("fbgemm_gpu") is None, reason="fbgemm is not installed")
def test_items_that_are_looked_up_twice_are_updated_once_on_both_back_ends() -> None:
    ours, theirs = (din(optimizer="adagrad", backend=backend, dim=4) for backend in ("torch", "fbgemm"))
    for model in (ours, theirs):
        fit_ranker(model, events(60), None, RankingSettings(batch_size=16, epochs=3, table_lr=0.1), seed=0)
    for field in ("user", "item"):
        torch.testing.assert_close(ours.tables.weight(field), theirs.tables.weight(field), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ours.scores(events(20)), theirs.scores(events(20)), rtol=1e-3, atol=1e-4)


def test_a_row_gets_the_gradient_of_the_candidate_and_of_the_history() -> None:
    """SGD on the sum of the log-odds against finite differences, for an item that is both."""
    model, data = din(optimizer="sgd"), events(12)
    batch = data.batch(slice(0, 12))
    before = model.tables.weight("item").clone()
    model.logits(batch).sum().backward()
    model.tables.step()
    moved = (before - model.tables.weight("item")) / 0.02
    weight = model.tables.weight("item")
    weight.copy_(before)
    for place in ((0, 1), (7, 2)):
        values = []
        for change in (1e-2, -1e-2):
            weight[place] = before[place] + change
            values.append(float(model.logits(batch).sum().detach()))
        weight[place] = before[place]
        assert float(moved[place]) == pytest.approx((values[0] - values[1]) / 2e-2, rel=0.02, abs=2e-3)


def test_it_learns_what_only_the_history_tells_and_resumes(tmp_path: Path) -> None:
    train, valid = events(1200), events(400, 1)
    chosen = RankingSettings(
        128, 10, 0.02, 0.02, selection=Selection("auc", 1, 10, refit=False), checkpoint_minutes=0.001
    )
    model = din()
    result = fit_ranker(model, train, valid, chosen, seed=0)
    assert max(record.metrics["auc"] for record in result.history) > 0.85  # a fifth of the histories is empty

    class Killed(Exception):  # noqa: N818 - a kill, not an error
        pass

    def kill(record: EpochRecord) -> None:
        if record.epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        fit_ranker(din(), train, valid, chosen, seed=0, checkpoint_dir=tmp_path, on_epoch=kill)
    resumed = din()
    fit_ranker(resumed, train, valid, chosen, seed=0, checkpoint_dir=tmp_path)
    assert (resumed.scores(valid) == model.scores(valid)).all()
    save_ranker(model, SPEC, tmp_path / "saved")
    assert (load_ranker(tmp_path / "saved").scores(valid) == model.scores(valid)).all()


def test_joined_splits_keep_their_histories() -> None:
    parts = [events(7), events(5, 1)]
    model = din()
    expected = np.concatenate([model.scores(part) for part in parts])
    np.testing.assert_allclose(model.scores(join(parts)), expected, rtol=1e-6)


def test_events_without_any_history_have_the_interest_zero() -> None:
    data = events(6)
    nothing = EventHistories(np.empty(0, np.int32), np.zeros((6, 2), np.int64))
    empty = Events(data.ids, data.dense, data.labels, data.fields, nothing)
    assert np.isfinite(din().scores(empty)).all()
    batch = empty.batch(slice(0, 6))
    assert batch.history is not None and batch.history.offsets.tolist() == [0] * 7


def test_mistakes_are_told() -> None:
    data = events(6)
    with pytest.raises(ValueError, match="din needs events with histories; set"):
        din().scores(Events(data.ids, data.dense, data.labels, data.fields))
    with pytest.raises(ValueError, match="din needs the item field 'film'; the fields are user, item"):
        din(RankerSpec("din", interest=Interest("film")))
    with pytest.raises(ValueError, match=r"must be a stretch of 2 items, but event 1 has \[1, 3\]"):
        EventHistories(np.zeros(2, np.int32), np.array([[0, 2], [1, 3]]))
    with pytest.raises(ValueError, match="6 events need as many histories, got 1"):
        Events(
            data.ids, data.dense, data.labels, data.fields, EventHistories(np.zeros(2, np.int32), np.array([[0, 2]]))
        )
