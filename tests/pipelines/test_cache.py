"""The stage cache: entries are whole or absent, and are built once."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cache import IN_USE, STAMP, Cache, build_seconds, content_hash, is_complete, key_hash, locked
from pipelines.errors import DataError

KEY = {"version": 1, "input": "abc"}


def write(directory: Path) -> None:
    (directory / "inner").mkdir()
    (directory / "inner" / "value.txt").write_text("42")


def never(directory: Path) -> None:
    raise AssertionError(f"built again in {directory}")


def test_an_entry_is_built_once_and_found_by_an_equal_key(tmp_path: Path) -> None:
    entry = Cache(tmp_path).stage("graph", KEY, write)
    assert (entry / "inner" / "value.txt").read_text() == "42"
    assert Cache(tmp_path).stage("graph", {"input": "abc", "version": 1}, never) == entry
    assert json.loads((entry / STAMP).read_bytes())["key"] == KEY
    assert 0 <= build_seconds(entry) < 5


def test_name_and_every_part_of_the_key_matter() -> None:
    hashes = {
        key_hash("graph", KEY),
        key_hash("maps", KEY),
        key_hash("graph", {**KEY, "version": 2}),
        key_hash("graph", {**KEY, "input": "abd"}),
        key_hash("graph", {**KEY, "more": None}),
    }
    assert len(hashes) == 5


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A cache with one entry that this user can only read; root, whom no mode keeps out, is another user meanwhile."""
    with tempfile.TemporaryDirectory() as root:
        Cache(Path(root)).stage("graph", KEY, write)
        for path in [Path(root), *Path(root).rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(root)
        finally:
            os.seteuid(user)
            for path in [Path(root), *Path(root).rglob("*")]:
                path.chmod(0o755)


def test_a_cache_that_can_only_be_read_gives_what_it_has(read_only: Path) -> None:
    cache = Cache(read_only)
    entry = cache.stage("graph", KEY, never)
    assert (entry / "inner" / "value.txt").read_text() == "42"
    for name in ("graph", "train"):
        with pytest.raises(DataError, match=rf"can only be read and lacks {name}/\w+; set RECSYS_CACHE to a directory"):
            cache.stage(name, {"version": 2}, write)
    with (read_only / IN_USE).open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_run_says_that_it_waits_for_a_prune(tmp_path: Path) -> None:
    said: list[str] = []
    Cache(tmp_path).stage("graph", KEY, write)
    with (tmp_path / IN_USE).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def release(message: str) -> None:
            said.append(message)
            fcntl.flock(lock, fcntl.LOCK_UN)

        Cache(tmp_path, on_wait=release).stage("graph", KEY, never)
    assert said == [f"waiting for a prune of {tmp_path}"]


def test_a_key_must_be_plain_json() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        key_hash("graph", {"share": float("nan")})


@pytest.mark.parametrize("damage", ["remove", "truncate", "stamp", "garbage"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, damage: str) -> None:
    entry = Cache(tmp_path).stage("graph", KEY, write)
    value = entry / "inner" / "value.txt"
    match damage:
        case "remove":
            value.unlink()
        case "truncate":
            value.write_text("4")
        case "stamp":
            (entry / STAMP).unlink()
        case _:
            (entry / STAMP).write_text("{")
    assert not is_complete(entry)
    Cache(tmp_path).stage("graph", KEY, write)
    assert value.read_text() == "42"
    assert is_complete(entry)


def test_a_build_that_raises_leaves_no_entry_and_the_next_one_starts_clean(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        write(directory)
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        Cache(tmp_path).stage("graph", KEY, fail)
    assert not (tmp_path / "graph" / key_hash("graph", KEY)).exists()
    entry = Cache(tmp_path).stage("graph", KEY, write)
    assert sorted(path.name for path in entry.iterdir()) == ["inner", STAMP]


def test_scratch_survives_a_failed_build_and_goes_with_the_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    scratch = cache.scratch("train", KEY)
    steps: list[bool] = []

    def build(directory: Path) -> None:
        steps.append(scratch.exists())
        scratch.mkdir(parents=True, exist_ok=True)
        if len(steps) == 1:
            raise RuntimeError("killed")
        write(directory)

    with pytest.raises(RuntimeError, match="killed"):
        cache.stage("train", KEY, build)
    cache.stage("train", KEY, build)
    assert steps == [False, True]
    assert not scratch.exists()


def _slow_build(root: Path, log: Path) -> None:
    def build(directory: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        write(directory)

    entry = Cache(root, on_wait=lambda _: None).stage("graph", KEY, build)
    assert (entry / "inner" / "value.txt").read_text() == "42"


def test_processes_that_need_the_same_entry_build_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    workers = [context.Process(target=_slow_build, args=(tmp_path / "cache", log)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert len(log.read_text().splitlines()) == 1


def in_the_middle_of_a_build(folder: Path) -> multiprocessing.process.BaseProcess:
    """A process that holds the lock."""
    worker = multiprocessing.get_context("fork").Process(target=_slow_build, args=(folder / "cache", folder / "log"))
    worker.start()
    while not (folder / "log").exists():
        time.sleep(0.01)
    return worker


def test_a_killed_builder_frees_the_lock_and_the_next_one_builds(tmp_path: Path) -> None:
    worker = in_the_middle_of_a_build(tmp_path)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(30)
    messages: list[str] = []
    Cache(tmp_path / "cache", on_wait=messages.append).stage("graph", KEY, write)
    assert messages == []
    assert not list((tmp_path / "cache" / "graph").glob("*.tmp"))


def test_who_waits_is_told_for_whom(tmp_path: Path) -> None:
    worker = in_the_middle_of_a_build(tmp_path)
    messages: list[str] = []
    entry = Cache(tmp_path / "cache", on_wait=messages.append).stage("graph", KEY, never)
    worker.join(30)
    assert messages == [f"waiting for another run that builds {entry}"]


def test_locks_of_other_files_do_not_wait(tmp_path: Path) -> None:
    with locked(tmp_path / "a", never_waits), locked(tmp_path / "b", never_waits):
        pass


def never_waits() -> None:
    raise AssertionError("waited")


def test_content_hash_sees_bytes_and_names_but_not_directories_or_times(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.csv").write_text("x")
    os.utime(tmp_path / "two" / "a.csv", (0, 0))
    first = content_hash(tmp_path / "one" / "a.csv")
    assert content_hash(tmp_path / "two" / "a.csv") == first
    (tmp_path / "two" / "a.csv").write_text("y")
    assert content_hash(tmp_path / "two" / "a.csv") != first
