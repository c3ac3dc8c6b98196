"""This package as it is installed: what it requires, and itself as a wheel, for no index has it."""

from __future__ import annotations

import hashlib
import re
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("embeddings", "recsys", "pipelines")
NOT_CODE = {"__pycache__", "sample"}
WHEEL = "Wheel-Version: 1.0\nGenerator: recsys\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def required() -> dict[str, str]:
    """What this package requires without extras, by name, as ``polars>=2.0``; empty where it is not installed."""
    try:
        lines = requires("recsys") or []
    except PackageNotFoundError:
        return {}
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0]: line for line in lines if "extra ==" not in line}


def pinned() -> list[str]:
    """What this package requires, in the versions that are installed, without a local part as ``+cpu``."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in required()]


def write_wheel(folder: Path) -> Path:
    """Write the code of this package, without sample data, as a wheel that pip installs.

    The file name has a hash of the code, so that an environment that was built for other code does not pass for this.
    """
    own = distribution("recsys")
    found = (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*")) if file.is_file())
    names = [file.relative_to(ROOT) for file in found]
    parts = {name.as_posix(): (ROOT / name).read_bytes() for name in names if not NOT_CODE & set(name.parts)}
    digest = hashlib.sha256(b"".join(name.encode() + data for name, data in parts.items())).hexdigest()
    info = f"recsys-{own.version}.dist-info"
    parts |= {f"{info}/METADATA": (own.read_text("METADATA") or "").encode(), f"{info}/WHEEL": WHEEL.encode()}
    parts[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*parts, f"{info}/RECORD"]).encode()
    wheel = folder / f"recsys-{own.version}-1_{digest[:8]}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return wheel
