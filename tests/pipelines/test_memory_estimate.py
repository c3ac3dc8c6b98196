"""The memory estimate counts what the source says."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_experiment import write_tiny

from pipelines.config import Dataset
from pipelines.config_loader import load_experiment
from pipelines.memory import Size, compressed_rows, estimate, measure, memory_lines, total


def test_parquet_is_counted_exactly() -> None:
    assert measure(Dataset(name="anime", source="sample:anime")) == Size(520_609, 5_000, 7_390, exact=True)


def test_text_is_extrapolated_from_its_first_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id\n" + "1000000,2000000\n" * 200_000)
    found = measure(Dataset(name="x", source=str(path)))
    assert not found.exact
    assert abs(found.rows - 200_000) < 2_000


def test_more_dimensions_and_optimizer_state_need_more(tmp_path: Path) -> None:
    path = str(write_tiny(tmp_path))
    size = Size(10_000_000, 1_000_000, 100_000, exact=True)
    parts = {
        name: total(estimate(load_experiment(path, overrides), size))
        for name, overrides in {
            "base": ["model.dim=64", "model.optimizer.name=sgd"],
            "adam": ["model.dim=64", "model.optimizer.name=adam"],
            "wide": ["model.dim=256", "model.optimizer.name=sgd"],
        }.items()
    }
    assert parts["adam"] > parts["base"]
    assert parts["wide"] > parts["adam"]


def test_rows_of_the_budget_and_a_warning_when_memory_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load_experiment(str(write_tiny(tmp_path)))
    assert compressed_rows(experiment, Size(500, 60, 40, exact=True)) == {"40%": 40}
    assert len(memory_lines(experiment)) == 1
    monkeypatch.setattr("pipelines.memory._LIBRARIES_MIB", 1e9)
    assert memory_lines(experiment)[1].startswith("warning: this is more than the machine has free")
