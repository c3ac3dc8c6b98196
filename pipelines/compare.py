"""Paired comparison of several runs on the users that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipelines.atomic import write_text
from pipelines.compared_variants import Candidates, best_variant, matched
from pipelines.errors import DataError, did_you_mean
from pipelines.report import words
from pipelines.report.data import PerUser, Run, VariantRun, per_user_values
from pipelines.report.render import render
from pipelines.run_schema import DatasetFacts
from recsys.significance import holm, paired_test

ALPHA = 0.05
COLUMNS = (
    "variant",
    "run",
    "value",
    "against",
    "its value",
    "difference",
    "95 % interval",
    "relative",
    "Holm p",
    "verdict",
)

CHOICE = "Unless they were named, variants of unequal names are the best on validation by the mean of their seeds."
"""Which variant of a run stands for it beside one of another name."""


@dataclasses.dataclass(frozen=True)
class ComparedPair:
    """Variant ``name`` of ``run`` against variant ``against`` of the reference run, on the same users.

    Values are means over users and seeds; ``difference`` is this run minus the reference; ``p`` is corrected by Holm
    over all pairs of the comparison.
    """

    run: str
    name: str
    value: float
    against: str
    against_value: float
    difference: float
    low: float
    high: float
    relative: float
    p: float
    users: int
    lower_is_better: bool = False

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no difference shown``."""
        if self.p >= ALPHA:
            return "no difference shown"
        return "better" if (self.difference > 0) != self.lower_is_better else "worse"

    def cells(self) -> list[str]:
        """The row as text, in the order of :data:`COLUMNS`."""
        relative = words.percent(self.relative, signed=True) if self.relative == self.relative else "–"
        return [
            self.name,
            self.run,
            words.metric(self.value),
            self.against,
            words.metric(self.against_value),
            words.difference(self.difference),
            words.interval((self.low, self.high)),
            relative,
            words.p_value(self.p),
            self.verdict,
        ]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Every other run against the first one; ``str()`` gives a plain table, see also :meth:`markdown`, :meth:`html`."""

    reference: str
    metric: str
    pairs: tuple[ComparedPair, ...]
    on_test: tuple[str, ...] = ()
    """Labels of the runs whose epochs were selected on test."""
    runs: int = 0
    sample: str = "common users"
    seeds: str = "means over seeds"
    method: str = "paired sign-flip test"
    note: str = (
        "Values are means over users and seeds. Difference: the run in the second column minus the reference, with its"
        " 95 % bootstrap interval over users. p: sign-flip permutation test on the same users, corrected by Holm."
        f" {CHOICE}"
    )

    def __str__(self) -> str:
        rows = [list(COLUMNS), *(pair.cells() for pair in self.pairs)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.heading, "", lines[0], "  ".join("-" * width for width in widths), *lines[1:]])

    @property
    def heading(self) -> str:
        """What is compared, in a line."""
        users = f"{min(pair.users for pair in self.pairs):,}"
        line = (
            f"{self.metric} on test against run {self.reference}, {users} {self.sample}, {self.seeds}, {self.method},"
            f" Holm over {len(self.pairs)} pairs"
        )
        if not self.on_test:
            return line
        line += f"; epochs selected on test: {', '.join(self.on_test)}"
        if len(self.on_test) < self.runs:
            line += ". WARNING: the other runs selected on validation, so that the comparison favours those on test"
        return line

    def markdown(self) -> str:
        """A GitHub table."""
        rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(pair.cells() for pair in self.pairs)]
        lines = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        return "\n".join([self.heading, "", *lines, ""])

    def html(self) -> str:
        """A self-contained page."""
        return render("compare.html", comparison=self, columns=COLUMNS)

    def write(self, path: Path) -> None:
        """Write ``path`` as HTML or Markdown by its suffix.

        Raises:
            DataError: The suffix is neither .html nor .md.
        """
        if path.suffix not in (".html", ".md"):
            raise DataError(f"a comparison is written as .html or .md, got {path.name!r}")
        write_text(path, self.html() if path.suffix == ".html" else self.markdown())


def compare_runs(
    runs: list[Path], metric: str | None = None, out: Path | None = None, variants: Sequence[str] = ()
) -> Comparison:
    """Compare every run with the first: variants of the same name, and the best on validation with the best.

    Args:
        runs: run directories on the same data, two or more.
        metric: a per-user metric of the test split; None for the one that selected the epochs of the first run.
        out: where to write the table, too (.html or .md); None for nowhere.
        variants: the only ones to compare, see :func:`pipelines.compared_variants.matched`.

    Raises:
        DataError: Fewer than two runs, other data (dataset hash), an unknown metric, no common variant or user.
    """
    if len(runs) < 2:
        raise DataError(f"a comparison needs two runs or more, got {len(runs)}")
    loaded = [Run(path) for path in runs]
    metric = metric or loaded[0].selection
    check_same_data([(run.files.directory, run.results.dataset) for run in loaded])
    values = [_values(run, metric) for run in loaded]
    labels = run_labels([run.files.directory for run in loaded])
    candidates = [_candidates(run, found) for run, found in zip(loaded, values, strict=True)]
    found = [
        _pair(labels[i], values[i], name, values[0], against) for i, name, against in matched(candidates, variants)
    ]
    corrected = holm([pair.p for pair in found])
    pairs = tuple(dataclasses.replace(pair, p=p) for pair, p in zip(found, corrected, strict=True))
    on_test = tuple(label for label, run in zip(labels, loaded, strict=True) if run.results.selected_on == "test")
    comparison = Comparison(labels[0], metric, pairs, on_test, len(runs))
    if out is not None:
        comparison.write(out)
    return comparison


def check_same_data(runs: Sequence[tuple[Path, DatasetFacts]]) -> None:
    """Raise DataError unless all runs, told by directory and data, have the dataset of the first."""
    first, data = runs[0]
    for run, other in runs[1:]:
        if other.hash != data.hash:
            raise DataError(
                f"runs must be on the same data to share users, but {first} has dataset hash {data.hash[:12]}"
                f" ({data.name}) and {run} has {other.hash[:12]} ({other.name}); run both on one dataset configuration"
            )


def run_labels(runs: Sequence[Path]) -> list[str]:
    """Directory names; numbered where two runs have the same one."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names, start=1)]


