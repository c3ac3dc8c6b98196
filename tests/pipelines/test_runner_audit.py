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
from pipelines.stages import train
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

    def leaking(cache: Cache, experiment: Experiment, _: Any, train_hash: str, codes: None) -> CompressionStage:
        return CompressionStage(cache, experiment, found[0].matrix("train", "valid", "test"), train_hash, codes)

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
    entry = forget(tmp_path / "cache" / "maps", GRAPH)
    with pytest.raises(DataError, match=rf"id maps \(graphhash\) does not say .* delete {entry} and run again"):
        run_experiment(experiment, quiet=True)


def forget(entries: Path, name: str) -> Path:
    """Take one record out of a cache entry, as if an older program had written it."""
    entry = next(entries.glob(f"*/{name}")).parent
    stamp = json.loads((entry / "stage.json").read_text())
    del stamp["files"][name]
    (entry / "stage.json").write_text(json.dumps(stamp))
    (entry / name).unlink()
    return entry


def test_the_matrix_of_every_phase_is_audited(experiment: Experiment, tmp_path: Path) -> None:
    run = run_experiment(experiment, quiet=True)
    audit = audit_of(run)
    expected = {"popularity, fit": "train+valid", "mf-graphhash, select": "train", "mf-graphhash, refit": "train+valid"}
    for name, splits in expected.items():
        check = audit[f"training data of {name}"]
        assert (check["passed"], check["detail"]) == (True, f"made from the graph of {splits}")
    for _ in experiment.variants:
        forget(tmp_path / "cache" / "train", train.TRAINED_ON)
    old = audit_of(run_experiment(experiment, quiet=True))["training data of mf-graphhash"]
    assert old["passed"] is True
    assert "trained before this check existed" in old["detail"]


@pytest.mark.parametrize(("variant", "phase"), [("popularity", "fit"), ("mf-graphhash", "select")])
def test_training_on_held_out_pairs_stops_the_run(
    variant: str, phase: str, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(dataset: Dataset, _: Any) -> Any:
        return dataset.matrix("train", "test"), dataset.matrix("valid")

    monkeypatch.setattr(train, "_matrices", leaking)
    chosen = tuple(v for v in experiment.variants if v.name == variant)
    with pytest.raises(
        LeakError, match=rf"training data of {variant}, {phase}: made from graph \w{{12}}, but the graph"
    ):
        run_experiment(experiment.model_copy(update={"variants": chosen}), quiet=True)
