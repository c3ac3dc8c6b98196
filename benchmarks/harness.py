"""How every benchmark measures and reports: ABBA pairs in one run, a limit beside each row, raw samples kept.

A benchmark is a module with ``run(scale: float = 1.0) -> int``; ``scale < 1`` is a smoke run whose result does not
replace the committed one.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import THREADS
from benchmarks.peer import ROOT, Peer, PeerError, Timed, peer_python
from benchmarks.probe import Probe, probe

__all__ = ["Paired", "Peer", "PeerError", "Probe", "Row", "Timed", "finish", "paired", "peer_python", "probe"]

RESULTS = ROOT / "benchmarks" / "results"
SMOKE_RESULTS = ROOT / ".recsys" / "benchmarks"
VERSIONS = ("torch", "numpy", "numba", "scipy", "polars", "scikit-network", "scikit-learn", "fbgemm-gpu-cpu")


@dataclasses.dataclass(frozen=True)
class Paired:
    """Times of two jobs that alternated.

    Attributes:
        ours_seconds: one time per pair.
        theirs_seconds: one time per pair.
        ours_last: what our job returned last.
        theirs_last: what their job returned last.
    """

    ours_seconds: list[float]
    theirs_seconds: list[float]
    ours_last: Any = None
    theirs_last: Any = None

    @property
    def ratios(self) -> list[float]:
        """Theirs / ours of each pair: above 1 ours is faster."""
        return [b / a for a, b in zip(self.ours_seconds, self.theirs_seconds, strict=True)]

    @property
    def ratio(self) -> float:
        """Their median time / our median time."""
        return self.theirs / self.ours

    @property
    def low(self) -> float:
        """Lowest ratio of a pair."""
        return min(self.ratios)

    @property
    def high(self) -> float:
        """Highest ratio of a pair."""
        return max(self.ratios)

    @property
    def ours(self) -> float:
        """Our median time, s."""
        return statistics.median(self.ours_seconds)

    @property
    def theirs(self) -> float:
        """Their median time, s."""
        return statistics.median(self.theirs_seconds)


def paired(ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int = 7, warmup: int = 1) -> Paired:
    """Time two jobs in ABBA order: ours theirs, theirs ours, ours theirs, ...

    A job that returns :class:`Timed` (as :meth:`Peer.run` does) reports its own time; any other is timed here.

    Args:
        ours: our job.
        theirs: the peer's.
        repeats: number of pairs.
        warmup: runs of each that are not counted.

    Raises:
        ValueError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"paired needs repeats >= 1, got {repeats}")
    set_threads()
    seconds: dict[int, list[float]] = {0: [], 1: []}
    last: dict[int, object] = {}
    for pair in range(-warmup, repeats):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            time_taken, last[side] = _timed(theirs if side else ours)
            if pair >= 0:
                seconds[side].append(time_taken)
    return Paired(seconds[0], seconds[1], last[0], last[1])


