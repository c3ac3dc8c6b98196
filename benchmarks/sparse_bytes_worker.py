"""One table in a process of its own: resident memory of the table at rest, at its peak, and of its file."""

from __future__ import annotations

import ctypes
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.torch import save_file

from benchmarks.peers.memory import peak_rss_mib
from benchmarks.worker import serve
from embeddings.id_map import IdMap
from embeddings.sparsity import Schedule, Sparsity
from embeddings.tables import OptimizerSpec, Table, build_table

DIM = 64


def job(request: dict[str, Any]) -> dict[str, Any]:
    density: float | None = request["density"]
    train(make(100, density, request["optimizer"]))  # compiles
    ids = np.arange(request["rows"] - 1)[:, None]
    id_map = IdMap(ids, request["rows"], request["rows"] - 1, "full")
    before = resident()
    start = time.perf_counter()
    table = make(request["rows"], density, request["optimizer"], id_map)
    seconds, peak = time.perf_counter() - start, peak_rss_mib() * 2**20 - before
    train(table)
    after = resident() - before
    sizes = table.bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.safetensors"
        save_file(table.state_dict(), path)
        file = path.stat().st_size
    quality = {"resident": after, "peak": peak, "file": file, "tensors": sizes.weights + sizes.optimizer}
    return {"seconds": seconds, "quality": quality}


def make(rows: int, density: float | None, optimizer: str, id_map: IdMap | None = None) -> Table:
    """A table with every row, dense where ``density`` is None; else in the middle of its schedule."""
    return build_table(
        id_map or IdMap(np.arange(rows - 1)[:, None], rows, rows - 1, "full"),
        DIM,
        optimizer=OptimizerSpec(optimizer, lr=0.01),  # type: ignore[arg-type]
        init_std=0.1,
        generator=np.random.default_rng(0),
        sparsity=None if density is None else Sparsity(density, Schedule(2, 100)),
    )


def train(table: Table) -> None:
    """Two steps on 1000 rows; the second one moves entries."""
    for seed in (0, 1):
        ids = torch.from_numpy(np.random.default_rng(seed).integers(0, table.num_rows, 1000))
        (table(ids) - 1.0).square().sum().backward()
        table.step()


def resident() -> int:
    """Resident bytes, without memory that was freed but is still with the process."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    serve(job)
