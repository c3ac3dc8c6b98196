"""The trials of a sweep on disk, shared by all its processes. The only module that imports optuna.

One journal file holds a study for each variant. A process owns a trial while it holds the lock of its directory,
which the kernel releases when the process dies, however it dies; the next process to ask for work then goes on with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from pipelines.cache import locked, try_locked
from pipelines.config_search import Range, Search
from pipelines.sweep.space import Space
from recsys.rng import generator

JOURNAL = "trials.jsonl"
IMPORTANCE_TRIALS = 4
"""Complete trials without which importances are not told; how many they rest on is told with them."""
MAX_STARTS = 3
"""Processes that may die in a trial without an epoch between them: one that exhausts memory must not end the sweep."""
_STARTS = "starts"
"""Attribute of a trial: starts since its last new epoch, and epochs at that time."""
Status = Literal["running", "complete", "pruned", "failed"]
_STATUS: dict[TrialState, Status] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial as its readers see it.

    Attributes:
        variant: whose settings were tried.
        number: 0-based, within the variant.
        values: dotted path -> value.
        status: where it stands.
        value: validation metric at its best epoch; None unless complete.
        epochs: validation metric by epoch.
        error: why it failed, else empty.
        seconds: that it took, 0 while it runs.
    """

    variant: str
    number: int
    values: dict[str, Any]
    status: Status
    value: float | None
    epochs: dict[int, float]
    error: str
    seconds: float

    @property
    def name(self) -> str:
        """Name of the trial in the sweep."""
        return f"{self.variant}-t{self.number}"


class PrunedError(Exception):
    """The trial is below the median of the others; nothing is wrong."""


class OwnTrial:
    """A trial that this process works on.

    Attributes:
        facts: its variant, number and values.
        directory: for its training; survives a killed process.
    """

    def __init__(self, facts: Trial, directory: Path, study: optuna.Study, trial: optuna.Trial) -> None:
        self.facts, self.directory = facts, directory
        self._study, self._trial = study, trial
        self._reported = set(facts.epochs)

    def record(self, epoch: int, value: float) -> None:
        """Keep the validation metric of an epoch, once."""
        if epoch not in self._reported:
            self._reported.add(epoch)
            self._trial.report(value, epoch)

    def report(self, epoch: int, value: float) -> None:
        """Keep the validation metric of an epoch, and stop a trial that need not go on.

        Raises:
            PrunedError: It is below the median of the others.
        """
        self.record(epoch, value)
        if self._trial.should_prune():
            raise PrunedError

    def complete(self, value: float) -> None:
        """End with the validation metric of the best epoch; one that is not finite is a failure."""
        if math.isfinite(value):
            self._study.tell(self._trial, value)
        else:
            self.fail(f"the validation metric is {value}")

    def prune(self) -> None:
        """End early."""
        self._study.tell(self._trial, state=TrialState.PRUNED)

    def fail(self, error: str) -> None:
        """End without a value."""
        self._trial.set_user_attr("error", error)
        self._study.tell(self._trial, state=TrialState.FAIL)