def _timed(job: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = job()
    wall = time.perf_counter() - start
    return (result.seconds if isinstance(result, Timed) else wall), result


def set_threads() -> None:
    """Give torch and numba ``THREADS`` threads; the others follow the environment that the package sets."""
    torch.set_num_threads(THREADS)
    numba.set_num_threads(min(THREADS, numba.config.NUMBA_NUM_THREADS))


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a result table.

    Attributes:
        case: what was measured, sizes included.
        peer: peer and version.
        ours: our figure, in ``unit``.
        theirs: the peer's figure, in ``unit``.
        unit: for example ``users/s`` (more is better) or ``s``, ``GiB`` (less is better).
        ratio: above 1 ours is better.
        low: lowest ratio of a pair.
        high: highest ratio of a pair.
        limit: what this machine could do at best, in ``unit``, from :func:`probe`; None where there is no model of it.
        limit_fraction: share of the limit that ours reaches.
        quality: what was checked to be the same job (recall, differences, counts).
        samples: raw samples.
    """

    case: str
    peer: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    low: float
    high: float
    limit: float | None = None
    limit_fraction: float | None = None
    quality: dict[str, Any] = dataclasses.field(default_factory=dict)
    samples: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @classmethod
    def rate(
        cls, case: str, peer: str, pairs: Paired, *, work: float, unit: str, limit: float | None = None, **quality: Any
    ) -> Row:
        """A row of rates: ``work`` units a job over the median seconds; ``limit`` in units/s."""
        ours = work / pairs.ours
        return cls(
            case, peer, ours, work / pairs.theirs, unit, pairs.ratio, pairs.low, pairs.high,
            limit, ours / limit if limit else None, quality, _samples(pairs),
        )  # fmt: skip

    @classmethod
    def duration(cls, case: str, peer: str, pairs: Paired, *, limit: float | None = None, **quality: Any) -> Row:
        """A row of seconds; ``limit`` is the least time possible, s."""
        return cls(
            case, peer, pairs.ours, pairs.theirs, "s", pairs.ratio, pairs.low, pairs.high,
            limit, limit / pairs.ours if limit else None, quality, _samples(pairs),
        )  # fmt: skip


def _samples(pairs: Paired) -> dict[str, list[float]]:
    return {"ours_seconds": pairs.ours_seconds, "theirs_seconds": pairs.theirs_seconds}


def finish(
    name: str,
    rows: Sequence[Row],
    out: Path | None = None,
    *,
    scale: float = 1.0,
    headline: Sequence[Row] | None = None,
) -> int:
    """Write the result file, print the table, and print the summary JSON as the last line of stdout.

    Args:
        name: benchmark, also the stem of the file.
        rows: everything measured, losses included.
        out: directory; ``benchmarks/results`` by default, ``.recsys/benchmarks`` where ``scale`` is not 1.
        scale: share of the full job that was run.
        headline: rows of the summary, whose ratio is their geometric mean; all rows by default.

    Returns:
        0, the exit status of the benchmark.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError(f"benchmark {name} measured nothing: finish needs at least one Row")
    chosen = list(headline or rows)
    summary = summarise(name, chosen)
    result = {
        "name": name,
        "summary": summary,
        "rows": [dataclasses.asdict(row) for row in rows],
        "scale": scale,
        "command": f"recsys bench {name}" + ("" if scale == 1.0 else f" --scale {scale:g}"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "threads": THREADS,
        "probe": dataclasses.asdict(probe(min(1.0, scale))),
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version()} | _versions(),
    }
    directory = out or (RESULTS if scale == 1.0 else SMOKE_RESULTS)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / f"{name}.json", result)
    _print_table(name, rows)
    print(json.dumps(summary))
    return 0


def summarise(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The one-line summary: geometric means of ratios and limit fractions; figures and quality by case if several."""
    fractions = [r.limit_fraction for r in rows if r.limit_fraction is not None]

    def by_case(field: str) -> Any:
        values = [getattr(r, field) for r in rows]
        return values[0] if len(rows) == 1 else {r.case: v for r, v in zip(rows, values, strict=True)}

    return {
        "name": name,
        "ratio": statistics.geometric_mean(r.ratio for r in rows),
        "peer": ", ".join(dict.fromkeys(r.peer for r in rows)),
        "ours": by_case("ours"),
        "theirs": by_case("theirs"),
        "limit_fraction": statistics.geometric_mean(fractions) if fractions else None,
        "quality": by_case("quality"),
    }


def write_json(path: Path, value: object) -> None:
    """Write ``value`` so that readers see the old file or the new one, never a part; NaN is an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _print_table(name: str, rows: Sequence[Row]) -> None:
    table = Table(title=f"{name} ({THREADS} threads)")
    for column in ("case", "peer", "ours", "theirs", "unit", "ratio [min, max]", "limit", "reached"):
        table.add_column(column, justify="left" if column in {"case", "peer", "unit"} else "right")
    for row in rows:
        table.add_row(
            row.case, row.peer, _figure(row.ours), _figure(row.theirs), row.unit,
            f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}]",
            "-" if row.limit is None else _figure(row.limit),
            "-" if row.limit_fraction is None else f"{row.limit_fraction:.0%}",
        )  # fmt: skip
    Console(file=sys.stderr, width=None if sys.stderr.isatty() else 150).print(table)
    for row in rows:
        print(f"{row.case} vs {row.peer}: {row.quality}", file=sys.stderr)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{max(0, 3 - math.ceil(math.log10(abs(value) or 1)))}f}"


def _versions() -> dict[str, str]:
    found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {name: found[name] for name in VERSIONS if name in found}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [s.split(":", 1)[1].strip() for s in info.read_text().splitlines() if s.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()
