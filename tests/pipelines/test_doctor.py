"""The doctor names what is broken and the command that mends it."""

from __future__ import annotations

import shlex
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from pipelines.doctor import CUDA_TRIPLE, REQUIRED, TRIPLE, examine


def without(*missing: str) -> Callable[[str], object]:
    """A loader that finds every module but some; it imports nothing, which would take seconds."""

    def load(module: str) -> object:
        if module in missing:
            raise ModuleNotFoundError(f"No module named {module!r}")
        return module

    return load


def test_this_installation_is_healthy() -> None:
    found = examine()
    assert found.healthy, found.text()
    assert "everything that is required works" in found.text()
    names = {line.name for line in found.lines}
    assert {
        "python",
        "torch",
        "polars",
        "mlflow",
        "tables: torch",
        "tables: fbgemm",
        "torchrec",
        "cpu",
        "memory",
    } <= names


def test_without_fbgemm_all_else_works_and_the_mending_command_pins_the_three() -> None:
    def find(name: str) -> str:
        if name in ("fbgemm-gpu-cpu", "torchrec"):
            raise PackageNotFoundError(name)
        return version(name)

    found = examine(without("fbgemm_gpu", "torchrec"), find)
    line = next(line for line in found.lines if line.name == "tables: fbgemm")
    assert found.healthy
    assert str(line).startswith("[none] tables: fbgemm   is not installed; the torch tables serve instead")
    assert "pip install torch==2.13.0 fbgemm-gpu-cpu==1.8.0 &&" in str(line)
    assert "--no-deps torchrec==1.8.0" in str(line)


def test_the_cuda_build_is_judged_by_the_versions_of_its_lock() -> None:
    def find(name: str) -> str:
        if name in ("fbgemm-gpu-cpu", "torchrec"):
            raise PackageNotFoundError(name)
        return {"torch": "2.11.0+cu130", "fbgemm-gpu": "1.6.0"}.get(name) or version(name)

    lines = {line.name: str(line) for line in examine(without("torchrec"), find).lines}
    assert lines["tables: fbgemm"].split() == ["[ok", "]", "tables:", "fbgemm", "1.6.0"]
    assert "pip install torch==2.11.0 fbgemm-gpu==1.6.0 &&" in lines["torchrec"]
    assert "fbgemm-gpu-cpu" not in "".join(lines.values())


def test_everything_that_the_project_requires_is_examined() -> None:
    root = Path(__file__).parents[2]
    wanted = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {Requirement(line).name for line in wanted} == {name for name, _ in REQUIRED}
    locks = {"cpu.txt": TRIPLE, "cuda.txt": CUDA_TRIPLE}
    for file, triple in locks.items():
        pins = dict(line.split("==") for line in (root / "requirements" / file).read_text().splitlines()[1:])
        assert {name: pins[name] for name in triple} == triple
        for requirement in map(Requirement, wanted):
            assert requirement.specifier.contains(pins[requirement.name]), (file, requirement)


def test_versions_that_do_not_fit_are_told_side_by_side() -> None:
    def load(module: str) -> object:
        if module == "fbgemm_gpu":
            raise OSError("undefined symbol: _ZN3c10\nmore")
        return module

    def find(name: str) -> str:
        return "2.12.0+cpu" if name == "torch" else version(name)

    line = next(line for line in examine(load, find).lines if line.name == "tables: fbgemm")
    assert "torch 2.12.0 (needs 2.13.0), fbgemm-gpu-cpu 1.8.0 (needs 1.8.0)" in line.detail
    assert "undefined symbol: _ZN3c10" in line.detail
    assert "more" not in line.detail


def test_a_broken_requirement_fails_with_its_reason() -> None:
    found = examine(without("polars"))
    line = next(line for line in found.lines if line.name == "polars")
    assert not found.healthy
    assert str(line).startswith("[FAIL] polars           does not load: No module named 'polars'")
    again = f"-m pip install --force-reinstall --no-deps polars=={version('polars')} && "
    assert again in line.mend and line.mend.endswith("-m pip install 'polars>=2.0'")
    assert found.text().endswith("something that is required is broken")


def test_a_requirement_that_is_absent_is_told_apart_from_one_that_does_not_load() -> None:
    def find(name: str) -> str:
        if name == "mlflow":
            raise PackageNotFoundError(name)
        return version(name)

    line = next(line for line in examine(without(), find).lines if line.name == "mlflow")
    assert (line.works, line.detail) == (False, "is not installed")
    assert shlex.split(line.mend) == [sys.executable, "-m", "pip", "install", "mlflow<4,>=3.11"]


def test_an_fbgemm_of_the_right_version_that_does_not_load_is_installed_over_itself() -> None:
    found = examine(without("fbgemm_gpu"), lambda name: {"torch": "2.13.0+cpu"}.get(name) or version(name))
    line = next(line for line in found.lines if line.name == "tables: fbgemm")
    assert line.mend.endswith("pip install --force-reinstall --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0")


def test_no_command_names_this_package_for_its_name_on_the_index_is_another_project() -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    everything = {module for _, module in REQUIRED} | {"fbgemm_gpu", "torchrec"}
    for find in (absent, version):
        lines = examine(without(*everything), find).lines
        commands = [word for line in lines for word in shlex.split(line.mend)]
        assert len(commands) > len(REQUIRED)
        assert "recsys" not in commands
