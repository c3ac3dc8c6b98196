"""Examine the installation: versions, back ends, machine; and say the command that mends what is broken."""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from pipelines.installed import required

TRIPLE = {"torch": "2.13.0", "fbgemm-gpu-cpu": "1.8.0", "torchrec": "1.8.0"}
"""Versions that import together; one minor version off and the import dies."""
CUDA_TRIPLE = {"torch": "2.11.0", "fbgemm-gpu": "1.6.0", "torchrec": "1.6.1"}
"""Those of requirements/cuda.txt, looked at where ``fbgemm-gpu`` is installed."""
REQUIRED = (
    ("torch", "torch"),
    ("numpy", "numpy"),
    ("scipy", "scipy"),
    ("numba", "numba"),
    ("networkx", "networkx"),
    ("optuna", "optuna"),
    ("polars", "polars"),
    ("pydantic", "pydantic"),
    ("pyyaml", "yaml"),
    ("typer", "typer"),
    ("rich", "rich"),
    ("safetensors", "safetensors"),
    ("jinja2", "jinja2"),
    ("markupsafe", "markupsafe"),
    ("psutil", "psutil"),
    ("sentencepiece", "sentencepiece"),
    ("pandas", "importlib.metadata"),
    ("mlflow", "importlib.metadata"),
)
"""Distribution and a module that proves that it loads; the last two are only looked up, for their import is slow."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: what was examined, whether it works, what was found, and the command that mends it."""

    name: str
    works: bool
    detail: str
    required: bool = True
    mend: str = ""

    def __str__(self) -> str:
        mark = "ok  " if self.works else ("FAIL" if self.required else "none")
        lines = [f"[{mark}] {self.name:<16} {self.detail}".rstrip()]
        if not self.works and self.mend:
            lines.append(f"{'':7}mend it with: {self.mend}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Findings:
    """Everything that was examined."""

    lines: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether everything that is required works."""
        return all(line.works or not line.required for line in self.lines)

    def text(self) -> str:
        """A report for a terminal."""
        verdict = "everything that is required works" if self.healthy else "something that is required is broken"
        return "\n".join([*(str(line) for line in self.lines), "", verdict])


def examine(load: Callable[[str], object] = importlib.import_module, find: Callable[[str], str] = version) -> Findings:
    """Import what is required and what is optional, and look at the machine.

    Args:
        load: Imports a module by name.
        find: Gives the version of a distribution.
    """
    python = Finding("python", (3, 11) <= sys.version_info[:2] < (3, 14), platform.python_version(), mend="Python 3.11")
    required = [_library(name, module, load, find) for name, module in REQUIRED]
    return Findings((python, *required, *_back_ends(load, find), *_machine()))


def _library(name: str, module: str, load: Callable[[str], object], find: Callable[[str], str]) -> Finding:
    install = _pip(required().get(name, name))
    try:
        found = find(name)
    except PackageNotFoundError:
        return Finding(name, works=False, detail="is not installed", mend=install)
    try:
        load(module)
    except Exception as error:
        mend = f"{_pip('--force-reinstall', '--no-deps', f'{name}=={_public(found)}')} && {install}"
        return Finding(name, works=False, detail=f"does not load: {_first_line(error)}", mend=mend)
    return Finding(name, works=True, detail=found)


def _pip(*arguments: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *arguments])


def _back_ends(load: Callable[[str], object], find: Callable[[str], str]) -> list[Finding]:
    findings = [Finding("tables: torch", works=True, detail="the default back end")]
    triple = TRIPLE if _installed("fbgemm-gpu", find) == "absent" else CUDA_TRIPLE
    torch, fbgemm, torchrec = (f"{package}=={wanted}" for package, wanted in triple.items())
    mend = f"{_pip(torch, fbgemm)} && {_pip('--no-deps', torchrec)}"
    if all(_installed(package, find) == wanted for package, wanted in triple.items()):
        mend = _pip("--force-reinstall", "--no-deps", fbgemm, torchrec)  # else pip finds them there and does nothing
    for name, module, use in (
        (fbgemm.partition("==")[0], "fbgemm_gpu", "tables: fbgemm"),
        ("torchrec", "torchrec", "torchrec"),
    ):
        try:
            load(module)
            detail, works = find(name), True
        except Exception as error:
            detail, works = _why_not(name, triple, find, error), False
        findings.append(Finding(use, works, detail, required=False, mend=mend))
    return findings


def _installed(name: str, find: Callable[[str], str]) -> str:
    """The version without its local part, or "absent"."""
    try:
        return _public(find(name))
    except PackageNotFoundError:
        return "absent"


def _public(found: str) -> str:
    """A version without its local part, as ``+cpu``."""
    return found.partition("+")[0]


def _why_not(name: str, triple: dict[str, str], find: Callable[[str], str], error: Exception) -> str:
    """Absent, or of a version that does not fit the others."""
    if _installed(name, find) == "absent":
        return "is not installed; the torch tables serve instead"
    pairs = ", ".join(f"{package} {_installed(package, find)} (needs {wanted})" for package, wanted in triple.items())
    return f"does not load; the versions must fit together: {pairs}; {_first_line(error)}"


def _machine() -> list[Finding]:
    findings = []
    try:
        import psutil
        import torch

        memory = psutil.virtual_memory()
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = f"{torch.get_num_threads()} torch threads"
        findings.append(Finding("cpu", works=True, detail=f"{usable} usable cores, {threads}, {_instructions()}"))
        detail = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available"
        findings.append(Finding("memory", works=True, detail=detail))
        cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none; everything runs on the CPU"
        findings.append(Finding("cuda", works=torch.cuda.is_available(), detail=cuda, required=False))
    except ImportError as error:
        findings.append(Finding("machine", works=False, detail=_first_line(error)))
    return findings


def _instructions() -> str:
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n", maxsplit=1)[0][:200]
