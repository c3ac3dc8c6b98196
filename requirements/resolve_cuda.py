"""Write cuda.txt and cuda.json: ``.venv/bin/python requirements/resolve_cuda.py [PACKAGE ...]``.

pip resolves for the GPU machine without installing anything, by the pins in cuda.txt but for those of the packages that
are named. It evaluates the markers of this interpreter, so that the closure is walked again with those of the target.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from freeze import HERE, Pin, closure, normal, project_requirements, write_lock

PYTHON = "3.12"
GLIBC_MINOR = 28
TARGET = {
    "python_version": PYTHON,
    "python_full_version": f"{PYTHON}.0",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
}
CUDA = ["fbgemm-gpu==1.6.0", "torchrec==1.6.1", "hatchling", "editables"]


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A package of pip's report."""

    version: str
    requires: list[str]


def resolve(requirements: list[str], pins: list[str]) -> dict[str, Resolved]:
    """What pip would install on the target, from wheels alone.

    Args:
        requirements: direct ones.
        pins: constraints.
    """
    tags = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC_MINOR, 4, -1)]
    tags += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder) / "constraints.txt", Path(folder) / "report.json"
        constraints.write_text("\n".join(pins), "utf-8")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary=:all:"]
        command += ["--report", str(report), "--target", folder, "--constraint", str(constraints)]
        command += ["--python-version", PYTHON, *(part for tag in tags for part in ("--platform", tag)), *requirements]
        subprocess.run(command, check=True)
        found = [part["metadata"] for part in json.loads(report.read_bytes())["install"]]
    return {normal(part["name"]): Resolved(part["version"], part.get("requires_dist", [])) for part in found}


def main() -> None:
    """Write both files."""
    free = {normal(name) for name in sys.argv[1:]}
    lines = (HERE / "cuda.txt").read_text("utf-8").splitlines()[1:]
    direct = project_requirements() + CUDA
    found = resolve(direct, [line for line in lines if line.partition("==")[0] not in free])
    pins: dict[str, Pin] = closure(direct, found, environment=TARGET, replaced=())
    write_lock(HERE / "cuda.txt", pins, f"to run on an NVIDIA GPU: Linux x86_64, Python {PYTHON}, CUDA 13")
    needs = {name: sorted(pins[name].needs) for name in sorted(pins)}
    (HERE / "cuda.json").write_text(json.dumps(needs, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
