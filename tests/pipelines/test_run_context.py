"""The run directory of an execution: its own while it lasts, and a log that tells how it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cache import try_locked
from pipelines.config import Experiment
from pipelines.config_loader import config_hash
from pipelines.run_context import in_run_directory


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    variant = {"name": "full", "model": {"name": "mf"}}
    dataset = {"name": "d", "source": "d.csv"}
    settings = {"experiment": "e", "dataset": dataset, "variants": [variant], "output": str(tmp_path)}
    return Experiment.model_validate(settings)


def test_an_execution_has_its_directory_alone(experiment: Experiment, tmp_path: Path) -> None:
    with in_run_directory(experiment, command="recsys run e", quiet=True) as context:
        directory = context.files.directory
        assert directory == tmp_path / f"e-{config_hash(experiment)}"
        assert context.files.config_file.is_file()
        with try_locked(directory / ".lock") as free:
            assert not free
    with try_locked(directory / ".lock") as free:
        assert free
    first, *_, last = context.files.log_file.read_text().splitlines()
    assert first.endswith("command: recsys run e")
    assert "finished in" in last


def test_what_ends_in_an_error_does_not_say_that_it_finished(experiment: Experiment) -> None:
    with (
        pytest.raises(ValueError, match="spoiled"),
        in_run_directory(experiment, command="", quiet=True) as context,
    ):
        raise ValueError("spoiled")
    assert "finished" not in context.files.log_file.read_text()
    with try_locked(context.files.directory / ".lock") as free:
        assert free
