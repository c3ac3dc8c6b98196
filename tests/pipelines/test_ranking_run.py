"""A ranking experiment end to end, and its mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tiny_experiment import recsys

from pipelines.cli import main
from pipelines.config_loader import load_experiment
from pipelines.config_multitask import TaskTrain, TaskVariant
from pipelines.config_problems import ConfigError
from pipelines.config_ranking import (
    DcnV2,
    FinalMlp,
    RankerTrain,
    RankingExperiment,
    RankingVariant,
    TowerSettings,
)
from pipelines.config_section import Optimizer
from pipelines.events.stages import ranking_settings
from pipelines.ranking.figures import learning
from pipelines.ranking.report import build_ranking_report
from pipelines.ranking.stages import ranker_spec
from pipelines.run_files import RunFiles, VariantResult
from recsys.rankers.checkpoint import load_ranker
from recsys.rankers.dcn_v2 import Cross
from recsys.rankers.training import RankingSettings
from recsys.settings import Selection

CONFIG = """\
task: ctr
experiment: tiny-ctr
dataset:
  format: table
  name: tiny
  source: {source}
  fields: [user, item, day]
  numeric: {{price: standardise}}
  split: {{method: random, valid: 0.2, test: 0.2}}
budget: {{rows: 40%}}
model: {{name: dcn_v2, dim: 4, hidden: [16], optimizer: {{name: adam, lr: 0.02}}}}
train: {{epochs: 6, batch_size: 128, lr: 0.01, patience: 6, checkpoint_minutes: 0.001}}
tracking: {{enabled: false}}
output: {output}
variants:
  - {{name: full}}
  - {{name: graphhash, compressor: {{name: graphhash}}}}
  - {{name: modulo, compressor: {{name: modulo}}}}
  - {{name: dlrm, model: {{name: dlrm, dim: 4, hidden: [8], bottom: [4]}}}}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user likes the items of the own group."""
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 40, 3000), rng.integers(0, 30, 3000)
    labels = ((users % 3 == items % 3) ^ (rng.random(3000) < 0.05)).astype(np.int64)
    days = pl.Series(np.array(["mon", "tue", "sun"])[rng.integers(0, 3, 3000)])
    frame = {"user": users, "item": items, "day": days, "price": rng.random(3000), "label": labels}
    pl.DataFrame(frame).write_parquet(tmp_path / "interactions.parquet")
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.format(source=tmp_path, output=tmp_path / "runs"))
    return path


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    return printed(capsys, monkeypatch, *arguments).splitlines()[-1]


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["recsys", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    return capsys.readouterr().out.strip()


def test_an_experiment_ends_in_a_report_and_repeats(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    directory = Path(run(capsys, monkeypatch, "run", str(config)))
    metrics = RunFiles(directory).metrics()
    results = {result.name: result for result in metrics.variants}
    assert results["full"].metrics["test/auc"] > 0.8
    low, high = results["full"].ci95["test/auc"]
    assert low < results["full"].metrics["test/auc"] < high
    assert results["graphhash"].table_bytes < results["full"].table_bytes
    assert results["graphhash"].layer_bytes == results["full"].layer_bytes > 0
    assert results["full"].layer_optimizer_bytes == 2 * results["full"].layer_bytes
    assert results["graphhash"].table_rows == results["modulo"].table_rows
    labels, _ = RunFiles(directory).test_events()
    for name in ("day", "train events of the item", "train positives of the user"):
        parts = results["full"].slices[name]
        assert sum(part.events for part in parts) == len(labels)
        assert sum(part.positives for part in parts) == labels.sum()
    days = {day.label: day for day in results["full"].slices["day"]}
    assert days.keys() == {"mon", "tue", "sun"}
    assert all(day.low < day.auc < day.high and day.auc > 0.8 for day in days.values())
    tests = json.loads((directory / "tests.json").read_bytes())
    assert len(tests) == 6
    assert all(test["difference"] >= 0 for test in tests)
    page = (directory / "report.html").read_text()
    for heading in ("Calibration", "ROC curve", "AUC against table bytes", "Scores of full", "AUC by day"):
        assert heading in page
    assert re.search(r"graphhash has \d+ % of the bytes of full and (loses|gains)", page.replace("\xa0", " "))
    assert {path.stem for path in (directory / "plots").iterdir()} >= {"roc", "calibration", "auc-bytes", "learning"}
    ranker = load_ranker(directory / "variants" / "full-s0" / "checkpoint")
    assert [field.name for field in ranker.tables.fields] == ["user", "item", "day"]
    before = page
    assert build_ranking_report(directory).read_text() == before
    for path in tmp_path.glob("cache/*-ranker/*/stage.json"):
        path.touch()
    lines = printed(capsys, monkeypatch, "run", str(config))
    auc = results["full"].metrics["test/auc"]
    assert re.search(rf"full +{auc:.4f} \[{low:.3f}, {high:.3f}\] ", lines)
    again = Path(lines.splitlines()[-1])
    assert [r.metrics for r in RunFiles(again).metrics().variants] == [r.metrics for r in metrics.variants]
    assert Path(run(capsys, monkeypatch, "report", str(directory))).name == "report.html"
    for command in (
        ("recommend", str(directory), "--user", "1", "--variant", "full"),
        ("export", str(directory), "--out", str(tmp_path / "vectors")),
    ):
        monkeypatch.setattr("sys.argv", ["recsys", *command])
        with pytest.raises(SystemExit):
            main()
        assert "is a run with task: ctr, which scores events and ranks no catalogue" in capsys.readouterr().err


def test_validate_tells_the_plan(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["recsys", "validate", str(config)])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().out
    assert told.endswith("  dlrm: dlrm, full, dim 4\n")
    assert f"run directory: {config.parent}/runs/tiny-ctr-" in told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "dataset.format=tabel",
            "format is 'tabel', must be one of frappe, table, libfm, criteo, next_item; did you mean `table`",
        ),
        ("model.name=dcn", "name is 'dcn', must be one of dcn_v2, dlrm"),
        ("model.hiden=[3]", "unknown key; did you mean `hidden`"),
        ("dataset.split.method=given", "method given needs column"),
        ("dataset.split.test=0.9", r"valid \(0.2\) \+ test \(0.9\) leave nothing"),
        ("seeds=[1, 1]", "a seed occurs twice"),
        ("variants.modulo.name=full", "'full' is the name of two variants"),
        ("model.backend=torchrec", "the torchrec back end has no adam"),
        ("dataset.events=x.parquet", "has no file 'x.parquet'"),
        ("budget.rows=0", "got 0, must be at least 2"),
        ("variants.modulo.compressor.levels={count: 2}", "only multi_graphhash and residual_codes have levels"),
        ("variants.modulo.compressor.semantic={n: 2}", "only semantic_ngram and semantic_spm have it, not modulo"),
        ("semantic_ids={}", "needs a catalogue of items, which format table lacks; use next_item, or remove it"),
        ("variants.dlrm.model={name: din}", "din looks at what users had before; use dataset.format next_item"),
        ("dataset.user=users", r"dataset.user: 'users' is no field; did you mean user\?"),
        ("dataset.item=price", r"dataset.item: 'price' is no field; there are: user, item, day"),
        ("dataset.numeric={day: standardise}", "the column 'day' is in fields and in numeric, or twice"),
        ("dataset.fields=[user, item, dya]", r"fields.2: interactions.parquet has no column 'dya'; did you mean day\?"),
        ("dataset.numeric={prise: standardise}", r"numeric.prise: interactions.parquet has no column 'prise'; did you"),
        ("dataset.label.column=labl", r"label.column: interactions.parquet has no column 'labl'; did you mean label"),
        ("dataset.split={method: given, column: spilt}", r"split.column: interactions.parquet has no column 'spilt'"),
        ("dataset.time=when", r"dataset.time: interactions.parquet has no column 'when'; there are: user, item, day"),
        ("dataset.joins=[{source: interactions.parquet, key: item, columns: [tag]}]", "no column 'tag'; there are:"),
        ("train.id_dropout={dya: 0.1}", r"train.id_dropout.dya: there is no field 'dya'; did you mean `day`\?"),
        ("model.dims={dya: 8}", r"model.dims.dya: there is no field 'dya'; did you mean `day`\?"),
        ("model.dims={day: 0}", "got 0: input should be greater than or equal to 1"),
        ("variants.dlrm.model={name: dlrm, dims: {day: 8}}", "dims: dlrm multiplies fields and needs one dim for all"),
        ("variants.dlrm.model={name: deep_fm, dims: {day: 8}}", "deep_fm multiplies fields and needs one dim for all"),
        ("variants.dlrm.model={name: wide_deep, dim: 1}", "wide_deep needs dim >= 2, one column .* but user has dim 1"),
        ("variants.dlrm.model={name: final_mlp, gates: [[usr], []]}", r"gates.0.0: there is no field 'usr'; did you"),
        ("variants.dlrm.model={name: final_mlp, heads: 3}", "heads must divide the towers' last widths 400 and 400"),
        ("variants.dlrm.model={name: din, backend: torchrec}", "din needs backend torch or fbgemm, got torchrec"),
    ],
)
def test_mistakes_are_told_before_anything_runs(config: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(str(config), [override])


def test_a_training_that_diverges_ends_in_one_message(config: Path) -> None:
    done = recsys(config.parent, "run", "tiny.yaml", "train.lr=1e38", "variants=[full]")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"error: .* is (nan|inf|-inf) .*; try a smaller train\.lr", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "dataset.min_count=3000",
            r"no value of 'user', which is dataset\.user, has enough .* \(min_count 3000, min_pos",
        ),
        (
            "dataset.min_positives=60",
            r"no value of 'user', .* \(min_count 1, min_positives 60\), .*; lower these, or use",
        ),
        ("budget.rows=1000", r"budget\.rows=1000 \(1,000 rows\) is out of range: 40 users and 30 items"),
    ],
)
def test_what_cannot_be_compressed_is_told_before_the_first_training(config: Path, override: str, message: str) -> None:
    done = recsys(config.parent, "run", "tiny.yaml", override, "variants=[full, graphhash]")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(rf"error: {message}", done.stderr), done.stderr
    assert "epoch 1" not in "".join(path.read_text() for path in config.parent.glob("runs/*/log.txt"))


def test_pairs_without_ids_are_no_graph_to_compress_by(config: Path) -> None:
    """Each user has one positive item and each item one positive user, none of whom has an id."""
    frame = pl.DataFrame(
        {
            "user": [0, 0, 0, *range(1, 31)] * 3,
            "item": [*range(1, 4), *[0] * 30] * 3,
            "day": ["mon"] * 99,
            "price": [1.0] * 99,
            "label": [0, 0, 0, *[0, 1] * 15] * 3,
            "split": ["train"] * 33 + ["valid"] * 33 + ["test"] * 33,
        }
    )
    frame.write_parquet(config.parent / "interactions.parquet")
    given = ["dataset.split={method: given, column: split}", "dataset.min_count=3", "dataset.fields=[user, item]"]
    done = recsys(config.parent, "run", "tiny.yaml", *given, "variants=[graphhash]")
    assert done.returncode == 2
    assert "error: no positive train event has both a 'user' and a 'item' with an id, so that there" in done.stderr


def test_an_error_of_the_program_keeps_its_traceback(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("pipelines.ranking.runner.prepare", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        recsys(config.parent, "run", "tiny.yaml")


def test_batch_norm_of_single_events_is_refused(config: Path) -> None:
    overrides = ["model.batch_norm=true", "train.batch_size=1"]
    with pytest.raises(ConfigError, match=r"train\.batch_size: model\.batch_norm takes the variance of a batch"):
        load_experiment(str(config), overrides)


def test_all_mistakes_of_columns_and_models_are_told_at_once(config: Path) -> None:
    wrong = ["dataset.fields=[user, itme, dya]", "dataset.label.column=labl", "model.dims={town: 8}", "budget.rows=0"]
    with pytest.raises(ConfigError) as told:
        load_experiment(str(config), wrong)
    keys = [problem.key for problem in told.value.problems]
    assert sorted(keys) == [
        "budget.rows", "dataset.fields.1", "dataset.fields.2", "dataset.item", "dataset.label.column",
        "model.dims.town",
    ]  # fmt: skip


@pytest.mark.parametrize(("numeric", "known"), [("{}", True), ("{price: log_bucket}", True), (None, False)])
def test_heads_divide_the_input_of_a_tower_without_layers(config: Path, numeric: str | None, known: bool) -> None:
    """A scaled number may bring an indicator, which only the events tell."""
    model = "variants.dlrm.model={name: final_mlp, dim: 5, hidden: [], second: {hidden: [8]}, heads: 8}"
    overrides = [model, *([f"dataset.numeric={numeric}"] if numeric else [])]
    if not known:
        load_experiment(str(config), overrides)
        return
    with pytest.raises(ConfigError, match=r"last widths (15|20) and 8, got 8"):
        load_experiment(str(config), overrides)


def test_a_mistake_is_told_once(config: Path) -> None:
    with pytest.raises(ConfigError) as told:
        load_experiment(str(config), ["variants=[full]", "train.refit=false"])
    assert len(told.value.problems) == 1


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("dataset.item=user", "dataset.item", "is 'user', which is dataset.user too; name another field"),
        (
            "dataset.fields=[user, item, day, label]",
            "dataset.fields.3",
            "the column 'label' is the label, which a model would only copy; remove it",
        ),
        ("dataset.numeric={label: standardise}", "dataset.numeric.label", "the column 'label' is the label"),
    ],
)
def test_one_column_has_one_role(config: Path, override: str, key: str, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        load_experiment(str(config), ["variants=[full]", override])
    (problem,) = told.value.problems
    assert problem.key == key and message in problem.message


def test_dims_of_unknown_fields_are_told(config: Path) -> None:
    from pipelines.ranking.runner import run_ranking

    experiment = load_experiment(str(config), ["variants=[full]"])
    assert isinstance(experiment, RankingExperiment)
    wrong = experiment.variants[0].model_copy(update={"model": DcnV2(dims={"town": 8})})
    with pytest.raises(ValueError, match=r"model\.dims names the field 'town'; the fields are user, item, day"):
        run_ranking(experiment.model_copy(update={"variants": (wrong,)}), quiet=True)


def test_the_curve_of_one_epoch_is_a_dot() -> None:
    result = VariantResult(name="full", model="dcn_v2", metrics={})
    panel = learning([(result, [{"epoch": 1, "metrics": {"auc": 0.7}}])], "auc")
    assert panel.svg.count('class="dot s0"') == 1


def test_settings_reach_the_ranker() -> None:
    spec = ranker_spec(DcnV2(hidden=(7,), dropout=0.5, layers=2, structure="stacked", rank=5, experts=3))
    assert (spec.tower.hidden, spec.tower.dropout, spec.cross) == ((7,), 0.5, Cross(2, "stacked", 5, 3))
    second = TowerSettings(hidden=(9,), dropout=0.1, batch_norm=True)
    final = ranker_spec(FinalMlp(second=second, heads=3, gates=(("a",), ()), gate_hidden=(5,))).streams
    assert (final.second.hidden, final.heads, final.gates, final.gate_hidden) == ((9,), 3, (("a",), ()), (5,))


def test_a_training_gets_what_its_section_says() -> None:
    same = {"batch_size": 7, "epochs": 5, "lr": 0.3, "weight_decay": 0.2, "plateau_factor": 0.4}
    same |= {"checkpoint_minutes": 9.0}
    own = {"id_dropout": {"item": 0.6}, "precision": "bfloat16"}
    model = DcnV2(optimizer=Optimizer(lr=0.8))
    train = RankerTrain.model_validate(same | own | {"patience": 3, "selection": "neg_log_loss"})
    assert ranking_settings(RankingVariant(name="a", model=model, train=train)) == RankingSettings(
        **same, **own, table_lr=0.8, selection=Selection("neg_log_loss", 1, 3, refit=False)
    )
    tasks = TaskTrain.model_validate(same | {"patience": 3})
    assert ranking_settings(TaskVariant(name="a", train=tasks)) == RankingSettings(
        **same, table_lr=2e-4, selection=Selection("neg_loss", 1, 3, refit=False)
    )
