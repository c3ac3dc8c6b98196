"""``recsys score``: rows as people have them, and input of which there is too little."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file
from tiny_experiment import recsys

from pipelines.cache import Cache
from pipelines.config_loader import load_experiment
from pipelines.config_ranking import RankingExperiment, TableData
from pipelines.errors import DataError
from pipelines.ranking.data import prepare
from pipelines.ranking.encode import _as_train
from pipelines.ranking.runner import run_ranking
from pipelines.ranking.scoring import Scorer, score_file
from pipelines.run_files import RunFiles

CONFIG = """\
task: ctr
experiment: scored
dataset:
  format: table
  name: scored
  source: {source}
  label: {{column: stars, at_least: 4}}
  joins: [{{source: items.parquet, key: item, columns: [tags]}}]
  fields: [user, item, tags, shop]
  numeric: {{price: standardise, clicks: log_bucket, fixed: standardise}}
  split: {{method: order, valid: 0.2, test: 0.2}}
model: {{name: dcn_v2, dim: 4, hidden: [8], optimizer: {{name: adam, lr: 0.02}}}}
train: {{epochs: 2, batch_size: 64}}
tracking: {{uri: "sqlite:///{source}/mlflow.db", system_metrics: false}}
output: {source}/runs
variants:
  - {{name: small}}
  - name: hashed
    compressor: {{name: modulo}}
    field_compressors: {{clicks: {{name: double_hash, rows: 50%}}, tags: {{name: graphhash, rows: 1}}}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Path:
    """``shop`` and ``fixed`` are constant."""
    place = tmp_path_factory.mktemp("score")
    rng = np.random.default_rng(0)
    count = 500
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 20, count),
            "item": [f"i{item}" for item in rng.integers(0, 10, count)],
            "shop": ["only"] * count,
            "price": pl.Series(rng.random(count)).set(pl.Series(rng.random(count) < 0.1), None),
            "clicks": rng.integers(0, 50, count),
            "fixed": [2.5] * count,
            "stars": rng.integers(1, 6, count),
        }
    )
    frame.write_parquet(place / "interactions.parquet")
    tags = [["b", "a"], ["a"]] * 5
    pl.DataFrame({"item": [f"i{item}" for item in range(10)], "tags": tags}).write_parquet(place / "items.parquet")
    (place / "config.yaml").write_text(CONFIG.format(source=place))
    shutil.copy(migrated, place / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECSYS_CACHE", str(place / "cache"))
        experiment = load_experiment(str(place / "config.yaml"))
        assert isinstance(experiment, RankingExperiment)
        return run_ranking(experiment, quiet=True)


def test_rows_of_the_test_split_get_their_scores_again(run: Path) -> None:
    events = pl.read_parquet(run.parents[1] / "interactions.parquet")[400:]
    found = Scorer.open(run, "hashed").score(events.drop("stars"))
    scores = load_file(run / "variants" / "hashed-s0" / "scores.safetensors")["scores"]
    np.testing.assert_array_equal(found["log_odds"].to_numpy().astype(np.float32), scores)
    np.testing.assert_allclose(found["probability"].to_numpy(), 1 / (1 + np.exp(-scores.astype(np.float64))))
    events.write_csv(run / "rows.csv")
    done = recsys(run, "score", str(run), "rows.csv", "--variant", "hashed", "--out", "scored.parquet")
    assert done.returncode == 0, done.stderr
    again = pl.read_parquet(run / "scored.parquet")
    np.testing.assert_array_equal(again["log_odds"].to_numpy().astype(np.float32), scores)


def test_the_model_that_mlflow_has_scores_rows(run: Path) -> None:
    import mlflow.pyfunc

    store = f"sqlite:///{run.parents[1]}/mlflow.db"
    mlflow.set_tracking_uri(store)
    client = mlflow.MlflowClient(store)
    (model,) = client.search_logged_models([client.get_experiment_by_name("scored").experiment_id], "name='hashed-s0'")
    loaded = mlflow.pyfunc.load_model(model.model_uri)
    events = pl.read_parquet(run.parents[1] / "interactions.parquet")[400:].drop("stars")
    found = loaded.predict(events.to_pandas())
    scores = load_file(run / "variants" / "hashed-s0" / "scores.safetensors")["scores"]
    np.testing.assert_array_equal(found["log_odds"].to_numpy().astype(np.float32), scores)


def test_unseen_values_score_alike_and_missing_ones_are_missing(run: Path) -> None:
    scorer = Scorer.open(run)
    row = {"user": 3, "item": "i1", "tags": "a", "shop": "only", "price": 0.5, "clicks": 3, "fixed": 2.5}
    changes = [{"user": 999}, {"user": "nobody"}, {"user": 3.5}, {"user": None}]
    odds = [float(scorer.log_odds(pl.DataFrame([row | change]))[0]) for change in [{}, *changes]]
    assert np.isfinite(odds).all()
    assert odds[1] == odds[2] == odds[3] == odds[4], "train has no missing user, so that a missing one is unseen"
    assert odds[0] != odds[1]
    text = float(scorer.log_odds(pl.DataFrame([{name: str(value) for name, value in row.items()}]))[0])
    assert text == odds[0]
    nothing = float(scorer.log_odds(pl.DataFrame([row | {"price": None, "clicks": None, "fixed": None}]))[0])
    assert np.isfinite(nothing)
    assert len(scorer.log_odds(pl.DataFrame([row])[:0])) == 0


@pytest.mark.parametrize(
    ("price", "message"),
    [
        (float("inf"), "'price' must have finite numbers, but row 1 has inf"),
        (1e300, "'price' is 3.*e.300 standard dev"),
    ],
)
def test_numbers_that_have_no_score_are_told(run: Path, price: float, message: str) -> None:
    row = {"user": 3, "item": "i1", "tags": "a", "shop": "only", "clicks": 3, "fixed": 2.5}
    rows = [row | {"price": 0.5}, row | {"price": price}]
    with pytest.raises(DataError, match=message):
        Scorer.open(run).score(pl.DataFrame(rows))


def test_a_score_that_is_no_number_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer.open(run)
    monkeypatch.setattr(scorer.ranker, "scores", lambda events: np.array([0.5, np.nan], np.float32))
    row = {"user": 3, "item": "i1", "tags": "a", "shop": "only", "price": 0.5, "clicks": 3, "fixed": 2.5}
    with pytest.raises(DataError, match="the log-odds of row 1 are nan; its numbers are too far from train's"):
        scorer.score(pl.DataFrame([row, row]))


def test_csv_on_stdout_is_the_answer(run: Path) -> None:
    (run / "one.csv").write_text("user,item,shop,price,clicks,fixed\n1,i1,only,0.5,3,2.5\n")
    done = recsys(run, "score", str(run), "one.csv")
    head, line = done.stdout.strip().splitlines()
    assert head.endswith("log_odds,probability")
    assert 0 < float(line.split(",")[-1]) < 1


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_ids_that_turn_to_text_late_are_unseen(run: Path, tmp_path: Path, suffix: str) -> None:
    row = {"user": 3, "item": "i1", "shop": "only", "price": 0.5, "clicks": 3, "fixed": 2.5}
    users: list[Any] = [3] * 150 + ["3.0", "03", "nobody", None]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row | {"user": user}) + "\n" for user in users))
    else:
        frame = pl.DataFrame([row | {"user": user if user is None else str(user)} for user in users])
        frame.write_csv(path, separator="\t" if suffix == ".tsv" else ",")
    score_file(run, path, out=tmp_path / "scored.parquet")
    scored = pl.read_parquet(tmp_path / "scored.parquet")
    assert scored["user"].to_list() == [None if user is None else str(user) for user in users]
    odds = scored["log_odds"].to_numpy()
    assert np.ptp(odds[:151]) < 1e-6, "3 and 3.0 are the user 3"
    assert np.ptp(odds[151:]) < 1e-6 and abs(odds[151] - odds[0]) > 1e-4, "03 is a user whom train does not have"


