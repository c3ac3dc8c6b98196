"""Emptying the stage cache: the oldest first, nothing that a run uses, and no other file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tiny_experiment import recsys

from pipelines.cache import STAMP, Cache
from pipelines.cache_prune import DAY, describe_cache, entries, prune
from pipelines.errors import DataError

SIZE = 1 << 20


def fill(root: Path, ages: dict[str, float]) -> dict[str, Path]:
    """An entry of one MiB for each name, last used so many days ago."""
    made = {}
    for name, days in ages.items():
        path = Cache(root).stage("train", {"name": name}, lambda d: d.joinpath("w").write_bytes(bytes(SIZE)) and None)
        os.utime(path / STAMP, (time.time() - days * DAY,) * 2)
        made[name] = path
    return made


def test_old_entries_go_with_their_locks_and_nothing_else(tmp_path: Path) -> None:
    made = fill(tmp_path, {"old": 40, "new": 1})
    (tmp_path / "train" / "notes").mkdir()
    assert "would remove 1 of 2" in prune(tmp_path, older_than_days=30, max_gib=None, dry_run=True)
    assert made["old"].is_dir()
    told = prune(tmp_path, older_than_days=30, max_gib=None)
    assert told.startswith("removed 1 of 2 entries, 1.0 MiB; 1.0 MiB remain")
    assert not made["old"].exists() and not made["old"].with_suffix(".lock").exists()
    assert made["new"].is_dir() and (tmp_path / "train" / "notes").is_dir()


def test_the_least_recently_used_go_until_the_rest_fits(tmp_path: Path) -> None:
    made = fill(tmp_path, {"a": 5, "b": 3, "c": 4, "d": 1})
    fill(tmp_path, {"a": 0})  # found again, and so the last used one
    prune(tmp_path, older_than_days=None, max_gib=2.5 / 1024)
    assert {name for name, path in made.items() if path.is_dir()} == {"a", "d"}
    assert "removed 2 of 2" in prune(tmp_path, older_than_days=None, max_gib=0)


def test_what_a_killed_build_left_counts_and_goes(tmp_path: Path) -> None:
    scratch = Cache(tmp_path).scratch("train", {"name": "x"})
    scratch.mkdir(parents=True)
    (scratch / "state").write_bytes(bytes(SIZE))
    [entry] = entries(tmp_path)
    assert (entry.path, entry.size) == (scratch, SIZE)
    assert "removed 1 of 1" in prune(tmp_path, older_than_days=None, max_gib=0)
    assert not scratch.exists()


def test_nothing_goes_while_a_run_uses_the_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = cache.stage("train", {}, lambda directory: None)
    with pytest.raises(DataError, match=r"a run is using .*; prune it when the run has finished"):
        prune(tmp_path, older_than_days=0, max_gib=None)
    assert path.is_dir()
    del cache
    assert "removed 1 of 1" in prune(tmp_path, older_than_days=None, max_gib=0)


def test_a_prune_needs_a_limit_and_no_cache(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give --older-than-days, --max-gib or both"):
        prune(tmp_path, older_than_days=None, max_gib=None)
    assert "removed 0 of 0" in prune(tmp_path / "absent", older_than_days=1, max_gib=None)


def test_the_commands(tmp_path: Path) -> None:
    fill(tmp_path / ".recsys", {"a": 2.0, "b": 5.0})
    lines = describe_cache(tmp_path / ".recsys").splitlines()
    assert lines[1].split() == ["train", "2", "2.0", "2.0"]
    shown = recsys(tmp_path, "cache", "ls")
    assert shown.stdout.splitlines()[1].split()[:3] == ["train", "2", "2.0"]
    done = recsys(tmp_path, "cache", "prune", "--older-than-days", "3")
    assert done.stdout.startswith("removed 1 of 2 entries, 1.0 MiB"), done.stderr
    refused = recsys(tmp_path, "cache", "prune")
    assert (refused.returncode, refused.stderr[:25]) == (2, "error: nothing to prune b")
