"""Peak memory of this process alone; ``ru_maxrss`` starts from what the parent had when it forked."""

from __future__ import annotations

from pathlib import Path


def peak_rss_mib() -> float:
    """High water mark of resident memory since this program was started, MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
