from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_experiment import recsys

from pipelines.config import Dataset as DatasetConfig
from pipelines.config_loader import load_experiment
from pipelines.config_problems import ConfigError
from pipelines.dataset import Dataset
from pipelines.errors import DataError, LeakError
from pipelines.ingest import ingest
from pipelines.runner import run_experiment
from pipelines.stages import sequence
from recsys.checkpoint import load_model
from recsys.models.ensemble import StandardisedEnsemble, VectorEnsemble
from recsys.models.item_knn import ItemKnn
from recsys.models.sequence_model import SequenceModel
from recsys.sequence_trainer import SequenceData

USERS, ITEMS, EVENTS = 60, 20, 8

CONFIG = """\
experiment: walks
dataset: {{name: walks, source: {source}, split: {{method: leave_last_n}}}}
budget: {{rows: 40%}}
evaluate: {{k: [1, 5], max_k: 10, bootstrap: 100, unmasked: true}}
model: {{name: sasrec, dim: 8, layers: 1, max_length: 6, negatives: {{count: 16}}, optimizer: {{lr: 0.02}}}}
train: {{epochs: 4, batch_size: 8, eval_every_epochs: 2, selection: recall@5, checkpoint_minutes: 0.001}}
tracking: {{enabled: false}}
variants:
  - {{name: popularity, model: {{name: popularity}}}}
  - {{name: sasrec}}
  - {{name: sasrec-modulo, compressor: {{name: modulo}}, train: {{epochs: 2, refit: false}}}}
  - name: hstu
    model: {{name: hstu, dim: 8, layers: 1, max_length: 6, loss: {{name: gbce}}, similarity: dot}}
    train: {{epochs: 2}}
  - name: content
    model: {{content: {{features: [{{name: spectral, dim: 8}}], hidden: [16]}}, augmentation: {{crop: 0.5}}}}
    train: {{refit: false}}
  - name: sum
    model: {{name: ensemble, members: [sasrec-modulo, content], grid: {{weight: [0, 0.5, 1]}}}}
    train: {{refit: false}}
  - {{name: knn, model: {{name: item_knn}}, train: {{refit: false}}}}
  - name: unlike
    model: {{name: ensemble, members: [knn, content], standardise: true, grid: {{weight: [0, 0.5, 1]}}}}
    train: {{refit: false}}
"""


def write_walks(directory: Path, order: str = "timestamp") -> Path:
    """Every user steps through the items one by one, from a start of their own; the file is not in that order."""
    directory.mkdir()
    lines = [
        f"u{user},i{(user + step) % ITEMS},{1_600_000_000 + 3600 * step}"
        for user in range(USERS)
        for step in range(EVENTS)
    ]
    shuffled = [lines[place] for place in np.random.default_rng(0).permutation(len(lines))]
    (directory / "interactions.csv").write_text(f"user,item,{order}\n" + "\n".join(shuffled) + "\n")
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sequence")
    source = write_walks(directory / "data")
    (directory / "walks.yaml").write_text(CONFIG.format(source=source))
    done = recsys(directory, "run", "walks.yaml")
    assert done.returncode == 0, done.stderr
    assert "recall_unmasked@5" in done.stdout
    return directory / done.stdout.splitlines()[-1]


def test_the_whole_experiment_runs_and_order_beats_popularity(run: Path) -> None:
    found = {v["name"]: v for v in json.loads((run / "metrics.json").read_bytes())["variants"]}
    assert list(found) == ["popularity", "sasrec", "sasrec-modulo", "hstu", "content", "sum", "knn", "unlike"]
    assert found["sasrec"]["metrics"]["test/recall@5"] > found["popularity"]["metrics"]["test/recall@5"] + 0.2
    for variant in found.values():
        masked, unmasked = (variant["metrics"][f"test/recall{kind}@5"] for kind in ("", "_unmasked"))
        assert unmasked <= masked and "test/ndcg_unmasked@1" in variant["metrics"]
    assert found["sasrec"]["table_rows"] == ITEMS + 1
    assert found["sasrec-modulo"]["table_rows"] == 0.4 * ITEMS + 1  # the budget is one of the only table's rows
    assert "recall_unmasked@5" in (run / "report.html").read_text()


def test_a_finished_model_reads_train_and_validation_and_never_test(run: Path) -> None:
    for name in ("sasrec", "sasrec-modulo", "hstu", "content"):
        model = load_model(run / "variants" / f"{name}-s0" / "checkpoint")
        assert isinstance(model, SequenceModel)
        assert model.histories.lengths.tolist() == [EVENTS - 1] * USERS


