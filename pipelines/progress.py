"""What a run says while it works: a live line on a terminal, plain lines elsewhere, everything in ``log.txt``."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PLAIN_EVERY_SECONDS = 10.0
_QUICK_SECONDS = 1.0
_LOGGERS = ("pipelines", "recsys", "embeddings")


class Reporter:
    """Progress and messages of one run, written to stderr so that stdout carries only results.

    Args:
        log_file: File that gets every message with its time; None for none.
        quiet: Say nothing on stderr (the log still gets everything).
    """

    def __init__(self, log_file: Path | None = None, *, quiet: bool = False) -> None:
        self._log: IO[str] | None = None
        if log_file is not None:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            self._log = log_file.open("a", encoding="utf-8")
        self._quiet = quiet
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._handler = _Forward(self)

    def __enter__(self) -> Self:
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self._handler)
            logging.getLogger(name).setLevel(logging.INFO)
        if sys.stderr.isatty() and not self._quiet:
            self._live = _live_display()
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self._handler)
        if self._live is not None:
            self._live.stop()
        if self._log is not None:
            self._log.close()

    def say(self, message: str) -> None:
        """One line for the reader and the log."""
        self.log(message)
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(message, markup=False, highlight=False)
        else:
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()

    def log(self, message: str) -> None:
        """One line for the log only."""
        if self._log is not None:
            self._log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {message}\n")
            self._log.flush()

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        """Report that ``done`` of ``total`` units of a stage are finished (None: not known how many)."""
        now = time.monotonic()
        started = self._started.setdefault(stage, now)
        finished = total is not None and done >= total
        if self._live is not None:
            self._show(stage, done, total, note)
        elif finished or now - self._said.get(stage, started) >= _PLAIN_EVERY_SECONDS:
            self._said[stage] = now
            tell = self.log if now - started < _QUICK_SECONDS else self.say
            tell(plain_line(stage, done, total, now - started, note))
        if finished:
            self._started.pop(stage, None)

    def _show(self, stage: str, done: int, total: int | None, note: str) -> None:
        assert self._live is not None
        if stage not in self._tasks:
            self._tasks[stage] = self._live.add_task(stage, total=total, note=note)
        task = self._tasks[stage]
        self._live.update(task, completed=done, total=total, note=note)
        if total is not None and done >= total:
            self._live.remove_task(task)
            del self._tasks[stage]


class _Forward(logging.Handler):
    """Log records of the project: all to ``log.txt``, warnings to the reader too."""

    def __init__(self, report: Reporter) -> None:
        super().__init__(logging.INFO)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        tell = self._report.say if record.levelno >= logging.WARNING else self._report.log
        tell(f"{record.levelname.lower()}: {record.getMessage()}")


def plain_line(stage: str, done: int, total: int | None, seconds: float, note: str = "") -> str:
    """A progress line with the rate and the time to go.

    >>> plain_line("train mf", 30, 120, 60.0, "recall@20 0.1")
    'train mf: 30/120, 0.5/s, 3m 0s to go, recall@20 0.1'
    """
    rate = done / seconds if seconds > 0 else 0.0
    parts = [f"{done:,}/{total:,}" if total is not None else f"{done:,}", f"{_number(rate)}/s"]
    if total is not None and 0 < done < total and rate > 0:
        parts.append(f"{duration((total - done) / rate)} to go")
    return f"{stage}: " + ", ".join([*parts, *([note] if note else [])])


def duration(seconds: float) -> str:
    """Seconds for a reader.

    >>> duration(0.4), duration(75), duration(3700)
    ('0.4s', '1m 15s', '1h 1m')
    """
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60}m"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _live_display() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
