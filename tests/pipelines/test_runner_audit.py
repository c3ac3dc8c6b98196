"""The audit of a run looks at what its clusters, id maps and trainings were really made from."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_experiment import write_tiny

from pipelines import runner
from pipelines.cache import Cache
from pipelines.config import Experiment
from pipelines.config_loader import load_experiment
from pipelines.dataset import Dataset
from pipelines.errors import DataError, LeakError
from pipelines.runner import run_experiment
from pipelines.stages.compress import GRAPH, CompressionStage


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    overrides = ["variants=[popularity, mf-graphhash]", "train.epochs=1", f"output={tmp_path / 'runs'}"]
    return load_experiment(str(write_tiny(tmp_path)), overrides)


def audit_of(run: Path) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads((run / "dataset.json").read_text())["leak_audit"]}


def leaking_compression(patch: pytest.MonkeyPatch) -> None:
    """Compress the graph of all splits under the hash of train, as a mistake in the runner would."""
    found: list[Dataset] = []
    ingest = runner.ingest_stage

    def remembered(*arguments: Any) -> Dataset:
        found.append(ingest(*arguments))
        return found[0]

    def leaking(cache: Cache, experiment: Experiment, _: Any, train_hash: str) -> CompressionStage:
        return CompressionStage(cache, experiment, found[0].matrix("train", "valid", "test"), train_hash)

    patch.setattr(runner, "ingest_stage", remembered)
    patch.setattr(runner, "CompressionStage", leaking)


def test_clusters_and_maps_of_held_out_pairs_stop_the_run(experiment: Experiment) -> None:
    with pytest.MonkeyPatch.context() as patch:
        leaking_compression(patch)
        with pytest.raises(LeakError, match=r"clusters \(louvain\): made from graph \w{12}, but the graph of train is"):
            run_experiment(experiment, quiet=True)
    with pytest.raises(LeakError, match=r"clusters \(louvain\): made from graph"):  # the cache has them still
        run_experiment(experiment, quiet=True)


def test_clusters_and_maps_are_audited_and_need_their_record(experiment: Experiment, tmp_path: Path) -> None:
    audit = audit_of(run_experiment(experiment, quiet=True))
    assert audit["clusters (louvain)"]["passed"] is audit["id maps (graphhash)"]["passed"] is True
    entry = next((tmp_path / "cache" / "maps").glob(f"*/{GRAPH}")).parent
    stamp = json.loads((entry / "stage.json").read_text())
    del stamp["files"][GRAPH]
    (entry / "stage.json").write_text(json.dumps(stamp))
    (entry / GRAPH).unlink()
    with pytest.raises(DataError, match=rf"id maps \(graphhash\) does not say .* delete {entry} and run again"):
        run_experiment(experiment, quiet=True)
