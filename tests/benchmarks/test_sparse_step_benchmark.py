from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

import benchmarks.harness
from benchmarks import sparse_step


def test_sparse_epochs_stand_against_full_ones_and_moving_masks_also_against_still_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = csr_array((np.random.default_rng(0).random((60, 50)) < 0.2).astype(np.float32))
    monkeypatch.setattr(benchmarks.harness, "SMOKE_RESULTS", tmp_path)
    monkeypatch.setattr(sparse_step, "gowalla", lambda split: train)
    monkeypatch.setattr(sparse_step, "DENSITIES", (0.2,))
    monkeypatch.setattr(sparse_step, "EVERY", 4)
    assert sparse_step.run(scale=0.9) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["name"] == "sparse_step"
    rows = json.loads((tmp_path / "sparse_step.json").read_text())["rows"]
    assert [row["peer"] for row in rows] == ["the full table", *2 * ("the full table", "a mask that stays")]
    assert all(row["ours"] > 0 and row["unit"] == "s" for row in rows)
