"""Machine checks that nothing made for training has seen validation or test."""

from __future__ import annotations

import dataclasses
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.sparse import csr_array

from pipelines.dataset import SPLITS, Dataset, Side, SplitName, graph_hash
from pipelines.errors import LeakError

EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the audit.

    Attributes:
        name: what was checked.
        passed: None for a fact that is neither good nor bad.
        count: offending or reported pairs, users, ...
        detail: one sentence, with the first offenders by raw id.
    """

    name: str
    passed: bool | None
    count: int
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, as in ``manifest.json``."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Audit:
    """All checks of a split."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def raise_if_failed(self) -> None:
        """Raise LeakError naming each failed check and its first offenders."""
        failed = [check for check in self.checks if check.passed is False]
        if failed:
            raise LeakError("leak audit failed: " + "; ".join(f"{check.name}: {check.detail}" for check in failed))


def audit_split(dataset: Dataset) -> Audit:
    """Check the splits of a dataset against each other.

    ``pair_overlap`` (a pair in two splits) and ``time_order`` (under global_time: an event of an earlier split that is
    later than the cut) can fail. Entities that training never sees, and for other protocols events that are later than
    the first test event, are reported as facts. Each check reads the columns that it needs, so that memory stays small.
    """
    checks = [_overlap(dataset)]
    if "timestamp" in dataset.manifest.columns:
        checks.append(_time_order(dataset))
    checks += [_cold(dataset, "user", dataset.users), _cold(dataset, "item", dataset.items)]
    return Audit(tuple(checks))


def _overlap(dataset: Dataset) -> Check:
    """Rows are by (user, item), so that a pair in two splits has neighbours that differ in the split alone."""
    user, item, split = _columns(dataset, "user", "item", "split")
    twice = (user[1:] == user[:-1]) & (item[1:] == item[:-1]) & (split[1:] != split[:-1])
    rows = np.flatnonzero(twice)
    if not rows.size:
        return Check("pair_overlap", passed=True, count=0, detail="no pair is in two splits")
    shown = "; ".join(
        f"{_pair(dataset, user[row], item[row])} in {SPLITS[split[row]]} and {SPLITS[split[row + 1]]}"
        for row in rows[:EXAMPLES]
    )
    advice = "remove them from one, or let `filters.deduplicate: none` drop them from the later one"
    detail = f"{rows.size:,} pairs are in two splits: {shown}; {advice}"
    return Check("pair_overlap", passed=False, count=int(rows.size), detail=detail)


def _time_order(dataset: Dataset) -> Check:
    time, split = _columns(dataset, "timestamp", "split")
    facts = dataset.manifest.split
    if facts.get("method") != "global_time":
        first = time[split == 2].min(initial=np.iinfo(np.int64).max)
        late = int(np.count_nonzero(time[split == 0] > first))
        detail = f"{late:,} training events are later than the first test event (the protocol is not by global time)"
        return Check("time_order", None, late, detail)
    belongs = (time > facts["train_until"]).astype(np.uint8) + (time > facts["valid_until"])
    rows = np.flatnonzero(belongs != split)
    if not rows.size:
        return Check("time_order", passed=True, count=0, detail="every split lies on its side of the cuts")
    row = int(rows[0])
    pair = _pair(dataset, *(column[row] for column in _columns(dataset, "user", "item")))
    detail = (
        f"{rows.size:,} events are on the wrong side of the cuts, first {pair} at {time[row]} in {SPLITS[split[row]]}"
    )
    return Check("time_order", passed=False, count=int(rows.size), detail=detail)


def _cold(dataset: Dataset, side: Side, raw: pl.DataFrame) -> Check:
    index, split = _columns(dataset, side, "split")
    earliest = _earliest_split(index, split, raw.height)
    cold = np.flatnonzero((earliest == 1) | (earliest == 2))
    names = ", ".join(raw["raw_id"].gather(cold[:EXAMPLES]).to_list())
    detail = f"{cold.size:,} {side}s of validation or test never occur in training"
    return Check(f"cold_{side}s", None, int(cold.size), detail + (f", first {names}" if names else ""))


@numba.njit(cache=True)
def _earliest_split(index: npt.NDArray[Any], split: npt.NDArray[Any], size: int) -> npt.NDArray[np.uint8]:
    earliest = np.full(size, 3, dtype=np.uint8)
    for row in range(len(index)):
        earliest[index[row]] = min(earliest[index[row]], split[row])
    return earliest


def _columns(dataset: Dataset, *names: str) -> list[npt.NDArray[Any]]:
    """Columns of all interactions, one read after the other."""
    return [dataset.frame(columns=[name])[name].to_numpy() for name in names]


def _pair(dataset: Dataset, user: int, item: int) -> str:
    users, items = dataset.users["raw_id"], dataset.items["raw_id"]
    return f"(user {users[int(user)]!r}, item {items[int(item)]!r})"


