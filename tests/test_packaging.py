"""Locks, the wheel, and what an installation pulls in."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from requirements.freeze import CPU, closure, normal

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@dataclasses.dataclass
class Made:
    version: str
    requires: list[str] | None


def pins(lock: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / lock).read_text("utf-8").splitlines()
    found = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {name: version for name, _, version in found}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        ".",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("recsys-*.whl"))


@pytest.mark.parametrize("lock", ["cpu.txt", "cuda.txt", "dev.txt"])
def test_a_lock_has_exact_pins_and_no_addresses(lock: str) -> None:
    lines = (ROOT / "requirements" / lock).read_text("utf-8").splitlines()[1:]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+", line)] == []
    names = [normal(line.partition("==")[0]) for line in lines]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("lock", ["cpu.txt", "cuda.txt"])
def test_a_lock_satisfies_the_project(lock: str) -> None:
    locked = {normal(name): version for name, version in pins(lock).items()}
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(locked[normal(requirement.name)]), line


def test_the_cpu_lock_is_complete_for_what_is_installed() -> None:
    installed = {normal(d.metadata["Name"]): d for d in distributions()}
    assert set(closure(PROJECT["dependencies"] + CPU, installed)) == set(pins("cpu.txt"))


def test_the_cuda_lock_has_all_that_its_packages_need_in_versions_that_they_take() -> None:
    """cuda.json has what each package requires on the GPU machine, as pip's resolver reported it."""
    locked, needs = pins("cuda.txt"), json.loads((ROOT / "requirements" / "cuda.json").read_bytes())
    assert set(needs) == set(locked)
    for name, lines in needs.items():
        for requirement in map(Requirement, lines):
            version = locked[normal(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), (name, str(requirement), version)
    assert {"triton", "cuda-toolkit"} <= {normal(Requirement(line).name) for line in needs["torch"]}


def test_a_closure_follows_extras_and_markers_and_tells_what_is_missing() -> None:
    packages = {
        "a": Made("1.0+cpu", ["b[fast]>=2", "never; sys_platform == 'win32'", "old; python_version < '3.12'"]),
        "b": Made("2.1", ["c; extra == 'fast'", "d; extra == 'slow'"]),
        "c": Made("3", None),
        "old": Made("4", []),
    }
    found = closure(["a"], packages, environment={"python_version": "3.11"})
    assert {name: pin.version for name, pin in found.items()} == {"a": "1.0", "b": "2.1", "c": "3", "old": "4"}
    assert found["a"].needs == {"b[fast]>=2", "old"}
    assert "old" not in closure(["a"], packages, environment={"python_version": "3.12"})
    assert set(closure(["a"], packages, replaced={"b", "old"})) == {"a"}
    with pytest.raises(ValueError, match=r"e>1 is required, and there is no such package; install it, or resolve"):
        closure(["e>1"], packages)
    with pytest.raises(ValueError, match=r"b<2 is required, but there is 2\.1; install another, or resolve anew"):
        closure(["b<2"], packages)


def test_the_project_takes_no_torch_that_the_lock_does_not_know() -> None:
    (torch,) = [line for line in map(Requirement, PROJECT["dependencies"]) if line.name == "torch"]
    assert not torch.specifier.contains("2.14.0")  # a newer torch would be the CUDA wheel where 2.13 is not


def test_the_cpu_lock_holds_no_cuda() -> None:
    assert [name for name in pins("cpu.txt") if re.match(r"nvidia|cuda|triton|fbgemm-gpu$", name)] == []
    exact = {name: pins("cpu.txt")[name] for name in ("torch", "fbgemm-gpu-cpu", "torchrec", "torchmetrics")}
    assert exact == {"torch": "2.13.0", "fbgemm-gpu-cpu": "1.8.0", "torchrec": "1.8.0", "torchmetrics": "1.0.3"}


def test_the_cuda_lock_fits_together() -> None:
    locked = pins("cuda.txt")
    assert (locked["torch"], locked["fbgemm-gpu"], locked["torchrec"]) == ("2.11.0", "1.6.0", "1.6.1")
    assert "triton" in locked and sum(name.startswith("nvidia-") for name in locked) > 10
    assert "fbgemm-gpu-cpu" not in locked


def test_installing_the_package_never_pulls_a_cuda_wheel() -> None:
    required = {normal(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert not required & {"fbgemm-gpu", "fbgemm-gpu-cpu", "torchrec"}
    assert PROJECT["optional-dependencies"]["fbgemm"] == ["fbgemm-gpu-cpu==1.8.0"]


def test_mlflow_is_recent_enough_to_be_safe() -> None:
    (mlflow,) = [Requirement(line) for line in PROJECT["dependencies"] if line.startswith("mlflow")]
    assert not mlflow.specifier.contains("3.10.9") and mlflow.specifier.contains(pins("cpu.txt")["mlflow"])


def test_the_wheel_ships_code_configs_sample_and_templates(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    source = [p for layer in ("recsys", "pipelines", "embeddings") for p in (ROOT / layer).rglob("*")]
    files = {p.relative_to(ROOT).as_posix() for p in source if p.is_file() and "__pycache__" not in p.parts}
    assert files <= names, sorted(files - names)
    configs = {f"pipelines/_{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert configs <= names, sorted(configs - names)
    assert "pipelines/_configs/experiments/quickstart.yaml" in names
    assert any(name.startswith("pipelines/sample/") and name.endswith(".parquet") for name in names)
    assert any(name.startswith("pipelines/report/templates/") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    assert zipfile.ZipFile(wheel).read(f"{wheel.name.split('-py3')[0]}.dist-info/licenses/LICENSE").startswith(b"\n")


@pytest.mark.quality
def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Installed without its dependencies, which are lent by path, away from the checkout."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (site / "lent.pth").write_text("\n".join(lent) + "\n")
    recsys = tmp_path / "venv" / "bin" / "recsys"
    listed = subprocess.run([recsys, "ls"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "quickstart" in listed
    checked = subprocess.run(
        [recsys, "validate", "quickstart"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
