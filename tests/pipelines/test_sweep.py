"""``recsys sweep`` end to end, and the mistakes that ``search`` can have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from mlflow import MlflowClient
from report_page import Page
from tiny_experiment import recsys, write_tiny

from pipelines.config_loader import config_hash, load_experiment
from pipelines.config_problems import ConfigError
from pipelines.config_ranking import RankingExperiment
from pipelines.errors import DataError
from pipelines.run_directory import find_run
from pipelines.run_files import RunFiles
from pipelines.sweep.space import spaces, unused
from pipelines.sweep.sweep import SweepError, run_sweep

SEARCH = """\
search:
  startup_trials: 2
  prune_after_trials: 2
  parameters:
    model.dim: {type: int, low: 2, high: 16, log: true}
    model.optimizer.lr: {type: float, low: 0.0001, high: 0.2, log: true}
    model.loss: {type: categorical, choices: [{name: bpr}, {name: sampled_softmax, temperature: 0.1}]}
    variants.item-knn.model.neighbours: {type: int, low: 2, high: 30}
"""
CTR = """\
task: ctr
experiment: tiny-ctr
dataset:
  format: table
  name: tiny
  source: {source}
  fields: [user, item]
  split: {{method: random, valid: 0.2, test: 0.2}}
budget: {{rows: 40%}}
model: {{name: dcn_v2, dim: 4, hidden: [8], optimizer: {{name: adam, lr: 0.02}}}}
train: {{epochs: 2, batch_size: 128, selection: neg_log_loss}}
tracking: {{uri: "sqlite:///{source}/mlflow.db", system_metrics: false}}
variants:
  - {{name: full}}
  - {{name: modulo, compressor: {{name: modulo}}}}
search:
  parameters:
    model.dim: {{type: int, low: 2, high: 8, step: 2}}
    train.lr: {{type: float, low: 0.001, high: 0.1, log: true}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sweep")
    config = write_tiny(directory)
    config.write_text(config.read_text() + SEARCH)
    return directory


@pytest.fixture(scope="module")
def swept(place: Path) -> Path:
    chosen = "variants=[popularity, item-knn, mf-full]"
    done = recsys(place, "sweep", "tiny.yaml", chosen, "--trials", "6", "train.patience=1")
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stderr
    assert "next:   recsys run" in done.stderr
    return place / done.stdout.splitlines()[-1]


def write_ctr(directory: Path) -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 30, 1500), rng.integers(0, 20, 1500)
    labels = ((users % 3 == items % 3) ^ (rng.random(1500) < 0.05)).astype(np.int64)
    pl.DataFrame({"user": users, "item": items, "label": labels}).write_parquet(directory / "interactions.parquet")
    (directory / "ctr.yaml").write_text(CTR.format(source=directory))


def trials(directory: Path) -> list[dict]:
    return json.loads((directory / "trials.json").read_bytes())


def test_every_searched_variant_gets_its_trials_and_the_best_is_written(swept: Path) -> None:
    found = trials(swept.parent)
    assert [trial["variant"] for trial in found] == ["item-knn"] * 6 + ["mf-full"] * 6
    mine = [trial for trial in found if trial["variant"] == "mf-full"]
    assert {frozenset(trial["values"]) for trial in mine} == {
        frozenset({"model.dim", "model.optimizer.lr", "model.loss"})
    }
    assert all(isinstance(trial["values"]["model.dim"], int) for trial in mine)
    assert all(2 <= trial["values"]["model.dim"] <= 16 for trial in mine)
    assert {trial["status"] for trial in mine} == {"complete", "pruned"}
    complete = [trial for trial in mine if trial["status"] == "complete"]
    assert all(trial["value"] == max(trial["epochs"].values()) for trial in complete)
    best = max(complete, key=lambda trial: trial["value"])
    experiment = load_experiment(str(swept))
    variants = {variant.name: variant for variant in experiment.variants}
    assert list(variants) == ["popularity", "item-knn", "mf-full"]
    assert experiment.search is None
    assert experiment.experiment == "tiny-best"
    model = variants["mf-full"].model
    assert (model.dim, model.optimizer.lr) == (best["values"]["model.dim"], best["values"]["model.optimizer.lr"])
    assert model.loss.name == best["values"]["model.loss"]["name"]
    assert variants["mf-full"].train.refit, "a trial does without, the run does not"


