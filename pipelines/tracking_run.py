"""What the runner holds while an experiment is tracked: the parent run and its variants. Knows nothing of MLflow."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from pipelines.tracking_journal import PARENT, Event, Kind, contained, flatten, safe_name

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
OUTCOMES: dict[Status, str] = {"FINISHED": "is complete", "FAILED": "failed", "KILLED": "was interrupted"}


class Recorder(Protocol):
    """Takes events in order and delivers them in the background."""

    uri: str
    outage: str | None

    def put(self, event: Event) -> None:
        """Take one event; returns at once."""
        ...

    def finish(self) -> None:
        """Wait until everything is delivered or ``outage`` says why not."""
        ...


class TrackedRun:
    """One MLflow run: the parent, or a variant's. Every method returns at once.

    Args:
        name: variant name, or ``PARENT``.
        tracker: where the events go.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker = tracker

    def params(self, values: Mapping[str, Any]) -> None:
        """Nested parameters; flattened to dotted keys."""
        self._record("params", {"values": flatten(values)})

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Numbers, at a step for curves. ``recall@20`` is shown as ``recall_at_20``."""
        numbers = {safe_name(name): float(value) for name, value in values.items()}
        self._record("metrics", {"values": numbers, "step": step or 0})

    def dataset(self, manifest: Mapping[str, Any]) -> None:
        """Lineage: ``name``, ``content_hash`` and ``source`` of a dataset manifest, the rest as its profile."""
        self._record("dataset", {"manifest": json.loads(json.dumps(manifest, default=str))})

    def artifacts(self, *paths: Path | Iterable[Path]) -> None:
        """Files or directories of the run directory, stored under their path in it.

        Raises:
            ValueError: A path leads outside the run directory.
            FileNotFoundError: There is nothing at a path.
        """
        for group in paths:
            for path in [group] if isinstance(group, Path) else group:
                self._record("artifact", {"path": str(contained(path, self._tracker.run_dir))})

    def model(self, variant_dir: Path, dataset_dir: Path) -> None:
        """Log ``variant_dir/checkpoint`` as a pyfunc model that recommends for raw user ids.

        Raises:
            ValueError: ``variant_dir`` leads outside the run directory.
            FileNotFoundError: There is no checkpoint or no dataset.
        """
        checkpoint = contained(variant_dir / "checkpoint", self._tracker.run_dir)
        dataset = str(dataset_dir.resolve(strict=True))
        self._record("model", {"checkpoint": str(checkpoint), "dataset": dataset})

    def ranker(self, variant_dir: Path) -> None:
        """Log ``variant_dir/checkpoint`` of a ranking run as a pyfunc model that scores raw rows.

        Raises:
            ValueError: ``variant_dir`` leads outside the run directory.
            FileNotFoundError: There is no checkpoint, or the run directory lacks ``fields`` or ``config.yaml``.
        """
        root = self._tracker.run_dir
        places = {"checkpoint": variant_dir / "checkpoint", "fields": root / "fields", "config": root / "config.yaml"}
        self._record("model", {name: str(contained(path, root)) for name, path in places.items()})

    def _record(self, kind: Kind, data: dict[str, Any]) -> None:
        self._tracker.record(Event(self._name, kind, data))


class Tracker(TrackedRun):
    """The parent run of a run directory, and the door to its variants. A context manager.

    Attributes:
        run_dir: the run directory.
        message: after :meth:`close`, what a person should know (server away, ...), or None.
    """

    def __init__(self, run_dir: Path, recorder: Recorder | None) -> None:
        super().__init__(PARENT, self)
        self.run_dir = run_dir
        self.message: str | None = None
        self._recorder = recorder
        self.record(Event(PARENT, "start", {"name": run_dir.resolve().name}))

    def record(self, event: Event) -> None:
        """Hand one event to the background thread."""
        if self._recorder is not None:
            self._recorder.put(event)

    @contextlib.contextmanager
    def variant(self, name: str, params: Mapping[str, Any] | None = None) -> Iterator[TrackedRun]:
        """A nested run; it ends as FAILED when the block raises."""
        run = TrackedRun(name, self)
        self.record(Event(name, "start", {"name": name}))
        run.params(params or {})
        status: Status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        finally:
            self.record(Event(name, "end", {"status": status}))

    def close(self, status: Status = "FINISHED") -> None:
        """End the parent run and wait until the server has everything or is known to be away."""
        if self._recorder is None:
            return
        self.record(Event(PARENT, "end", {"status": status}))
        self._recorder.finish()
        if self._recorder.outage:
            self.message = (
                f"MLflow at {self._recorder.uri} did not take everything ({self._recorder.outage}). "
                f"The run {OUTCOMES[status]}; send the rest later with: recsys upload {self.run_dir}"
            )
            logger.warning("%s", self.message)
        self._recorder = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("FINISHED" if kind is None else "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")
