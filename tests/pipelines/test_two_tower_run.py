"""Two-tower variants from the command line: features of the data, cold entities, and what the checks say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tiny_experiment import ITEMS, USERS, recsys

from embeddings.tables.sparse_table import SparseTable
from pipelines.config import Dataset as DatasetConfig
from pipelines.config_loader import ConfigError, load_experiment
from pipelines.config_two_tower import TowerInputs, TwoTower
from pipelines.dataset import Dataset
from pipelines.errors import DataError
from pipelines.features import FeatureEncoder
from pipelines.ingest import ingest
from pipelines.stages.two_tower import context_of, encode, histories
from recsys.checkpoint import load_model
from recsys.models.tower import ID
from recsys.models.two_tower import TwoTower as TwoTowerModel

CONFIG = """\
experiment: towers
seeds: [0]
dataset:
  name: towers
  source: {source}
  users: {{source: users.parquet, id: user, features: {{club: categorical}}}}
  items:
    source: items.parquet
    id: item
    features: {{code: categorical, group: categorical, tags: list, size: numeric, blurb: text}}
budget: {{rows: 40%}}
evaluate: {{k: [5, 20], max_k: 30, bootstrap: 100, auc: false}}
model: {{name: two_tower, dim: 8, feature_dim: 4, history: {{length: 5}}, optimizer: {{name: adagrad, lr: 0.2}}}}
train: {{epochs: 6, batch_size: 64, eval_every_epochs: 2, patience: 4}}
tracking: {{enabled: false}}
variants:
  - {{name: popularity, model: {{name: popularity}}}}
  - {{name: plain}}
  - {{name: hashed, compressor: {{name: modulo}}, model: {{history: null}}}}
  - {{name: cfm, model: {{ssl: {{name: cfm, batch_size: 16}}, item: {{dropout: 0.2}}}}}}
  - {{name: sparse, model: {{sparse: {{density: 0.5, growth: random, every_steps: 5}}}}}}
  - {{name: pruned, model: {{sparse: {{density: 0.5, method: prune}}}}}}
  - {{name: layers, model: {{hidden: [16], sparse_layers: {{density: 0.5, distribution: erk, every_steps: 5}}}}}}
  - {{name: layers-pruned, model: {{hidden: [16], sparse_layers: {{density: 0.5, method: prune}}}}}}
