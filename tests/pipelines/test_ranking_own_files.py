"""The packaged experiments for files that a person brings, run on small ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from event_files import own_files

from pipelines.config_loader import load_experiment
from pipelines.config_problems import ConfigError
from pipelines.config_ranking import RankingExperiment
from pipelines.ranking.runner import run_ranking
from pipelines.ranking.sources import field_names
from pipelines.run_files import RunFiles

DIM = 4
SMALL = [
    "dataset.min_count=1",
    f"model.dim={DIM}",
    "model.optimizer={name: adam, lr: 0.02}",
    "train.epochs=2",
    "train.batch_size=128",
]


@pytest.mark.parametrize("name", ["ctr_libfm", "ctr_criteo"])
def test_an_experiment_runs_on_files_of_its_layout(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    quiet = ["tracking.enabled=false", f"output={tmp_path / 'runs'}"]
    experiment = load_experiment(name, [*own_files(name, tmp_path), *SMALL, *quiet])
    assert isinstance(experiment, RankingExperiment)
    directory = run_ranking(experiment, quiet=True)
    results = {result.name: result for result in RunFiles(directory).metrics().variants}
    assert list(results) == [variant.name for variant in experiment.variants]
    for variant, result in results.items():
        assert result.metrics["test/auc"] > 0.6, variant
    for hashed in ("dcn-double-hash", "dcn-graphhash"):
        assert results[hashed].table_bytes < results["dcn-full"].table_bytes
    assert results["dcn-double-hash"].table_bytes == results["dcn-graphhash"].table_bytes
    weights = len(field_names(experiment.dataset)) * (DIM - 1) + 1
    assert results["logistic-regression"].layer_bytes == 4 * weights, "one linear layer: all of it is linear"


@pytest.mark.parametrize("name", ["ctr_libfm", "ctr_criteo"])
def test_an_experiment_without_files_says_where_it_looks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=rf"dataset\.source: source 'data:{name[4:]}' .*{tmp_path}"):
        load_experiment(name)
