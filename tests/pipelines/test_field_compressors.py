"""Compressed fields of a ranker beside user and item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_experiment import recsys

from embeddings.budget import parse_rows
from embeddings.names import COMPRESSORS
from pipelines.cache import Cache
from pipelines.config import Budget, Compressor
from pipelines.config_loader import load_experiment
from pipelines.config_problems import ConfigError
from pipelines.config_ranking import (
    CriteoData,
    FieldCompressor,
    FrappeData,
    LibfmData,
    NextItemData,
    RankingExperiment,
)
from pipelines.errors import DataError
from pipelines.events.stages import FieldMaps, Maps, training_key
from pipelines.progress import Reporter
from pipelines.ranking.data import RankingData, prepare
from pipelines.ranking.field_maps import OtherFields
from pipelines.ranking.frappe import FIELDS
from pipelines.ranking.runner import run_ranking
from pipelines.ranking.scoring import Scorer
from pipelines.ranking.sources import CRITEO_FIELDS, CRITEO_NUMERIC, field_names
from pipelines.ranking.verdict import verdicts
from pipelines.run_files import RunFiles
from pipelines.sweep.objective import open_objective
from recsys.rankers.checkpoint import load_ranker

GROUPS, TOWNS, DIM = 4, 24, 4
CONFIG = """\
task: ctr
experiment: towns
dataset:
  format: table
  name: towns
  source: {source}
  fields: [user, item, town, day]
  numeric: {{price: log_bucket}}
  split: {{method: given, column: split}}
budget: {{rows: 50%}}
model: {{name: dcn_v2, dim: 4, hidden: [8], optimizer: {{name: adam, lr: 0.02}}}}
train: {{epochs: 2, batch_size: 128}}
tracking: {{enabled: false}}
output: {output}
variants:
  - {{name: full}}
  - {{name: towns, field_compressors: {{town: {{name: graphhash, rows: 4}}}}}}
  - name: all
    compressor: {{name: double_hash}}
    field_compressors: {{town: {{name: double_hash, rows: 50%}}, price: {{name: lsh, rows: 1}}}}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """People of a town like the items of its group; the last town of all has no positive event."""
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    draws, count = np.random.default_rng(0), 3000
    users, items, towns = (draws.integers(0, size, count) for size in (30, 20, TOWNS))
    labels = ((towns % GROUPS == items % GROUPS) & (towns < TOWNS - 1)).astype(np.int64)
    frame = {
        "user": users,
        "item": items,
        "town": towns,
        "day": draws.integers(0, 7, count),
        "price": draws.integers(1, 90, count),
        "label": labels,
        "split": np.array(["train", "valid", "test"])[np.searchsorted([0.6, 0.8], draws.random(count))],
    }
    pl.DataFrame(frame).write_parquet(tmp_path / "interactions.parquet")
    path = tmp_path / "towns.yaml"
    path.write_text(CONFIG.format(source=tmp_path, output=tmp_path / "runs"))
    return path


def loaded(config: Path, *overrides: str) -> RankingExperiment:
    experiment = load_experiment(str(config), overrides)
    assert isinstance(experiment, RankingExperiment)
    return experiment


def prepared(config: Path) -> RankingData:
    return prepare(Cache(config.parent / "cache"), loaded(config).dataset)


def added(config: Path, seed: int = 0, **compressors: FieldCompressor) -> Maps:
    cache, data = Cache(config.parent / "cache"), prepared(config)
    full = FieldMaps(cache, data, Budget(rows="50%")).maps(Compressor(), DIM, seed)
    return OtherFields(cache, data).add(full, compressors, seed)


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name != "full"])
@pytest.mark.parametrize("rows", [1, 5, "50%", TOWNS])
def test_every_compressor_gives_a_field_its_rows(config: Path, name: Any, rows: str | int) -> None:
    maps = added(config, town=FieldCompressor(name=name, rows=rows))
    town, seen = maps.fields["town"], TOWNS - 1
    assert (town.compressor, town.num_ids) == (name, TOWNS)
    assert town.num_rows == min(parse_rows(rows, TOWNS), seen) + 1
    alone = town.rows[seen][town.lookup_weights(np.arange(TOWNS))[seen] != 0]
    assert (alone == town.unseen_row).all(), "a value without a positive train event"
    assert not (town.rows[:seen, 0] == town.unseen_row).any()
    assert {field: one.compressor for field, one in maps.fields.items() if field != "town"} == dict.fromkeys(
        ("user", "item", "day", "price"), "full"
    )
    assert maps.described()["fields"]["town"]["seen_ids"] == seen and maps.entry is None


