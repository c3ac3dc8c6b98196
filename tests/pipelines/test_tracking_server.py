"""Tracking against a real ``mlflow server`` on the loopback interface, which one test kills in the middle of a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from packaging.requirements import Requirement
from scipy.sparse import csr_array

from pipelines.config import Tracking
from pipelines.dataset import Dataset, Manifest
from pipelines.tracking import Tracker, open_tracker, upload
from pipelines.tracking_journal import SPOOL
from recsys.checkpoint import save_model
from recsys.models.item_knn import ItemKnn
from recsys.topk import exact_top_k

USERS, ITEMS = 12, 9
PICKLE_PROTOCOLS = {b"\x02", b"\x03", b"\x04", b"\x05"}
PLAIN_FILES = {".safetensors", ".json", ".parquet", ".py", ".yaml", ".txt", ".whl", ""}


class Server:
    """``mlflow server`` with its own database and artifact folder; can be killed and started again."""

    def __init__(self, folder: Path, database: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        shutil.copy(database, folder / "server.db")
        self.start()

    def start(self) -> None:
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        store = f"sqlite:///{self._folder / 'server.db'}"
        options += ["--backend-store-uri", store, "--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "log.txt").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        for _ in range(1800):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"mlflow server did not start: {(self._folder / 'log.txt').read_text()[-2000:]}")

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), migrated)
    yield server
    server.kill()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Twelve users, nine items with titles; user u has items u..u+3 (mod 9), the fourth of them in test."""
    path = tmp_path / "dataset"
    path.mkdir()
    pairs = sorted((user, (user + step) % ITEMS, [0, 0, 1, 2][step]) for user in range(USERS) for step in range(4))
    frame = pl.DataFrame(pairs, schema={"user": pl.Int32, "item": pl.Int32, "split": pl.UInt8}, orient="row")
    frame.write_parquet(path / "interactions.parquet")
    pl.DataFrame({"raw_id": [f"u{user}" for user in range(USERS)]}).write_parquet(path / "users.parquet")
    items = {"raw_id": [f"i{item}" for item in range(ITEMS)], "title": [f"Title {item}" for item in range(ITEMS)]}
    pl.DataFrame(items).write_parquet(path / "items.parquet")
    manifest = Manifest(
        name="toy",
        num_users=USERS,
        num_items=ITEMS,
        counts={"train": 24, "valid": 12, "test": 12},
        source="toy",
        source_hash="0" * 64,
        content_hash="1" * 64,
        train_hash="2" * 64,
        columns=[],
        filters=[],
        split={},
        quarantine={},
        leak_audit=[],
        entities={},
    )
    (path / "manifest.json").write_text(manifest.model_dump_json())
    return Dataset.open(path)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / f"toy-{tmp_path.name[-8:]}"
    path.mkdir(parents=True)
    return path


def track(server: Server, run_dir: Path) -> Tracker:
    return open_tracker(Tracking(uri=server.uri, system_metrics=False), "toy", run_dir)


def variant_id(run_dir: Path, name: str) -> str:
    (runs,) = json.loads((run_dir / "mlflow.json").read_text())["servers"].values()
    return str(runs["runs"][name])


@pytest.fixture
def model(dataset: Dataset, run_dir: Path) -> ItemKnn:
    model = ItemKnn.fit(dataset.matrix("train", "valid"), neighbours=5, shrinkage=1.0)
    save_model(model, run_dir / "variants" / "knn-s0" / "checkpoint")
    return model


