"""How interactions become train, validation and test; validation always exists."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from pipelines import config
from pipelines.errors import DataError
from pipelines.ingest.events import Array, Events, degrees

TRAIN, VALID, TEST = 0, 1, 2
Split = npt.NDArray[np.uint8]
Facts = dict[str, Any]


def assign_splits(events: Events, settings: config.Split) -> tuple[Split, Facts]:
    """Split of every event (0 train, 1 valid, 2 test), and the facts of the protocol.

    Args:
        events: in canonical order (user, item), so that the outcome does not depend on the order of the files.
        settings: method and shares; ``auto`` is given splits, else global time, else a share of each user's events.

    Returns:
        uint8 [n], and JSON-able facts: method, cut times, users without validation or test interactions.

    Raises:
        DataError: The method needs a column that is not there, or a split would be empty.
    """
    method = settings.method
    if method == "auto":
        method = (
            "given" if "split" in events.columns else "global_time" if "timestamp" in events.columns else "user_ratio"
        )
    facts: Facts = {"method": method, "seed": settings.seed}
    match method:
        case "given":
            split = _given(events, settings, facts)
        case "global_time":
            split = _global_time(events, settings, facts)
        case "leave_last_n":
            split = _leave_last_n(events, settings, facts)
        case "user_ratio":
            facts |= {"valid": settings.valid, "test": settings.test}
            counts = degrees(events.user, len(events.users))
            split = _tails(events, settings, facts, _share(counts, settings.valid), _share(counts, settings.test))
        case _:
            split = _random_ratio(events, settings, facts)
    describe_splits(events, split, settings, facts)
    return split, facts


def describe_splits(events: Events, split: Split, settings: config.Split, facts: Facts) -> None:
    """Put the users without an interaction in a split into ``facts``.

    Raises:
        DataError: A split is empty.
    """
    for code, name in enumerate(("train", "valid", "test")):
        users = degrees(events.user[split == code], len(events.users)) > 0
        facts[f"users_without_{name}"] = int(np.count_nonzero(~users))
        if not users.any():
            raise DataError(
                f"the {name} split is empty: method {facts['method']} on {len(events):,} interactions of"
                f" {len(events.users):,} users with valid {settings.valid} and test {settings.test};"
                " choose other shares or another method"
            )


def _share(counts: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    rounded: npt.NDArray[np.int64] = np.floor(counts * share + 0.5).astype(np.int64)
    return rounded


def _given(events: Events, settings: config.Split, facts: Facts) -> Split:
    if "split" not in events.columns:
        raise DataError(
            "split.method is given, but there is no split column; set `columns.split` to a column of train, valid and"
            " test, or choose another method"
        )
    split: Split = events.columns["split"].astype(np.uint8)
    if (split == VALID).any():
        facts["valid_from"] = "source"
        return split
    facts |= {"valid_from": "train", "valid": settings.valid}
    rows = np.flatnonzero(split == TRAIN)
    train = Events(
        events.user[rows],
        events.item[rows],
        {name: column[rows] for name, column in events.columns.items()},
        events.users,
        events.items,
    )
    counts = degrees(train.user, len(train.users))
    split[rows] = _tails(train, settings, facts, _share(counts, settings.valid), np.zeros_like(counts))
    return split


def _global_time(events: Events, settings: config.Split, facts: Facts) -> Split:
    """Cut all events at two times; events at the time of a cut go to the earlier side."""
    time = _needed(events, "timestamp", "global_time")
    n = len(events)
    if settings.valid + settings.test >= 1:
        raise DataError(f"split.valid + split.test must be below 1, got {settings.valid} + {settings.test}")
    last_train = min(max(int(np.floor(n * (1 - settings.valid - settings.test) + 0.5)) - 1, 0), n - 1)
    last_valid = min(max(int(np.floor(n * (1 - settings.test) + 0.5)) - 1, 0), n - 1)
    cuts = np.partition(time, sorted({last_train, last_valid}))
    train_until, valid_until = int(cuts[last_train]), int(cuts[last_valid])
    facts |= {"valid": settings.valid, "test": settings.test, "train_until": train_until, "valid_until": valid_until}
    split: Split = (time > train_until).astype(np.uint8)
    split += time > valid_until
    return split


def _leave_last_n(events: Events, settings: config.Split, facts: Facts) -> Split:
    """The last n events of each user are test, the n before validation; one stays in train, then test fills first."""
    if not _order_columns(events):
        raise DataError("split.method leave_last_n needs a timestamp or position column; set `columns.timestamp`")
    facts["n"] = settings.n
    counts = degrees(events.user, len(events.users))
    facts["users_with_too_few"] = int(np.count_nonzero(counts < 2 * settings.n + 1))
    wanted = np.full_like(counts, settings.n)
    return _tails(events, settings, facts, wanted, wanted)


def _random_ratio(events: Events, settings: config.Split, facts: Facts) -> Split:
    facts |= {"valid": settings.valid, "test": settings.test}
    order = _random(settings).permutation(len(events))
    test = int(len(events) * settings.test + 0.5)
    valid = int(len(events) * settings.valid + 0.5)
    split = np.zeros(len(events), dtype=np.uint8)
    split[order[:test]] = TEST
    split[order[test : test + valid]] = VALID
    return split


def _random(settings: config.Split) -> np.random.Generator:
    from recsys.rng import generator  # brings torch, which splits by time do without

    return generator(settings.seed, "split")


def _needed(events: Events, name: str, method: str) -> Array:
    if name not in events.columns:
        raise DataError(f"split.method {method} needs a {name} column; set `columns.{name}` or choose another method")
    return events.columns[name]


def _order_columns(events: Events) -> list[str]:
    """What :meth:`pipelines.dataset.Dataset.sequences` orders by too, the first name first."""
    return [name for name in ("timestamp", "position") if name in events.columns]


def _order_key(events: Events, names: list[str]) -> Array:
    """Int64 [n] that grows with the columns, and is equal where all of them are."""
    if len(names) == 1:
        return events.columns[names[0]].astype(np.int64)
    columns = [events.columns[name] for name in names]
    order = np.lexsort(columns[::-1])
    new = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    key = np.zeros(len(events), dtype=np.int64)
    key[order[1:]] = np.cumsum(new)
    return key


def _tails(events: Events, settings: config.Split, facts: Facts, valid: Array, test: Array) -> Split:
    """The last events of each user, by time, then position (what there is), else at random; one stays in train.

    Events that tie at a cut of their user fall on its sides at random, whatever their items are.
    """
    names = _order_columns(events)
    random = _random(settings).integers(0, 2**62, size=len(events))
    facts["order"] = ", ".join(names) or "random"
    starts = np.concatenate([[0], np.cumsum(degrees(events.user, len(events.users)))])
    tied: int
    split: Split
    split, tied = _tail_kernel(starts, _order_key(events, names) if names else random, random, valid, test)
    if names:
        facts["users_with_tied_cut"] = tied
    return split


@numba.njit(cache=True)
def _tail_kernel(starts: Array, key: Array, tie_break: Array, valid: Array, test: Array) -> tuple[Array, int]:
    """Split of every event, and the users with equal keys on both sides of a cut."""
    split = np.zeros(len(key), dtype=np.uint8)
    tied = 0
    for user in range(len(starts) - 1):
        begin, end = starts[user], starts[user + 1]
        tests = min(test[user], max(end - begin - 1, 0))
        valids = min(valid[user], max(end - begin - 1 - tests, 0))
        keys = key[begin:end]
        order = np.argsort(keys, kind="mergesort")
        first_test = len(order) - tests
        first_valid = first_test - valids
        tie = tests > 0 and keys[order[first_test - 1]] == keys[order[first_test]]
        if tie or (valids > 0 and keys[order[first_valid - 1]] == keys[order[first_valid]]):
            shuffled = np.argsort(tie_break[begin:end])
            order = shuffled[np.argsort(keys[shuffled], kind="mergesort")]
            tied += 1
        for place in range(first_valid, len(order)):
            split[begin + order[place]] = TEST if place >= first_test else VALID
    return split, tied
