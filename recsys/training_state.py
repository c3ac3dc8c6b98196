"""The state of a training in progress: one safetensors file, with the facts as JSON in its header."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from embeddings import atomic

_MAGIC = "recsys-training-state"
_VERSION = 2


class CheckpointError(ValueError):
    """A file that is not the expected one; the message has its path, what is wrong and what to do."""


def write_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON-able facts into one file; after a kill at any moment it is the old one or the new one.

    Equal states are equal bytes: the header has one entry, for safetensors writes several in random order.
    """
    metadata = {_MAGIC: json.dumps({"version": _VERSION, "facts": facts}, sort_keys=True)}
    atomic.write_bytes(path, safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}, metadata))


def read_state(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_state` wrote.

    Args:
        path: the file.
        fingerprint: must equal ``facts["fingerprint"]``; it stands for configuration, data and initial weights.

    Raises:
        CheckpointError: Not a safetensors file, truncated, not a training state of this version, or of another run.
    """
    remedy = "delete it to train from the start"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = metadata.get(_MAGIC)
            if header is None and metadata.get("format") == _MAGIC:
                raise CheckpointError(f"{path} has training state version 1, this program reads {_VERSION}; {remedy}")
            if header is None:
                raise CheckpointError(f"{path} is safetensors but not a training state of this program; {remedy}")
            found = json.loads(header)
            if found["version"] != _VERSION:
                raise CheckpointError(
                    f"{path} has training state version {found['version']}, this program reads {_VERSION}; {remedy}"
                )
            facts: dict[str, Any] = found["facts"]
            if facts.get("fingerprint") != fingerprint:
                raise CheckpointError(
                    f"{path} belongs to another configuration, data set or initial model"
                    f" (fingerprint {str(facts.get('fingerprint'))[:12]}, this run has {fingerprint[:12]});"
                    f" {remedy}, or use another directory"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (
        SafetensorError,
        OSError,
        KeyError,
        TypeError,
        json.JSONDecodeError,
        UnicodeDecodeError,
        struct.error,
    ) as error:
        raise CheckpointError(f"{path} is {_diagnose(path)}: {error}; {remedy}") from error


def _diagnose(path: Path) -> str:
    """Tell a pickle from a truncated or foreign file; nothing is ever unpickled."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return "unreadable"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "a pickle or torch.save archive, which is never loaded because it can run code,"
    if len(head) == 8 and 0 < struct.unpack("<Q", head)[0] < 100_000_000:
        return "a truncated or damaged safetensors file"
    return "not a safetensors file"


def fingerprint(*parts: object) -> str:
    """SHA-256 of tensors, arrays and JSON-able values, in order."""
    digest = hashlib.sha256()
    for part in parts:
        match part:
            case Tensor():
                array = part.detach().cpu().reshape(-1).view(torch.uint8).numpy()
                digest.update(repr((part.dtype, tuple(part.shape))).encode())
                digest.update(array.data)
            case np.ndarray():
                digest.update(repr((part.dtype, part.shape)).encode())
                digest.update(np.ascontiguousarray(part).data)
            case _:
                digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


def model_parts(model: nn.Module) -> list[object]:
    """What tells a model that is about to be trained from any other, for :func:`fingerprint`.

    Classes and public settings of all modules, values or dataclasses of such; then all parameters and buffers, also
    those that no state dict has, as the maps of tables.
    """
    settings = [[name, type(module).__name__, _settings(module)] for name, module in model.named_modules()]
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    return [settings, *(part for named in sorted(tensors.items()) for part in named)]


def _settings(module: nn.Module) -> dict[str, Any]:
    public = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return {name: _as_dict(value) for name, value in public.items() if _is_plain(value)}


def _as_dict(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _is_plain(value: object) -> bool:
    if dataclasses.is_dataclass(value):
        return all(_is_plain(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