"""
COLD = ITEMS
"""An item that only the test split has; it is of group 0."""


def write(directory: Path) -> Path:
    """Users like the items of their group; the last event of some users is the cold item."""
    data = directory / "data"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        liked = rng.permutation(ITEMS // 4)[:8] * 4 + user % 4
        rows += [(f"u{user}", f"i{item}", place) for place, item in enumerate(liked)]
        if user % 4 == 0:
            rows.append((f"u{user}", f"i{COLD}", 8))
    pl.DataFrame(rows, schema=["user", "item", "position"], orient="row").write_parquet(data / "interactions.parquet")
    items = list(range(ITEMS + 1))
    pl.DataFrame(
        {
            "item": [f"i{item}" for item in items],
            "code": [f"code{item}" for item in items],
            "group": [f"g{item % 4}" for item in items],
            "tags": [[f"g{item % 4}", f"t{item % 7}"] for item in items],
            "size": [float(item % 4) if item % 5 else None for item in items],
            "blurb": [f"a thing of group{item % 4}" for item in items],
            "nothing": [None for _ in items],
        },
        schema_overrides={"nothing": pl.String},
    ).write_parquet(data / "items.parquet")
    users = {"user": [f"u{user}" for user in range(USERS)], "club": [f"c{user % 4}" for user in range(USERS)]}
    pl.DataFrame(users).write_parquet(data / "users.parquet")
    config = directory / "towers.yaml"
    text = CONFIG.format(source=data).replace("dataset:\n", "dataset:\n  split: {method: leave_last_n}\n")
    config.write_text(
        text.replace("name: towers\n  source", "columns: {user: user, item: item}\n  name: towers\n  source")
    )
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("towers")
    done = recsys(directory, "run", str(write(directory)))
    assert done.returncode == 0, done.stderr + done.stdout
    return directory / done.stdout.splitlines()[-1]


def test_a_run_learns_and_its_report_is_written(run: Path) -> None:
    found = {row["name"]: row for row in json.loads((run / "metrics.json").read_text())["variants"]}
    assert set(found) == {"popularity", "plain", "hashed", "cfm", "sparse", "pruned", "layers", "layers-pruned"}
    popular = found["popularity"]["metrics"]["test/recall@5"]
    assert all(row["metrics"]["test/recall@5"] > popular for name, row in found.items() if name != "popularity")
    assert found["hashed"]["table_rows"] < found["plain"]["table_rows"]
    assert found["plain"]["optimizer_bytes"] > 0
    report = (run / "report.html").read_text()
    assert "cfm" in report and "two_tower" in report
    audit = json.loads((run / "dataset.json").read_text())["leak_audit"]
    of_models = [check for check in audit if any(name in check["name"] for name in ("plain", "hashed", "cfm"))]
    assert len(of_models) == 3 * 4  # training data and candidates, each of select and refit
    assert all(check["passed"] for check in of_models)


@pytest.mark.skipif(importlib.util.find_spec("torchrec") is None, reason="torchrec is not installed")
def test_the_fbgemm_back_end_has_the_same_bytes_and_metrics(run: Path, tmp_path: Path) -> None:
    done = recsys(tmp_path, "run", str(write(tmp_path)), "variants=[plain]", "model.backend=fbgemm")
    assert done.returncode == 0, done.stderr + done.stdout
    metrics = [directory / "metrics.json" for directory in (run, tmp_path / done.stdout.splitlines()[-1])]
    torch, fbgemm = (
        next(row for row in json.loads(path.read_text())["variants"] if row["name"] == "plain") for path in metrics
    )
    for size in ("table_rows", "table_bytes", "optimizer_bytes", "layer_bytes"):
        assert torch[size] == fbgemm[size]
    for metric, value in torch["metrics"].items():
        assert fbgemm["metrics"][metric] == pytest.approx(value, abs=0.05), metric


def test_sparse_id_tables_are_as_small_as_the_report_says(run: Path) -> None:
    found = {row["name"]: row for row in json.loads((run / "metrics.json").read_text())["variants"]}
    for name in ("sparse", "pruned"):
        model = load_model(run / "variants" / f"{name}-s0" / "checkpoint")
        assert isinstance(model, TwoTowerModel)
        ids = [tower.table_of(ID) for tower in (model.users, model.items)]
        for table in ids:
            assert isinstance(table, SparseTable)
            assert table.nnz == table.num_rows * 8 // 2
        assert found[name]["table_bytes"] == sum(table.bytes().weights for table in model.tables())
    entries = sum(table.num_rows for table in ids if table is not None) * 8 // 2
    saved = found["plain"]["optimizer_bytes"] - found["sparse"]["optimizer_bytes"]
    assert saved == 4 * entries, "Adagrad has a number for each entry"
    assert found["pruned"]["optimizer_bytes"] == found["plain"]["optimizer_bytes"], "training had the full tables"


def test_sparse_layers_are_as_small_as_the_report_says(run: Path) -> None:
    found = {row["name"]: row for row in json.loads((run / "metrics.json").read_text())["variants"]}
    for name in ("layers", "layers-pruned"):
        model = load_model(run / "variants" / f"{name}-s0" / "checkpoint")
        assert isinstance(model, TwoTowerModel)
        layers = model.sparse_layers
        assert len(layers) == 4 and model.layer_bytes().weights == found[name]["layer_bytes"]
        entries, biases = sum(layer.num_rows * layer.dim for layer in layers), 2 * (16 + 8)
        stored = sum(layer.nnz for layer in layers)
        assert stored == pytest.approx(0.5 * entries, abs=4)
        trained = entries if name == "layers-pruned" else stored
        assert found[name]["layer_optimizer_bytes"] == 8 * (trained + biases)
        assert found[name]["table_bytes"] == found["plain"]["table_bytes"]


def test_a_cold_item_is_found_by_its_features(run: Path) -> None:
    """No event of training has it, and users of its group get it before the users of other groups do."""
    model = load_model(run / "variants" / "cfm-s0" / "checkpoint")
    assert isinstance(model, TwoTowerModel)
    dataset = Dataset.open(run / (run / "dataset.path").read_text().strip())
    cold = dataset.item_index(f"i{COLD}")
    assert not dataset.matrix("train", "valid")[:, [cold]].nnz
    scores = model.scores(np.arange(dataset.num_users))[:, cold].numpy()
    club = np.array([int(name[1:]) % 4 for name in dataset.raw_user_ids()])
    assert scores[club == 0].mean() > scores[club != 0].mean() + 0.1
    # `code` is another id, which no item shares, and left out
    encoder = FeatureEncoder.load(run / "variants" / "cfm-s0" / "checkpoint" / "items_features.json")
    assert [fitted.column for fitted in encoder.columns] == ["group", "tags", "size", "blurb"]


def test_recommend_and_export_take_the_model(run: Path, tmp_path: Path) -> None:
    done = recsys(run.parent, "recommend", str(run), "--user", "u4", "--variant", "plain")
    assert done.returncode == 0, done.stderr
    done = recsys(run.parent, "export", str(run), "--variant", "plain", "--out", str(tmp_path / "vectors"))
    assert done.returncode == 0, done.stderr


def dataset_of(directory: Path, **settings: object) -> Dataset:
    write(directory)
    config = DatasetConfig.model_validate(
        {
            "name": "t",
            "source": str(directory / "data"),
            "columns": {"user": "user", "item": "item"},
            "items": {"source": "items.parquet", "id": "item", "features": {"group": "categorical"}},
            **settings,
        }
    )
    return ingest(config, directory / "out")


def test_histories_follow_the_order_of_the_data(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, split={"method": "leave_last_n"})
    found = histories(dataset, "train", "valid")
    frame = dataset.frame("train", "valid").sort("user", "position")
    assert found.items.tolist() == frame["item"].to_list()
    train = histories(dataset, "train")
    assert (train.matrix() != dataset.matrix("train")).nnz == 0


@pytest.mark.parametrize(("asked", "ordered"), [("auto", "before"), ("before", "before"), ("others", "others")])
def test_the_context_needs_an_order_where_it_is_what_was_before(asked: str, ordered: str) -> None:
    config = TwoTower.model_validate({"history": {"context": asked}})
    assert context_of(config, ["rating", "timestamp"]) == ordered
    if asked != "before":
        assert context_of(config, ["rating"]) == "others"
        return
    with pytest.raises(DataError, match="before needs the order of events, and the data have neither timestamp nor"):
        context_of(config, ["rating"])


def test_wrong_features_are_named(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path)
    with pytest.raises(DataError, match=r"items \(items.parquet\): there is no feature 'grup'; did you mean group"):
        encode(dataset, TwoTower.model_validate({"item": {"features": {"grup": {"kind": "categorical"}}}}))
    with pytest.raises(DataError, match="'id' has the name of the tower's own column of ids; rename the column"):
        encode(dataset, TwoTower.model_validate({"item": {"features": {"id": {"kind": "categorical"}}}}))
    found = encode(dataset, TwoTower(user=TowerInputs(features={})))
    assert [column.name for column in found["items"].features.columns] == ["id", "group"]
    assert [column.name for column in found["users"].features.columns] == ["id"]


def test_columns_that_tell_nothing_are_named(tmp_path: Path) -> None:
    items = {"source": "items.parquet", "id": "item"}
    dataset = dataset_of(tmp_path / "one", items={**items, "features": {"nothing": "categorical"}})
    with pytest.raises(DataError, match=r"items \(items.parquet\): feature 'nothing' has no value in the 40 rows"):
        encode(dataset, TwoTower())
    dataset = dataset_of(tmp_path / "two", items={**items, "features": {"code": "categorical"}})
    assert len(encode(dataset, TwoTower())["items"].features.columns) == 1
    with pytest.raises(DataError, match=r"items \(items.parquet\): no features but code, whose values all differ as"):
        encode(dataset, TwoTower(item=TowerInputs(id=False), history=None))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.item={id: false, features: {}}", "the item tower has neither the id nor a feature; give it one"),
        ("model.item.id=false", "a history is pooled from the items' id table; set model.item.id or history: null"),
        ("train.precision=bfloat16", "two_tower does not take it, got 'bfloat16'; remove it"),
        ("train.positives=users", "two_tower does not take it, got 'users'; remove it"),
        ("model.backend=fbgemm", "got 'fbgemm', but sparse tables need the torch back end"),
        ("model={name: two_tower, backend: fbgemm, dim: 10}", "needs tables of a multiple of 4 columns, got 10; or"),
        (
            "model={name: two_tower, backend: fbgemm, feature_dim: 6}",
            "needs tables of a multiple of 4 columns, got 6; or",
        ),
        (
            "model={name: two_tower, backend: fbgemm, optimizer: {name: sgd, weight_decay: 0.1}}",
            "the fbgemm back end has none on the CPU, got 0.1; use 0, or backend: torch",
        ),
        ("model={name: two_tower, backend: fbgemm, optimizer: {name: adam}}", "the fbgemm back end has no adam; use"),
        ("model.loss.count=0", "greater than or equal to 1"),
        ("model.loss={name: sampled, hardness: 0.5}", "loss sampled does not take it, got 0.5; set it to 0"),
        ("model.ssl={name: spread_out, projection: separate}", "spread_out has one view and no second network"),
        (
            "model={name: two_tower, user: {id: false}, item: {id: false}, history: null, sparse: {density: 0.5}}",
            "is for id tables, and neither tower has one; remove it, or set model.item.id",
        ),
        (
            "model.loss={name: in_batch, count: 3}",
            "loss in_batch draws no items, so that count: 3 would be ignored; re",
        ),
        ("model.loss={name: sampled, logq: exact}", "draws every item equally often, so that logq: exact would be"),
        ("model.ssl={name: spread_out, dropout: 0.5}", "ssl spread_out drops nothing, so that dropout: 0.5 would be"),
        (
            "model.item.features.group={kind: categorical, on_overflow: error}",
            "item.features.group.on_overflow: without max_size nothing overflows, so that on_overflow: error would be",
        ),
        (
            "model.item.features.size={kind: numeric, transform: log, buckets: 4}",
            "transform log has none, so that buckets: 4 would be ignored; remove it",
        ),
    ],
)
def test_what_the_configuration_refuses(override: str, message: str, tmp_path: Path) -> None:
    config = write(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_experiment(str(config), [override])


def test_compressed_towers_run_at_every_budget(tmp_path: Path) -> None:
    config = write(tmp_path)
    config.write_text(config.read_text().replace("budget: {rows: 40%}", "budgets: [20%, 40%]"))
    names = [variant.name for variant in load_experiment(str(config)).variants]
    assert names == [
        "popularity",
        "plain",
        "hashed@20%",
        "hashed@40%",
        "cfm",
        "sparse",
        "pruned",
        "layers",
        "layers-pruned",
    ]
