"""What a run says, and what its log keeps."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipelines.progress import Reporter, duration, plain_line


def test_messages_go_to_stderr_and_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(tmp_path / "run" / "log.txt") as report:
        report.say("data: [bold] 3 users")
        report.log("a detail")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "data: [bold] 3 users\n")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["data: [bold] 3 users", "a detail"]


def test_quiet_says_nothing_but_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(tmp_path / "log.txt", quiet=True) as report:
        report.say("one")
        report("read", 5, 5)
    assert capsys.readouterr().err == ""
    assert "one" in (tmp_path / "log.txt").read_text()
    assert "read: 5/5" in (tmp_path / "log.txt").read_text()


def test_a_second_run_appends_to_the_log(tmp_path: Path) -> None:
    for message in ("first", "second"):
        with Reporter(tmp_path / "log.txt", quiet=True) as report:
            report.say(message)
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_log_records_go_to_the_log_and_warnings_to_the_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Reporter(tmp_path / "log.txt"):
        logging.getLogger("pipelines.ingest").info("column %r is taken as %s", "uid", "user")
        logging.getLogger("pipelines.tracking").warning("the server is away")
    logging.getLogger("pipelines.ingest").warning("after the run")
    assert capsys.readouterr().err == "warning: the server is away\n"
    logged = (tmp_path / "log.txt").read_text()
    assert "info: column 'uid' is taken as user" in logged
    assert "after the run" not in logged


def test_lines_have_rate_and_time_to_go() -> None:
    assert plain_line("read", 1000, 4000, 2.0) == "read: 1,000/4,000, 500/s, 6.0s to go"
    assert plain_line("read", 1000, None, 0.0) == "read: 1,000, 0/s"
    assert plain_line("train", 4, 4, 2.0, "loss 0.1") == "train: 4/4, 2/s, loss 0.1"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0s"), (9.96, "10.0s"), (59, "59s"), (60, "1m 0s"), (3599.9, "1h 0m"), (7261, "2h 1m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
