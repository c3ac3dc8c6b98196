"""``kill -9`` at any moment, then the same run again: the same bits, as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_experiment import write_tiny

STAGES = ("dataset", "graph", "cluster", "maps", "stability", "train", "evaluate")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pipelines.runner", "torch.fx.experimental.symbolic_shapes"])  # backward imports that


def _run(directory: Path, stage: str | None, milliseconds: float) -> None:
    """Run the tiny experiment; die so long after a build of ``stage`` began, at its end at the latest, or never."""
    os.chdir(directory)
    from pipelines.cache import Cache
    from pipelines.config_loader import load_experiment
    from pipelines.runner import run_experiment

    original = Cache.stage

    def doomed(self: Cache, name: str, key: dict[str, Any], build: Callable[[Path], None]) -> Path:
        def dying(place: Path) -> None:
            threading.Timer(milliseconds / 1000, os.kill, (os.getpid(), signal.SIGKILL)).start()
            build(place)
            os.kill(os.getpid(), signal.SIGKILL)

        return original(self, name, key, dying if name == stage else build)

    Cache.stage = doomed  # type: ignore[method-assign]
    run_experiment(load_experiment("tiny.yaml", ["variants=[item-knn, mf-graphhash]"]), command="tiny", quiet=True)


def start(directory: Path, stage: str | None = None, milliseconds: float = 0.0) -> Any:
    """A process that runs the experiment."""
    process = CONTEXT.Process(target=_run, args=(directory, stage, milliseconds))
    process.start()
    return process


def results(directory: Path) -> dict[str, Any]:
    """Everything that a run found, without times: metrics and the hashes of weights, lists and histories."""
    import json

    (run,) = (directory / "runs").iterdir()
    found = json.loads((run / "metrics.json").read_text())["variants"]
    timed = ("seconds", "triples_per_second", "rss_mib")
    histories = {
        path.parent.name: [{k: v for k, v in epoch.items() if k not in timed} for epoch in json.loads(path.read_text())]
        for path in run.rglob("history.json")
    }
    files = [*run.rglob("*.safetensors"), *run.rglob("*.parquet")]
    return {
        "metrics": [{k: v for k, v in one.items() if k not in ("seconds", "peak_rss_mib")} for one in found],
        "histories": histories,
        "files": {str(path.relative_to(run)): sha256(path.read_bytes()).hexdigest() for path in files},
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The results of a run that nobody disturbed, and how long it took where the kernels were compiled before."""
    for name in ("compiles", "whole"):
        directory = tmp_path_factory.mktemp(name)
        write_tiny(directory)
        began = time.perf_counter()
        finish(directory)
    return results(directory), time.perf_counter() - began


def finish(directory: Path) -> dict[str, Any]:
    """Let the experiment run to its end."""
    process = start(directory)
    process.join(300)
    assert process.exitcode == 0
    leftovers = [path for path in (directory / ".recsys").glob("*/*") if path.suffix in (".tmp", ".work")]
    assert leftovers == []
    return results(directory)


def kill_in_every_stage(directory: Path, generator: np.random.Generator) -> None:
    """Kill a run inside the build of each stage."""
    for stage in STAGES:
        process = start(directory, stage, float(generator.uniform(0, 60)))
        process.join(300)
        assert process.exitcode == -signal.SIGKILL


def test_killed_in_every_stage(tmp_path: Path, reference: tuple[dict[str, Any], float]) -> None:
    write_tiny(tmp_path)
    kill_in_every_stage(tmp_path, np.random.Generator(np.random.Philox(1)))
    assert finish(tmp_path) == reference[0]


def kill_at_random(directory: Path, times: int, seconds: float, generator: np.random.Generator) -> int:
    """Kill runs from outside after random shares of the time that one takes; return how many died.

    The time halves where a run was through before: the machine is faster now, or much is in the cache.
    """
    killed = 0
    for _ in range(times):
        process = start(directory)
        process.join(float(generator.uniform(0.05, 0.4)) * seconds)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        else:
            seconds /= 2
        process.join(300)
    return killed


def test_killed_at_random_moments(tmp_path: Path, reference: tuple[dict[str, Any], float]) -> None:
    write_tiny(tmp_path)
    assert kill_at_random(tmp_path, 5, reference[1], np.random.Generator(np.random.Philox(2))) >= 1
    assert finish(tmp_path) == reference[0]


def test_two_runs_at_once_in_one_place_agree(tmp_path: Path, reference: tuple[dict[str, Any], float]) -> None:
    write_tiny(tmp_path)
    both = [start(tmp_path), start(tmp_path)]
    for process in both:
        process.join(300)
    assert [process.exitcode for process in both] == [0, 0]
    assert results(tmp_path) == reference[0]


@pytest.mark.quality
def test_killed_fifty_times(tmp_path: Path, reference: tuple[dict[str, Any], float]) -> None:
    generator = np.random.Generator(np.random.Philox(3))
    killed = 0
    for place in range(5):
        directory = tmp_path / str(place)
        write_tiny(directory)
        kill_in_every_stage(directory, generator)
        killed += len(STAGES) + kill_at_random(directory, 6, reference[1], generator)
        assert finish(directory) == reference[0]
    assert killed >= 40
