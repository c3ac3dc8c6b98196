"""The memory estimate of a ranking experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.config_ranking import (
    CriteoData,
    DcnV2,
    LibfmData,
    NextItemData,
    RankingExperiment,
    RankingVariant,
    TableData,
)
from pipelines.config_section import Optimizer
from pipelines.ranking.check import describe_ranking
from pipelines.ranking.memory import EventSize, estimate, measure_events
from pipelines.ranking.sources import DataConfig


def experiment(data: Any, **model: Any) -> RankingExperiment:
    variant = RankingVariant(name="v", model=DcnV2(**model))
    return RankingExperiment(experiment="e", dataset=data, variants=(variant,))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    users, items = np.arange(600) % 40, np.arange(600) % 25
    frame = pl.DataFrame({"user": users, "item": items, "label": users % 2, "split": ["train"] * 600})
    frame.write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame({"item": range(30), "kind": [i % 3 for i in range(30)]}).write_parquet(tmp_path / "items.parquet")
    lines = [f"{user % 2} {user}:1 {100 + item}:1" for user, item in zip(users, items, strict=True)]
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.libfm").write_text("\n".join(lines) + "\n")
    (tmp_path / "train.txt").write_text(("0\t" + "\t".join(["7"] * 39) + "\n") * 50)
    return tmp_path


def close_to(size: EventSize) -> EventSize:
    """Distinct values are counted by a sketch."""
    return EventSize(size.events, size.fields, size.numbers, pytest.approx(size.ids, rel=0.1))  # type: ignore[arg-type]


def test_sizes_are_those_of_the_source(files: Path) -> None:
    given: dict[str, Any] = {"name": "t", "source": str(files)}
    table = TableData(**given, fields=("user", "item"), numeric={"label": "standardise"})
    cases: list[tuple[DataConfig, EventSize]] = [
        (table, EventSize(600, 2, 1, 65)),
        (LibfmData(**given, fields=("user", "item")), EventSize(1800, 2, 0, 3600)),
        (CriteoData(**given), EventSize(50, 26, 13, 1300)),
        (NextItemData(**given, user="user", item="item", columns=("kind",), negatives=3), EventSize(2400, 3, 0, 73)),
    ]
    for config, expected in cases:
        assert measure_events(config) == close_to(expected)


def test_tables_with_their_optimizer_decide_on_large_vocabularies() -> None:
    size = EventSize(1_000_000, 26, 13, 10_000_000)
    data = CriteoData(name="t", source="none")
    adam = estimate(experiment(data, dim=16), size)["train"]
    rows = estimate(experiment(data, dim=16, optimizer=Optimizer(name="rowwise_adagrad")), size)["train"]
    assert adam - rows == pytest.approx(2 * 10_000_000 * 16 * 4 / 2**20)
    wider = estimate(experiment(data, dim=32), size)["train"]
    assert wider - adam > 3 * 10_000_000 * 16 * 4 / 2**20


def test_the_plan_has_it_and_warns(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = experiment(TableData(name="t", source=str(files), fields=("user", "item")))
    plan = describe_ranking(chosen)
    assert "memory: about" in plan and "warning" not in plan
    monkeypatch.setattr("pipelines.ranking.memory.LIBRARIES_MIB", 1e9)
    assert "warning: this is more than the machine has free" in describe_ranking(chosen)
