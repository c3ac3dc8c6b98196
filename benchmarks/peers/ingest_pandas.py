"""Pandas' side of the ingest benchmark: the same job as one would write it well in pandas 3."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.peers.memory import peak_rss_mib
from benchmarks.worker import serve


def job(request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    frame = pd.read_csv(request["source"], dtype={"user_id": np.int64, "item_id": np.int64, "timestamp": np.int64})
    while True:
        rows = len(frame)
        for column in ("user_id", "item_id"):
            counts = frame[column].value_counts()
            if counts.iloc[-1] < 5:
                frame = frame[frame[column].isin(counts.index[counts >= 5])]
        if len(frame) == rows:
            break
    raw = {}
    for column in ("user_id", "item_id"):
        codes, raw[column] = pd.factorize(frame[column], sort=True)
        frame[column] = codes.astype(np.int32)
    frame = frame.sort_values(["user_id", "item_id"], ignore_index=True)
    times = np.partition(frame["timestamp"].to_numpy(), (_rank(len(frame), 0.7), _rank(len(frame), 0.8)))
    cuts = times[_rank(len(frame), 0.7)], times[_rank(len(frame), 0.8)]
    time_of = frame["timestamp"].to_numpy()
    frame["split"] = (time_of > cuts[0]).astype(np.uint8) + (time_of > cuts[1]).astype(np.uint8)
    out = Path(request["out"])
    out.mkdir(exist_ok=True)
    frame.to_parquet(out / "interactions.parquet", compression="lz4", index=False)
    for column, values in raw.items():
        pd.DataFrame({"raw_id": values.astype(str)}).to_parquet(out / f"{column}.parquet", index=False)
    seconds = time.perf_counter() - start
    sizes = np.bincount(frame["split"], minlength=3).tolist()
    quality = {"users": len(raw["user_id"]), "items": len(raw["item_id"])}
    quality |= dict(zip(("train", "valid", "test"), sizes, strict=True))
    return {"seconds": seconds, "quality": quality, "peak_rss_mib": peak_rss_mib()}


def _rank(rows: int, share: float) -> int:
    return int(np.floor(rows * share + 0.5)) - 1


if __name__ == "__main__":
    serve(job)
