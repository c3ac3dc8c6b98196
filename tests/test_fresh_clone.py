"""The first command of the README, where nothing is installed yet."""

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.quality
@pytest.mark.skipif(shutil.which("make") is None or shutil.which("git") is None, reason="needs make and git")
def test_make_run_in_a_fresh_clone(root: Path, tmp_path: Path) -> None:
    """It installs the lock and runs the quickstart on the data that ships with the package."""
    assert "make run" in (root / "README.md").read_text("utf-8")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(root), str(clone)], check=True)
    done = subprocess.run(["make", "run"], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    run = next((clone / "runs").glob("quickstart-*"))
    assert "mf-graphhash" in (run / "report.html").read_text("utf-8")
    assert (clone / "mlflow.db").is_file()
