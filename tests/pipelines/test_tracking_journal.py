"""The journal, the names and the message of an outage, without MLflow running."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param_name

from pipelines.tracking_journal import Event, Journal, TrackingState, directory_hash, flatten, safe_name
from pipelines.tracking_run import Tracker


def test_events_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "spool.jsonl")
    assert journal.read() == []
    events = [
        Event("", "start", {"name": "a\nb"}),
        Event("mf", "metrics", {"values": {"x": 1.5}, "step": 2}, time_ms=7),
    ]
    for event in events:
        journal.append(event)
    assert journal.read() == events
    journal.delete()
    assert journal.read() == []


def test_a_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "spool.jsonl")
    journal.append(Event("", "start", {"name": "a"}))
    journal.append(Event("", "end", {"status": "FINISHED"}))
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-9])
    assert [event.kind for event in journal.read()] == ["start"]


def test_what_is_appended_after_a_cut_line_is_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "spool.jsonl")
    journal.append(Event("", "start", {"name": "a"}))
    journal.path.write_bytes(journal.path.read_bytes() + b'\n{"run": "cu')
    journal = Journal(tmp_path / "spool.jsonl")
    journal.append(Event("", "end", {"status": "FINISHED"}))
    assert [event.kind for event in journal.read()] == ["start", "end"]


def test_run_ids_belong_to_a_server(tmp_path: Path) -> None:
    state = TrackingState(tmp_path)
    state.point_to("http://127.0.0.1:1", "toy")
    state.runs[""] = "first"
    state.save()
    state.point_to("http://127.0.0.1:2", "toy")
    assert state.runs == {}
    state.save()
    again = TrackingState(tmp_path)
    again.point_to("http://127.0.0.1:1", "toy")
    assert again.runs == {"": "first"}


@given(st.text(min_size=1, max_size=40).filter(str.strip))
def test_mlflow_takes_every_metric_and_parameter_name(name: str) -> None:
    _validate_metric_name(safe_name(f"valid/{name}"))
    _validate_param_name(safe_name(f"train.{name}"))


def test_leaves_of_parameters_are_json_or_text() -> None:
    values = {"a": {"b": None, "c": True, "d": {}}, "path": Path("x")}
    assert flatten(values) == {"a.b": "null", "a.c": "true", "path": '"x"'}


def test_a_directory_hash_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = directory_hash(tmp_path)
    assert directory_hash(tmp_path) == first
    (tmp_path / "a").write_text("2")
    second = directory_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, directory_hash(tmp_path)}) == 3


class Away:
    """A recorder whose server is away."""

    uri = "http://127.0.0.1:1"
    outage = "no route"

    def put(self, event: Event) -> None:
        """Nothing arrives."""

    def finish(self) -> None:
        """Nothing to wait for."""


@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "is complete"), (ValueError, "failed"), (KeyboardInterrupt, "was interrupted")]
)
def test_an_outage_tells_how_the_run_itself_ended(
    tmp_path: Path, error: type[BaseException] | None, outcome: str
) -> None:
    with contextlib.suppress(ValueError, KeyboardInterrupt), Tracker(tmp_path, Away()) as tracker:
        if error is not None:
            raise error
    assert tracker.message == (
        "MLflow at http://127.0.0.1:1 did not take everything (no route). "
        f"The run {outcome}; send the rest later with: recsys upload {tmp_path}"
    )
