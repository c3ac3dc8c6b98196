"""Differences between variants by slice, on lists whose hits are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from tiny_experiment import recsys, write_tiny

from pipelines.run_files import RunError
from pipelines.slice_differences import differences, item_slices, main, slice_hits


def test_items_fall_into_slices_by_their_train_users() -> None:
    counts = [60, 20, 12, 6, 2, 0]
    train = csr_array(np.array([[float(user < count) for count in counts] for user in range(60)], dtype=np.float32))
    slices = item_slices(train)
    assert slices["overall"].all()
    assert slices["head"].tolist() == [True, False, False, False, False, False]
    assert slices["tail"].tolist() == [False, False, True, True, True, True]
    assert slices["cold"].tolist() == [False, False, False, False, True, True]


def test_hits_are_counted_within_the_slice_and_the_length() -> None:
    lists = np.array([[2, 0, 1], [1, -1, -1]], dtype=np.int32)
    relevant = csr_array(np.array([[1, 1, 0], [0, 0, 1]], dtype=np.float32))
    everything, first = np.ones(3, bool), np.array([True, False, False])
    assert slice_hits(lists, relevant, everything, 3).tolist() == [2, 0]
    assert slice_hits(lists, relevant, everything, 2).tolist() == [1, 0]
    assert slice_hits(lists, relevant, first, 3).tolist() == [1, 0]


def test_a_run_tells_its_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_tiny(tmp_path)
    config.write_text(config.read_text().partition("  - {name: mf-full")[0])
    done = recsys(tmp_path, "run", str(config))
    assert done.returncode == 0, done.stderr
    run = tmp_path / done.stdout.splitlines()[-1]
    rows = differences(run, "popularity", (5, 20))
    assert {(row["variant"], row["metric"]) for row in rows} == {("item-knn", "recall@5"), ("item-knn", "recall@20")}
    overall = next(row for row in rows if row["slice"] == "overall" and row["metric"] == "recall@5")
    assert overall["difference"] == pytest.approx(overall["value"] - overall["against"])
    low, high = overall["ci95"]
    assert 0 < low < overall["difference"] < high, "the planted groups are in the neighbours, not in the popularity"
    out = tmp_path / "differences.json"
    main([str(run), "--against", "popularity", "--out", str(out)])
    assert "item-knn     overall  recall@10" in capsys.readouterr().out
    written = json.loads(out.read_text())["datasets"]["tiny"]
    assert {row["metric"] for row in written} == {"recall@10", "recall@50"}
    with pytest.raises(SystemExit):
        main([str(run)])
    wanted = "no variant 'no-ssl' to compare with; --against takes one of popularity, item-knn"
    assert wanted in capsys.readouterr().err
    (run / "variants" / "item-knn-s0" / "top_items.parquet").unlink()
    with pytest.raises(RunError, match="has no lists of item-knn, seed 0; run it again"):
        differences(run, "popularity")