def test_the_value_of_a_trial_is_that_of_a_run_with_its_settings(swept: Path, place: Path) -> None:
    best = max((t for t in trials(swept.parent) if t["variant"] == "mf-full" and t["value"]), key=lambda t: t["value"])
    done = recsys(place, "run", str(swept), "--quiet", "variants=[mf-full]", "train.refit=false")
    assert done.returncode == 0, done.stderr
    (result,) = RunFiles(place / done.stdout.splitlines()[-1]).metrics().variants
    assert result.metrics["valid/recall@20"] == best["value"]


def test_a_sweep_that_is_finished_only_writes_its_result_again(swept: Path, place: Path) -> None:
    before, page = trials(swept.parent), (swept.parent / "report.html").read_text()
    chosen = "variants=[popularity, item-knn, mf-full]"
    done = recsys(place, "sweep", "tiny.yaml", chosen, "--trials", "6", "train.patience=1", "--quiet")
    assert place / done.stdout.splitlines()[-1] == swept
    assert trials(swept.parent) == before
    assert (swept.parent / "report.html").read_text() == page
    assert not list((swept.parent / "trials").glob("*/")), "trainings of finished trials are removed"


def test_the_page_has_plots_and_trials_and_nothing_of_test(swept: Path) -> None:
    page = Page((swept.parent / "report.html").read_text())
    assert [heading.text for heading in page.find("h2")] == ["item-knn", "mf-full", "Reproduce"]
    drawn = {figure.attributes["id"] for figure in page.find("figure")}
    values: dict[str, list[float]] = {}
    for trial in trials(swept.parent):
        if trial["status"] == "complete":
            values.setdefault(trial["variant"], []).append(trial["value"])
    complete = values["mf-full"]
    known = {name for name, own in values.items() if len(own) >= 4 and len(set(own)) > 1}
    assert known, "a sweep of 6 trials tells what mattered"
    wanted = {f"{kind}-{name}" for kind in ("history", "parallel") for name in ("item-knn", "mf-full")}
    assert drawn == wanted | {f"importance-{name}" for name in known}
    text = page.find("body")[0].text
    for name in known:
        assert f"It rests on {len(values[name])} complete trials, of which that is 1: with fewer than 5" in text
    assert ("Importances need 4 complete trials of different value" in text) == (len(known) < 2)
    assert len(page.data("parallel-mf-full")["rows"]) == len(complete)
    assert "test/" not in page.find("body")[0].text


def test_no_trial_begins_after_the_time(place: Path) -> None:
    done = recsys(place, "sweep", "tiny.yaml", "--trials", "3", "--timeout", "0", "search.seed=1")
    assert done.returncode == 0
    best = place / done.stdout.splitlines()[-1]
    assert trials(best.parent) == []
    assert "mf-full: no complete trial (no trials); best.yaml keeps its settings" in done.stderr
    assert load_experiment(str(best)).variants == load_experiment(str(place / "tiny.yaml")).variants


def test_settings_that_do_not_go_together_fail_and_are_told(place: Path) -> None:
    text = (place / "tiny.yaml").read_text().split("variants:")[0]
    text += "variants: [{name: sasrec, model: {name: sasrec, dim: 8, layers: 1}}]\n"
    text += "search: {parameters: {model.heads: {type: categorical, choices: [3, 5]}}}\n"
    (place / "fails.yaml").write_text(text)
    done = recsys(place, "sweep", "fails.yaml", "--trials", "9")
    assert done.returncode == 2
    assert "all 3 trials of sasrec failed, the last with: " in done.stderr
    assert "heads" in done.stderr
    assert "change search.parameters" in done.stderr


