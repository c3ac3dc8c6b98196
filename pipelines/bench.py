"""Run one of the repository's benchmarks; they are not part of the installed package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from pipelines.config_problems import did_you_mean

NAMES = (
    "topk",
    "bpr",
    "table",
    "ingest",
    "auc",
    "cluster",
    "ctr",
    "ials",
    "lightgcn",
    "rqkmeans",
    "sasrec",
    "seqloader",
    "sparse_bytes",
    "sparse_step",
    "time_to_quality",
    "experts",
    "refresh",
    "beam",
)


def run_benchmark(name: str, scale: float = 1.0) -> int:
    """Import ``benchmarks.NAME`` and run it.

    Returns:
        The exit code of the benchmark.

    Raises:
        ValueError: Unknown name.
        FileNotFoundError: This is not a checkout of the repository.
    """
    if name not in NAMES:
        raise ValueError(f"unknown benchmark {name!r}{did_you_mean(name, NAMES)} (there are {', '.join(NAMES)})")
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "benchmarks" / f"{name}.py").is_file():
        raise FileNotFoundError(
            f"recsys bench needs a checkout of the repository: there is no {checkout / 'benchmarks' / name}.py;"
            " clone it and run the command there"
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return int(importlib.import_module(f"benchmarks.{name}").run(scale) or 0)