def test_an_ensemble_is_weighed_on_validation_and_serves_the_members_with_all_they_may_know(run: Path) -> None:
    found = {v["name"]: v for v in json.loads((run / "metrics.json").read_bytes())["variants"]}
    scores = [found[name]["metrics"]["valid/recall@5"] for name in ("sasrec-modulo", "content", "sum")]
    assert scores[2] >= max(scores[:2])  # 0 and 1 are among the weights
    assert found["sum"]["table_bytes"] == found["sasrec-modulo"]["table_bytes"] + found["content"]["table_bytes"]
    checkpoint = run / "variants" / "sum-s0" / "checkpoint"
    tried = json.loads((checkpoint / "selection.json").read_bytes())["tried"]
    assert [one["parameters"]["weight"] for one in tried] == [0.0, 0.5, 1.0]
    model, parts = load_model(checkpoint), [load_model(checkpoint / part) for part in ("first", "second")]
    assert isinstance(model, VectorEnsemble) and all(isinstance(part, SequenceModel) for part in parts)
    users = np.arange(USERS)
    expected = (1 - model.weight) * parts[0].scores(users) + model.weight * parts[1].scores(users)
    assert np.allclose(model.scores(users), expected, atol=1e-5)
    assert parts[1].histories.lengths.tolist() == [EVENTS - 1] * USERS  # type: ignore[union-attr]


def test_a_standardised_sum_has_members_without_vectors(run: Path) -> None:
    checkpoint = run / "variants" / "unlike-s0" / "checkpoint"
    model, parts = load_model(checkpoint), [load_model(checkpoint / part) for part in ("first", "second")]
    assert isinstance(model, StandardisedEnsemble) and isinstance(parts[0], ItemKnn)
    chosen = json.loads((checkpoint / "selection.json").read_bytes())
    assert chosen["on"] == "valid" and model.weight == chosen["parameters"]["weight"]
    assert chosen["recall@5"] == max(one["recall@5"] for one in chosen["tried"])
    assert f"grid of unlike-s0: {USERS}/{USERS}" in (run / "log.txt").read_text()
    users = np.arange(USERS)
    first, second = (part.scores(users) for part in parts)  # type: ignore[union-attr]
    scaled = [scores / scores.std(1, correction=0, keepdim=True) for scores in (first, second)]
    assert np.allclose(model.scores(users), (1 - model.weight) * scaled[0] + model.weight * scaled[1], atol=1e-4)


SUM = "{name: sum, model: {name: ensemble, members: [%s], grid: {weight: [0, 1]}}}"
UNLIKE = "{name: sum, model: {name: ensemble, members: [sasrec, sasrec]}, train: {refit: false}}"


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (SUM % "sasrec, gru", "'gru' is no variant above this one (there are: popularity, sasrec)"),
        (SUM % "sasrec, popularity", "'popularity' is popularity, must be a model of embeddings, as sasrec or mf; "),
        (SUM.replace("weight", "standardise") % "sasrec, sasrec", "the grid of an ensemble is of its weight alone"),
        (SUM % "sasrec, sasrec", "the member 'sasrec' is refitted on validation, which the grid chooses by"),
        (UNLIKE, "refit and selected_on must be those of the member 'sasrec'"),
    ],
)
def test_members_that_cannot_be_summed_are_refused(tmp_path: Path, variant: str, message: str) -> None:
    above = "  - {name: popularity, model: {name: popularity}}\n  - {name: sasrec}\n"
    config = CONFIG.format(source=write_walks(tmp_path / "data")).split("variants:")[0]
    (tmp_path / "sum.yaml").write_text(f"{config}variants:\n{above}  - {variant}\n")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_experiment(str(tmp_path / "sum.yaml"))


def test_the_leak_audit_knows_what_was_trained_on(run: Path) -> None:
    checks = {check["name"]: check for check in json.loads((run / "dataset.json").read_bytes())["leak_audit"]}
    ours = {name: check["passed"] for name, check in checks.items() if "sasrec" in name or "hstu" in name}
    assert {"training data of sasrec, select", "training data of sasrec, refit"} <= set(ours)
    assert all(ours.values()), ours


