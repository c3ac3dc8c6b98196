"""What is dropped before the split: ratings out of range, duplicates, crowds, and all that is not in the core."""

from __future__ import annotations

from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt

from pipelines import config
from pipelines.errors import DataError
from pipelines.ingest.events import Array, Events, degrees, sort_canonically

Step = dict[str, Any]


def apply_filters(events: Events, settings: config.Filters) -> list[Step]:
    """Filter ``events`` in place and leave it in canonical order (user, item), densely relabelled.

    Duplicates are events of one user, item and, where it is given, split; the last is by timestamp, else by position,
    else by place in the files.

    Returns:
        ``{"step", "events", "users", "items"}`` as read and after each filter that is set.

    Raises:
        DataError: A rating filter without ratings, or nothing is left; the message has the counts of each step.
    """
    steps = [_count("read", events)]
    if settings.min_rating is not None or settings.max_rating is not None:
        if "rating" not in events.columns:
            raise DataError("filters.min_rating and max_rating need a rating column; set `columns.rating`")
        rating = events.columns["rating"]
        low = -np.inf if settings.min_rating is None else settings.min_rating
        high = np.inf if settings.max_rating is None else settings.max_rating
        events.take((rating >= np.float32(low)) & (rating <= np.float32(high)))
        _done(steps, f"rating in [{low:g}, {high:g}]", events)
    sort_canonically(events)
    if settings.deduplicate != "none":
        keep = _one_per_pair(events, settings.deduplicate)
        if not keep.all():
            events.take(keep)
        _done(steps, f"duplicates (keep {settings.deduplicate})", events)
    if settings.max_user_interactions or settings.max_item_interactions:
        most = settings.max_user_interactions or len(events), settings.max_item_interactions or len(events)
        events.take(_within(events, (0, 0), most))
        _done(steps, f"at most {most[0]} per user, {most[1]} per item", events)
    if settings.user_core > 1 or settings.item_core > 1:
        least = settings.user_core, settings.item_core
        rounds = _core(events, least)
        _done(steps, f"user core {least[0]}, item core {least[1]}", events)
        steps[-1]["rounds"] = rounds
    events.relabel()
    return steps


def _count(step: str, events: Events) -> Step:
    users = degrees(events.user, len(events.users))
    items = degrees(events.item, len(events.items))
    return {
        "step": step,
        "events": len(events),
        "users": int(np.count_nonzero(users)),
        "items": int(np.count_nonzero(items)),
    }


def _done(steps: list[Step], step: str, events: Events) -> None:
    steps.append(_count(step, events))
    if not len(events):
        counts = ", ".join(f"{s['step']}: {s['events']:,} left" for s in steps)
        raise DataError(f"no interactions are left after the filter '{step}' ({counts}); loosen `filters`")


def _within(events: Events, least: tuple[int, int], most: tuple[int, int]) -> npt.NDArray[np.bool_]:
    users = degrees(events.user, len(events.users))
    items = degrees(events.item, len(events.items))
    good_users = (users >= least[0]) & (users <= most[0])
    good_items = (items >= least[1]) & (items <= most[1])
    keep: npt.NDArray[np.bool_] = good_users[events.user] & good_items[events.item]
    return keep


def _core(events: Events, least: tuple[int, int]) -> int:
    """Peel users and items below their minimum until none is left; returns the rounds, the last changes nothing."""
    users = degrees(events.user, len(events.users))
    items = degrees(events.item, len(events.items))
    alive = np.ones(len(events), dtype=np.bool_)
    rounds = 1
    while _peel(events.user, events.item, users, items, alive, *least):
        rounds += 1
    if not alive.all():
        events.take(alive)
    return rounds


@numba.njit(cache=True)
def _peel(user: Array, item: Array, users: Array, items: Array, alive: Array, user_core: int, item_core: int) -> int:
    """One pass: an event below a minimum goes, and counts at once for those after it. Returns how many went."""
    gone = 0
    for row in range(len(user)):
        if alive[row] and (users[user[row]] < user_core or items[item[row]] < item_core):
            alive[row] = False
            users[user[row]] -= 1
            items[item[row]] -= 1
            gone += 1
    return gone


def _one_per_pair(events: Events, which: Literal["first", "last"]) -> npt.NDArray[np.bool_]:
    """Mask of the event that stays of each (user, item, split) in events in canonical order."""
    place = events.columns.get("timestamp", events.columns.get("position"))
    split = events.columns.get("split", np.zeros(0, dtype=np.uint8))
    keep: npt.NDArray[np.bool_] = _choose(
        events.user, events.item, np.zeros(0, dtype=np.int64) if place is None else place, split, int(which == "last")
    )
    return keep


@numba.njit(cache=True)
def _choose(user: Array, item: Array, place: Array, split: Array, last: int) -> Array:
    keep = np.zeros(len(user), dtype=np.bool_)
    chosen = np.empty(3, dtype=np.int64)
    begin = 0
    while begin < len(user):
        end = begin + 1
        while end < len(user) and user[end] == user[begin] and item[end] == item[begin]:
            end += 1
        chosen[:] = -1
        for row in range(begin, end):
            part = split[row] if len(split) else 0
            best = chosen[part]
            if best < 0:
                chosen[part] = row
            elif len(place) == 0 or place[row] == place[best]:
                chosen[part] = row if last == 1 else best
            elif (place[row] > place[best]) == (last == 1):
                chosen[part] = row
        for best in chosen:
            if best >= 0:
                keep[best] = True
        begin = end
    return keep
