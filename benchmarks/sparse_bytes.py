"""Memory of sparse tables against the full table: weights and optimizer state, resident and in a checkpoint's file.

8 M rows of 64 columns, row-wise Adagrad (whose state of one number a row does not shrink) and Adam (whose state does).
Each table is in a process of its own and has made two steps and one update of its mask. Limit: the stored values, their
state and nothing that says where they are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import Peer, Row, finish

ROWS, DIM = 8_000_000, 64
BUDGETS = {0.5: 0.60, 0.2: 0.28, 0.1: 0.16, 0.05: 0.10}
"""Density to the largest share of the full table's bytes that is allowed."""
STATE = {"rowwise_adagrad": (0, 1), "adam": (2, 0)}
"""Numbers of optimizer state by value and by row."""
WORKER = Path(__file__).resolve().parent / "sparse_bytes_worker.py"


def measure(rows: int, density: float | None, optimizer: str) -> dict[str, Any]:
    """Bytes of one table in a new process."""
    with Peer(Path(sys.executable), WORKER) as worker:
        done = worker.run(rows=rows, density=density, optimizer=optimizer)
        return {**done.quality, "seconds": done.seconds}


def run(scale: float = 1.0) -> int:
    """Measure every density; ``scale`` shrinks the table."""
    rows = int(ROWS * scale)
    found: list[Row] = []
    headline: list[Row] = []
    for optimizer, (by_value, by_row) in STATE.items():
        full = measure(rows, None, optimizer)
        for density, budget in BUDGETS.items():
            sparse = measure(rows, density, optimizer)
            limit = 4 * rows * (density * DIM * (1 + by_value) + by_row)
            for what in ("resident", "file"):
                row = Row(
                    f"{rows / 1e6:g} M rows, d {DIM}, {optimizer}, density {density:g}, {what}", "the full table",
                    sparse[what] / 2**20, full[what] / 2**20, "MiB", *[full[what] / sparse[what]] * 3,
                    limit / 2**20, limit / sparse[what],
                    {"share": sparse[what] / full[what], "budget": budget, **sparse},
                )  # fmt: skip
                found.append(row)
                if (optimizer, density, what) == ("rowwise_adagrad", 0.2, "resident"):
                    headline.append(row)
    return finish("sparse_bytes", found, scale=scale, headline=headline)


if __name__ == "__main__":
    sys.exit(run(*map(float, sys.argv[1:2])))
