import importlib.util
import json

import pytest

import benchmarks.harness
from benchmarks import table


@pytest.mark.skipif(importlib.util.find_spec("fbgemm_gpu") is None, reason="the peer is not installed")
def test_smoke_run_agrees_with_its_peers(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(benchmarks.harness, "SMOKE_RESULTS", tmp_path)
    assert table.run(scale=0.001) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["name"] == "table"
    assert summary["ratio"] > 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    rounded = [row for row in rows if " rows" in row["case"].rpartition(", ")[2]]
    assert (len(rows), len(rounded)) == (20, 8)
    assert max(row["quality"]["max_difference"] for row in rows if row not in rounded) < 1e-4
    assert 0 < max(row["quality"]["max_difference"] for row in rounded) < 0.01
