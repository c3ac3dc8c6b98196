from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny_experiment import recsys

from pipelines.config_loader import load_experiment
from pipelines.config_problems import ConfigError
from pipelines.errors import DataError
from pipelines.stages.generative import device
from recsys.checkpoint import load_model
from recsys.models.tiger import Tiger

USERS, ITEMS, EVENTS = 48, 12, 7

CONFIG = """\
experiment: walks
dataset:
  name: walks
  source: {source}
  items: {{source: items.csv, id: item, title: title, features: {{kind: categorical}}}}
  split: {{method: leave_last_n}}
semantic_ids: {{tokeniser: {{name: category, columns: [kind]}}}}
evaluate: {{k: [1, 5], max_k: 8, bootstrap: 100, unmasked: true, auc: false}}
model:
  {{name: tiger, dim: 16, layers: 1, heads: 2, head_dim: 8, inner: 32, max_items: 3, beam: 8, dropout: 0.0,
   validation_users: 20, optimizer: {{lr: 0.02, warmup_steps: 10}}}}
train: {{epochs: 40, batch_size: 96, eval_every_epochs: 20, selection: ndcg@5, checkpoint_minutes: 0.001}}
tracking: {{enabled: false}}
variants:
  - {{name: popularity, model: {{name: popularity}}}}
  - {{name: tiger}}
"""


def write_walks(directory: Path) -> Path:
    """Every user steps through the items one by one, from a start of their own; four items are of a kind."""
    directory.mkdir()
    lines = [f"u{user},i{(user + step) % ITEMS},{3600 * step}" for user in range(USERS) for step in range(EVENTS)]
    (directory / "interactions.csv").write_text("user,item,timestamp\n" + "\n".join(lines) + "\n")
    kinds = ("soap", "brush", "cream")
    items = [f"i{item},Fine {kinds[item // 4]} no {item},{kinds[item // 4]}" for item in range(ITEMS)]
    (directory / "items.csv").write_text("item,title,kind\n" + "\n".join(items) + "\n")
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiger")
    source = write_walks(directory / "data")
    (directory / "walks.yaml").write_text(CONFIG.format(source=source))
    done = recsys(directory, "run", "walks.yaml")
    assert done.returncode == 0, done.stderr
    return directory / done.stdout.splitlines()[-1]


def test_the_whole_experiment_runs_and_codes_beat_popularity(run: Path) -> None:
    found = {v["name"]: v["metrics"] for v in json.loads((run / "metrics.json").read_bytes())["variants"]}
    assert found["tiger"]["test/recall@1"] > found["popularity"]["test/recall@1"] + 0.5
    assert found["tiger"]["test/recall_unmasked@5"] <= found["tiger"]["test/recall@5"]
    assert "valid/ndcg@5" in found["tiger"]


def test_a_finished_model_reads_train_and_validation_and_never_test(run: Path) -> None:
    model = load_model(run / "variants" / "tiger-s0" / "checkpoint")
    assert isinstance(model, Tiger)
    assert model.histories.lengths.tolist() == [EVENTS - 1] * USERS
    assert model.codes.widths == (4, 4) and model.codes.unique


def test_the_leak_audit_knows_what_was_trained_on(run: Path) -> None:
    checks = {check["name"]: check for check in json.loads((run / "dataset.json").read_bytes())["leak_audit"]}
    ours = {name: check["passed"] for name, check in checks.items() if "tiger" in name}
    assert {"training data of tiger, select", "training data of tiger, refit"} <= set(ours) and all(ours.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("semantic_ids=null", "tiger writes semantic ids: add a section `semantic_ids`"),
        ("semantic_ids.tokeniser={name: rq_kmeans}", "tiger needs one code an item: set semantic_ids.collisions to"),
        ("evaluate.auc=true", "tiger does not score the whole catalogue: set evaluate.auc to false"),
        ("train.lr_decay=0.5", "tiger has a schedule of its own, got 0.5; set it to 1"),
        ("train.selection=likelihood", "must be one of recall@K"),
    ],
)
def test_settings_that_a_generator_cannot_follow_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    directory = run.parent.parent
    monkeypatch.chdir(directory)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_experiment(str(directory / "walks.yaml"), [override])


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device("auto").type == "cpu"
    with pytest.raises(DataError, match=r"model\.device is cuda, but torch finds no GPU; set it to auto or cpu"):
        device("cuda")
