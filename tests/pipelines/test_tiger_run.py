from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from tiny_experiment import recsys

from embeddings.semantic_id.codes import SemanticCodes
from pipelines.code_paths import path_accuracy, prefixes
from pipelines.config_loader import load_experiment
from pipelines.config_problems import ConfigError
from pipelines.errors import DataError
from pipelines.run_directory import open_dataset
from pipelines.stages.generative import device
from recsys.checkpoint import load_model
from recsys.models.tiger import Tiger
from tests.recsys.tiger_fixture import tiger

USERS, ITEMS, EVENTS = 48, 12, 7
KINDS = ("soap", "brush", "cream")

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
    items = [f"i{item},Fine {KINDS[item // 4]} no {item},{KINDS[item // 4]}" for item in range(ITEMS)]
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


def test_a_recommendation_is_explained_by_the_codes_that_were_written(run: Path) -> None:
    asked = ("recommend", str(run), "--user", "u3", "--variant", "tiger", "--explain", "--k", "3")
    shown = recsys(run.parent.parent, *asked)
    assert shown.returncode == 0, shown.stderr
    stored = json.loads(recsys(run.parent.parent, *asked, "--json").stdout)
    for item in stored["items"]:
        kind, own = item["because"]
        name = item["title"].split()[1]
        assert (kind["items"], own["items"]) == (4, 1) and kind["codes"] == own["codes"][:1]
        assert {f"kind={name}", name} <= set(kind["common"]) and own["common"] == []
        # u3 went from i3 to i8; i9 is the test item
        expected = [f"Fine {name} no {place}" for place in range(8, 2, -1) if KINDS[place // 4] == name]
        assert kind["seen"] == expected[:3] and own["seen"] == []
        assert 0 < own["weight"] <= kind["weight"] <= 1
        assert own["weight"] == pytest.approx(np.exp(item["score"]), rel=1e-4)
        assert f"{kind['codes'][0]}: 4 items; in common: " in shown.stdout


def test_a_sweep_gives_a_generator_its_codes(run: Path) -> None:
    parameters = "{train.batch_size: {type: categorical, choices: [48]}, model.dim: {type: categorical, choices: [8]}}"
    settings = (f"search={{parameters: {parameters}}}", "train.epochs=2", "train.eval_every_epochs=1")
    done = recsys(run.parent.parent, "sweep", "walks.yaml", *settings, "--trials", "1", "--quiet")
    assert done.returncode == 0, done.stderr
    found = json.loads((run.parent.parent / done.stdout.strip()).with_name("trials.json").read_bytes())
    values = {"train.batch_size": 48, "model.dim": 8}
    assert [(trial["status"], trial["values"]) for trial in found] == [("complete", values)]


def test_codes_of_another_catalogue_are_refused(run: Path) -> None:
    with pytest.raises(DataError, match=r"were made for catalogue '' of 30 items, .*run the experiment again"):
        prefixes(tiger(), open_dataset(run), 0, [0])


def test_the_report_tells_how_far_the_paths_are_right(run: Path) -> None:
    paths = json.loads((run / "variants" / "tiger-s0" / "code_paths.json").read_bytes())
    metrics = json.loads((run / "metrics.json").read_bytes())["variants"][1]["metrics"]
    product = np.prod([level["after_right"] for level in paths["levels"]])
    assert product == pytest.approx(metrics["test/recall@1"])
    assert paths["recommended"] == 1.0
    assert "How far the first item goes the right way" in (run / "report.html").read_text()


def test_a_model_with_a_table_of_its_own_is_no_reference_line(run: Path) -> None:
    drawing = (run / "plots" / "pareto.svg").read_text()
    assert drawing.count(">tiger</text>") == 1 and drawing.count(">popularity</text>") == 1


def test_accuracy_after_right_and_wrong_prefixes_by_hand() -> None:
    codes = SemanticCodes(np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.int32), (2, 2))
    lists = np.array([[0, 1], [1, 0], [2, 0], [-1, -1], [1, 0]], dtype=np.int32)
    relevant = csr_array((np.ones(4), ([0, 1, 2, 3], [0, 0, 0, 0])), shape=(5, 4))
    found = path_accuracy(codes, lists, relevant)
    first, second = found["levels"]
    assert (first["right_users"], first["wrong_users"], first["after_wrong"]) == (3, 0, None)
    assert first["after_right"] == pytest.approx(2 / 3)
    assert (second["after_right"], second["after_wrong"], second["wrong_users"]) == (0.5, 1.0, 1)
    assert found["recommended"] == 0.75


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("semantic_ids=null", "tiger writes semantic ids: add a section `semantic_ids`"),
        ("semantic_ids.tokeniser={name: rq_kmeans}", "tiger needs one code an item: set semantic_ids.collisions to"),
        ("evaluate.auc=true", "tiger does not score the whole catalogue: set evaluate.auc to false"),
        ("train.lr_decay=0.5", "tiger has a schedule of its own, got 0.5; set it to 1"),
        ("train.positives=users", "tiger reads every user once an epoch, got 'users'"),
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
