"""Frappe as NFM published it (He and Chua 2017): held-out parts with labels, train positives without negatives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.ranking.reserved import LABEL
from recsys.rng import generator

FIELDS = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
USERS, ITEMS = 957, 4082
IDS = 5_382
"""Of all fields."""
_CODES = tuple(f"f{place}" for place in range(len(FIELDS)))


def read_frappe(directory: Path, per_positive: int, seed: int) -> tuple[pl.DataFrame, npt.NDArray[np.uint8], Any]:
    """Train positives with drawn negatives, then valid and test as published.

    The file of the published train negatives is not to be had. A negative is drawn as they were, an app that the user
    never used, in the context of the positive; "used" looks at train alone, so that nothing of valid and test is known.

    Args:
        directory: with ``nfm_train_positives.parquet`` and ``nfm_libfm_valid_test.parquet``.
        per_positive: negatives for each train positive.
        seed: of the draw.

    Returns:
        The events, the split of each, facts for the report.
    """
    positives = pl.read_parquet(directory / "nfm_train_positives.parquet").select(_CODES).to_numpy().astype(np.int32)
    negatives = _negatives(positives, per_positive, seed)
    held_out = pl.read_parquet(directory / "nfm_libfm_valid_test.parquet")
    parts = [held_out.filter(pl.col("split") == split) for split in ("valid", "test")]
    codes = np.concatenate([positives, negatives, *(part.select(_CODES).to_numpy().astype(np.int32) for part in parts)])
    counts = [len(positives) + len(negatives), *map(len, parts)]
    labels = np.concatenate(
        [np.ones(len(positives)), np.zeros(len(negatives)), *(p["label"].to_numpy() for p in parts)]
    )
    columns: dict[str, Any] = {LABEL: labels.astype(np.int8)}
    columns |= {name: codes[:, place] for place, name in enumerate(FIELDS)}
    facts = {
        "method": "given",
        "train negatives": f"{per_positive} drawn for each positive among apps that the user has not in train",
        "seed": seed,
    }
    return pl.DataFrame(columns), np.repeat(np.arange(3, dtype=np.uint8), counts), facts


def _negatives(positives: npt.NDArray[np.int32], per_positive: int, seed: int) -> npt.NDArray[np.int32]:
    """Int32 [per_positive * P, 10]: the positives with another app."""
    used = np.zeros((USERS, ITEMS), dtype=np.bool_)
    used[positives[:, 0], positives[:, 1] - USERS] = True
    negatives = np.repeat(positives, per_positive, axis=0)
    draws = generator(seed, "frappe negatives")
    open_rows = np.arange(len(negatives))
    while len(open_rows):
        items = draws.integers(0, ITEMS, len(open_rows), dtype=np.int32)
        negatives[open_rows, 1] = USERS + items
        open_rows = open_rows[used[negatives[open_rows, 0], items]]
    return negatives
