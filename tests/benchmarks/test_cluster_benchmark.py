"""A small run of the clustering benchmark: both sides do the same job."""

from __future__ import annotations

from benchmarks.cluster import compare, planted
from benchmarks.harness import Probe


def test_both_sides_find_the_planted_groups() -> None:
    machine = Probe(stream_gb_s=10.0, random_rows_per_s=1e7, sgemm_gflop_s=100.0, sgemm_k64_gflop_s=100.0)
    row = compare("planted", planted(40_000), 50.0, "louvain", 1, machine)
    assert row.quality["same_clusters"]
    assert row.quality["rows"] == row.quality["peer_rows"]
    assert row.quality["modularity"] == row.quality["peer_modularity"] > 0.3
    assert row.unit == "s"
    assert row.limit is not None
    assert row.limit < row.ours
