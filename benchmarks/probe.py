"""What this machine can do, measured in the same process as the benchmark it is compared with."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable

import numba
import numpy as np
import torch

from benchmarks import THREADS

DIM = 64


@dataclasses.dataclass(frozen=True)
class Probe:
    """Limits of the machine on ``THREADS`` threads.

    Attributes:
        stream_gb_s: sequential read of 1 GiB, 1e9 bytes/s.
        random_rows_per_s: gather of random 256-byte rows from a table of 1 GiB.
        sgemm_gflop_s: float32 matrix product, 2048 x 2048 x 2048.
        sgemm_k64_gflop_s: float32 scoring product, [1024, 64] x [64, 40960].
    """

    stream_gb_s: float
    random_rows_per_s: float
    sgemm_gflop_s: float
    sgemm_k64_gflop_s: float


@numba.njit(parallel=True, fastmath=True, cache=True)
def _stream(table: np.ndarray, chunks: int) -> float:
    size = table.size // chunks
    sums = np.zeros(chunks, np.float32)
    for chunk in numba.prange(chunks):
        part = table[chunk * size : (chunk + 1) * size]
        total = np.float32(0)
        for i in range(size):
            total += part[i]
        sums[chunk] = total
    return float(sums.sum())


@numba.njit(parallel=True, fastmath=True, cache=True)
def _gather(table: np.ndarray, rows: np.ndarray, chunks: int) -> float:
    size = rows.size // chunks
    sums = np.zeros((chunks, table.shape[1]), np.float32)
    for chunk in numba.prange(chunks):
        total = sums[chunk]
        for row in rows[chunk * size : (chunk + 1) * size]:
            for d in range(DIM):
                total[d] += table[row, d]
    return float(sums.sum())


def _best(job: Callable[[], object], repeats: int = 5) -> float:
    job()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@functools.cache
def probe(gib: float = 1.0) -> Probe:
    """Measure the machine (a few seconds, once per process); each figure is the best of five.

    Args:
        gib: size of the table that is streamed and gathered from; below 1 it measures cache, for smoke runs only.
    """
    torch.set_num_threads(THREADS)
    stream, gather = _memory(gib)
    square, users, items = torch.ones(2048, 2048), torch.ones(1024, DIM), torch.ones(DIM, 40960)
    scores = torch.empty(1024, 40960)
    sgemm = 2 * 2048**3 / _best(lambda: square @ square) / 1e9
    skinny = 2 * 1024 * DIM * 40960 / _best(lambda: torch.mm(users, items, out=scores)) / 1e9
    return Probe(stream, gather, sgemm, skinny)


def _memory(gib: float) -> tuple[float, float]:
    table = np.ones((int(gib * 2**30) // (4 * DIM), DIM), np.float32)
    rows = np.random.default_rng(0).integers(0, len(table), 1 << 21, dtype=np.int32)
    stream = table.nbytes / _best(lambda: _stream(table.reshape(-1), THREADS)) / 1e9
    return stream, rows.size / _best(lambda: _gather(table, rows, THREADS))
