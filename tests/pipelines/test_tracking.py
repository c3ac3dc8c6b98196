"""Tracking against a real MLflow: an sqlite file here, a server in test_tracking_server.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.config import Tracking
from pipelines.tracking import Tracker, open_tracker, upload
from pipelines.tracking_journal import SPOOL, Event, Journal

MANIFEST = {
    "name": "toy",
    "content_hash": "c0ffee" * 10,
    "source": "events.csv",
    "num_users": 3,
    "counts": {"train": 7},
}


@pytest.fixture
def uri(migrated: Path, tmp_path: Path) -> str:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "toy-12ab34cd"
    (path / "variants" / "mf-s0").mkdir(parents=True)
    (path / "config.yaml").write_text("experiment: toy\n")
    (path / "variants" / "mf-s0" / "history.json").write_text("[]\n")
    return path


def settings(uri: str, **changes: object) -> Tracking:
    return Tracking(uri=uri, **{"system_metrics": False, **changes})


def a_run(uri: str, run_dir: Path, *, seed: int = 0, epochs: int = 3) -> Tracker:
    with open_tracker(settings(uri), "toy", run_dir) as tracker:
        tracker.params({"train": {"epochs": 3, "seeds": [0, 1]}, "seed": seed})
        tracker.dataset(MANIFEST)
        with tracker.variant("mf-s0", {"model": {"dim": 8}}) as run:
            for epoch in range(epochs):
                run.metrics({"valid/recall@20": 0.1 * epoch, "loss": 1.0 / (1 + epoch)}, step=epoch)
            run.metrics({"test/recall@20": 0.3})
            run.artifacts(run_dir / "variants" / "mf-s0" / "history.json")
        tracker.artifacts([run_dir / "config.yaml"], run_dir / "variants")
    return tracker


def runs(uri: str) -> dict[str, Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found), "a run name occurs twice"
    return {run.info.run_name: run for run in found}


def points(uri: str, run: Run, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, metric)]


def test_a_parent_run_with_nested_variants(uri: str, run_dir: Path) -> None:
    tracker = a_run(uri, run_dir)
    assert tracker.message is None
    found = runs(uri)
    parent, variant = found["toy-12ab34cd"], found["mf-s0"]
    assert parent.info.status == variant.info.status == "FINISHED"
    assert variant.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.params == {"train.epochs": "3", "train.seeds": "[0, 1]", "seed": "0"}
    assert variant.data.params == {"model.dim": "8"}
    assert points(uri, variant, "valid/recall_at_20") == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert variant.data.metrics["test/recall_at_20"] == 0.3
    dataset = parent.inputs.dataset_inputs[0].dataset
    assert (dataset.name, json.loads(dataset.source)) == ("toy", {"url": "events.csv"})
    assert MANIFEST["content_hash"].startswith(dataset.digest)
    assert json.loads(dataset.profile)["num_users"] == 3
    client = MlflowClient(uri)
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["config.yaml", "variants"]
    history = client.list_artifacts(variant.info.run_id, "variants/mf-s0")
    assert [file.path for file in history] == ["variants/mf-s0/history.json"]
    assert (Path(uri.removeprefix("sqlite:///")).parent / "mlruns" / "toy").is_dir(), "artefacts belong beside the file"
    assert not (run_dir / SPOOL).exists()


def test_a_rerun_goes_on_in_the_same_mlflow_runs(uri: str, run_dir: Path) -> None:
    a_run(uri, run_dir, epochs=2)
    before = {name: run.info.run_id for name, run in runs(uri).items()}
    a_run(uri, run_dir, epochs=4, seed=1)
    after = runs(uri)
    assert {name: run.info.run_id for name, run in after.items()} == before
    assert [step for step, _ in points(uri, after["mf-s0"], "loss")] == [0, 1, 2, 3]
    assert after["toy-12ab34cd"].data.params["seed"] == "0"
    assert after["toy-12ab34cd"].data.tags["changed.seed"] == "1"


def test_a_run_deleted_in_mlflow_is_made_again(uri: str, run_dir: Path) -> None:
    a_run(uri, run_dir)
    old = runs(uri)["mf-s0"].info.run_id
    MlflowClient(uri).delete_run(old)
    a_run(uri, run_dir)
    assert runs(uri)["mf-s0"].info.run_id != old


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_an_exception_shows_in_the_status(uri: str, run_dir: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), open_tracker(settings(uri), "toy", run_dir) as tracker, tracker.variant("mf-s0"):
        raise error
    assert runs(uri)["toy-12ab34cd"].info.status == status
    assert runs(uri)["mf-s0"].info.status == "FAILED"


def test_system_metrics_are_sampled(uri: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with open_tracker(settings(uri, system_metrics=True), "toy", run_dir):
        for _ in range(300):
            client = MlflowClient(uri)
            found = client.search_runs([each.experiment_id for each in client.search_experiments()])
            if any("system/cpu_utilization_percentage" in run.data.metrics for run in found):
                return
            time.sleep(0.1)
    pytest.fail("no system metric within 30 s")


def test_a_disabled_tracker_leaves_nothing_and_imports_nothing(run_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines.config import Tracking\n"
        "from pipelines.tracking import open_tracker\n"
        f"with open_tracker(Tracking(enabled=False), 'toy', Path({str(run_dir)!r})) as tracker:\n"
        "    tracker.params({'a': 1})\n"
        "    with tracker.variant('v') as run: run.metrics({'x': 1.0})\n"
        "assert 'mlflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sorted(path.name for path in run_dir.iterdir()) == ["config.yaml", "variants"]


@pytest.mark.parametrize("escape", ["../secret.txt", "/etc/hostname", "link.txt", "folder"])
def test_an_artifact_outside_the_run_directory_is_refused(run_dir: Path, escape: str) -> None:
    secret = run_dir.parent / "secret.txt"
    secret.write_text("secret")
    (run_dir / "link.txt").symlink_to(secret)
    (run_dir / "folder").mkdir()
    (run_dir / "folder" / "inner.txt").symlink_to(secret)
    tracker = open_tracker(Tracking(enabled=False), "toy", run_dir)
    with pytest.raises(ValueError, match=r"an artifact must lie inside the run directory .*, but .*"):
        tracker.artifacts(run_dir / escape)


def test_a_missing_artifact_is_an_error_at_once(run_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.html"):
        open_tracker(Tracking(enabled=False), "toy", run_dir).artifacts(run_dir / "absent.html")


def test_a_journal_cannot_smuggle_a_path(uri: str, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run_dir.parent / "secret.txt").write_text("secret")
    open_tracker(settings(uri), "toy", run_dir).close()
    journal = Journal(run_dir / SPOOL)
    journal.append(Event("", "start", {"name": "toy-12ab34cd"}))
    journal.append(Event("", "artifact", {"path": "../secret.txt"}))
    journal.append(Event("", "metrics", {"values": {"after": 1.0}, "step": 0}))
    assert upload(run_dir) == 3
    parent = runs(uri)["toy-12ab34cd"]
    assert MlflowClient(uri).list_artifacts(parent.info.run_id) == []
    assert parent.data.metrics == {"after": 1.0}
    assert "left out artifact of 'the run': an artifact must lie inside the run directory" in caplog.text


def test_a_killed_process_loses_and_repeats_nothing(uri: str, run_dir: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from pipelines.config import Tracking\n"
        "from pipelines.tracking import open_tracker\n"
        f"tracker = open_tracker(Tracking(uri={uri!r}, system_metrics=False), 'toy', Path({str(run_dir)!r}))\n"
        "with tracker.variant('mf-s0') as run:\n"
        "    for step in range(5): run.metrics({'loss': float(step)}, step=step)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(Journal(run_dir / SPOOL).read()) == 8
    with open_tracker(settings(uri), "toy", run_dir) as tracker, tracker.variant("mf-s0") as run:
        for step in range(7):
            run.metrics({"loss": float(step)}, step=step)
    assert points(uri, runs(uri)["mf-s0"], "loss") == [(step, float(step)) for step in range(7)]
    assert not (run_dir / SPOOL).exists()


def test_several_processes_share_a_fresh_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    code = (
        "import sys; from pathlib import Path; from pipelines.config import Tracking\n"
        "from pipelines.tracking import open_tracker\n"
        "folder = Path(sys.argv[1]); folder.mkdir()\n"
        f"with open_tracker(Tracking(uri={uri!r}, system_metrics=False), 'toy', folder) as tracker:\n"
        "    for step in range(40): tracker.metrics({'loss': float(step)}, step=step)\n"
        "sys.exit(tracker.message)\n"
    )
    folders = [tmp_path / f"toy-{index}" for index in range(2)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    processes = [subprocess.Popen([sys.executable, "-c", code, str(folder)], env=environment) for folder in folders]
    assert [process.wait(120) for process in processes] == [0, 0]
    found = runs(uri)
    assert sorted(found) == ["toy-0", "toy-1"]
    for run in found.values():
        assert points(uri, run, "loss") == [(step, float(step)) for step in range(40)]
