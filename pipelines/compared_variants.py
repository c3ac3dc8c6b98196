"""Which variant of a run is compared with which of the reference run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.errors import DataError, did_you_mean
from pipelines.run_files import VariantResult, validation_metric


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The variants of a run that can be compared.

    Attributes:
        run: its directory.
        names: in the order of the run.
        chosen: what stands for the run beside variants of another name; None where nothing but test could choose it.
    """

    run: Path
    names: tuple[str, ...]
    chosen: str | None


def best_variant(results: Sequence[VariantResult], otherwise: str | None = None) -> str | None:
    """The only variant, or the best on validation by the mean of its seeds; None where validation measured none.

    Args:
        results: of every variant and seed.
        otherwise: the metric to choose by where validation measured none.
    """
    seeds: dict[str, list[VariantResult]] = {}
    for result in results:
        seeds.setdefault(result.name, []).append(result)
    if len(seeds) == 1:
        return results[0].name
    metric = validation_metric(results) or otherwise
    if metric is None:
        return None
    whole = {name: own for name, own in seeds.items() if all(metric in one.metrics for one in own)}
    means = {name: float(np.mean([one.metrics[metric] for one in own])) for name, own in whole.items()}
    return max(means, key=means.__getitem__, default=None)


def matched(runs: Sequence[Candidates], named: Sequence[str] = ()) -> list[tuple[int, str, str]]:
    """Every run but the first one against the first: variants of the same name, then the chosen ones.

    Args:
        runs: the reference run first.
        named: a variant for all runs or one for each of them, which alone are compared; empty for all.

    Returns:
        Place of the run, its variant and that of the reference.

    Raises:
        DataError: A run lacks a named variant, or has none to compare.
    """
    if named:
        names = _named(runs, named)
        return [(place, names[place], names[0]) for place in range(1, len(runs))]
    reference, found = runs[0], []
    for place, run in enumerate(runs[1:], start=1):
        pairs = [(name, name) for name in run.names if name in reference.names]
        if run.chosen is not None and reference.chosen is not None:
            pairs.append((run.chosen, reference.chosen))
        if not pairs:
            undecided = run if run.chosen is None else reference
            raise DataError(
                f"{run.run} and {reference.run} have no variant of the same name, and validation measured none of"
                f" {', '.join(undecided.names)} of {undecided.run}, so that only test could choose among them; name"
                " the variant of each run, in the order of the runs: --variant NAME --variant NAME"
            )
        found += [(place, name, against) for name, against in dict.fromkeys(pairs)]
    return found


def _named(runs: Sequence[Candidates], named: Sequence[str]) -> Sequence[str]:
    if len(named) not in (1, len(runs)):
        raise DataError(
            f"--variant names one variant for all runs, or one for each of the {len(runs)} in their order; got"
            f" {len(named)}: {', '.join(named)}"
        )
    names = [*named] * len(runs) if len(named) == 1 else named
    for run, name in zip(runs, names, strict=True):
        if name not in run.names:
            raise DataError(
                f"{run.run} has no variant {name!r} with values of this metric{did_you_mean(name, run.names)}"
                f" (there are {', '.join(run.names)})"
            )
    return names
