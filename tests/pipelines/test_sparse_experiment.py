"""Sparse tables from the configuration to the report's bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_experiment import recsys, write_tiny

from embeddings.id_map import IdMap
from embeddings.sparsity import Schedule, Sparsity
from embeddings.tables import OptimizerSpec, build_table
from pipelines.config_loader import ConfigError, load_experiment
from pipelines.config_models import Mf
from pipelines.config_sparse import Sparse, SparseEntries
from pipelines.errors import DataError
from pipelines.report import words
from pipelines.report.data import Run
from pipelines.report.tables import cost_table
from pipelines.stages.compress import Maps
from pipelines.stages.sparse import layer_sparsities, prune_networks, sparsities
from recsys.models.neumf import NeuMf
from recsys.models.two_tower import TwoTower
from tests.recsys import tower_fixture

VARIANTS = """\
variants:
  - {name: full}
  - {name: dynamic, model: {sparse: {density: 0.25, every_steps: 5}}}
  - {name: erk, model: {sparse: {density: 0.25, distribution: erk, growth: random, every_steps: 5}}}
  - {name: static, model: {sparse: {density: 0.25, method: static}}}
  - {name: pruned, model: {sparse: {density: 0.25, method: prune}}}
  - {name: mixed, model: {mixed_dims: {density: 0.25, epochs: 2, warmup_epochs: 1}}}
  - {name: neumf, model: {name: neumf, dim: 8, sparse: {density: 0.25, every_steps: 5}}}
  - {name: neumf-pruned, model: {name: neumf, dim: 8, sparse: {density: 0.25, method: prune}}}
  - {name: layers, model: {name: neumf, dim: 8, widths: [16, 8], sparse_layers: {density: 0.25, every_steps: 5}}}
  - {name: layers-pruned, model: {name: neumf, dim: 8, widths: [16, 8], sparse_layers: {density: 0.25, method: prune}}}
  - name: shared
    compressor: {name: modulo}
    model: {name: lightgcn, sparse: {density: 0.5, growth: momentum, every_steps: 5}}