def test_graphhash_puts_the_values_of_a_group_into_a_row(config: Path) -> None:
    rows = added(config, town=FieldCompressor(name="graphhash", rows=GROUPS)).fields["town"].rows[: TOWNS - 1, 0]
    groups = [set(rows[group::GROUPS].tolist()) for group in range(GROUPS)]
    assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == GROUPS


def test_the_graph_of_a_field_has_items_and_values(config: Path) -> None:
    data = prepared(config)
    graph = data.graph("item", "town").toarray()
    assert graph.shape == (20, TOWNS) and not graph[:, -1].any()
    assert all((item % GROUPS == town % GROUPS) for item, town in zip(*graph.nonzero(), strict=True))
    assert (data.graph().toarray() == data.graph("user", "item").toarray()).all()


def test_the_configuration_tells_the_fields_of_every_format(config: Path) -> None:
    assert field_names(loaded(config).dataset) == prepared(config).fields
    given: dict[str, Any] = {"name": "t", "source": "none"}
    assert field_names(FrappeData(**given)) == FIELDS
    assert field_names(LibfmData(**given, fields=("user", "item"))) == ("user", "item")
    assert field_names(NextItemData(**given, columns=("brand",))) == ("user_id", "item_id", "brand")
    assert field_names(CriteoData(**given)) == (*CRITEO_FIELDS, *CRITEO_NUMERIC)
    assert field_names(CriteoData(**given, numeric="standardise")) == CRITEO_FIELDS


def test_trainings_without_compressed_fields_have_the_key_that_they_had(config: Path) -> None:
    data, experiment = prepared(config), loaded(config)
    keys = [
        training_key(data, variant, added(config, **variant.field_compressors), 0) for variant in experiment.variants
    ]
    assert list(keys[0]) == ["data", "model", "train", "maps", "seed"] and keys[0]["maps"] is None
    assert list(keys[1]["field maps"]) == ["town"] and list(keys[2]["field maps"]) == ["town", "price"]
    other = added(config, seed=1, **experiment.variants[2].field_compressors)
    assert training_key(data, experiment.variants[2], other, 0)["field maps"] != keys[2]["field maps"]


