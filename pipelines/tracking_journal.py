"""What happened in a run, as events on disk, so that tracking survives an absent server and a killed process.

Knows nothing of MLflow: :mod:`pipelines.tracking` writes events here first and applies them afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pipelines.atomic import write_json
from pipelines.config import Tracking

Kind = Literal["start", "params", "metrics", "dataset", "artifact", "model", "end"]
SPOOL = "mlflow_spool.jsonl"
"""The journal's file in a run directory; it is there only while something waits."""
PARENT = ""
"""Name of the parent run in :attr:`Event.run`; variants have their own name."""


@dataclasses.dataclass(frozen=True)
class Event:
    """One thing to tell the tracking server.

    Attributes:
        run: variant name, or :data:`PARENT`.
        kind: what the event is.
        data: JSON-able payload of that kind.
        time_ms: milliseconds since 1970, so that a later upload keeps the times.
    """

    run: str
    kind: Kind
    data: dict[str, Any]
    time_ms: int = dataclasses.field(default_factory=lambda: int(time.time() * 1000))


class Journal:
    """Append-only JSON lines: one :class:`Event` a line.

    Args:
        path: file; made by the first :meth:`append`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: Event) -> None:
        """Write one event, the line break first, so that a line cut short by a kill spoils no other."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(dataclasses.asdict(event)))

    def read(self) -> list[Event]:
        """All whole events, in order."""
        if not self.path.exists():
            return []
        events = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                events.append(Event(**json.loads(line)))
        return events

    def delete(self) -> None:
        """Forget everything, once it has been applied."""
        self.path.unlink(missing_ok=True)


class TrackingState:
    """``mlflow.json`` of a run directory: which MLflow run and model belongs to what, per server.

    Attributes:
        uri: server of the last run.
        experiment: MLflow experiment name.
        runs: MLflow run id of the parent (:data:`PARENT`) and of each variant, on that server.
        models: hash of the checkpoint whose model was logged last, per variant, on that server.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "mlflow.json"
        stored = json.loads(self._path.read_text("utf-8")) if self._path.exists() else {}
        self._servers: dict[str, dict[str, dict[str, str]]] = stored.get("servers", {})
        self.point_to(stored.get("uri", Tracking().uri), stored.get("experiment", run_dir.resolve().name))

    def point_to(self, uri: str, experiment: str) -> None:
        """Work with this server from here on."""
        self.uri, self.experiment = uri, experiment
        server = self._servers.setdefault(f"{uri} {experiment}", {"runs": {}, "models": {}})
        self.runs, self.models = server["runs"], server["models"]

    def save(self) -> None:
        """Write atomically; servers without a run are left out."""
        servers = {name: server for name, server in self._servers.items() if server["runs"]}
        write_json(self._path, {"uri": self.uri, "experiment": self.experiment, "servers": servers})


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted keys and strings; lists and other leaves become JSON.

    >>> flatten({"model": {"dim": 64, "loss": {"name": "bpr"}}, "seeds": [0, 1]})
    {'model.dim': '64', 'model.loss.name': 'bpr', 'seeds': '[0, 1]'}
    """
    return dict(_leaves(values, prefix))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = safe_name(f"{prefix}{key}")
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        elif isinstance(value, str):
            yield name, value
        else:
            yield name, json.dumps(value, default=str)


def safe_name(name: str) -> str:
    """A name that MLflow takes for a metric or a parameter: ``@`` reads ``_at_`` there, as in its own evaluator.

    >>> safe_name("test/recall@20")
    'test/recall_at_20'
    >>> safe_name("gain (%)")
    'gain ___'
    """
    parts = re.sub(r"[^\w./ -]", "_", name.replace("@", "_at_")).split("/")
    return "/".join(part for part in parts if part not in {"", ".", ".."}) or "_"


def contained(path: Path, root: Path) -> Path:
    """``path`` relative to ``root``, symbolic links resolved.

    Raises:
        ValueError: ``path`` lies outside ``root`` (``..``, an absolute path, a link that leads out).
        FileNotFoundError: There is nothing at ``path``.
    """
    resolved = path.resolve(strict=True)
    if not resolved.is_relative_to(root.resolve()):
        raise ValueError(f"an artifact must lie inside the run directory {root}, but {path} is {resolved}")
    for inner in resolved.rglob("*") if resolved.is_dir() else ():
        if not inner.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"an artifact must lie inside the run directory {root}, but {inner} is {inner.resolve()}")
    return resolved.relative_to(root.resolve())


def directory_hash(directory: Path) -> str:
    """SHA-256 over the names and bytes of a directory's files."""
    total = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        total.update(path.relative_to(directory).as_posix().encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