"""


def test_metrics_have_the_true_bytes_of_sparse_tables(tmp_path: Path) -> None:
    config = write_tiny(tmp_path)
    config.write_text(config.read_text().partition("variants:")[0] + VARIANTS)
    done = recsys(tmp_path, "run", str(config), "train.epochs=2")
    assert done.returncode == 0, done.stderr
    run = Path(done.stdout.splitlines()[-1])
    variants = {v["name"]: v for v in json.loads((tmp_path / run / "metrics.json").read_text())["variants"]}
    rows, entries = 60 + 40 + 2, (61 + 41) * 8 // 4
    assert variants["full"]["table_bytes"] == rows * 8 * 4
    mask_bytes = rows * 2 + 8 * (4 + 1 + 3 + 1)
    for name in ("dynamic", "erk", "static"):
        assert variants[name]["table_bytes"] == entries * 4 + mask_bytes, name
        assert variants[name]["optimizer_bytes"] == entries * 8
    for name in ("neumf", "neumf-pruned"):
        assert variants[name]["table_bytes"] == 2 * entries * 4 + mask_bytes, "a row has the vectors of both parts"
    assert variants["dynamic"]["window_bytes"] % (8 * 4 + 4) == 0 < variants["dynamic"]["window_bytes"]
    assert variants["erk"]["window_bytes"] == variants["static"]["window_bytes"] == 0
    for name in ("pruned", "mixed"):
        assert variants[name]["table_bytes"] == entries * 4 + mask_bytes
        assert variants[name]["optimizer_bytes"] == rows * 8 * 8, "training had the state of the full table"
    weights, others = 16 * 16 + 16 * 8, 16 + 16 + 8 + 1  # h, and a bias for each output
    starts = 8 * (2 + 2)
    for name in ("layers", "layers-pruned"):
        assert variants[name]["table_bytes"] == 2 * rows * 8 * 4
        assert variants[name]["layer_bytes"] == 4 * (weights // 4 + others) + weights // 8 + starts
    assert variants["layers"]["layer_optimizer_bytes"] == 8 * (weights // 4 + others)
    assert variants["layers-pruned"]["layer_optimizer_bytes"] == 8 * (weights + others)
    assert all(0 <= v["metrics"]["test/recall@20"] <= 1 for v in variants.values())
    assert variants["full"]["layer_bytes"] == 0
    page = (tmp_path / run / "report.html").read_text()
    costs = {name: cells[-5:] for name, _, cells in cost_table(Run(tmp_path / run))}
    tables, layers = 2 * rows * 8 * 4, variants["layers"]["layer_bytes"]
    optimizers = variants["layers"]["optimizer_bytes"] + variants["layers"]["layer_optimizer_bytes"]
    parts = [words.size(size) for size in (tables, layers, optimizers)]
    assert costs["layers"] == [*parts, "none", words.size(tables + layers + optimizers)]
    assert variants["shared"]["map_bytes"] == 4 * rows, "one number for each id, and one for ids that are not known"
    assert costs["shared"][3] == words.size(4 * rows)
    assert costs["full"][1] == "none"
    for method in ("MF, pruned, density 0.25", "MF, static mask, density 0.25"):
        assert method in page
    told = Run(tmp_path / run)
    assert [variant.name for variant in told.variants if variant.is_full] == ["full"]
    assert told.variant("layers-pruned").method == "NeuMF, layers: pruned, density 0.25"
    assert told.variant("shared").method == "LightGCN, modulo, dynamic mask, density 0.5"


def maps(users: int, items: int) -> Maps:
    whole = [IdMap(np.arange(n)[:, None], n + 1, n, "full") for n in (users, items)]
    return Maps(whole[0], whole[1], Path())


def test_the_schedule_runs_over_the_whole_training() -> None:
    config = Mf(sparse=Sparse(density=0.2, every_steps=7, stop=0.75, end=0.0, window_steps=3))
    for sparsity in sparsities(config, maps(50, 9), 700):
        assert sparsity is not None and sparsity.schedule is not None
        assert (sparsity.density, sparsity.window, sparsity.growth) == (0.2, 3, "gradient")
        assert [step for step in range(1, 701) if sparsity.observes(step)][-1] == 525
    assert sparsities(Mf(), maps(50, 9), 700) == [None, None]
    assert sparsities(Mf(sparse=Sparse(density=0.2, method="prune")), maps(50, 9), 700) == [None, None]


def test_a_schedule_without_any_update_is_refused() -> None:
    config = Mf(sparse=Sparse(density=0.2, every_steps=7, stop=0.5))
    with pytest.raises(DataError, match=r"sparse\.every_steps is 7, but entries move in the first 6 of 13 steps only"):
        sparsities(config, maps(50, 9), 13)
    assert sparsities(config, maps(50, 9), 14)


def test_settings_that_others_of_the_file_read_are_no_mistake(tmp_path: Path) -> None:
    """A variant may change one setting of another's section; alone, it still has the rest of the file's."""
    config = write_tiny(tmp_path)
    config.write_text(
        config.read_text().partition("variants:")[0]
        + "variants:\n"
        + "  - {name: slow, model: {sparse: &sparse {density: 0.2, growth: momentum, momentum: 0.5}}}\n"
        + "  - {name: random, model: {sparse: {<<: *sparse, growth: random}}}\n"
    )
    assert len(load_experiment(str(config)).variants) == 2
    assert len(load_experiment(str(config), ["variants=[random]"]).variants) == 1
    with pytest.raises(ConfigError, match=r"sparse\.momentum: growth random has no decay, so that momentum: 0.7"):
        load_experiment(str(config), ["variants.random.model.sparse.momentum=0.7"])


def test_a_density_below_one_entry_a_row_is_told(caplog: pytest.LogCaptureFixture) -> None:
    sparsities(Mf(dim=10, sparse=Sparse(density=0.1)), maps(50, 9), 700)
    assert not caplog.messages
    sparsities(Mf(dim=10, sparse=Sparse(density=0.08, method="prune")), maps(50, 9), 700)
    assert caplog.messages[0].startswith("the table of users stores 41 entries in 51 rows, so that some are all zero")


def test_layers_share_a_density_by_erk() -> None:
    shapes = [(64, 200), (64, 64), (8, 8)]
    found = layer_sparsities(SparseEntries(density=0.2, distribution="erk", every_steps=7, stop=0.75), shapes, 700)
    assert found is not None and all(part.schedule == Schedule(7, 700, stop=0.75) for part in found)
    wide, square, small = (part.density for part in found)
    assert wide < 0.2 < square < small == 1
    assert sum(part.density * n * m for part, (n, m) in zip(found, shapes, strict=True)) == pytest.approx(
        0.2 * sum(n * m for n, m in shapes)
    )
    assert layer_sparsities(None, shapes, 700) is None
    assert layer_sparsities(SparseEntries(density=0.2, method="prune"), shapes, 700) is None
    static = layer_sparsities(SparseEntries(density=0.2, method="static"), shapes, 700)
    assert static == [Sparsity(0.2)] * 3


def models() -> list[NeuMf | TwoTower]:
    users, items = (
        build_table(
            IdMap.identity(count), 6, optimizer=OptimizerSpec("adam"), init_std=0.5, generator=np.random.default_rng(1)
        )
        for count in (9, 7)
    )
    towers = tower_fixture.two_tower(tower_fixture.described(9, 1), tower_fixture.described(7, 2), hidden=(12,))
    return [NeuMf(users, items, widths=(5, 4), generator=np.random.default_rng(0)), towers]


def test_pruned_networks_keep_the_largest_weights_where_they_were() -> None:
    for whole, some in zip(models(), models(), strict=True):
        scores = whole.scores(np.arange(9))
        prune_networks(whole, SparseEntries(density=1.0, method="prune"))
        torch.testing.assert_close(whole.scores(np.arange(9)), scores)
        prune_networks(some, SparseEntries(density=0.4, method="prune", distribution="erk"))
        stored = sum(layer.nnz for layer in some.sparse_layers)
        assert stored == pytest.approx(0.4 * sum(layer.nnz for layer in whole.sparse_layers), abs=2)
        assert some.layer_bytes().weights < whole.layer_bytes().weights


def test_erk_keeps_the_smaller_table_denser() -> None:
    users, items = sparsities(Mf(sparse=Sparse(density=0.2, distribution="erk", method="static")), maps(500, 9), 700)
    assert users is not None and items is not None and users.schedule is None
    assert users.density < 0.2 < items.density
    assert users.density * 501 + items.density * 10 == pytest.approx(0.2 * 511)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.sparse={density: 0}", "greater than 0"),
        ("model.sparse={density: 0.2, start: 0.1, end: 0.3}", "the share that moves must fall, got start 0.1 and end"),
        (
            "model={name: mf, backend: fbgemm, optimizer: {name: sgd}, sparse: {density: 0.2}}",
            "sparse tables need the torch back",
        ),
        ("model={name: simplex, sparse: {density: 0.2}}", "only mf, lightgcn, ngcf, neumf take it, not simplex"),
        (
            "model={name: mf, backend: fbgemm, optimizer: {name: sgd}, mixed_dims: {density: 0.2}}",
            "mixed dimensions need the torch back",
        ),
        ("model.sparse_layers={density: 0.2}", "sparse_layers: unknown key"),
        ("model={name: neumf, sparse_layers: {density: 0.2, columns: random}}", "columns: unknown key"),
        ("model.sparse={density: 0.2, grow: random}", "grow: unknown key"),
        (
            "model.sparse={density: 0.2, method: prune, distribution: erk}",
            "prune keeps the same share of each table; set it to uniform",
        ),
        (
            "model={name: mf, optimizer: {name: lazy_adam}, mixed_dims: {density: 0.2}}",
            "mixed_dims ends in sparse tables, which have no lazy_adam",
        ),
        (
            "train.batch_size=1; model.mixed_dims={density: 0.2}",
            "got 1, but mixed_dims takes no batches of one; use more",
        ),
        (
            "train.batch_size=1; model.loss={name: bpr}; model.sparse={density: 0.2}",
            "got 1, but sparse tables are not for LearnBPR; use more",
        ),
        ("model.mixed_dims={density: 0.2, held_out: 0.0001}", "mixed_dims.held_out 0.0001 of at most 574"),
        ("model.sparse={density: 0.2, method: static, start: 0.4}", "static moves no entry, so that start: 0.4 would"),
        ("model.sparse={density: 0.2, method: prune, columns: random}", "chooses after training, so that columns: ran"),
        ("model.sparse={density: 0.2, columns: random, resolution: 3}", "need no clusters, so that resolution: 3.0 wo"),
        ("model.sparse={density: 0.2, momentum: 0.5}", "growth gradient has no decay, so that momentum: 0.5 would be"),
        (
            "model.sparse={density: 0.2, growth: random, window_steps: 9}",
            "looks at no gradient, so that window_steps: 9",
        ),
    ],
)
def test_wrong_sparse_sections_are_explained(tmp_path: Path, override: str, message: str) -> None:
    done = recsys(tmp_path, "validate", str(write_tiny(tmp_path)), *override.split("; "))
    assert done.returncode != 0
    assert message in " ".join((done.stdout + done.stderr).split())
