"""Several budgets in one experiment, from the file to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_experiment import recsys, write_tiny

from pipelines.config import Budget
from pipelines.config_ensemble import Ensemble
from pipelines.config_loader import load_experiment
from pipelines.config_problems import ConfigError
from pipelines.memory import Size, compressed_rows
from pipelines.run_files import RunFiles


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = write_tiny(tmp_path)
    path.write_text(path.read_text().replace("budget: {rows: 40%}", "budgets: [20%, 50]"))
    return path


def test_compressed_variants_are_crossed_and_others_stay(config: Path) -> None:
    experiment = load_experiment(str(config))
    assert [variant.name for variant in experiment.variants] == [
        "popularity", "item-knn", "mf-full", "mf-graphhash@20%", "mf-graphhash@50", "mf-modulo@20%", "mf-modulo@50",
    ]  # fmt: skip
    assert [v.budget for v in experiment.variants[2:5]] == [None, Budget(rows="20%"), Budget(rows=50)]
    assert load_experiment(str(config), ["budgets=[10%]", "variants=[mf-modulo]"]).variants[0].name == "mf-modulo@10%"


def test_a_variant_with_a_budget_of_its_own_keeps_it(config: Path) -> None:
    experiment = load_experiment(str(config), ["variants.mf-modulo.budget.rows=30%"])
    assert experiment.variants[-1].name == "mf-modulo"
    assert experiment.variants[-1].budget == Budget(rows="30%")


def test_two_towers_are_crossed_too(config: Path) -> None:
    """Their id tables are compressed as those of any other model with tables."""
    tower = "variants.mf-modulo.model={name: two_tower}"
    names = [variant.name for variant in load_experiment(str(config), [tower]).variants]
    assert names[-2:] == ["mf-modulo@20%", "mf-modulo@50"]


def test_an_ensemble_of_a_compressed_variant_is_one_for_each_budget(config: Path) -> None:
    path = config.with_name("ensemble.yaml")
    raw = yaml.safe_load(config.read_text())
    members = {"name": "ensemble", "members": ["mf-modulo", "mf-full"]}
    raw["variants"].append({"name": "both", "model": members})
    path.write_text(yaml.safe_dump(raw))
    sums = load_experiment(str(path)).variants[-2:]
    assert [(v.name, v.model.members, v.budget) for v in sums if isinstance(v.model, Ensemble)] == [
        ("both@20%", ("mf-modulo@20%", "mf-full"), None),
        ("both@50", ("mf-modulo@50", "mf-full"), None),
    ]


RULES = {
    "budgets=[20%, 0%]": "budgets.1: got '0%', must be a share in (0, 100]",
    "budgets=[20%, 20%]": "budgets.1: '20%' occurs twice",
    "budget.rows=16%": "budgets: budget is set too; give one budget, or several in budgets",
    "variants.mf-modulo.budget={}": "variants.mf-modulo.budget: exactly one of rows, table_mib, resolution must be set",
}


@pytest.mark.parametrize("override", RULES)
def test_mistakes_in_budgets_are_told(config: Path, override: str) -> None:
    with pytest.raises(ConfigError) as told:
        load_experiment(str(config), [override])
    assert len(told.value.problems) == 1
    assert RULES[override] in str(told.value)


def test_one_run_has_every_budget_with_its_own_rows(config: Path, tmp_path: Path) -> None:
    assert "budget 50: about 50 table rows of" in recsys(tmp_path, "validate", str(config)).stdout
    done = recsys(tmp_path, "run", str(config), "variants=[mf-full, mf-graphhash, mf-modulo]", "train.epochs=2")
    assert done.returncode == 0, done.stderr
    files = RunFiles(tmp_path / done.stdout.strip().splitlines()[-1])
    rows = {variant.name: variant.table_rows for variant in files.metrics().variants}
    assert rows["mf-graphhash@20%"] == rows["mf-modulo@20%"] < 30
    assert rows["mf-graphhash@50"] == rows["mf-modulo@50"] > 45
    assert rows["mf-full"] > 100
    facts = json.loads(files.compression_file.read_bytes())
    assert set(facts["budgets"]) == {"20%", "50"}
    assert {"graphhash@20%", "modulo@50"} < set(facts["maps"])
    named = {check["name"] for check in json.loads(files.dataset_file.read_bytes())["leak_audit"]}
    assert {"clusters (louvain) at 20%", "clusters (louvain) at 50"} < named
    page = files.report_file.read_text()
    assert "mf-graphhash@50" in page and "Modularity (20%)" in page


def test_every_clustering_algorithm_is_described(tmp_path: Path) -> None:
    config, leiden = write_tiny(tmp_path), "variants.mf-modulo.compressor={name: graphhash, algorithm: leiden}"
    done = recsys(tmp_path, "run", str(config), "variants=[mf-graphhash, mf-modulo]", leiden, "train.epochs=1")
    assert done.returncode == 0, done.stderr
    files = RunFiles(tmp_path / done.stdout.strip().splitlines()[-1])
    facts = json.loads(files.compression_file.read_bytes())
    assert facts["clustering"]["algorithm"] == "louvain"
    assert {name: found["clustering"]["algorithm"] for name, found in facts["budgets"].items()} == {
        "louvain": "louvain", "leiden": "leiden",
    }  # fmt: skip
    assert all("ari" in found["stability"]["users"] for found in facts["budgets"].values())
    assert "Stability of users (leiden)" in files.report_file.read_text()
    assert " MiB" in next(line for line in files.log_file.read_text().splitlines() if "epoch 1: loss" in line)


def test_the_resolved_configuration_is_the_same_experiment(config: Path, tmp_path: Path) -> None:
    experiment = load_experiment(str(config))
    files = RunFiles(tmp_path / "run")
    files.directory.mkdir()
    files.write_config(experiment)
    assert files.config() == experiment
    assert "budgets" in yaml.safe_load(files.config_file.read_text())


NEUMF = "{name: neumf, dim: 8, optimizer: {name: adam}}"


def test_a_budget_in_mib_counts_the_columns_of_the_compressed_tables(tmp_path: Path) -> None:
    config, wide = str(write_tiny(tmp_path)), ["variants=[mf-modulo]", "budget={table_mib: 0.001}"]
    rows = [
        compressed_rows(load_experiment(config, [*wide, f"model={model}"]), Size(200, 60, 40, exact=True))
        for model in (NEUMF, "{name: mf, dim: 16}")
    ]
    assert rows[0] == rows[1]


SASREC = "{name: sasrec, dim: 16, layers: 1, optimizer: {name: adam}}"
TOWER = "{name: two_tower, dim: 16, user: {id: false}}"


@pytest.mark.parametrize("model", [SASREC, TOWER])
def test_a_budget_of_models_without_a_user_table_is_one_of_the_items(model: str, tmp_path: Path) -> None:
    config, size = str(write_tiny(tmp_path)), Size(200, 60, 40, exact=True)
    changes = ["variants=[mf-graphhash, mf-modulo]", f"variants.mf-graphhash.model={model}"]
    found = compressed_rows(load_experiment(config, [*changes, "budget={rows: 40%}"]), size)
    assert found == {"40% of the items": (16, 40), "40%": (40, 100)}
    load_experiment(config, [*changes, "budget={table_mib: 0.001}"])  # tables of their own widths


def test_one_budget_in_mib_for_two_widths_is_refused(tmp_path: Path) -> None:
    changes = ["budget={table_mib: 0.001}", "variants.mf-modulo.model.dim=16"]
    with pytest.raises(
        ConfigError, match=r"variants\.mf-modulo\.model\.dim: rows of 64 bytes, those of mf-graphhash have 32"
    ):
        load_experiment(str(write_tiny(tmp_path)), changes)


def test_training_that_neumf_ignores_is_refused_before_it_runs(tmp_path: Path) -> None:
    changes = ["variants=[mf-modulo]", f"model={NEUMF}", "train.gradient_clip_norm=1"]
    with pytest.raises(ConfigError, match=r"neumf does not take it, got 1\.0; remove it"):
        load_experiment(str(write_tiny(tmp_path)), changes)
