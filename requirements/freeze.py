"""Write cpu.txt and dev.txt from the environment that runs this: ``.venv/bin/python requirements/freeze.py``.

pip cannot lock this set: torchrec requires ``fbgemm-gpu``, the CUDA wheel, where the CPU wheel is another project
(``fbgemm-gpu-cpu``). So the closure of the direct requirements is walked here without it, and installed with --no-deps.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Protocol

from packaging.requirements import Requirement

HERE = Path(__file__).parent
CPU = ["fbgemm-gpu-cpu", "torchrec", "hatchling", "editables"]
DEV = [
    *("pytest", "pytest-xdist", "hypothesis", "ranx", "nbclient", "nbformat", "ipykernel"),
    *("scikit-learn", "scikit-network"),
    *("ruff", "mypy", "codespell", "types-PyYAML", "scipy-stubs"),
]
REPLACED = {"fbgemm-gpu"}


def normal(name: str) -> str:
    """A distribution name as package indexes compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Package(Protocol):
    """What the closure asks of a distribution."""

    @property
    def version(self) -> str:
        """As installed or resolved."""

    @property
    def requires(self) -> Sequence[str] | None:
        """Requirements with their markers."""


@dataclasses.dataclass
class Pin:
    """A version in a lock; ``needs`` are the requirements of the package that apply, without their markers."""

    version: str
    needs: set[str] = dataclasses.field(default_factory=set)


def closure(
    requirements: Sequence[str], packages: Mapping[str, Package], *, environment: Mapping[str, str] | None = None,
    replaced: Collection[str] = REPLACED,
) -> dict[str, Pin]:  # fmt: skip
    """The requirements and everything they need, by name.

    Args:
        requirements: direct ones.
        packages: those there are, by normal name.
        environment: values of markers that differ from those of this interpreter.
        replaced: names that are left out.

    Raises:
        ValueError: A requirement has no package, or one of another version.
    """
    found: dict[str, Pin] = {}
    waiting = [Requirement(line) for line in requirements]
    done: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = normal(requirement.name)
        if name in replaced:
            continue
        if name not in packages:
            raise ValueError(f"{requirement} is required, and there is no such package; install it, or resolve anew")
        version = packages[name].version.split("+")[0]
        if not requirement.specifier.contains(version, prereleases=True):
            raise ValueError(f"{requirement} is required, but there is {version}; install another, or resolve anew")
        pin = found.setdefault(name, Pin(version))
        for extra in {"", *requirement.extras} - {e for n, e in done if n == name}:
            done.add((name, extra))
            for needed in map(Requirement, packages[name].requires or []):
                if needed.marker is None or needed.marker.evaluate({**(environment or {}), "extra": extra}):
                    needed.marker = None
                    pin.needs.add(str(needed))
                    waiting.append(needed)
    return found


def write_lock(path: Path, pins: Mapping[str, Pin], head: str) -> None:
    """Write pins under a line that says what they are for; the command that installs them is added to it."""
    install = f"pip install --no-deps -r requirements/{path.name}"
    lines = [f"{name}=={pins[name].version}\n" for name in sorted(pins)]
    path.write_text(f"# Everything needed {head}. Install with: {install}\n" + "".join(lines), "utf-8")


def project_requirements() -> list[str]:
    """The dependencies in ``pyproject.toml``."""
    lines: list[str] = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    return lines


def main() -> None:
    """Write both files."""
    installed = {normal(d.metadata["Name"]): d for d in distributions()}
    cpu = closure(project_requirements() + CPU, installed)
    dev = {name: pin for name, pin in closure(DEV, installed).items() if name not in cpu}
    write_lock(HERE / "cpu.txt", cpu, "to run, on a CPU; Python 3.11")
    write_lock(HERE / "dev.txt", dev, "to test, beside cpu.txt; Python 3.11")


if __name__ == "__main__":
    main()
