"""Versions of the libraries that results depend on."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = (
    "recsys",
    "torch",
    "numpy",
    "scipy",
    "numba",
    "polars",
    "safetensors",
    "mlflow",
    "fbgemm-gpu-cpu",
    "torchrec",
)


def versions(names: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Version of every library that is installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
