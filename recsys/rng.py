"""Named random generators, all split from one seed."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def _digest(seed: int, names: tuple[str | int, ...]) -> bytes:
    text = "\x1f".join([str(int(seed)), *(f"{type(name).__name__}:{name}" for name in names)])
    return hashlib.sha256(text.encode()).digest()


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Generator that depends on ``seed`` and ``names`` only, never on what was drawn before.

    The key of a Philox counter generator (Salmon et al. 2011) is a SHA-256 of the arguments, so that streams of
    different names are independent and a resumed run draws what the uninterrupted one would have drawn.

    Args:
        seed: seed of the run.
        names: purpose of the stream, with counters where it recurs: ``generator(0, "negatives", epoch, step)``.

    Example:
        >>> a, b = generator(0, "init"), generator(0, "init")
        >>> bool((a.random(3) == b.random(3)).all())
        True
    """
    key = np.frombuffer(_digest(seed, names)[:16], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """CPU torch generator for the same naming scheme as :func:`generator`."""
    return torch.Generator().manual_seed(int.from_bytes(_digest(seed, names)[16:24], "little") >> 1)
