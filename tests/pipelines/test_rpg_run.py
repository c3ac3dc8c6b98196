from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_tiger_run import EVENTS, ITEMS, KINDS, USERS, write_walks
from tiny_experiment import recsys

from pipelines.config_loader import load_experiment
from pipelines.config_problems import ConfigError
from pipelines.errors import DataError
from pipelines.recommend import recommend
from pipelines.run_directory import open_dataset
from pipelines.shared_digits import SharedDigits, shared_digits
from recsys.checkpoint import load_model
from recsys.models.rpg import Rpg
from tests.recsys.rpg_fixture import rpg

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
  gates: {{max_error: 1.0}}
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


def test_the_digits_that_speak_for_an_item_are_those_of_the_equation(run: Path) -> None:
    model, dataset = load_model(run / "variants" / "rpg-s0" / "checkpoint"), open_dataset(run)
    assert isinstance(model, Rpg)
    titles, codes = dataset.item_titles(), model.codes.codes
    length = 0
    for user in range(USERS):
        logs = model.log_probabilities(np.array([user]))[0].double().numpy().reshape(2, 6)
        history = model.histories.items[model.histories.offsets[user] :][: EVENTS - 1].tolist()
        for item, found in enumerate(shared_digits(model, dataset, user, list(range(ITEMS)), 3)):
            gains = {}
            for other in history:
                both = [
                    (logs[place, code], place)
                    for place, code in enumerate(codes[item])
                    if codes[other][place] == code and logs[place, code] > -np.log(6)
                ]
                gains[titles[other]] = sum(log + np.log(6) for log, _ in both), sorted(both, reverse=True)
            best = sorted((gain for gain, _ in gains.values() if gain > 0), reverse=True)[:3]
            assert [gains[reason.seen][0] for reason in found] == pytest.approx(best)
            for reason in found:
                both = gains[reason.seen][1]
                assert reason.digits == tuple((place, codes[item, place]) for _, place in both)
                assert reason.weight == pytest.approx(np.exp(np.mean([log for log, _ in both])))
                length = max(length, len(both))
    assert length


def test_a_recommendation_is_explained_by_digits_of_the_history(run: Path) -> None:
    explained = [recommend(run, f"u{user}", variant="rpg", explain=True) for user in range(USERS)]
    reasons = [(found, reason) for found in explained for item in found.items for reason in item.because]
    assert reasons, "nobody's history shares a likely digit with an unseen item"
    for found, reason in reasons:
        assert isinstance(reason, SharedDigits) and reason.seen in {item.title for item in found.history}
        assert f"of 2 digits of {reason.seen}: " in found.text()
    silent = [found.note for found in explained if not any(item.because for item in found.items)]
    assert set(silent) == {"no likely digit connects these items with the user's history"}


def test_digits_of_another_catalogue_explain_nothing(run: Path) -> None:
    with pytest.raises(DataError, match=r"were made for catalogue '' of 25 items, .*run the experiment again"):
        shared_digits(rpg(), open_dataset(run), 0, [0], 3)


def test_many_digits_are_cut_short_in_the_line() -> None:
    reason = SharedDigits("Soap", tuple((place, 7) for place in range(9)), 32, 0.5)
    assert reason.text() == "9 of 32 digits of Soap: 0=7, 1=7, 2=7, 3=7, 4=7, 5=7, ..."
    assert reason.printable(str.upper).seen == "SOAP"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("semantic_ids=null", "rpg predicts semantic ids: add a section `semantic_ids`, with the tokeniser opq"),
        ("model.heads=3", "heads must divide dim, got 3 heads for dim 16"),
        ("train.precision=bfloat16", "sequence models train in float32, got 'bfloat16'"),
        ("train.lr_decay=0.5", "sequence models keep their learning rate, got 0.5; set it to 1"),
        ("train.positives=users", "sequence models read every user once an epoch, got 'users'"),
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