def audit_artifact(
    name: str,
    artifact: csr_array | npt.NDArray[Any] | str,
    dataset: Dataset,
    allowed: tuple[SplitName, ...] = ("train",),
) -> Check:
    """Check something that was made for training.

    Args:
        name: for the audit: ``graph``, ``clusters``, ``popularity``, ``negatives``, ...
        artifact: a graph or rejected positives as CSR [users, items], or pairs int [n, 2]: they must lie within the
            allowed splits; item counts [num_items]: they must equal the allowed interactions' counts; or the
            :func:`graph_hash` of the graph that clusters or an IdMap were made from: it must be the allowed splits'.
        dataset: the dataset.
        allowed: ``("train", "valid")`` for a refit after selection.

    Raises:
        LeakError: The artifact has seen anything else; the message has the first offending pairs by raw id.
        ValueError: The artifact is none of these, or its shape is not the dataset's.
    """
    train = dataset.matrix(*allowed)
    match artifact:
        case str():
            check = _audit_hash(name, artifact, dataset, train, allowed)
        case np.ndarray() if artifact.ndim == 1:
            check = _audit_counts(name, artifact, dataset, train, allowed)
        case np.ndarray() if artifact.ndim == 2 and artifact.shape[1] == 2:
            ones = np.ones(len(artifact), dtype=np.float32)
            check = _audit_edges(name, csr_array((ones, artifact.T), shape=train.shape), dataset, train, allowed)
        case csr_array():
            check = _audit_edges(name, artifact, dataset, train, allowed)
        case _:
            raise ValueError(
                f"audit of {name}: needs csr_array [users, items], pairs [n, 2], counts [num_items] or a hash,"
                f" got {type(artifact).__name__} of shape {getattr(artifact, 'shape', None)}"
            )
    Audit((check,)).raise_if_failed()
    return check


def audit_negatives(
    name: str, knowledge: dict[str, npt.NDArray[np.int64]], dataset: Dataset, allowed: tuple[SplitName, ...]
) -> list[Check]:
    """Check what the negatives of a training knew of the interactions.

    Args:
        name: of the training, for the audit.
        knowledge: see :meth:`recsys.samplers.NegativeSampler.knowledge`.
        dataset: the dataset.
        allowed: the splits that were trained on.

    Raises:
        LeakError: The proposals were made from other counts, or a pair of another split was rejected.
    """
    checks = [audit_artifact(f"negatives of {name}: counts", knowledge["counts"], dataset, allowed)]
    if "known" in knowledge:
        checks.append(audit_artifact(f"negatives of {name}: rejected pairs", knowledge["known"], dataset, allowed))
    return checks


def _audit_edges(
    name: str, graph: csr_array, dataset: Dataset, train: csr_array, allowed: tuple[SplitName, ...]
) -> Check:
    if graph.shape != train.shape:
        raise ValueError(f"audit of {name}: shape {list(graph.shape)} is not the dataset's {list(train.shape)}")
    edges = csr_array((np.ones(graph.nnz, dtype=np.float32), graph.indices, graph.indptr), shape=graph.shape)
    edges.sum_duplicates()
    edges.data[:] = 1.0
    extra = csr_array(edges - edges.multiply(train))
    extra.eliminate_zeros()
    where = "+".join(allowed)
    if not extra.nnz:
        return Check(name, passed=True, count=0, detail=f"all {edges.nnz:,} pairs are of {where}")
    users, items = extra.nonzero()
    shown = "; ".join(_pair(dataset, int(u), int(i)) for u, i in zip(users[:EXAMPLES], items[:EXAMPLES], strict=True))
    detail = f"{extra.nnz:,} of {edges.nnz:,} pairs are not of {where}: {shown}; build it from {where} alone"
    return Check(name, passed=False, count=int(extra.nnz), detail=detail)


def _audit_counts(
    name: str, counts: npt.NDArray[Any], dataset: Dataset, train: csr_array, allowed: tuple[SplitName, ...]
) -> Check:
    expected = np.bincount(train.indices, minlength=train.shape[1])
    if counts.shape != expected.shape:
        raise ValueError(f"audit of {name}: {len(counts)} counts for {len(expected)} items")
    wrong = np.flatnonzero(counts != expected)
    where = "+".join(allowed)
    if not wrong.size:
        return Check(name, passed=True, count=0, detail=f"equal to the counts of {where}")
    raw = dataset.items["raw_id"]
    shown = "; ".join(f"item {raw[int(i)]!r} has {counts[i]:g}, {where} has {expected[i]}" for i in wrong[:EXAMPLES])
    detail = f"{wrong.size:,} counts are not those of {where}: {shown}"
    return Check(name, passed=False, count=int(wrong.size), detail=detail)


def _audit_hash(name: str, found: str, dataset: Dataset, train: csr_array, allowed: tuple[SplitName, ...]) -> Check:
    expected = dataset.manifest.train_hash if allowed == ("train",) else graph_hash(train)
    where = "+".join(allowed)
    if found == expected:
        return Check(name, passed=True, count=0, detail=f"made from the graph of {where}")
    detail = f"made from graph {found[:12]}, but the graph of {where} is {expected[:12]}; build it from {where} alone"
    return Check(name, passed=False, count=1, detail=detail)
