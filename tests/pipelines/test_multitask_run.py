"""A multi-task experiment end to end, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from report_page import Page, plain

from pipelines.cli import main
from pipelines.config_loader import load_experiment
from pipelines.config_multitask import (
    CometGate,
    DenseToSparseGate,
    DSelectKGate,
    HashGate,
    MultiTaskExperiment,
    Search,
    TopKGate,
)
from pipelines.config_problems import ConfigError
from pipelines.multitask.report import build_multitask_report, verdicts
from pipelines.multitask.runner import run_multitask
from pipelines.multitask.stages import gate_spec
from pipelines.run_files import RunError, RunFiles, VariantResult
from pipelines.sweep.sweep import run_sweep
from recsys.rankers.gates.build import GateSpec
from recsys.rankers.gates.dense_to_sparse import Annealing
from recsys.rankers.gates.permuted import PermutationSearch
from recsys.rankers.multi_task_checkpoint import load_multi_task

CONFIG = """\
task: multitask
experiment: tiny-multitask
dataset: {{name: tiny, source: {source}, negatives: 0.8, valid: 0.2, test: 0.2}}
tasks:
  - {{name: watch, label: seen, weight: 0.5}}
  - {{name: rating, label: value, column: rating, known_from: 1, weight: 0.5}}
model: {{experts: 4, hidden: [8], dropout: 0, head: [8], dim: 4, optimizer: {{name: adam, lr: 0.02}}, init_std: 0.1}}
train: {{epochs: 6, batch_size: 128, lr: 0.02, patience: 6}}
budget: {{rows: 40%}}
seeds: [0, 1]
reference: comet-plus
tracking: {{enabled: false}}
output: {output}
variants:
  - name: comet-plus
    model: {{gate: {{name: comet, gamma: 0.5, search: {{epochs: 1, iterations_end: 20}}}}}}
  - {{name: hash, model: {{gate: {{name: hash}}}}}}
  - {{name: small, model: {{gate: {{name: top_k, k: 1}}, private: 1}}, compressor: {{name: graphhash}}}}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Half of the items are watched nine times as often; odd users rate with 5, even ones with 1."""
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    users, items = np.divmod(np.arange(40 * 40), 40)
    watched = rng.random(1600) < np.where(items < 20, 0.9, 0.1)
    frame = {"user_id": users[watched], "item_id": items[watched], "rating": 1 + 4 * (users[watched] % 2)}
    pl.DataFrame(frame).write_parquet(tmp_path / "interactions.parquet")
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.format(source=tmp_path, output=tmp_path / "runs"))
    return path


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["recsys", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    return capsys.readouterr().out.strip()


def test_an_experiment_ends_in_a_report(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(printed(capsys, monkeypatch, "run", str(config)).splitlines()[-1])
    metrics = RunFiles(directory).metrics()
    assert [(v.name, v.seed) for v in metrics.variants] == [
        (name, seed) for name in ("comet-plus", "hash", "small") for seed in (0, 1)
    ]
    for result in metrics.variants:
        found = result.metrics
        if result.compressor == "full":
            assert found["test/rating/rmse"] < 1.0, "a constant has 2"
            assert found["test/watch/auc"] > 0.85
        assert 1.0 <= found["test/watch/experts"] <= 4.0
        low, high = result.ci95["test/watch/auc"]
        assert low < found["test/watch/auc"] < high
    results = {f"{result.name}-s{result.seed}": result for result in metrics.variants}
    assert results["small-s0"].table_bytes < results["hash-s0"].table_bytes
    assert results["small-s0"].metrics["test/rating/experts"] == 1.0
    tests = json.loads((directory / "tests.json").read_bytes())
    assert [(t["task"], t["a"], t["b"]) for t in tests] == [
        (task, "comet-plus", rival) for task in ("watch", "rating") for rival in ("hash", "small")
    ]
    means = [
        np.mean([r.metrics["test/watch/auc"] for r in metrics.variants if r.name == n]) for n in ("comet-plus", "hash")
    ]
    assert tests[0]["over_seeds"]["difference"] == pytest.approx(means[0] - means[1])
    page = (directory / "report.html").read_text()
    for heading in ("Multi-task experiment", "watch: use of the experts", "rating: test rmse", "comet-plus minus each"):
        assert heading in page
    ranker = load_multi_task(directory / "variants" / "comet-plus-s0" / "checkpoint")
    assert [task.name for task in ranker.spec.tasks] == ["watch", "rating"]
    assert printed(capsys, monkeypatch, "report", str(directory)) == str(directory / "report.html")
    assert (directory / "report.html").read_text() == page
    with pytest.raises(RunError, match="is a run with task: multitask, which scores events and ranks no catalogue"):
        RunFiles(directory).refuse_ranking()
    unknown = {"difference": 0.1234, "low": None, "high": None}
    tests[-1] |= unknown | {"p_holm": 1.0, "over_seeds": unknown | {"p": 1.0}}
    (directory / "tests.json").write_text(json.dumps(tests))
    (section,) = Page(build_multitask_report(directory).read_text()).find("section", id="tests")
    assert "ratingsmallRMSE+0.1234p = 1+0.1234 Over seeds" in plain(section.text), "neither has an interval"
    again = Path(printed(capsys, monkeypatch, "run", str(config), "variants=[hash]", "reference=hash").splitlines()[-1])
    assert [r.metrics for r in RunFiles(again).metrics().variants] == [results[f"hash-s{s}"].metrics for s in (0, 1)]
    assert "One variant only." in (again / "report.html").read_text()


def test_a_sweep_finds_what_a_run_then_has_on_validation(config: Path) -> None:
    text = config.read_text().replace("seeds: [0, 1]", "seeds: [0]").replace("epochs: 6", "epochs: 2")
    ranges = "model.gate.k: {type: int, low: 1, high: 2}, train.lr: {type: float, low: 0.01, high: 0.1}"
    config.write_text(text + f"search: {{parameters: {{{ranges}}}}}\n")
    chosen = ["variants=[small]", "reference=small", "train.selection=watch/auc"]
    best = run_sweep(load_experiment(str(config), chosen), trials=2, quiet=True)
    trials = json.loads((best.parent / "trials.json").read_bytes())
    assert [trial["variant"] for trial in trials] == ["small", "small"]
    assert all(set(trial["values"]) == {"model.gate.k", "train.lr"} for trial in trials)
    assert "test/" not in (best.parent / "report.html").read_text()
    found = load_experiment(str(best))
    assert isinstance(found, MultiTaskExperiment)
    (result,) = RunFiles(run_multitask(found, quiet=True)).metrics().variants
    assert result.metrics["valid/watch/auc"] == max(trial["value"] for trial in trials)


def test_validate_tells_the_plan(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = printed(capsys, monkeypatch, "validate", str(config))
    assert "tasks: watch (weight 0.5), rating (weight 0.5)" in told
    assert told.endswith("  small: top_k gate, 4 experts")
    listed = printed(capsys, monkeypatch, "ls", "gates")
    assert all(name in listed for name in ("comet", "dense_to_sparse", "softmax"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.source=nowhere", "has no file 'interactions.parquet'"),
        ("dataset.test=0.9", r"valid \(0.2\) \+ test \(0.9\) leave nothing for training"),
        ("dataset.negatives=0", "negatives must be above 0 or all, got 0"),
        ("tasks=[{name: a, label: seen, at_least: 3}]", "label at_least needs the value `at_least`, and no other"),
        ("tasks=[{name: a, label: value}]", "labels value and at_least read `column`"),
        ("tasks=[{name: a, label: seen, known_from: 1}]", "label seen has neither column nor known_from"),
        ("tasks=[{name: a, label: seen}, {name: a, label: seen}]", "'a' is the name of two tasks"),
        ("dataset.item=user_id", "dataset.item: 'user_id' is dataset.user too; name the column of the items"),
        (
            "tasks=[{name: a, label: value, column: item_id}]",
            r"tasks.0.column: 'item_id' is dataset.item, whose ids are no label; name another",
        ),
        (
            "tasks=[{name: b, label: seen}, {name: a, label: at_least, at_least: 3, column: user_id}]",
            r"tasks.1.column: 'user_id' is dataset.user, whose ids",
        ),
        ("seeds=[1, 1]", "a seed occurs twice"),
        ("reference=comet", "there is no variant 'comet'; did you mean comet-plus"),
        ("variants.small.name=hash", "'hash' is the name of two variants"),
        ("train.selection=rating/auc", "must be one of neg_loss, watch/auc, got 'rating/auc'"),
        ("variants.hash.model.gate.k=5", "a gate chooses among 4 experts, got 5"),
        ("variants.hash.model.gate.name=hsah", "must be one of softmax, top_k, hash.*did you mean `hash`"),
        ("model.backend=fbgemm", "the fbgemm back end has no adam"),
        ("budget.rows=0", "got 0, must be at least 2"),
        ("search={parameters: {model.gate.kk: {type: int, low: 1, high: 2}}}", "no such setting; did you mean"),
        ("search={parameters: {train.selection: {type: categorical, choices: [a]}}}", "what trials are compared by"),
        ("variants.small.compressor.levels={count: 2}", "only multi_graphhash and residual_codes have levels"),
        ("variants.small.compressor.semantic={n: 2}", "n-grams have one code"),
    ],
)
def test_mistakes_are_told_before_anything_runs(config: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(str(config), [override])


def test_settings_reach_the_gate() -> None:
    assert gate_spec(TopKGate(k=3, noisy=True)) == GateSpec("top_k", 3, noisy=True)
    assert gate_spec(HashGate(k=4)) == GateSpec("hash", 4)
    assert gate_spec(CometGate(gamma=0.3, entropy=0.2)) == GateSpec("comet", gamma=0.3, entropy_weight=0.2)
    static = DSelectKGate(gamma=0.3, entropy=0.2, per_example=False)
    assert gate_spec(static) == GateSpec("dselect_k", gamma=0.3, entropy_weight=0.2, per_example=False)
    evolved = DenseToSparseGate(
        k=1, shared_epochs=2, anneal_epochs=3, tau_start=4, tau_end=0.5, threshold=0.1, balance=6
    )
    assert gate_spec(evolved) == GateSpec("dense_to_sparse", 1, annealing=Annealing(2, 3, (4, 0.5), 0.1, 6))
    search = Search(epochs=2, tau_start=0.1, tau_end=0.01, iterations_start=3, iterations_end=4, noise=0.5, entropy=0.6)
    assert gate_spec(TopKGate(search=search)).search == PermutationSearch(2, (0.1, 0.01), (3, 4), 0.5, 0.6)


def test_the_verdict_knows_which_way_is_better() -> None:
    def result(name: str, auc: float, rmse: float) -> VariantResult:
        return VariantResult(name=name, model="comet", metrics={"test/watch/auc": auc, "test/rating/rmse": rmse})

    groups = {"ours": [result("ours", 0.9, 1.1)], "theirs": [result("theirs", 0.8, 1.0)]}
    common = {"a": "ours", "b": "theirs", "difference": 0.1, "low": 0.05, "high": 0.15}
    tests = [
        {"task": "watch", "metric": "auc", "p_holm": 0.001} | common,
        {"task": "rating", "metric": "rmse", "p_holm": 0.2} | common,
        {"task": "rating", "metric": "rmse", "p_holm": 1.0} | common | {"low": None, "high": None},
    ]
    assert [sentence.replace("\xa0", " ") for sentence in verdicts(groups, tests)] == [
        "watch: best is ours with a mean test AUC of 0.9000.",
        "rating: best is theirs with a mean test RMSE of 1.0000.",
        "watch: ours is ahead of theirs; AUC +0.1000 [0.0500, 0.1500] (p = .001).",
        "rating: ours is behind theirs; RMSE +0.1000 [0.0500, 0.1500], which the paired test does not tell from 0"
        " (p = .200).",
        "rating: ours is behind theirs; RMSE +0.1000, which the paired test does not tell from 0 (p = 1).",
    ]