def test_a_run_is_smaller_by_exactly_the_rows_and_repeats(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_ranking(loaded(config), quiet=True)
    files, sizes = RunFiles(run), prepared(config).sizes
    results = {result.name: result for result in files.metrics().variants}
    assert sizes["town"] == TOWNS and sizes["price"] > 2
    saved = {"towns": TOWNS - 4, "all": TOWNS - TOWNS // 2 + sizes["price"] - 1}
    assert results["full"].table_rows == sum(size + 1 for size in sizes.values())
    assert results["full"].table_rows - results["towns"].table_rows == saved["towns"]
    assert results["full"].table_bytes - results["towns"].table_bytes == saved["towns"] * DIM * 4
    pair = json.loads((run / "variants" / "all-s0" / "maps.json").read_bytes())
    assert list(pair) == ["users", "items", "fields"] and list(pair["fields"]) == ["town", "price"]
    kept = pair["users"]["rows"] + pair["items"]["rows"]
    assert (
        results["full"].table_rows - results["all"].table_rows
        == sizes["user"] + sizes["item"] + 2 - kept + saved["all"]
    )
    assert {name: result.compressor for name, result in results.items()} == {
        "full": "full",
        "towns": "full, town graphhash",
        "all": "double_hash, town double_hash, price lsh",
    }
    assert not (run / "variants" / "full-s0" / "maps.json").exists()
    said = " ".join(verdicts(files.metrics(), [])).replace("\xa0", " ")
    assert "towns has" in said and "all has" in said and "of the bytes of full" in said and "full has" not in said
    tables = load_ranker(run / "variants" / "towns-s0" / "checkpoint").tables
    assert [field.id_map.num_rows for field in tables.fields][2] == 5
    events = pl.read_parquet(config.parent / "interactions.parquet").filter(pl.col("split") == "test")
    for name in results:
        np.testing.assert_array_equal(Scorer.open(run, name).log_odds(events), files.scores(name, 0))
    first = {name: files.scores(name, 0).tobytes() for name in results}
    maps = (run / "variants" / "all-s0" / "checkpoint" / "map-2.safetensors").read_bytes()
    monkeypatch.setenv("RECSYS_CACHE", str(config.parent / "anew"))
    again = run_ranking(loaded(run / "config.yaml", f"output={config.parent / 'again'}"), quiet=True)
    assert {name: RunFiles(again).scores(name, 0).tobytes() for name in results} == first
    assert (again / "variants" / "all-s0" / "checkpoint" / "map-2.safetensors").read_bytes() == maps


def test_a_sweep_tries_a_variant_with_its_fields(config: Path, tmp_path: Path) -> None:
    with Reporter(tmp_path / "log.txt", quiet=True) as report:
        objective = open_objective(loaded(config), Cache(tmp_path / "cache"), report)
        objective("towns", {"model.dim": 2}, tmp_path / "trial", lambda _: None)
    (checkpoint,) = (tmp_path / "trial").glob("train-ranker/*/checkpoint")
    assert [field.id_map.num_rows for field in load_ranker(checkpoint).tables.fields][2] == 5


def test_validate_tells_the_fields(config: Path) -> None:
    done = recsys(config.parent, "validate", str(config))
    assert "  towns: dcn_v2, full, town graphhash, dim 4, rows: town 4\n" in done.stdout
    assert done.stdout.endswith(
        "  all: dcn_v2, double_hash, town double_hash, price lsh, dim 4, rows: town 50%, price 1\n"
    )


@pytest.mark.parametrize(
    ("field", "settings", "message"),
    [
        (
            "user",
            "{name: modulo, rows: 2}",
            "towns.field_compressors.user: is dataset.user, whose rows `compressor` and",
        ),
        (
            "item",
            "{name: modulo, rows: 2}",
            "towns.field_compressors.item: is dataset.item, whose rows `compressor` and",
        ),
        (
            "twon",
            "{name: modulo, rows: 2}",
            "no such field; did you mean `town`? (the fields are user, item, town, day",
        ),
        ("split", "{name: modulo, rows: 2}", "there is no such field (the fields are user, item, town, day, price)"),
        ("day", "{name: modulo}", "towns.field_compressors.day.rows: is required"),
        ("day", "{rows: 2}", "day.name: full has a row for each value, as a field without a compressor; name another"),
        ("day", "{name: modulo, rows: 0}", "day.rows: got 0, must be at least 1: the values share them"),
        ("day", "{name: modulo, rows: 0%}", "day.rows: got '0%', must be a share in (0, 100]"),
        ("day", "{name: modulo, rows: few}", "day.rows: got 'few', must be a share in (0, 100]"),
        ("day", "{name: modulo, rows: 2, levels: {count: 1}}", "day.levels: only multi_graphhash and residual_codes"),
        ("day", "{name: modulo, rows: 2, semantic: {n: 2}}", "day.semantic: only semantic_ngram and semantic_spm have"),
        ("day", "{name: modulo, rows: 2, algorithm: leiden}", "day.algorithm: only graphhash, double_graphhash, multi"),
        (
            "day",
            "{name: semantic_spm, rows: 2, semantic: {codes: items}}",
            "semantic.codes: got 'items', must be one of",
        ),
        (
            "day",
            "{name: semantic_spm, rows: 2, semantic: {users: frequency}}",
            "users: got 'frequency', must be one of",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(config: Path, field: str, settings: str, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        loaded(config, f"variants.towns.field_compressors.{field}={settings}")
    assert message in str(told.value) and len(told.value.problems) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("8", "field_compressors.day.rows=8 (8 rows) is out of range: 7 values can have 1 to 7 rows"),
        ("1%", "field_compressors.day.rows='1%' (0 rows) is out of range: 7 values can have 1 to 7 rows"),
    ],
)
def test_what_only_the_events_tell_is_told_before_training(config: Path, rows: str, message: str) -> None:
    experiment = loaded(config, f"variants.all.field_compressors.day={{name: modulo, rows: {rows}}}")
    with pytest.raises(DataError) as told:
        run_ranking(experiment, quiet=True)
    assert message in str(told.value)
    assert not (config.parent / "cache" / "train-ranker").exists()


def test_a_mistake_is_one_line_of_the_command(config: Path) -> None:
    done = recsys(config.parent, "run", str(config), "variants.towns.field_compressors.day={name: modulo, rows: 8}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: field_compressors.day.rows=8 (8 rows) is out of range")


def test_a_field_without_a_pair_has_no_graph(config: Path) -> None:
    path = config.parent / "interactions.parquet"
    rare = pl.when(pl.col("label") == 1).then(pl.int_range(1000, 1000 + pl.len())).otherwise(pl.col("town") % 2)
    pl.read_parquet(path).with_columns(town=rare).write_parquet(path)
    experiment = loaded(
        config, "dataset.min_count=2", "variants=[towns]", "variants.towns.field_compressors.town.rows=2"
    )
    with pytest.raises(
        DataError, match=r"field_compressors\.town: no positive train event has both an item and a value"
    ):
        run_ranking(experiment, quiet=True)
