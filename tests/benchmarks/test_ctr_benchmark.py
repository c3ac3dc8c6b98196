from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ctr, ctr_quality
from benchmarks.ctr_job import Job, write_splits
from recsys.event_batch import Events

SMALL = Job(dim=4, hidden=(16, 8), lr=0.01, batch_size=256)


@pytest.fixture(scope="module")
def events() -> tuple[dict[str, Events], dict[str, int]]:
    return ctr.criteo_like(0.02)


def test_the_drawn_events_are_those_of_26_fields_and_can_be_learned(
    events: tuple[dict[str, Events], dict[str, int]],
) -> None:
    splits, sizes = events
    assert len(sizes) == 26 and max(sizes.values()) == ctr.LARGEST * 0.02
    for split in splits.values():
        assert (split.ids < np.array(list(sizes.values()))).all() and (split.ids >= 0).all()
        assert 0.1 < split.labels.mean() < 0.9
    again = ctr.criteo_like(0.02)[0]["test"]
    assert (again.ids == splits["test"].ids).all() and (again.labels == splits["test"].labels).all()
    found, scores = ctr_quality.fit(SMALL, splits, sizes, epochs=2)
    assert found["valid/auc"] > 0.6 and found["test/auc"] > 0.6 and scores.shape == splits["test"].labels.shape


def test_the_limit_counts_the_products_of_a_training_step(
    events: tuple[dict[str, Events], dict[str, int]],
) -> None:
    splits, sizes = events
    ranker, batch = SMALL.ranker(sizes), splits["valid"].batch(slice(0, 64))
    plain = torch.autocast("cpu", torch.bfloat16)  # torch does not count the products in place of fused layers
    with FlopCounterMode(display=False) as counter, plain:
        ranker.logits(batch).sum().backward()
    assert counter.get_total_flops() == pytest.approx(64 * ctr.flops(26, SMALL))


def test_fuxictr_gets_the_same_events(events: tuple[dict[str, Events], dict[str, int]], tmp_path: Path) -> None:
    splits, sizes = events
    write_splits(tmp_path, splits, sizes)
    facts = json.loads((tmp_path / "feature_map.json").read_text())
    assert [next(iter(feature)) for feature in facts["features"]] == list(splits["train"].fields)
    assert facts["features"][2]["C3"]["vocab_size"] == sizes["C3"] + 1
    with np.load(tmp_path / "valid.npz", allow_pickle=False) as arrays:
        assert (arrays["label"] == splits["valid"].labels).all()
        assert (np.stack([arrays[name] for name in sizes], axis=1) == splits["valid"].ids).all()


def test_early_stopping_of_the_job_is_by_validation_auc() -> None:
    chosen = SMALL.settings(7)
    assert (chosen.epochs, chosen.selection.metric, chosen.selection.patience) == (7, "auc", 2)
    assert chosen.table_lr == chosen.lr == SMALL.lr and chosen.batch_size == 256