def test_text_of_a_number_is_the_number_that_train_has() -> None:
    cases: list[tuple[list[Any], Any, list[bool]]] = [
        (["7", "7.0", "07", "x", None], pl.Int64(), [False, False, True, True, False]),
        (["7", "7.50", "x", None], pl.Float64(), [False, False, True, False]),
        ([7, None], pl.String(), [False, False]),
    ]
    for given, kind, unseen in cases:
        assert _as_train(pl.Series(given), kind)[1].tolist() == unseen


def test_a_damaged_file_of_rows_is_told(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read \(.*fetch it again"):
        score_file(run, path)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("user,item,price,clicks,fixed\n1,i1,1,1,1\n", (), "the rows have no column 'shop'"),
        (
            "user,item,shop,price,clicks,fixed\n1,i1,s,cheap,1,1\n",
            (),
            "'price' must have finite numbers, but row 0 has 'cheap'",
        ),
        ("user,item,shop,price,clicks,fixed\n", ("--variant", "smal"), "has no variant 'smal'; did you mean small"),
        ("user,item\n1,i1,2,3\n", (), "wrong.csv: cannot be read (found more fields than defined"),
        (
            "user,item,shop,item\n1,i1,s,i1\n",
            (),
            "wrong.csv, line 1: column 'item' occurs twice (places 2 and 4); rename",
        ),
        ("user\n", ("--out", "x.txt"), r"scored rows are written as .csv or .parquet, got 'x.txt'"),
    ],
)
def test_rows_that_cannot_be_scored_are_told(run: Path, text: str, arguments: tuple[str, ...], message: str) -> None:
    (run / "wrong.csv").write_text(text)
    done = recsys(run, "score", str(run), "wrong.csv", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_files_that_are_not_there_are_told(run: Path, tmp_path: Path) -> None:
    done = recsys(run, "score", str(run), "rows.xlsx")
    assert "rows to score are an existing .csv, .tsv, .parquet or .jsonl file, got rows.xlsx" in done.stderr
    with pytest.raises(DataError, match=r"encoding.json does not exist; run `recsys run` again"):
        from pipelines.ranking.encode import Encoding

        Encoding.load(tmp_path)


@pytest.mark.parametrize(
    ("split", "rows", "positives", "refused"),
    [
        *((split, rows, n, True) for split, rows in (("test", 100), ("valid", 99)) for n in (0, rows)),
        *(("test", 100, n, n in {1, 99}) for n in (1, 2, 98, 99)),
        *(("valid", 99, n, False) for n in (1, 98)),
    ],
)
def test_too_few_labels_of_a_class_are_told_before_training(
    run: Path, tmp_path: Path, split: str, rows: int, positives: int, *, refused: bool
) -> None:
    events = pl.read_parquet(run.parents[1] / "interactions.parquet")
    end = len(events) if split == "test" else len(events) - 100
    stars = events["stars"].to_numpy().copy()
    stars[end - rows : end] = [5] * positives + [1] * (rows - positives)
    events.with_columns(stars=stars).write_parquet(tmp_path / "interactions.parquet")
    pl.read_parquet(run.parents[1] / "items.parquet").write_parquet(tmp_path / "items.parquet")
    (tmp_path / "config.yaml").write_text(CONFIG.format(source=tmp_path))
    experiment = load_experiment(str(tmp_path / "config.yaml"))
    assert isinstance(experiment, RankingExperiment)
    data = prepare(Cache(tmp_path / "cache"), experiment.dataset)
    if not refused:
        data.require_both_classes()
        return
    message = (
        f"the {split} split of scored has {positives} events with label 1 and {rows - positives} with label 0; a ranker"
        f" needs {2 if split == 'test' else 1} of each in {split}, change dataset.split or"
    )
    with pytest.raises(DataError, match=message):
        data.require_both_classes()


def test_a_run_says_what_scores_it_and_has_its_encoding(run: Path) -> None:
    facts = json.loads((run / "fields" / "encoding.json").read_bytes())
    assert facts["fields"] == ["user", "item", "tags", "shop", "clicks"]
    done = recsys(run, "recommend", str(run), "--user", "1")
    assert "and recsys score gives this one's probabilities of events" in done.stderr
    assert isinstance(load_experiment(str(run / "config.yaml")).dataset, TableData)
    events = pl.read_parquet(run.parents[1] / "interactions.parquet")[400:]
    labels, users = RunFiles(run).test_events()
    assert labels.tolist() == (events["stars"] >= 4).cast(pl.Int8).to_list()
    assert users.tolist() == events["user"].to_list(), "train has all users, whose ids are sorted"
