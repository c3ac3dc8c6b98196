"""Write cpu.txt and dev.txt from the environment that runs this: ``.venv/bin/python requirements/freeze.py``.

pip cannot lock this set: torchrec requires ``fbgemm-gpu``, the CUDA wheel, where the CPU wheel is another project
(``fbgemm-gpu-cpu``). So the closure of the direct requirements is walked here without it, and installed with --no-deps.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import Distribution, distributions
from pathlib import Path

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


def closure(requirements: list[str], installed: dict[str, Distribution]) -> dict[str, str]:
    """Name to version of the requirements and everything they need here, without ``REPLACED``."""
    found: dict[str, str] = {}
    waiting = [(requirement, "") for requirement in map(Requirement, requirements)]
    done = set()
    while waiting:
        requirement, extra = waiting.pop()
        name = normal(requirement.name)
        if name in REPLACED or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        for wanted in {"", *requirement.extras} - {e for n, e in done if n == name}:
            done.add((name, wanted))
            found[name] = installed[name].version.split("+")[0]
            waiting += [(Requirement(line), wanted) for line in installed[name].requires or []]
    return found


def main() -> None:
    """Write both files."""
    installed = {normal(d.metadata["Name"]): d for d in distributions()}
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    cpu = closure(project["dependencies"] + CPU, installed)
    dev = {name: pin for name, pin in closure(DEV, installed).items() if name not in cpu}
    for file, pins, purpose in [("cpu.txt", cpu, "to run, on a CPU"), ("dev.txt", dev, "to test, beside cpu.txt")]:
        install = f"pip install --no-deps -r requirements/{file}"
        head = f"# Everything needed {purpose}; Python 3.11. Install with: {install}\n"
        (HERE / file).write_text(head + "".join(f"{name}=={pins[name]}\n" for name in sorted(pins)), "utf-8")


if __name__ == "__main__":
    main()
