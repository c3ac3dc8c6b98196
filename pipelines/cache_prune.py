"""What the stage cache holds, and how it is emptied beside running jobs."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pipelines.cache import IN_USE, STAMP
from pipelines.errors import DataError

DAY = 86_400.0
_ENTRY = re.compile(r"^[0-9a-f]{16}(\.tmp|\.work)?$")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A directory of the cache: a finished stage, or what a killed build left to go on from.

    Attributes:
        path: the directory.
        size: bytes of its files.
        used: seconds since the epoch when it was last given out or written to.
    """

    path: Path
    size: int
    used: float


def entries(root: Path) -> list[Entry]:
    """Everything in the cache, the least recently used first; other files under ``root`` are not looked at."""
    found = (path for path in root.glob("*/*") if _ENTRY.match(path.name) and path.is_dir())
    return sorted(filter(None, map(_measure, found)), key=lambda entry: (entry.used, entry.path))


def _measure(path: Path) -> Entry | None:
    """The entry, or None if it is renamed or removed meanwhile."""
    try:
        stats = [file.stat() for file in path.rglob("*") if file.is_file()]
        stamp = path / STAMP
        used = stamp.stat().st_mtime if stamp.is_file() else max([path.stat().st_mtime, *(s.st_mtime for s in stats)])
    except FileNotFoundError:
        return None
    return Entry(path, sum(stat.st_size for stat in stats), used)


def describe_cache(root: Path) -> str:
    """A line for each stage, and the total."""
    stages: dict[str, list[Entry]] = {}
    for entry in entries(root):
        stages.setdefault(entry.path.parent.name, []).append(entry)
    rows = [("stage", "entries", "MiB", "days since the last use")]
    for name, some in sorted(stages.items(), key=lambda pair: -sum(entry.size for entry in pair[1])):
        size, days = sum(entry.size for entry in some), (time.time() - some[-1].used) / DAY
        rows.append((name, f"{len(some):,}", f"{size / 2**20:,.1f}", f"{max(days, 0):.1f}"))
    total = sum(entry.size for some in stages.values() for entry in some)
    rows.append((f"all of {root}", f"{sum(map(len, stages.values())):,}", f"{total / 2**20:,.1f}", ""))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{row[0]:<{width}}  {row[1]:>8}  {row[2]:>12}  {row[3]:>24}".rstrip() for row in rows)


def prune(root: Path, *, older_than_days: float | None, max_gib: float | None, dry_run: bool = False) -> str:
    """Remove entries that were not used for ``older_than_days``, then the oldest until ``max_gib`` remain.

    Returns:
        What was removed, in a sentence.

    Raises:
        DataError: No limit is given, or a run is using the cache.
    """
    if older_than_days is None and max_gib is None:
        raise DataError("nothing to prune by; give --older-than-days, --max-gib or both (--max-gib 0 removes all)")
    with _alone(root):
        found = entries(root)
        size = remaining = sum(entry.size for entry in found)
        removed = 0
        for entry in found:
            old = older_than_days is not None and entry.used < time.time() - older_than_days * DAY
            if not old and (max_gib is None or remaining <= max_gib * 2**30):
                continue
            if not dry_run:
                shutil.rmtree(entry.path)
                entry.path.with_suffix(".lock").unlink(missing_ok=True)
            removed, remaining = removed + 1, remaining - entry.size
    verb = "would remove" if dry_run else "removed"
    return (
        f"{verb} {removed:,} of {len(found):,} entries, {(size - remaining) / 2**20:,.1f} MiB;"
        f" {remaining / 2**20:,.1f} MiB {'would remain' if dry_run else 'remain'} in {root}"
    )


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the lock that every run shares; runs that start meanwhile wait."""
    if not root.is_dir():
        yield
        return
    with (root / IN_USE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"a run is using {root}; prune it when the run has finished") from error
        yield
