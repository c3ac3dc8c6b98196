"""Our side of the ingest benchmark, in a process of its own so that its peak memory is its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.peers.memory import peak_rss_mib
from benchmarks.worker import serve
from pipelines import config
from pipelines.ingest import ingest


def job(request: dict[str, Any]) -> dict[str, Any]:
    settings = config.Dataset(
        name="benchmark",
        source=request["source"],
        filters=config.Filters(user_core=5, item_core=5),
        split=config.Split(method="global_time", valid=0.1, test=0.2),
    )
    start = time.perf_counter()
    dataset = ingest(settings, Path(request["out"]))
    seconds = time.perf_counter() - start
    quality = {"users": dataset.num_users, "items": dataset.num_items, **dataset.manifest.counts}
    return {"seconds": seconds, "quality": quality, "peak_rss_mib": peak_rss_mib()}


if __name__ == "__main__":
    serve(job)