def test_training_on_held_out_sequences_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit hashes the sequences that were trained on, not what they should have been."""

    def leaking(dataset: Dataset, _: object) -> SequenceData:
        every = dataset.sequences("train", "test")
        return SequenceData(every, dataset.matrix("valid"), every)

    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sequence, "sequence_data", leaking)
    (tmp_path / "walks.yaml").write_text(CONFIG.format(source=write_walks(tmp_path / "data")))
    changes = ["variants=[sasrec]", "train.epochs=1", "model.loss={name: softmax}", f"output={tmp_path / 'runs'}"]
    with pytest.raises(LeakError, match="training data of sasrec, select: made from graph"):
        run_experiment(load_experiment(str(tmp_path / "walks.yaml"), changes), quiet=True)


def test_a_user_is_recommended_to(run: Path) -> None:
    done = recsys(run.parent.parent, "recommend", str(run), "--user", "u3", "--variant", "sasrec")
    assert done.returncode == 0, done.stderr
    assert "i" in done.stdout


@pytest.mark.parametrize(
    ("variant", "override", "message"),
    [
        ("sasrec", "model.heads=3", "heads must divide dim, got 3 heads for dim 8"),
        ("sasrec", "train.precision=bfloat16", "sequence models train in float32, got 'bfloat16'"),
        ("sasrec-modulo", "model.content={features: [{name: spectral}]}", "so that none is compressed; remove one of"),
        ("content", "model.table_dtype=bfloat16", "model.table_dtype: model.content stands for the item table"),
        ("content", "model.backend=fbgemm", "by Adam, got 'fbgemm'; set it to 'torch'"),
        ("content", "model.optimizer.name=adagrad", "by Adam, got 'adagrad'; set it to 'adam'"),
        ("content", "model.optimizer.weight_decay=0.1", "by Adam, got 0.1; set it to 0.0"),
        (
            "content",
            "model.content.hidden=[0]",
            "model.content.hidden.0: got 0: input should be greater",
        ),
        (
            "content",
            "model.content.features=[{name: matrix, source: a.npy}]",
            "features.0.source: 'a.npy' is no file",
        ),
        (
            "sasrec",
            "variants.sasrec.compressor={name: semantic_ngram, semantic: {codes: graph, users: frequency}}",
            "semantic.users: the model has no table of users; remove it",
        ),
        ("sasrec", "train.lr_decay=0.5", "sequence models keep their learning rate, got 0.5; set it to 1"),
        ("sasrec", "model.loss={name: bpr}", "name is 'bpr', must be one of bce, gbce, softmax, sampled_softmax"),
    ],
)
def test_settings_that_a_sequence_model_cannot_follow_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, variant: str, override: str, message: str
) -> None:
    directory = run.parent.parent
    monkeypatch.chdir(directory)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_experiment(str(directory / "walks.yaml"), [override, f"variants=[{variant}]"])


def open_walks(directory: Path, order: str) -> Dataset:
    settings = {"name": "walks", "source": str(write_walks(directory / "data", order))}
    split = {"method": "leave_last_n" if order == "timestamp" else "user_ratio"}
    config = DatasetConfig.model_validate({**settings, "split": split})
    return ingest(config, directory / "dataset", lambda *_: None)


def test_sequences_are_in_the_order_of_time(tmp_path: Path) -> None:
    dataset = open_walks(tmp_path, "timestamp")
    sequences = dataset.sequences("train", "valid")
    raw_users, raw_items = dataset.raw_user_ids(), dataset.raw_item_ids()
    for user in (0, 17, USERS - 1):
        first = int(raw_users[user].removeprefix("u"))
        events = sequences.items[sequences.offsets[user] : sequences.offsets[user + 1]]
        expected = [f"i{(first + step) % ITEMS}" for step in range(EVENTS - 1)]
        assert [raw_items[item] for item in events] == expected
    assert sequences.times is not None and np.diff(sequences.times[: EVENTS - 1]).tolist() == [3600] * (EVENTS - 2)


def test_data_without_an_order_have_no_sequences(tmp_path: Path) -> None:
    dataset = open_walks(tmp_path, "something_else")
    with pytest.raises(DataError, match=r"no timestamp and no position, .* set columns.timestamp"):
        dataset.sequences("train")


def test_the_encoder_has_the_learning_rate_of_the_table_or_its_own(tmp_path: Path) -> None:
    (tmp_path / "walks.csv").write_text("user,item,time\n")
    config = tmp_path / "walks.yaml"
    config.write_text(CONFIG.format(source=tmp_path / "walks.csv"))
    for changes, lr in (([], 0.02), (["model.dense_lr=0.003"], 0.003)):
        variant = load_experiment(str(config), [*changes, "variants=[sasrec]"]).variants[0]
        assert sequence.fit_settings(variant.model, variant.train).lr == lr
