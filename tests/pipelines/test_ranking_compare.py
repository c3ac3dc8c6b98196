"""``recsys compare`` of ranking runs, on run directories with scores whose differences are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score
from tiny_experiment import recsys

from pipelines.config import Dataset, Experiment, Variant
from pipelines.config_models import Popularity
from pipelines.config_ranking import DcnV2, RankingExperiment, RankingVariant, TableData
from pipelines.errors import DataError
from pipelines.ranking.compare import compare_ranking
from pipelines.run_files import DatasetFacts, Metrics, RunFiles, VariantResult
from recsys.metrics.delong import auc_difference

EVENTS = 3000
RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=EVENTS)
LABELS = (RNG.random(EVENTS) < 1 / (1 + np.exp(-TRUTH))).astype(np.uint8)
USERS = RNG.integers(0, 100, EVENTS).astype(np.int32)
GOOD = TRUTH.astype(np.float32)
NOISY = (TRUTH + RNG.normal(size=EVENTS)).astype(np.float32)


def write_run(
    directory: Path, scores: dict[str, np.ndarray], data_hash: str = "a" * 16, valid: tuple[float, ...] = (0.6, 0.5)
) -> Path:
    files = RunFiles(directory)
    variants = tuple(RankingVariant(name=name, model=DcnV2()) for name in scores)
    dataset = TableData(format="table", name="t", source=".", fields=("user", "item"))
    files.write_config(RankingExperiment(experiment="t", dataset=dataset, variants=variants))
    results = []
    for (name, values), chosen_by in zip(scores.items(), valid, strict=False):
        probability = 1 / (1 + np.exp(-values.astype(np.float64)))
        metrics = {"test/auc": roc_auc_score(LABELS, values), "test/log_loss": log_loss(LABELS, probability)}
        metrics["valid/auc"] = chosen_by
        results.append(VariantResult(name=name, model="dcn_v2", metrics=metrics))
        files.write_scores(name, 0, values)
    facts = DatasetFacts(name="t", users=100, items=5, train=1, hash=data_hash)
    files.write_metrics(Metrics(experiment="t", dataset=facts, variants=tuple(results)))
    files.write_test_events(LABELS, USERS)
    return directory


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    first = write_run(tmp_path / "first", {"dcn": NOISY, "other": NOISY})
    return [first, write_run(tmp_path / "second", {"dcn": GOOD, "third": NOISY})]


def test_the_auc_is_compared_by_delong(runs: list[Path]) -> None:
    (pair,) = compare_ranking(runs).pairs
    expected = auc_difference(LABELS, GOOD, NOISY)
    assert (pair.run, pair.name, pair.against, pair.users) == ("second", "dcn", "dcn", EVENTS)
    assert (pair.low, pair.high, pair.p) == (expected.low, expected.high, expected.p)
    assert pair.difference == pytest.approx(roc_auc_score(LABELS, GOOD) - roc_auc_score(LABELS, NOISY))
    assert pair.verdict == "better"


def test_a_lower_log_loss_is_better(runs: list[Path]) -> None:
    comparison = compare_ranking(runs, "log_loss")
    (pair,) = comparison.pairs
    assert pair.low < pair.difference < pair.high < 0
    assert pair.verdict == "better"
    assert "3,000 test events, first seed of each variant, paired bootstrap over users" in str(comparison)


def test_validation_chooses_the_variants_that_stand_for_their_runs(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", {"a": GOOD, "b": NOISY}, valid=(0.5, 0.6))
    second = write_run(tmp_path / "second", {"c": GOOD, "d": NOISY}, valid=(0.5, 0.6))
    (pair,) = compare_ranking([first, second]).pairs
    assert (pair.name, pair.against) == ("d", "b")
    (pair,) = compare_ranking([first, second], variants=["a", "c"]).pairs
    assert (pair.name, pair.against) == ("c", "a")


def with_second_seed(run: Path, scores: np.ndarray, valid: dict[str, float]) -> Path:
    """The run with another seed of some variants, which has ``scores`` and is of another quality on validation."""
    files = RunFiles(run)
    found = files.metrics()
    more = []
    for result in found.variants:
        more.append(result)
        if result.name in valid:
            metrics = result.metrics | {"valid/auc": valid[result.name], "test/auc": roc_auc_score(LABELS, scores)}
            more.append(result.model_copy(update={"seed": 1, "metrics": metrics}))
            files.write_scores(result.name, 1, scores)
    files.write_metrics(found.model_copy(update={"variants": tuple(more)}))
    return run


def test_no_seed_is_chosen(tmp_path: Path) -> None:
    """The second seed of "dcn" is better on validation and on test than the first, which alone is compared."""
    first = write_run(tmp_path / "first", {"dcn": NOISY})
    second = with_second_seed(write_run(tmp_path / "second", {"dcn": NOISY}), GOOD, {"dcn": 0.9})
    (pair,) = compare_ranking([first, second]).pairs
    assert (pair.value, pair.difference) == (pytest.approx(roc_auc_score(LABELS, NOISY)), 0)
    assert pair.verdict == "no difference shown"


def test_a_variant_is_best_by_the_mean_of_its_seeds(tmp_path: Path) -> None:
    """One lucky seed of "lucky", 0.9 and 0.2, is less than two of "steady", 0.6 and 0.6."""
    first = write_run(tmp_path / "first", {"a": GOOD})
    second = write_run(tmp_path / "second", {"lucky": NOISY, "steady": NOISY}, valid=(0.2, 0.6))
    with_second_seed(second, NOISY, {"lucky": 0.9, "steady": 0.6})
    (pair,) = compare_ranking([first, second]).pairs
    assert (pair.name, pair.against) == ("steady", "a")


def test_the_command_takes_ranking_runs(runs: list[Path], tmp_path: Path) -> None:
    done = recsys(tmp_path, "compare", *map(str, runs), "--out", "table.html")
    assert done.returncode == 0, done.stderr
    assert (
        "auc on test against run first, 3,000 test events, first seed of each variant, DeLong's paired test,"
        " Holm over 1 pairs"
    ) in done.stdout
    assert "draws users with all their events" in " ".join((tmp_path / "table.html").read_text().split())


def test_runs_that_cannot_be_compared_are_told(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a comparison needs two runs or more, got 1"):
        compare_ranking(runs[:1])
    with pytest.raises(DataError, match="rankers are compared by auc, log_loss, gauc, pr_auc, got 'recall@20'"):
        compare_ranking(runs, "recall@20")
    other = write_run(tmp_path / "other", {"dcn": GOOD}, "b" * 16)
    with pytest.raises(
        DataError, match=r"runs must be on the same data to share users, but .*first has dataset hash aa"
    ):
        compare_ranking([runs[0], other])
    with pytest.raises(DataError, match="gauc of dcn is undefined on this test split, which lacks a class"):
        compare_ranking(runs, "gauc")
    retrieval = tmp_path / "retrieval"
    variant = Variant(name="p", model=Popularity())
    RunFiles(retrieval).write_config(
        Experiment(experiment="r", dataset=Dataset(name="d", source="."), variants=(variant,))
    )
    with pytest.raises(DataError, match="retrieval ranks a catalogue, the other runs score events"):
        compare_ranking([runs[0], retrieval])
