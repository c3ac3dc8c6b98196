import json

import numpy as np
import pytest

from pipelines.config import Dataset, Experiment, Variant
from pipelines.config_models import Mf
from pipelines.run_files import (
    Compression,
    Curve,
    DatasetFacts,
    Epoch,
    EvaluationSummary,
    Metrics,
    RunError,
    RunFiles,
    VariantResult,
    WorstBucket,
    best_on_validation,
)

RESULT = VariantResult(
    name="v", model="mf", compressor="graphhash", metrics={"test/recall@20": 0.1}, ci95={"test/recall@20": (0.05, 0.15)}
)
METRICS = Metrics(
    experiment="e",
    dataset=DatasetFacts(name="d", users=2, items=3, train=4, hash="abc"),
    variants=(RESULT,),
    git="1234",
)
SUMMARY = EvaluationSummary(
    users=2,
    metrics={"recall@20": 0.1, "auc": float("nan")},
    ci95={"auc": (float("nan"), 1.0)},
    curves={"recall": Curve(mean=(0.1, 0.2), low=(0.0, 0.1), high=(0.2, 0.3))},
    heat={"recall@20": [[float("nan"), 0.5]], "counts": [[0, 2]]},
)


@pytest.fixture
def files(tmp_path):
    return RunFiles(tmp_path / "run")


def test_everything_written_is_read_back(files):
    experiment = Experiment(
        experiment="e", dataset=Dataset(name="d", source="x"), variants=(Variant(name="v", model=Mf()),)
    )
    compression = Compression(worst_buckets=(WorstBucket(side="items", row=1, size=9, titles=("a",)),))
    epochs = [Epoch(epoch=1, loss=0.5, metrics={"recall@20": 0.1}), Epoch(epoch=1, phase="refit")]
    files.write_config(experiment)
    files.write_metrics(METRICS)
    files.write_dataset({"split": {"method": "given"}})
    files.write_compression(compression)
    files.write_history("v", 0, epochs)
    assert files.config() == experiment
    assert files.metrics() == METRICS
    assert files.dataset() == {"split": {"method": "given"}}
    assert files.compression() == compression
    assert files.history("v", 0) == epochs
    assert not [path for path in files.directory.rglob("*") if "tmp" in path.name]


def test_undefined_numbers_become_null_and_come_back_as_none(files):
    files.write_evaluation("v", 0, SUMMARY)
    text = (files.variant_dir("v", 0) / "evaluation.json").read_text()
    assert "NaN" not in text
    read = files.evaluation("v", 0)
    assert read.metrics == {"recall@20": 0.1, "auc": None}
    assert read.ci95 == {"auc": (None, 1.0)}
    assert read.heat["recall@20"] == [[None, 0.5]]
    assert read.curves == SUMMARY.curves


def test_the_best_on_validation_is_by_the_metric_of_most_variants():
    def variant(name, **metrics):
        return RESULT.model_copy(update={"name": name, "metrics": {k.replace("_", "/"): v for k, v in metrics.items()}})

    early, late = variant("early", valid_auc=0.6, test_auc=0.9), variant("late", valid_auc=0.7, test_auc=0.8)
    other, none = variant("other", valid_recall=0.99), variant("none", test_auc=1.0)
    assert best_on_validation([other, early, none, late]) == late
    assert best_on_validation([none]) is None


def test_an_undefined_metric_is_absent(files):
    result = RESULT.model_copy(
        update={"metrics": {"test/auc": float("nan")}, "ci95": {"test/auc": (float("nan"),) * 2}}
    )
    files.write_metrics(METRICS.model_copy(update={"variants": (result,)}))
    assert files.metrics().variants[0].metrics == {}
    assert files.metrics().variants[0].ci95 == {}


