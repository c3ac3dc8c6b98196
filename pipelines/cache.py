"""The stage cache: content-hashed directories, each built once, whole or not there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from embeddings.atomic import sync, sync_tree
from pipelines.errors import DataError

STAMP = "stage.json"
"""Written last into every entry: its key, the seconds that it took and the size of every file.

Its modification time is when the entry was last given out.
"""
IN_USE = "in_use.lock"
"""Shared by every process that was given an entry; who prunes must have it alone."""


def content_hash(*paths: Path) -> str:
    """SHA-256 of the contents and names (not the directories) of files, in the order given; 16 hex digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    return digest.hexdigest()[:16]


def key_hash(name: str, key: dict[str, Any]) -> str:
    """Hash of a stage's name and its JSON-able key; 16 hex digits."""
    text = json.dumps([name, key], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Cache:
    """Directories ``root/<stage>/<hash>``.

    A build goes to a temporary sibling, is fsynced and renamed, so that an entry is complete or absent whatever kills
    the process. One lock file per key lets two processes that need the same entry build it once. From its first stage
    on a cache shares a lock on all of ``root``, so that nothing is pruned that it gave out.

    Args:
        root: Directory of the cache; created when needed.
        on_wait: Called with a message when another process is building what is needed here.
    """

    def __init__(self, root: Path, on_wait: Callable[[str], None] = print) -> None:
        self.root = root
        self._on_wait = on_wait
        self._shared = False

    def stage(self, name: str, key: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """The entry for ``key``, built by ``build(directory)`` if it is not there yet.

        Args:
            name: Name of the stage.
            key: What the result depends on: input content hashes, the configuration that matters, versions.
            build: Fills an empty directory.

        Raises:
            DataError: The entry is not there, and the cache can only be read.
        """
        entry = self.root / name / key_hash(name, key)
        self._share()
        if is_complete(entry):
            with contextlib.suppress(OSError):  # a cache that can only be read
                (entry / STAMP).touch()
            return entry
        with self._lock(entry):
            if is_complete(entry):
                return entry
            temporary = entry.with_suffix(".tmp")
            _remove(temporary)
            _remove(entry)
            temporary.mkdir(parents=True)
            started = time.perf_counter()
            build(temporary)
            _stamp(temporary, key, time.perf_counter() - started)
            sync_tree(temporary)
            temporary.rename(entry)
            sync(entry.parent)
            _remove(self.scratch(name, key))
        return entry

    def scratch(self, name: str, key: dict[str, Any]) -> Path:
        """A directory beside the entry that survives a killed build (checkpoints) and goes when the entry is there."""
        return self.root / name / f"{key_hash(name, key)}.work"

    def _share(self) -> None:
        if self._shared:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        self._shared = True
        try:
            lock = os.open(self.root / IN_USE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            if _writable(self.root):
                raise
            return  # nor can anyone prune what only can be read
        weakref.finalize(self, os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self._on_wait(f"waiting for a prune of {self.root}")
            fcntl.flock(lock, fcntl.LOCK_SH)

    @contextlib.contextmanager
    def _lock(self, entry: Path) -> Iterator[None]:
        if not _writable(entry.parent if entry.parent.is_dir() else self.root):
            raise DataError(
                f"the cache {self.root} can only be read and lacks {entry.relative_to(self.root)};"
                " set RECSYS_CACHE to a directory that can be written"
            )
        entry.parent.mkdir(parents=True, exist_ok=True)
        with locked(entry.with_suffix(".lock"), lambda: self._on_wait(f"waiting for another run that builds {entry}")):
            yield


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on a lock file; the kernel releases it when the process dies, however it dies."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def try_locked(path: Path) -> Iterator[bool]:
    """As :func:`locked`, but without waiting: False where another process holds the lock."""
    with path.open("a") as file:
        free = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        yield free


def is_complete(entry: Path) -> bool:
    """Whether an entry is there and every file still has the size that it was published with."""
    try:
        sizes = json.loads((entry / STAMP).read_bytes())["files"]
        return all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def build_seconds(entry: Path) -> float:
    """How long the build of an entry took, whenever that was."""
    return float(json.loads((entry / STAMP).read_bytes())["seconds"])


def _stamp(directory: Path, key: dict[str, Any], seconds: float) -> None:
    files = {str(f.relative_to(directory)): f.stat().st_size for f in sorted(directory.rglob("*")) if f.is_file()}
    stamp = {"key": key, "seconds": seconds, "files": files}
    (directory / STAMP).write_text(json.dumps(stamp, indent=1))


def _writable(directory: Path) -> bool:
    return os.access(directory, os.W_OK, effective_ids=True)


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
