"""Every notebook runs from top to bottom, in a folder of its own, on few epochs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import polars as pl
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def small_sample(folder: Path) -> Path:
    """The 300 users of the packaged sample with the lowest ids, and the items."""
    folder.mkdir()
    sample = ROOT / "pipelines" / "sample" / "anime"
    events = pl.read_parquet(sample / "interactions.parquet")
    kept = events["user_id"].unique().sort()[:300].implode()
    events.filter(pl.col("user_id").is_in(kept)).write_parquet(folder / "interactions.parquet")
    pl.read_parquet(sample / "items.parquet").write_parquet(folder / "items.parquet")
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = small_sample(tmp_path / "data")
    monkeypatch.setenv(
        "NOTEBOOK_OVERRIDES", f"dataset.source={small} train.epochs=1 model.dim=8 evaluate.bootstrap=100"
    )
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells), "each code cell shows something"
    assert cells[-1].outputs[0]["data"]["text/plain"] == "True"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