class Studies:
    """All trials of a sweep.

    Args:
        directory: of the sweep; gets the journal and a folder for each running trial.
        spaces: of the variants, by name.
        search: sampler, seed, pruning.
    """

    def __init__(self, directory: Path, spaces: Mapping[str, Space], search: Search) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._directory, self._spaces, self._search = directory, spaces, search
        journal = directory / JOURNAL
        storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=_FileLock(journal)))
        with self._claiming():
            self._studies = {
                name: optuna.create_study(
                    storage=storage,
                    study_name=name,
                    direction="maximize",
                    pruner=_pruner(search),
                    sampler=_sampler(search, name, 0),
                    load_if_exists=True,
                )
                for name in spaces
            }

    @contextlib.contextmanager
    def claim(self, limit: int) -> Iterator[OwnTrial | None]:
        """Own a trial inside the block: one that a killed process left, else a new one of the variant with the fewest.

        Args:
            limit: trials that a variant has at most; with all of them taken the block gets None.
        """
        with contextlib.ExitStack() as held:
            with self._claiming():
                own = self._left(held) or self._new(limit, held)
            yield own

    def trials(self) -> list[Trial]:
        """All trials of all variants, in the order of the experiment."""
        return [
            _facts(name, frozen) for name, study in self._studies.items() for frozen in study.get_trials(deepcopy=False)
        ]

    def importances(self, variant: str) -> dict[str, float]:
        """Share of each setting in reaching the best tenth of the trials; empty with too few trials.

        Source: PED-ANOVA (Watanabe et al. 2023).
        """
        study = self._studies[variant]
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < IMPORTANCE_TRIALS or len({frozen.value for frozen in complete}) < 2:
            return {}
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())

    def _claiming(self) -> contextlib.AbstractContextManager[None]:
        return locked(self._directory / "claim.lock", lambda: None)

    def _left(self, held: contextlib.ExitStack) -> OwnTrial | None:
        """A running trial that nobody holds."""
        for name, study in self._studies.items():
            for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if not self._hold(name, frozen.number, held):
                    continue
                frozen = study.get_trials(deepcopy=False)[frozen.number]  # noqa: PLW2901
                if frozen.state != TrialState.RUNNING:
                    continue  # it ended before its lock was free
                study.sampler = _sampler(self._search, name, frozen.number)
                trial = optuna.Trial(study, frozen._trial_id)
                starts, before = frozen.user_attrs.get(_STARTS, (1, 0))
                epochs = len(frozen.intermediate_values)
                starts = starts + 1 if epochs == before else 1
                trial.set_user_attr(_STARTS, (starts, epochs))
                own = self._own(name, trial)
                if starts <= MAX_STARTS:
                    return own
                own.fail(
                    f"{MAX_STARTS} processes died or were stopped in it, none finished an epoch; too little memory?"
                )
        return None

    def _new(self, limit: int, held: contextlib.ExitStack) -> OwnTrial | None:
        counts = {name: len(study.get_trials(deepcopy=False)) for name, study in self._studies.items()}
        name = min(counts, key=lambda name: counts[name])
        if counts[name] >= limit:
            return None
        study = self._studies[name]
        study.sampler = _sampler(self._search, name, counts[name])
        self._hold(name, counts[name], held)
        return self._own(name, study.ask())

    def _own(self, name: str, trial: optuna.Trial) -> OwnTrial:
        study = self._studies[name]
        values = {path: _suggest(trial, path, space) for path, space in self._spaces[name].items()}
        facts = _facts(name, study.get_trials(deepcopy=False)[trial.number])
        return OwnTrial(dataclasses.replace(facts, values=values), self._folder(name, trial.number), study, trial)

    def _folder(self, name: str, number: int) -> Path:
        return self._directory / "trials" / f"{name}-t{number}"

    def _hold(self, name: str, number: int, held: contextlib.ExitStack) -> bool:
        """Take the lock of a trial until ``held`` closes; False where another process has it."""
        folder = self._folder(name, number)
        folder.parent.mkdir(exist_ok=True)
        return held.enter_context(try_locked(folder.with_name(f"{folder.name}.lock")))


class _FileLock(JournalFileOpenLock):
    """Lock of the journal that dies with its holder; the end that a killed writer left torn is cut off."""

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        self._file = self._journal.with_suffix(".lock").open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with self._journal.open("r+b") as journal:
            if journal.seek(0, os.SEEK_END) and (journal.seek(-1, os.SEEK_END), journal.read())[1] != b"\n":
                journal.truncate(self._journal.read_bytes().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        assert self._file is not None
        self._file.close()


def _sampler(search: Search, variant: str, number: int) -> BaseSampler:
    """A sampler for one trial: what it draws depends on the trials before it, not on the process that draws."""
    seed = int(generator(search.seed, "sweep", variant, number).integers(2**31))
    if search.sampler == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=search.startup_trials)


def _pruner(search: Search) -> BasePruner:
    if not search.prune:
        return NopPruner()
    return MedianPruner(n_startup_trials=search.prune_after_trials, n_warmup_steps=search.prune_after_epochs)


def _suggest(trial: optuna.Trial, path: str, values: Range) -> Any:
    """A value of a range; choices that are no numbers or words go through JSON."""
    if values.choices is not None:
        return json.loads(str(trial.suggest_categorical(path, [json.dumps(choice) for choice in values.choices])))
    low, high = values.ends
    if values.type == "int":
        return trial.suggest_int(path, low, high, step=int(values.step or 1), log=values.log)
    return trial.suggest_float(path, low, high, step=values.step, log=values.log)


def _facts(variant: str, frozen: FrozenTrial) -> Trial:
    values = {path: json.loads(value) if isinstance(value, str) else value for path, value in frozen.params.items()}
    return Trial(
        variant=variant,
        number=frozen.number,
        values=values,
        status=_STATUS[frozen.state],
        value=frozen.value if frozen.state == TrialState.COMPLETE else None,
        epochs=dict(frozen.intermediate_values),
        error=frozen.user_attrs.get("error", ""),
        seconds=frozen.duration.total_seconds() if frozen.duration else 0.0,
    )
