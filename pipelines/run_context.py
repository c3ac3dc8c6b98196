"""What runs of all kinds share: the directory, lock, log and cache of an execution, and its ``metrics.json``."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pipelines.cache import Cache, locked
from pipelines.config_loader import run_path
from pipelines.progress import Reporter, duration
from pipelines.run_directory import cache_root
from pipelines.run_files import DatasetFacts, Metrics, RunFiles, VariantResult
from pipelines.stages.versions import versions
from pipelines.sweep.space import AnyExperiment


@dataclasses.dataclass(frozen=True)
class RunContext:
    """Where an execution writes, and whom it tells; ``command`` is the command line."""

    files: RunFiles
    report: Reporter
    cache: Cache
    command: str

    def write_metrics(
        self,
        experiment: str,
        dataset: DatasetFacts,
        results: Sequence[VariantResult],
        selected_on: Literal["valid", "test"] = "valid",
    ) -> None:
        """Write ``metrics.json`` of a run that is finished now."""
        metrics = Metrics(
            experiment=experiment,
            dataset=dataset,
            variants=tuple(results),
            versions={"python": platform.python_version(), **versions()},
            command=self.command,
            git=_git_commit(),
            selected_on=selected_on,
            finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        self.files.write_metrics(metrics)


@contextlib.contextmanager
def in_run_directory(experiment: AnyExperiment, *, command: str, quiet: bool) -> Iterator[RunContext]:
    """Execute the block in the run directory of an experiment, which no other process writes meanwhile."""
    files = RunFiles(run_path(experiment))
    files.directory.mkdir(parents=True, exist_ok=True)
    with Reporter(files.log_file, quiet=quiet) as report:
        waiting = f"waiting for another `recsys run` that writes {files.directory}"
        with locked(files.directory / ".lock", lambda: report.say(waiting)):
            started = time.perf_counter()
            report.log(f"command: {command}")
            files.write_config(experiment)
            yield RunContext(files, report, Cache(cache_root(), on_wait=report.say), command)
            report.say(f"finished in {duration(time.perf_counter() - started)}")


def _git_commit() -> str:
    """Commit of the checkout that this module is part of, with ``+`` when it has changes; empty outside of one."""
    home = Path(__file__).parent.parent
    git = shutil.which("git")
    if git is None or not (home / ".git").exists():
        return ""
    commands = ([git, "rev-parse", "--short=12", "HEAD"], [git, "status", "--porcelain", "--untracked-files=no"])
    commit, changes = (subprocess.run(c, cwd=home, capture_output=True, text=True, check=False) for c in commands)
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