def _values(run: Run, metric: str) -> PerUser:
    values = per_user_values(run.files, run.variants, metric)
    if values is None:
        known = {name for v in run.variants for name in _per_user_metrics(run, v)}
        raise DataError(
            f"{run.files.directory} has no per-user values of {metric!r} on test; {did_you_mean(metric, sorted(known))}"
        )
    return values


def _per_user_metrics(run: Run, variant: VariantRun) -> list[str]:
    frame = run.files.per_user(variant.name, variant.first.seed)
    return [] if frame is None else frame.columns[2:]


def _candidates(run: Run, values: PerUser) -> Candidates:
    """The variants with values, and of the learned ones the :func:`best_variant`.

    A run that selected on test, which the comparison says, has its best on test.
    """
    names = tuple(values.values)
    eligible = [run.variant(name) for name in names if not run.variant(name).is_baseline]
    eligible = eligible or [run.variant(name) for name in names]
    results = [result for variant in eligible for result in variant.results]
    on_test = f"test/{run.selection}" if run.results.selected_on == "test" else None
    return Candidates(run.files.directory, names, best_variant(results, on_test))


def _pair(label: str, mine: PerUser, name: str, theirs: PerUser, against: str) -> ComparedPair:
    place = {user: i for i, user in enumerate(theirs.users.tolist())}
    shared = [i for i, user in enumerate(mine.users.tolist()) if user in place]
    if not shared:
        raise DataError(f"run {label} and the reference have no evaluated user in common")
    a = mine.mean(name)[shared]
    b = theirs.mean(against)[[place[user] for user in mine.users[shared].tolist()]]
    test = paired_test(a, b, 0)
    return ComparedPair(
        run=label,
        name=name,
        value=float(a.mean()),
        against=against,
        against_value=float(b.mean()),
        difference=test.difference,
        low=test.low,
        high=test.high,
        relative=test.relative,
        p=test.p,
        users=test.users,
    )
