"""Tables of bfloat16 and int8 rows from the configuration to recommendations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_experiment import recsys, write_tiny

from embeddings.tables.torch_table import ROUNDED_OPTIMIZERS
from pipelines import config_checks
from pipelines.config_loader import ConfigError, load_experiment
from pipelines.report.data import Run
from recsys.checkpoint import load_model

VARIANTS = """\
variants:
  - {name: wide}
  - {name: short, model: {table_dtype: bfloat16}}
  - {name: spectral, model: {table_dtype: bfloat16, init: spectral}}
  - {name: lightgcn, model: {name: lightgcn, dim: 8, table_dtype: bfloat16, optimizer: {name: sgd, lr: 0.1}}}
  - {name: byte, model: {table_dtype: int8}}
  - {name: byte-spectral, model: {table_dtype: int8, init: spectral}}
  - name: codes
    model: {table_dtype: int8}
    compressor: {name: multi_graphhash, levels: {count: 0, neighbours: 4}}
    budget: {table_mib: 0.0005}
"""


def test_a_run_with_smaller_rows_has_so_many_bytes_and_recommends(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    config.write_text(config.read_text().partition("variants:")[0] + VARIANTS)
    rowwise = "model.optimizer={name: rowwise_adagrad, lr: 0.1}"
    done = recsys(tmp_path, "run", str(config), "train.epochs=3", rowwise)
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.splitlines()[-1])
    variants = {v["name"]: v for v in json.loads((tmp_path / run / "metrics.json").read_text())["variants"]}
    rows = 60 + 40 + 2
    assert variants["wide"]["table_bytes"] == rows * 8 * 4
    assert variants["short"]["table_bytes"] == rows * 8 * 2
    assert variants["byte"]["table_bytes"] == rows * 9
    assert {variants[name]["optimizer_bytes"] for name in ("wide", "short", "byte")} == {rows * 4}
    assert 500 <= variants["codes"]["table_bytes"] <= 0.0005 * 2**20
    wide, *small = (variants[name]["metrics"]["test/recall@20"] for name in ("wide", "short", "byte"))
    assert small == pytest.approx([wide, wide], abs=0.1)
    methods = {variant.name: variant.method for variant in Run(tmp_path / run).variants}
    assert methods["wide"] == "MF, full table"
    assert methods["short"] == "MF, full table, bfloat16 rows"
    assert methods["byte"] == "MF, full table, int8 rows"
    model = load_model(tmp_path / run / "variants" / "lightgcn-s0" / "checkpoint")
    assert model.users.weight().dtype == torch.bfloat16, "what was saved in half the bytes is served in them"
    model = load_model(tmp_path / run / "variants" / "byte-s0" / "checkpoint")
    assert model.users.rows().dtype == torch.int8
    for name in ("short", "byte", "codes", "lightgcn"):
        shown = recsys(tmp_path, "recommend", str(run), "--user", "u1", "--variant", name)
        assert shown.returncode == 0, shown.stderr


CONTENT = "{features: [{name: text, columns: [title]}]}"
RULES = {
    "model.optimizer.name=adagrad": "optimizer.name: bfloat16 rows are updated by sgd or rowwise_adagrad, got adagrad",
    "model.optimizer.weight_decay=0.1": "optimizer.weight_decay: bfloat16 rows have none; set it to 0",
    "model.backend=fbgemm": "backend: got 'fbgemm', but bfloat16 rows need the torch back end",
    "model.sparse={density: 0.5}": "sparse: its rows are float32; remove it, or table_dtype",
    f"model={{name: sasrec, content: {CONTENT}, table_dtype: bfloat16, optimizer: {{name: sgd}}}}": (
        "table_dtype: model.content stands for the item table and trains by Adam, got "
    ),
    "model.mixed_dims={density: 0.5}": "mixed_dims: its rows are float32; remove it, or table_dtype",
}


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize(("change", "message"), RULES.items())
def test_what_smaller_rows_do_not_go_with(change: str, message: str, dtype: str, tmp_path: Path) -> None:
    base = [f"model.table_dtype={dtype}", "model.optimizer={name: sgd, lr: 0.1}"]
    load_experiment(str(write_tiny(tmp_path)), base)
    with pytest.raises(ConfigError) as caught:
        load_experiment(str(tmp_path / "tiny.yaml"), [*base, change.replace("bfloat16", dtype)])
    assert message.replace("bfloat16", dtype) in str(caught.value)


def test_the_configuration_knows_the_optimizers_of_the_tables() -> None:
    assert config_checks.ROUNDED_OPTIMIZERS == ROUNDED_OPTIMIZERS