def test_a_logged_model_recommends_for_raw_user_ids(
    server: Server, dataset: Dataset, model: ItemKnn, run_dir: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        with track(server, run_dir) as tracker, tracker.variant("knn-s0") as run:
            run.metrics({"test/recall@20": 0.25})
            run.model(run_dir / "variants" / "knn-s0", dataset.path)
        assert tracker.message is None
    client = MlflowClient(server.uri)
    outputs = client.get_run(variant_id(run_dir, "knn-s0")).outputs.model_outputs
    assert len(outputs) == 1, "the second run logged the same checkpoint again"
    logged = client.get_logged_model(outputs[0].model_id)
    assert [(metric.key, metric.value) for metric in logged.metrics] == [("test/recall_at_20", 0.25)]

    found = predict_in_a_fresh_process(server.uri, outputs[0].model_id, tmp_path)
    seen = dataset.matrix("train", "valid", "test")
    top = exact_top_k(model, np.array([3, 7], dtype=np.int64), 4, seen)
    for row, user in enumerate([3, 7]):
        items = [int(item) for item in top.items[row] if item >= 0]
        assert found[row]["user_id"] == f"u{user}"
        assert found[row]["items"] == [f"i{item}" for item in items]
        assert found[row]["titles"] == [f"Title {item}" for item in items]
        np.testing.assert_allclose(found[row]["scores"], top.scores[row][: len(items)], rtol=1e-6)
        assert not {f"i{item}" for item in csr_array(seen[[user]]).indices} & set(found[row]["items"])
    assert found[2] == {"user_id": "nobody", "items": [], "titles": [], "scores": []}


def predict_in_a_fresh_process(uri: str, model_id: str, folder: Path) -> list[dict[str, object]]:
    """Download, look for pickles, load with pickle forbidden and the model's own code, predict."""
    code = (
        "import json, sys, mlflow, recsys, pandas as pd\n"
        "assert recsys.__file__.startswith(sys.argv[2])\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "frame = model.predict(pd.DataFrame({'user_id': ['u3', 'u7', 'nobody']}), params={'k': 4})\n"
        "again = model.predict(pd.DataFrame({'user_id': ['u7']}))\n"
        "model.predict(pd.DataFrame({'user_id': [3, 7]}))\n"
        "listed = model.predict([{'user_id': 'u7'}], params={'k': 4})\n"
        "assert again['items'][0][:4] == frame['items'][1] and listed['items'][0] == frame['items'][1]\n"
        "assert [spec.name for spec in model.metadata.signature.outputs] == list(frame.columns)\n"
        "print(json.dumps(frame.to_dict('records')))\n"
    )
    path = Path(download_artifacts(f"models:/{model_id}", dst_path=str(folder / "model"), tracking_uri=uri))
    files = [file for file in path.rglob("*") if file.is_file()]
    assert {"model.safetensors", "seen.safetensors", "users.parquet", "items.parquet"} <= {file.name for file in files}
    for file in files:
        assert file.suffix in PLAIN_FILES or file.name == "MLmodel", file
        head = file.read_bytes()[:2]
        assert (head == b"PK") == (file.suffix == ".whl"), file
        assert not (head[:1] == b"\x80" and head[1:] in PICKLE_PROTOCOLS), f"{file} is a pickle"
    site = folder / "site"
    install_own_code(path, site)
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = str(site)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(site)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def install_own_code(model: Path, site: Path) -> None:
    """What is not on an index comes with the model: the requirements are exact pins of ours, and our wheel."""
    lines = (model / "requirements.txt").read_text().splitlines()
    (wheel,) = [line for line in lines if line.endswith(".whl")]
    pins = {Requirement(line).name: line for line in lines if line != wheel}
    assert "recsys" not in pins
    assert {"torch", "polars", "mlflow"} <= set(pins)
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins.values())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site), wheel]
    subprocess.run(pip, cwd=model, check=True)
    files = [file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()]
    assert not [file for file in files if file.startswith("pipelines/sample/") or file.endswith((".nbi", ".nbc"))]


def test_a_run_outlives_its_server(server: Server, run_dir: Path) -> None:
    (run_dir / "report.html").write_text("<p>all there</p>")
    tracker = track(server, run_dir)
    with tracker.variant("mf-s0") as run:
        for step in range(3):
            run.metrics({"loss": float(step)}, step=step)
        wait_for(server, run_dir, "mf-s0", points=3)
        server.kill()
        try:
            for step in range(3, 6):
                run.metrics({"loss": float(step)}, step=step)
            tracker.artifacts(run_dir / "report.html")
            tracker.close()
            assert tracker.message is not None
            assert f"send the rest later with: recsys upload {run_dir}" in tracker.message
            with pytest.raises(ConnectionError, match=rf"MLflow at {server.uri} does not answer .* keeps its events"):
                upload(run_dir)
        finally:
            server.start()
    assert upload(run_dir) > 0
    assert upload(run_dir) == 0
    assert not (run_dir / SPOOL).exists()
    client = MlflowClient(server.uri)
    history = client.get_metric_history(variant_id(run_dir, "mf-s0"), "loss")
    assert [(point.step, point.value) for point in history] == [(step, float(step)) for step in range(6)]
    parent = client.get_run(variant_id(run_dir, ""))
    assert parent.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["report.html"]


def wait_for(server: Server, run_dir: Path, name: str, points: int) -> None:
    client = MlflowClient(server.uri)
    for _ in range(300):
        if (run_dir / "mlflow.json").exists() and name in (run_dir / "mlflow.json").read_text():
            history = client.get_metric_history(variant_id(run_dir, name), "loss")
            if len(history) == points:
                return
        time.sleep(0.1)
    pytest.fail(f"{points} points did not arrive within 30 s")
