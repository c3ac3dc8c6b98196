"""A hundred million events within 8 GiB."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pipelines.dataset import Dataset
from recsys.rng import generator

JOB = """
import json, resource, sys, time
from pathlib import Path
from pipelines import config
from pipelines.ingest import ingest
settings = config.Dataset(
    name="big",
    source=sys.argv[1],
    filters=config.Filters(user_core=5, item_core=5),
    split=config.Split(method="global_time"),
)
start = time.perf_counter()
ingest(settings, Path(sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": time.perf_counter() - start, "peak_gib": peak}))
"""


def write_big_csv(path: Path, events: int, chunk: int = 5_000_000) -> None:
    with path.open("wb") as file:
        file.write(b"user_id,item_id,timestamp\n")
        for part, start in enumerate(range(0, events, chunk)):
            rng = generator(0, "big", part)
            size = min(chunk, events - start)
            pl.DataFrame(
                {
                    "user_id": 100_000 + (rng.random(size) ** 1.5 * (events // 20)).astype("int64"),
                    "item_id": 1_000 + (rng.random(size) ** 3 * (events // 100)).astype("int64"),
                    "timestamp": rng.integers(1_500_000_000, 1_626_000_000, size=size),
                }
            ).write_csv(file, include_header=False)


@pytest.mark.quality
def test_hundred_million_events_fit_in_eight_gib(tmp_path: Path) -> None:
    events = int(os.environ.get("RECSYS_BIG_EVENTS", "100_000_000"))
    write_big_csv(tmp_path / "big.csv", events)
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(tmp_path / "big.csv"), str(tmp_path / "out")],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    figures = json.loads(done.stdout)
    print(figures)
    dataset = Dataset.open(tmp_path / "out")
    kept = sum(dataset.manifest.counts.values())
    assert 0.5 * events < kept <= events
    assert dataset.manifest.counts["test"] == pytest.approx(0.2 * kept, rel=0.01)
    assert figures["peak_gib"] < 8