def test_rankers_are_searched_and_each_trial_is_a_child_run(
    tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    write_ctr(tmp_path)
    shutil.copy(migrated, tmp_path / "mlflow.db")
    experiment = load_experiment(str(tmp_path / "ctr.yaml"), [f"output={tmp_path}/runs"])
    assert isinstance(experiment, RankingExperiment)
    best = run_sweep(experiment, trials=2, quiet=True)
    found = trials(best.parent)
    assert all(trial["status"] in ("complete", "pruned") and trial["value"] < 0 for trial in found)
    assert all(trial["values"]["model.dim"] in (2, 4, 6, 8) for trial in found)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    known = client.search_runs([client.get_experiment_by_name("tiny-ctr").experiment_id])
    (parent,) = [run for run in known if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in known if run is not parent}
    assert parent.info.run_name == best.parent.name
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert sorted(children) == ["full-t0", "full-t1", "modulo-t0", "modulo-t1"]
    for trial in found:
        run = children[f"{trial['variant']}-t{trial['number']}"]
        assert run.data.params["model.dim"] == str(trial["values"]["model.dim"])
        assert run.data.metrics["best valid/neg_log_loss"] == trial["value"]
        points = client.get_metric_history(run.info.run_id, "valid/neg_log_loss")
        assert {str(point.step): point.value for point in points} == trial["epochs"]
    assert not any("test" in name for run in known for name in run.data.metrics)
    run_sweep(experiment, trials=2, quiet=True)
    assert len(client.search_runs([parent.info.experiment_id])) == 5


def test_a_budget_that_cannot_be_met_is_told_before_the_first_trial(tmp_path: Path, place: Path) -> None:
    write_ctr(tmp_path)
    for directory, arguments in (
        (tmp_path, ("ctr.yaml", "tracking.enabled=false")),
        (place, ("tiny.yaml", "variants=[item-knn, mf-full, mf-graphhash]")),
    ):
        done = recsys(directory, "sweep", *arguments, "budget.rows=90000", "--trials", "1")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "error: budget.rows=90000 (90,000 rows) is out of range" in done.stderr
        assert "-t0: " not in done.stderr


def test_every_kind_of_retriever_is_searched(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    head = config.read_text().split("variants:")[0].replace("epochs: 8", "epochs: 2")
    config.write_text(
        head
        + """\
variants:
  - {name: ials, model: {name: ials, dim: 4, iterations: 2}}
  - {name: sasrec, model: {name: sasrec, dim: 4, layers: 1, max_length: 5}}
  - {name: towers, model: {name: two_tower, dim: 4, feature_dim: 2, hidden: [4]}, compressor: {name: modulo}}
search:
  parameters: {model.dim: {type: categorical, choices: [4, 8]}}
"""
    )
    (tmp_path / "data" / "interactions.csv").write_text(
        "\n".join(
            f"{line},{'timestamp' if place == 0 else 1_600_000_000 + 977 * place % 7919}"
            for place, line in enumerate((tmp_path / "data" / "interactions.csv").read_text().splitlines())
        )
    )
    done = recsys(tmp_path, "sweep", str(config), "--trials", "1", "--quiet")
    assert done.returncode == 0, done.stderr
    found = trials((tmp_path / done.stdout.splitlines()[-1]).parent)
    assert [(trial["variant"], trial["status"]) for trial in found] == [
        (name, "complete") for name in ("ials", "sasrec", "towers")
    ]
    assert all(0 < trial["value"] <= 1 for trial in found)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            "model.lr: {type: float, low: 0.1, high: 1}",
            r"there is no such setting; did you mean `model\.optimizer\.lr`",
        ),
        (
            "model.dim: {type: int, low: 0, high: 4}",
            "mf-full cannot have 0: input should be greater than or equal to 1",
        ),
        ("model.dim: {type: int, low: 1.5, high: 4}", r"int needs whole numbers, got low 1\.5"),
        ("model.dim: {type: int, low: 8, high: 4}", r"low \(8\) is above high \(4\)"),
        ("model.dim: {type: int, low: 8}", "int needs low and high and no choices"),
        ("model.dim: {type: float, low: 0, high: 4, log: true}", "log needs low above 0 and no step, got low 0"),
        ("model.dim: {type: categorical, low: 8}", "categorical needs choices and nothing else, got low"),
        ("model.dim: {type: integer, low: 8, high: 9}", "got 'integer', must be one of float, int, categorical"),
        ("train.selection: {type: categorical, choices: [recall@20]}", "decides what trials are compared by"),
        (
            "variants.mf.model.dimm: {type: int, low: 1, high: 2}",
            "a key begins with model, train or compressor, or with",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(place: Path, search: str, message: str) -> None:
    path = place / "wrong.yaml"
    path.write_text((place / "tiny.yaml").read_text().split("search:")[0] + f"search: {{parameters: {{{search}}}}}\n")
    with pytest.raises(ConfigError, match=message):
        load_experiment(str(path))


def test_the_weight_of_an_ensemble_is_left_to_its_grid(place: Path) -> None:
    sums = "  - {name: sum, model: {name: ensemble, members: [mf-full, mf-modulo]}}\n"
    search = "search: {parameters: {model.weight: {type: float, low: 0.1, high: 0.9}}}\n"
    path = place / "sum.yaml"
    path.write_text((place / "tiny.yaml").read_text().split("search:")[0] + sums + search)
    with pytest.raises(ConfigError, match=r"sum is made of trained variants, .*; model\.grid searches its weight"):
        load_experiment(str(path))
    epochs = load_experiment(str(path), ["search.parameters={train.epochs: {type: int, low: 1, high: 2}}"])
    assert "sum" not in spaces(epochs)


def test_a_sweep_is_no_run_to_read(swept: Path) -> None:
    with pytest.raises(DataError, match=r"is a sweep, .*; train what it found with: recsys run .*best\.yaml"):
        find_run(swept.parent)


def test_a_sweep_never_looks_at_test(place: Path) -> None:
    with pytest.raises(ConfigError, match="a sweep looks at validation only; use selected_on: valid"):
        load_experiment(str(place / "tiny.yaml"), ["train.selected_on=test"])
    experiment = load_experiment(str(place / "tiny.yaml"), ["dataset.split={method: leave_last_n, n: 9}"])
    with pytest.raises((DataError, SweepError)):
        run_sweep(experiment, trials=1, quiet=True)


def test_variants_left_out_on_the_command_line_take_their_settings_along(place: Path) -> None:
    experiment = load_experiment(str(place / "tiny.yaml"), ["variants=[popularity]"])
    assert unused(experiment) == ["model.dim", "model.optimizer.lr", "model.loss", "variants.item-knn.model.neighbours"]
    with pytest.raises(SweepError, match=r"none of the variants popularity has a setting of search\.parameters"):
        run_sweep(experiment, trials=1, quiet=True)


def test_an_experiment_without_search_is_told_how_to_write_one(place: Path) -> None:
    experiment = load_experiment(str(place / "tiny.yaml"), ["search=null"])
    with pytest.raises(SweepError, match=r"tiny has no section `search`, .* `search: \{parameters: \{model\.dim"):
        run_sweep(experiment, trials=1, quiet=True)


def test_the_space_of_a_variant_has_what_it_can_have(place: Path) -> None:
    experiment = load_experiment(str(place / "tiny.yaml"))
    found = spaces(experiment)
    assert list(found) == ["item-knn", "mf-full", "mf-graphhash", "mf-modulo"]
    assert list(found["item-knn"]) == ["model.neighbours"]
    own = load_experiment(
        str(place / "tiny.yaml"),
        ["search.parameters={model.dim: {type: int, low: 2, high: 4}, train.batch_size: {type: int, low: 8, high: 9}}"],
    )
    assert list(spaces(own)) == ["mf-full", "mf-graphhash", "mf-modulo"]
    assert config_hash(own) == config_hash(experiment), "`recsys run` does not look at search"


def test_settings_of_a_variant_hold_at_each_of_its_budgets(place: Path) -> None:
    path = place / "crossed.yaml"
    path.write_text((place / "tiny.yaml").read_text().replace("budget: {rows: 40%}", "budgets: [40%, 50%]"))
    search = "search={parameters: {variants.mf-modulo.model.dim: {type: int, low: 2, high: 4}}}"
    assert list(spaces(load_experiment(str(path), [search]))) == ["mf-modulo@40%", "mf-modulo@50%"]
