"""The command line, from the outside: exit codes, messages, the last line of stdout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file
from tiny_experiment import ITEMS, USERS, env, recsys, write_tiny

from pipelines.config_problems import ConfigError
from pipelines.dataset import Dataset
from pipelines.run_directory import open_dataset
from pipelines.run_files import RunFiles


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished run of the tiny experiment."""
    directory = tmp_path_factory.mktemp("cli")
    write_tiny(directory)
    done = recsys(directory, "run", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    (directory / "stdout").write_text(done.stdout)
    (directory / "stderr").write_text(done.stderr)
    return directory


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """The run directory, relative to ``place``."""
    return Path((place / "stdout").read_text().splitlines()[-1])


def test_run_prints_a_table_a_next_command_and_the_run_directory_last(place: Path, run: Path) -> None:
    shown = (place / "stdout").read_text()
    assert run.parent == Path("runs")
    assert run.name.startswith("tiny-")
    for variant in ("popularity", "item-knn", "mf-full", "mf-graphhash", "mf-modulo"):
        assert variant in shown
    assert f"recsys recommend {run} --user" in shown
    assert "data: tiny, 60 users, 40 items" in (place / "stderr").read_text()


def test_the_run_directory_has_every_file(place: Path, run: Path) -> None:
    files = RunFiles(place / run)
    found = files.metrics()
    assert [(v.name, v.seed) for v in found.variants] == [
        (name, 0) for name in ("popularity", "item-knn", "mf-full", "mf-graphhash", "mf-modulo")
    ]
    assert found.command == "recsys run tiny.yaml"
    assert found.versions["torch"]
    assert files.report_file.stat().st_size > 10_000
    assert "finished in" in files.log_file.read_text()
    audit = {check["name"]: check["passed"] for check in files.dataset()["leak_audit"]}
    assert (
        audit["graph"]
        is audit["clusters (louvain)"]
        is audit["id maps (modulo)"]
        is audit["counts of popularity"]
        is True
    )
    for variant in ("mf-full", "mf-graphhash", "mf-modulo"):
        assert (
            audit[f"negatives of {variant}, select: counts"] is audit[f"negatives of {variant}, refit: counts"] is True
        )
    compression = files.compression()
    assert compression is not None
    assert set(compression.maps) == {"full", "graphhash", "modulo"}
    assert files.config().experiment == "tiny"
    for variant in found.variants:
        assert files.evaluation(variant.name, 0) is not None
        per_user = files.per_user(variant.name, 0)
        assert per_user is not None
        for name in per_user.columns[2:]:  # the values as stored are those that the means were made from
            assert per_user[name].drop_nans().mean() == pytest.approx(variant.metrics[f"test/{name}"]), name
        assert files.top_items(variant.name, 0) is not None
    rows = {variant.name: variant.table_rows for variant in found.variants}
    assert rows["mf-graphhash"] == rows["mf-modulo"] < rows["mf-full"]
    assert found.variants[2].table_bytes == rows["mf-full"] * 8 * 4


def test_models_learn_the_planted_groups(place: Path, run: Path) -> None:
    recall = {v.name: v.metrics["test/recall@5"] for v in RunFiles(place / run).metrics().variants}
    assert recall["mf-full"] > 1.5 * recall["popularity"]


def test_a_rerun_computes_nothing_and_finds_the_same(place: Path, run: Path) -> None:
    before = RunFiles(place / run).metrics()
    done = recsys(place, "run", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert "epoch" not in done.stderr
    after = RunFiles(place / run).metrics()
    assert after.variants == before.variants


def test_a_parity_run_selects_on_test_and_says_so(place: Path) -> None:
    changes = ["train.selected_on=test", "variants=[popularity, mf-full]", "experiment=parity"]
    done = recsys(place, "run", "tiny.yaml", *changes, "variants.mf-full.model.negatives.reject_positives=true")
    assert done.returncode == 0, done.stderr
    files = RunFiles(place / done.stdout.splitlines()[-1])
    assert files.metrics().selected_on == "test"
    history = files.history("mf-full", 0)
    assert {epoch.phase for epoch in history} == {"select"}
    judged = [epoch.metrics["recall@20"] for epoch in history if epoch.metrics]
    mf = files.metrics().variants[1].metrics
    assert mf["test/recall@20"] == pytest.approx(max(judged), abs=1e-12)
    assert "valid/recall@20" not in mf
    report = files.report_file.read_text()
    assert "Parity protocol." in report and "validation recall@20" not in report
    dataset = Dataset.open(files.directory / (files.directory / "dataset.path").read_text().strip())
    audit = {check["name"]: check["detail"] for check in files.dataset()["leak_audit"]}
    pairs = dataset.matrix("train", "valid").nnz
    assert audit["negatives of mf-full, select: rejected pairs"] == f"all {pairs} pairs are of train+valid"
    assert audit["counts of popularity"] == "equal to the counts of train+valid"


def test_mlflow_gets_the_facts_the_plots_and_the_report(place: Path, run: Path, migrated: Path) -> None:
    from mlflow import MlflowClient

    shutil.copy(migrated, place / "tracked.db")
    uri = f"sqlite:///{place / 'tracked.db'}"
    tracking = ["tracking.enabled=true", f"tracking.uri={uri}", "tracking.system_metrics=false"]
    done = recsys(place, "run", "tiny.yaml", *tracking)
    assert done.stdout.splitlines()[-1] == str(run)
    assert "did not take everything" not in done.stderr
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    found = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    names = {f"{v.name}-s0" for v in RunFiles(place / run).metrics().variants}
    assert set(found) == {run.name, *names}
    parent = found[run.name].info.run_id
    files = {"config.yaml", "metrics.json", "dataset.json", "compression.json", "plots", "report.html"}
    assert {file.path for file in client.list_artifacts(parent)} == files
    plots = {file.path for file in client.list_artifacts(parent, "plots")}
    assert {"plots/pareto.svg", "plots/curve-recall.svg", "plots/learning-loss.svg", "plots/buckets-users.svg"} <= plots
    trained = found["mf-full-s0"].info.run_id
    assert len(client.get_metric_history(trained, "select/loss")) == 8


def test_a_server_that_is_away_is_told_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracking = ["tracking.enabled=true", "tracking.uri=http://127.0.0.1:9", "tracking.system_metrics=false"]
    done = recsys(place, "run", "tiny.yaml", "experiment=away", "variants=[popularity]", *tracking)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("did not take everything") == 1


def test_the_resolved_configuration_is_the_same_experiment(place: Path, run: Path) -> None:
    done = recsys(place, "run", str(run / "config.yaml"), "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{run}\n"


def test_recommend_shows_titles_and_json(place: Path, run: Path) -> None:
    done = recsys(place, "recommend", str(run), "--user", "u3", "--variant", "mf-graphhash", "--k", "4", "--json")
    found = json.loads(done.stdout)
    assert (found["variant"], found["user"], found["fallback"]) == ("mf-graphhash", "u3", False)
    assert len(found["items"]) == 4
    history = {item["id"] for item in found["history"]}
    assert not history & {item["id"] for item in found["items"]}
    assert len(history) == found["history_size"]
    assert all(item["title"] == f"Title <{item['id'][1:]}>" for item in found["items"])
    scores = [item["score"] for item in found["items"]]
    assert scores == sorted(scores, reverse=True)
    text = recsys(place, "recommend", run.name, "--user", "u3").stdout
    assert "history of user u3:" in text
    assert "recommends:" in text


def test_an_unknown_user_gets_popular_items_and_a_suggestion(place: Path, run: Path) -> None:
    done = recsys(place, "recommend", str(run), "--user", "u333", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["fallback"], found["variant"]) == (0, True, "popularity")
    assert "did you mean u33" in found["note"]
    assert len(found["items"]) == 10


def test_export_writes_vectors_whose_products_are_the_scores(place: Path, run: Path) -> None:
    done = recsys(place, "export", str(run), "--variant", "mf-full", "--out", "vectors")
    assert done.returncode == 0, done.stderr
    out = place / "vectors"
    vectors = load_file(out / "vectors.safetensors")
    assert vectors["users"].shape == (USERS, 8)
    assert vectors["items"].shape == (ITEMS, 8)
    users, items = pl.read_parquet(out / "users.parquet"), pl.read_parquet(out / "items.parquet")
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["variant"], manifest["dim"], manifest["score"]) == ("mf-full", 8, "inner product")
    told = recsys(place, "recommend", str(run), "--user", "u3", "--variant", "mf-full", "--k", "1", "--json")
    best = json.loads(told.stdout)["items"][0]
    user = users["raw_id"].to_list().index("u3")
    item = items["raw_id"].to_list().index(best["id"])
    assert np.isclose(vectors["users"][user] @ vectors["items"][item], best["score"], atol=1e-6)
    again = recsys(place, "export", str(run), "--variant", "mf-full", "--out", "vectors")
    assert (again.returncode, again.stderr.splitlines()[0][:28]) == (2, "error: vectors is there alre")


def test_export_writes_the_training_graph_with_raw_ids_and_titles(place: Path, run: Path) -> None:
    done = recsys(place, "export", str(run), "--graph", "graphs/train.graphml")
    assert (done.returncode, done.stdout) == (0, "graphs/train.graphml\n"), done.stderr
    graph = nx.read_graphml(place / "graphs" / "train.graphml")
    dataset = open_dataset(place / run)
    assert (graph.number_of_nodes(), graph.number_of_edges()) == (USERS + ITEMS, dataset.matrix("train").nnz)
    names = {(node["raw_id"], node["name"]) for _, node in graph.nodes(data=True) if node["bipartite"] == 1}
    assert names == {(f"i{item}", f"Title <{item}>") for item in range(ITEMS)}
    raw = [dataset.raw_user_ids(), dataset.raw_item_ids()]
    pairs = {(raw[0][user], raw[1][item]) for user, item in zip(*dataset.matrix("train").nonzero(), strict=True)}
    ids = nx.get_node_attributes(graph, "raw_id")
    assert {tuple(sorted((ids[a], ids[b]), reverse=True)) for a, b in graph.edges} == pairs
    for name in ("few", "again"):
        done = recsys(place, "export", str(run), "--graph", f"{name}.graphml", "--sample-users", "5")
        assert done.returncode == 0, done.stderr
    assert (place / "few.graphml").read_bytes() == (place / "again.graphml").read_bytes()
    few = nx.read_graphml(place / "few.graphml")
    assert sum(node.startswith("user:") for node in few) == 5
    again = recsys(place, "export", str(run), "--graph", "few.graphml")
    assert (again.returncode, again.stderr) == (
        2,
        "error: few.graphml is there already; name a file that does not exist\n",
    )


def test_export_writes_the_items_with_the_users_they_share(place: Path, run: Path) -> None:
    options = ["--co-occurrence", "--sample-users", "5"]
    done = recsys(place, "export", str(run), "--graph", "items.graphml", *options)
    assert done.returncode == 0, done.stderr
    graph = nx.read_graphml(place / "items.graphml")
    assert {node.split(":")[0] for node in graph} == {"item"}
    assert all(node["raw_id"] == f"i{node['name'][7:-1]}" for _, node in graph.nodes(data=True))
    assert {weight for *_, weight in graph.edges(data="weight")} <= {1, 2, 3, 4, 5}


def test_report_is_built_anew(place: Path, run: Path) -> None:
    page = place / run / "report.html"
    before = page.read_bytes()
    page.unlink()
    done = recsys(place, "report", str(run))
    assert done.stdout.strip() == str(run / "report.html")
    assert page.read_bytes() == before


ERRORS = {
    ("run", "tinny.yaml"): "no such file or packaged configuration",
    ("validate", "tiny.yaml", "train.epoch=1"): "train.epoch: unknown key; did you mean `epochs`?",
    ("recommend", "runs/tinny", "--user", "u1"): "is not a run directory (it has no metrics.json)",
    ("recommend", "RUN", "--user", "u1", "--variant", "mf-ful"): "has no variant 'mf-ful'; did you mean `mf-full`?",
    ("export", "RUN", "--variant", "item-knn", "--out", "x"): "variant item-knn (item_knn) has no vectors",
    ("export", "RUN"): "nothing to export; name a directory for vectors with --out, or a file with --graph",
    ("export", "RUN", "--out", "x", "--sample-users", "5"): "are of the graph; name a file for it with --graph",
    ("bench", "topkk"): "unknown benchmark 'topkk'; did you mean `topk`?",
    ("ls", "modles"): "unknown kind 'modles'; did you mean `models`?",
    ("cp", "quickstart", "tiny.yaml"): "tiny.yaml is there already; give another name: recsys cp quickstart FILE",
}


@pytest.mark.parametrize("arguments", ERRORS, ids=" ".join)
def test_mistakes_end_in_one_message_and_exit_code_2(place: Path, run: Path, arguments: tuple[str, ...]) -> None:
    done = recsys(place, *(str(run) if word == "RUN" else word for word in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert ERRORS[arguments] in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_DEBUG", "1")
    with pytest.raises(ConfigError, match="no such file"):
        recsys(place, "run", "tinny.yaml")


def test_validate_tells_plan_and_memory(place: Path) -> None:
    done = recsys(place, "validate", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    for part in ("tiny: no mistakes found", "memory: about", "mf-graphhash: mf, graphhash, dim 8", "runs/tiny-"):
        assert part in done.stdout
    done = recsys(place, "validate", "tiny.yaml", "variants.mf-graphhash.model.sparse.density=0.2")
    assert "mf-graphhash: mf, graphhash, sparse 20 %, dim 8" in done.stdout


def test_ls_and_cp(place: Path) -> None:
    listed = recsys(place, "ls").stdout
    for name in ("quickstart", "gowalla_graphhash", "anime", "double_graphhash", "sampled_softmax", "ndcg@k"):
        assert name in listed
    for name in ("final_mlp", "gbce", "in_batch"):  # of rankers, sequence models and two towers
        assert name in listed.split()
    copied = recsys(place, "cp", "quickstart", "mine.yaml")
    assert copied.stdout == "mine.yaml\n"
    assert (place / "mine.yaml").read_text().startswith("# recsys run quickstart")
    assert recsys(place, "cp", "quickstart").stdout == "quickstart.yaml\n"


COMMANDS = ("run", "validate", "ls", "cp", "compare", "report", "recommend", "export", "doctor", "bench")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(tmp_path: Path, name: str) -> None:
    done = recsys(tmp_path, name, "--help")
    assert done.returncode == 0
    assert f"\n    recsys {name}" in done.stdout


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "run", "tinny.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=env(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: 1 mistake in the configuration:")


def test_help_imports_nothing_of_weight() -> None:
    code = (
        "import sys\nfrom pipelines.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'polars', 'numpy', 'pydantic', 'rich', 'yaml', 'mlflow', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=env(), capture_output=True)