def test_a_slice_of_one_class_has_no_auc(files):
    both = {"label": "5 to 19", "events": 9, "positives": 4, "auc": 0.7, "low": 0.6, "high": 0.8}
    one = {"label": "none", "events": 2, "positives": 2}
    result = VariantResult(name="v", model="dlrm", metrics={}, slices={"train events of the item": [both, one]})
    files.write_metrics(METRICS.model_copy(update={"variants": (result,)}))
    read = files.metrics().variants[0].slices["train events of the item"]
    assert [part.model_dump(exclude_none=True) for part in read] == [both, one]


def test_per_user_values_and_lists_keep_their_types(files):
    users = np.array([1, 5])
    files.write_per_user("v", 3, users, ["a", "b"], {"recall@20": np.array([0.0, 0.5])})
    files.write_top_items("v", 3, users, np.array([[7, 8, -1], [9, -1, -1]]))
    frame = files.per_user("v", 3)
    assert {name: str(dtype) for name, dtype in frame.schema.items()} == {
        "user": "Int32",
        "raw_id": "String",
        "recall@20": "Float64",
    }
    assert files.top_items("v", 3).to_dicts() == [{"user": 1, "items": [7, 8, -1]}, {"user": 5, "items": [9, -1, -1]}]
    assert files.variant_dir("v", 3).name == "v-s3"
    assert files.checkpoint_dir("v", 3).parent == files.variant_dir("v", 3)


def test_optional_files_may_be_missing(files):
    assert files.dataset() == {}
    assert files.compression() is None
    assert files.history("v", 0) == []
    assert files.evaluation("v", 0) is None
    assert files.per_user("v", 0) is None
    assert files.top_items("v", 0) is None


@pytest.mark.parametrize(("model", "baseline"), [("popularity", True), ("item_knn", True), ("mf", False)])
def test_which_models_are_baselines(model, baseline):
    assert VariantResult(name="v", model=model, metrics={}).is_baseline is baseline


def test_a_missing_required_file_says_how_to_get_it(files):
    with pytest.raises(RunError, match=r"metrics\.json does not exist; .*finish the run with `recsys run`"):
        files.metrics()


def test_damaged_files_are_named(files):
    files.directory.mkdir()
    files.metrics_file.write_text('{"experiment": ')
    with pytest.raises(RunError, match=r"metrics\.json: not JSON \(.*run `recsys run` again"):
        files.metrics()
    files.metrics_file.write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=r"metrics\.json: not JSON"):
        files.metrics()
    files.config_file.write_text("a: [")
    with pytest.raises(RunError, match=r"config\.yaml: not YAML"):
        files.config()
    files.dataset_file.write_text("[]")
    with pytest.raises(RunError, match=r"dataset\.json: required is a JSON object, got list"):
        files.dataset()


def test_a_wrong_field_is_named(files):
    payload = METRICS.model_dump(mode="json")
    payload["variants"][0]["table_rows"] = "many"
    payload["variants"][0]["recal"] = 1
    files.directory.mkdir()
    files.metrics_file.write_text(json.dumps(payload))
    with pytest.raises(RunError, match=r"json: variants\.0\.table_rows: .*valid integer.* \(2 problems in all\)"):
        files.metrics()


def test_a_damaged_history_is_named(files):
    files.write_history("v", 0, [])
    (files.variant_dir("v", 0) / "history.json").write_text("{}")
    with pytest.raises(RunError, match=r"history\.json: required is a JSON list of epochs, got dict"):
        files.history("v", 0)


def test_damaged_parquet_is_named(files):
    files.write_top_items("v", 0, np.array([1]), np.array([[1, 2]]))
    path = files.variant_dir("v", 0) / "top_items.parquet"
    path.rename(path.with_name("per_user.parquet"))
    with pytest.raises(RunError, match=r"columns \['user', 'raw_id'\] are required, but \['raw_id'\]"):
        files.per_user("v", 0)
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(RunError, match=r"top_items\.parquet: not a readable Parquet file"):
        files.top_items("v", 0)
