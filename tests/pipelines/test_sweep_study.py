"""The trials that processes share: none is lost, none is done twice, and none depends on who did it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_experiment import env

from pipelines.config_search import Range, Search
from pipelines.sweep.results import best_trials
from pipelines.sweep.study import JOURNAL, OwnTrial, PrunedError, Studies, Trial

SPACE = {"x": Range(type="float", low=-1, high=1), "kind": Range(type="categorical", choices=(None, [1, 2], "a"))}
SEARCH = Search(parameters=SPACE, startup_trials=3, prune_after_trials=2)
WORKER = """
import sys
import time
from pathlib import Path
from test_sweep_study import open_studies, work
directory, limit, kill_at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
(directory / f"ready{kill_at}").touch()
while len(list(directory.glob("ready*"))) < 2:
    time.sleep(0.01)
work(open_studies(directory), limit, kill_at, pause=0.1)
"""


def open_studies(directory: Path) -> Studies:
    return Studies(directory, {"a": SPACE, "b": SPACE}, SEARCH)


def work(studies: Studies, limit: int, kill_at: int = -1, pause: float = 0.0) -> None:
    """Trials of x -> -x², with a pause between; the process kills itself in the middle of its trial ``kill_at``."""
    done = 0
    while True:
        with studies.claim(limit) as own:
            if own is None:
                return
            own.record(1, own.facts.values["x"])
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            own.complete(-(own.facts.values["x"] ** 2))
            done += 1
        time.sleep(pause)


def told(studies: Studies) -> list[tuple[str, int, dict, str, float | None]]:
    return [(t.variant, t.number, t.values, t.status, t.value) for t in studies.trials()]


def test_processes_share_the_trials_and_a_killed_one_loses_none(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    environment = env({"PYTHONPATH": os.pathsep.join(sys.path)})
    started = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "many"), "6", kill], env=environment)
        for kill in ("0", "-1")
    ]
    assert [process.wait() for process in started] == [-signal.SIGKILL, 0]
    studies = open_studies(tmp_path / "many")
    work(studies, 6)
    found = studies.trials()
    assert [(trial.variant, trial.number) for trial in found] == [(n, i) for n in "ab" for i in range(6)]
    assert {trial.status for trial in found} == {"complete"}
    assert all(trial.value == -(trial.values["x"] ** 2) for trial in found)


def test_a_resumed_sweep_draws_what_an_uninterrupted_one_draws(tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    work(open_studies(tmp_path / "whole"), 7)
    with pytest.raises(KeyboardInterrupt), open_studies(tmp_path / "broken").claim(7) as own:
        assert own is not None
        raise KeyboardInterrupt
    work(open_studies(tmp_path / "broken"), 4)
    work(open_studies(tmp_path / "broken"), 7)
    assert told(open_studies(tmp_path / "broken")) == told(open_studies(tmp_path / "whole"))
    found = open_studies(tmp_path / "whole").trials()
    assert len({trial.values["x"] for trial in found}) == 14
    assert {str(trial.values["kind"]) for trial in found} == {"None", "[1, 2]", "a"}


def test_a_trial_that_kills_every_process_fails_in_the_end(tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), open_studies(tmp_path).claim(9) as own:
            assert own is not None
            assert own.facts.name == "a-t0"
            raise KeyboardInterrupt
    with open_studies(tmp_path).claim(9) as own:
        assert own is not None
        assert own.facts.name == "b-t0"
    first = open_studies(tmp_path).trials()[0]
    assert (first.name, first.status) == ("a-t0", "failed")
    assert first.error == "3 processes died or were stopped in it, none finished an epoch; too little memory?"


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    work(open_studies(tmp_path), 2)
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    assert len(open_studies(tmp_path).trials()) == 4
    work(open_studies(tmp_path), 3)
    assert [trial.status for trial in open_studies(tmp_path).trials()] == ["complete"] * 6


def test_a_trial_that_another_process_holds_is_left_alone(tmp_path: Path) -> None:
    first, second = open_studies(tmp_path), open_studies(tmp_path)
    with first.claim(1) as mine, second.claim(1) as theirs, second.claim(1) as none:
        assert mine is not None
        assert theirs is not None
        assert {mine.facts.name, theirs.facts.name} == {"a-t0", "b-t0"}
        assert none is None
    with second.claim(1) as left:
        assert left is not None
        assert left.facts.values == mine.facts.values


def test_a_trial_below_the_median_is_pruned_and_a_value_that_is_no_number_fails(tmp_path: Path) -> None:
    studies = Studies(tmp_path, {"a": SPACE}, SEARCH)
    for value in (0.5, 0.6):
        with studies.claim(9) as own:
            assert isinstance(own, OwnTrial)
            own.report(1, value)
            own.complete(value)
    with studies.claim(9) as own:
        assert own is not None
        with pytest.raises(PrunedError):
            own.report(1, 0.1)
        own.prune()
    with studies.claim(9) as own:
        assert own is not None
        own.complete(float("nan"))
    found = studies.trials()
    assert [trial.status for trial in found] == ["complete", "complete", "pruned", "failed"]
    assert found[3].error == "the validation metric is nan"
    assert best_trials(found)["a"].number == 1
    assert studies.importances("a") == {}


def test_importance_tells_the_setting_that_decides(tmp_path: Path) -> None:
    studies = Studies(tmp_path, {"a": SPACE}, SEARCH)
    work(studies, 3)
    assert studies.importances("a") == {}
    work(studies, 4)
    assert sum(studies.importances("a").values()) == pytest.approx(1)
    work(studies, 30)
    found = studies.importances("a")
    assert found["x"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


def test_of_equal_values_the_first_is_best_and_negative_ones_count() -> None:
    def trial(number: int, value: float | None) -> Trial:
        return Trial("a", number, {}, "complete" if value is not None else "failed", value, {}, "", 0.0)

    assert best_trials([trial(0, None), trial(1, -0.3), trial(2, -0.2), trial(3, -0.2)])["a"].number == 2
    assert best_trials([trial(0, None)]) == {}
