"""The semantic ids of every packaged experiment pass their quality gates on its real data."""

from pathlib import Path

import pytest
import yaml

from pipelines.cache import Cache
from pipelines.config import Experiment
from pipelines.config_loader import load_experiment
from pipelines.stages.ingest import ingest_stage
from pipelines.stages.semantic import semantic_stage

EXPERIMENTS = Path(__file__).resolve().parents[2] / "configs" / "experiments"


def retrieval_experiments() -> list[str]:
    """Names of those with a section ``semantic_ids``; rankers have other datasets."""
    files = sorted(EXPERIMENTS.glob("*.yaml"))
    return [
        file.stem for file in files if "semantic_ids" in yaml.safe_load(file.read_text()) and "ctr_" not in file.stem
    ]


@pytest.mark.quality
@pytest.mark.parametrize("name", retrieval_experiments())
def test_the_codes_of_an_experiment_pass_their_gates(shared_data: Path, tmp_path: Path, name: str) -> None:
    experiment = load_experiment(name)
    assert isinstance(experiment, Experiment)
    assert experiment.semantic_ids is not None
    cache = Cache(tmp_path)
    dataset = ingest_stage(cache, experiment.dataset, lambda *_: None)
    found = semantic_stage(cache, dataset, experiment.semantic_ids, experiment.seeds[0])
    assert found.codes.num_items == dataset.num_items
