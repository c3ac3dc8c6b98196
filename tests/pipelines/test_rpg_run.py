from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_tiger_run import EVENTS, ITEMS, KINDS, USERS, write_walks
from tiny_experiment import recsys

from pipelines.config_loader import load_experiment
from pipelines.config_problems import ConfigError
from recsys.checkpoint import load_model
from recsys.models.rpg import Rpg

CONFIG = """\
experiment: walks
dataset:
  name: walks
  source: {source}
  items: {{source: items.csv, id: item, title: title, features: {{kind: categorical}}}}
  split: {{method: leave_last_n}}
semantic_ids:
  features: [{{name: spectral, dim: 4}}]
  tokeniser: {{name: opq, digits: 2, width: 6}}
  gates: {{hierarchy: false, max_error: 1.0}}
evaluate: {{k: [1, 5], max_k: 8, bootstrap: 100, unmasked: true}}
model:
  {{name: rpg, dim: 16, layers: 1, heads: 2, max_length: 6, dropout: 0.0, temperature: 0.1, optimizer: {{lr: 0.02}}}}
train: {{epochs: 40, batch_size: 16, eval_every_epochs: 20, selection: ndcg@5, checkpoint_minutes: 0.001}}
tracking: {{enabled: false}}
variants:
  - {{name: popularity, model: {{name: popularity}}}}
  - {{name: rpg}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rpg")
    source = write_walks(directory / "data")
    (directory / "walks.yaml").write_text(CONFIG.format(source=source))
    done = recsys(directory, "run", "walks.yaml")
    assert done.returncode == 0, done.stderr
    return directory / done.stdout.splitlines()[-1]


def test_the_whole_experiment_runs_and_ids_beat_popularity(run: Path) -> None:
    found = {v["name"]: v for v in json.loads((run / "metrics.json").read_bytes())["variants"]}
    metrics = found["rpg"]["metrics"]
    assert metrics["test/recall@1"] > found["popularity"]["metrics"]["test/recall@1"] + 0.5
    assert metrics["test/recall_unmasked@5"] <= metrics["test/recall@5"]
    assert metrics["test/auc"] > 0.9
    assert found["rpg"]["table_rows"] == 13 and found["rpg"]["table_bytes"] == 13 * 16 * 4
    model = load_model(run / "variants" / "rpg-s0" / "checkpoint")
    assert isinstance(model, Rpg)
    layers = sum(p.nbytes for name, p in model.named_parameters() if not name.startswith("tokens."))
    assert found["rpg"]["layer_bytes"] == layers > sum(p.nbytes for p in model.heads.parameters())


def test_a_finished_model_reads_train_and_validation_and_never_test(run: Path) -> None:
    model = load_model(run / "variants" / "rpg-s0" / "checkpoint")
    assert isinstance(model, Rpg)
    assert model.histories.lengths.tolist() == [EVENTS - 1] * USERS
    assert (model.codes.widths, model.num_items) == ((6, 6), ITEMS)


def test_the_leak_audit_knows_what_was_trained_on(run: Path) -> None:
    checks = {check["name"]: check for check in json.loads((run / "dataset.json").read_bytes())["leak_audit"]}
    ours = {name: check["passed"] for name, check in checks.items() if "rpg" in name}
    assert {"training data of rpg, select", "training data of rpg, refit"} <= set(ours) and all(ours.values())


def test_it_recommends_unseen_items(run: Path) -> None:
    done = recsys(run.parent.parent, "recommend", str(run), "--user", "u3", "--variant", "rpg", "--json")
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["items"]
    assert len(items) == ITEMS - EVENTS and all(item["title"].split()[1] in KINDS for item in items)
    assert all(item["score"] <= 0 for item in items)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("semantic_ids=null", "rpg predicts semantic ids: add a section `semantic_ids`, with the tokeniser opq"),
        ("model.heads=3", "heads must divide dim, got 3 heads for dim 16"),
        ("train.precision=bfloat16", "sequence models train in float32, got 'bfloat16'"),
        ("train.lr_decay=0.5", "sequence models keep their learning rate, got 0.5; set it to 1"),
        ("model.temperature=0", "greater than 0"),
    ],
)
def test_settings_that_it_cannot_follow_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.chdir(run.parent.parent)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_experiment("walks.yaml", [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("semantic_ids.tokeniser.digits=3", "opq must divide the features into parts of equal width, got 4 columns"),
        ("semantic_ids.tokeniser.width=13", "k-means of 13 clusters needs as many points, got 12"),
    ],
)
def test_features_that_cannot_be_coded_are_told(run: Path, override: str, message: str) -> None:
    done = recsys(run.parent.parent, "run", "walks.yaml", override, "output=elsewhere")
    assert done.returncode != 0 and message in done.stderr
