"""Peers in virtual environments of their own, driven over pipes so that they alternate with ours in one run."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks import THREADS

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venv-peers"


class PeerError(RuntimeError):
    """A peer could not be installed, or its worker failed; the message carries what it printed."""


@dataclasses.dataclass(frozen=True)
class Timed:
    """A job that timed itself.

    Attributes:
        seconds: duration of the job alone, without start-up, loading or pipes.
        quality: what the job reached (recall, loss, ...).
        peak_rss_mib: highest resident memory of the process until now, MiB; 0 if unknown.
    """

    seconds: float
    quality: dict[str, Any] = dataclasses.field(default_factory=dict)
    peak_rss_mib: float = 0.0


def peer_python(name: str, packages: Sequence[str], environments: Path = ENVIRONMENTS) -> Path:
    """Interpreter of the cached environment of a peer, installed on first use or when ``packages`` changes.

    Args:
        name: directory under ``environments``.
        packages: pip requirements; torch, when among them, is installed first, because wheels built against it import
            it while they install.
        environments: parent of the environments.

    Raises:
        PeerError: pip failed; the message ends with its last lines.
    """
    home = environments / name
    python, done = home / "bin" / "python", home / "packages.json"
    environments.mkdir(parents=True, exist_ok=True)
    with (environments / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists() and json.loads(done.read_text()) == list(packages):
            return python
        done.unlink(missing_ok=True)
        _checked([sys.executable, "-m", "venv", "--without-pip", str(home)])
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        torch = [p for p in packages if p.split("==")[0] == "torch"]
        for group in (torch, list(packages)):
            if group:
                _checked([*install, *group])
        done.write_text(json.dumps(list(packages)))
    return python


def _checked(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"`{' '.join(command)}` failed with code {done.returncode}:\n{done.stderr[-2000:]}")


class Peer:
    """A worker process: a script that ends in :func:`benchmarks.worker.serve`.

    Use as a context manager; the process starts on entry and has loaded its imports when entry returns.

    Args:
        python: interpreter, from :func:`peer_python`.
        script: path of the worker script.
        args: command line arguments of the script.
    """

    def __init__(self, python: Path, script: Path, args: Sequence[str] = ()) -> None:
        self.command = [str(python), str(script), *args]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Peer:
        """Start the worker and wait until it is ready."""
        threads = {f"{n}_NUM_THREADS": str(THREADS) for n in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
        environment = os.environ | threads | {"POLARS_MAX_THREADS": str(THREADS), "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._reply()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its input, which ends it."""
        if self._process is not None:
            self._process.communicate()

    def run(self, command: str = "run", **request: Any) -> Timed:
        """Do one job.

        Args:
            command: sent as ``request["command"]``.
            request: further JSON-able fields.

        Raises:
            PeerError: The job raised or the worker died; the message has its traceback.
        """
        if self._process is None or self._process.stdin is None:
            raise PeerError("Peer.run needs a started worker: use `with Peer(...) as peer`")
        with contextlib.suppress(BrokenPipeError):  # then the worker is dead, and _reply says how it ended
            print(json.dumps({"command": command, **request}), file=self._process.stdin, flush=True)
        reply = self._reply()
        return Timed(float(reply["seconds"]), reply.get("quality", {}), float(reply.get("peak_rss_mib", 0.0)))

    def _reply(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise PeerError(f"the worker `{' '.join(self.command)}` ended with code {code}; its stderr is above")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerError(f"the worker `{' '.join(self.command)}` raised:\n{reply['error']}")
        return reply
