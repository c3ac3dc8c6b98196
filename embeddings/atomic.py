"""Files and directories that are either wholly there or not there, whenever the process is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, or a crash, sees the old file or the new one and nothing between.

    The bytes go to a temporary name in the same directory, are fsynced, renamed, and the directory is fsynced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        sync(Path(temporary))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """Flush every file and directory below ``directory``, itself last."""
    for path in sorted(directory.rglob("*"), reverse=True):
        sync(path)
    sync(directory)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Give an empty temporary directory beside ``path`` that takes its place when the block ends well.

    Every file in it is fsynced first. A directory that is already at ``path`` is replaced. When the block raises, the
    temporary directory goes and ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        sync_tree(temporary)
        _put_in_place(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def _put_in_place(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; an older directory there is moved aside first and then removed."""
    old = _temporary(path)
    while True:
        with contextlib.suppress(FileNotFoundError):
            path.rename(old)
        try:
            new.rename(path)
            break
        except OSError:
            if not path.exists():
                raise
            shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
