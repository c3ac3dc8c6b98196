import json

import pytest

import benchmarks.harness
from benchmarks import sparse_bytes


def test_files_and_tensors_meet_the_budgets(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(benchmarks.harness, "SMOKE_RESULTS", tmp_path)
    monkeypatch.setattr(sparse_bytes, "STATE", {"rowwise_adagrad": (0, 1)})
    monkeypatch.setattr(sparse_bytes, "BUDGETS", {0.2: 0.28, 0.05: 0.10})
    assert sparse_bytes.run(scale=0.01) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["name"] == "sparse_bytes"
    rows = json.loads((tmp_path / "sparse_bytes.json").read_text())["rows"]
    assert len(rows) == 4
    for row in rows:
        if row["case"].endswith("file"):
            assert row["quality"]["share"] <= row["quality"]["budget"] + 0.001, "the header of a small file"
        assert row["quality"]["tensors"] <= row["quality"]["budget"] * 80_000 * 260
