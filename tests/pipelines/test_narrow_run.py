"""Narrow rows from the configuration to recommendations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_experiment import recsys, write_tiny

from pipelines.config_loader import ConfigError, load_experiment
from recsys.checkpoint import load_model

USERS, ITEMS = 60, 40
VARIANTS = """\
variants:
  - {name: plain, compressor: {name: modulo}}
  - {name: narrow, compressor: &narrow {name: modulo, narrow: 0.125}}
  - {name: byte, compressor: *narrow, model: {table_dtype: int8, optimizer: {name: rowwise_adagrad, lr: 0.1}}}
  - name: lightgcn
    compressor: {name: multi_graphhash, levels: {count: 0, neighbours: 4}, narrow: 0.125}
    model: {name: lightgcn, dim: 8}
  - name: sasrec
    compressor: {name: semantic_ngram, semantic: {codes: graph}, narrow: 0.125}
    model: {name: sasrec, dim: 8, layers: 1, max_length: 6, negatives: {name: popularity, alpha: 0.5, count: 16}}
    train: {refit: false}
"""


def test_a_run_with_narrow_rows_keeps_its_budget_counts_their_bytes_and_recommends(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    config.write_text(config.read_text().partition("variants:")[0] + VARIANTS)
    events = tmp_path / "data" / "interactions.csv"
    header, *lines = events.read_text().splitlines()
    timed = [f"{line},{1_600_000_000 + 3600 * place}" for place, line in enumerate(lines)]
    events.write_text("\n".join([f"{header},timestamp", *timed]))
    done = recsys(tmp_path, "run", str(config), "train.epochs=3", "dataset.split.method=leave_last_n")
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.splitlines()[-1])
    folder = tmp_path / run / "variants"
    variants = {v["name"]: v for v in json.loads((tmp_path / run / "metrics.json").read_text())["variants"]}
    assert variants["narrow"]["compressor"] == "modulo-narrow=0.125"
    for name, dim in (("narrow", 8), ("byte", 8), ("lightgcn", 8), ("sasrec", 8)):
        model = load_model(folder / f"{name}-s0" / "checkpoint")
        tables = [model.items] if name == "sasrec" else [model.users, model.items]
        narrow = [table.id_map.narrow for table in tables]
        assert all(one.share == 0.125 for one in narrow)
        wide, small = sum(t.id_map.wide_rows for t in tables), sum(one.rows for one in narrow)
        budget = 0.4 * (ITEMS if name == "sasrec" else USERS + ITEMS)
        assert wide - len(tables) + 0.125 * small <= budget + 1
        size = (dim + 1, 2) if name == "byte" else (4 * dim, 4)
        assert variants[name]["table_rows"] == wide + small
        assert variants[name]["table_bytes"] == wide * size[0] + small * size[1]
        shown = recsys(tmp_path, "recommend", str(run), "--user", "u1", "--variant", name)
        assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("compressor={name: graphhash, narrow: 0.5}", "compressor.narrow: graphhash has no rows beside its own"),
        ("model.backend=fbgemm", "model.backend: got 'fbgemm', but narrow rows need the torch back end"),
        ("model.sparse={density: 0.5}", "model.sparse: its rows have all columns; remove it, or compressor.narrow"),
        ("model.init=spectral", "model.init: spectral fits whole rows; use normal, or remove compressor.narrow"),
        ("compressor.narrow=1", "compressor.narrow: got 1: input should be less than 1"),
        ("compressor.narrow=0.3", "compressor.narrow: 0.3 of 8 columns are no whole number; take a multiple of 1/dim"),
        ("model.name=neumf", "compressor.narrow: neumf's rows are two vectors side by side"),
        ("budget={table_mib: 0.001}", "compressor.narrow: budget.table_mib counts the bytes of whole rows alone"),
        (
            "compressor={name: semantic_ngram, narrow: 0.5, semantic: {codes: graph, users: frequency}}",
            "compressor.semantic.users: narrow rows beside other rows of users need users: graph",
        ),
    ],
)
def test_what_narrow_rows_do_not_go_with(change: str, message: str, tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    config.write_text(config.read_text().partition("variants:")[0] + VARIANTS)
    load_experiment(str(config), [])
    with pytest.raises(ConfigError) as caught:
        load_experiment(str(config), [f"variants.narrow.{change}"])
    assert message in str(caught.value)


def test_a_budget_of_narrow_rows_alone_says_what_to_change(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    config.write_text(config.read_text().partition("variants:")[0] + VARIANTS)
    done = recsys(tmp_path, "run", str(config), "variants=[narrow]", "variants.narrow.compressor.narrow=0.875")
    assert done.returncode != 0
    assert "no whole row is left; raise the budget, or lower compressor.narrow" in done.stderr


def test_negatives_have_a_power_of_popularity_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"alpha is for name: popularity, got 0\.5 for uniform"):
        load_experiment(str(write_tiny(tmp_path)), ["model.negatives={name: uniform, alpha: 0.5}"])


@pytest.mark.parametrize(("name", "variant"), [("ctr_ml1m", "dcn-full"), ("multitask_ml1m", "top-k")])
def test_rankers_have_no_narrow_rows(name: str, variant: str) -> None:
    with pytest.raises(ConfigError, match="rankers' tables have no narrow rows; remove it"):
        load_experiment(name, [f"variants.{variant}.compressor={{name: modulo, narrow: 0.25}}"])
