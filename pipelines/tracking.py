"""MLflow: an experiment, a parent run per run directory, a nested run per variant.

The only module that imports mlflow (besides :mod:`pipelines.model_from_code`, which MLflow itself executes). Events go
to a journal in the run directory first; one background thread imports mlflow, connects and applies them, so that
neither the slow import nor a slow server holds up training. When the server stays away the journal remains and
``recsys upload RUN`` applies it later. Applying an event twice changes nothing, so a killed run is no special case.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipelines.cache import locked
from pipelines.config import Tracking
from pipelines.installed import pinned, write_wheel
from pipelines.tracking_journal import PARENT, SPOOL, Event, Journal, TrackingState, contained, directory_hash
from pipelines.tracking_run import TrackedRun, Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.models import ModelSignature

__all__ = ["TrackedRun", "Tracker", "open_tracker", "upload"]

logger = logging.getLogger(__name__)

METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
MLFLOW_ADVICE = ".*(Any type hint is inferred as AnyType|An input example was not provided)"
SQLITE = "sqlite:///"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "5",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Set where the user has not: short retries, no telemetry, no pickle, no chatter."""


def open_tracker(settings: Tracking, experiment: str, run_dir: Path) -> Tracker:
    """Start to track a run directory; returns at once.

    Args:
        settings: ``enabled`` false gives a tracker that does nothing.
        experiment: MLflow experiment name.
        run_dir: existing run directory; its name names the parent run, and opening it again goes on in the same runs.
    """
    if not settings.enabled:
        return Tracker(run_dir, None)
    return Tracker(run_dir, _Worker(settings.uri, experiment, run_dir, system_metrics=settings.system_metrics))


def upload(run_dir: Path, uri: str | None = None) -> int:
    """Apply the journal that a run left behind; ``uri`` replaces the recorded server.

    Returns:
        How many events were applied; 0 when nothing was waiting.

    Raises:
        ConnectionError: The server is still away; the journal stays.
    """
    with locked(run_dir / ".lock", lambda: logger.warning("waiting for the `recsys run` that writes %s", run_dir)):
        state = TrackingState(run_dir)
        events = Journal(run_dir / SPOOL).read()
        if not events:
            return 0
        worker = _Worker(uri or state.uri, state.experiment, run_dir, system_metrics=False)
        worker.finish()
    if worker.outage:
        raise ConnectionError(f"MLflow at {worker.uri} does not answer ({worker.outage}); {run_dir} keeps its events")
    return len(events)


class _Worker:
    """The background thread: journal first, then MLflow, in order."""

    def __init__(self, uri: str, experiment: str, run_dir: Path, *, system_metrics: bool) -> None:
        self.uri = _absolute(uri)
        self.outage: str | None = None
        self._journal = Journal(run_dir / SPOOL)
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        for event in self._journal.read():
            self._queue.put(event)
        self._thread = threading.Thread(
            target=self._run,
            args=(experiment, run_dir),
            kwargs={"system_metrics": system_metrics},
            name="mlflow",
            daemon=True,
        )
        self._thread.start()

    def put(self, event: Event) -> None:
        self._journal.append(event)
        self._queue.put(event)

    def finish(self) -> None:
        self._queue.put(None)
        self._thread.join()
        if self.outage is None:
            self._journal.delete()

    def _run(self, experiment: str, run_dir: Path, *, system_metrics: bool) -> None:
        """Body of the thread; whatever ends it early is an outage, and the journal stays."""
        try:
            state = TrackingState(run_dir)
            state.point_to(self.uri, experiment)
            state.save()
            with _Mlflow(state, run_dir, system_metrics=system_metrics) as mlflow:
                while (event := self._queue.get()) is not None:
                    mlflow.apply(event)
        except Exception as error:
            self.outage = _first_line(error)


class _OutageError(Exception):
    """The server does not answer; everything from here on waits in the journal."""


