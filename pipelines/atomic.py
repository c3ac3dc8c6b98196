"""Text, JSON and directories that are either whole or absent, whenever the process is killed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from embeddings.atomic import atomic_directory, write_bytes

__all__ = ["atomic_directory", "copy_tree", "finite", "write_bytes", "write_json", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically.

    Raises:
        ValueError: ``value`` has NaN or infinity, which are not JSON; see :func:`finite`.
        TypeError: ``value`` has something that JSON cannot say.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """``value`` with NaN and infinities as None, which JSON can hold."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def copy_tree(source: Path, target: Path) -> None:
    """Replace ``target`` by a copy of ``source`` that is whole or absent."""
    temporary = target.with_name(f".{target.name}.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    shutil.copytree(source, temporary)
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
