"""What every ranker keeps: losses of plain autograd and Adam, scores of an event alone, files with the same bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from embeddings.id_map import IdMap
from embeddings.tables import OptimizerSpec
from embeddings.tables.collection import Field, build_collection
from recsys.event_batch import Events
from recsys.metrics.auc import roc_auc
from recsys.rankers.build import RankerSpec, build_ranker
from recsys.rankers.checkpoint import load_ranker, save_ranker
from recsys.rankers.dcn_v2 import Cross
from recsys.rankers.final_mlp import Streams
from recsys.rankers.ranker import Ranker, Tower
from recsys.rankers.training import RankingSettings, fit_ranker

SIZES = {"user": 8, "item": 8, "hour": 3}
DIM, LR = 6, 0.02
TOWER = Tower((16, 8))
SPECS = {
    "dcn_v2-parallel": RankerSpec("dcn_v2", TOWER),
    "dcn_v2-stacked": RankerSpec("dcn_v2", TOWER, Cross(2, "stacked")),
    "dcn_v2-mixture": RankerSpec("dcn_v2", TOWER, Cross(2, "parallel", rank=4, experts=2)),
    "dlrm": RankerSpec("dlrm", TOWER, bottom=(8,)),
    "deep_fm": RankerSpec("deep_fm", TOWER),
    "wide_deep": RankerSpec("wide_deep", TOWER),
    "final_mlp": RankerSpec("final_mlp", TOWER, streams=Streams(Tower((12,)), heads=2)),
}


def events(count: int, seed: int = 0) -> Events:
    """Whether user and item have the same parity, mostly: no field tells it alone; number and hour are noise."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, size, count) for size in SIZES.values()], 1).astype(np.int32)
    labels = ((ids[:, 0] + ids[:, 1] + (rng.random(count) < 0.05)) % 2 == 0).astype(np.uint8)
    return Events(ids, rng.standard_normal((count, 1)).astype(np.float32), labels, tuple(SIZES))


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> Iterator[RankerSpec]:
    yield SPECS[request.param]


def drawn(spec: RankerSpec) -> Ranker:
    fields = [Field(name, IdMap.identity(size), DIM) for name, size in SIZES.items()]
    optimizer, draws = OptimizerSpec("adam", lr=LR), np.random.default_rng(1)
    return build_ranker(spec, build_collection(fields, optimizer=optimizer, init_std=0.3, generator=draws), 1, seed=2)


def settings(epochs: int, batch_size: int) -> RankingSettings:
    return RankingSettings(batch_size, epochs, LR, LR)


def test_the_losses_are_those_of_autograd_and_adam(spec: RankerSpec) -> None:
    """The golden losses: in float64 by plain torch, tables and layers under one torch.optim.Adam."""
    ranker, data = drawn(spec), events(200)
    twin = copy.deepcopy(ranker).double()
    rows = nn.ParameterList(nn.Parameter(ranker.tables.weight(name).double().clone()) for name in SIZES)
    layers = [parameter for name, parameter in twin.named_parameters() if not name.startswith("tables.")]
    adam = torch.optim.Adam([*rows, *layers], lr=LR)
    ids, labels = torch.from_numpy(data.ids).long(), torch.from_numpy(data.labels).double()
    losses = []
    for _ in range(12):
        vectors = torch.cat([row[ids[:, place]] for place, row in enumerate(rows)], 1)
        logits = twin.combine(vectors, torch.from_numpy(data.dense).double())
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    found = fit_ranker(ranker, data, None, settings(12, 200), seed=0)
    assert [record.loss for record in found.history] == pytest.approx(losses, rel=2e-4)
    assert losses[-1] < losses[0] - 0.02


def test_what_two_fields_tell_together_is_learned(spec: RankerSpec) -> None:
    ranker, test = drawn(spec), events(500, seed=1)
    fit_ranker(ranker, events(2000), None, settings(12, 100), seed=0)
    assert roc_auc(test.labels, ranker.scores(test)) > 0.9


def test_a_score_depends_on_its_event_alone(spec: RankerSpec) -> None:
    ranker, data = drawn(spec), events(37)
    whole = ranker.scores(data)
    pieces = [
        ranker.scores(Events(data.ids[part], data.dense[part], data.labels[part], data.fields))
        for part in (slice(0, 1), slice(1, 20), slice(20, 37))
    ]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-5, atol=1e-6)
    assert (ranker.scores(data) == whole).all()


def test_unseen_and_foreign_ids_share_a_row(spec: RankerSpec) -> None:
    ranker, data = drawn(spec), events(2)
    scores = []
    for stranger in (SIZES["user"], SIZES["user"] + 1000, -1):
        ids = data.ids.copy()
        ids[:, 0] = stranger
        scores.append(ranker.scores(Events(ids, data.dense, data.labels, data.fields)))
    assert (scores[0] == scores[1]).all()
    assert (scores[0] == scores[2]).all()


def test_a_seed_repeats_and_a_file_scores_the_same_bits(spec: RankerSpec, tmp_path: Path) -> None:
    data, scores = events(300), []
    for _ in range(2):
        ranker = drawn(spec)
        fit_ranker(ranker, data, None, settings(2, 64), seed=5)
        scores.append(ranker.scores(data))
    assert (scores[0] == scores[1]).all()
    save_ranker(ranker, spec, tmp_path / "ranker")
    assert (load_ranker(tmp_path / "ranker").scores(data) == scores[1]).all()