class _Mlflow:
    """The MLflow side: applies events, each of which may have been applied before."""

    def __init__(self, state: TrackingState, run_dir: Path, *, system_metrics: bool) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow

        for chatty in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(chatty).setLevel(logging.CRITICAL)
        self._state = state
        self._run_dir = run_dir
        self._system_metrics = system_metrics
        self._monitor: Any = None
        self._resumed: set[str] = set()
        self._histories: dict[tuple[str, str], set[tuple[int, float]]] = {}
        mlflow.set_tracking_uri(state.uri)
        with _outages(), _one_at_a_time(state.uri):
            self._client = mlflow.MlflowClient(state.uri)
            self._experiment_id = self._experiment()
            mlflow.set_experiment(experiment_id=self._experiment_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._monitor is not None:
            self._monitor.finish()

    def apply(self, event: Event) -> None:
        """Tell the server; what it refuses for a reason of its own is logged and left out.

        Raises:
            _OutageError: The server does not answer.
        """
        try:
            with _outages():
                self._apply(event)
        except _OutageError:
            raise
        except Exception as error:
            logger.warning("MLflow left out %s of %r: %s", event.kind, event.run or "the run", error)

    def _apply(self, event: Event) -> None:
        data, run_id = event.data, self._state.runs.get(event.run, "")
        match event.kind:
            case "start":
                self._start(event)
            case "params":
                self._params(run_id, data["values"])
            case "metrics":
                self._metrics(run_id, data["values"], data["step"], event)
            case "dataset":
                self._dataset(run_id, data["manifest"])
            case "artifact":
                self._artifact(run_id, data["path"])
            case "model":
                self._model(event.run, run_id, data)
            case "end":
                self._client.set_terminated(run_id, data["status"], event.time_ms)

    def _experiment(self) -> str:
        """Find or make the experiment; another process may make it at the same moment."""
        from mlflow.exceptions import MlflowException

        name = self._state.experiment
        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name, _artifact_location(self._state.uri, name)))
        except MlflowException:
            if found := self._client.get_experiment_by_name(name):
                return str(found.experiment_id)
            raise

    def _start(self, event: Event) -> None:
        if known := self._known_run(self._state.runs.get(event.run)):
            run_id = known.info.run_id
            self._resumed.add(run_id)
            self._client.update_run(run_id, status="RUNNING")
        else:
            parent = {} if event.run == PARENT else {"mlflow.parentRunId": self._state.runs[PARENT]}
            tags = {"mlflow.source.name": "recsys run", "mlflow.source.type": "LOCAL", **parent}
            run = self._client.create_run(self._experiment_id, event.time_ms, tags, event.data["name"])
            run_id = self._state.runs[event.run] = run.info.run_id
            self._state.save()
        if event.run == PARENT and self._system_metrics:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=self._state.uri)
            self._monitor.start()

    def _known_run(self, run_id: str | None) -> Run | None:
        """The run of an earlier process, unless it was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id) if run_id else None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run and run.info.lifecycle_stage == "active" else None

    def _params(self, run_id: str, values: dict[str, str]) -> None:
        """MLflow parameters never change, so a new value of an old one becomes a tag ``changed.<name>``."""
        from mlflow.entities import Param, RunTag

        old = self._client.get_run(run_id).data.params
        new = [Param(name, value) for name, value in values.items() if name not in old]
        changed = [RunTag(f"changed.{name}", value) for name, value in values.items() if old.get(name, value) != value]
        for start in range(0, max(len(new), len(changed)), PARAMS_PER_BATCH):
            batch = slice(start, start + PARAMS_PER_BATCH)
            self._client.log_batch(run_id, params=new[batch], tags=changed[batch])

    def _metrics(self, run_id: str, values: dict[str, float], step: int, event: Event) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, event.time_ms, step)
            for name, value in values.items()
            if run_id not in self._resumed or (step, value) not in self._history(run_id, name)
        ]
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_BATCH])

    def _history(self, run_id: str, name: str) -> set[tuple[int, float]]:
        """The points that an earlier process logged, asked for once."""
        if (run_id, name) not in self._histories:
            points = self._client.get_metric_history(run_id, name)
            self._histories[run_id, name] = {(point.step, point.value) for point in points}
        return self._histories[run_id, name]

    def _dataset(self, run_id: str, manifest: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = {key: value for key, value in manifest.items() if isinstance(value, int | float | str)}
        source = {"url": str(manifest["source"])}
        dataset = Dataset(
            str(manifest["name"]),
            str(manifest["content_hash"])[:36],
            "local",
            json.dumps(source),
            None,
            json.dumps(profile),
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _artifact(self, run_id: str, path: str) -> None:
        """Store under the same relative path; the journal may be old, so the path is checked again."""
        local = self._run_dir / contained(self._run_dir / path, self._run_dir)
        folder = Path(path) if local.is_dir() else Path(path).parent
        target = None if folder == Path() else folder.as_posix()
        upload_one = self._client.log_artifacts if local.is_dir() else self._client.log_artifact
        upload_one(run_id, str(local), target)

    def _model(self, name: str, run_id: str, data: dict[str, str]) -> None:
        """A pyfunc model from code: a checkpoint's safetensors, and what turns raw users or rows into its input."""
        warnings.filterwarnings("ignore", MLFLOW_ADVICE, UserWarning)
        import mlflow.pyfunc
        from mlflow.models import Model

        from pipelines.catalogue import Catalogue
        from pipelines.dataset import Dataset

        inside = {
            key: self._run_dir / contained(self._run_dir / data[key], self._run_dir)
            for key in data.keys() - {"dataset"}
        }
        digest = directory_hash(inside["checkpoint"])
        if self._state.models.get(name) == digest:
            return
        with tempfile.TemporaryDirectory() as folder:
            code = "ranking/model_from_code.py"
            if "dataset" in data:
                code, inside["catalogue"] = "model_from_code.py", Path(folder) / "catalogue"
                Catalogue.of(Dataset.open(Path(data["dataset"]))).save(inside["catalogue"])
            wheel = write_wheel(Path(folder))
            Model.log(
                None,
                mlflow.pyfunc,
                name=re.sub(r"[^\w-]", "-", name),
                run_id=run_id,
                python_model=str(Path(__file__).parent / code),
                artifacts={key: str(path) for key, path in inside.items()},
                signature=_recommends() if "dataset" in data else _scores(),
                code_paths=[str(wheel)],
                pip_requirements=[*pinned(), f"code/{wheel.name}"],
            )
        self._state.models[name] = digest
        self._state.save()


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Keep other processes out while MLflow makes the tables of a new sqlite file; its own lock does not."""
    file = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE):
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_name(f"{file.name}.lock"), lambda: None):
        yield


@contextlib.contextmanager
def _outages() -> Iterator[None]:
    """Turn every way in which a server can be away into :class:`_OutageError`."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise _OutageError(_first_line(error)) from error
    except MlflowException as error:
        if error.error_code in {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}:
            raise _OutageError(_first_line(error)) from error
        raise


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Beside an sqlite file, not in the working directory as MLflow would have it; None leaves it to a server."""
    if not uri.startswith(SQLITE):
        return None
    return (Path(uri.removeprefix(SQLITE)).parent / "mlruns" / experiment).as_uri()


def _first_line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0][:200]


def _recommends() -> ModelSignature:
    """Raw user ids in, text or numbers; lists of raw item ids, titles and scores out; ``k`` as parameter."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    outputs = Schema(
        [
            ColSpec(DataType.string, "user_id"),
            ColSpec(Array(DataType.string), "items"),
            ColSpec(Array(DataType.string), "titles"),
            ColSpec(Array(DataType.float), "scores"),
        ]
    )
    params = ParamSchema([ParamSpec("k", DataType.integer, 10)])
    return ModelSignature(Schema([ColSpec(AnyType(), "user_id")]), outputs, params)


def _scores() -> ModelSignature:
    """Rows of any columns in; log-odds and probability out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    return ModelSignature(outputs=Schema([ColSpec(DataType.double, name) for name in ("log_odds", "probability")]))


def _absolute(uri: str) -> str:
    """An sqlite file relative to the working directory, by its full path."""
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).resolve()}" if uri.startswith(SQLITE) else uri
